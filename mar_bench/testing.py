"""What every head promises, as tests for pytest that a plugin's author can run on a head too.

    from mar_bench.testing import HeadContract

    class TestMine(HeadContract):
        @pytest.fixture
        def spec(self):
            return MyHead(width=16)

Random numbers come from the suite's own generators, so a failure repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mar_bench.config.plugins import class_of
from mar_bench.config.spec import Continuous, Discrete, SamplingSpec, TokenSpace
from mar_bench.models.build import HEADS
from mar_bench.models.heads.base import Head
from mar_bench.utils.noise import SHARED, NoiseSource, philox, seeded

B, L, WIDTH = 3, 9, 32  # images, tokens of an image, width of the condition z


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


def space_for(spec: Any, side: int = 3) -> TokenSpace:
    """A small token space of the kind that a head is for."""
    return Discrete(11, (side, side)) if spec.space is Discrete else Continuous(3, (side, side))


def head_from(spec: Any, side: int = 3) -> Head:
    with seeded(0, "test-init"):
        return scrambled(class_of("heads", spec, HEADS)(spec, space_for(spec, side), WIDTH))  # type: ignore[return-value]


def tokens_in(space: TokenSpace, batch: int, seed: int = 0) -> Tensor:
    """Random tokens (B, L[, D])."""
    rng, length = philox(seed, "test-tokens", SHARED, 0), space.grid[0] * space.grid[1]
    if isinstance(space, Discrete):
        return torch.from_numpy(rng.integers(space.vocab_size, size=(batch, length)))
    return torch.from_numpy(rng.standard_normal((batch, length, space.dim), dtype=np.float32))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(philox(seed, "test-normal", SHARED, 0).standard_normal(shape, dtype=np.float32))


def sampling_for(spec: Any, **changes: Any) -> SamplingSpec:
    steps = 5 if spec.denoises else None
    return replace(SamplingSpec(num_ar_steps=None, num_diffusion_steps=steps), **changes)


def assert_same_tokens(found: Tensor, expected: Tensor) -> None:
    """Codes equal, vectors within rounding: 2e-3 of their std, since an untrained head amplifies it."""
    if not found.is_floating_point():
        assert torch.equal(found, expected)
    else:
        assert (found - expected).abs().max() <= 2e-3 * expected.std()


def z(seed: int = 0) -> Tensor:
    return normal(B, L, WIDTH, seed=seed)


def training_loss(head: Head, condition: Tensor, target: Tensor) -> Tensor:
    return head.loss(condition, target, head.draw_training(NoiseSource(0, range(B)), 0, L))


@torch.inference_mode()
def draw(
    head: Head, spec: Any, seed: int = 0, scale: float = 1.0, z_uncond: Tensor | None = None, **sampling: Any
) -> Tensor:
    settings = sampling_for(spec, guidance_scale=scale, **sampling)
    noise = head.draw_sampling(NoiseSource(seed, range(B)), 0, L, settings)
    return head.sample(z(), noise, settings, scale, z_uncond)


class HeadContract:
    """Subclass it with a fixture ``spec``: the spec of a small head."""

    @pytest.fixture
    def head(self, spec):
        return head_from(spec)

    @pytest.fixture
    def target(self, spec):
        return tokens_in(space_for(spec), B)

    def test_the_loss_is_one_finite_number_a_token(self, head, target):
        loss = training_loss(head, z(), target)
        assert loss.shape == (B, L)
        assert loss.isfinite().all()

    def test_the_gradient_of_a_loss_reaches_its_own_z_and_no_other(self, head, target):
        condition = z().requires_grad_()
        training_loss(head, condition, target)[1, 4].backward()
        assert condition.grad is not None
        reached = condition.grad.abs().sum(-1) > 0
        assert reached[1, 4]
        assert reached.sum() == 1

    def test_the_gradient_reaches_every_parameter(self, head, target):
        training_loss(head, z(), target).sum().backward()
        unreached = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
        assert unreached == []

    def test_the_loss_depends_on_the_target(self, head, spec):
        one, other = (training_loss(head, z(), tokens_in(space_for(spec), B, seed)) for seed in (0, 1))
        assert not torch.equal(one, other)

    def test_the_loss_draws_nothing_itself(self, head, target):
        state = torch.random.get_rng_state()
        drawn = head.draw_training(NoiseSource(0, range(B)), 0, L)
        assert torch.equal(head.loss(z(), target, drawn), head.loss(z(), target, drawn))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_samples_lie_in_the_space(self, head, spec):
        tokens, space = draw(head, spec), space_for(spec)
        if isinstance(space, Discrete):
            assert tokens.shape == (B, L)
            assert tokens.dtype == torch.int64
            assert tokens.min() >= 0
            assert tokens.max() < space.vocab_size
        else:
            assert tokens.shape == (B, L, space.dim)
            assert tokens.dtype == torch.float32
            assert tokens.isfinite().all()

    def test_a_seed_repeats_its_samples_and_another_gives_others_if_the_head_draws(self, head, spec):
        assert torch.equal(draw(head, spec, seed=0), draw(head, spec, seed=0))
        assert torch.equal(draw(head, spec, seed=0), draw(head, spec, seed=1)) != spec.draws

    @pytest.mark.parametrize("scale", [1.0, 1 + 1e-12])
    def test_guidance_scale_1_equals_no_guidance(self, head, spec, scale):
        """Also in a step whose scale is 1 where others are guided: then the noise holds what guidance needs."""
        assert_same_tokens(draw(head, spec, scale=scale, z_uncond=z(1)), draw(head, spec))
        settings = sampling_for(spec, guidance_scale=3.0)
        noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, settings)
        assert_same_tokens(head.sample(z(), noise, settings, scale, z(1)), draw(head, spec))

    def test_guidance_scale_0_is_the_unconditional_prediction(self, head, spec):
        """For a head that denoises the mean alone: the variance stays the conditional one (official code)."""
        scale_0 = draw(head, spec, scale=0.0, z_uncond=z(1), temperature=1e-6)
        settings = sampling_for(spec, temperature=1e-6)
        noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, settings)
        assert_same_tokens(scale_0, head.sample(z(1), noise, settings))

    def test_guidance_changes_samples(self, head, spec):
        guided = draw(head, spec, scale=4.0, z_uncond=z(1))
        assert not torch.equal(guided, draw(head, spec))
        assert not torch.equal(guided, draw(head, spec, scale=2.0, z_uncond=z(1)))

    def test_temperature_changes_samples(self, head, spec):
        if spec.draws:
            assert not torch.equal(draw(head, spec, temperature=1.0), draw(head, spec, temperature=0.3))

    def test_clamp_x0_bounds_the_samples(self, head, spec):
        if spec.diffuses:
            free, bounded = draw(head, spec), draw(head, spec, clamp_x0=0.5)
            assert free.abs().max() > 0.51
            assert bounded.abs().max() <= 0.5 + 1e-5

    def test_the_number_of_diffusion_steps_changes_samples(self, head, spec):
        if spec.denoises:
            assert not torch.equal(draw(head, spec, num_diffusion_steps=5), draw(head, spec, num_diffusion_steps=9))
