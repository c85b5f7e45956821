"""One piece of evidence judged at one scale: its verdict, and the pairs that it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.claims.file import Evidence
from mar_bench.report.claims.orderings import (
    FAILS,
    HOLDS,
    INCOMPARABLE,
    UNDECIDED,
    Effect,
    allowed,
    compare,
    effect_of,
    interval_of,
    pairs_table,
    verdict_of,
)
from mar_bench.report.figures.curve import value_at
from mar_bench.report.figures.style import label_of
from mar_bench.report.format import (
    MISSING,
    axis_labels,
    column_axes,
    describe,
    markdown_table,
    number,
    percent,
    seed_count,
)
from mar_bench.report.frame import Runs, metric_value, runs_with, select, speeds
from mar_bench.report.table import quoted
from mar_bench.utils.errors import did_you_mean

NOT_MEASURED = "not all points are measured"
OUTSIDE = "outside the range of times"  # of the better system: such a point is left out of the verdict


@dataclass(frozen=True)
class Judged:
    """``text`` is Markdown: the pairs with their seeds, differences and intervals."""

    verdict: str
    text: str


@dataclass(frozen=True)
class _Part:
    """What one setting or one rival says; ``pairs`` are (what is compared, its effect).

    ``timed`` is the setting of the seconds that it goes by, if it goes by any."""

    name: str
    verdict: str
    why: str
    pairs: list[tuple[str, Effect]]
    timed: str = ""


def missing(experiment: Experiment, evidence: Evidence) -> list[tuple[str, str]]:
    """What the evidence names and the experiment has not at its scale, each with what may have been meant."""
    if evidence.kind == "ordering":
        return _unknown([evidence.claim], [item["claim"] for item in experiment.orderings], "ordering")
    if evidence.kind == "optimum":
        return _unknown([evidence.axis], list(experiment.labels), "axis")
    known = [label_of(experiment, row, evidence.label) for row in (*experiment.rows, *experiment.absent)]
    return _unknown([evidence.better, *evidence.worse], list(filter(None, known)), evidence.label)


def _unknown(names: list[str], known: list[str], what: str) -> list[tuple[str, str]]:
    return [(f"no {what} '{name}'", did_you_mean(name, known)) for name in names if name not in known]


def rows_of(experiment: Experiment, evidence: Evidence) -> list[str]:
    """The rows that the evidence is about, of those that the scale has; none where it is not of this scale."""
    if evidence.kind == "ordering":
        pairs = [c for c in compare(experiment, {}) if c.claim == evidence.claim]
        return list(dict.fromkeys(row for c in pairs for row in (c.better_row, c.worse_row)))
    if evidence.kind == "optimum":
        return list(experiment.rows) if evidence.axis in experiment.labels else []
    systems = (evidence.better, *evidence.worse)
    return [row for row in experiment.rows if label_of(experiment, row, evidence.label) in systems]


def judge(experiment: Experiment, evidence: Evidence, records: dict[str, Record]) -> Judged:
    """At the experiment's scale."""
    if evidence.kind == "ordering":
        return _ordering(experiment, evidence, records)
    parts = list((_optimum if evidence.kind == "optimum" else _below)(experiment, evidence, records))
    return Judged(all_of([part.verdict for part in parts]), _text(parts))


def all_of(verdicts: list[str]) -> str:
    """Holds if all do, does not if any does not, else it is undecided; so it is where there is nothing.

    What lies outside the range of times says nothing."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) - {OUTSIDE} == {HOLDS} else UNDECIDED


def tolerance(experiment: Experiment, evidence: Evidence) -> str:
    """``at most 25 % worse``: what an ordering allows; empty where it allows nothing."""
    items = [item for item in experiment.orderings if evidence.kind == "ordering" and item["claim"] == evidence.claim]
    return allowed(item.get("costs_at_most") for item in items)


def _ordering(experiment: Experiment, evidence: Evidence, records: dict[str, Record]) -> Judged:
    pairs = [c for c in compare(experiment, records) if c.claim == evidence.claim]
    text = pairs_table(experiment, pairs) if pairs else "This scale has no such pair."
    parts = [text, quoted.markdown(experiment)]  # what the paper gives of rows that are none of ours
    return Judged(all_of([c.effect.verdict for c in pairs]), "\n\n".join(filter(None, parts)))


# --- an optimum along an axis ---------------------------------------------------------------------------


def _optimum(experiment: Experiment, evidence: Evidence, records: dict[str, Record]) -> Iterator[_Part]:
    """For each setting of the other axes."""
    selection, groups = select(experiment, records), {}
    for row in experiment.rows:
        bundles = experiment.bundles(row)
        others = "/".join(bundle for axis, bundle in bundles.items() if axis != evidence.axis)
        groups.setdefault(others, []).append(row)
    for others, rows in groups.items():
        runs = {row: runs_with(selection[row]["generation"], "fd") for row in _along(experiment, rows)}
        names = {row: experiment.bundles(row)[evidence.axis] for row in rows}
        yield _one_optimum(others or evidence.axis, runs, names)


def _along(experiment: Experiment, rows: list[str]) -> list[str]:
    """In the order of the figure's x, where it has one, else as they are written."""
    path = experiment.figure.get("x", "")
    places = {row: value_at(experiment, row, path) if path else None for row in rows}
    return rows if None in places.values() else sorted(rows, key=places.__getitem__)


def _one_optimum(name: str, runs: dict[str, Runs], names: dict[str, str]) -> _Part:
    """``runs`` are of the rows along the axis, in its order."""
    rows = list(runs)
    common = set.intersection(*(set(found) for found in runs.values()))
    if not common:
        return _Part(name, UNDECIDED, NOT_MEASURED if not all(runs.values()) else "no common runs", [])
    means = {row: mean(metric_value(found[seed], "fd") for seed in sorted(common)) for row, found in runs.items()}
    best = min(rows, key=means.__getitem__)
    if best in (rows[0], rows[-1]):
        beside = rows[1:2] if best == rows[0] else rows[-2:-1]
        pairs = [(f"{names[best]} against {names[row]}", effect_of(runs[best], runs[row])) for row in beside]
        beaten = any(effect.verdict == HOLDS for _, effect in pairs)
        return _Part(name, FAILS if beaten else UNDECIDED, f"the best is {names[best]}, an end", pairs)
    pairs = [(f"{names[best]} against {names[e]}", effect_of(runs[best], runs[e])) for e in (rows[0], rows[-1])]
    both = all(effect.verdict == HOLDS for _, effect in pairs)
    return _Part(name, HOLDS if both else UNDECIDED, f"the best is {names[best]}", pairs)


# --- one system below others ----------------------------------------------------------------------------


def _below(experiment: Experiment, evidence: Evidence, records: dict[str, Record]) -> Iterator[_Part]:
    """For each point of the rivals, in each setting in which it was timed."""
    selection, timed = select(experiment, records), speeds(experiment, records)
    runs = {row: runs_with(selection[row]["generation"], "fd") for row in experiment.rows}
    seconds = {(t["row"], t["setting"]): t["seconds_per_image"] for t in timed.to_dict("records")}
    seconds = {key: value for key, value in seconds.items() if not math.isnan(value)}
    systems = {row: label_of(experiment, row, evidence.label) for row in experiment.rows}
    ours = [row for row, system in systems.items() if system == evidence.better]
    for rival in (row for row, system in systems.items() if system in evidence.worse):
        settings = [setting for row, setting in seconds if row == rival]
        if not settings:
            yield _Part(_point(experiment, rival), UNDECIDED, "it was not timed", [])
        alike = [row for row in ours if _column(experiment, row) == _column(experiment, rival)]
        for setting in settings:
            of_setting = {row: seconds[row, setting] for row in (*alike, rival) if (row, setting) in seconds}
            names = {row: _point(experiment, row) for row in (*alike, rival)}
            yield replace(_one_rival(names, rival, alike, of_setting, runs), timed=setting)


def _column(experiment: Experiment, row: str) -> str:
    return describe(axis_labels(experiment, row, column_axes(experiment)))


def _point(experiment: Experiment, row: str) -> str:
    """A row by its labels; a number takes the label's name along: ``MAR, CrossEnt, 8 steps``, ``DiT, 1 step``."""
    labels = axis_labels(experiment, row, experiment.labels)
    of_one = {k: k.removesuffix("s") if v == "1" else k for k, v in labels.items()}
    return ", ".join(v if any(c.isalpha() for c in v) else f"{v} {of_one[k]}" for k, v in labels.items())


def _one_rival(
    names: dict[str, str], rival: str, ours: list[str], seconds: dict[str, float], runs: dict[str, Runs]
) -> _Part:
    """``seconds`` are of one setting. A point that was not measured yet may be the one that is missed.

    A rival that is faster than all of ours is compared with the fastest of them: it speaks against the claim where it
    is better too. Where it is not, it has only less time than our system can go down to, which says nothing."""
    name = names[rival]
    if not runs[rival]:
        return _Part(name, UNDECIDED, "it has no distance", [])
    fast = [row for row in ours if row in seconds and seconds[row] <= seconds[rival]]
    outside = bool(ours) and not fast and all(row in seconds for row in ours)
    measured = [row for row in ([min(ours, key=seconds.__getitem__)] if outside else fast) if runs[row]]
    if not measured:
        return _Part(name, UNDECIDED, NOT_MEASURED, [])
    best = min(measured, key=lambda row: mean(metric_value(run, "fd") for run in runs[row].values()))
    effect = effect_of(runs[best], runs[rival])
    pairs = [(f"{names[best]} against {name}", effect)]
    why = f"{number(seconds[best])} s against {number(seconds[rival])} s"
    if outside and effect.verdict not in (FAILS, INCOMPARABLE):
        return _Part(name, OUTSIDE, why, pairs)
    return _Part(name, effect.verdict if effect.verdict in (HOLDS, FAILS) else UNDECIDED, why, pairs)


# --- Markdown -------------------------------------------------------------------------------------------


def _text(parts: list[_Part]) -> str:
    """A table; where times are compared, one for each setting in which they were taken."""
    if not parts:
        return "This scale has no such points."
    texts = []
    for setting in dict.fromkeys(part.timed for part in parts):
        table = _table([part for part in parts if part.timed == setting])
        texts += [f"Seconds per image: {setting}.", table] if setting else [table]
    return "\n\n".join(texts)


def _table(parts: list[_Part]) -> str:
    lines = []
    for part in parts:
        for what, effect in part.pairs or [(MISSING, None)]:
            lines.append([part.name, f"{part.verdict}: {part.why}", what, *_numbers(effect)])
    heading = ["where", "verdict", "pair", "first", "second", "difference", "interval", "seeds", "pair alone"]
    return markdown_table(heading, lines)


def _numbers(effect: Effect | None) -> list[str]:
    if effect is None:
        return [MISSING] * 6
    shown = [number(effect.better), number(effect.worse), percent(effect.percent), interval_of(effect)]
    return [*shown, seed_count(effect.seeds, effect.samplings), verdict_of(effect)]
