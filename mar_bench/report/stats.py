"""The difference of a metric between two sets of runs, in the metric's own unit, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t as student

from mar_bench.report.spread import SeedValues, Spread, spread

CONFIDENCE = 0.95
ERRORS_WIDE = 2  # half an interval of two single runs, in standard errors


@dataclass(frozen=True)
class Difference:
    """``first`` less ``second``: ``value``, with the interval ``low`` to ``high`` (NaN where there is none).

    The interval is over the common "training" seeds, over the common "sampling" seeds of one training, over the
    "images" of two single runs, or there is none (``over`` None). ``trainings`` and ``samplings`` count the common
    seeds; ``first`` and ``second`` are means over them."""

    first: float
    second: float
    value: float
    low: float
    high: float
    over: str | None
    trainings: int
    samplings: int


def paired_difference(first: SeedValues, second: SeedValues) -> Difference:
    """On common (training, sampling) seeds, averaged over sampling seeds inside a training; a t-interval.

    All is NaN where no seeds are common."""
    common = sorted(first.keys() & second.keys())
    one, other = (spread({seed: side[seed] for seed in common}) for side in (first, second))
    change = spread({seed: first[seed] - second[seed] for seed in common})
    half = _half(change)
    ends = change.mean - half, change.mean + half
    counts = len(change.train_seeds), len(change.sampling_seeds)
    return Difference(one.mean, other.mean, change.mean, *ends, change.over, *counts)


def _half(change: Spread) -> float:
    if change.sd is None:
        return math.nan
    return float(student.ppf(0.5 + CONFIDENCE / 2, change.n - 1)) * change.sd / math.sqrt(change.n)


def unpaired_difference(first: Spread, second: Spread) -> Difference:
    """Of two single runs by the standard errors of their images, taken as independent: ± two combined errors."""
    value = first.mean - second.mean
    half = ERRORS_WIDE * math.hypot(first.sd, second.sd)
    return Difference(first.mean, second.mean, value, value - half, value + half, "images", 1, 1)
