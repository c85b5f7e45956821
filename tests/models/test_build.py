"""From a spec to modules: fresh weights follow their seed and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mar_bench.config.spec import ARModel, Continuous, DigitsData, KLTokenizer, RunSpec, TrainSpec, VQTokenizer
from mar_bench.models.build import BACKBONES, HEADS, TOKENIZERS, build_generator, build_tokenizer, count_parameters
from tests.tiny import BACKBONE_SPECS, HEAD_SPECS, PARTS, shrunk


def spec_of(backbone: str = "masked", head: str = "diffusion", seed: int = 0) -> RunSpec:
    tokenizer = KLTokenizer if HEAD_SPECS[head].space is Continuous else VQTokenizer
    return RunSpec(
        data=DigitsData(),
        tokenizer=shrunk(tokenizer, seed=seed),
        model=ARModel(backbone=shrunk(BACKBONE_SPECS[backbone]), head=shrunk(HEAD_SPECS[head])),
        train=TrainSpec(seed=seed),
    )


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("build", [build_generator, build_tokenizer])
def test_fresh_weights_follow_their_seed_and_not_the_state_of_torch(build):
    torch_state = torch.random.get_rng_state()
    first = build(spec_of(seed=0))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    with torch.random.fork_rng():
        torch.rand(1)
        assert same_weights(build(spec_of(seed=0)), first)
    assert not same_weights(build(spec_of(seed=1)), first)


@pytest.mark.parametrize(("backbone", "head"), PARTS)
def test_the_kinds_of_a_spec_choose_the_classes(backbone, head):
    spec = spec_of(backbone, head)
    model = build_generator(spec)
    assert type(model.backbone) is BACKBONES[backbone]
    assert type(model.head) is HEADS[head]
    assert type(build_tokenizer(spec)) is TOKENIZERS[spec.tokenizer.kind]
    assert (model.order, model.space, model.label_dropout) == ("random", spec.space, spec.train.label_dropout)


def test_sampling_never_reaches_a_constructor():
    spec = spec_of()
    sampling = replace(spec.sampling, seed=9, num_ar_steps=3, num_diffusion_steps=7, order="raster")
    other = replace(spec, sampling=sampling)
    assert same_weights(build_generator(spec), build_generator(other))
    assert build_generator(other).order == "random"


def test_parameters_are_counted_by_part():
    model = build_generator(spec_of())
    counts = count_parameters(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters()) == counts["backbone"] + counts["head"]
    assert counts["head"] == sum(p.numel() for p in model.head.parameters())
