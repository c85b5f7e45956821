"""Schedules as pure functions: tokens per AR step, guidance, learning rate, masking ratio and random orders."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

from mar_bench.config.spec import SamplingSpec, TruncatedNormalMasking, UniformMasking

# share of tokens that are unknown after k of n AR steps (MaskGIT, 2202.04200, section 3.3)
UNKNOWN: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda k, n: math.cos(math.pi / 2 * k / n),
    "linear": lambda k, n: 1 - k / n,
    "square": lambda k, n: 1 - (k / n) ** 2,
}


class ARStep(NamedTuple):
    """One step of a generation; all that sampling settings say about it."""

    known: int  # tokens drawn before it
    new: int  # tokens that it draws
    asked: int  # tokens that it draws or, in confidence order, tries
    guidance: float  # guidance scale; 1: none
    denoising: int | None  # denoising steps of the head


@functools.cache
def ar_steps(sampling: SamplingSpec, order: str, length: int) -> tuple[ARStep, ...]:
    """The AR steps of a generation of ``length`` tokens in ``order``.

    Denoising steps go linearly from ``num_diffusion_steps`` in the first AR step to ``last_diffusion_steps`` in the
    last (DiSA, 2505.20297). Guidance is left out of steps before which the share of known tokens is outside
    ``guidance_interval`` [ours, after 2404.07724, whose interval is one of noise levels]."""
    counts, known, steps = _counts(sampling, order, length), 0, []
    first, last = sampling.num_diffusion_steps, sampling.last_diffusion_steps
    start, end = sampling.guidance_interval or (0, 1)
    for k, new in enumerate(counts):
        asked, scale, denoising = new, 1.0, first
        if order == "confidence":
            asked = length - known
        if start <= known / length < end:
            scale = guidance_scale(sampling.guidance_schedule, sampling.guidance_scale, length, length - known - new)
        if first is not None and last is not None:
            denoising = round(first + (last - first) * k / max(1, len(counts) - 1))
        steps.append(ARStep(known, new, asked, scale, denoising))
        known += new
    return tuple(steps)


def _counts(sampling: SamplingSpec, order: str, length: int) -> list[int]:
    """Number of tokens drawn in each AR step. In checkerboard order the last step draws all of the second colour (GtR,
    2510.17171: structure in many steps, details in one)."""
    steps, schedule = sampling.num_ar_steps or length, sampling.ar_schedule
    if order != "checkerboard":
        return tokens_per_step(length, steps, schedule)
    first = (length + 1) // 2
    return [*tokens_per_step(first, steps - 1, schedule), length - first]


def tokens_per_step(length: int, num_ar_steps: int, schedule: str = "cosine") -> list[int]:
    """Number of tokens drawn in each AR step: by default MaskGIT's cosine schedule (paper, section 3.4).

    max(1, min(unknown before - 1, floor(L UNKNOWN(k + 1, K)))) tokens are unknown after step k = 0, 1, ...; the last
    step draws the rest. All counts are at least 1, they sum to ``length``, and K = L gives ones."""
    assert 1 <= num_ar_steps <= length
    left, counts = length, []
    for k in range(num_ar_steps - 1):
        after = max(1, min(left - 1, math.floor(length * UNKNOWN[schedule](k + 1, num_ar_steps))))
        counts.append(left - after)
        left = after
    return [*counts, left]


def guidance_scale(schedule: str, scale: float, length: int, num_unknown_after: int) -> float:
    """Guidance scale of an AR step (official code): constant, or linear in the share of known tokens.

    ``num_unknown_after`` counts the tokens unknown after the step; the last step counts as 1, not 0."""
    if schedule == "constant":
        return scale
    return 1 + (scale - 1) * (length - max(1, num_unknown_after)) / length


def learning_rate(schedule: str, base: float, step: int, warmup_steps: int, total_steps: int) -> float:
    """Learning rate at ``step`` (from 0): linear warm-up, then ``constant``, ``cosine`` to 0, or ``inverse_sqrt``.

    ``inverse_sqrt`` stays at ``base`` for the first half of training and then decays as sqrt(half / step)."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    half = max(1, total_steps // 2)
    return base * math.sqrt(half / max(step, half))


def random_share(annealing: tuple[float, float] | None, step: int, total_steps: int) -> float:
    """Share of images that are trained in random order at ``step`` (RAR, 2411.00776, section 3).

    1 before the first fraction of the training, then linear to 0 at the second; always 1 without annealing."""
    if annealing is None:
        return 1.0
    (start, end), progress = annealing, step / total_steps
    if progress < start:
        return 1.0
    return 0.0 if progress >= end else (end - progress) / (end - start)


def mask_ratio(masking: UniformMasking | TruncatedNormalMasking, u: float) -> float:
    """Share of unknown tokens in a training batch, from one uniform draw ``u`` in [0, 1), by inverting the cdf."""
    if isinstance(masking, UniformMasking):
        return masking.low + (masking.high - masking.low) * u
    normal = NormalDist(masking.mean, masking.std)
    low, high = normal.cdf(masking.low), normal.cdf(masking.high)
    if high <= low:
        return masking.low
    return min(masking.high, max(masking.low, normal.inv_cdf(low + (high - low) * u)))
