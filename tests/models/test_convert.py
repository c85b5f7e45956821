"""Published checkpoints become ours, complete and in their places; nothing else in a file is read, or ever executed."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import pickle
import subprocess
import sys
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


# --- latent diffusion's names, written down from its code -------------------------------------------------


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _residual(name: str, channels: int, out: int) -> Shapes:
    shapes = _layer(f"{name}.norm1", channels) | _layer(f"{name}.conv1", out, channels, 3, 3)
    shapes |= _layer(f"{name}.norm2", out) | _layer(f"{name}.conv2", out, out, 3, 3)
    return shapes | (_layer(f"{name}.nin_shortcut", out, channels, 1, 1) if channels != out else {})


def _attention(name: str, channels: int) -> Shapes:
    convolutions = (_layer(f"{name}.{leaf}", channels, channels, 1, 1) for leaf in ("q", "k", "v", "proj_out"))
    return {k: s for shapes in (_layer(f"{name}.norm", channels), *convolutions) for k, s in shapes.items()}


def _middle(name: str, channels: int) -> Shapes:
    blocks = _residual(f"{name}.block_1", channels, channels) | _residual(f"{name}.block_2", channels, channels)
    return blocks | _attention(f"{name}.attn_1", channels)


def official_autoencoder(kind: str, widths: tuple[int, ...], latent: int, codes: int = 0) -> Shapes:
    """Latent diffusion's names: of KL-16 as MAR has it, of VQ-16, or of stable diffusion's KL-8."""
    last, top = len(widths) - 1, widths[-1]
    moments = latent if kind == "vq16" else 2 * latent
    shapes, channels = _layer("encoder.conv_in", widths[0], 3, 3, 3), widths[0]
    for i, width in enumerate(widths):
        for j in range(2):
            shapes |= _residual(f"encoder.down.{i}.block.{j}", channels, width)
            shapes |= _attention(f"encoder.down.{i}.attn.{j}", width) if i == last and kind != "kl8" else {}
            channels = width
        shapes |= _layer(f"encoder.down.{i}.downsample.conv", width, width, 3, 3) if i != last else {}
    shapes |= _middle("encoder.mid", top) | _layer("encoder.norm_out", top)
    shapes |= _layer("encoder.conv_out", moments, top, 3, 3)
    shapes |= _layer("decoder.conv_in", top, latent, 3, 3) | _middle("decoder.mid", top)
    for i, width in reversed(list(enumerate(widths))):
        for j in range(3):
            shapes |= _residual(f"decoder.up.{i}.block.{j}", channels, width)
            shapes |= _attention(f"decoder.up.{i}.attn.{j}", width) if i == last and kind == "vq16" else {}
            channels = width
        shapes |= _layer(f"decoder.up.{i}.upsample.conv", width, width, 3, 3) if i else {}
    shapes |= _layer("decoder.norm_out", widths[0]) | _layer("decoder.conv_out", 3, widths[0], 3, 3)
    shapes |= _layer("quant_conv", moments, moments, 1, 1) | _layer("post_quant_conv", latent, latent, 1, 1)
    return shapes | ({"quantize.embedding.weight": (codes, latent)} if codes else {})


F16, F8, SMALL = (128, 128, 256, 256, 512), (128, 256, 512, 512), (32, 32, 64, 64, 64)
SMALL_KL8 = official_autoencoder("kl8", (32, 32, 64, 64), 4)
SMALL_VQ16 = official_autoencoder("vq16", SMALL, 8, codes=16384)
FULL = {
    "kl16": (official_autoencoder("kl16", F16, 16), LDMKLTokenizer()),
    "vq16": (official_autoencoder("vq16", F16, 8, codes=16384), LDMVQTokenizer()),
    "kl8": (official_autoencoder("kl8", F8, 4), SDKLTokenizer()),
}
LOSSES = {"loss.logvar": (), "loss.discriminator.main.0.weight": (4, 3, 4, 4), "model_ema.decay": ()}


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }


def official_mar() -> dict[str, torch.Tensor]:
    """A small MAR in official names."""
    return load_file(DATA / "mar_kl16.safetensors")


def shapes_of(net: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def small_kl8() -> nn.Module:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )


@pytest.fixture
def small(monkeypatch) -> None:
    """Tokenizers with few channels, whose files are small."""
    monkeypatch.setattr(published, "STAGES", SMALL)
    small_ones = ("sd_kl", "consistency")
    monkeypatch.setattr(module, "net_of", lambda spec: small_kl8() if spec.kind in small_ones else net_of(spec))


def mistake(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        convert(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- name maps ------------------------------------------------------------------------------------------


def test_names_written_here_are_those_of_official_kl16():
    official = json.loads((DATA / "kl16_vae_state_shapes.json").read_text())
    assert {name: list(shape) for name, shape in FULL["kl16"][0].items()} == official


@pytest.mark.parametrize("kind", FULL)
def test_autoencoders_map_one_to_one(kind):
    """Every tensor of the network gets one of the same shape, except for the 1 x 1 convolutions of attention."""
    official, spec = FULL[kind]
    with torch.device("meta"):
        expected = shapes_of(net_of(spec))
    found = {ldm_name(name, module.LDM_STAGES[kind]): shape for name, shape in official.items()}
    assert len(found) == len(official) and found.keys() == expected.keys()
    changed = {name for name in found if found[name] != expected[name]}
    assert changed == {name for name in found if ".to_" in name and name.endswith("weight")}
    assert all(found[name] == (*expected[name], 1, 1) for name in changed)


@pytest.mark.parametrize("name", ["", "encoder", "decoder.up.5.block.0.norm1.weight", "loss.logvar", "conv_in.weight"])
def test_unknown_names_of_latent_diffusion(name):
    with pytest.raises(KeyError):
        ldm_name(name, 5)


def test_kl8_is_mapped_like_diffusers_does_it():
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    official = filled(SMALL_KL8)
    config = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    theirs = single_file.convert_ldm_vae_checkpoint(dict(official), config)
    ours = {ldm_name(name, 4): tensor for name, tensor in official.items()}
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, module._squeezed(ours[name], name)), name


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
        "epoch": 799,
        "args": argparse.Namespace(model="mar_huge", patch_size=1, output_dir=str(tmp_path), resume=None, lr=1e-4),
    }
    torch.save(content, tmp_path / "checkpoint-last.pth")
    return tmp_path / "checkpoint-last.pth"


@pytest.mark.parametrize("raw", (False, True))
def test_mar_takes_the_moving_average_or_the_raw_weights(mar, tmp_path, raw):
    manifest = convert("mar", mar, tmp_path / "out/mar.safetensors", raw)
    assert manifest["weights"] == ("model" if raw else "model_ema")
    written, expected = load_file(tmp_path / "out/mar.safetensors"), official_mar()
    assert manifest["names"] == {name: our_name(name) for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(written[our_name(name)], tensor if raw else tensor + 1), name
    assert manifest["architecture"]["num_heads"] == 16
    assert manifest["arguments"] == {"model": "mar_huge", "patch_size": 1}
    assert manifest["parameters"] == sum(tensor.numel() for tensor in expected.values())


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


def test_manifest_records_source_and_target_without_folders(mar, tmp_path):
    manifest = convert("mar", mar, tmp_path / "mar.safetensors")
    text = (tmp_path / "mar.json").read_text()
    assert json.loads(text) == manifest and str(tmp_path) not in text
    for key, path in (("source", mar), ("target", tmp_path / "mar.safetensors")):
        assert manifest[key] == {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sorted(p.name for p in tmp_path.iterdir()) == [mar.name, "mar.json", "mar.safetensors"]


@pytest.mark.parametrize("key", ("state_dict", "model", None))
def test_vq16_without_what_only_training_needs(small, tmp_path, key):
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
    out = {}
    for name, tensor in state.items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        out[name] = tensor
    return out


@pytest.mark.parametrize("kind", ("kl8", "consistency"))
@pytest.mark.parametrize("layout", ("folder", "safetensors", "old folder", "old bin"))
def test_diffusers_files(small, tmp_path, kind, layout):
    state = filled(shapes_of(small_kl8()))
    folder = tmp_path / "sd-vae-ft-ema"
    folder.mkdir()
    file = folder / f"diffusion_pytorch_model.{'bin' if 'old' in layout else 'safetensors'}"
    if "old" in layout:
        torch.save(old_names(state), file)
    else:
        save_file(state, file)
        torch.save({}, folder / "diffusion_pytorch_model.bin")  # safetensors has priority
    manifest = convert(kind, folder if "folder" in layout else file, tmp_path / "kl8.safetensors")
    written = load_file(tmp_path / "kl8.safetensors")
    assert written.keys() == state.keys() and manifest["left_out"] == {} and manifest["squeezed"] == []
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_kl8_in_the_original_names(small, tmp_path):
    state = filled({**SMALL_KL8, **LOSSES})
    torch.save({"state_dict": state}, tmp_path / "vae.ckpt")
    manifest = convert("kl8", tmp_path / "vae.ckpt", tmp_path / "kl8.safetensors")
    assert len(manifest["left_out"]) == 3 and manifest["names"].keys() == SMALL_KL8.keys()
    found = load_file(tmp_path / "kl8.safetensors")["decoder.up_blocks.3.resnets.0.conv1.weight"]
    assert torch.equal(found, state["decoder.up.0.block.0.conv1.weight"])


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


def spoilt(tmp_path: Path, **changes) -> str:
    """The message about a MAR with these tensors (official names, dots as __) replaced, or removed if None."""
    state: dict = official_mar()
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    torch.save({"model_ema": {k: v for k, v in state.items() if v is not None}}, tmp_path / "mar.pth")
    message = mistake("mar", tmp_path / "mar.pth", tmp_path / "mar.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["mar.pth"], "an error leaves nothing behind"
    assert str(tmp_path / "mar.pth") in message
    return message


@pytest.mark.parametrize(
    ("changes", "hints"),
    [
        ({"decoder_norm__weight": None}, ("1 missing: backbone.decoder_norm.weight",)),
        ({"extra\n__weight": torch.zeros(3)}, ("1 unexpected: 'extra\\n.weight'",)),
        ({"z_proj__bias": torch.zeros(9)}, ("1 of another shape: backbone.token_embedding.bias (9,) instead of (",)),
        ({"encoder_blocks__9__norm1__weight": torch.zeros(8)}, ("12 missing", "1 unexpected")),
        ({"mask_token": None}, ("not a valid official MAR", "backbone.mask_token")),
        ({"mask_token": torch.zeros(8)}, ("not a valid official MAR",)),
        ({"mask_token": torch.zeros(1, 1, 0)}, ("not a valid official MAR",)),
        ({"mask_token": "text"}, ("not floating-point tensors", "mask_token")),
        ({"z_proj__bias": torch.zeros(8, dtype=torch.int64)}, ("not floating-point tensors", "z_proj.bias")),
        ({"z_proj__bias": torch.full((64,), math.nan)}, ("NaN or infinite", "backbone.token_embedding.bias")),
    ],
)
def test_what_does_not_fit_is_listed(changes, hints, tmp_path):
    message = spoilt(tmp_path, **changes)
    for hint in hints:
        assert hint in message, message


def test_two_names_for_one_tensor(small, tmp_path):
    state = filled(shapes_of(small_kl8()))
    torch.save({**state, **old_names(state)}, tmp_path / "both.bin")
    message = mistake("kl8", tmp_path / "both.bin", tmp_path / "kl8.safetensors")
    assert "16 unexpected" in message and ".query." in message


def test_another_kind_of_checkpoint(small, tmp_path, mar):
    out = tmp_path / "a.safetensors"
    torch.save({"state_dict": filled(SMALL_VQ16)}, tmp_path / "model.ckpt")
    message = mistake("kl16", tmp_path / "model.ckpt", out)
    assert "unexpected" in message and "of another shape" in message
    assert "'model_ema' in it (found state_dict)" in mistake("mar", tmp_path / "model.ckpt", out)
    assert "unexpected" in mistake("vq16", mar, out)
    torch.save([1], tmp_path / "a.pth")
    assert "holds a list" in mistake("mar", tmp_path / "a.pth", out)


# --- damaged files, and files that could run code ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html><html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"hello, I am not a checkpoint", "not a valid checkpoint"),
        (b"PK\x03\x04 and then nothing", "not a valid checkpoint"),
        (bytes(range(128, 256)) * 8, "not a valid checkpoint"),
        (b"\7\0\0\0\0\0\0\0{'a': 1" + bytes(8), "not a valid checkpoint"),  # safetensors
    ],
)
@pytest.mark.parametrize("name", ("weights.bin", "weights.safetensors"))
def test_files_that_are_no_checkpoint(name, content, hint, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    message = mistake("consistency", file, tmp_path / "out.safetensors")
    assert hint in message and str(file) in message
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", ("zip", "legacy", "safetensors"))
def test_files_that_are_cut_short(kind, tmp_path):
    whole, part = tmp_path / "whole.bin", tmp_path / "part.bin"
    if kind == "safetensors":
        save_file(official_mar(), whole)
    else:
        torch.save({"model_ema": official_mar()}, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.99, 0.9999):
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
        assert "refused" in message or layout == "pickle"
    pickle.loads(pickle.dumps(evil))
    assert touched.exists(), "the attack works on pickle itself"


def test_refusal_shows_how_to_save_the_tensors_alone(small, monkeypatch, tmp_path):
    """A checkpoint of latent diffusion also holds a callback of its trainer."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lightning_stub.py").write_text("class ModelCheckpoint:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    callback = importlib.import_module("lightning_stub").ModelCheckpoint
    state, source = filled(SMALL_VQ16), tmp_path / "vq f16.ckpt"
    torch.save({"state_dict": state, "callbacks": {callback: callback()}}, source)
    message = mistake("vq16", source, tmp_path / "vq16.safetensors")
    assert "lightning_stub.ModelCheckpoint" in message and "could run code" in message
    start = message.index("python -c ")
    command = message[start : message.index("; then convert")].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    manifest = convert("vq16", tmp_path / "vq f16-tensors.ckpt", tmp_path / "vq16.safetensors")
    assert manifest["names"].keys() == state.keys()


# --- targets and the command ------------------------------------------------------------------------------


def test_existing_files_are_never_overwritten(mar, tmp_path):
    assert "must end in .safetensors" in mistake("mar", mar, tmp_path / "mar.pt")
    target, manifest = tmp_path / "mine.safetensors", tmp_path / "mine.json"
    for existing in (target, manifest):
        existing.write_bytes(b"mine")
        assert f"{existing}: already exists" in mistake("mar", mar, target)
        assert existing.read_bytes() == b"mine"
        existing.unlink()


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
    assert "--raw" in mistake("kl16", mar, out, raw=True)
    assert "nowhere.pth: no such file" in mistake("mar", tmp_path / "nowhere.pth", out)
    assert "diffusion_pytorch_model.safetensors" in mistake("kl8", tmp_path, out)
    assert "a folder" in mistake("kl16", tmp_path, out)


def test_command(mar, tmp_path):
    out = tmp_path / "mar.safetensors"
    result = CliRunner().invoke(app, ["convert", "mar", str(mar), str(out), "--raw"], catch_exceptions=False)
    assert result.exit_code == 0 and f"wrote {out}" in result.output and "of model," in result.output
    text = CliRunner().invoke(app, ["convert", "--help"]).output
    assert all(word in text for word in ("KIND", "SOURCE", "TARGET", "--raw", *module.KINDS))
