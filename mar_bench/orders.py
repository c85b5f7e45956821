"""Orders: for each image a permutation of its L positions, first generated first."""

from __future__ import annotations

import torch

from mar_bench.noise import NoiseSource


def draw_order(kind: str, noise: NoiseSource, step: int, length: int) -> torch.Tensor:
    """(B, L) int64. ``raster``: row by row; ``random``: uniform over all permutations, one for each image."""
    if kind == "raster":
        return torch.arange(length).expand(len(noise.indices), length)
    assert kind == "random"
    return noise.uniform("order", step, (length,)).argsort(dim=1, stable=True)


def gather(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``values`` (B, L, ...) at ``positions`` (B, n) -> (B, n, ...)."""
    index = positions.view(*positions.shape, *(1,) * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)
