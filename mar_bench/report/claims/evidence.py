"""The kinds of evidence for a claim: the rows that each needs, and its verdict at the experiment's scale."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal, NamedTuple

from mar_bench.config.experiment import Experiment
from mar_bench.config.experiment_file import Judged
from mar_bench.report import format as fmt
from mar_bench.report.claims import trends
from mar_bench.report.claims.orderings import (
    DIFFERENCE,
    compare,
    difference,
    difference_cells,
    judged_by,
    pairs,
    pairs_table,
    runs_judged,
    seeds_in_common,
    terms,
)
from mar_bench.report.frames import Runs, Selection, frame_of, main_setting, metric_value, values
from mar_bench.report.stats import FAILS, HOLDS, INCOMPARABLE, NO_RUNS, UNDECIDED, Difference

NOT_MEASURED = "not all points are measured"
OUTSIDE = "outside the range of times"  # of the better system: such a point does not count


class _Line(NamedTuple):
    """The verdict at one setting of the other axes, or on one point of another system."""

    where: str
    verdict: str
    why: str
    pair: str = fmt.MISSING
    found: Difference | None = None  # of the pair


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """One of the experiment's ``orderings``, by its claim and metric; holds if it does on every pair of rows that have
    all of ``bundles`` in common."""

    kind: Literal["ordering"] = "ordering"
    title: str
    experiment: str
    claim: str
    metric: Judged = "fd"
    bundles: tuple[str, ...] = ()

    def unknown(self, experiment: Experiment) -> list[str]:
        """The names in the evidence that the experiment lacks at its scale."""
        if not any(self._is(item) for item in experiment.orderings):
            return [f"no ordering '{self.claim}' by {self.metric}"]
        known = {bundle for bundles in experiment.labels.values() for bundle in bundles}
        return [f"no bundle '{bundle}'" for bundle in self.bundles if bundle not in known]

    def _is(self, item: dict) -> bool:
        return (item["claim"], judged_by(item)) == (self.claim, self.metric)

    def _among(self, experiment: Experiment, row: str) -> bool:
        return {*self.bundles} <= {*experiment.bundles(row).values()}

    def comparisons(self, experiment: Experiment) -> list[tuple[str, ...]]:
        """The rows that the evidence is about, as far as the scale has them, by what is compared."""
        every = pairs(experiment)
        return [tuple(rows) for item, rows in every if self._is(item) and self._among(experiment, rows[0])]

    def judge(self, experiment: Experiment, selection: Selection) -> tuple[str, str]:
        """The verdict with the terms of the claim, and its pairs in Markdown."""
        found = [c for c in compare(experiment, selection) if (c.claim, c.metric) == (self.claim, self.metric)]
        found = [c for c in found if self._among(experiment, c.rows[0])]
        text = pairs_table(found) if found else "This scale has no such pair."
        return all_of([c.difference.verdict for c in found], terms(found)), text


@dataclass(frozen=True, kw_only=True)
class Trend(Ordering):
    """An ordering judged at the steps of one training each: the verdict is that at the last step."""

    kind: Literal["trend"] = "trend"  # type: ignore[assignment]

    def judge(self, experiment: Experiment, selection: Selection) -> tuple[str, str]:
        """The verdict, with the step from which every pair holds, and the pairs in Markdown."""
        found = trends.trends(experiment, selection).get((self.claim, self.metric), [])
        found = [pair for pair in found if self._among(experiment, pair.points[0].rows[0])]
        if not found:
            return UNDECIDED, "This scale has no such pair."
        verdicts, said = [pair.verdict for pair in found], terms([c for pair in found for c in pair.points])
        since = f"from {max(pair.since for pair in found):,} steps on" if set(verdicts) == {HOLDS} else ""
        return all_of(verdicts, said, since), trends.table(found)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Along ``axis``, in the order of its bundles, the lowest distance is inside the range and beats both ends."""

    kind: Literal["optimum"] = "optimum"
    title: str
    experiment: str
    axis: str

    def unknown(self, experiment: Experiment) -> list[str]:
        return [f"no axis '{self.axis}'"] * (self.axis not in experiment.labels)

    def comparisons(self, experiment: Experiment) -> list[tuple[str, ...]]:
        return [tuple(rows) for rows in self._groups(experiment).values()] if self.axis in experiment.labels else []

    def _groups(self, experiment: Experiment) -> dict[str, list[str]]:
        """The rows along the axis for each setting of the other axes."""
        groups: dict[str, list[str]] = {}
        for row in experiment.rows:
            others = [bundle for axis, bundle in experiment.bundles(row).items() if axis != self.axis]
            groups.setdefault("/".join(others) or self.axis, []).append(row)
        return groups

    def judge(self, experiment: Experiment, selection: Selection) -> tuple[str, str]:
        """Lines for each setting of the other axes."""
        runs, groups = _runs(selection), self._groups(experiment)
        return _judged(line for name, rows in groups.items() for line in self._lines(name, experiment, rows, runs))

    def _lines(self, name: str, experiment: Experiment, rows: list[str], runs: dict[str, Runs]) -> list[_Line]:
        common = sorted(set.intersection(*(set(runs[row]) for row in rows)))
        if not common:
            return [_Line(name, UNDECIDED, NO_RUNS if all(runs[row] for row in rows) else NOT_MEASURED)]
        best = min(rows, key=lambda row: mean(metric_value(runs[row][seed], "fd") for seed in common))
        ends, bundle = (rows[0], rows[-1]), {row: experiment.bundles(row)[self.axis] for row in rows}
        # a best point at an end speaks against an optimum if it beats its neighbour
        against = list(ends) if best not in ends else rows[1:2] if best == rows[0] else rows[-2:-1]
        found = {row: difference(runs[best], runs[row]) for row in against}
        beaten = all(one.verdict == HOLDS for one in found.values())
        verdict = UNDECIDED if not beaten else FAILS if best in ends else HOLDS
        why = f"the best is {bundle[best]}{', an end' * (best in ends)}"
        return [_Line(name, verdict, why, f"{bundle[best]} against {bundle[row]}", one) for row, one in found.items()]


@dataclass(frozen=True, kw_only=True)
class Below:
    """Every point of the ``worse`` systems is beaten by a point of the ``better`` one that takes at most as long.

    Systems are values of ``label``. A point faster than all points of the better system is compared with the fastest
    of these: it counts against the claim if it is better, and otherwise does not count."""

    kind: Literal["below"] = "below"
    title: str
    experiment: str
    label: str
    better: str
    worse: tuple[str, ...]

    def unknown(self, experiment: Experiment) -> list[str]:
        known = [fmt.label_of(experiment, row, self.label) for row in (*experiment.rows, *experiment.absent)]
        return [f"no {self.label} '{name}'" for name in (self.better, *self.worse) if name not in known]

    def comparisons(self, experiment: Experiment) -> list[tuple[str, ...]]:
        systems = {row: fmt.label_of(experiment, row, self.label) for row in experiment.rows}
        ours, theirs = ([row for row in systems if systems[row] in names] for names in ([self.better], self.worse))
        return list(itertools.product(ours, theirs))

    def judge(self, experiment: Experiment, selection: Selection) -> tuple[str, str]:
        """One line per point of the worse systems, with seconds from the setting in which most rows were timed."""
        runs, found, columns = _runs(selection), frame_of(experiment, selection), fmt.column_axes(experiment)
        setting = main_setting(found)
        seconds = values(found, "seconds_per_image", setting)
        systems = {row: fmt.label_of(experiment, row, self.label) for row in experiment.rows}
        names = {row: fmt.row_words(experiment, row) for row in experiment.rows}
        column = {row: fmt.row_words(experiment, row, columns) for row in experiment.rows}
        lines = []
        for row in (row for row, system in systems.items() if system in self.worse):
            ours = [other for other in systems if systems[other] == self.better and column[other] == column[row]]
            lines.append(_one_point(names, row, ours, seconds, runs))
        verdict, text = _judged(lines)
        return verdict, f"Seconds per image: {fmt.inline(setting)}.\n\n" * (setting is not None) + text


def _one_point(
    names: dict[str, str], row: str, ours: list[str], seconds: dict[str, float], runs: dict[str, Runs]
) -> _Line:
    """Judge ``row`` against ``ours`` by ``seconds``; a point not measured yet leaves it undecided."""
    if row not in seconds:
        return _Line(names[row], UNDECIDED, "it was not timed")
    fast = [other for other in ours if other in seconds and seconds[other] <= seconds[row]]
    outside = bool(ours) and not fast and all(other in seconds for other in ours)
    candidates = [min(ours, key=seconds.__getitem__)] if outside else fast
    measured = [other for other in candidates if runs[other]]
    if not runs[row] or not measured:
        return _Line(names[row], UNDECIDED, NOT_MEASURED if runs[row] else "it has no distance")
    best = min(measured, key=lambda other: mean(metric_value(run, "fd") for run in runs[other].values()))
    found = difference(runs[best], runs[row])
    verdict = UNDECIDED if found.verdict == INCOMPARABLE else found.verdict
    if outside and found.verdict in (HOLDS, UNDECIDED):
        verdict = OUTSIDE
    why = f"{fmt.number(seconds[best])} s against {fmt.number(seconds[row])} s"
    return _Line(names[row], verdict, why, f"{names[best]} against {names[row]}", found)


Evidence = Ordering | Trend | Optimum | Below


def all_of(verdicts: list[str], said: str = "", since: str = "") -> str:
    """Holds (``since``) if all verdicts that count hold, does not hold if any does not; otherwise undecided.

    Says how many there are of each unless all are that verdict, and the claim's terms (``said``)."""
    counts = Counter(verdict for verdict in verdicts if verdict != OUTSIDE)
    verdict = FAILS if FAILS in counts else HOLDS if set(counts) == {HOLDS} else UNDECIDED
    notes = [", ".join(f"{name}: {n}" for name, n in counts.most_common())] if set(counts) - {verdict} else []
    notes += [said] if said else []
    return verdict + f" {since}" * bool(since) + f" ({'; '.join(notes)})" * bool(notes)


def _runs(selection: Selection) -> dict[str, Runs]:
    """The runs of every row that have a distance."""
    return {row: runs_judged(selection, row) for row in selection}


def _judged(lines: Iterable[_Line]) -> tuple[str, str]:
    """The verdict of all lines, and their table."""
    cells, verdicts, differences = [], {}, []
    for where, verdict, why, pair, found in lines:
        word = {HOLDS: "better", FAILS: "worse"}.get(found.verdict, found.verdict) if found else ""
        numbers = difference_cells(replace(found, verdict=word)) if found else [fmt.MISSING] * (2 + len(DIFFERENCE))
        cells.append([where, f"{verdict}: {why}", pair, *numbers])
        verdicts[where] = verdict  # an optimum has two lines with one verdict
        differences += [found] if found else []
    heading = ["where", "verdict", "pair", "first", "second", *DIFFERENCE[:-1], "the first is"]
    text = fmt.markdown_table(heading, cells) if cells else "This scale has no such points."
    return all_of([*verdicts.values()], seeds_in_common(differences)), text
