"""Orderings over training: from which step on each holds, where two curves cross, and whether the gap is closing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mar_bench.config.experiment import Experiment
from mar_bench.report import format as fmt
from mar_bench.report.claims.orderings import Comparison, change_and_interval, compare, runs_judged, terms
from mar_bench.report.frames import Selection, metric_value
from mar_bench.report.stats import FAILS, HOLDS, UNDECIDED, Difference, min_effect, paired

RECENT = 8  # the trend is fitted from an eighth of the steps on: three doublings


@dataclass(frozen=True)
class Trend:
    """An ordering of two rows at the steps of one training each; ``points`` are in the order of ``steps``."""

    name: str  # the bundles that both rows share
    bundles: tuple[str, str]
    steps: list[int]
    points: list[Comparison]
    slope: Difference  # of ln(first / second) per doubling of the steps

    @property
    def verdict(self) -> str:
        """That at the last step."""
        return self.points[-1].difference.verdict

    @property
    def since(self) -> int:
        """The step from which on it holds at every step, if it holds at the last."""
        fails = [step for step, c in zip(self.steps, self.points) if c.difference.verdict != HOLDS]
        return next(step for step in self.steps if step > max(fails, default=0))

    @property
    def words(self) -> str:
        """The verdict at the last step, with the step from which it holds, or else with the trend of the gap."""
        last = f"{self.steps[-1]:,} steps"
        if len(self.steps) == 1:
            return f"{self.points[-1].difference.words} at {last}"
        if self.verdict == HOLDS:
            return f"{HOLDS} from {self.since:,} steps on"
        if self.verdict == FAILS:
            return f"{FAILS} within {last}; {self._trend()}"
        if self.verdict == UNDECIDED:
            return f"{self.points[-1].difference.words} at {last}; {self._trend()}"
        return self.points[-1].difference.words

    def _trend(self) -> str:
        change, low, high = (100 * math.expm1(x) for x in (self.slope.value, self.slope.low, self.slope.high))
        if math.isnan(low):
            return "too few seeds for a trend" if self.points[-1].difference.second > 0 else "no ratio has a trend"
        size = f"{change:+.1f} % a doubling, {low:+.1f} to {high:+.1f} %"
        if low <= 0 <= high or abs(change) < min_effect(self.points[-1].metric):
            return f"the gap has no clear trend ({size})"
        ahead = [c.difference.value < 0 for c in recent(self.steps, self.points)]
        if len({*ahead}) > 1:
            return f"the first {'gains' if change < 0 else 'loses'} ({size})"
        return f"the gap {'grows' if (change < 0) == ahead[-1] else 'shrinks'} ({size})"

    @property
    def crossings(self) -> str:
        """Between which steps the means of the two curves cross."""
        known = [(step, c.difference.value) for step, c in zip(self.steps, self.points) if c.difference.value]
        known = [(step, value) for step, value in known if not math.isnan(value)]
        if not known:
            return fmt.MISSING
        passes = [
            f"{'ahead' if now < 0 else 'behind'} between {before:,} and {step:,}"
            for (before, then), (step, now) in zip(known, known[1:])
            if (then < 0) != (now < 0)
        ]
        return "; ".join(passes) or f"{'ahead' if known[0][1] < 0 else 'behind'} throughout"


def trends(experiment: Experiment, selection: Selection) -> dict[tuple[str, str], list[Trend]]:
    """(claim, metric) -> its pairs of rows, each at all of its steps."""
    groups: dict[tuple, dict[int, Comparison]] = {}
    for c in compare(experiment, selection):
        specs = [experiment.rows[row] for row in c.rows]
        same = tuple(replace(s, sampling=replace(s.sampling, snapshot=None)) for s in specs)
        groups.setdefault((c.claim, c.metric, same), {})[specs[0].sampling.snapshot or specs[0].train.steps] = c
    found: dict[tuple[str, str], list[Trend]] = {}
    for (claim, metric, _), points in groups.items():
        steps = sorted(points)
        every = [points[step] for step in steps]
        shared = [set(experiment.bundles(c.rows[0]).items()) for c in every]
        common = dict(set.intersection(*shared) - {(every[0].axis, every[0].bundles[0])})
        name = "/".join(common[axis] for axis in experiment.labels if axis in common) or every[0].axis
        slope = _slope(steps, every, selection)
        found.setdefault((claim, metric), []).append(Trend(name, every[0].bundles, steps, every, slope))
    return found


def recent(steps: list[int], points: list[Comparison]) -> list[Comparison]:
    """The points to which the trend is fitted."""
    return [c for step, c in zip(steps, points) if RECENT * step >= steps[-1]]


def _slope(steps: list[int], points: list[Comparison], selection: Selection) -> Difference:
    """Of a straight line through ln(first / second) over log2(steps), for each seed that has all points."""
    metric, late = points[0].metric, recent(steps, points)
    sides = [[runs_judged(selection, row, metric) for row in c.rows] for c in late]
    seeds = set.intersection(*(set(runs) for side in sides for runs in side))
    slopes = {}
    for seed in seeds if len(late) > 1 else ():
        values = [[metric_value(runs[seed], metric) for runs in side] for side in sides]
        if min(map(min, values)) > 0:  # a density's bits may be negative
            ratios = [math.log(first / second) for first, second in values]
            slopes[seed] = float(np.polyfit([math.log2(step) for step in steps[-len(late) :]], ratios, 1)[0])
    return paired(slopes, dict.fromkeys(slopes, 0.0))


def table(pairs: list[Trend]) -> fmt.Block:
    """The differences at all steps in percent, those that are undecided in brackets, crossings and verdict."""
    steps = sorted({step for pair in pairs for step in pair.steps})
    lines = []
    for pair in pairs:
        cells = dict.fromkeys(steps, fmt.MISSING)
        for step, c in zip(pair.steps, pair.points):
            text, _ = change_and_interval(c.difference)
            cells[step] = text if c.difference.verdict in (HOLDS, FAILS) or text == fmt.MISSING else f"({text})"
        lines.append([pair.name, *cells.values(), pair.crossings, pair.words])
    bundles = " against ".join(pairs[0].bundles)
    return fmt.markdown_table([bundles, *(f"{step:,}" for step in steps), "crossing", "verdict"], lines)


def claims(experiment: Experiment, selection: Selection) -> Iterator[tuple[str, str, str, str]]:
    """For every claim what ``orderings.claims`` gives: its text, its terms, its table, and a summary."""
    for (claim, _), pairs in trends(experiment, selection).items():
        yield claim, terms([c for pair in pairs for c in pair.points]), table(pairs), ""
