"""Ours against the paper's, number by number, where both were measured alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mar_bench.report.format import (
    MISSING,
    markdown_table,
    metric_short,
    number,
    percent,
    plus_minus,
    published_text,
    with_unit,
)
from mar_bench.report.frame import roles
from mar_bench.report.table.data import Measured
from mar_bench.report.verdict import CLOSE, DIFFERS, MATCH, NOT_COMPARABLE, RULES, is_comparable, verdict


@dataclass(frozen=True)
class Agreement:
    """A metric of a row beside the paper's; ``difference`` is ours less published, NaN where they do not compare."""

    row: str
    metric: str
    ours: float
    published: float
    difference: float
    verdict: str


def agreement(table: Measured, row: str, metric: str) -> Agreement:
    """The verdict is empty where either number is missing or the metric has no rule.

    Of a published bound (``fd_above``) there is no difference: a value above it is a match."""
    numbers = table.experiment.paper.get(row, {})
    value = table.spread(row, metric.replace(":", "_")).mean
    published, bound = numbers.get(metric, math.nan), numbers.get(f"{metric}_above", math.nan)
    word, difference = "", math.nan
    if math.isnan(published) and math.isnan(bound):
        pass
    elif not is_comparable(table.experiment, row):
        word = NOT_COMPARABLE
    elif not math.isnan(published):
        word, difference = verdict(metric, value, published) or "", value - published
    elif not math.isnan(value):
        word = MATCH if value > bound else DIFFERS
    return Agreement(row, metric, value, published, difference, word)


def markdown(table: Measured) -> str:
    """A table with the rule beneath; empty where nothing can be compared."""
    experiment = table.experiment
    found = list(_judged(table))
    if not found:
        return ""
    heading = ["row", "metric", "ours", "published", "difference", "verdict"]
    lines = []
    for one in found:
        name = with_unit(experiment, metric_short(experiment, one.metric), one.metric)
        spread = table.spread(one.row, one.metric)
        sign = "+" if one.difference > 0 else ""
        change = f"{sign}{number(one.difference, like=one.ours)}"
        if one.published and not math.isnan(one.difference):
            change += f" ({percent(100 * one.difference / one.published)})"
        published = published_text(experiment, one.row, one.metric) or MISSING
        lines.append([one.row, name, plus_minus(spread.mean, spread.sd), published, change, one.verdict])
    counts = [(word, sum(one.verdict == word for one in found)) for word in (MATCH, CLOSE, DIFFERS)]
    words = ", ".join(f"{word}: {n}" for word, n in counts)
    return "\n\n".join(["## Against the paper", markdown_table(heading, lines), f"**{words}.** {_rule()}"])


def _judged(table: Measured) -> Iterator[Agreement]:
    for row in table.experiment.rows:
        for metric in roles(table.experiment).values():
            if (one := agreement(table, row, metric)).verdict not in ("", NOT_COMPARABLE):
                yield one


def _rule() -> str:
    fid, score = RULES["fd"], RULES["is"]
    return (
        f"An FID within {100 * fid.share:g} % of the published one, or within {fid.absolute:g}, is a match, within "
        f"{100 * fid.close:g} % it is close; IS by {100 * score.share:g} and {100 * score.close:g} %; Precision and "
        f"Recall within {RULES['precision'].absolute:g} are a match. The paper gives one run without an error."
    )
