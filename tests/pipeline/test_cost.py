"""The cost model agrees with FLOPs counted by torch on the meta device, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import Continuous, LikelihoodSpec, RunSpec
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator, generate
from mar_bench.models.likelihood import bits_per_token
from mar_bench.pipeline.cost import QUANTILES, gpu_hours, likelihood_flops, sampling_flops, seconds, training_flops
from mar_bench.pipeline.rehearse import count
from mar_bench.utils.noise import NoiseSource
from tests.tiny import HEAD_SPECS, shrunk, tokens_in

META = torch.device("meta")  # no weights, no memory
TINY = load_experiment("table1", "tiny").rows
BATCH = 64  # what all images of a batch share, such as the timestep's embedding, is divided by it
KNOWN_SHARE = 0.05  # gradients that the first layers do not need, and modulations computed once an image


class GivenShare(NoiseSource):
    """Noise with a given draw of the masking ratio."""

    def __init__(self, u: float):
        super().__init__(0, range(BATCH))
        self.u = u

    def shared(self, purpose: str, step: int) -> float:
        return self.u


def on_meta(spec: RunSpec) -> Generator:
    with META:
        return build_generator(spec)


def count_flops(work: Callable[[], object]) -> float:
    """A multiply-add counts as two. Attention is counted on the meta device only, elementwise operations never."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def counted_training(spec: RunSpec) -> float:
    model, labels = on_meta(spec).train(), torch.zeros(BATCH, dtype=torch.int64, device=META)
    tokens = tokens_in(spec.space, BATCH).to(META)
    counts = [
        count_flops(lambda u=u: model.loss(tokens, labels, GivenShare(u), 0).mean().backward()) for u in QUANTILES
    ]
    return sum(counts) / len(counts) / BATCH


def counted_sampling(spec: RunSpec) -> float:
    model, labels = on_meta(spec).eval(), torch.zeros(BATCH, dtype=torch.int64, device=META)
    return count_flops(lambda: generate(model, labels, spec.sampling, NoiseSource(0, range(BATCH)))) / BATCH


def short(spec: RunSpec, denoises: bool = True, **changes) -> RunSpec:
    steps = 3 if denoises else None
    return replace(spec, sampling=replace(spec.sampling, num_diffusion_steps=steps, **changes))


def with_head(head: str, guidance: float) -> RunSpec:
    spec, part = TINY["mar/diff/guided"], shrunk(HEAD_SPECS[head])
    return short(replace(spec, model=replace(spec.model, head=part)), part.denoises, guidance_scale=guidance)


CONTINUOUS = [kind for kind, cls in HEAD_SPECS.items() if cls.space is Continuous]
SPECS = {
    **{row: TINY[row] for row in ("raster_causal/ce/guided", "mar/ce/unguided")},
    "raster_causal/diff/guided": short(TINY["raster_causal/diff/guided"]),
    **{f"{head}, guidance {w:g}": with_head(head, w) for head in CONTINUOUS for w in (1.0, 3.0)},
    "dit": short(load_experiment("fig6", "tiny").rows["dit_a"]),
    "confidence": load_experiment("table5", "tiny").rows["ce_confidence/mar"],
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_flops_match_the_count_on_the_meta_device(spec):
    assert training_flops(spec) == pytest.approx(counted_training(spec), rel=KNOWN_SHARE)
    assert sampling_flops(spec) == pytest.approx(counted_sampling(spec), rel=0.02)


@pytest.mark.parametrize("row", ["mar/diff/unguided", "random_causal/ce/unguided", "raster_causal/diff/unguided"])
def test_flops_of_likelihoods_match_the_count(row):
    spec = replace(TINY[row], likelihood=LikelihoodSpec(images=BATCH, orders=1, timesteps=4))
    model, labels = build_generator(spec).eval(), torch.zeros(BATCH, dtype=torch.int64)
    tokens, noise = tokens_in(spec.space, BATCH), NoiseSource(0, range(BATCH))
    counted = count_flops(lambda: bits_per_token(model, tokens, labels, model.order, spec.likelihood, noise))
    assert likelihood_flops(spec) == pytest.approx(2 * counted, rel=0.08)  # two parts; attention is not counted


def test_the_authors_times_for_mar_l():
    """400 epochs in 1 day 11 hours on 16 H100; 0.288 s per image at 64 steps with guidance on one A100."""
    spec = RunSpec()
    assert gpu_hours("train", spec) == pytest.approx(16 * 35, rel=0.01)
    guided = replace(spec, sampling=replace(spec.sampling, guidance_scale=2.0, num_images=1))
    (counted,) = count({"guided": guided}, "A100")
    assert 3600 * counted["gpu_hours"]["sampling"] == pytest.approx(0.288, rel=0.06)
    assert gpu_hours("train", replace(spec, train=replace(spec.train, published="mar_large"))) == 0


def test_seconds_on_a_cpu_core_agree_with_the_committed_measurements():
    """Table 1 at tiny scale on one idle core: 18 ms per training step with the linear head, 49 ms with the MLP."""
    for row, step in (("random_causal/ce/unguided", 0.018), ("random_causal/diff/unguided", 0.049)):
        spec = TINY[row]
        assert seconds("train", spec) / spec.train.steps == pytest.approx(step, rel=0.6)
    assert seconds("tokenizer", TINY["mar/diff/guided"]) > seconds("tokenizer", RunSpec()) == 1
