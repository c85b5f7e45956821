"""The paper's conclusions as paired comparisons: two rows that differ along one axis, on common seeds.

A verdict counts, it does not wish: an interval that contains zero or a difference below MIN_EFFECT decides
nothing, and neither does a single run. Rows that were not measured alike are not compared at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.records.comparable import differences, instrument_differences
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING, listed, markdown_table, metric_title, number, percent, seed_count
from mar_bench.report.frame import Runs, SeedValues, Selection, metric_value, runs_with, select
from mar_bench.report.stats import CONFIDENCE, paired_difference
from mar_bench.utils.errors import UserError, did_you_mean

HOLDS, FAILS, UNDECIDED, INCOMPARABLE = "holds", "does not hold", "undecided", "not comparable"
MIN_EFFECT = 1.3  # percent; smaller differences of FID are inconclusive ("The FID Lottery", 2606.20536)
NO_RUNS, ONE_SEED, AT_FLOOR = "no common runs", "one seed", "a row at or below its floor"
SAMPLING_ONLY, BELOW = "sampling seeds only", f"below {MIN_EFFECT} %"


@dataclass(frozen=True)
class Effect:
    """The change from ``worse`` to ``better`` in percent of the former's mean; claimed to be negative.

    ``percent``, ``low`` and ``high`` (the t-interval over training seeds; over sampling seeds where one training is
    common, as ``note`` then says) are NaN where they cannot be had; ``better`` and ``worse`` are means over the
    common seeds, ``seeds`` counts the training seeds and ``samplings`` the sampling seeds among them. ``note`` holds
    remarks joined by ", ", or the reasons of what is not comparable."""

    better: float
    worse: float
    percent: float
    low: float
    high: float
    seeds: int
    verdict: str
    note: str = ""
    samplings: int = 1


@dataclass(frozen=True)
class Comparison:
    """A claim's verdict on one pair of rows.

    ``above_floor`` compares the distances less each row's own reconstruction floor; None unless the pair's
    tokenizers differ and both floors are known. A floor that was measured otherwise than its row is not subtracted:
    not comparable. ``paper_percent`` is None where the paper has no numbers."""

    claim: str
    axis: str
    better_row: str
    worse_row: str
    others: str  # the bundles that both rows share
    costs_at_most: float | None
    effect: Effect
    above_floor: Effect | None
    floors: tuple[float, float]  # of better and of worse, NaN where unknown
    same_tokenizer: bool
    paper_percent: float | None


def compare(experiment: Experiment, records: dict[str, Record]) -> list[Comparison]:
    """Every pair of every ordering of the experiment. Raises UserError for an ordering that is not one."""
    selection = select(experiment, records)
    return [
        _comparison(experiment, selection, item, *pair)
        for item in experiment.orderings
        for pair in _pairs(experiment, item)
    ]


def _comparison(experiment: Experiment, selection: Selection, item: dict, better: str, worse: str) -> Comparison:
    runs = tuple(runs_with(selection[row]["generation"], "fd") for row in (better, worse))
    tokenizers = {reconstruction_run(r, experiment.rows[r]).ids["tokenizer_id"] for r in (better, worse)}
    bundles = experiment.bundles(better).items()
    shared = [b for axis, b in bundles if axis != item["axis"] and experiment.labels[axis][b]]  # the unlabelled: unsaid
    limit, grounds = item.get("costs_at_most"), (_floor(selection, better), _floor(selection, worse))
    effect = _effect(*runs, costs_at_most=limit, reasons=_unlike(*runs))
    return Comparison(
        claim=item["claim"],
        axis=item["axis"],
        better_row=better,
        worse_row=worse,
        others="/".join(shared) or item["axis"],
        costs_at_most=limit,
        effect=effect,
        above_floor=_above_floor(effect, runs, grounds, limit) if len(tokenizers) == 2 and all(grounds) else None,
        floors=tuple(metric_value(floor, "fd") if floor else math.nan for floor in grounds),
        same_tokenizer=len(tokenizers) == 1,
        paper_percent=_paper_percent(experiment, better, worse),
    )


def _floor(selection: Selection, row: str) -> Record | None:
    """The row's tokenizer alone, where it has a distance."""
    return next(iter(runs_with(selection[row]["reconstruction"], "fd").values()), None)


def effect_of(better: Runs, worse: Runs) -> Effect:
    """``paired_effect`` of the distances of two rows; not comparable where they were not measured alike."""
    return _effect(better, worse, reasons=_unlike(better, worse))


def _unlike(better: Runs, worse: Runs) -> list[str]:
    """Why two rows do not compare: of every pair of runs on common seeds, each reason once."""
    pairs = [(better[seed], worse[seed]) for seed in sorted(better.keys() & worse.keys())]
    return list(dict.fromkeys(reason for pair in pairs for reason in differences(*pair, "fd")))


def _above_floor(
    effect: Effect, runs: tuple[Runs, Runs], grounds: tuple[Record, Record], limit: float | None
) -> Effect:
    """The effect of the distances less their floors; runs and floor need the same extractor and reference."""
    if effect.verdict == INCOMPARABLE:
        return replace(effect, note="")  # whose reasons stand beside it
    pairs = [(run, floor) for side, floor in zip(runs, grounds) for run in side.values()]
    reasons = [reason for run, floor in pairs for reason in instrument_differences(run, floor, "fd")]
    floors = tuple(metric_value(floor, "fd") for floor in grounds)
    return _effect(*runs, *floors, costs_at_most=limit, reasons=list(dict.fromkeys(reasons)))


def _effect(
    better: Runs,
    worse: Runs,
    better_floor: float = 0.0,
    worse_floor: float = 0.0,
    costs_at_most: float | None = None,
    reasons: list[str] | None = None,
) -> Effect:
    """``paired_effect`` of the runs' distances; with ``reasons`` against it, no difference, interval or verdict."""
    values = [{seed: metric_value(run, "fd") for seed, run in side.items()} for side in (better, worse)]
    effect = paired_effect(*values, better_floor, worse_floor, costs_at_most)
    if not reasons:
        return effect
    nothing = {"percent": math.nan, "low": math.nan, "high": math.nan}
    return replace(effect, **nothing, verdict=INCOMPARABLE, note="; ".join(reasons))


def _pairs(experiment: Experiment, item: dict) -> list[tuple[str, str]]:
    """Rows (better, worse) that differ in the item's axis only, of those that the scale has."""
    for key in ("claim", "axis", "better", "worse"):
        if key not in item:
            raise UserError(f"{experiment.file}: orderings: {item} has no key '{key}'")
    axis = item["axis"]
    if axis not in experiment.labels:
        raise UserError(f"{experiment.file}: orderings: no axis '{axis}', {did_you_mean(axis, experiment.labels)}")
    for name in (item["better"], item["worse"]):
        if name not in experiment.labels[axis]:
            hint = did_you_mean(name, experiment.labels[axis])
            raise UserError(f"{experiment.file}: orderings: no bundle '{name}' on axis '{axis}', {hint}")
    pairs = []
    for row in experiment.rows:
        bundles = experiment.bundles(row)
        if bundles[axis] == item["better"]:
            pairs.append((row, "/".join({**bundles, axis: item["worse"]}.values())))
    return [pair for pair in pairs if pair[1] in experiment.rows]


def _paper_percent(experiment: Experiment, better: str, worse: str) -> float | None:
    b, w = (experiment.paper.get(row, {}).get("fd") for row in (better, worse))
    return None if b is None or not w else 100 * (b - w) / w


def paired_effect(
    better: SeedValues,
    worse: SeedValues,
    better_floor: float = 0.0,
    worse_floor: float = 0.0,
    costs_at_most: float | None = None,
) -> Effect:
    """Differences on common (training, sampling) seeds, averaged over sampling seeds inside a training seed.

    The t-interval is over training seeds, over sampling seeds where only one training is common, and takes the worse
    row's mean, which it is a share of, as given."""
    found = paired_difference(
        {seed: value - better_floor for seed, value in better.items()},
        {seed: value - worse_floor for seed, value in worse.items()},
    )
    means, counts = (found.first, found.second), {"seeds": found.trainings, "samplings": found.samplings}
    nothing = math.nan, math.nan
    if not found.trainings:
        return Effect(*means, math.nan, *nothing, **counts, verdict=UNDECIDED, note=NO_RUNS)
    if found.second == 0 or min(means) < 0:  # only above a floor: no share of nothing
        return Effect(*means, math.nan, *nothing, **counts, verdict=UNDECIDED, note=AT_FLOOR)
    change, low, high = (100 * value / found.second for value in (found.value, found.low, found.high))
    if found.over is None:
        return Effect(*means, change, *nothing, **counts, verdict=UNDECIDED, note=ONE_SEED)
    verdict = judge(change, low, high, costs_at_most)
    small = costs_at_most is None and abs(change) < MIN_EFFECT
    notes = [SAMPLING_ONLY] * (found.over == "sampling") + [BELOW] * small
    return Effect(*means, change, low, high, **counts, verdict=verdict, note=", ".join(notes))


def judge(
    change: float, low: float, high: float, costs_at_most: float | None = None, smallest: float = MIN_EFFECT
) -> str:
    """The verdict on a change in percent with its interval; ``costs_at_most`` is a share (0.10 for 10 %).

    A change below ``smallest`` decides nothing, whatever its interval. With that in another unit, all three may be."""
    if costs_at_most is not None:
        limit = 100 * costs_at_most
        return HOLDS if high <= limit else FAILS if low > limit else UNDECIDED
    if abs(change) < smallest or low <= 0 <= high:
        return UNDECIDED
    return HOLDS if change < 0 else FAILS


# --- Markdown -------------------------------------------------------------------------------------------


def markdown(experiment: Experiment, comparisons: list[Comparison]) -> str:
    """A table and a line of counts for every claim; empty where the experiment makes no claims."""
    claims = list(dict.fromkeys(c.claim for c in comparisons))
    if not claims:
        return ""
    parts = ["## What the paper claims, pair by pair", _how_to_read(experiment)]
    for claim in claims:
        chosen = [c for c in comparisons if c.claim == claim]
        cost = allowed(c.costs_at_most for c in chosen)
        title = f"### Claim: {claim}{f' ({cost})' if cost else ''}"
        parts += [title, pairs_table(experiment, chosen), _summary(chosen)]
        if not all(c.same_tokenizer for c in chosen):
            parts.append(_tokenizer_sentence(experiment, chosen))
    return "\n\n".join(parts)


def allowed(costs: Iterable[float | None]) -> str:
    """``at most 25 % worse``: the cost that a claim allows; empty where it allows none."""
    shares = dict.fromkeys(cost for cost in costs if cost is not None)
    return f"at most {' / '.join(percent(100 * cost, signed=False) for cost in shares)} worse" if shares else ""


def _how_to_read(experiment: Experiment) -> str:
    return "\n".join(
        [
            f"- The first two numbers of a line are {metric_title(experiment, 'fd')}, lower is better, over "
            "the seeds that both rows have.",
            "- Difference: of the first against the second, paired on those seeds, in percent of the second; "
            "negative: the first is better.",
            f"- Interval: {100 * CONFIDENCE:g} % t-interval over training seeds, of each pair alone (not "
            "corrected for the number of pairs). Where the rows have one training seed and several sampling seeds in "
            f"common, it is over the samplings of those two trainings; '{SAMPLING_ONLY}' says so, for the chance of "
            "training is not in it.",
            "- A claim holds, or does not hold, on a pair where the interval excludes 0 and the difference "
            f"is at least {MIN_EFFECT} %; a claim that allows a cost, where the whole interval lies below or "
            "above that cost. All else is undecided, a single run included.",
            "- Rows that were not measured alike are not compared, and the line says what differs.",
            "- Paper: the same difference between its FIDs, of one run each.",
        ]
    )


def pairs_table(experiment: Experiment, comparisons: list[Comparison]) -> str:
    """One line for each pair of a claim: means, difference, interval, seeds and verdict.

    The bundles head the columns; where a claim is of several pairs of them, each line names its own."""
    several = len({_bundles(experiment, c) for c in comparisons}) > 1
    sides = ("first", "second") if several else _bundles(experiment, comparisons[0])
    heading = ["pair" if several else "all else equal", *sides, "difference"]
    heading += [f"{100 * CONFIDENCE:g} % interval", "seeds", "verdict"]
    floors_shown = any(c.above_floor for c in comparisons)
    heading += ["above own floor"] * floors_shown + ["paper"]
    lines = []
    for c in comparisons:
        e = c.effect
        line = [
            _pair(experiment, c) if several else c.others,
            number(e.better),
            number(e.worse),
            percent(e.percent),
            interval_of(e),
        ]
        line += [seed_count(e.seeds, e.samplings), verdict_of(e), *[_above(c.above_floor)] * floors_shown]
        lines.append([*line, percent(c.paper_percent)])
    return markdown_table(heading, lines)


def _bundles(experiment: Experiment, c: Comparison) -> tuple[str, str]:
    """The bundles of the claim's axis: of the better row and of the worse one."""
    return experiment.bundles(c.better_row)[c.axis], experiment.bundles(c.worse_row)[c.axis]


def _pair(experiment: Experiment, c: Comparison) -> str:
    """``kl8 against kl16, guided``."""
    names = " against ".join(_bundles(experiment, c))
    return names if c.others == c.axis else f"{names}, {c.others}"


def interval_of(effect: Effect) -> str:
    return MISSING if math.isnan(effect.low) else f"{effect.low:+.1f} to {effect.high:+.1f} %"


def verdict_of(effect: Effect) -> str:
    """The verdict with the remarks to it."""
    if effect.verdict == INCOMPARABLE:
        return f"{INCOMPARABLE}: {effect.note}" if effect.note else INCOMPARABLE
    return f"{effect.verdict} ({effect.note})" if effect.note else effect.verdict


def _above(effect: Effect | None) -> str:
    if effect is None:
        return MISSING
    change = "" if math.isnan(effect.percent) else f"{percent(effect.percent)}, "
    return change + verdict_of(effect)


def _summary(comparisons: list[Comparison]) -> str:
    """The count of verdicts of one claim, and how often the paper's own numbers lie that way."""
    text = f"**{count([c.effect for c in comparisons])}.**"
    published = [(c.paper_percent, c.costs_at_most) for c in comparisons if c.paper_percent is not None]
    if published:
        agreeing = sum(p < 0 if limit is None else p <= 100 * limit for p, limit in published)
        way = allowed(limit for _, limit in published) or "in this direction"
        text += f" In the paper's numbers {agreeing} of {len(published)} are {way}."
    return text


def count(effects: list[Effect]) -> str:
    """``3 of 8 hold, 1 does not, 3 undecided, 1 not comparable (one seed: 2, sampling seeds only: 1)``."""
    verdicts = [e.verdict for e in effects]
    held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
    text = f"{held} of {len(effects)} {'holds' if held == 1 else 'hold'}, "
    text += f"{failed} {'does' if failed == 1 else 'do'} not, {verdicts.count(UNDECIDED)} undecided"
    if INCOMPARABLE in verdicts:
        text += f", {verdicts.count(INCOMPARABLE)} {INCOMPARABLE}"
    notes = [note for e in effects if e.note and e.verdict != INCOMPARABLE for note in e.note.split(", ")]
    counts = ", ".join(f"{note}: {notes.count(note)}" for note in dict.fromkeys(notes))
    return f"{text} ({counts})" if counts else text


def _tokenizer_sentence(experiment: Experiment, comparisons: list[Comparison]) -> str:
    """What a comparison across tokenizers cannot tell, and what is left of it above the floors."""
    axes = " and ".join(f"'{axis}'" for axis in dict.fromkeys(c.axis for c in comparisons))
    confound = f"The axis {axes} changes the tokenizer too, so these differences are of both together."
    known = [c for c in comparisons if c.above_floor]
    if not known:
        return f"{confound} The tokenizers' own floors were not measured."
    floors: dict[str, list[str]] = {}
    for side in (0, 1):
        for c in known:
            floors.setdefault(_bundles(experiment, c)[side], []).append(number(c.floors[side]))
    sides = listed([f"{' / '.join(dict.fromkeys(values))} ({bundle})" for bundle, values in floors.items()])
    above = [c.above_floor for c in known]
    return (
        f"{confound} Reconstruction alone has a distance of {sides}. "
        f"Above its own floor (distance less reconstruction distance): {count(above)}. A distance is not a "
        "sum of parts and the floors have no interval here, so this is a caution and not a correction."
    )
