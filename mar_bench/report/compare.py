"""Two sets of runs side by side, metric by metric: what ``mar-bench compare`` prints.

No claim is judged, so verdicts read "lower" and "higher"; which of the two is better depends on the metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mar_bench.records.comparable import differences
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, REAL_METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report.claims.orderings import verdict_of
from mar_bench.report.format import MISSING, markdown_table, percent, plus_minus, seed_count, signed
from mar_bench.report.frames import Runs, metric_value, runs_with, seeds, standard_error
from mar_bench.report.spread import Spread, design, spread
from mar_bench.report.stats import (
    CONFIDENCE,
    FAILS,
    HOLDS,
    JACKKNIFE,
    MIN_EFFECT,
    SAMPLING_ONLY,
    STANDARD_ERRORS,
    Difference,
    paired,
    unpaired,
)
from mar_bench.report.table.notes import jackknife_groups
from mar_bench.utils.errors import UserError

WORDS = {HOLDS: "lower", FAILS: "higher"}
DIFFERS = "differs"  # said of two single runs, whose interval excludes the variance of training
TITLES = {
    "generation": "Generated images",
    "reconstruction": "Reconstructions, the tokenizer alone",
    "evaluation": "Sets of images",
}


@dataclass(frozen=True)
class _Line:
    """A metric that both sides have, under the records' own name."""

    key: str
    sides: tuple[Spread, Spread]
    difference: Difference

    @property
    def verdict(self) -> str:
        word, found = WORDS.get(self.difference.verdict), self.difference
        if word is None:
            return verdict_of(found)
        word = DIFFERS if found.over == "images" else word
        return f"{word} ({', '.join(found.notes)})" if found.notes else word


def markdown(name_one: str, ones: list[Record], name_other: str, others: list[Record]) -> str:
    """Tables of the metrics that both have: of generated images, of reconstructions and of sets of images.

    Speed records are left out: they compare within one device only. Raises UserError where a side has two records with
    equal seeds, which cannot be paired."""
    names, both = (name_one, name_other), (ones, others)
    parts = [f"# {name_one} against {name_other}"]
    for task, title in TITLES.items():
        sides = _runs(name_one, ones, task), _runs(name_other, others, task)
        if sides[0] and {r.id for r in sides[0].values()} == {r.id for r in sides[1].values()}:
            parts += [f"## {title}", "The same records on both sides."]
        elif lines := _lines(*sides):
            heading = ["metric", *names, "difference", "in percent", "interval", "seeds", "verdict"]
            table = markdown_table(heading, [_cells(line) for line in lines])
            parts += [f"## {title}", table, _notes(lines, sides, names)]
    if len(parts) == 1:
        parts.append("There is no metric that both have.")
    for name, side in zip(names, both):
        if failed := sum(record.status == "failed" for record in side):
            parts.append(f"Left out: {failed} failed {'run' if failed == 1 else 'runs'} of {name}.")
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


def _lines(ones: Runs, others: Runs) -> list[_Line]:
    """One line for each common metric; metrics of real images only where they differ."""
    found = [(metric, _line(metric, ones, others)) for metric in [*GENERATION_METRICS, *REAL_METRICS]]
    return [line for metric, line in found if line and not (metric in REAL_METRICS and line.difference.value == 0)]


def _line(metric: str, ones: Runs, others: Runs) -> _Line | None:
    """None unless both sides have the metric in at least one run."""
    one, other = (runs_with(runs.values(), metric) for runs in (ones, others))
    if not one or not other:
        return None
    keys = dict.fromkeys(metric_name(metric, r.spec["metrics"]["extractor"]) for r in (*one.values(), *other.values()))
    spreads = _spread(one, metric), _spread(other, metric)
    min_effect = MIN_EFFECT if METRICS[metric].base == "fd" else 0.0  # for other metrics no bound is known
    if not (reasons := _unlike(one, other, metric)) and all(side.over == "images" for side in spreads):
        found = unpaired(*spreads, min_effect)  # two single runs need no common seed
    else:
        found = paired(_values(one, metric), _values(other, metric), min_effect, reasons=reasons)
    return _Line(" / ".join(keys), spreads, found)


def _values(runs: Runs, metric: str) -> dict[tuple[int, int], float]:
    return {seed: metric_value(record, metric) for seed, record in runs.items()}


def _spread(runs: Runs, metric: str) -> Spread:
    return spread(_values(runs, metric), {seed: standard_error(record, metric) for seed, record in runs.items()})


def _unlike(ones: Runs, others: Runs, metric: str) -> list[str]:
    """Why the two sides do not compare: from runs on common seeds, or from all where there are none."""
    common = sorted(ones.keys() & others.keys())
    pairs = [(ones[s], others[s]) for s in common] or [(a, b) for a in ones.values() for b in others.values()]
    reasons = [reason for pair in pairs for reason in differences(*pair, metric)]
    digests = [[(r.protocol.get("samples") or {}).get("sha256") for r in pair] for pair in pairs]
    if not reasons and metric not in REAL_METRICS and all(one == other is not None for one, other in digests):
        reasons = ["the same images on both sides"]
    return list(dict.fromkeys(reasons))


# --- Markdown -------------------------------------------------------------------------------------------


def _cells(line: _Line) -> list[str]:
    found = line.difference
    sides = [plus_minus(side.mean, side.sd) for side in line.sides]
    interval = MISSING if math.isnan(found.low) else f"{signed(found.low)} to {signed(found.high)}"
    counts = seed_count(found.trainings, found.samplings)
    return [line.key, *sides, signed(found.value), percent(found.percent[0]), interval, counts, line.verdict]


def _notes(lines: list[_Line], sides: tuple[Runs, Runs], names: tuple[str, str]) -> str:
    """How to read the table, as far as it applies."""
    over = {line.difference.over for line in lines if not math.isnan(line.difference.value)}
    texts = [
        f"{name}, {lines[0].key}: {design(side, jackknife_groups(list(runs.values())))}."
        for name, side, runs in zip(names, lines[0].sides, sides)
    ]
    texts.append(f"Difference: {names[0]} minus {names[1]}, paired on common (training, sampling) seeds.")
    texts.append(f"In percent: of {names[1]}.")
    if over & {"training", "sampling"}:
        texts.append(
            f"Interval: {100 * CONFIDENCE:g} % t-interval over common training seeds, for each metric alone; over "
            f"sampling seeds where one training is common ('{SAMPLING_ONLY}'), which excludes the variance of training."
        )
    if "images" in over:
        texts.append(
            f"Interval of two single runs ('{JACKKNIFE}'): ± {STANDARD_ERRORS} standard errors, combined in "
            "quadrature; excludes the variance of training and of sampling seeds."
        )
    texts.append(
        f"Lower, higher, {DIFFERS}: the interval excludes 0 and, for a distance, the difference is at least "
        f"{MIN_EFFECT} %."
    )
    return "\n".join(f"- {text}" for text in texts)
