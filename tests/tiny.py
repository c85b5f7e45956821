"""Specs and models small enough for tests. New kinds are found through the unions of spec.py and shrunk by
the names of their fields."""

from __future__ import annotations

import typing
from dataclasses import fields

from torch import nn

from mar_bench.config.spec import BackboneSpec, HeadSpec, SamplingSpec, TokenSpace
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import BACKBONES
from mar_bench.testing import (  # noqa: F401, also for the tests that import this
    WIDTH,
    assert_same_tokens,
    head_from,
    normal,
    sampling_for,
    scrambled,
    space_for,
    tokens_in,
)
from mar_bench.utils.noise import seeded

SMALL = {
    "dim": WIDTH, "depth": 2, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 4, "num_class_tokens": 2,
    "width": 16, "num_train_timesteps": 50, "draws_per_token": 2, "dropout": 0.0, "stride": 4,
    "latent_dim": 3, "code_dim": 3, "vocab_size": 11, "feature_dim": 4, "steps": 3, "batch_size": 4,
    "num_components": 3, "noise_dim": 4, "min_accuracy": 0.0,
}  # fmt: skip
NUM_CLASSES = 5
BACKBONE_SPECS = {spec.kind: spec for spec in typing.get_args(BackboneSpec)}
HEAD_SPECS = {spec.kind: spec for spec in typing.get_args(HeadSpec)}
PARTS = [(backbone, head) for backbone in BACKBONE_SPECS for head in HEAD_SPECS]


def shrunk(cls: type, **changes):
    """A spec of class ``cls`` with every field that SMALL knows at its small value."""
    small = {f.name: SMALL[f.name] for f in fields(cls) if f.name in SMALL}
    return cls(**{**small, **changes})


def space_of(head: str, side: int = 3) -> TokenSpace:
    return space_for(HEAD_SPECS[head], side)


def backbone_of(kind: str, space: TokenSpace, **changes) -> nn.Module:
    with seeded(0, "test-init"):
        return scrambled(BACKBONES[kind](shrunk(BACKBONE_SPECS[kind], **changes), space, NUM_CLASSES))


def head_of(kind: str, side: int = 3, **changes) -> nn.Module:
    return head_from(shrunk(HEAD_SPECS[kind], **changes), side)


def generator_of(backbone: str, head: str, order: str = "random", side: int = 3) -> ARGenerator:
    space = space_of(head, side)
    return ARGenerator(order, backbone_of(backbone, space), head_of(head, side), space, label_dropout=0.1).eval()


def sampling_of(head: str, **changes) -> SamplingSpec:
    return sampling_for(HEAD_SPECS[head], **changes)
