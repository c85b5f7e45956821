"""Published rows of systems that the suite does not measure."""

from __future__ import annotations

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import PUBLISHED
from mar_bench.records.paper import PublishedRow
from mar_bench.report.format import (
    MISSING,
    NAMES,
    PAPER_NAMES,
    column_axes,
    column_words,
    count_of,
    lines_and_columns,
    markdown_table,
    paper_number,
)
from mar_bench.report.table.grid import COUNTS

TITLES = {**PAPER_NAMES, **NAMES, **COUNTS, "rfd": "rFID", "seconds_per_image": "seconds per image"}


def markdown(experiment: Experiment) -> str:
    """A table of them under its heading; empty where there are none."""
    rows = experiment.quoted
    if not rows:
        return ""
    places = [
        (column, metric)
        for column in _columns(experiment, rows)
        for metric in PUBLISHED
        if metric in TITLES and any(quoted_text(row, column, metric) for row in rows)
    ]
    heading = ["system", *(_title(experiment, column, metric) for column, metric in places)]
    lines = [[row.label, *(quoted_text(row, column, metric) or MISSING for column, metric in places)] for row in rows]
    sources = "; ".join(dict.fromkeys(row.source for row in rows if row.source))
    of = f" ({sources})" if sources else ""
    return f"Quoted from the paper{of}, not measured here:\n\n{markdown_table(heading, lines)}"


def _columns(experiment: Experiment, rows: list[PublishedRow]) -> list[str]:
    """What is of the rows themselves, the columns of the experiment's table, then any others."""
    ours = ["/".join(column) for column in lines_and_columns(experiment)[1]]
    return list(dict.fromkeys(["", *ours, *(column for row in rows for column in row.numbers)]))


def _title(experiment: Experiment, column: str, metric: str) -> str:
    words = column
    if column_axes(experiment) and tuple(column.split("/")) in lines_and_columns(experiment)[1]:
        words = column_words(experiment, tuple(column.split("/")))
    return ", ".join(word for word in (TITLES[metric], words) if word)


def quoted_text(row: PublishedRow, column: str, metric: str) -> str:
    """A published number as the paper writes it, ``> 100`` where it gives a bound; empty where it gives none."""
    numbers = row.numbers.get(column, {})
    value = numbers.get(metric)
    if value is None:
        bound = numbers.get(f"{metric}_above")
        return "" if bound is None else f"> {bound:g}"
    return count_of(value) if metric in COUNTS else paper_number("fd" if metric == "rfd" else metric, value)
