"""The paper's conclusions as paired comparisons: two rows that differ along one axis, on common seeds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.records.comparable import differences
from mar_bench.records.metrics import METRICS
from mar_bench.report import format as fmt
from mar_bench.report import stats
from mar_bench.report.format import MISSING, markdown_table, number, percent
from mar_bench.report.frames import Runs, Selection, metric_value, runs_with

CONFIDENCE = f"{100 * stats.CONFIDENCE:g} %"
DIFFERENCE = ["difference", f"{CONFIDENCE} interval", "seeds", "verdict"]  # headings of the last difference_cells


@dataclass(frozen=True)
class Comparison:
    """An ordering's verdict on one pair of rows."""

    claim: str
    axis: str
    rows: tuple[str, str]  # the one claimed to be better, then the other
    bundles: tuple[str, str]  # of both rows on the axis
    others: str  # the bundles that both rows share
    costs_at_most: float | None
    metric: str
    judged_by: str  # the metric in words; empty if it is the main distance
    difference: stats.Difference
    floors: dict[str, float]  # bundle -> distance of its reconstructions; empty if both rows share the tokenizer
    against: str  # ``vs training``: the images of these distances
    paper_percent: float | None  # None if the paper has no numbers


def pairs(experiment: Experiment) -> Iterator[tuple[dict, tuple[str, str]]]:
    """Every ordering with each pair of rows that it is about, of the rows that the scale has; the better one first."""
    for item, row in itertools.product(experiment.orderings, experiment.rows):
        bundles = experiment.bundles(row)
        other = "/".join({**bundles, item["axis"]: item["worse"]}.values())
        if bundles[item["axis"]] == item["better"] and other in experiment.rows:
            yield item, (row, other)


def compare(experiment: Experiment, selection: Selection) -> list[Comparison]:
    """Every pair of rows of every ordering of the experiment, judged."""
    return [_comparison(experiment, selection, item, rows) for item, rows in pairs(experiment)]


def _comparison(experiment: Experiment, selection: Selection, item: dict, rows: tuple[str, str]) -> Comparison:
    axis, limit, bundles = item["axis"], item.get("costs_at_most"), (item["better"], item["worse"])
    metric, floors = judged_by(item), {}
    several = len({reconstruction_run(row, experiment.rows[row]).ids["tokenizer_id"] for row in rows}) > 1
    if several and METRICS[metric].base == "fd":
        alone = [runs_with(selection[row]["reconstruction"], metric).values() for row in rows]
        floors = {b: next((metric_value(r, metric) for r in of), math.nan) for b, of in zip(bundles, alone)}
    first, second = (runs_judged(selection, row, metric) for row in rows)
    found = difference(first, second, limit, metric)
    ours, other = (experiment.paper.get(row, {}).get(metric) for row in rows)
    published = None if ours is None or not other else 100 * (ours - other) / other
    shared = [b for a, b in experiment.bundles(rows[0]).items() if a != axis and experiment.labels[a][b]]
    others, against = "/".join(shared) or axis, fmt.against(experiment, f"r{metric}")
    words = "" if metric == "fd" else fmt.metric_title(experiment, metric, named=False)
    return Comparison(
        item["claim"], axis, rows, bundles, others, limit, metric, words, found, floors, against, published
    )


def judged_by(item: dict) -> str:
    """The metric of one of an experiment's ``orderings``."""
    return item.get("metric", "fd")


def runs_judged(selection: Selection, row: str, metric: str = "fd") -> Runs:
    """The row's runs with a number for the metric, which is of generated images or a likelihood."""
    return runs_with(selection[row][METRICS[metric].task], metric)


def difference(first: Runs, second: Runs, costs_at_most: float | None = None, metric: str = "fd") -> stats.Difference:
    """Paired difference of a metric of two rows; "not comparable" if protocols of paired runs differ."""
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    reasons = dict.fromkeys(reason for pair in pairs for reason in differences(*pair, metric))
    values = [{seed: metric_value(run, metric) for seed, run in side.items()} for side in (first, second)]
    return stats.paired(values[0], values[1], stats.min_effect(metric), costs_at_most, reasons)


def claims(comparisons: list[Comparison]) -> Iterator[tuple[str, str, str, str]]:
    """For every claim and metric: its text, its terms, the table of its pairs, and a summary."""
    for claim, metric in dict.fromkeys((c.claim, c.metric) for c in comparisons):
        chosen = [c for c in comparisons if (c.claim, c.metric) == (claim, metric)]
        yield claim, terms(chosen), pairs_table(chosen), _summary(chosen)


def terms(comparisons: list[Comparison]) -> str:
    """``by held-out NLL; at most 25 % worse; one training seed``: the metric unless it is the main distance, the cost
    that the claim allows, and whether no interval is over trainings."""
    words = dict.fromkeys(f"by {c.judged_by}" for c in comparisons if c.judged_by)
    return "; ".join(filter(None, [*words, _allowed(comparisons), seeds_in_common(c.difference for c in comparisons)]))


def seeds_in_common(found: Iterable[stats.Difference]) -> str:
    """``one training seed`` if no interval is over more."""
    most = max((one.trainings for one in found if one.over), default=0)
    return "one training seed" if most == 1 else ""


def _allowed(comparisons: list[Comparison]) -> str:
    costs = dict.fromkeys(c.costs_at_most for c in comparisons if c.costs_at_most is not None)
    return f"at most {' / '.join(f'{100 * cost:g} %' for cost in costs)} worse" if costs else ""


def pairs_table(comparisons: list[Comparison]) -> str:
    """One line for each pair of one claim.

    The two bundles are column headings or, if the claim is about several pairs of bundles, cells of each line."""
    several = len({c.bundles for c in comparisons}) > 1
    heading = ["pair", "first", "second"] if several else ["all else equal", *comparisons[0].bundles]
    lines = []
    for c in comparisons:
        name = " against ".join(c.bundles) + ("" if c.others == c.axis else f", {c.others}")
        lines.append([name if several else c.others, *difference_cells(c.difference), percent(c.paper_percent)])
    return markdown_table([*heading, *DIFFERENCE, "paper"], lines)


def difference_cells(found: stats.Difference) -> list[str]:
    """Both means, difference and interval, number of seeds, verdict."""
    return [number(found.first), number(found.second), *change_and_interval(found), found.seeds, found.words]


def change_and_interval(found: stats.Difference) -> tuple[str, str]:
    """In percent of the second mean; of bits that are not positive, which have no share, the difference itself."""
    value, low, high = found.percent
    if found.second > 0 or math.isnan(found.value):
        return percent(value), MISSING if math.isnan(low) else f"{low:+.1f} to {high:+.1f} %"
    value, low, high = (number(x, like=1, signed=True) for x in (found.value, found.low, found.high))
    return value, MISSING if MISSING in (low, high) else f"{low} to {high}"


def _summary(comparisons: list[Comparison]) -> str:
    """Counts of one claim's verdicts, how many of the paper's own differences agree, and confounders of the axis."""
    counts = Counter(c.difference.verdict for c in comparisons)
    text = f"**{', '.join(f'{verdict}: {n}' for verdict, n in counts.most_common())}.**"
    published = [(c.paper_percent, c.costs_at_most) for c in comparisons if c.paper_percent is not None]
    if published:
        agreeing = sum(p < 0 if limit is None else p <= 100 * limit for p, limit in published)
        way = _allowed(comparisons) or "in this direction"
        text += f" In the paper's numbers {agreeing} of {len(published)} are {way}."
    floors: dict[str, dict[str, None]] = {}
    for bundle, floor in (item for c in comparisons for item in c.floors.items()):
        floors.setdefault(bundle, {})[number(floor)] = None
    if floors:
        distances = " and ".join(f"{' / '.join(of)} ({bundle})" for bundle, of in floors.items())
        text += f" The axis '{comparisons[0].axis}' also changes the tokenizer, whose reconstructions alone have "
        text += f"distances ({comparisons[0].against}) {distances}."
    return text
