"""What every head promises, on the token space it is made for; then what each alone does."""

from __future__ import annotations

import pytest
import torch

from mar_bench import testing
from mar_bench.models.build import HEADS
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.testing import B, HeadContract, L, z
from mar_bench.utils.noise import NoiseSource
from tests.tiny import HEAD_SPECS, SMALL, head_of, normal, sampling_of, shrunk, space_of, tokens_in


class TestEveryHead(HeadContract):
    @pytest.fixture(params=HEADS)
    def spec(self, request):
        return shrunk(HEAD_SPECS[request.param])


def training_loss(head, kind: str, condition: torch.Tensor) -> torch.Tensor:
    return testing.training_loss(head, condition, tokens_in(space_of(kind), B))


def draw(head, kind: str, *args, **sampling) -> torch.Tensor:
    return testing.draw(head, shrunk(HEAD_SPECS[kind]), *args, **sampling)


def test_every_head_has_a_spec_of_its_kind():
    assert set(HEADS) == set(HEAD_SPECS)


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
