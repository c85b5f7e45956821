"""Mean and ± of a metric over runs, and the difference between two sets of runs with its interval and verdict.

Orderings, the claims report and ``mar-bench compare`` share this one rule. Verdicts are conservative: an interval
containing zero, a Fréchet distance that changes by less than MIN_EFFECT or a single run is "undecided"; runs measured
under different protocols are "not comparable"."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev, variance

from scipy.special import stdtrit  # the quantile of scipy.stats.t, without its import of a second

from mar_bench.records.metrics import METRICS

SeedValues = Mapping[tuple[int, int], float]  # (training seed, sampling seed) -> value
HOLDS, FAILS, UNDECIDED, INCOMPARABLE = "holds", "does not hold", "undecided", "not comparable"
CONFIDENCE = 0.95
MIN_EFFECT = 1.3  # percent; smaller differences of FID are inconclusive ("The FID Lottery", arXiv 2606.20536)
STANDARD_ERRORS = 2  # half the width of the interval of two single runs
NO_RUNS, ONE_SEED, BELOW = "no common runs", "one seed", f"below {MIN_EFFECT} %"
SAMPLING_ONLY, JACKKNIFE = "sampling seeds only", "jackknife"
NOTES = {"sampling": (SAMPLING_ONLY,), "images": (JACKKNIFE,)}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a cell's metric, and the source of this deviation.

    ``over`` is "training" or "sampling" seeds, with ``sd`` the sample standard deviation of ``n`` values; "images" for
    a single run with a jackknife, whose ``sd`` is the standard error of its images; None for a single run without.
    ``sd_sampling`` is the standard deviation over the samplings of one training, pooled over trainings."""

    mean: float = math.nan
    sd: float | None = None
    n: int = 0
    over: str | None = None
    train_seeds: tuple[int, ...] = ()
    sampling_seeds: tuple[int, ...] = ()
    sd_sampling: float | None = None


def spread(values: SeedValues, errors: SeedValues | None = None) -> Spread:
    """Average sampling seeds within each training seed first, so repeated sampling does not count as repeated training.

    ``sd`` (ddof 1) is over training seeds if there are several, else over sampling seeds if there are several, else
    the run's standard error in ``errors``, else None. NaN values are ignored."""
    kept = {seed: value for seed, value in sorted(values.items()) if not math.isnan(value)}
    if not kept:
        return Spread()
    by_training: dict[int, list[float]] = defaultdict(list)
    for (train_seed, _), value in kept.items():
        by_training[train_seed].append(value)
    seeds = tuple(by_training), tuple(sorted({sampling_seed for _, sampling_seed in kept}))
    if len(kept) == 1:
        ((seed, value),) = kept.items()
        error = (errors or {}).get(seed, math.nan)
        return Spread(value, None, 1, None, *seeds) if math.isnan(error) else Spread(value, error, 1, "images", *seeds)
    over = "training" if len(by_training) > 1 else "sampling"
    numbers = [mean(group) for group in by_training.values()] if over == "training" else list(kept.values())
    freedom = len(kept) - len(by_training)
    squares = sum((len(group) - 1) * variance(group) for group in by_training.values() if len(group) > 1)
    pooled = math.sqrt(squares / freedom) if freedom else None
    return Spread(mean(numbers), stdev(numbers), len(numbers), over, *seeds, pooled)


def design(spread: Spread) -> str:
    """The meaning of a cell's ±, in words."""
    texts = {
        "training": f"± is the standard deviation over {spread.n} training runs",
        "sampling": f"± is the standard deviation over {spread.n} samplings of one training run",
        "images": "± is the jackknife standard error over images of one run",
    }
    training, sampling = (
        f"{kind} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        for kind, seeds in (("training", spread.train_seeds), ("sampling", spread.sampling_seeds))
    )
    averaged = ", averaged" * (spread.over == "training" and len(spread.sampling_seeds) > 1)
    return f"{texts.get(spread.over or '', 'one run without ±')} ({training}; {sampling}{averaged})"


@dataclass(frozen=True)
class Difference:
    """``value`` is ``first`` minus ``second``, both means over the common seeds, in the metric's unit.

    ``low`` to ``high`` is the interval over the common "training" seeds, over the "sampling" seeds of a single common
    training, or over the "images" of two single runs, as given by ``over``; NaN if ``over`` is None. ``trainings`` and
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
        """The number of common training seeds; if it is one, also that of sampling seeds: ``1 (5 samplings)``."""
        several = self.trainings == 1 and self.samplings > 1
        return f"1 ({self.samplings} samplings)" if several else str(self.trainings)

    @property
    def words(self) -> str:
        """The verdict with its notes."""
        if self.verdict == INCOMPARABLE:
            return f"{INCOMPARABLE}: {'; '.join(self.notes)}"
        return f"{self.verdict} ({', '.join(self.notes)})" if self.notes else self.verdict


def paired(
    first: SeedValues,
    second: SeedValues,
    min_effect: float = MIN_EFFECT,
    costs_at_most: float | None = None,
    reasons: Iterable[str] = (),
) -> Difference:
    """Difference on the common (training, sampling) seeds, averaged over the sampling seeds of each training.

    The t-interval treats the mean of ``second``, to which percentages refer, as exact. ``min_effect`` is in percent;
    ``costs_at_most`` is a share of ``second`` (0.10 for 10 %); ``reasons`` say why the runs are not comparable."""
    common = sorted(first.keys() & second.keys())
    one, other = (spread({seed: side[seed] for seed in common}).mean for side in (first, second))
    change = spread({seed: first[seed] - second[seed] for seed in common})
    seeds = len(change.train_seeds), len(change.sampling_seeds)
    if reasons:
        nothing = math.nan, math.nan, math.nan
        return Difference(one, other, *nothing, change.over, *seeds, INCOMPARABLE, tuple(reasons))
    # not scipy.stats.ttest_rel, whose interval is NaN where all differences are equal
    quantile = stdtrit(change.n - 1, 0.5 + CONFIDENCE / 2)
    half = math.nan if change.sd is None else float(quantile) * change.sd / math.sqrt(change.n)
    ends = change.mean - half, change.mean + half
    return _judged(Difference(one, other, change.mean, *ends, change.over, *seeds), min_effect, costs_at_most)


def unpaired(first: Spread, second: Spread, min_effect: float = MIN_EFFECT) -> Difference:
    """Difference of two single runs, with an interval from their independent standard errors over images."""
    assert first.sd is not None and second.sd is not None
    value, half = first.mean - second.mean, STANDARD_ERRORS * math.hypot(first.sd, second.sd)
    return _judged(Difference(first.mean, second.mean, value, value - half, value + half, "images", 1, 1), min_effect)


def min_effect(metric: str) -> float:
    """The smallest difference of a metric, in percent, that a verdict counts: known for Fréchet distances alone."""
    return MIN_EFFECT if METRICS[metric].base == "fd" else 0.0


def _judged(found: Difference, min_effect: float, costs_at_most: float | None = None) -> Difference:
    if found.over is None:
        return replace(found, notes=(ONE_SEED if found.trainings else NO_RUNS,))
    notes = NOTES.get(found.over, ())
    if costs_at_most is not None:
        limit = costs_at_most * found.second
        verdict = HOLDS if found.high <= limit else FAILS if found.low > limit else UNDECIDED
    elif abs(found.value) < min_effect / 100 * abs(found.second):
        verdict, notes = UNDECIDED, (*notes, BELOW)
    else:
        verdict = HOLDS if found.high < 0 else FAILS if found.low > 0 else UNDECIDED
    return replace(found, verdict=verdict, notes=notes)
