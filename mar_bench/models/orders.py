"""Orders: per image a permutation of its L positions, in the order of generation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mar_bench.config.plugins import added, resolve
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import SHARED, NoiseSource, philox

CANDIDATES = 16  # permutations among which ``permutation`` chooses


def draw_order(kind: str, noise: NoiseSource, step: int, length: int, seed: int = 0) -> Tensor:
    """Orders (B, L) int64. ``raster``: row by row; ``permuted``: the ``permutation`` of ``seed`` for every image;
    ``random``: a uniformly random permutation per image; ``checkerboard``: the same, but all positions of a square
    grid's first colour come first; ``confidence``: row by row, rearranged during generation (``confident_first``); any
    other is a plugin's. Raises UserError if a plugin's are not permutations."""
    if kind in ("random", "checkerboard"):
        priority = noise.uniform("order", step, (length,))
        if kind == "checkerboard":
            place, side = torch.arange(length), math.isqrt(length)
            priority = priority + (place // side + place % side) % 2
        return priority.argsort(dim=1, stable=True)
    if (path := added("orders").get(kind)) is not None:
        found = resolve(path)(noise, step, length)
        every = torch.arange(length).expand(len(noise.indices), length)
        if found.shape != every.shape or not torch.equal(found.sort(dim=1).values, every):
            raise UserError(f"order '{kind}': {path} must give a permutation of {length} positions for each image")
        return found
    assert kind in ("raster", "permuted", "confidence")
    fixed = torch.tensor(permutation(length, seed)) if kind == "permuted" else torch.arange(length)
    return fixed.expand(len(noise.indices), length)


@cache
def permutation(length: int, seed: int) -> tuple[int, ...]:
    """One order of ``length`` positions for all images: of a few random candidates the least like a raster scan."""
    drawn = (philox(seed, "permutation", SHARED, i).permutation(length) for i in range(CANDIDATES))
    return tuple(min(drawn, key=raster_likeness).tolist())


def raster_likeness(order: np.ndarray) -> float:
    """How close an order (L,) is to a scan, forwards or backwards: 1 for raster order, near 0 for a random one.

    The larger of two absolute correlations: of positions with their time, and of successive positions."""
    if len(order) < 3:
        return 1.0
    pairs = ((order, np.arange(len(order))), (order[:-1], order[1:]))
    return max(abs(float(np.corrcoef(one, other)[0, 1])) for one, other in pairs)


def annealed(order: Tensor, share: float, noise: NoiseSource, step: int) -> Tensor:
    """Orders (B, L), each kept with probability ``share`` and otherwise replaced by raster order (RAR, 2411.00776)."""
    kept = noise.uniform("annealing", step, ()) < share
    return torch.where(kept[:, None], order, torch.arange(order.shape[1]))


def confident_first(confidence: Tensor, n: int) -> Tensor:
    """Confidence (B, m) -> a permutation (B, m) of the m places with the n most confident first.

    Both parts keep their relative order; ties go to the earlier place."""
    chosen = confidence.argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.ones_like(confidence, dtype=torch.int64).scatter_(1, chosen, 0).argsort(dim=1, stable=True)


def gumbel(noise: NoiseSource, step: int, n: int) -> Tensor:
    """Standard Gumbel noise (B, n) for confidence order, always finite."""
    return -(-noise.uniform("confidence", step, (n,)).clamp(min=2**-25).log()).log()


def gather(values: Tensor, positions: Tensor) -> Tensor:
    """``values`` (B or 1, L, ...) at ``positions`` (B, n) -> (B, n, ...)."""
    index = positions.view(*positions.shape, *(1,) * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.expand(len(positions), *values.shape[1:]).gather(1, index)
