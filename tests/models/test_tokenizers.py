"""The tokenizers: what they promise to the others, grouping, scales, and codes beside the latents behind them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mar_bench.config.checks import finish
from mar_bench.config.ids import generation_run, reconstruction_run
from mar_bench.config.spec import (
    ConsistencyTokenizer,
    Continuous,
    CrossEntropyHead,
    DigitsData,
    Discrete,
    ImageFolderData,
    KLTokenizer,
    LDMKLTokenizer,
    LDMVQTokenizer,
    PixelTokenizer,
    RunSpec,
    SDKLTokenizer,
    VQTokenizer,
    num_tokens,
)
from mar_bench.data.datasets import load_data, to_unit
from mar_bench.models.build import build_tokenizer
from mar_bench.models.tokenizers import pretrained as published
from mar_bench.models.tokenizers.grouped import Grouped
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.outputs import load_tokenizer
from mar_bench.pipeline.store import Places, mark_done
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource
from tests.parity.agreements import tokens_of
from tests.pipeline.test_train import go_on
from tests.tiny import normal, shrunk

if find_spec("diffusers") is None:  # not imported here: it takes a second
    pytest.skip("the paper's tokenizers are an extra", allow_module_level=True)
IMAGES = ImageFolderData(image_size=32, num_classes=2)


@pytest.fixture
def spec_with_file(tmp_path, monkeypatch):
    """A spec of a published tokenizer whose small network has its weights in a file; the strides are the true ones."""
    net_of, few = published.net_of, {"encoder_layers_per_block": 1, "decoder_layers_per_block": 1}
    few |= {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}

    def small(spec) -> torch.nn.Module:
        if spec.kind != "consistency":
            return net_of(spec)
        from diffusers import ConsistencyDecoderVAE

        return ConsistencyDecoderVAE(**few)

    monkeypatch.setattr(published, "WIDTHS", {"sd_kl": (32,) * 4, "ldm_kl": (32,) * 5, "ldm_vq": (32,) * 5})
    monkeypatch.setattr(published, "net_of", small)

    def make(part, data=IMAGES) -> RunSpec:
        torch.manual_seed(0)
        file = tmp_path / f"{part.kind}.safetensors"
        save_file(small(part).state_dict(), file)
        return RunSpec(data=data, tokenizer=replace(part, weights=str(file)))

    return make


PUBLISHED = [LDMKLTokenizer(), LDMVQTokenizer(), LDMVQTokenizer(output="latents", scale=0.5), SDKLTokenizer()]
PUBLISHED.append(ConsistencyTokenizer())
TRAINED = [
    shrunk(KLTokenizer),
    shrunk(KLTokenizer, group=2),
    shrunk(VQTokenizer),
    shrunk(VQTokenizer, output="latents"),
]
names = lambda part: f"{part.kind}-{getattr(part, 'output', '')}-{part.group}"  # noqa: E731


def check_contract(spec: RunSpec, images: torch.Tensor) -> None:
    tokenizer = build_tokenizer(spec).eval()
    space, batch = spec.space, len(images)
    with torch.no_grad():
        stored = tokenizer.stored(images)
        tokens = tokenizer.encode(images)
        decoded = tokenizer.decode(tokens, NoiseSource(0, range(batch)))
    assert tokenizer.space == space and all(len(v) == batch for v in stored.values())
    if isinstance(space, Discrete):
        assert tokens.shape == (batch, num_tokens(space)) and tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < space.vocab_size
    else:
        assert tokens.shape == (batch, num_tokens(space), space.dim) and tokens.dtype == torch.float32
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    if tokenizer.stochastic:
        noisy = tokenizer.tokens_of(stored, torch.ones_like(tokens))
        assert not torch.equal(noisy, tokens) and noisy.shape == tokens.shape
    with torch.no_grad():
        assert torch.allclose(tokenizer.encode(images[1:]).float(), tokens[1:].float(), atol=1e-4)
        alone = tokenizer.decode(tokens[1:], NoiseSource(0, [1]))
    assert torch.allclose(alone, decoded[1:], atol=1e-4), "an image does not depend on the batch it is in"


@pytest.mark.parametrize("part", PUBLISHED, ids=names)
def test_published_tokenizers(part, spec_with_file):
    check_contract(spec_with_file(part), normal(2, 3, 32, 32).clamp(-1, 1))


@pytest.mark.parametrize("part", [*TRAINED, PixelTokenizer(group=2), PixelTokenizer(group=1)], ids=names)
def test_tokenizers_trained_here_and_pixels(part):
    check_contract(RunSpec(data=DigitsData(), tokenizer=part), normal(2, 1, 16, 16).clamp(-1, 1))


def test_token_spaces_of_table_2_and_of_pixels():
    """Paper, Table 2: every tokenizer makes a sequence of 16 x 16; appendix D.1: 4 x 4 pixels a token."""
    imagenet, small = ImageFolderData(), ImageFolderData(image_size=64)
    spaces = {
        LDMVQTokenizer(): Discrete(16384, (16, 16)),
        LDMVQTokenizer(output="latents"): Continuous(8, (16, 16)),
        LDMKLTokenizer(): Continuous(16, (16, 16)),
        SDKLTokenizer(): Continuous(16, (16, 16)),
        ConsistencyTokenizer(): Continuous(16, (16, 16)),
    }
    for tokenizer, space in spaces.items():
        assert RunSpec(data=imagenet, tokenizer=tokenizer).space == space
    assert RunSpec(data=small, tokenizer=PixelTokenizer()).space == Continuous(48, (16, 16))


# --- grouping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [2, 4])
def test_grouping_is_the_official_patchify_and_can_be_undone(group):
    data = DigitsData(image_size=32)
    grouped = build_tokenizer(RunSpec(data=data, tokenizer=shrunk(KLTokenizer, group=group)))
    assert isinstance(grouped, Grouped)
    latents = normal(2, 3, 8, 8)
    tokens = grouped.joined(latents.flatten(2).transpose(1, 2))
    assert torch.equal(tokens, tokens_of(latents, group))
    assert torch.equal(grouped.parted(tokens), latents.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LDMVQTokenizer(group=2), "codes are not grouped; set it to 1, or output to latents"),
        (LDMKLTokenizer(group=3), "tokenizer.group 3 does not divide the 16 x 16 latents"),
    ],
)
def test_invalid_groups_are_refused(part, message):
    with pytest.raises(UserError, match=message):
        finish(RunSpec(tokenizer=part, model=replace(RunSpec().model, head=CrossEntropyHead())))
    with pytest.raises(UserError, match="data.channels 1 must be 3"):
        finish(RunSpec(data=ImageFolderData(channels=1), tokenizer=LDMKLTokenizer()))


def test_grouping_shares_the_tokenizer_and_not_the_latents():
    runs = [generation_run("r", RunSpec(tokenizer=SDKLTokenizer(group=group))) for group in (1, 2)]
    assert runs[0].ids["tokenizer_id"] == runs[1].ids["tokenizer_id"]
    assert runs[0].ids["latents_id"] != runs[1].ids["latents_id"]
    assert len({reconstruction_run("r", RunSpec(tokenizer=SDKLTokenizer(group=g))).id for g in (1, 2)}) == 1


# --- codes and the latents behind them --------------------------------------------------------------------


def trained(part, folder: Path) -> tuple[RunSpec, Places]:
    """A run whose tokenizer stage is done."""
    spec, places = RunSpec(data=DigitsData(), tokenizer=part), Places(folder / "runs", folder / "records")
    run = generation_run("row", spec)
    stage = places.folder("tokenizer", run.ids["tokenizer_id"])
    stage.mkdir(parents=True, exist_ok=True)
    if not (stage / "tokenizer.safetensors").exists():
        STAGES["tokenizer"](run, places, stage, go_on)
        mark_done(stage, 1.0)
    return run, places


def test_codes_and_latents_are_of_one_tokenizer(tmp_path):
    """Trained once, reconstructed alike: decoding quantises."""
    codes, latents = shrunk(VQTokenizer), shrunk(VQTokenizer, output="latents")
    run, places = trained(codes, tmp_path)
    other, _ = trained(latents, tmp_path)
    assert run.ids["tokenizer_id"] == other.ids["tokenizer_id"] and run.ids["latents_id"] != other.ids["latents_id"]
    images = normal(3, 1, 16, 16).clamp(-1, 1)
    decoded = []
    for each in (run, other):
        tokenizer = load_tokenizer(each, places, torch.device("cpu"))
        decoded.append(tokenizer.decode(tokenizer.encode(images)))
    assert torch.allclose(*decoded, atol=1e-5)
    noisy = tokenizer.encode(images) + 1e-4
    assert torch.allclose(tokenizer.decode(noisy), decoded[1], atol=1e-5), "a small error is quantised away"


def test_a_codebook_is_trained_by_one_rank_alone(monkeypatch):
    monkeypatch.setattr("vector_quantize_pytorch.vector_quantize_pytorch.is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: pytest.fail("the other ranks never answer"))
    tokenizer = build_tokenizer(replace(RunSpec(), data=DigitsData(), tokenizer=shrunk(VQTokenizer)))
    tokenizer.train().training_loss(torch.zeros(16, 1, 16, 16), torch.zeros(()))


def test_latents_of_a_tokenizer_trained_here_have_unit_scale_and_older_files_are_refused(tmp_path):
    run, places = trained(shrunk(VQTokenizer, output="latents"), tmp_path)
    tokenizer = load_tokenizer(run, places, torch.device("cpu"))
    tokens = tokenizer.encode(to_unit(load_data(run.spec.data).train.get(range(1000)))).flatten(0, 1)
    assert torch.allclose(tokens.mean(0), torch.zeros(3), atol=0.1)
    assert torch.allclose(tokens.std(0), torch.ones(3), atol=0.1)
    file = places.folder("tokenizer", run.ids["tokenizer_id"]) / "tokenizer.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "scale"}, file)
    mark_done(file.parent, 1.0)
    with pytest.raises(UserError, match="another version; delete its folder"):
        load_tokenizer(run, places, torch.device("cpu"))


# --- scales ---------------------------------------------------------------------------------------------


def photographs(folder: Path) -> ImageFolderData:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    for split in ("train", "val"):
        for name, image in zip(("china", "flower"), load_sample_images().images):
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(image[50 * i : 50 * i + 200]).save(folder / split / name / f"{i}.png")
    return replace(IMAGES, root=str(folder))


@pytest.mark.parametrize("part", [LDMKLTokenizer(), SDKLTokenizer(), LDMVQTokenizer(output="latents")], ids=names)
def test_a_scale_can_be_measured(part, spec_with_file, tmp_path):
    """One over the std of sampled latents, all channels together; the mean is kept."""
    data = photographs(tmp_path / "images")
    spec = spec_with_file(replace(part, scale=None), data)
    run, places = generation_run("row", spec), Places(tmp_path / "runs", tmp_path / "records")
    folder = places.folder("tokenizer", run.ids["tokenizer_id"])
    folder.mkdir(parents=True)
    STAGES["tokenizer"](run, places, folder, go_on)
    mark_done(folder, 1.0)
    tokenizer = load_tokenizer(run, places, torch.device("cpu"))
    fixed = build_tokenizer(spec_with_file(replace(part, scale=1.0), data))
    images = to_unit(load_data(data).train.get(range(6)))
    with torch.no_grad():
        raw = fixed.stored(images)
        mean = raw.get("mean", raw.get("latents"))
        std = (mean.var() + raw.get("std", torch.zeros(1)).square().mean()).sqrt()
        assert torch.allclose(tokenizer.encode(images), fixed.encode(images) / std, rtol=1e-4, atol=1e-5)
        again = tokenizer.decode(tokenizer.encode(images))
        assert torch.allclose(again, fixed.decode(fixed.encode(images)), atol=1e-4), "decoding undoes the scale"


def test_a_measured_scale_belongs_to_the_data_and_a_given_one_does_not():
    def ids(scale: float | None, name: str) -> str:
        data = ImageFolderData(name=name)
        return generation_run("r", RunSpec(data=data, tokenizer=LDMKLTokenizer(scale=scale))).ids["tokenizer_id"]

    assert ids(0.2325, "a") == ids(0.2325, "b") and ids(None, "a") != ids(None, "b")


# --- the consistency decoder draws noise ------------------------------------------------------------------


def test_consistency_decoder_noise_depends_on_the_image(spec_with_file):
    spec = spec_with_file(ConsistencyTokenizer())
    tokenizer = build_tokenizer(spec)
    tokens = tokenizer.encode(normal(2, 3, 32, 32).clamp(-1, 1))
    twice = tokens[:1].repeat(2, 1, 1)
    first, second = tokenizer.decode(twice, NoiseSource(0, [5, 6]))
    assert not torch.equal(first, second)
    assert torch.equal(tokenizer.decode(twice, NoiseSource(9, [5, 6]))[0], first), "not the sampling seed's affair"
    other = build_tokenizer(replace(spec, tokenizer=replace(spec.tokenizer, decode_seed=1)))
    assert not torch.equal(other.decode(twice, NoiseSource(0, [5, 6]))[0], first)


# --- pixels ---------------------------------------------------------------------------------------------


def test_pixels_round_trip_exactly():
    spec = RunSpec(data=ImageFolderData(image_size=8), tokenizer=PixelTokenizer())
    tokenizer = build_tokenizer(spec)
    values = torch.from_numpy(np.arange(192, dtype=np.uint8).reshape(1, 3, 8, 8))
    images = values.float() / 127.5 - 1
    stored = tokenizer.stored(images)
    assert stored["pixels"].dtype == torch.uint8 and stored["pixels"].shape == (1, 4, 48)
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert torch.equal(((decoded + 1) * 127.5).round().to(torch.uint8), values)


# --- weights --------------------------------------------------------------------------------------------


def test_weights_of_another_tokenizer_are_refused(spec_with_file, tmp_path):
    right = spec_with_file(LDMKLTokenizer())
    with pytest.raises(RuntimeError, match="scale"):
        build_tokenizer(right).load_fitted({})
    wrong = replace(right, tokenizer=replace(SDKLTokenizer(), weights=right.tokenizer.weights))
    with pytest.raises(UserError, match="not the weights of sd-vae-ft-ema"):
        build_tokenizer(wrong)
    (tmp_path / "page.safetensors").write_text(json.dumps({"<html>": 1}))
    with pytest.raises(UserError, match="not the weights of kl-f16"):
        build_tokenizer(replace(right, tokenizer=replace(right.tokenizer, weights=str(tmp_path / "page.safetensors"))))
