"""Confidence order: which positions are kept, of tokens drawn at all open ones."""

from __future__ import annotations

import pytest
import torch

from mar_bench.config.spec import SamplingSpec
from mar_bench.models.orders import confident_first, gumbel
from mar_bench.models.sampler import generate
from mar_bench.models.schedules import tokens_per_step
from mar_bench.utils.noise import NoiseSource
from tests.models.test_sampler import Recorder
from tests.tiny import NUM_CLASSES, generator_of, head_of, normal, sampling_of

L, B = 9, 4


class Sure(Recorder):
    """z and the token at a position are its number, and the model is the surer the higher that is."""

    def sample_with_log_probability(self, z, drawn, sampling, scale, z_uncond):
        assert drawn.shape == z.shape and z.shape[1] == L - self.known[-1].shape[1], "all open positions are asked for"
        return z.clone(), (z - L).float()

    @property
    def counts(self) -> list[int]:
        """How many tokens were known in each step."""
        return [known.shape[1] for known in self.known]


def confidence(temperature: float, steps: int, **changes) -> SamplingSpec:
    return SamplingSpec(order="confidence", choice_temperature=temperature, num_ar_steps=steps, **changes)


def drawn_along(temperature: float, steps: int, **changes) -> tuple[Sure, torch.Tensor]:
    model = Sure("random")
    labels = torch.arange(B) % NUM_CLASSES
    return model, generate(model, labels, confidence(temperature, steps, **changes), NoiseSource(0, range(B)))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 4.5, 1e6])
@pytest.mark.parametrize("steps", range(1, L + 1))
def test_each_position_is_uncovered_once_in_so_many_steps(steps, temperature, guidance):
    model, tokens = drawn_along(temperature, steps, guidance_scale=guidance)
    assert torch.equal(tokens, torch.arange(L).expand(B, L))
    counts = tokens_per_step(L, steps)
    assert model.counts == [sum(counts[:i]) for i in range(steps)]
    for order in model.orders:
        assert torch.equal(order.sort(1).values, torch.arange(L).expand(len(order), L))
    for k, before, after in zip(model.counts, model.orders, model.orders[1:]):
        assert torch.equal(before[:, :k], after[:, :k]), "what is known stays where it is"


def test_choice_temperature_goes_from_the_surest_to_a_random_order_of_each_image():
    model, _ = drawn_along(0.0, 4)
    for a, b in zip(model.counts, [*model.counts[1:], L]):
        assert all(set(row[a:b].tolist()) == set(range(L - b, L - a)) for row in model.orders[-1])
    orders = drawn_along(1e6, L)[0].orders[-1]
    assert len({tuple(row) for row in orders.tolist()}) == B
    one, other = (drawn_along(t, 1)[1] for t in (0.0, 1e6))
    assert torch.equal(one, other), "the last step adds no noise"


def test_an_image_follows_its_noise_whatever_the_batch():
    model = generator_of("masked", "cross_entropy")

    def draw(indices, temperature: float = 4.5) -> torch.Tensor:
        return generate(model, torch.tensor(indices), confidence(temperature, 4), NoiseSource(0, indices))

    together = draw([0, 1, 2, 3])
    assert torch.equal(torch.cat([draw([i]) for i in range(B)]), together)
    assert not torch.equal(draw([0, 1, 2, 3], 0.0), together)


def test_a_limit_leaves_the_open_positions_at_0():
    tokens = generate(Sure("random"), torch.arange(B), confidence(0.0, 4), NoiseSource(0, range(B)), limit=2)
    n = sum(tokens_per_step(L, 4)[:2])
    assert torch.equal(tokens, torch.tensor([*[0] * (L - n), *range(L - n, L)]).expand(B, L))


# --- its parts -------------------------------------------------------------------------------------------


def test_the_most_confident_places_come_first_and_the_rest_stays():
    places = confident_first(torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2], [5.0, 4.0, 3.0, 2.0, 1.0]]), 2)
    assert places.tolist() == [[1, 3, 0, 2, 4], [0, 1, 2, 3, 4]]
    assert confident_first(torch.zeros(1, 4), 2).tolist() == [[0, 1, 2, 3]]


def test_gumbel_noise_is_finite_and_gumbel():
    noise = gumbel(NoiseSource(0, range(50)), 0, 2000)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, rel=0.03)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_confidence_is_the_guided_log_probability_before_temperature(temperature):
    head, sampling = head_of("cross_entropy"), sampling_of("cross_entropy", temperature=temperature)
    z, z_uncond = normal(B, L, 32), normal(B, L, 32, seed=1)
    noise = head.draw_sampling(NoiseSource(0, range(B)), 0, L, sampling)
    codes, sure = head.sample_with_log_probability(z, noise, sampling, 3.0, z_uncond)
    assert torch.equal(codes, head.sample(z, noise, sampling, 3.0, z_uncond))
    c, u = head.classifier(z), head.classifier(z_uncond)
    expected = (u + 3.0 * (c - u)).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(sure, expected)
