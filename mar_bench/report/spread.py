"""Mean of a metric over the runs of one row, and the ± beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev, variance

SeedValues = Mapping[tuple[int, int], float]  # (training seed, sampling seed) -> value


@dataclass(frozen=True)
class Spread:
    """Mean of a cell's metric, its standard deviation, and what the latter is over.

    ``over`` is "training" or "sampling" seeds: ``sd`` is the sample standard deviation of ``n`` values. It is "images"
    for a single run (``n`` 1) with a jackknife: ``sd`` is the standard error of its images and excludes the variance
    of seeds. It is None for a single run without one: no ``sd``. ``complete`` tells whether every training has every
    sampling seed. ``sd_sampling`` is the standard deviation over the samplings of one training, pooled over trainings;
    None unless a training has several."""

    mean: float = math.nan
    sd: float | None = None
    n: int = 0
    over: str | None = None
    train_seeds: tuple[int, ...] = ()
    sampling_seeds: tuple[int, ...] = ()
    complete: bool = True
    sd_sampling: float | None = None

    @property
    def sd_training(self) -> float | None:
        return self.sd if self.over == "training" else None


def spread(values: SeedValues, errors: SeedValues | None = None) -> Spread:
    """Average sampling seeds within each training seed first, so repeated sampling does not pass for repeated training.

    ``sd`` (ddof 1) is over training seeds if there are several, else over sampling seeds if there are several, else
    the run's standard error in ``errors``, else None. NaN values are ignored."""
    kept = {seed: value for seed, value in values.items() if not math.isnan(value)}
    if not kept:
        return Spread()
    by_training: dict[int, list[float]] = defaultdict(list)
    for (train_seed, _), value in sorted(kept.items()):
        by_training[train_seed].append(value)
    train_seeds, sampling_seeds = tuple(by_training), tuple(sorted({s for _, s in kept}))
    if len(kept) == 1:
        ((seed, value),) = kept.items()
        error = (errors or {}).get(seed, math.nan)
        sd, over = (None, None) if math.isnan(error) else (error, "images")
        return Spread(value, sd, 1, over, train_seeds, sampling_seeds)
    over = "training" if len(by_training) > 1 else "sampling"
    numbers = [mean(group) for group in by_training.values()] if over == "training" else list(kept.values())
    complete = len(kept) == len(train_seeds) * len(sampling_seeds)
    freedom = len(kept) - len(by_training)
    squares = sum((len(group) - 1) * variance(group) for group in by_training.values() if len(group) > 1)
    pooled = math.sqrt(squares / freedom) if freedom else None
    return Spread(mean(numbers), stdev(numbers), len(numbers), over, train_seeds, sampling_seeds, complete, pooled)


def design(spread: Spread, groups: str) -> str:
    """What the ± of a cell is over; ``groups`` is the number of jackknife groups, as in ``10 groups``."""
    training, sampling = (
        f"{kind} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        for kind, seeds in (("training", spread.train_seeds), ("sampling", spread.sampling_seeds))
    )
    deviation = f"± is the standard deviation over {spread.n}"
    if spread.over == "training" and len(spread.sampling_seeds) == 1:
        return f"{deviation} training runs ({training}; {sampling})"
    if spread.over == "training":
        gaps = "" if spread.complete else ", not all of them for each"
        return f"{deviation} training runs ({training}), each averaged over its samplings ({sampling}{gaps})"
    if spread.over == "sampling":
        return f"{deviation} samplings ({sampling}) of one training run ({training})"
    if spread.over == "images":
        return f"± is the jackknife standard error over images ({groups}) of one run ({training}, {sampling})"
    return f"one run ({training}, {sampling}), no ±"
