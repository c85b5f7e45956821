"""FLOPs that are counted in part agree with those of the whole; they grow as they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import Continuous, RunSpec
from mar_bench.models.sampler import generate
from mar_bench.pipeline.flops import META, _count, decoding_flops, on_meta, sampling_flops, training_flops
from mar_bench.utils.noise import NoiseSource
from tests.tiny import HEAD_SPECS, shrunk

ROWS = load_experiment("table1", "tiny").rows


def all_of_it(spec: RunSpec) -> float:
    labels = torch.zeros(1, dtype=torch.int64, device=META)
    return _count(lambda: generate(on_meta(spec).eval(), labels, spec.sampling, NoiseSource(0, [0])))


@pytest.mark.parametrize("row", ROWS)
def test_the_steps_left_out_are_counted_right(row):
    assert sampling_flops(ROWS[row]) == pytest.approx(all_of_it(ROWS[row]), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 16])
def test_any_number_of_steps_is_counted_right(steps):
    spec = ROWS["mar/diff/guided"]
    few = replace(spec, sampling=replace(spec.sampling, num_ar_steps=steps, num_diffusion_steps=steps))
    assert sampling_flops(few) == pytest.approx(all_of_it(few), rel=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("head", [kind for kind, cls in HEAD_SPECS.items() if cls.space is Continuous])
def test_every_head_is_counted_right(head, guidance):
    spec = ROWS["mar/diff/guided"]
    steps = 7 if HEAD_SPECS[head].denoises else None
    sampling = replace(spec.sampling, guidance_scale=guidance, num_diffusion_steps=steps)
    other = replace(spec, model=replace(spec.model, head=shrunk(HEAD_SPECS[head])), sampling=sampling)
    assert sampling_flops(other) == pytest.approx(all_of_it(other), rel=1e-9)
    assert training_flops(other) > 0


def test_confidence_order_asks_for_all_open_positions():
    spec = ROWS["mar/ce/unguided"]
    ordered = replace(spec.sampling, order="confidence", choice_temperature=4.5, num_ar_steps=4)
    by_chance, by_confidence = (
        replace(spec, sampling=s) for s in (replace(ordered, order="random", choice_temperature=None), ordered)
    )
    assert sampling_flops(by_confidence) == pytest.approx(all_of_it(by_confidence), rel=1e-9)
    assert sampling_flops(by_confidence) > sampling_flops(by_chance)


def test_a_matrix_product_is_counted_by_hand():
    """The linear classifier: E x V multiply-adds a token, once forward and twice backward, beside the backbone."""
    spec = ROWS["raster_causal/ce/unguided"]
    wider = replace(spec, tokenizer=replace(spec.tokenizer, vocab_size=512))
    more = (512 - 256) * 64 * 16  # weights times tokens
    assert training_flops(wider) - training_flops(spec) == 3 * 2 * more
    assert sampling_flops(wider) - sampling_flops(spec) == 2 * more


def test_training_is_averaged_over_the_masking_ratio():
    spec = ROWS["mar/diff/guided"]
    backbone = spec.model.backbone
    costs = []
    for low, high in ((0.0, 0.2), (0.8, 1.0), (0.0, 1.0)):
        masking = replace(backbone.masking, low=low, high=high)
        costs.append(
            training_flops(replace(spec, model=replace(spec.model, backbone=replace(backbone, masking=masking))))
        )
    assert costs[0] < costs[2] < costs[1], "the head's targets weigh more than the encoder's known tokens"


def test_decoding_is_counted():
    from mar_bench.models.build import build_tokenizer

    for row in ("mar/diff/guided", "mar/ce/guided"):
        with torch.device("meta"):
            assert decoding_flops(build_tokenizer(ROWS[row])) > 1e6
