"""Specs and models small enough for tests. New kinds are found through the unions of spec.py and shrunk by
the names of their fields."""

from __future__ import annotations

import math
import typing
from dataclasses import fields, replace

import numpy as np
import torch
from torch import nn

from mar_bench.config.spec import BackboneSpec, Continuous, Discrete, HeadSpec, SamplingSpec, TokenSpace
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import BACKBONES, HEADS
from mar_bench.utils.noise import SHARED, philox, seeded

SMALL = {
    "dim": 32, "depth": 2, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 4, "num_class_tokens": 2,
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
    return Discrete(11, (side, side)) if HEAD_SPECS[head].space is Discrete else Continuous(3, (side, side))


def scrambled(module: nn.Module) -> nn.Module:
    """Every parameter filled from a stream of its own, so that no zero of the initialisation hides a path."""
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        r = philox(0, f"fill {name}", SHARED, 0).standard_normal(shape, dtype=np.float32)
        if parameter.ndim >= 2:
            values = 1.5 * r / math.sqrt(shape[-1])
        else:
            values = 0.1 * r + ("norm" in name and name.endswith("weight"))
        parameter.data.copy_(torch.from_numpy(np.asarray(values)))
    return module.eval()


def backbone_of(kind: str, space: TokenSpace, **changes) -> nn.Module:
    with seeded(0, "test-init"):
        return scrambled(BACKBONES[kind](shrunk(BACKBONE_SPECS[kind], **changes), space, NUM_CLASSES))


def head_of(kind: str, side: int = 3, **changes) -> nn.Module:
    with seeded(0, "test-init"):
        return scrambled(HEADS[kind](shrunk(HEAD_SPECS[kind], **changes), space_of(kind, side), SMALL["dim"]))


def generator_of(backbone: str, head: str, order: str = "random", side: int = 3) -> ARGenerator:
    space = space_of(head, side)
    return ARGenerator(order, backbone_of(backbone, space), head_of(head, side), space, label_dropout=0.1).eval()


def sampling_of(head: str, **changes) -> SamplingSpec:
    steps = 5 if HEAD_SPECS[head].denoises else None
    return replace(SamplingSpec(num_ar_steps=None, num_diffusion_steps=steps), **changes)


def tokens_in(space: TokenSpace, batch: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (B, L[, D])."""
    rng, length = philox(seed, "test-tokens", SHARED, 0), space.grid[0] * space.grid[1]
    if isinstance(space, Discrete):
        return torch.from_numpy(rng.integers(space.vocab_size, size=(batch, length)))
    return torch.from_numpy(rng.standard_normal((batch, length, space.dim), dtype=np.float32))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(philox(seed, "test-normal", SHARED, 0).standard_normal(shape, dtype=np.float32))


def assert_same_tokens(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Codes equal, vectors within rounding: 2e-3 of their std, since an untrained head amplifies it."""
    if not found.is_floating_point():
        assert torch.equal(found, expected)
    else:
        assert (found - expected).abs().max() <= 2e-3 * expected.std()
