"""The kinds of evidence for a claim: what each needs of an experiment, and its verdict at the experiment's scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Literal

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.claims.orderings import (
    allowed,
    compare,
    difference,
    difference_cells,
    difference_heading,
    pairs_table,
)
from mar_bench.report.format import (
    MISSING,
    axis_labels,
    column_axes,
    label_of,
    markdown_table,
    number,
    value_at,
)
from mar_bench.report.frames import Runs, frame, metric_value, runs_with, select, values
from mar_bench.report.stats import FAILS, HOLDS, INCOMPARABLE, NO_RUNS, UNDECIDED, Difference
from mar_bench.report.table.grid import quoted_grid
from mar_bench.utils.errors import did_you_mean

NOT_MEASURED = "not all points are measured"
OUTSIDE = "outside the range of times"  # of the better system: such a point does not count


@dataclass(frozen=True)
class _Part:
    """The verdict at one setting of the other axes, or on one point of another system.

    ``pairs`` are (what is compared, their difference); ``timed`` is the setting of the seconds it relies on."""

    name: str
    verdict: str
    why: str
    pairs: list[tuple[str, Difference]]
    timed: str = ""


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """One of the experiment's ``orderings``, by the text of its claim; holds if it does on every pair."""

    kind: Literal["ordering"] = "ordering"
    title: str
    experiment: str
    claim: str

    def unknown(self, experiment: Experiment) -> list[tuple[str, str]]:
        """What the evidence names and the experiment lacks at its scale, each with the nearest existing name."""
        return _unknown([self.claim], [item["claim"] for item in experiment.orderings], "ordering")

    def rows(self, experiment: Experiment) -> list[str]:
        """The rows the evidence is about, of those that the scale has."""
        pairs = [c for c in compare(experiment, {}) if c.claim == self.claim]
        return list(dict.fromkeys(row for c in pairs for row in (c.better_row, c.worse_row)))

    def tolerance(self, experiment: Experiment) -> str:
        """``at most 25 % worse``; empty where the claim allows no cost."""
        return allowed(item.get("costs_at_most") for item in experiment.orderings if item["claim"] == self.claim)

    def judge(self, experiment: Experiment, records: dict[str, Record]) -> tuple[str, str]:
        """The verdict, and Markdown with the pairs it is based on and what the paper quotes beside them."""
        pairs = [c for c in compare(experiment, records) if c.claim == self.claim]
        text = pairs_table(pairs) if pairs else "This scale has no such pair."
        if quoted := quoted_grid(experiment):
            text += f"\n\n{quoted.markdown()}"
        return all_of([c.difference.verdict for c in pairs]), text


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Along ``axis``, in the order of the figure's x, the lowest distance is inside the range and beats both ends."""

    kind: Literal["optimum"] = "optimum"
    title: str
    experiment: str
    axis: str

    def unknown(self, experiment: Experiment) -> list[tuple[str, str]]:
        return _unknown([self.axis], list(experiment.labels), "axis")

    def rows(self, experiment: Experiment) -> list[str]:
        return list(experiment.rows) if self.axis in experiment.labels else []

    def tolerance(self, experiment: Experiment) -> str:
        return ""

    def judge(self, experiment: Experiment, records: dict[str, Record]) -> tuple[str, str]:
        """One part for each setting of the other axes."""
        runs = _runs(experiment, records)
        groups: dict[str, list[str]] = {}
        for row in experiment.rows:
            bundles = experiment.bundles(row)
            others = "/".join(bundle for axis, bundle in bundles.items() if axis != self.axis)
            groups.setdefault(others or self.axis, []).append(row)
        return _judged([self._part(name, experiment, rows, runs) for name, rows in groups.items()])

    def _part(self, name: str, experiment: Experiment, rows: list[str], runs: dict[str, Runs]) -> _Part:
        places = {row: value_at(experiment, row, experiment.figure.get("x", "")) for row in rows}
        if None not in places.values():
            rows = sorted(rows, key=lambda row: places[row] or 0.0)
        common = sorted(set.intersection(*(set(runs[row]) for row in rows)))
        if not common:
            return _Part(name, UNDECIDED, NO_RUNS if all(runs[row] for row in rows) else NOT_MEASURED, [])
        means = {row: mean(metric_value(runs[row][seed], "fd") for seed in common) for row in rows}
        best, first, last = min(rows, key=means.__getitem__), rows[0], rows[-1]
        at_end = best in (first, last)
        # a best point at an end speaks against an optimum if it beats its neighbour
        against = [first, last] if not at_end else rows[1:2] if best == first else rows[-2:-1]
        bundle = {row: experiment.bundles(row)[self.axis] for row in rows}
        pairs = [(f"{bundle[best]} against {bundle[row]}", difference(runs[best], runs[row])) for row in against]
        beaten = bool(pairs) and all(found.verdict == HOLDS for _, found in pairs)
        verdict = UNDECIDED if not beaten else FAILS if at_end else HOLDS
        return _Part(name, verdict, f"the best is {bundle[best]}{', an end' if at_end else ''}", pairs)


@dataclass(frozen=True, kw_only=True)
class Below:
    """Every point of the ``worse`` systems is beaten by a point of the ``better`` one that takes at most as long.

    Systems are values of ``label``. A point faster than all of the better system is compared with the fastest of them:
    it counts against the claim if it is better, and does not count otherwise."""

    kind: Literal["below"] = "below"
    title: str
    experiment: str
    label: str
    better: str
    worse: tuple[str, ...]

    def unknown(self, experiment: Experiment) -> list[tuple[str, str]]:
        known = [label_of(experiment, row, self.label) for row in (*experiment.rows, *experiment.absent)]
        return _unknown([self.better, *self.worse], list(filter(None, known)), self.label)

    def rows(self, experiment: Experiment) -> list[str]:
        systems = (self.better, *self.worse)
        return [row for row in experiment.rows if label_of(experiment, row, self.label) in systems]

    def tolerance(self, experiment: Experiment) -> str:
        return ""

    def judge(self, experiment: Experiment, records: dict[str, Record]) -> tuple[str, str]:
        """One part for each point of the worse systems and setting in which it was timed."""
        return _judged(list(self._parts(experiment, _runs(experiment, records), _seconds(experiment, records))))

    def _parts(
        self, experiment: Experiment, runs: dict[str, Runs], seconds: dict[str, dict[str, float]]
    ) -> Iterator[_Part]:
        systems = {row: label_of(experiment, row, self.label) for row in experiment.rows}
        for row in (row for row, system in systems.items() if system in self.worse):
            column = axis_labels(experiment, row, column_axes(experiment))
            alike = [other for other, system in systems.items() if system == self.better]
            alike = [o for o in alike if axis_labels(experiment, o, column_axes(experiment)) == column]
            names = {r: _point(experiment, r) for r in (row, *alike)}
            settings = [setting for setting, timed in seconds.items() if row in timed]
            if not settings:
                yield _Part(names[row], UNDECIDED, "it was not timed", [])
            for setting in settings:
                yield _one_point(names, row, alike, seconds[setting], runs, setting)


def _one_point(
    names: dict[str, str], row: str, ours: list[str], seconds: dict[str, float], runs: dict[str, Runs], setting: str
) -> _Part:
    """Judge ``row`` against ``ours`` by ``seconds`` of one setting; a point not measured yet leaves it undecided."""
    if not runs[row]:
        return _Part(names[row], UNDECIDED, "it has no distance", [], setting)
    fast = [other for other in ours if other in seconds and seconds[other] <= seconds[row]]
    outside = bool(ours) and not fast and all(other in seconds for other in ours)
    candidates = [min(ours, key=seconds.__getitem__)] if outside else fast
    measured = [other for other in candidates if runs[other]]
    if not measured:
        return _Part(names[row], UNDECIDED, NOT_MEASURED, [], setting)
    best = min(measured, key=lambda other: mean(metric_value(run, "fd") for run in runs[other].values()))
    found = difference(runs[best], runs[row])
    verdict = UNDECIDED if found.verdict == INCOMPARABLE else found.verdict
    if outside and found.verdict in (HOLDS, UNDECIDED):
        verdict = OUTSIDE
    why = f"{number(seconds[best])} s against {number(seconds[row])} s"
    return _Part(names[row], verdict, why, [(f"{names[best]} against {names[row]}", found)], setting)


Evidence = Ordering | Optimum | Below


def all_of(verdicts: list[str]) -> str:
    """Holds if all that count do, does not hold if any does not; otherwise, or with none, undecided."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) - {OUTSIDE} == {HOLDS} else UNDECIDED


def _unknown(names: list[str], known: list[str], what: str) -> list[tuple[str, str]]:
    return [(f"no {what} '{name}'", did_you_mean(name, known)) for name in names if name not in known]


def _runs(experiment: Experiment, records: dict[str, Record]) -> dict[str, Runs]:
    """The runs of every row that have a distance."""
    return {row: runs_with(tasks["generation"], "fd") for row, tasks in select(experiment, records).items()}


def _seconds(experiment: Experiment, records: dict[str, Record]) -> dict[str, dict[str, float]]:
    """Setting -> row -> seconds per image."""
    found = frame(experiment, records)
    settings = dict.fromkeys(found["setting"][found["task"] == "speed"])
    return {setting: values(found, "seconds_per_image", setting) for setting in settings}


def _point(experiment: Experiment, row: str) -> str:
    """A row by its labels: ``MAR, CrossEnt, 8 steps``, ``DiT, 1 step``."""
    labels = axis_labels(experiment, row, experiment.labels)
    of_one = {k: k.removesuffix("s") if v == "1" else k for k, v in labels.items()}
    return ", ".join(v if any(c.isalpha() for c in v) else f"{v} {of_one[k]}" for k, v in labels.items())


def _judged(parts: list[_Part]) -> tuple[str, str]:
    """The verdict of all parts, and their tables: one for each setting in which seconds were taken."""
    texts = []
    for setting in dict.fromkeys(part.timed for part in parts):
        lines = [line for part in parts if part.timed == setting for line in _lines(part)]
        heading = ["where", "verdict", "pair", *difference_heading()[:-1], "this pair"]
        texts += [f"Seconds per image: {setting}."] * bool(setting) + [markdown_table(heading, lines)]
    return all_of([part.verdict for part in parts]), "\n\n".join(texts) or "This scale has no such points."


def _lines(part: _Part) -> list[list[str]]:
    start = [part.name, f"{part.verdict}: {part.why}"]
    nothing = [MISSING] * len(difference_heading())
    return [[*start, what, *difference_cells(found)] for what, found in part.pairs] or [[*start, MISSING, *nothing]]
