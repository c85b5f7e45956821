"""Orders are permutations, drawn for each image from its own noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mar_bench.models.orders import annealed, draw_order, gather, permutation, raster_likeness
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


@pytest.mark.parametrize("length", [1, 2, 3, 16, 64, 256])
def test_the_permutation_is_one_for_all_images_steps_and_seeds(length):
    orders = draw_order("permuted", NoiseSource(0, range(5)), 0, length)
    assert torch.equal(orders[0].sort().values, torch.arange(length))
    assert torch.equal(orders, orders[:1].expand(5, length))
    assert torch.equal(orders[:2], draw_order("permuted", NoiseSource(3, [7, 4]), 9, length))
    assert length < 16 or not torch.equal(orders, draw_order("permuted", NoiseSource(0, range(5)), 0, length, seed=1))
    assert length != 16 or orders[0].tolist() == [
        7,
        4,
        8,
        5,
        11,
        12,
        14,
        10,
        1,
        13,
        9,
        2,
        3,
        6,
        0,
        15,
    ]  # trainings know it


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_the_permutation_is_like_no_scan(side):
    scan = np.arange(side * side)
    assert raster_likeness(scan) == raster_likeness(scan[::-1]) == pytest.approx(1)
    for seed in range(10):
        order = np.array(permutation(side * side, seed))
        assert raster_likeness(order) < 0.2
        row, column = np.divmod(order, side)
        neighbours = (np.abs(np.diff(row)) + np.abs(np.diff(column)) == 1).mean()
        assert neighbours < 3 * 4 / side**2  # a random step goes to one of at most 4 of the others


def test_annealing_replaces_a_share_of_the_orders_by_raster():
    noise, raster = NoiseSource(0, range(4000)), torch.arange(9)
    given = draw_order("random", noise, 5, 9)
    for share in (0.2, 0.7):
        found = annealed(given, share, noise, 5)
        kept = (found == given).all(1)
        assert torch.equal(found[~kept], raster.expand(len(found[~kept]), 9))
        assert abs(kept.float().mean() - share) < 0.03
    assert torch.equal(annealed(given, 1.0, noise, 5), given)
    assert torch.equal(annealed(given, 0.0, noise, 5), raster.expand(4000, 9))
    part = annealed(given[[9, 2]], 0.5, NoiseSource(0, [9, 2]), 5)  # of another micro-batch or rank
    assert torch.equal(part, annealed(given, 0.5, noise, 5)[[9, 2]])
    assert not torch.equal(annealed(given, 0.5, noise, 6), annealed(given, 0.5, noise, 5))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_gather_takes_values_at_positions(shape):
    values, positions = normal(2, 5, *shape), torch.tensor([[4, 0, 4], [1, 2, 3]])
    slow = torch.stack([torch.stack([values[b, p] for p in positions[b]]) for b in range(2)])
    assert torch.equal(gather(values, positions), slow)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_checkerboard_order_draws_one_colour_after_the_other(side):
    length = side * side
    order = draw_order("checkerboard", NoiseSource(0, range(50)), 0, length)
    assert torch.equal(order.sort(dim=1).values, torch.arange(length).expand(50, length))
    colour = (order // side + order % side) % 2
    assert torch.equal(colour, colour.sort(dim=1).values)
    if side > 2:  # random within a colour
        assert len({*map(tuple, order[:, :4].tolist())}) > 10
