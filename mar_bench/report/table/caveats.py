"""What a table's reader must be warned of: numbers that do not compare, samples that repeat, runs that failed."""

from __future__ import annotations

import math

from mar_bench.config.experiment import Experiment
from mar_bench.records.comparable import differences, instrument_differences
from mar_bench.records.record import Record
from mar_bench.report.format import metric_key, metric_short
from mar_bench.report.frame import Selection, metric_value, roles, seeds

ERROR_LENGTH = 160
Placed = tuple[str, Record]  # a row, and a record of it
UNLIKE = "**Warning: not measured alike, do not compare.**"


def warnings(experiment: Experiment, selection: Selection) -> list[str]:
    """One line for each thing that makes numbers of the table mean less than they seem to."""
    lines = [*_unlike(experiment, selection), *_unlike_floors(selection)]
    if "/" in (name := metric_key(experiment, "fd")):
        lines.append(f"**Warning: the rows have different distances**: {name}.")
    return lines + _copies(selection) + _singular(experiment, selection)


def _unlike(experiment: Experiment, selection: Selection) -> list[str]:
    """One line for all metrics of the same rows that the same reasons keep from being compared with the rest."""
    said: dict[tuple[str, str], list[str]] = {}
    for task, metrics in (("generation", roles(experiment).values()), ("reconstruction", ["fd"])):
        for metric in metrics:
            name = metric_short(experiment, metric) if task == "generation" else "reconstruction"
            for where, reasons in _minorities(selection, task, metric):
                said.setdefault((where, reasons), []).append(name)
    return [f"{UNLIKE} {', '.join(names)} of {where}: {reasons}." for (where, reasons), names in said.items()]


def _minorities(selection: Selection, task: str, metric: str) -> list[tuple[str, str]]:
    """Groups of runs measured alike among themselves: where they are and how they differ from the largest group."""
    groups: list[list[Placed]] = []
    for row, record in _measured(selection, task, metric):
        alike = (group for group in groups if not differences(group[0][1], record, metric))
        if (group := next(alike, None)) is None:
            groups.append(group := [])
        group.append((row, record))
    usual = max(groups, key=len, default=[])
    every = [placed for group in groups for placed in group]
    return [
        (_where(group, every), "; ".join(differences(group[0][1], usual[0][1], metric)))
        for group in groups
        if group is not usual
    ]


def _measured(selection: Selection, task: str, metric: str) -> list[Placed]:
    """The done records that have a number."""
    placed = [(row, record) for row, tasks in selection.items() for record in tasks[task]]
    return [(row, r) for row, r in placed if r.status == "done" and not math.isnan(metric_value(r, metric))]


def _where(some: list[Placed], every: list[Placed]) -> str:
    """``mar/ce/guided, mar/diff/guided (1 of 3 runs)``."""
    named, total = [row for row, _ in some], [row for row, _ in every]
    return ", ".join(
        row if (n := named.count(row)) == (all_of := total.count(row)) else f"{row} ({n} of {all_of} runs)"
        for row in dict.fromkeys(named)
    )


def _unlike_floors(selection: Selection) -> list[str]:
    """Rows whose tokenizer was measured alone otherwise than the row itself."""
    rows: dict[str, list[str]] = {}
    for row, floor in _measured(selection, "reconstruction", "fd"):
        runs = [record for _, record in _measured({row: selection[row]}, "generation", "fd")]
        for reason in dict.fromkeys(x for run in runs for x in instrument_differences(run, floor, "fd")):
            rows.setdefault(reason, []).append(row)
    return [f"{UNLIKE} Samples against reconstruction of {', '.join(at)}: {why}." for why, at in rows.items()]


def _copies(selection: Selection) -> list[str]:
    """Rows in which an image was generated more than once; of a row's runs the worst."""
    said = []
    for row, tasks in selection.items():
        done = [r for r in tasks["generation"] if r.status == "done"]
        copies = [((r.protocol.get("samples") or {}).get("duplicates") or 0, r) for r in done]
        count, record = max(copies, key=lambda pair: pair[0], default=(0, None))
        if count:
            of_runs = f" (the worst of {len(done)} runs)" if len(done) > 1 else ""
            said.append(f"{count} of {record.protocol.get('num_generated')} images of {row}{of_runs}")
    return [f"**Warning: repeated images.** {'; '.join(said)} are copies of another one."] if said else []


def _singular(experiment: Experiment, selection: Selection) -> list[str]:
    """Rows whose distance is of fewer images than there are features."""
    placed = _measured(selection, "generation", "fd")
    singular = [(row, record) for row, record in placed if record.protocol.get("singular")]
    if not singular:
        return []
    name = metric_short(experiment, "fd")
    return [
        f"**Warning: fewer images than features**: the covariance is singular and {name} says little in "
        f"{_where(singular, placed)}."
    ]


def failures(selection: Selection) -> list[str]:
    """One line for each failed generation run: row, seeds and the error's first line, as code for GitHub."""
    lines = []
    for row, tasks in selection.items():
        for record in tasks["generation"]:
            if record.status == "failed":
                error = next(iter((record.error or "").strip().splitlines()), "no error was recorded")
                error = error[:ERROR_LENGTH].replace("`", "'")
                train, sampling = seeds(record)
                lines.append(f"{row}, training seed {train}, sampling seed {sampling}: `{error}`")
    return lines
