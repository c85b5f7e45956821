"""The paper's conclusions as paired comparisons: two rows that differ along one axis, on common seeds.

A verdict counts, it does not wish: an interval that contains zero or a difference below MIN_EFFECT decides
nothing, and neither does a single training seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student

from mar_bench.config import Experiment
from mar_bench.errors import UserError, did_you_mean
from mar_bench.ids import reconstruction_run
from mar_bench.records import Record
from mar_bench.report.cells import SeedValues, collect, floor_of, floors, per_training_seed, seed_values
from mar_bench.report.wording import MISSING, markdown_table, metric_title, number, percent

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
MIN_EFFECT = 1.3  # percent; smaller differences of FID are inconclusive ("The FID Lottery", 2606.20536)
CONFIDENCE = 0.95
NO_RUNS, ONE_SEED, AT_FLOOR = "no common runs", "one seed", "a row at or below its floor"


@dataclass(frozen=True)
class Effect:
    """The change from ``worse`` to ``better`` in percent of the former's mean; claimed to be negative.

    ``percent``, ``low`` and ``high`` (the t-interval over training seeds) are NaN where they cannot be
    had; ``better`` and ``worse`` are means over the common seeds, ``seeds`` counts the training seeds."""

    better: float
    worse: float
    percent: float
    low: float
    high: float
    seeds: int
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """A claim's verdict on one pair of rows.

    ``above_floor`` compares the distances less each row's own reconstruction floor; None unless the pair's
    tokenizers differ and both floors are known. ``paper_percent`` is None where the paper has no numbers."""

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
    cells, floor_frame = collect(experiment, records), floors(experiment, records)
    comparisons = []
    for item in experiment.orderings:
        for better, worse in _pairs(experiment, item):
            values = seed_values(cells, better), seed_values(cells, worse)
            ground = floor_of(floor_frame, better), floor_of(floor_frame, worse)
            tokenizers = {reconstruction_run(r, experiment.rows[r]).ids["tokenizer_id"] for r in (better, worse)}
            limit = item.get("costs_at_most")
            known = len(tokenizers) == 2 and not any(math.isnan(g) for g in ground)
            shared = [b for axis, b in experiment.bundles(better).items() if axis != item["axis"]]
            comparisons.append(
                Comparison(
                    claim=item["claim"],
                    axis=item["axis"],
                    better_row=better,
                    worse_row=worse,
                    others="/".join(shared) or item["axis"],
                    costs_at_most=limit,
                    effect=paired_effect(*values, costs_at_most=limit),
                    above_floor=paired_effect(*values, *ground, costs_at_most=limit) if known else None,
                    floors=ground,
                    same_tokenizer=len(tokenizers) == 1,
                    paper_percent=_paper_percent(experiment, better, worse),
                )
            )
    return comparisons


def _pairs(experiment: Experiment, item: dict) -> list[tuple[str, str]]:
    """Rows (better, worse) that differ in the item's axis only."""
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
    return pairs


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
    """Differences on common (training, sampling) seeds, averaged over sampling seeds inside a training seed;
    the t-interval is over training seeds and takes the worse row's mean, which it is a share of, as given."""
    common = sorted(better.keys() & worse.keys())
    if not common:
        return Effect(*[math.nan] * 5, seeds=0, verdict=UNDECIDED, note=NO_RUNS)
    b = per_training_seed({seed: better[seed] - better_floor for seed in common})
    w = per_training_seed({seed: worse[seed] - worse_floor for seed in common})
    differences = [b[seed] - w[seed] for seed in b]
    base, n = mean(w.values()), len(differences)
    means = mean(b.values()), base
    if base == 0 or min(means) < 0:  # only above a floor: no share of nothing
        return Effect(*means, *[math.nan] * 3, seeds=n, verdict=UNDECIDED, note=AT_FLOOR)
    change = 100 * mean(differences) / base
    if n < 2:
        return Effect(*means, change, math.nan, math.nan, seeds=n, verdict=UNDECIDED, note=ONE_SEED)
    quantile = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1))
    half = 100 * quantile * stdev(differences) / math.sqrt(n) / base
    low, high = change - half, change + half
    return Effect(*means, change, low, high, seeds=n, verdict=judge(change, low, high, costs_at_most))


def judge(change: float, low: float, high: float, costs_at_most: float | None = None) -> str:
    """The verdict on a change in percent with its interval; ``costs_at_most`` is a share (0.10 for 10 %)."""
    if costs_at_most is not None:
        limit = 100 * costs_at_most
        return HOLDS if high <= limit else FAILS if low > limit else UNDECIDED
    if abs(change) < MIN_EFFECT or low <= 0 <= high:
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
        cost = chosen[0].costs_at_most
        allowed = "" if cost is None else f" (at most {percent(100 * cost, signed=False)})"
        parts += [f"### Claim: {claim}{allowed}", _table(experiment, chosen), _summary(chosen)]
        if not all(c.same_tokenizer for c in chosen):
            parts.append(_tokenizer_sentence(experiment, chosen))
    return "\n\n".join(parts)


def _how_to_read(experiment: Experiment) -> str:
    return "\n".join(
        [
            f"- The first two numbers of a line are {metric_title(experiment, 'fd')}, lower is better, over "
            "the seeds that both rows have.",
            "- Difference: of the first against the second, paired on those seeds, in percent of the second; "
            "negative: the first is better.",
            f"- Interval: {100 * CONFIDENCE:g} % t-interval over training seeds, of each pair alone (not "
            "corrected for the number of pairs).",
            "- A claim holds, or does not hold, on a pair where the interval excludes 0 and the difference "
            f"is at least {MIN_EFFECT} %; a claim that allows a cost, where the whole interval lies below or "
            "above that cost. All else is undecided, one training seed included.",
            "- Paper: the same difference between its FIDs, of one run each.",
        ]
    )


def _table(experiment: Experiment, comparisons: list[Comparison]) -> str:
    first = comparisons[0]
    better, worse = (_bundle(experiment, first.axis, row) for row in (first.better_row, first.worse_row))
    heading = ["all else equal", better, worse, "difference"]
    heading += [f"{100 * CONFIDENCE:g} % interval", "seeds", "verdict"]
    floors_shown = any(c.above_floor for c in comparisons)
    heading += ["above own floor"] * floors_shown + ["paper"]
    lines = []
    for c in comparisons:
        e = c.effect
        interval = MISSING if math.isnan(e.low) else f"{e.low:+.1f} to {e.high:+.1f} %"
        line = [c.others, number(e.better), number(e.worse), percent(e.percent), interval]
        line += [str(e.seeds), _verdict(e), *[_above(c.above_floor)] * floors_shown]
        lines.append([*line, percent(c.paper_percent)])
    return markdown_table(heading, lines)


def _bundle(experiment: Experiment, axis: str, row: str) -> str:
    return experiment.bundles(row)[axis]


def _verdict(effect: Effect) -> str:
    return f"{effect.verdict} ({effect.note})" if effect.note else effect.verdict


def _above(effect: Effect | None) -> str:
    if effect is None:
        return MISSING
    change = "" if math.isnan(effect.percent) else f"{percent(effect.percent)}, "
    return change + _verdict(effect)


def _summary(comparisons: list[Comparison]) -> str:
    """The count of verdicts of one claim, and how often the paper's own numbers lie that way."""
    limit = comparisons[0].costs_at_most
    text = f"**{count([c.effect for c in comparisons])}.**"
    published = [c.paper_percent for c in comparisons if c.paper_percent is not None]
    if published:
        agreeing = sum(p < 0 if limit is None else p <= 100 * limit for p in published)
        cost = limit and f"at a cost of at most {percent(100 * limit, signed=False)}"
        way = "in this direction" if limit is None else cost
        text += f" In the paper's numbers {agreeing} of {len(published)} are {way}."
    return text


def count(effects: list[Effect]) -> str:
    """``3 of 8 hold, 1 does not, 4 undecided (one seed: 2)``."""
    verdicts = [e.verdict for e in effects]
    held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
    text = f"{held} of {len(effects)} {'holds' if held == 1 else 'hold'}, "
    text += f"{failed} {'does' if failed == 1 else 'do'} not, {verdicts.count(UNDECIDED)} undecided"
    notes = [e.note for e in effects if e.note]
    counts = ", ".join(f"{note}: {notes.count(note)}" for note in dict.fromkeys(notes))
    return f"{text} ({counts})" if counts else text


def _tokenizer_sentence(experiment: Experiment, comparisons: list[Comparison]) -> str:
    """What a comparison across tokenizers cannot tell, and what is left of it above the floors."""
    first = comparisons[0]
    better, worse = (_bundle(experiment, first.axis, row) for row in (first.better_row, first.worse_row))
    confound = f"The axis '{first.axis}' changes the tokenizer too, so these differences are of both together."
    above = [c.above_floor for c in comparisons if c.above_floor]
    if not above:
        return f"{confound} The tokenizers' own floors were not measured."
    known = [c.floors for c in comparisons if c.above_floor]
    sides = [" / ".join(dict.fromkeys(number(pair[i]) for pair in known)) for i in (0, 1)]
    return (
        f"{confound} Reconstruction alone has a distance of {sides[0]} ({better}) and {sides[1]} ({worse}). "
        f"Above its own floor (distance less reconstruction distance): {count(above)}. A distance is not a "
        "sum of parts and the floors have no interval here, so this is a caution and not a correction."
    )
