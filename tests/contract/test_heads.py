"""What every head promises, on the token space it is made for."""

from __future__ import annotations

import pytest
import torch

from mar_bench.config.spec import Discrete
from mar_bench.models.build import HEADS
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.utils.noise import NoiseSource
from tests.tiny import HEAD_SPECS, SMALL, assert_same_tokens, head_of, normal, sampling_of, shrunk, space_of, tokens_in

B, L = 3, 9
every_head = pytest.mark.parametrize("kind", HEADS)


def heads_that(name: str):
    """Heads whose spec says so by a class variable."""
    return pytest.mark.parametrize("kind", [k for k, spec in HEAD_SPECS.items() if getattr(spec, name)])


def z(seed: int = 0) -> torch.Tensor:
    return normal(B, L, SMALL["dim"], seed=seed)


def training_loss(head, kind: str, condition: torch.Tensor, target=None) -> torch.Tensor:
    target = tokens_in(space_of(kind), B) if target is None else target
    return head.loss(condition, target, head.draw_training(NoiseSource(0, range(B)), 0, L))


@torch.inference_mode()
def draw(head, kind: str, seed: int = 0, scale: float = 1.0, z_uncond=None, **sampling) -> torch.Tensor:
    spec = sampling_of(kind, guidance_scale=scale, **sampling)
    noise = head.draw_sampling(NoiseSource(seed, range(B)), 0, L, spec)
    return head.sample(z(), noise, spec, scale, z_uncond)


def test_every_head_has_a_spec_of_its_kind():
    assert set(HEADS) == set(HEAD_SPECS)


@every_head
def test_the_loss_is_one_finite_number_a_token(kind):
    loss = training_loss(head_of(kind), kind, z())
    assert loss.shape == (B, L)
    assert loss.isfinite().all()


@every_head
def test_the_gradient_of_a_loss_reaches_its_own_z_and_no_other(kind):
    condition = z().requires_grad_()
    training_loss(head_of(kind), kind, condition)[1, 4].backward()
    reached = condition.grad.abs().sum(-1) > 0
    assert reached[1, 4]
    assert reached.sum() == 1


@every_head
def test_the_gradient_reaches_every_parameter(kind):
    head = head_of(kind)
    training_loss(head, kind, z()).sum().backward()
    unreached = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@every_head
def test_the_loss_depends_on_the_target(kind):
    space = space_of(kind)
    one, other = (training_loss(head_of(kind), kind, z(), tokens_in(space, B, seed)) for seed in (0, 1))
    assert not torch.equal(one, other)


@every_head
def test_samples_lie_in_the_space(kind):
    tokens, space = draw(head_of(kind), kind), space_of(kind)
    if isinstance(space, Discrete):
        assert tokens.shape == (B, L)
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0
        assert tokens.max() < space.vocab_size
    else:
        assert tokens.shape == (B, L, space.dim)
        assert tokens.dtype == torch.float32
        assert tokens.isfinite().all()


@every_head
def test_a_seed_repeats_its_samples_and_another_gives_others_if_the_head_draws(kind):
    head = head_of(kind)
    assert torch.equal(draw(head, kind, seed=0), draw(head, kind, seed=0))
    assert torch.equal(draw(head, kind, seed=0), draw(head, kind, seed=1)) != HEAD_SPECS[kind].draws


@every_head
@pytest.mark.parametrize("scale", [1.0, 1 + 1e-12])
def test_guidance_scale_1_equals_no_guidance(kind, scale):
    """Also in a step whose scale is 1 where others are guided: then the noise holds what guidance needs."""
    head = head_of(kind)
    assert_same_tokens(draw(head, kind, scale=scale, z_uncond=z(1)), draw(head, kind))
    spec = sampling_of(kind, guidance_scale=3.0)
    noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, spec)
    assert_same_tokens(head.sample(z(), noise, spec, scale, z(1)), draw(head, kind))


@every_head
def test_guidance_scale_0_is_the_unconditional_prediction(kind):
    """For a head that denoises the mean alone: the variance stays the conditional one (official code)."""
    head, scale_0 = head_of(kind), draw(head_of(kind), kind, scale=0.0, z_uncond=z(1), temperature=1e-6)
    spec = sampling_of(kind, temperature=1e-6)
    noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, spec)
    assert_same_tokens(scale_0, head.sample(z(1), noise, spec))


@every_head
def test_guidance_changes_samples(kind):
    head = head_of(kind)
    guided = draw(head, kind, scale=4.0, z_uncond=z(1))
    assert not torch.equal(guided, draw(head, kind))
    assert not torch.equal(guided, draw(head, kind, scale=2.0, z_uncond=z(1)))


@heads_that("draws")
def test_temperature_changes_samples(kind):
    head = head_of(kind)
    assert not torch.equal(draw(head, kind, temperature=1.0), draw(head, kind, temperature=0.3))


@heads_that("diffuses")
def test_clamp_x0_bounds_the_samples(kind):
    head = head_of(kind)
    free, bounded = draw(head, kind), draw(head, kind, clamp_x0=0.5)
    assert free.abs().max() > 0.51
    assert bounded.abs().max() <= 0.5 + 1e-5


@heads_that("denoises")
def test_the_number_of_diffusion_steps_changes_samples(kind):
    head = head_of(kind)
    assert not torch.equal(draw(head, kind, num_diffusion_steps=5), draw(head, kind, num_diffusion_steps=9))


# --- cross-entropy ---------------------------------------------------------------------------------------


def code_frequencies(scale: float, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How often one token takes each code over evenly spaced uniforms, and what softmax says."""
    head, n = head_of("cross_entropy"), 20_000
    cond, uncond = normal(1, 1, SMALL["dim"]), normal(1, 1, SMALL["dim"], seed=1)
    uniforms = ((torch.arange(n) + 0.5) / n)[None]
    spec = sampling_of("cross_entropy", temperature=temperature)
    codes = head.sample(cond.expand(1, n, -1), uniforms, spec, scale, uncond.expand(1, n, -1))
    c, u = head.classifier(cond)[0, 0].double(), head.classifier(uncond)[0, 0].double()
    expected = ((u + scale * (c - u)) / temperature).softmax(-1)
    return torch.bincount(codes.flatten(), minlength=len(expected)) / n, expected


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1.0), (3.0, 1.0), (1.0, 0.5), (2.0, 1.7)])
def test_cross_entropy_draws_codes_as_often_as_softmax_says(scale, temperature):
    found, expected = code_frequencies(scale, temperature)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=0)


def test_cross_entropy_takes_the_likeliest_code_at_low_temperature():
    head = head_of("cross_entropy")
    assert torch.equal(draw(head, "cross_entropy", temperature=1e-4), head.classifier(z()).argmax(-1))


def test_cross_entropy_loss_is_the_negative_log_probability_of_the_target():
    head, target = head_of("cross_entropy"), tokens_in(space_of("cross_entropy"), B)
    expected = -head.classifier(z()).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    torch.testing.assert_close(training_loss(head, "cross_entropy", z()), expected)


# --- diffusion -------------------------------------------------------------------------------------------


def test_diffusion_loss_is_the_mean_over_the_draws_of_a_token():
    head, target = head_of("diffusion"), tokens_in(space_of("diffusion"), B)
    drawn = head.draw_training(NoiseSource(0, range(B)), 0, L)
    singly = [head.loss(z(), target, {k: v[:, :, m : m + 1] for k, v in drawn.items()}) for m in range(2)]
    torch.testing.assert_close(head.loss(z(), target, drawn), (singly[0] + singly[1]) / 2)


def test_diffusion_starts_as_a_constant_prediction_of_no_noise():
    net = AdaLNMLP(input_dim=3, output_dim=6, condition_dim=8, width=16, depth=2)
    assert not net(normal(4, 3), torch.arange(4), normal(4, 8)).any()


def test_diffusion_draws_every_timestep():
    drawn = head_of("diffusion").draw_training(NoiseSource(0, range(200)), 0, L)
    assert set(drawn["t"].unique().tolist()) == set(range(SMALL["num_train_timesteps"]))


def test_diffusion_at_temperature_0_follows_from_the_start_noise():
    head, spec = head_of("diffusion"), sampling_of("diffusion", temperature=1e-12)
    noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, spec)
    other_path, other_start = noise.clone(), noise.clone()
    other_path[:, 1:] = normal(*noise[:, 1:].shape, seed=5)
    other_start[:, :1] = normal(*noise[:, :1].shape, seed=6)
    assert torch.equal(head.sample(z(), noise, spec), head.sample(z(), other_path, spec))
    assert not torch.equal(head.sample(z(), noise, spec), head.sample(z(), other_start, spec))


# --- flow and energy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flow", "energy"])
def test_at_temperature_0_the_noise_means_nothing(kind):
    head = head_of(kind)
    assert torch.equal(draw(head, kind, seed=0, temperature=1e-30), draw(head, kind, seed=1, temperature=1e-30))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_energy_guides_the_tokens_of_the_same_noise(scale):
    head, spec = head_of("energy"), sampling_of("energy")
    noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, spec)
    c, u = head.sample(z(), noise, spec), head.sample(z(1), noise, spec)
    torch.testing.assert_close(head.sample(z(), noise, spec, scale, z(1)), u + scale * (c - u))


def test_flow_starts_at_rest_and_energy_with_different_samples():
    """Fresh weights: the flow is nothing, and the noise alone tells the energy head's samples apart."""
    flow, energy = (HEADS[kind](shrunk(HEAD_SPECS[kind]), space_of(kind), SMALL["dim"]) for kind in ("flow", "energy"))
    spec = sampling_of("flow")
    noise = flow.draw_sampling(NoiseSource(0, range(B)), 0, L, spec)
    assert torch.equal(flow.sample(z(), noise, spec), noise)
    one, other = (draw(energy, "energy", seed) for seed in (0, 1))
    assert (one - other).norm(dim=-1).min() > 1e-3


# --- mixture ---------------------------------------------------------------------------------------------


def test_guidance_keeps_the_first_candidate_the_more_often_the_nearer_it_is_to_1():
    head, kept = head_of("gmm"), []
    for scale in (1.001, 1.1, 3.0):
        same = (draw(head, "gmm", scale=scale, z_uncond=z(1)) == draw(head, "gmm")).all(-1)
        kept.append(same.float().mean().item())
    assert kept[0] >= kept[1] >= kept[2]
    assert kept[0] > 0.9 > kept[2]


def test_a_fresh_mixture_has_components_apart_and_looks_at_nothing_yet():
    head = HEADS["gmm"](shrunk(HEAD_SPECS["gmm"]), space_of("gmm"), SMALL["dim"])
    mixture = head.mixture(z())
    assert torch.equal(mixture.means, mixture.means[:1, :1].expand_as(mixture.means))
    assert (mixture.means[0, 0, 0] - mixture.means[0, 0, 1]).norm() > 0.1
    assert torch.equal(mixture.scales, torch.ones_like(mixture.scales))
