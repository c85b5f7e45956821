"""Two sets of runs side by side, metric by metric: what ``mar-bench compare`` prints.

No claim is judged here, so the words are "lower" and "higher"; which of them is better depends on the metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mar_bench.records.comparable import differences
from mar_bench.records.metrics import GENERATION_METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report.claims.orderings import (
    BELOW,
    FAILS,
    HOLDS,
    INCOMPARABLE,
    MIN_EFFECT,
    NO_RUNS,
    ONE_SEED,
    SAMPLING_ONLY,
    UNDECIDED,
    judge,
)
from mar_bench.report.format import MISSING, markdown_table, percent, plus_minus, seed_count, signed
from mar_bench.report.frame import (
    REAL_ROLES,
    Runs,
    SeedValues,
    Spread,
    metric_value,
    runs_with,
    seeds,
    spread,
    standard_error,
)
from mar_bench.report.stats import CONFIDENCE, ERRORS_WIDE, Difference, paired_difference, unpaired_difference
from mar_bench.report.table.caption import design, jackknife_groups
from mar_bench.utils.errors import UserError

WORDS = {HOLDS: "lower", FAILS: "higher", UNDECIDED: UNDECIDED}
DIFFERS, JACKKNIFE, WITH_ZERO = "differs", "jackknife", "the interval contains 0"
TITLES = {
    "generation": "Generated images",
    "reconstruction": "Reconstructions, the tokenizer alone",
    "evaluation": "Sets of images",
}


@dataclass(frozen=True)
class _Line:
    """A metric that both sides have: ``difference`` is None where ``reasons`` speak against one."""

    key: str  # the record's own name of the metric
    sides: tuple[Spread, Spread]
    difference: Difference | None
    verdict: str
    reasons: list[str]


def markdown(name_one: str, ones: list[Record], name_other: str, others: list[Record]) -> str:
    """Tables of the metrics that both have, one for generated images and one for reconstructions.

    Records of speed are left out: they compare within one device only. Raises UserError where a side has two records
    with equal seeds, so that it is not clear which one to pair."""
    parts = [f"# {name_one} against {name_other}"]
    for task, title in TITLES.items():
        sides = _runs(name_one, ones, task), _runs(name_other, others, task)
        if sides[0] and {r.id for r in sides[0].values()} == {r.id for r in sides[1].values()}:
            parts += [f"## {title}", "The same records on both sides."]
        elif lines := _lines(*sides):
            table = _table(lines, name_one, name_other)
            parts += [f"## {title}", table, _notes(lines, sides, name_one, name_other)]
    failed = {name: sum(r.status == "failed" for r in side) for name, side in ((name_one, ones), (name_other, others))}
    parts += [f"Left out: {n} failed {'run' if n == 1 else 'runs'} of {name}." for name, n in failed.items() if n]
    if not any(part.startswith("## ") for part in parts):
        parts.append("There is no metric that both have.")
    return "\n\n".join(parts) + "\n"


def _runs(name: str, records: list[Record], task: str) -> Runs:
    """The done records of a task by their seeds."""
    runs: Runs = {}
    for record in records:
        if record.task == task and record.status == "done":
            first = runs.setdefault(seeds(record), record)
            if first.id != record.id:
                train, sampling = seeds(record)
                raise UserError(
                    f"{name}: records {first.id} and {record.id} both have training seed {train} and sampling seed "
                    f"{sampling}; compare one row with one row"
                )
    return runs


# --- one metric -----------------------------------------------------------------------------------------


def _lines(ones: Runs, others: Runs) -> list[_Line]:
    """Of real images, which no generator or tokenizer made, only what differs."""
    lines = [(metric, _line(metric, ones, others)) for metric in [*GENERATION_METRICS, *REAL_ROLES.values()]]
    real = set(REAL_ROLES.values())
    return [x for metric, x in lines if x and not (metric in real and x.difference and x.difference.value == 0)]


def _line(metric: str, ones: Runs, others: Runs) -> _Line | None:
    """None unless both sides have the metric in one run at least."""
    sides = [runs_with(runs.values(), metric) for runs in (ones, others)]
    if not all(sides):
        return None
    values = [{seed: metric_value(record, metric) for seed, record in runs.items()} for runs in sides]
    errors = [{seed: standard_error(record, metric) for seed, record in runs.items()} for runs in sides]
    spreads = tuple(spread(value, error) for value, error in zip(values, errors))
    keys = dict.fromkeys(metric_name(metric, r.spec["metrics"]["extractor"]) for runs in sides for r in runs.values())
    if reasons := _unlike(*sides, metric):
        return _Line(" / ".join(keys), spreads, None, INCOMPARABLE, reasons)
    difference = _difference(values, spreads)
    return _Line(" / ".join(keys), spreads, difference, _verdict(difference, metric), [])


def _unlike(ones: Runs, others: Runs, metric: str) -> list[str]:
    """Why the two sides do not compare: of runs on common seeds, or of all where there are none."""
    common = sorted(ones.keys() & others.keys())
    pairs = [(ones[s], others[s]) for s in common] or [(a, b) for a in ones.values() for b in others.values()]
    reasons = [reason for pair in pairs for reason in differences(*pair, metric)]
    images = [{(r.protocol.get("samples") or {}).get("sha256") for r in pair} for pair in pairs]
    if (
        not reasons
        and metric not in REAL_ROLES.values()
        and all(len(pair) == 1 and None not in pair for pair in images)
    ):
        reasons = ["the same images on both sides"]
    return list(dict.fromkeys(reasons))


def _difference(values: list[SeedValues], spreads: tuple[Spread, Spread]) -> Difference:
    """Paired on common seeds; of two single runs by the chance of their images, where both know it."""
    if all(side.over == "images" for side in spreads):
        return unpaired_difference(*spreads)
    return paired_difference(*values)


def _verdict(found: Difference, metric: str) -> str:
    """A word, and in brackets why there is no better one or what it does not cover."""
    if not found.trainings:
        return f"{UNDECIDED} ({NO_RUNS})"
    if found.over is None:
        return f"{UNDECIDED} ({ONE_SEED})"
    small = _smallest(found, metric)
    word = WORDS[judge(found.value, found.low, found.high, smallest=small)]
    notes = {"sampling": [SAMPLING_ONLY], "images": [JACKKNIFE]}.get(found.over, [])
    if word == UNDECIDED:
        notes = [*notes, BELOW if abs(found.value) < small else WITH_ZERO]
    elif found.over == "images":
        word = DIFFERS
    return f"{word} ({', '.join(notes)})" if notes else word


def _smallest(found: Difference, metric: str) -> float:
    """Of a distance 1.3 % decide nothing, whatever the interval; of other metrics no such bound is known."""
    return MIN_EFFECT / 100 * abs(found.second) if metric.partition(":")[0] == "fd" else 0.0


# --- Markdown -------------------------------------------------------------------------------------------


def _table(lines: list[_Line], name_one: str, name_other: str) -> str:
    heading = ["metric", name_one, name_other, "difference", "in percent", "interval", "seeds", "verdict"]
    return markdown_table(heading, [_cells(line) for line in lines])


def _cells(line: _Line) -> list[str]:
    sides = [plus_minus(side.mean, side.sd) for side in line.sides]
    found = line.difference
    if found is None:
        return [line.key, *sides, *[MISSING] * 4, f"{INCOMPARABLE}: {'; '.join(line.reasons)}"]
    interval = MISSING if math.isnan(found.low) else f"{signed(found.low)} to {signed(found.high)}"
    share = 100 * found.value / found.second if found.second > 0 else math.nan  # no share of nothing
    counts = seed_count(found.trainings, found.samplings)
    return [line.key, *sides, signed(found.value), percent(share), interval, counts, line.verdict]


def _notes(lines: list[_Line], sides: tuple[Runs, Runs], name_one: str, name_other: str) -> str:
    """How to read the table; what it does not contain is not explained."""
    over = {line.difference.over for line in lines if line.difference}
    texts = [
        f"{name}, {lines[0].key}: {design(side, jackknife_groups(runs.values()))}."
        for name, side, runs in zip((name_one, name_other), lines[0].sides, sides)
    ]
    texts.append(
        f"Difference: {name_one} less {name_other}, paired on the (training, sampling) seeds that both have, and in "
        f"percent of {name_other}."
    )
    if over & {"training", "sampling"}:
        texts.append(
            f"Interval: {100 * CONFIDENCE:g} % t-interval over common training seeds, of each metric alone; over the "
            f"samplings where one training is common ('{SAMPLING_ONLY}'), and then the chance of training is not in it."
        )
    if "images" in over:
        texts.append(
            f"Interval of two single runs ('{JACKKNIFE}'): ± {ERRORS_WIDE} standard errors, those of the two added in "
            "squares; the chance of training and of sampling seeds is not in it."
        )
    texts.append(
        f"Lower, higher, {DIFFERS}: the interval excludes 0 and, for a distance, the difference is at least "
        f"{MIN_EFFECT} %."
    )
    return "\n".join(f"- {text}" for text in texts)
