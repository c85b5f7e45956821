"""The paper's conclusions as paired comparisons: two rows that differ along one axis, on common seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.records.comparable import differences, instrument_differences
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING, listed, markdown_table, metric_title, number, percent
from mar_bench.report.frames import Runs, Selection, metric_value, runs_with, select
from mar_bench.report.stats import (
    CONFIDENCE,
    FAILS,
    HOLDS,
    INCOMPARABLE,
    MIN_EFFECT,
    SAMPLING_ONLY,
    UNDECIDED,
    Difference,
    paired,
)

DIFFERENCE = ["difference", f"{100 * CONFIDENCE:g} % interval", "seeds", "verdict"]  # headings of difference_cells
AT_FLOOR = "a row at or below its floor"
RULES = (
    "Difference: the first number minus the second, paired on the seeds that both rows have, in percent of the second; "
    "negative means that the first is better.",
    f"Interval: {100 * CONFIDENCE:g} % t-interval over training seeds, for each pair alone (not corrected for the "
    "number of pairs). Where the rows have a single training seed in common it is over its sampling seeds; "
    f"'{SAMPLING_ONLY}' marks such pairs, whose interval excludes the variance of training.",
    f"A claim holds or does not hold on a pair where the interval excludes 0 and the difference is at least "
    f"{MIN_EFFECT} %. A claim that allows a cost ('at most 25 % worse') holds where the whole interval lies below that "
    "cost and does not hold where it lies above. Everything else, a single run included, is undecided.",
    "Rows measured under different protocols are not compared; the verdict names what differs.",
)


@dataclass(frozen=True)
class Comparison:
    """An ordering's verdict on one pair of rows."""

    claim: str
    axis: str
    better_row: str
    worse_row: str
    bundles: tuple[str, str]  # on the axis, of the better and of the worse row
    others: str  # the bundles that both rows share
    costs_at_most: float | None
    difference: Difference
    above_floor: Difference | None  # of the distances less the floors; None unless two tokenizers with known floors
    floors: list[float]  # reconstruction distances of the better and of the worse row, NaN where unknown
    same_tokenizer: bool
    paper_percent: float | None  # None where the paper has no numbers


def compare(experiment: Experiment, records: dict[str, Record]) -> list[Comparison]:
    """Every pair of rows of every ordering of the experiment, of the rows that its scale has."""
    selection = select(experiment, records)
    return [
        _comparison(experiment, selection, item, row, other)
        for item in experiment.orderings
        for row in experiment.rows
        if experiment.bundles(row)[item["axis"]] == item["better"]
        if (other := "/".join({**experiment.bundles(row), item["axis"]: item["worse"]}.values())) in experiment.rows
    ]


def _comparison(experiment: Experiment, selection: Selection, item: dict, better: str, worse: str) -> Comparison:
    axis, limit, rows = item["axis"], item.get("costs_at_most"), (better, worse)
    runs = [runs_with(selection[row]["generation"], "fd") for row in rows]
    floors = [next(iter(runs_with(selection[row]["reconstruction"], "fd").values()), None) for row in rows]
    tokenizers = {reconstruction_run(row, experiment.rows[row]).ids["tokenizer_id"] for row in rows}
    found, known = difference(runs[0], runs[1], limit), [floor for floor in floors if floor]
    shared = [b for a, b in experiment.bundles(better).items() if a != axis and experiment.labels[a][b]]
    return Comparison(
        claim=item["claim"],
        axis=axis,
        better_row=better,
        worse_row=worse,
        bundles=(item["better"], item["worse"]),
        others="/".join(shared) or axis,
        costs_at_most=limit,
        difference=found,
        above_floor=_above_floor(found, runs, known, limit) if len(tokenizers) == len(known) == 2 else None,
        floors=[metric_value(floor, "fd") if floor else math.nan for floor in floors],
        same_tokenizer=len(tokenizers) == 1,
        paper_percent=_paper_percent(experiment, better, worse),
    )


def difference(first: Runs, second: Runs, costs_at_most: float | None = None) -> Difference:
    """Paired difference of the distances of two rows; "not comparable" where protocols of paired runs differ."""
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    reasons = dict.fromkeys(reason for pair in pairs for reason in differences(*pair, "fd"))
    values = [{seed: metric_value(run, "fd") for seed, run in side.items()} for side in (first, second)]
    return paired(values[0], values[1], costs_at_most=costs_at_most, reasons=reasons)


def _above_floor(found: Difference, runs: list[Runs], floors: list[Record], limit: float | None) -> Difference:
    """The difference of the distances less their floors; a run and its floor need the same extractor and reference."""
    if found.verdict == INCOMPARABLE:
        return replace(found, notes=())
    reasons: dict[str, None] = {}
    values: list[dict[tuple[int, int], float]] = []
    for side, floor in zip(runs, floors):
        reasons |= dict.fromkeys(r for run in side.values() for r in instrument_differences(run, floor, "fd"))
        values.append({seed: metric_value(run, "fd") - metric_value(floor, "fd") for seed, run in side.items()})
    above = paired(values[0], values[1], costs_at_most=limit, reasons=reasons)
    at_floor = above.verdict != INCOMPARABLE and (above.first < 0 or above.second <= 0)
    return above.without_value(UNDECIDED, [AT_FLOOR]) if at_floor else above


def _paper_percent(experiment: Experiment, better: str, worse: str) -> float | None:
    b, w = (experiment.paper.get(row, {}).get("fd") for row in (better, worse))
    return None if b is None or not w else 100 * (b - w) / w


# --- Markdown -------------------------------------------------------------------------------------------


def markdown(experiment: Experiment, comparisons: list[Comparison]) -> str:
    """A table and the counts of verdicts for every claim; empty where the experiment makes no claims."""
    if not comparisons:
        return ""
    rules = [
        f"Numbers: {metric_title(experiment, 'fd')}, lower is better, over the seeds that both rows have.",
        *RULES,
        "Paper: the same difference of its FIDs, from one run each.",
    ]
    parts = ["## What the paper claims, pair by pair", "\n".join(f"- {rule}" for rule in rules)]
    for claim in dict.fromkeys(c.claim for c in comparisons):
        chosen = [c for c in comparisons if c.claim == claim]
        cost = allowed(chosen)
        parts += [f"### Claim: {claim}{f' ({cost})' if cost else ''}", pairs_table(chosen), _summary(chosen)]
        if not all(c.same_tokenizer for c in chosen):
            parts.append(_tokenizer_caveat(chosen))
    return "\n\n".join(parts)


def allowed(comparisons: Iterable[Comparison]) -> str:
    """``at most 25 % worse``: the cost that a claim allows; empty where it allows none."""
    costs = dict.fromkeys(c.costs_at_most for c in comparisons if c.costs_at_most is not None)
    return f"at most {' / '.join(f'{100 * cost:g} %' for cost in costs)} worse" if costs else ""


def pairs_table(comparisons: list[Comparison]) -> str:
    """One line for each pair of one claim.

    The two bundles head the columns, or stand in each line where the claim is about several pairs of bundles."""
    several = len({c.bundles for c in comparisons}) > 1
    with_floors = any(c.above_floor for c in comparisons)
    heading = ["pair", "first", "second"] if several else ["all else equal", *comparisons[0].bundles]
    heading += [*DIFFERENCE, *["above own floor"] * with_floors, "paper"]
    lines = []
    for c in comparisons:
        name = " against ".join(c.bundles) + ("" if c.others == c.axis else f", {c.others}")
        line = [name if several else c.others, *difference_cells(c.difference)]
        if with_floors:
            parts = (percent(c.above_floor.percent[0]), c.above_floor.words) if c.above_floor else ()
            line.append(", ".join(part for part in parts if part != MISSING) or MISSING)
        lines.append([*line, percent(c.paper_percent)])
    return markdown_table(heading, lines)


def difference_cells(found: Difference) -> list[str]:
    """Both means, difference and interval in percent, number of seeds, verdict."""
    value, low, high = found.percent
    interval = MISSING if math.isnan(low) else f"{low:+.1f} to {high:+.1f} %"
    return [number(found.first), number(found.second), percent(value), interval, found.seeds, found.words]


def _summary(comparisons: list[Comparison]) -> str:
    """The verdicts of one claim counted, and how many of the paper's own differences have its sign or cost."""
    text = f"**{count([c.difference for c in comparisons])}.**"
    published = [(c.paper_percent, c.costs_at_most) for c in comparisons if c.paper_percent is not None]
    if published:
        agreeing = sum(p < 0 if limit is None else p <= 100 * limit for p, limit in published)
        way = allowed(comparisons) or "in this direction"
        text += f" In the paper's numbers {agreeing} of {len(published)} are {way}."
    return text


def count(found: list[Difference]) -> str:
    """``3 of 8 hold, 1 does not, 3 undecided, 1 not comparable (one seed: 2, sampling seeds only: 1)``."""
    verdicts = [d.verdict for d in found]
    held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
    text = f"{held} of {len(found)} {'holds' if held == 1 else 'hold'}, "
    text += f"{failed} {'does' if failed == 1 else 'do'} not, {verdicts.count(UNDECIDED)} undecided"
    if INCOMPARABLE in verdicts:
        text += f", {verdicts.count(INCOMPARABLE)} {INCOMPARABLE}"
    notes = [note for d in found if d.verdict != INCOMPARABLE for note in d.notes]
    counts = ", ".join(f"{note}: {notes.count(note)}" for note in dict.fromkeys(notes))
    return f"{text} ({counts})" if counts else text


def _tokenizer_caveat(comparisons: list[Comparison]) -> str:
    """What a comparison across tokenizers confounds, and its verdicts above the reconstruction floors."""
    confound = f"The axis '{comparisons[0].axis}' also changes the tokenizer, so these differences confound the two."
    known = [(c, c.above_floor) for c in comparisons if c.above_floor]
    if not known:
        return f"{confound} The tokenizers' reconstruction floors were not measured."
    floors: dict[str, list[str]] = {}
    for side in (0, 1):
        for c, _ in known:
            floors.setdefault(c.bundles[side], []).append(number(c.floors[side]))
    sides = listed([f"{' / '.join(dict.fromkeys(values))} ({bundle})" for bundle, values in floors.items()])
    return (
        f"{confound} Reconstruction alone has a distance of {sides}. Above its own floor (distance less reconstruction "
        f"distance): {count([above for _, above in known])}. A distance is not a sum of parts and the floors have no "
        "interval here, so this is a caution and not a correction."
    )
