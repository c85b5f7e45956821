"""No value that is not finite becomes a token, an image or a weight unnoticed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import ARModel, Continuous, DigitsData, DiTModel, KLTokenizer, SamplingSpec, VQTokenizer
from mar_bench.data.datasets import to_images
from mar_bench.metrics.features import Classifier
from mar_bench.models import build
from mar_bench.models.ar import Generator
from mar_bench.models.dit import DiT
from mar_bench.models.finite import check_finite
from mar_bench.pipeline.outputs import load_extractor, load_generator, load_tokenizer
from mar_bench.pipeline.store import Places, mark_done
from mar_bench.pipeline.train import save_tensors
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource
from tests.pipeline.test_train import spec_of
from tests.tiny import HEAD_SPECS, NUM_CLASSES, generator_of, normal, sampling_of, scrambled, shrunk

CPU = torch.device("cpu")
KINDS = (*HEAD_SPECS, "dit")
NOT_FINITE = (math.nan, math.inf, -math.inf)


def model_of(kind: str) -> Generator:
    if kind == "dit":
        return scrambled(DiT(shrunk(DiTModel), Continuous(3, (4, 4)), NUM_CLASSES, 0.1))
    return generator_of("masked", kind)


def settings(kind: str, **changes) -> SamplingSpec:
    return SamplingSpec(num_diffusion_steps=5, **changes) if kind == "dit" else sampling_of(kind, **changes)


def draw(model: Generator, sampling: SamplingSpec) -> torch.Tensor:
    return build.generate(model, torch.arange(4) % NUM_CLASSES, sampling, NoiseSource(0, range(8, 12)))


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("kind", KINDS)
def test_no_model_with_a_broken_weight_draws_tokens(kind, bad):
    model = model_of(kind)
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    layers[-1].bias.data[0] = bad
    for changes in ({}, {"guidance_scale": 3.0}, {"clamp_x0": 4.0}):
        with pytest.raises(UserError, match=r"of images 8 to 11 are not finite"):
            draw(model, settings(kind, **changes))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"guidance_scale": 1e308, "clamp_x0": 4.0}) for kind in KINDS),
        ("cross_entropy", {"temperature": 1e-40}),
        ("cross_entropy", {"guidance_scale": 1e308, "temperature": 1e308}),
        ("cross_entropy", {"order": "confidence", "choice_temperature": 1e308}),
        ("gmm", {"temperature": 1e-40, "guidance_scale": 3.0}),
        *((kind, {"temperature": 1e40}) for kind in ("diffusion", "dit", "flow", "gmm")),
    ],
)
def test_settings_that_overflow_are_refused_by_name(kind, changes):
    with pytest.raises(UserError, match=r"are not finite: .*guidance_scale .*temperature"):
        draw(model_of(kind), settings(kind, num_ar_steps=3, **changes))


@pytest.mark.parametrize("kind", ["cross_entropy", "diffusion", "gmm", "flow", "energy", "dit"])
def test_the_smallest_temperatures_are_the_limit_of_low_ones(kind):
    low, lowest = (1e-30, 1e-36) if kind == "cross_entropy" else (1e-30, 1e-40)
    model = model_of(kind)
    tokens = draw(model, settings(kind, temperature=lowest))
    assert torch.equal(tokens, draw(model, settings(kind, temperature=low)))
    assert not torch.equal(tokens, draw(model, settings(kind)))


class Looks(TorchDispatchMode):
    """Counts how often the host waits for a value of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_guard_waits_for_the_device_once_a_batch(kind):
    found = []
    for steps in (2, 4):
        changes = {"num_diffusion_steps": steps} if kind in ("diffusion", "flow", "dit") else {"num_ar_steps": steps}
        with Looks() as looks:
            draw(model_of(kind), replace(settings(kind, clamp_x0=4.0, guidance_scale=2.0), **changes))
        found.append(looks.count)
    assert found[0] == found[1]


@pytest.mark.parametrize("spec", [KLTokenizer, VQTokenizer])
def test_overflow_in_a_tokenizer_is_neither_a_code_nor_a_pixel(spec):
    run = replace(spec_of("mar/ce/guided"), tokenizer=shrunk(spec), data=DigitsData())
    tokenizer = build.build_tokenizer(run).eval()
    tokens = tokenizer.encode(normal(2, 1, 16, 16))
    tokenizer.decoder[-1].bias.data.fill_(math.inf)
    with pytest.raises(UserError, match="decodes values that are not finite"):
        to_images(tokenizer.decode(tokens), run.data)
    tokenizer.encoder[-1].bias.data.fill_(math.inf)
    if spec is VQTokenizer:
        with pytest.raises(UserError, match="an encoded image has values that are not finite"):
            tokenizer.stored(normal(2, 1, 16, 16))


def saved(module: nn.Module, path: Path, bad: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    name = [name for name, tensor in tensors.items() if tensor.is_floating_point()][-1]
    tensors[name].view(-1)[-1] = bad
    path.parent.mkdir(parents=True)
    save_file(tensors, path)
    mark_done(path.parent, 1.0)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(bad, tmp_path):
    spec, places = spec_of("mar/ce/guided"), Places(tmp_path / "runs", tmp_path / "records")
    assert isinstance(spec.model, ARModel)
    run = generation_run("row", spec)
    parts = {
        "train": (build.build_generator(spec), "ema", load_generator),
        "tokenizer": (build.build_tokenizer(spec), "tokenizer", load_tokenizer),
        "extractor": (Classifier(spec.metrics.extractor, spec.data), "extractor", load_extractor),
    }
    for stage, (module, name, load) in parts.items():
        saved(module, places.folder(stage, run.ids[f"{stage}_id"]) / f"{name}.safetensors", bad)
        with pytest.raises(UserError, match="has values that are not finite"):
            load(run, places, CPU)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"raw.safetensors: b has values that are not finite; lower the learning rate"):
        save_tensors({"a": torch.ones(2), "b": torch.tensor([1, math.nan])}, tmp_path / "raw.safetensors")
    assert not [*tmp_path.iterdir()]
    save_tensors({"codes": torch.ones(2, dtype=torch.int64)}, tmp_path / "raw.safetensors")
    check_finite(load_file(tmp_path / "raw.safetensors"), "file", "")
