"""The diffusion mathematics beside slow versions, torch.distributions and, where installed, diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mar_bench.models.diffusion import (
    DiffusionTables,
    cosine_betas,
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    learned_log_variance,
    noised,
    predict_x0,
    respaced_timesteps,
    sample,
    sample_ddim,
    sample_dpm_solver,
    training_loss,
)
from tests.tiny import normal

N, D = 40, 3
TABLES = DiffusionTables.make(40)
EVERY = torch.arange(40)


def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Some smooth function of a noisy token and its timestep: noise and raw variance."""
    eps = torch.tanh(x.roll(1, -1) + 0.1 * timestep[:, None])
    return torch.cat([eps, torch.cos(x - 0.2 * timestep[:, None])], dim=-1)


# --- tables ----------------------------------------------------------------------------------------------


def test_respacing_is_the_official_one():
    """guided-diffusion's space_timesteps for one section: the position is added up step by step."""
    for num_steps in range(1, 1001):
        position, expected = 0.0, []
        for _ in range(num_steps):
            expected.append(round(position))
            position += 999 / max(1, num_steps - 1)
        assert respaced_timesteps(1000, num_steps) == expected
    for num_steps in (1, 2, 7):
        tables = DiffusionTables.make(40, num_steps)
        assert torch.equal(tables.alphas_cumprod, TABLES.alphas_cumprod[[*tables.timesteps]])
        torch.testing.assert_close((1 - tables.betas).cumprod(0), tables.alphas_cumprod)


def test_betas_follow_the_cosine_of_the_paper():
    betas = cosine_betas(1000)
    assert betas.max() == 0.999
    signal = np.cumprod(1 - betas)

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 10, 500, 990):
        assert signal[t] == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)


@pytest.mark.parametrize("num_steps", [None, 1, 2, 7, 40])
def test_the_posterior_is_bayes_rule(num_steps):
    """q(x_{t-1} | x_t, x_0) is a product of two Gaussians in x_{t-1}: its mean and variance, step by step."""
    tables = DiffusionTables.make(40, num_steps)
    for t in range(1, len(tables.timesteps)):
        before, beta = tables.alphas_cumprod[t - 1].item(), tables.betas[t].item()
        prior_precision, likelihood_precision = 1 / (1 - before), (1 - beta) / beta
        variance = 1 / (prior_precision + likelihood_precision)
        assert tables.posterior_variance[t].item() == pytest.approx(variance, rel=1e-9)
        assert tables.posterior_log_variance_clipped[t].item() == pytest.approx(math.log(variance), abs=1e-9)
        means = variance * prior_precision * math.sqrt(before), variance * likelihood_precision / math.sqrt(1 - beta)
        found = tables.posterior_mean_x0[t].item(), tables.posterior_mean_xt[t].item()
        assert found == pytest.approx(means, rel=1e-9)


# --- steps forwards and backwards ------------------------------------------------------------------------


def test_noise_is_added_and_taken_away():
    x0, eps = normal(N, D).double(), normal(N, D, seed=1).double()
    xt = noised(TABLES, x0, EVERY, eps)
    torch.testing.assert_close(xt[5], TABLES.alphas_cumprod[5].sqrt() * x0[5] + TABLES.sigma[5] * eps[5])
    torch.testing.assert_close(predict_x0(TABLES, xt, EVERY, eps), x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(TABLES.signal**2 + TABLES.sigma**2, torch.ones(N, dtype=torch.float64))


def test_the_learned_variance_lies_between_its_bounds():
    low, high = TABLES.posterior_log_variance_clipped[:, None], TABLES.betas.log()[:, None]
    for raw, expected in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2)):
        torch.testing.assert_close(learned_log_variance(TABLES, torch.full((N, 1), raw), EVERY), expected)


def test_kl_is_that_of_torch():
    mean1, log1, mean2, log2 = (normal(50, D, seed=s).double() for s in range(4))
    expected = kl_divergence(Normal(mean1, (0.5 * log1).exp()), Normal(mean2, (0.5 * log2).exp()))
    torch.testing.assert_close(gaussian_kl(mean1, log1, mean2, log2), expected)


# --- the discretised likelihood --------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.1), (0.4, 0.01), (-0.9, 0.5), (0.99, 2.0)])
def test_the_likelihood_of_all_bins_sums_to_1(mean, scale):
    bins = -1 + 2 * torch.arange(256, dtype=torch.float64) / 255
    ones = torch.ones_like(bins)
    likelihood = discretised_gaussian_log_likelihood(bins, mean * ones, math.log(scale) * ones).exp()
    assert likelihood.sum().item() == pytest.approx(1, abs=1e-9)
    far = discretised_gaussian_log_likelihood(torch.zeros(1), torch.full((1,), 50.0), torch.full((1,), -5.0))
    assert far.item() == pytest.approx(math.log(1e-12)), "never minus infinity"


# --- the training loss -----------------------------------------------------------------------------------


def loss_of_a_token(t: int, x0: torch.Tensor, noise: torch.Tensor) -> float:
    """Equations 14 to 16 of iDDPM for one token (D,), with torch's own Gaussians."""
    signal = TABLES.alphas_cumprod[t]
    before = TABLES.alphas_cumprod[t - 1] if t else torch.ones((), dtype=torch.float64)
    beta = 1 - signal / before
    xt = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
    eps, raw = network(xt[None], torch.tensor([t]))[0].chunk(2)

    def mean_given(x: torch.Tensor) -> torch.Tensor:
        return (before.sqrt() * beta * x + (1 - beta).sqrt() * (1 - before) * xt) / (1 - signal)

    exact = (beta * (1 - before) / (1 - signal)).log()
    log_small = exact if t else TABLES.posterior_log_variance_clipped[1]
    share = (raw + 1) / 2
    deviation = (0.5 * (share * beta.log() + (1 - share) * log_small)).exp()
    model = Normal(mean_given((xt - (1 - signal).sqrt() * eps) / signal.sqrt()), deviation)
    if t:
        nats = kl_divergence(Normal(mean_given(x0), (0.5 * log_small).exp().expand(D)), model).mean()
    else:
        nats = -discretised_gaussian_log_likelihood(x0, model.mean, deviation.log()).mean()
    return ((noise - eps) ** 2).mean().item() + nats.item() / math.log(2)


def test_the_loss_is_mean_squared_error_plus_the_variational_term_in_bits():
    x0, noise = 0.3 * normal(N, D).double(), normal(N, D, seed=1).double()
    expected = [loss_of_a_token(t, x0[t], noise[t]) for t in range(N)]
    found = training_loss(TABLES, network, x0, EVERY, noise)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_variational_term_does_not_reach_the_noise_and_the_error_not_the_variance():
    x0, noise = normal(N, D), normal(N, D, seed=1)
    eps, raw = normal(N, D, seed=2).requires_grad_(), normal(N, D, seed=3).requires_grad_()
    output = torch.cat([eps, raw], dim=-1)
    training_loss(TABLES.on(x0.device), lambda x, t: output, x0, EVERY, noise).sum().backward()
    torch.testing.assert_close(eps.grad, 2 * (eps.detach() - noise) / D)
    assert (raw.grad.abs() > 0).all()


# --- sampling --------------------------------------------------------------------------------------------


def at_one_step(x: torch.Tensor, timestep: float) -> torch.Tensor:
    return network(x, torch.full((len(x),), timestep))


@pytest.mark.parametrize("num_steps", [1, 3, 40])
def test_a_perfect_denoiser_of_a_point_gives_the_point(num_steps):
    tables, point = DiffusionTables.make(40, num_steps), normal(1, D).double()

    def denoise(x: torch.Tensor, timestep: float) -> torch.Tensor:
        eps = (x - TABLES.signal[timestep] * point) / TABLES.sigma[timestep]
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    drawn = sample(tables, denoise, normal(num_steps + 1, 7, D).double())
    torch.testing.assert_close(drawn, point.expand(7, D), rtol=1e-6, atol=1e-6)


def test_a_perfect_denoiser_of_a_gaussian_gives_the_gaussian():
    """x0 ~ N(2, 0.5^2): the best prediction of the noise is linear in x_t."""
    tables = DiffusionTables.make(1000, 200)

    def denoise(x: torch.Tensor, timestep: float) -> torch.Tensor:
        kept = full.alphas_cumprod[timestep]
        eps = (1 - kept).sqrt() * (x - 2 * kept.sqrt()) / (0.25 * kept + 1 - kept)
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    full = DiffusionTables.make(1000)
    drawn = sample(tables, denoise, normal(201, 4000, 1).double())
    assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((2, 0.5), abs=0.03)


def test_the_network_sees_the_training_timesteps_from_the_noisiest():
    tables, seen = DiffusionTables.make(40, 4), []

    def denoise(x: torch.Tensor, timestep: float) -> torch.Tensor:
        seen.append(timestep)
        return at_one_step(x, timestep)

    sample(tables, denoise, normal(5, 2, D).double())
    assert seen == [39, 26, 13, 0]


def test_temperature_multiplies_the_added_noise_and_the_clamp_bounds_the_predicted_x0():
    noise = normal(41, 6, D).double()
    assert sample(TABLES, at_one_step, noise).abs().max() > 0.2
    assert sample(TABLES, at_one_step, noise, clamp_x0=0.2).abs().max() <= 0.2 + 1e-9
    torch.testing.assert_close(sample(TABLES, at_one_step, noise, clamp_x0=1e9), sample(TABLES, at_one_step, noise))
    scaled = torch.cat([noise[:1], 0.7 * noise[1:]])
    expected = sample(TABLES, at_one_step, scaled)
    torch.testing.assert_close(sample(TABLES, at_one_step, noise, temperature=0.7), expected)
    assert not torch.allclose(sample(TABLES, at_one_step, noise), expected)


def test_the_last_step_adds_no_noise():
    noise = normal(41, 6, D).double()
    other = torch.cat([noise[:-1], noise[-1:] + 1])
    assert torch.equal(sample(TABLES, at_one_step, noise), sample(TABLES, at_one_step, other))
    other = torch.cat([noise[:-2], noise[-2:-1] + 1, noise[-1:]])
    assert not torch.equal(sample(TABLES, at_one_step, noise), sample(TABLES, at_one_step, other))


def test_sampling_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="no oracle: diffusers is not installed")
    given = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "clip_sample": False}
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=40, prediction_type="epsilon", **given)
    scheduler.set_timesteps(40)
    noise = [torch.randn(6, D, generator=torch.Generator().manual_seed(0))]
    generator = torch.Generator().manual_seed(1)
    noise += [torch.randn(6, D, generator=generator) for _ in range(40)]
    generator, x = torch.Generator().manual_seed(1), noise[0]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(6)), t, x, generator=generator).prev_sample
    found = sample(TABLES.on(x.device), at_one_step, torch.stack(noise))
    assert (found - x).abs().max() < 1e-3 * x.std()


# --- DPM-Solver++ -----------------------------------------------------------------------------------------


def test_dpm_solver_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="no oracle: diffusers is not installed")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=40, beta_schedule="squaredcos_cap_v2", final_sigmas_type="zero", use_karras_sigmas=False
    )
    steps = 8
    scheduler.set_timesteps(timesteps=respaced_timesteps(40, steps)[::-1])
    x = start = normal(6, D)
    for t in scheduler.timesteps:
        x = scheduler.step(at_one_step(x, t).chunk(2, dim=-1)[0], t, x).prev_sample
    found = sample_dpm_solver(DiffusionTables.make(40, steps).on(x.device), at_one_step, start)
    assert (found - x).abs().max() < 1e-4 * x.std()


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    """Where the best prediction of the noise is known: x0 ~ N(2, 0.5^2)."""
    full, start = DiffusionTables.make(1000), normal(500, 1).double()

    def denoise(x: torch.Tensor, timestep: int) -> torch.Tensor:
        kept = full.alphas_cumprod[timestep]
        eps = (1 - kept).sqrt() * (x - 2 * kept.sqrt()) / (0.25 * kept + 1 - kept)
        return torch.cat([eps, torch.full_like(eps, math.nan)], dim=-1)  # the variance is never used

    exact = sample_ddim(full, denoise, start)

    def error(sampler, steps: int) -> float:
        return (sampler(DiffusionTables.make(1000, steps), denoise, start) - exact).abs().mean().item()

    assert error(sample_dpm_solver, 40) / error(sample_dpm_solver, 160) > 8
    assert 3 < error(sample_ddim, 40) / error(sample_ddim, 160) < 6


@pytest.mark.parametrize("sampler", [sample_ddim, sample_dpm_solver])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_deterministic_samplers_give_the_point_and_can_be_clamped(sampler, steps):
    tables, point = DiffusionTables.make(40, steps), normal(1, D).double()

    def denoise(x: torch.Tensor, timestep: int) -> torch.Tensor:
        eps = (x - TABLES.signal[timestep] * point) / TABLES.sigma[timestep]
        return torch.cat([eps, torch.zeros_like(eps)], dim=-1)

    found = sampler(tables, denoise, normal(7, D, seed=1).double())
    torch.testing.assert_close(found, point.expand(7, D), rtol=1e-6, atol=1e-6)
    assert sampler(tables, denoise, normal(7, D).double(), 0.1).abs().max() <= 0.1 + 1e-9
