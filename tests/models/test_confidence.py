"""Confidence order: which positions are kept, of tokens drawn at all open ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mar_bench.config.spec import Discrete, SamplingSpec
from mar_bench.models.orders import confident_first, draw_order, gumbel
from mar_bench.models.sampler import generate
from mar_bench.models.schedules import tokens_per_step
from mar_bench.utils.noise import NoiseSource
from tests.tiny import NUM_CLASSES, generator_of, head_of, normal, sampling_of

L, B = 9, 4


class Sure:
    """A model that asks nothing: z and the token at a position are its number, and it is the surer the higher that is.

    Keeps the orders it was asked along and how many tokens were known."""

    def __init__(self):
        self.order, self.length, self.space = "random", L, Discrete(L, (3, 3))
        self.backbone = self.head = self
        self.orders: list[torch.Tensor] = []
        self.known: list[int] = []

    def new_cache(self) -> None:
        return None

    def predict(self, known, labels, order, n, cache):
        k = known.shape[1]
        assert n == L - k, "all open positions are asked for"
        assert torch.equal(known, order[:, :k])
        self.orders.append(order)
        self.known.append(k)
        return order[:, k:]

    def draw_sampling(self, noise, step, n, sampling):
        return noise.uniform("sample", step, (n,))

    def sample_with_log_probability(self, z, drawn, sampling, scale, z_uncond):
        assert drawn.shape == z.shape
        return z.clone(), (z - L).float()


def confidence(temperature: float, steps: int, **changes) -> SamplingSpec:
    return SamplingSpec(order="confidence", choice_temperature=temperature, num_ar_steps=steps, **changes)


def drawn_along(temperature: float, steps: int, **changes) -> tuple[Sure, torch.Tensor]:
    model = Sure()
    labels = torch.arange(B) % NUM_CLASSES
    return model, generate(model, labels, confidence(temperature, steps, **changes), NoiseSource(0, range(B)))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 4.5, 1e6])
@pytest.mark.parametrize("steps", range(1, L + 1))
def test_each_position_is_uncovered_once_in_so_many_steps(steps, temperature, guidance):
    model, tokens = drawn_along(temperature, steps, guidance_scale=guidance)
    assert torch.equal(tokens, torch.arange(L).expand(B, L))
    counts = tokens_per_step(L, steps)
    assert model.known == [sum(counts[:i]) for i in range(steps)]
    for order in model.orders:
        assert torch.equal(order.sort(1).values, torch.arange(L).expand(len(order), L))
    for k, before, after in zip(model.known, model.orders, model.orders[1:]):
        assert torch.equal(before[:, :k], after[:, :k]), "what is known stays where it is"


def test_at_choice_temperature_0_the_surest_come_first():
    model, _ = drawn_along(0.0, 4)
    for a, b in zip(model.known, [*model.known[1:], L]):
        assert all(set(row[a:b].tolist()) == set(range(L - b, L - a)) for row in model.orders[-1])


def test_a_high_choice_temperature_forgets_confidence_and_differs_for_each_image():
    model, _ = drawn_along(1e6, L)
    orders = model.orders[-1]
    assert len({tuple(row) for row in orders.tolist()}) == B
    assert not torch.equal(orders, drawn_along(0.0, L)[0].orders[-1])


def test_the_last_choice_knows_no_chance():
    """Its share of the choice temperature is 0: with one step no noise enters at all."""
    one, other = (drawn_along(t, 1)[1] for t in (0.0, 1e6))
    assert torch.equal(one, other)


def test_images_differ_with_the_choice_temperature_and_repeat_with_the_seed():
    model, labels = generator_of("masked", "cross_entropy"), torch.arange(B)

    def draw(temperature: float, **changes) -> torch.Tensor:
        sampling = replace(sampling_of("cross_entropy"), **vars(confidence(temperature, 4)), **changes)
        return generate(model, labels, replace(sampling, num_diffusion_steps=None), NoiseSource(0, range(B)))

    assert torch.equal(draw(4.5), draw(4.5))
    assert not torch.equal(draw(4.5), draw(0.0))


def test_an_image_is_the_same_whatever_the_batch():
    model = generator_of("masked", "cross_entropy")

    def draw(indices) -> torch.Tensor:
        return generate(model, torch.tensor(indices), confidence(4.5, 4), NoiseSource(0, indices))

    together = draw([0, 1, 2, 3])
    assert torch.equal(torch.cat([draw([i]) for i in range(B)]), together)


def test_a_limit_leaves_the_open_positions_at_0():
    model = Sure()
    sampling = confidence(0.0, 4)
    tokens = generate(model, torch.arange(B), sampling, NoiseSource(0, range(B)), limit=2)
    n = sum(tokens_per_step(L, 4)[:2])
    assert torch.equal(tokens, torch.tensor([*[0] * (L - n), *range(L - n, L)]).expand(B, L))


# --- its parts -------------------------------------------------------------------------------------------


def test_it_starts_row_by_row():
    assert torch.equal(draw_order("confidence", NoiseSource(0, range(2)), 0, L), torch.arange(L).expand(2, L))


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
