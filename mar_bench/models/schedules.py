"""Schedules: pure functions from progress to a number."""

from __future__ import annotations

import math


def tokens_per_step(length: int, num_ar_steps: int) -> list[int]:
    """How many tokens each AR step draws under MaskGIT's cosine schedule (paper, section 3.4).

    After step k, max(1, min(unknown before - 1, floor(L cos(pi/2 (k+1)/K)))) tokens are still unknown; the
    last step draws all that is left. The counts are all at least 1 and sum to ``length``; K = L gives ones.
    """
    assert 1 <= num_ar_steps <= length
    left = length
    counts = []
    for k in range(num_ar_steps - 1):
        after = max(1, min(left - 1, math.floor(length * math.cos(math.pi / 2 * (k + 1) / num_ar_steps))))
        counts.append(left - after)
        left = after
    return [*counts, left]


def guidance_scale(schedule: str, scale: float, length: int, num_unknown_after: int) -> float:
    """The guidance scale of an AR step (official code): ``linear`` grows with the share of known tokens.

    ``num_unknown_after``: tokens unknown once the step is done; the last step counts as 1, not 0."""
    if schedule == "constant":
        return scale
    return 1 + (scale - 1) * (length - max(1, num_unknown_after)) / length


def learning_rate(schedule: str, base: float, step: int, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of a step counted from 0: linear warm-up, then constant, cosine to 0, or inverse root.

    ``inverse_sqrt`` stays at ``base`` for the first half and then falls as sqrt(half / step)."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    half = max(1, total_steps // 2)
    return base * math.sqrt(half / max(step, half))


def mask_ratio(masking, u: float) -> float:
    """The share of unknown tokens in a training batch from one uniform draw ``u`` in [0, 1).

    A truncated normal is drawn by inverting its distribution function between its bounds."""
    if masking.kind == "uniform":
        return masking.low + (masking.high - masking.low) * u
    from statistics import NormalDist

    normal = NormalDist(masking.mean, masking.std)
    low, high = normal.cdf(masking.low), normal.cdf(masking.high)
    if high <= low:
        return masking.low
    return min(masking.high, max(masking.low, normal.inv_cdf(low + (high - low) * u)))
