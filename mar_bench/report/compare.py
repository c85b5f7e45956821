"""Two sets of runs side by side, metric by metric: what ``mar-bench compare`` prints.

No claim is judged, so verdicts read "lower" and "higher"; which of the two is better depends on the metric."""

from __future__ import annotations

import math
from dataclasses import replace

from mar_bench.records.comparable import differences
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, REAL_METRICS, metric_name
from mar_bench.records.record import Record
from mar_bench.report.format import MISSING, markdown_table, percent, plus_minus, signed
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
DIFFERS = "differs"  # of two single runs, whose interval excludes the variance of training
TITLES = {
    "generation": "Generated images",
    "reconstruction": "Reconstructions, the tokenizer alone",
    "evaluation": "Sets of images",
}
HEADING = ["difference", "in percent", "interval", "seeds", "verdict"]
NOTES = {  # what the interval is over -> how to read it
    "training": f"Interval: {100 * CONFIDENCE:g} % t-interval over common training seeds, for each metric alone.",
    "sampling": f"Interval where one training is common ('{SAMPLING_ONLY}'): {100 * CONFIDENCE:g} % t-interval over "
    "its sampling seeds, which excludes the variance of training.",
    "images": f"Interval of two single runs ('{JACKKNIFE}'): ± {STANDARD_ERRORS} standard errors, combined in "
    "quadrature; excludes the variance of training and of sampling seeds.",
}


def markdown(name_one: str, ones: list[Record], name_other: str, others: list[Record]) -> str:
    """Tables of the metrics that both have: of generated images, of reconstructions and of sets of images.

    Speed records are left out: they compare within one device only. Raises UserError where a side has two records with
    equal seeds, which cannot be paired."""
    parts = [f"# {name_one} against {name_other}"]
    for task, title in TITLES.items():
        one, other = _runs(name_one, ones, task), _runs(name_other, others, task)
        if one and {r.id for r in one.values()} == {r.id for r in other.values()}:
            parts += [f"## {title}", "The same records on both sides."]
            continue
        lines, notes = [], {}
        for metric in (*GENERATION_METRICS, *REAL_METRICS):
            left, right = runs_with(one.values(), metric), runs_with(other.values(), metric)
            if not left or not right:
                continue
            sides, found = (_spread(left, metric), _spread(right, metric)), _difference(left, right, metric)
            if metric in REAL_METRICS and found.value == 0:
                continue  # both describe the same real images
            lines.append(_cells(metric, left, right, sides, found))
            if len(lines) == 1:
                key, groups = lines[0][0], (jackknife_groups(one.values()), jackknife_groups(other.values()))
                designs = [design(side, of) for side, of in zip(sides, groups)]
            if not math.isnan(found.value) and found.over:
                notes[found.over] = NOTES[found.over]
        if lines:
            texts = [
                *(f"{name}, {key}: {text}." for name, text in zip((name_one, name_other), designs)),
                f"Difference: {name_one} minus {name_other}, paired on common (training, sampling) seeds; in percent "
                f"of {name_other}.",
                *notes.values(),
                f"Lower, higher, {DIFFERS}: the interval excludes 0 and, for a distance, the difference is at least "
                f"{MIN_EFFECT} %.",
            ]
            table = markdown_table(["metric", name_one, name_other, *HEADING], lines)
            parts += [f"## {title}", table, "\n".join(f"- {text}" for text in texts)]
    if len(parts) == 1:
        parts.append("There is no metric that both have.")
    for name, side in ((name_one, ones), (name_other, others)):
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
                raise UserError(
                    f"{name}: records {first.id} and {record.id} have the same (training, sampling) seeds "
                    f"{seeds(record)}; compare one row with one row"
                )
    return runs


def _values(runs: Runs, metric: str) -> dict[tuple[int, int], float]:
    return {seed: metric_value(record, metric) for seed, record in runs.items()}


def _spread(runs: Runs, metric: str) -> Spread:
    return spread(_values(runs, metric), {seed: standard_error(record, metric) for seed, record in runs.items()})


def _difference(one: Runs, other: Runs, metric: str) -> Difference:
    min_effect = MIN_EFFECT if METRICS[metric].base == "fd" else 0.0  # for other metrics no bound is known
    sides, reasons = (_spread(one, metric), _spread(other, metric)), _unlike(one, other, metric)
    if not reasons and all(side.over == "images" for side in sides):
        return unpaired(*sides, min_effect)  # two single runs need no common seed
    return paired(_values(one, metric), _values(other, metric), min_effect, reasons=reasons)


def _unlike(ones: Runs, others: Runs, metric: str) -> list[str]:
    """Why the two sides do not compare: from runs on common seeds, or from all where there are none."""
    common = sorted(ones.keys() & others.keys())
    pairs = [(ones[s], others[s]) for s in common] or [(a, b) for a in ones.values() for b in others.values()]
    reasons = [reason for pair in pairs for reason in differences(*pair, metric)]
    digests = [[(r.protocol.get("samples") or {}).get("sha256") for r in pair] for pair in pairs]
    if not reasons and metric not in REAL_METRICS and all(one == other is not None for one, other in digests):
        reasons = ["the same images on both sides"]
    return list(dict.fromkeys(reasons))


def _cells(metric: str, one: Runs, other: Runs, sides: tuple[Spread, Spread], found: Difference) -> list[str]:
    keys = dict.fromkeys(metric_name(metric, r.spec["metrics"]["extractor"]) for r in (*one.values(), *other.values()))
    interval = MISSING if math.isnan(found.low) else f"{signed(found.low)} to {signed(found.high)}"
    word = WORDS.get(found.verdict)
    if word and found.over == "images":
        word = DIFFERS
    verdict = replace(found, verdict=word).words if word else found.words
    means = [plus_minus(side.mean, side.sd) for side in sides]
    return [" / ".join(keys), *means, signed(found.value), percent(found.percent[0]), interval, found.seeds, verdict]
