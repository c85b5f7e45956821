"""The estimated memory and disk agree with models that are built, and plans that no machine can hold are refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import RunSpec
from mar_bench.config.yaml_layers import experiment_files
from mar_bench.models.build import build_generator, count_parameters
from mar_bench.pipeline.room import KEPT, LIBRARIES, STATE, fitting_batch, parameters, room, room_of
from mar_bench.pipeline.sample import decoded
from mar_bench.pipeline.train import FILLED
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource
from tests.pipeline.test_cost import SPECS, TINY, on_meta
from tests.tiny import tokens_in

IMAGES = 8


def kept_for_the_backward_pass(spec: RunSpec) -> int:
    """Bytes of all tensors that a training step of IMAGES images keeps, weights aside."""
    model = build_generator(spec).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        labels = torch.zeros(IMAGES, dtype=torch.int64)
        model.loss(tokens_in(spec.space, IMAGES), labels, NoiseSource(0, range(IMAGES)), 0).mean()
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_parameters_and_what_a_step_keeps_are_those_of_the_model(spec):
    total = count_parameters(on_meta(spec))["total"]
    assert parameters(spec) == pytest.approx(total, rel=0.03)
    memory, disk = room("train", spec)
    snapshots = 4 * total * len(spec.train.snapshots)  # in memory, in two checkpoints and as files
    assert disk == pytest.approx(KEPT * total + 3 * snapshots, rel=0.03)
    estimate = (memory - STATE * parameters(spec) - snapshots) / spec.train.batch_size
    assert 1 / 3 < estimate / (kept_for_the_backward_pass(spec) / IMAGES) < 3


def test_the_room_of_the_paper():
    """MAR-L; fp16 latents of ImageNet and its mirror images take 42 GB; checkpoints of 6.8 GB, two of them."""
    spec = load_experiment("table1", "paper").rows["mar/diff/guided"]
    assert parameters(spec) == pytest.approx(426_357_792, rel=0.01)
    assert room("latents", spec)[1] == pytest.approx(42e9, rel=0.05)
    assert room("train", spec)[1] == pytest.approx(2 * 6.82e9 + 8 * 426e6, rel=0.05)
    assert room("sample", spec)[1] == 50_000 * 256 * 16 * 4


def test_the_largest_memory_and_all_disk_count():
    spec = TINY["mar/diff/guided"]
    stages = [("train", "a training", spec), ("sample", "samples", spec), ("speed", "speed", spec)]
    found, (memory, disk) = room_of(stages), zip(*(room(stage, spec) for stage, _, _ in stages))
    assert found["memory_bytes"] == round(max(memory) + LIBRARIES) and found["disk_bytes"] == round(sum(disk))
    assert found["largest_stage"] == stages[memory.index(max(memory))][1]


@pytest.mark.parametrize(
    ("override", "hints"),
    [
        ("parts.backbone.masked.dim=65536 parts.backbone.masked.encoder_depth=1000", ("train of mar/", "of memory")),
        ("sampling.batch_size=1000000 data.image_size=1024", ("of memory", "batch")),
        (
            "sampling.num_images=1000000000 data.image_size=2048 parts.tokenizer.continuous.latent_dim=1024",
            ("PB of disk", "lower"),
        ),
    ],
)
def test_what_no_machine_has_is_refused(override, hints, tmp_path):
    words = ["plan", "table1", "--only", "mar/diff/*", "--runs", str(tmp_path), "--records", str(tmp_path)]
    line = CliRunner().invoke(app, words).output.splitlines()[-1]
    assert "they need about" in line and "GB of memory in one process" in line and "GB of disk" in line
    content = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert 4e8 < content["room"]["memory_bytes"] < 2e9 and 1e7 < content["room"]["disk_bytes"] < 1e9
    refused = CliRunner().invoke(app, [*words, *override.split()]).exception
    assert isinstance(refused, UserError) and all(hint in str(refused) for hint in hints), refused


@pytest.mark.parametrize("scale", ["paper", "gpu", "gpu64"])
def test_all_stages_fit_on_one_gpu(scale):
    """80 GB, with micro-batches that are chosen by the memory; the estimates are good to a factor."""
    for name in experiment_files():
        for row, spec in load_experiment(name, scale).rows.items():
            for stage in ("train", "sample", "generation", "speed"):
                assert room(stage, spec)[0] < 50e9, (name, row, stage)
            if spec.train.published is None:
                assert fitting_batch(spec, FILLED * 80e9) >= 16, (name, row)


def test_images_are_decoded_a_few_at_a_time_and_equal(monkeypatch):
    """Each with the noise of its own index, which a stochastic decoder draws from."""

    def decode(tokens: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
        sizes.append(len(tokens))
        return tokens + noise.uniform("decode", 0, (3,))

    spec, tokens, sizes = TINY["mar/diff/guided"], torch.randn(7, 3), []
    noise, tokenizer = NoiseSource(5, range(20, 27)), SimpleNamespace(decode=decode)
    whole = decoded(spec, tokenizer, tokens, noise)
    monkeypatch.setattr("mar_bench.pipeline.sample.decoded_together", lambda spec: 3)
    assert torch.equal(decoded(spec, tokenizer, tokens, noise), whole)
    assert sizes == [7, 3, 3, 1]
