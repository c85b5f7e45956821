"""Orders: for each image a permutation of its L positions, first generated first."""

from __future__ import annotations

import torch

from mar_bench.utils.noise import NoiseSource


def draw_order(kind: str, noise: NoiseSource, step: int, length: int) -> torch.Tensor:
    """(B, L) int64. ``raster``: row by row; ``random``: uniform over all permutations, one for each image;
    ``confidence``: row by row, to be rearranged while tokens are drawn (``confident_first``)."""
    if kind in ("raster", "confidence"):
        return torch.arange(length).expand(len(noise.indices), length)
    assert kind == "random"
    return noise.uniform("order", step, (length,)).argsort(dim=1, stable=True)


def confident_first(confidence: torch.Tensor, n: int) -> torch.Tensor:
    """Confidence (B, m) -> a permutation (B, m) of the m places, the n most confident first; both parts keep the
    arrangement they had. Of equals the earlier place counts as the more confident."""
    chosen = confidence.argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.ones_like(confidence, dtype=torch.int64).scatter_(1, chosen, 0).argsort(dim=1, stable=True)


def gumbel(noise: NoiseSource, step: int, n: int) -> torch.Tensor:
    """Standard Gumbel noise (B, n) of confidence order, finite."""
    return -(-noise.uniform("confidence", step, (n,)).clamp(min=2**-25).log()).log()


def gather(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``values`` (B, L, ...) at ``positions`` (B, n) -> (B, n, ...)."""
    index = positions.view(*positions.shape, *(1,) * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)
