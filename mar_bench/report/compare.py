"""Two sets of runs side by side, metric by metric: what ``mar-bench compare`` prints.

No claim is judged, so verdicts read "lower" and "higher"; which of the two is better depends on the metric."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from mar_bench.records.comparable import differences
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, REAL_METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report import stats
from mar_bench.report.format import MISSING, markdown_table, number, percent, plus_minus
from mar_bench.report.frames import Runs, metric_value, runs_with, standard_error
from mar_bench.report.render import render
from mar_bench.report.stats import design, spread
from mar_bench.utils.errors import UserError

TITLES = {
    "generation": "Generated images",
    "reconstruction": "Reconstructions, the tokenizer alone",
    "likelihood": "Likelihoods of stored tokens",
    "evaluation": "Sets of images",
}


def markdown(name_one: str, ones: list[Record], name_other: str, others: list[Record]) -> str:
    """Tables of the metrics that both have: of generated images, of reconstructions and of sets of images.

    Speed records are left out: they compare within one device only. Raises UserError if a side has two records with
    equal seeds, which cannot be paired."""
    sections: list[tuple[str, str, list[str]]] = []
    heading = ["metric", name_one, name_other, "difference", "in percent", "interval", "seeds", "verdict"]
    for task, pairs in _pairs(name_one, ones, name_other, others):
        designs = [design(pairs[0].one), design(pairs[0].other)] if pairs else []
        sections.append((TITLES[task], markdown_table(heading, list(map(_cells, pairs))) if pairs else "", designs))
    failed = {name: sum(r.status == "failed" for r in side) for name, side in ((name_one, ones), (name_other, others))}
    return render("compare.md.j2", names=(name_one, name_other), sections=sections, failed=failed)


def frame(name_one: str, ones: list[Record], name_other: str, others: list[Record]) -> pd.DataFrame:
    """The same as numbers, a line for each metric; ``low`` and ``high`` bound the difference."""
    lines = [
        [task, pair.name, pair.one.mean, pair.one.sd, pair.other.mean, pair.other.sd, found.value, found.percent[0]]
        + [found.low, found.high, found.seeds, found.words]
        for task, pairs in _pairs(name_one, ones, name_other, others)
        for pair in pairs
        for found in [pair.found]
    ]
    columns = ["task", "metric", "one", "one_sd", "other", "other_sd", "difference", "percent", "low", "high", "seeds"]
    return pd.DataFrame(lines, columns=[*columns, "verdict"])


def _pairs(
    name_one: str, ones: list[Record], name_other: str, others: list[Record]
) -> Iterator[tuple[str, list[_Pair]]]:
    """Each task with the metrics that both sides have; none if both have the same records."""
    for task in TITLES:
        one, other = _runs(name_one, ones, task), _runs(name_other, others, task)
        if one and {r.id for r in one.values()} == {r.id for r in other.values()}:
            yield task, []
            continue
        metrics = (*GENERATION_METRICS, *REAL_METRICS, *LIKELIHOOD_METRICS)
        if found := [pair for metric in metrics if (pair := _pair(one, other, metric))]:
            yield task, found


def _runs(name: str, records: list[Record], task: str) -> Runs:
    """The done records of a task by their seeds."""
    runs: Runs = {}
    for record in (record for record in records if record.task == task and record.status == "done"):
        first = runs.setdefault(record.seeds, record)
        if first.id != record.id:
            raise UserError(
                f"{name}: records {first.id} and {record.id} have the same (training, sampling) seeds "
                f"{record.seeds}; compare one row with one row"
            )
    return runs


class _Pair(NamedTuple):
    """Both sides of a metric, and their difference with its verdict in a word."""

    name: str  # in the records
    one: stats.Spread
    other: stats.Spread
    found: stats.Difference


def _pair(ones: Runs, others: Runs, metric: str) -> _Pair | None:
    """None unless both sides have the metric."""
    sides = [runs_with(side.values(), metric) for side in (ones, others)]
    if not all(sides):
        return None
    values = [{seed: metric_value(record, metric) for seed, record in side.items()} for side in sides]
    errors = [{seed: standard_error(record, metric) for seed, record in side.items()} for side in sides]
    one, other = (spread(*both) for both in zip(values, errors))
    min_effect = stats.min_effect(metric)
    reasons = _unlike(sides[0], sides[1], metric)
    if one.over == other.over == "images" and not reasons:  # two single runs need no common seed
        found = stats.unpaired(one, other, min_effect)
    else:
        found = stats.paired(values[0], values[1], min_effect, reasons=reasons)
    if metric in REAL_METRICS and found.value == 0:  # both describe the same real images
        return None
    keys = dict.fromkeys(metric_name(metric, r.spec["metrics"]["extractor"]) for side in sides for r in side.values())
    lower, higher = ("differs", "differs") if found.over == "images" else ("lower", "higher")
    word = {stats.HOLDS: lower, stats.FAILS: higher}.get(found.verdict, found.verdict)
    return _Pair(" / ".join(keys), one, other, replace(found, verdict=word))


def _cells(pair: _Pair) -> list[str]:
    found = pair.found
    change, low, high = (number(value, signed=True) for value in (found.value, found.low, found.high))
    interval = MISSING if math.isnan(found.low) else f"{low} to {high}"
    sides = (plus_minus(side.mean, side.sd) for side in (pair.one, pair.other))
    return [pair.name, *sides, change, percent(found.percent[0]), interval, found.seeds, found.words]


def _unlike(ones: Runs, others: Runs, metric: str) -> list[str]:
    """The reasons why the two sides do not compare, from runs on common seeds or, if there are none, from all runs."""
    common = sorted(ones.keys() & others.keys())
    pairs = [(ones[s], others[s]) for s in common] or [(a, b) for a in ones.values() for b in others.values()]
    reasons = [reason for pair in pairs for reason in differences(*pair, metric)]
    digests = [[(r.protocol.get("samples") or {}).get("sha256") for r in pair] for pair in pairs]
    if not reasons and metric not in REAL_METRICS and all(one == other is not None for one, other in digests):
        reasons = ["the same images on both sides"]
    return list(dict.fromkeys(reasons))
