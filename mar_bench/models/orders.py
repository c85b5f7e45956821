"""Orders: per image a permutation of its L positions, in the order of generation."""

from __future__ import annotations

import torch
from torch import Tensor

from mar_bench.utils.noise import NoiseSource


def draw_order(kind: str, noise: NoiseSource, step: int, length: int) -> Tensor:
    """Orders (B, L) int64. ``raster``: row by row; ``random``: a uniformly random permutation per image;
    ``confidence``: row by row, rearranged during generation (``confident_first``)."""
    if kind in ("raster", "confidence"):
        return torch.arange(length).expand(len(noise.indices), length)
    assert kind == "random"
    return noise.uniform("order", step, (length,)).argsort(dim=1, stable=True)


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
