"""Warnings above a table: numbers that are not comparable, repeated images, singular covariances, failed runs."""

from __future__ import annotations

from mar_bench.records.comparable import differences, instrument_differences
from mar_bench.records.metrics import GENERATION_METRICS
from mar_bench.records.record import Record
from mar_bench.report.format import metric_title
from mar_bench.report.frames import seeds
from mar_bench.report.table.measured import Measured

ERROR_LENGTH = 160
Placed = tuple[str, Record]  # a row, and a record of it
UNLIKE = "**Warning: measured differently, do not compare.**"


def warnings(found: Measured) -> list[str]:
    """One line for everything that makes numbers of the table mean less than they seem to."""
    lines = [*_unlike(found), *_unlike_reconstructions(found)]
    if " / " in (names := metric_title(found.experiment, "fd")):
        lines.append(f"**Warning: the rows have different distances**: {names}.")
    placed = found.done("generation", metric="fd")
    copies = [(row, (r.protocol.get("samples") or {}).get("duplicates"), r.protocol) for row, r in placed]
    if words := [f"{row} ({n} of {protocol.get('num_generated')})" for row, n, protocol in copies if n]:
        lines.append(f"**Warning: repeated images.** Runs with images that are copies of another: {', '.join(words)}.")
    if singular := [(row, record) for row, record in placed if record.protocol.get("singular")]:
        lines.append(
            "**Warning: fewer images than features.** The covariance is singular and "
            f"{metric_title(found.experiment, 'fd', named=False)} means little in {_where(singular, placed)}."
        )
    return lines


def _unlike(found: Measured) -> list[str]:
    """Runs measured differently from most: one line for all metrics with the same rows and reasons."""
    names: dict[tuple[str, str], list[str]] = {}
    for task, metrics in (("generation", GENERATION_METRICS), ("reconstruction", ("fd",))):
        for metric in metrics:
            name = metric_title(found.experiment, metric, named=False) if task == "generation" else task
            for where, reasons in _minorities(found.done(task, metric=metric), metric):
                names.setdefault((where, reasons), []).append(name)
    return [f"{UNLIKE} {', '.join(of)} of {where}: {reasons}." for (where, reasons), of in names.items()]


def _minorities(placed: list[Placed], metric: str) -> list[tuple[str, str]]:
    """Groups of runs measured alike, except the largest: where they are and how they differ from the largest."""
    groups: list[list[Placed]] = []
    for row, record in placed:
        alike = (group for group in groups if not differences(group[0][1], record, metric))
        if (group := next(alike, None)) is None:
            groups.append(group := [])
        group.append((row, record))
    usual = max(groups, key=len, default=[])
    others = [group for group in groups if group is not usual]
    return [(_where(group, placed), "; ".join(differences(group[0][1], usual[0][1], metric))) for group in others]


def _where(some: list[Placed], every: list[Placed]) -> str:
    """``mar/ce/guided, mar/diff/guided (1 of 3 runs)``."""
    named, total = [row for row, _ in some], [row for row, _ in every]
    return ", ".join(
        row if named.count(row) == total.count(row) else f"{row} ({named.count(row)} of {total.count(row)} runs)"
        for row in dict.fromkeys(named)
    )


def _unlike_reconstructions(found: Measured) -> list[str]:
    """Rows whose tokenizer was measured differently from their samples."""
    rows: dict[str, list[str]] = {}
    runs = found.done("generation", metric="fd")
    for row, floor in found.done("reconstruction", metric="fd"):
        reasons = (x for of, run in runs if of == row for x in instrument_differences(run, floor, "fd"))
        for reason in dict.fromkeys(reasons):
            rows.setdefault(reason, []).append(row)
    return [f"{UNLIKE} Samples against reconstruction of {', '.join(at)}: {why}." for why, at in rows.items()]


def failures(found: Measured) -> list[str]:
    """One line per failed generation run: row, seeds and the first line of the error, as Markdown code."""
    lines = []
    for row, record in ((row, record) for row, tasks in found.selection.items() for record in tasks["generation"]):
        if record.status == "failed":
            error = (record.error or "").strip().partition("\n")[0].replace("`", "'") or "no error was recorded"
            train, sampling = seeds(record)
            lines.append(f"{row}, training seed {train}, sampling seed {sampling}: `{error[:ERROR_LENGTH]}`")
    return lines
