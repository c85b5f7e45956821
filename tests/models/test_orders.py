"""Orders are permutations, drawn for each image from its own noise."""

from __future__ import annotations

import itertools

import pytest
import torch

from mar_bench.models.orders import draw_order, gather
from mar_bench.utils.noise import NoiseSource
from tests.tiny import normal


def test_raster_is_row_by_row():
    for kind in ("raster", "confidence"):  # which is rearranged later
        assert draw_order(kind, NoiseSource(0, range(3)), 0, 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 3


@pytest.mark.parametrize("length", [1, 2, 9, 256])
def test_random_orders_are_permutations_one_for_each_image(length):
    orders = draw_order("random", NoiseSource(0, range(20)), 0, length)
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(1).values, torch.arange(length).expand(20, length))
    assert length < 9 or len({tuple(o) for o in orders.tolist()}) == 20


def test_random_orders_follow_seed_index_and_step():
    def orders(seed: int, indices, step: int) -> torch.Tensor:
        return draw_order("random", NoiseSource(seed, indices), step, 9)

    together = orders(0, range(4), 0)
    assert torch.equal(orders(0, [2, 1], 0), together[[2, 1]])
    assert not torch.equal(orders(1, range(4), 0), together)
    assert not torch.equal(orders(0, range(4), 1), together)


def test_every_permutation_is_as_likely():
    orders = draw_order("random", NoiseSource(0, range(12_000)), 0, 3)
    counts = [(orders == torch.tensor(p)).all(1).sum().item() for p in itertools.permutations(range(3))]
    chi_square = sum((count - 2000) ** 2 / 2000 for count in counts)
    assert chi_square < 20.5  # 0.1 % at 5 degrees of freedom


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_gather_takes_values_at_positions(shape):
    values, positions = normal(2, 5, *shape), torch.tensor([[4, 0, 4], [1, 2, 3]])
    slow = torch.stack([torch.stack([values[b, p] for p in positions[b]]) for b in range(2)])
    assert torch.equal(gather(values, positions), slow)
