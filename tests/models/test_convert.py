"""Published checkpoints become ours, complete and in their places; nothing else in a file is read, or ever executed."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.spec import ImageFolderData, LDMKLTokenizer, LDMVQTokenizer, SDKLTokenizer
from mar_bench.models.pretrained import convert as module
from mar_bench.models.pretrained.convert import convert
from mar_bench.models.pretrained.names import ldm_name, mar_architecture, our_name
from mar_bench.models.tokenizers import pretrained as published
from mar_bench.models.tokenizers.pretrained import VQAutoencoder16, net_of
from mar_bench.utils.errors import UserError
from tests.parity.agreements import DATA

Shapes = dict[str, tuple[int, ...]]
SMALL = (32, 32, 64, 64, 128)  # channels, a quarter of the true ones


# --- shapes under latent diffusion's names -----------------------------------------------------------------


def with_latents(shapes: Shapes, moments: int, dim: int) -> Shapes:
    return shapes | {
        **{"encoder.conv_out.weight": (moments, 512, 3, 3), "encoder.conv_out.bias": (moments,)},
        **{"quant_conv.weight": (moments, moments, 1, 1), "quant_conv.bias": (moments,)},
        **{"post_quant_conv.weight": (dim, dim, 1, 1), "post_quant_conv.bias": (dim,)},
        "decoder.conv_in.weight": (512, dim, 3, 3),
    }


def small(shapes: Shapes) -> Shapes:
    return {name: tuple(n // 4 if n in (128, 256, 512) else n for n in shape) for name, shape in shapes.items()}


KL16 = {name: tuple(shape) for name, shape in json.loads((DATA / "kl16_vae_state_shapes.json").read_text()).items()}
ATTENTION = {name.removeprefix("encoder.down.4.attn.0"): s for name, s in KL16.items() if "down.4.attn.0" in name}
VQ16 = with_latents(KL16, 8, 8) | {"quantize.embedding.weight": (16384, 8)}
VQ16 |= {f"decoder.up.4.attn.{i}{leaf}": shape for leaf, shape in ATTENTION.items() for i in range(3)}
SMALL_VQ16 = small(VQ16)
LOSSES = {"loss.logvar": (), "loss.discriminator.main.0.weight": (4, 3, 4, 4), "model_ema.decay": ()}


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator) / math.sqrt(math.prod(s[1:])) for n, s in shapes.items()}


def official_mar() -> dict[str, torch.Tensor]:
    """A small MAR in official names."""
    return load_file(DATA / "mar_kl16.safetensors")


def shapes_of(net: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


@pytest.fixture
def small_nets(monkeypatch) -> None:
    """Tokenizers with few channels, whose files are small."""
    monkeypatch.setattr(published, "WIDTHS", {"sd_kl": SMALL[1:], "ldm_kl": SMALL, "ldm_vq": SMALL})


def mistake(*args) -> str:
    with pytest.raises(UserError) as caught:
        convert(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("official", "spec"), [(KL16, LDMKLTokenizer()), (VQ16, LDMVQTokenizer())], ids=["kl", "vq"])
def test_autoencoders_map_one_to_one(official, spec):
    """Every tensor of the network gets one of the same shape, except for the 1 x 1 convolutions of attention."""
    with torch.device("meta"):
        expected = shapes_of(net_of(spec))
    found = {ldm_name(name): shape for name, shape in official.items()}
    assert len(found) == len(official) and found.keys() == expected.keys()
    changed = {name for name in found if found[name] != expected[name]}
    assert changed == {name for name in found if ".to_" in name and name.endswith("weight")}
    assert all(found[name] == (*expected[name], 1, 1) for name in changed)


@pytest.mark.parametrize("name", ["", "encoder", "decoder.up.5.block.0.norm1.weight", "loss.logvar", "conv_in.weight"])
def test_unknown_names_of_latent_diffusion(name):
    with pytest.raises(KeyError):
        ldm_name(name)


def test_names_are_mapped_like_diffusers_does_it():
    """Which knows no attention in the stages."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    official = filled({name: shape for name, shape in small(KL16).items() if "down.4.attn" not in name})
    config = {"down_block_types": [""] * 5, "up_block_types": [""] * 5}
    theirs = single_file.convert_ldm_vae_checkpoint(dict(official), config)
    ours = {ldm_name(name): tensor for name, tensor in official.items()}
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor.flatten(), ours[name].flatten()) for name, tensor in theirs.items())


def test_architecture_from_shapes():
    official = json.loads((DATA / "mar_huge_state_shapes.json").read_text())
    assert mar_architecture({our_name(name): tuple(shape) for name, shape in official.items()}) == {
        "dim": 1280, "encoder_depth": 20, "decoder_depth": 20, "mlp_ratio": 4, "num_class_tokens": 64,
        "head_depth": 12, "head_width": 1536, "token_dim": 16, "num_tokens": 256, "num_classes": 1000,
    }  # fmt: skip


# --- what is written ------------------------------------------------------------------------------------


@pytest.fixture
def mar(tmp_path) -> Path:
    """An official checkpoint, with everything that its trainer saves."""
    state = official_mar()
    content = {
        "model": state,
        "model_ema": OrderedDict((name, nn.Parameter(tensor + 1)) for name, tensor in state.items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]},
        "args": argparse.Namespace(model="mar_huge", patch_size=1, output_dir=str(tmp_path), resume=None, lr=1e-4),
    }
    torch.save(content, tmp_path / "checkpoint-last.pth")
    return tmp_path / "checkpoint-last.pth"


@pytest.mark.parametrize("raw", (False, True))
def test_mar_takes_the_moving_average_or_the_raw_weights(mar, tmp_path, raw):
    out = tmp_path / "out/mar.safetensors"
    manifest, expected = convert("mar", mar, out, raw), official_mar()
    assert manifest["weights"] == ("model" if raw else "model_ema")
    assert manifest["names"] == {name: our_name(name) for name in expected}
    written = load_file(out)
    for name, tensor in expected.items():
        assert torch.equal(written[our_name(name)], tensor + (not raw)), name
    assert manifest["architecture"]["num_heads"] == 16
    assert manifest["parameters"] == sum(tensor.numel() for tensor in expected.values())
    text = out.with_suffix(".json").read_text()
    assert json.loads(text) == manifest and str(tmp_path) not in text
    for key, path in (("source", mar), ("target", out)):
        assert manifest[key] == {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sorted(p.name for p in out.parent.iterdir()) == ["mar.json", "mar.safetensors"]


@pytest.mark.parametrize("name", ("mar_kl16", "mar_kl8_patch2"))
def test_architecture_of_official_weights(name, tmp_path):
    config = json.loads((DATA / f"{name}.json").read_text())["config"]
    state = {f"module.{key}": tensor for key, tensor in load_file(DATA / f"{name}.safetensors").items()}  # DDP's
    torch.save({"model_ema": state}, tmp_path / "mar.pth")
    sizes = convert("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")["architecture"]
    found = [sizes[k] for k in ("dim", "encoder_depth", "num_class_tokens", "head_depth", "head_width", "num_classes")]
    keys = ("encoder_embed_dim", "encoder_depth", "buffer_size", "diffloss_d", "diffloss_w", "class_num")
    assert found == [config[k] for k in keys] and sizes["num_heads"] is None
    assert sizes["token_dim"] == config["vae_embed_dim"] * config["patch_size"] ** 2


@pytest.mark.parametrize("prefix", ("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."))
@pytest.mark.parametrize("raw", (False, True))
def test_a_prefix_of_all_names_is_taken_off_and_noted(prefix, raw, tmp_path):
    state = {prefix + name: tensor for name, tensor in official_mar().items()}
    torch.save(state if raw else {"model_ema": state}, tmp_path / "mar.pth")
    if raw:
        assert "--raw" in mistake("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")
    manifest = convert("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors", raw)
    assert manifest["prefix"] == prefix and manifest["weights"] == ("the whole file" if raw else "model_ema")
    written = load_file(tmp_path / "mar.safetensors")
    assert all(torch.equal(written[our_name(name)], tensor) for name, tensor in official_mar().items())


@pytest.mark.parametrize("name", ("module.mask_token", "_orig_mod.mask_token"))
def test_a_prefix_of_some_names_is_refused(name, tmp_path):
    state = official_mar()
    torch.save({"model_ema": {name: state.pop("mask_token"), **state}}, tmp_path / "mar.pth")
    message = mistake("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")
    assert "mar.pth: some names begin" in message and name in message and "DDP" in message


@pytest.mark.parametrize("key", ("state_dict", "model", None))
def test_vq16_without_what_only_training_needs(small_nets, tmp_path, key):
    state = filled({**SMALL_VQ16, **LOSSES}) | {"model_ema.num_updates": torch.tensor(3)}
    torch.save({key: state, "epoch": 7} if key else state, tmp_path / "model.ckpt")
    manifest = convert("vq16", tmp_path / "model.ckpt", tmp_path / "vq16.safetensors")
    assert len(manifest["squeezed"]) == 4 * (2 + 3 + 2)
    assert manifest["left_out"].keys() == {*LOSSES, "model_ema.num_updates"}
    assert manifest["weights"] == (key or "the whole file") and manifest["names"].keys() == SMALL_VQ16.keys()
    written = load_file(tmp_path / "vq16.safetensors")
    assert torch.equal(written["quantize.embedding.weight"], state["quantize.embedding.weight"])
    found = written["decoder.up_blocks.0.attentions.2.to_v.weight"]
    assert torch.equal(found, state["decoder.up.4.attn.2.v.weight"][:, :, 0, 0])
    spec = LDMVQTokenizer(weights=str(tmp_path / "vq16.safetensors"))
    tokenizer, images = VQAutoencoder16(spec, ImageFolderData(image_size=32)), torch.zeros(2, 3, 32, 32)
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.encode(images))
    assert decoded.shape == images.shape and decoded.isfinite().all()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Attention layers as diffusers called them when sd-vae-ft was published."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {re.sub(r"(to_[qkv]|to_out\.0)", lambda m: old[m[0]], name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("old", [False, True])
def test_files_of_diffusers(small_nets, tmp_path, old):
    state, file = filled(shapes_of(net_of(SDKLTokenizer()))), tmp_path / ("vae.bin" if old else "vae.safetensors")
    torch.save(old_names(state), file) if old else save_file(state, file)
    manifest = convert("kl8", file, tmp_path / "kl8.safetensors")
    written = load_file(tmp_path / "kl8.safetensors")
    assert written.keys() == state.keys() and manifest["left_out"] == {} and manifest["squeezed"] == []
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    torch.save({**state, **old_names(state)}, tmp_path / "both.bin")
    message = mistake("kl8", tmp_path / "both.bin", tmp_path / "both.safetensors")
    assert "16 unexpected" in message and ".query." in message


@pytest.mark.parametrize(
    ("dtype", "new_format"), [(torch.float16, True), (torch.bfloat16, False), (torch.float64, True)]
)
def test_everything_becomes_float32_and_contiguous(tmp_path, dtype, new_format):
    """From both formats of torch.save."""
    state = {name: tensor.to(dtype) for name, tensor in official_mar().items()}
    state["z_proj.weight"] = state["z_proj.weight"].t().contiguous().t()
    state["encoder_norm.bias"] = state["encoder_norm.weight"]  # shared memory
    torch.save({"model_ema": state}, tmp_path / "mar.pth", _use_new_zipfile_serialization=new_format)
    convert("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")
    written = load_file(tmp_path / "mar.safetensors")
    for name, tensor in state.items():
        found = written[our_name(name)]
        assert found.dtype == torch.float32 and torch.equal(found, tensor.float()), name


# --- what does not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "hints"),
    [
        ({"decoder_norm.weight": None}, ("1 missing: backbone.decoder_norm.weight",)),
        ({"extra\n.weight": torch.zeros(3)}, ("1 unexpected: 'extra\\n.weight'",)),
        ({"z_proj.bias": torch.zeros(9)}, ("1 of another shape: backbone.token_embedding.bias (9,) instead of (",)),
        ({"encoder_blocks.9.norm1.weight": torch.zeros(8)}, ("12 missing", "1 unexpected")),
        ({"mask_token": None}, ("not a valid official MAR", "backbone.mask_token")),
        ({"mask_token": torch.zeros(8)}, ("not a valid official MAR",)),
        ({"mask_token": torch.zeros(1, 1, 0)}, ("not a valid official MAR",)),
        ({"mask_token": "text"}, ("not floating-point tensors", "mask_token")),
        ({"z_proj.bias": torch.zeros(8, dtype=torch.int64)}, ("not floating-point tensors", "z_proj.bias")),
        ({"z_proj.bias": torch.full((64,), math.nan)}, ("NaN or infinite", "backbone.token_embedding.bias")),
    ],
)
def test_tensors_that_do_not_fit_are_listed(changes, hints, tmp_path):
    state = {name: value for name, value in {**official_mar(), **changes}.items() if value is not None}
    torch.save({"model_ema": state}, tmp_path / "mar.pth")
    message = mistake("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["mar.pth"], "an error leaves nothing behind"
    assert all(hint in message for hint in (*hints, str(tmp_path / "mar.pth"))), message


def test_another_kind_of_checkpoint(small_nets, tmp_path, mar):
    out = tmp_path / "a.safetensors"
    torch.save({"state_dict": filled(SMALL_VQ16)}, tmp_path / "model.ckpt")
    message = mistake("kl16", tmp_path / "model.ckpt", out)
    assert "unexpected" in message and "of another shape" in message
    assert "'model_ema' in it (found state_dict)" in mistake("mar", tmp_path / "model.ckpt", out)
    assert "unexpected" in mistake("vq16", mar, out)
    torch.save([1], tmp_path / "a.pth")
    assert "holds a list" in mistake("mar", tmp_path / "a.pth", out)


# --- damaged files, and files that could run code ---------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 and then nothing", bytes(range(128, 256))])
@pytest.mark.parametrize("name", ("weights.bin", "weights.safetensors"))
def test_files_that_are_no_checkpoint(name, content, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    message = mistake("consistency", file, tmp_path / "out.safetensors")
    assert "not a valid checkpoint" in message and str(file) in message and "weights_only=False" not in message
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", ("zip", "legacy", "safetensors"))
def test_files_that_are_cut_short(kind, tmp_path):
    end = "safetensors" if kind == "safetensors" else "bin"
    whole, part = tmp_path / f"whole.{end}", tmp_path / f"part.{end}"
    if kind == "safetensors":
        save_file(official_mar(), whole)
    else:
        torch.save({"model_ema": official_mar()}, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for share in (0.001, 0.5, 0.9999):
        part.write_bytes(content[: int(len(content) * share)])
        assert "not a valid checkpoint" in mistake("mar", part, tmp_path / "out.safetensors"), share


class Touch:
    """What a file could do to whoever unpickles it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("layout", ("zip", "legacy", "pickle"))
@pytest.mark.parametrize("place", ("top", "state", "args"))
def test_nothing_in_a_file_is_executed(layout, place, tmp_path):
    touched, state = tmp_path / "touched", {"fake_latent": torch.zeros(1, 8)}
    evil = Touch(touched)
    content = {
        "top": {"model_ema": state, "model": state, "more": evil},
        "state": {"model_ema": {**state, "fake_latent": evil}, "model": {**state, "fake_latent": evil}},
        "args": {"model_ema": state, "model": state, "args": argparse.Namespace(model=evil)},
    }[place]
    if layout == "pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=layout == "zip")
    for kind in ("mar", "kl16"):
        message = mistake(kind, tmp_path / "evil.pth", tmp_path / "out.safetensors")
        assert not touched.exists() and not (tmp_path / "out.safetensors").exists()
        assert layout == "pickle" or ("refused" in message and "system besides tensors" in message)
        assert "weights_only=False" not in message
    pickle.loads(pickle.dumps(evil))
    assert touched.exists(), "the attack works on pickle itself"


# --- targets and the command ------------------------------------------------------------------------------


def test_existing_files_are_never_overwritten(mar, tmp_path):
    target, manifest = tmp_path / "mine.safetensors", tmp_path / "mine.json"
    for existing in (target, manifest):
        existing.write_bytes(b"mine")
        assert f"{existing}: already exists" in mistake("mar", mar, target)
        assert existing.read_bytes() == b"mine"
        existing.unlink()


def test_a_conversion_killed_before_its_last_step_succeeds_when_repeated(mar, tmp_path):
    def killed(path, content) -> None:
        path.write_text(content)
        os._exit(9)

    target = tmp_path / "out.safetensors"
    if (child := os.fork()) == 0:
        module.atomic_write = killed
        convert("mar", mar, target)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert target.with_suffix(".json").exists() and not target.exists()
    convert("mar", mar, target)
    assert load_file(target)
    assert "out.safetensors: already exists" in mistake("mar", mar, target)
    target.rename(tmp_path / "moved.safetensors")
    target.with_suffix(".json").rename(tmp_path / "other.json")
    assert "other.json: already exists" in mistake("mar", mar, tmp_path / "other.safetensors"), "of another target"


def test_interruption_leaves_nothing_behind(mar, tmp_path, monkeypatch):
    def stop(tensors, path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        convert("mar", mar, tmp_path / "mar.safetensors")
    assert list(tmp_path.iterdir()) == [mar]


def test_wrong_arguments(mar, tmp_path):
    out = tmp_path / "out.safetensors"
    assert "did you mean 'kl16'" in mistake("kl-16", mar, out)
    assert "must end in .safetensors" in mistake("mar", mar, tmp_path / "mar.pt")
    assert "nowhere.pth: no such file" in mistake("mar", tmp_path / "nowhere.pth", out)
    assert f"{tmp_path}: not a valid checkpoint" in mistake("kl8", tmp_path, out)


def test_command(mar, tmp_path):
    out = tmp_path / "mar.safetensors"
    result = CliRunner().invoke(app, ["convert", "mar", str(mar), str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and f"wrote {out}" in result.output and "of model_ema," in result.output
    text = CliRunner().invoke(app, ["convert", "--help"]).output
    assert all(word in text for word in ("KIND", "SOURCE", "TARGET", *module.KINDS))
