"""MIND against a loop over projections, and against its known values between Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mar_bench.metrics import mind as module
from mar_bench.metrics.functions import SEED, jackknife_groups
from mar_bench.metrics.mind import PROJECTIONS, mind
from mar_bench.utils.noise import SHARED, philox
from tests.measuring import normal


def by_loop(one: torch.Tensor, other: torch.Tensor, directions: torch.Tensor) -> float:
    """3 dim times the mean squared difference of the sorted projections, one projection at a time."""
    squares = []
    for u in directions.numpy():
        ours, theirs = (np.sort(side.double().numpy() @ u) for side in (one, other))
        squares.append(np.mean((ours - theirs) ** 2))
    return 3 * one.shape[1] * float(np.mean(squares))


@pytest.mark.parametrize("counts", [(90, 90), (90, 130), (130, 90)])
def test_mind_and_its_jackknife_match_a_loop(counts, monkeypatch):
    """Also with few projections and features per block."""
    monkeypatch.setattr(module, "VALUES", 7000)
    monkeypatch.setattr(module, "ROWS", 40)
    one, other, labels = normal(counts[0], 5), normal(counts[1], 5, seed=1, shift=0.5), torch.arange(counts[0]) % 3
    rng = philox(SEED, "mind", SHARED, 0)
    directions = torch.from_numpy(rng.standard_normal((PROJECTIONS, 5)))
    directions /= directions.norm(dim=1, keepdim=True)
    ours, theirs = (torch.from_numpy(rng.permutation(count)[:90]) for count in counts)
    value, without = mind(one, other, 4, labels)
    assert value == pytest.approx(by_loop(one[ours], other[theirs], directions), rel=1e-12)
    groups = jackknife_groups(90, 4, labels[ours])
    for g, found in enumerate(without):
        left = ours[groups != g]
        assert found == pytest.approx(by_loop(one[left], other[theirs[: len(left)]], directions), rel=1e-12)
    assert len(without) == 4 and mind(one, other) == (value, [])


def test_values_between_gaussians(monkeypatch):
    """3 |a - b|^2 for two means, 3 dim (s - t)^2 for two deviations, plus a bias that decreases with the number."""
    mean = torch.tensor([2.0, -2.0, 1.0])
    one, other = (torch.from_numpy(philox(s, "test-mind", 0, 0).standard_normal((1000, 3))) for s in (0, 1))
    none, scaled = (mind(one, x)[0] for x in (other, 1.5 * other))
    assert 0 < none < 0.1 < mind(one[:100], other[:100])[0] < 1
    assert scaled == pytest.approx(3 * 3 * 0.5**2, rel=0.1)
    monkeypatch.setattr(module, "PROJECTIONS", 10_000)  # the mean of the directions' share is within 1 %
    assert mind(one[:50], one[:50] + mean)[0] == pytest.approx(3 * 3**2, rel=0.03)
    assert mind(one[:50], one[:50])[0] == pytest.approx(0, abs=1e-20)


def test_threads_change_nothing_but_rounding():
    one, other = normal(300, 64), normal(500, 64, seed=1, shift=100.0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(mind(one, other, 5))
    finally:
        torch.set_num_threads(before)
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)
