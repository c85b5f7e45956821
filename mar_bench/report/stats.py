"""The difference of a metric between two sets of runs, with its interval and verdict.

Orderings, the claims report and ``mar-bench compare`` share this one rule. Verdicts are conservative: an interval
containing zero, an effect below MIN_EFFECT or a single run is "undecided"; runs measured under different protocols are
"not comparable"."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from scipy.stats import t as student

from mar_bench.report.spread import SeedValues, Spread, spread

HOLDS, FAILS, UNDECIDED, INCOMPARABLE = "holds", "does not hold", "undecided", "not comparable"
CONFIDENCE = 0.95
MIN_EFFECT = 1.3  # percent; smaller differences of FID are inconclusive ("The FID Lottery", arXiv 2606.20536)
STANDARD_ERRORS = 2  # half the width of the interval of two single runs
NO_RUNS, ONE_SEED, BELOW = "no common runs", "one seed", f"below {MIN_EFFECT} %"
SAMPLING_ONLY, JACKKNIFE = "sampling seeds only", "jackknife"
NOTES = {"sampling": (SAMPLING_ONLY,), "images": (JACKKNIFE,)}


@dataclass(frozen=True)
class Difference:
    """``value`` is ``first`` minus ``second``, both means over the common seeds, in the metric's unit.

    ``low`` to ``high`` is the interval over the common "training" seeds, over the "sampling" seeds of a single common
    training, or over the "images" of two single runs, as ``over`` says; NaN where ``over`` is None. ``trainings`` and
    ``samplings`` count the common seeds. ``verdict`` is on the claim that ``first`` is lower, or higher by no more than
    an allowed cost; ``notes`` qualify it, or give the reasons why the runs are not comparable."""

    first: float
    second: float
    value: float
    low: float
    high: float
    over: str | None
    trainings: int
    samplings: int
    verdict: str = UNDECIDED
    notes: tuple[str, ...] = ()

    @property
    def percent(self) -> tuple[float, float, float]:
        """``value``, ``low`` and ``high`` in percent of ``second``; NaN unless that is positive."""
        share = 100 / self.second if self.second > 0 else math.nan
        return share * self.value, share * self.low, share * self.high

    @property
    def seeds(self) -> str:
        """The number of common training seeds; of a single one also its sampling seeds: ``1 (5 samplings)``."""
        several = self.trainings == 1 and self.samplings > 1
        return f"1 ({self.samplings} samplings)" if several else str(self.trainings)

    @property
    def words(self) -> str:
        """The verdict with its notes."""
        if not self.notes:
            return self.verdict
        if self.verdict == INCOMPARABLE:
            return f"{INCOMPARABLE}: {'; '.join(self.notes)}"
        return f"{self.verdict} ({', '.join(self.notes)})"

    def without_value(self, verdict: str, notes: Iterable[str]) -> Difference:
        """The same runs with no difference between them, for the reasons in ``notes``."""
        return replace(self, value=math.nan, low=math.nan, high=math.nan, verdict=verdict, notes=tuple(notes))


def paired(
    first: SeedValues,
    second: SeedValues,
    min_effect: float = MIN_EFFECT,
    costs_at_most: float | None = None,
    reasons: Iterable[str] = (),
) -> Difference:
    """Difference on the common (training, sampling) seeds, averaged over the sampling seeds of each training.

    The t-interval takes the mean of ``second``, which percentages refer to, as given. ``min_effect`` is in percent;
    ``costs_at_most`` is a share of ``second`` (0.10 for 10 %); ``reasons`` say why the runs are not comparable."""
    common = sorted(first.keys() & second.keys())
    one, other = (spread({seed: side[seed] for seed in common}).mean for side in (first, second))
    change = spread({seed: first[seed] - second[seed] for seed in common})
    # not scipy.stats.ttest_rel, whose interval is NaN where all differences are equal
    quantile = student.ppf(0.5 + CONFIDENCE / 2, change.n - 1)
    half = math.nan if change.sd is None else float(quantile) * change.sd / math.sqrt(change.n)
    ends = change.mean - half, change.mean + half
    seeds = len(change.train_seeds), len(change.sampling_seeds)
    found = Difference(one, other, change.mean, *ends, change.over, *seeds)
    return found.without_value(INCOMPARABLE, reasons) if reasons else _judged(found, min_effect, costs_at_most)


def unpaired(first: Spread, second: Spread, min_effect: float = MIN_EFFECT) -> Difference:
    """Difference of two single runs from the independent standard errors of their images."""
    assert first.sd is not None and second.sd is not None
    value, half = first.mean - second.mean, STANDARD_ERRORS * math.hypot(first.sd, second.sd)
    return _judged(Difference(first.mean, second.mean, value, value - half, value + half, "images", 1, 1), min_effect)


def _judged(found: Difference, min_effect: float, costs_at_most: float | None = None) -> Difference:
    if found.over is None:
        return replace(found, notes=(ONE_SEED if found.trainings else NO_RUNS,))
    small = costs_at_most is None and abs(found.value) < min_effect / 100 * abs(found.second)
    if costs_at_most is not None:
        limit = costs_at_most * found.second
        verdict = HOLDS if found.high <= limit else FAILS if found.low > limit else UNDECIDED
    elif small or found.low <= 0 <= found.high:
        verdict = UNDECIDED
    else:
        verdict = HOLDS if found.value < 0 else FAILS
    return replace(found, verdict=verdict, notes=NOTES.get(found.over, ()) + (BELOW,) * small)
