"""Warnings above a table: numbers that are not comparable, repeated images, singular covariances, failed runs."""

from __future__ import annotations

from mar_bench.records.comparable import differences, instrument_differences
from mar_bench.records.metrics import GENERATION_METRICS
from mar_bench.records.record import Record
from mar_bench.report.format import metric_title
from mar_bench.report.frames import seeds
from mar_bench.report.show_record import weaknesses
from mar_bench.report.table.measured import Measured

ERROR_LENGTH = 160
Placed = tuple[str, Record]  # a row, and a record of it
UNLIKE = "**Warning: measured differently, do not compare.**"


def warnings(found: Measured) -> list[str]:
    """One line for everything that makes numbers of the table mean less than they seem to."""
    unlike: dict[str, list[str]] = {}  # where and how -> metrics
    for task, metrics in (("generation", GENERATION_METRICS), ("reconstruction", ("fd",))):
        for metric in metrics:
            name = metric_title(found.experiment, metric, named=False) if task == "generation" else task
            for words in _minorities(found.done(task, metric=metric), metric):
                unlike.setdefault(words, []).append(name)
    floors: dict[str, list[str]] = {}  # how -> rows
    placed = found.done("generation", metric="fd")
    for row, floor in found.done("reconstruction", metric="fd"):
        reasons = (reason for of, run in placed if of == row for reason in instrument_differences(run, floor, "fd"))
        for reason in dict.fromkeys(reasons):
            floors.setdefault(reason, []).append(row)
    lines = [f"{UNLIKE} {', '.join(metrics)} of {words}." for words, metrics in unlike.items()]
    lines += [f"{UNLIKE} Samples against reconstruction of {', '.join(rows)}: {how}." for how, rows in floors.items()]
    if " / " in (names := metric_title(found.experiment, "fd")):
        lines.append(f"**Warning: the rows have different distances**: {names}.")
    weak: dict[str, list[Placed]] = {}
    for row, record in placed:
        for weakness in weaknesses(record.protocol).values():
            weak.setdefault(weakness, []).append((row, record))
    lines += [f"**Warning: {weakness}.** In {_where(some, placed)}." for weakness, some in weak.items()]
    return lines


def _minorities(placed: list[Placed], metric: str) -> list[str]:
    """Where runs were measured differently from the largest group of runs measured alike, and how."""
    groups: list[list[Placed]] = []
    for one in placed:
        group = next((group for group in groups if not differences(group[0][1], one[1], metric)), None)
        if group is None:
            groups.append(group := [])
        group.append(one)
    groups.sort(key=len, reverse=True)
    reasons = ["; ".join(differences(group[0][1], groups[0][0][1], metric)) for group in groups]
    return [f"{_where(group, placed)}: {why}" for group, why in zip(groups[1:], reasons[1:])]


def _where(some: list[Placed], every: list[Placed]) -> str:
    """``mar/ce/guided, mar/diff/guided (1 of 3 runs)``."""
    named, total = [row for row, _ in some], [row for row, _ in every]
    counts = {row: (named.count(row), total.count(row)) for row in named}
    return ", ".join(row if n == of else f"{row} ({n} of {of} runs)" for row, (n, of) in counts.items())


def failures(found: Measured) -> list[str]:
    """One line per failed generation run: row, seeds and the first line of the error, as Markdown code."""
    lines = []
    for row, record in ((row, record) for row, tasks in found.selection.items() for record in tasks["generation"]):
        if record.status == "failed":
            error = (record.error or "no error was recorded").strip().partition("\n")[0].replace("`", "'")
            train, sampling = seeds(record)
            lines.append(f"{row}, training seed {train}, sampling seed {sampling}: `{error[:ERROR_LENGTH]}`")
    return lines
