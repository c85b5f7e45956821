"""Heads beside what is known of the distributions they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from mar_bench.config.spec import Continuous, EnergyHead, FlowHead, GaussianMixtureHead, SamplingSpec
from mar_bench.models.build import HEADS
from mar_bench.models.heads import gmm
from mar_bench.models.heads.energy import energy_score
from mar_bench.models.sampler import generate
from mar_bench.utils.noise import NoiseSource, seeded
from tests.tiny import SMALL, generator_of, head_of, normal, sampling_of, space_of, tokens_in

ONE_DIM = Continuous(1, (1, 1))

# --- mixture ---------------------------------------------------------------------------------------------


def the_same(mixture: gmm.Mixture) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(logits=mixture.log_weights), Independent(Normal(mixture.means, mixture.scales), 1)
    )


def test_mixture_likelihood_equals_torch_distributions():
    head, z, target = head_of("gmm"), normal(3, 9, SMALL["dim"]), tokens_in(space_of("gmm"), 3)
    torch.testing.assert_close(
        head.loss(z, target, {}), -the_same(head.mixture(z)).log_prob(target), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("x", [-1000.0, -3.0, 0.0, 2.0, 1000.0])
def test_scales_are_squareplus_of_at_least_the_floor(x):
    head, z = mixture_head(1), torch.tensor([[[0.0, 0.0, x]]])  # logit, mean, raw scale
    expected = max((x + math.sqrt(x * x + 4)) / 2, gmm.SMALLEST_SCALE)
    assert head.mixture(z).scales.item() == pytest.approx(expected, rel=1e-3 if abs(x) < 100 else 0.1)


def test_a_scale_can_be_learned_from_where_it_starts():
    x = torch.zeros(1, requires_grad=True)
    gmm.squareplus(x).backward()
    assert x.grad.item() == 0.5


def mixture_head(components: int) -> gmm.GaussianMixture:
    """Of 1-D tokens; z itself is (logits, means, raw scales)."""
    head = gmm.GaussianMixture(GaussianMixtureHead(num_components=components), ONE_DIM, 3 * components)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(3 * components))
        head.output.bias.zero_()
    return head


def raw(scale: float) -> float:
    """What squareplus makes ``scale`` of."""
    return scale - 1 / scale


N = 20_000
CONDITIONAL = torch.tensor([0.3, 0.0, -0.5, 1.5, raw(0.6), raw(0.4)])
UNCONDITIONAL = torch.tensor([0.0, 0.0, 0.0, -1.0, raw(1.5), raw(1.0)])


@torch.inference_mode()
def distance(scale: float, temperature: float = 1.0, target_scale: float | None = None) -> float:
    """Kolmogorov's, of N guided tokens to the density p_u (p_c / p_u)^w, integrated on a grid."""
    head, sampling = mixture_head(2), SamplingSpec(guidance_scale=scale, temperature=temperature)
    z, z_uncond = (v.expand(1, N, -1) for v in (CONDITIONAL, UNCONDITIONAL))
    noise = head.draw_sampling(NoiseSource(0, [0]), 0, N, sampling)
    found = head.sample(z, noise, sampling, scale, z_uncond).flatten().double().sort().values
    grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    c, u = (
        the_same(head.mixture(v, temperature)).log_prob(grid[:, None].float()) for v in (CONDITIONAL, UNCONDITIONAL)
    )
    w = scale if target_scale is None else target_scale
    density = (u + w * (c - u)).double().exp()
    cdf = (density / density.sum()).cumsum(0)
    empirical = torch.searchsorted(found, grid, right=True) / N
    return (empirical - cdf).abs().max().item()


@pytest.mark.parametrize(
    ("scale", "temperature"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.7), (1.5, 1.0), (3.0, 1.0), (3.0, 0.7)]
)
def test_guided_tokens_come_near_the_guided_density(scale, temperature):
    assert distance(scale, temperature) < 0.02  # 1.6 / sqrt(N) = 0.0113 would be chance at 1 %
    assert scale == 1 or distance(scale, temperature, target_scale=1.0) > 0.06


def test_more_candidates_come_nearer(monkeypatch):
    distances = []
    for count in (1, 4, 64):
        monkeypatch.setattr(gmm, "CANDIDATES", count)
        distances.append(distance(3.0))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


# --- flow ------------------------------------------------------------------------------------------------


class ExactVelocity(nn.Module):
    """In place of the MLP: E[x - eps | x_t] where x ~ N(mean, deviation^2) and x_t = (1 - t) eps + t x."""

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self.mean, self.variance = mean, deviation**2

    def condition(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def time(self, t: torch.Tensor) -> torch.Tensor:
        return t[:, None] / 1000

    def time_at(self, t: float) -> torch.Tensor:
        return torch.tensor([[t / 1000]])

    def conditioned(self, x, t, c) -> torch.Tensor:
        slope = (t * self.variance - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variance)
        return self.mean + slope * (x - t * self.mean)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 0.3), (-1.0, 2.0)])
def test_flow_along_the_exact_velocity_draws_the_target(mean, deviation):
    head = HEADS["flow"](FlowHead(depth=1, width=4), ONE_DIM, 4)
    head.net = ExactVelocity(mean, deviation)
    z, noise = torch.zeros(1, N, 4), normal(1, N, 1)
    errors = []
    for steps in (20, 500):
        x = head.sample(z, noise, SamplingSpec(num_diffusion_steps=steps))
        errors.append(abs(x.std().item() / noise.std().item() - deviation))
        if steps == 500:
            assert x.mean().item() == pytest.approx(mean, abs=0.02 * deviation + 0.005)
    assert errors[1] < 0.01 * deviation + 0.002
    assert errors[1] <= errors[0]


def test_the_loss_of_an_exact_velocity_is_what_cannot_be_known():
    """Var(x - eps | x_t) of x, eps ~ N(0, 1), t uniform: 1 / ((1 - t)^2 + t^2), which has the mean pi / 2."""
    head = HEADS["flow"](FlowHead(depth=1, width=4, draws_per_token=4), ONE_DIM, 4)
    head.net = ExactVelocity(0.0, 1.0)
    drawn = head.draw_training(NoiseSource(0, [0]), 0, N)
    loss = head.loss(torch.zeros(1, N, 4), normal(1, N, 1, seed=1), drawn)
    assert loss.mean().item() == pytest.approx(math.pi / 2, rel=0.02)


# --- energy ----------------------------------------------------------------------------------------------


def expected_score(mean: float, deviation: float, dim: int = 2) -> float:
    """Of N(mean, deviation^2) where N(0, 1) is the truth, over the same draws whatever is asked."""
    samples = mean + deviation * normal(100_000, 2, dim)
    return energy_score(samples, normal(100_000, dim, seed=1)).mean().item()


def test_the_energy_score_is_least_at_the_truth():
    truth = expected_score(0.0, 1.0)
    for other in ((0.3, 1.0), (-0.3, 1.0), (0.0, 0.7), (0.0, 1.4)):
        assert expected_score(*other) > truth + 0.005


def test_the_energy_score_of_the_truth_is_known_in_one_dimension():
    """E|X - Y| = 2 / sqrt(pi), less half of it."""
    assert expected_score(0.0, 1.0, dim=1) == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)


def test_the_energy_score_does_not_depend_on_how_many_samples_estimate_it():
    samples, target = normal(50_000, 5, 2), normal(50_000, 2, seed=1)
    few, many = energy_score(samples[:, :2], target), energy_score(samples, target)
    assert few.mean().item() == pytest.approx(many.mean().item(), abs=0.01)
    assert many.std() < few.std()


def test_equal_samples_have_a_finite_gradient():
    samples = torch.ones(4, 3, 2, requires_grad=True)
    energy_score(samples, torch.ones(4, 2)).sum().backward()
    assert torch.equal(samples.grad, torch.zeros_like(samples))


# --- what they learn -------------------------------------------------------------------------------------


LEARNERS = [
    GaussianMixtureHead(num_components=4),
    FlowHead(depth=2, width=32, draws_per_token=2),
    EnergyHead(depth=2, width=32, noise_dim=8, samples_per_token=4),
]


@pytest.mark.parametrize("spec", LEARNERS, ids=lambda spec: spec.kind)
def test_a_head_learns_two_modes_and_which_is_the_likelier(spec):
    """Tokens at -1 or 1, deviation 0.2 a dimension; z says how often it is 1."""
    batch, n = 4, 64
    with seeded(0, "test-init"):
        head = HEADS[spec.kind](spec, Continuous(2, (8, 8)), 4)
    adam = torch.optim.Adam(head.parameters(), lr=1e-2)
    share = torch.tensor([0.2, 0.2, 0.7, 0.7])[:, None]
    z = torch.where(share > 0.5, 1.0, -1.0)[..., None].expand(batch, n, 4)
    for step in range(300):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)  # else the shares still sway by 0.1 at the end
        noise = NoiseSource(1, range(batch))
        sign = torch.where(noise.uniform("mode", step, (n,)) < share, 1.0, -1.0)[..., None]
        target = sign + 0.2 * noise.normal("target", step, (n, 2))
        adam.zero_grad()
        head.loss(z, target, head.draw_training(noise, step, n)).mean().backward()
        adam.step()
    sampling = sampling_of(spec.kind, num_diffusion_steps=20 if spec.denoises else None)
    with torch.inference_mode():
        noise = head.draw_sampling(NoiseSource(2, range(batch)), 0, 500, sampling)
        tokens = head.sample(z[:, :1].expand(batch, 500, 4), noise, sampling)
    assert (tokens.abs() - 1).abs().mean() < 0.3, "both coordinates lie about a mode"
    positive = (tokens > 0).all(-1).float()
    assert ((tokens > 0).all(-1) | (tokens < 0).all(-1)).float().mean() > 0.93, "of the two modes, not between them"
    assert positive[:2].mean().item() == pytest.approx(0.2, abs=0.08)
    assert positive[2:].mean().item() == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize("spec", LEARNERS, ids=lambda spec: spec.kind)
def test_a_lower_temperature_narrows_what_a_trained_head_draws(spec):
    """Tokens are N(z, 0.5^2): their deviation is what the temperature says, about, and their mean does not move."""
    batch, n = 4, 64
    with seeded(0, "test-init"):
        head = HEADS[spec.kind](spec, Continuous(2, (8, 8)), 4)
    adam = torch.optim.Adam(head.parameters(), lr=1e-2)
    mean = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    for step in range(300):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        noise = NoiseSource(1, range(batch))
        target = mean + 0.5 * noise.normal("target", step, (n, 2))
        adam.zero_grad()
        head.loss(mean.expand(batch, n, 4), target, head.draw_training(noise, step, n)).mean().backward()
        adam.step()
    for temperature in (1.0, 0.5):
        sampling = sampling_of(spec.kind, temperature=temperature, num_diffusion_steps=20 if spec.denoises else None)
        with torch.inference_mode():
            noise = head.draw_sampling(NoiseSource(2, range(batch)), 0, 500, sampling)
            tokens = head.sample(mean.expand(batch, 500, 4), noise, sampling)
        assert tokens.std(1).mean().item() == pytest.approx(0.5 * temperature, rel=0.25)
        torch.testing.assert_close(tokens.mean(1, keepdim=True), mean.expand(-1, -1, 2), atol=0.15, rtol=0)


# --- squared error ---------------------------------------------------------------------------------------


def test_squared_error_draws_one_image_a_class():
    model, labels = generator_of("causal", "mse", order="raster"), torch.tensor([2, 2, 3])

    def draw(seed: int) -> torch.Tensor:
        return generate(model, labels, sampling_of("mse"), NoiseSource(seed, range(3)))

    one, other = draw(0), draw(1)
    assert torch.equal(one, other)
    torch.testing.assert_close(one[0], one[1])
    assert (one[0] - one[2]).abs().max() > 0.1
