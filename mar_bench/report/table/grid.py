"""The main table as a grid of cells, before it is Markdown or LaTeX: ours and the paper's of every place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mar_bench.report.format import (
    FAILED,
    MISSING,
    axis_labels,
    column_words,
    count_of,
    in_paper,
    line_key,
    lines_and_columns,
    metric_number,
    metric_short,
    number,
    paper_number,
    published_text,
    row_at,
    row_axes,
    with_unit,
)
from mar_bench.report.table.caption import floor_name
from mar_bench.report.table.data import Measured

PARTLY = "†"  # some runs of the cell failed
COUNTS = {"parameters": "parameters", "head_parameters": "head parameters"}


@dataclass(frozen=True)
class Column:
    """``metric`` is a metric, or the name of what a line has once (checks.BESIDE) where ``once``."""

    title: str
    metric: str
    column: tuple[str, ...] = ()  # the bundles of the column axes
    words: str = ""  # and what they are called
    once: bool = False
    published: bool = False  # whether the paper has such numbers


@dataclass(frozen=True)
class Cell:
    """What a place shows; ``published`` is None where its column has no published numbers, ``value`` the mean."""

    ours: str
    published: str | None = None
    value: float = math.nan


@dataclass(frozen=True)
class Line:
    labels: dict[str, str]
    cells: list[Cell]


@dataclass(frozen=True)
class Grid:
    names: list[str]  # of the labels
    columns: list[Column]
    lines: list[Line]


def grid(table: Measured) -> Grid:
    """Labels, what a line has once, then the metrics of every column; lines that the scale has not, too."""
    experiment = table.experiment
    lines, columns = lines_and_columns(experiment)
    places = [_once(table, name) for name in experiment.layout.get("beside", [])]
    for column in columns:
        for metric in experiment.layout.get("metrics", ["fd"]):
            title = with_unit(experiment, metric_short(experiment, metric), metric)
            words = column_words(experiment, column)
            places.append(Column(title, metric, column, words, published=in_paper(experiment, metric)))
    out = []
    for line in lines:
        labels = axis_labels(experiment, row_at(experiment, line, columns[0]), row_axes(experiment))
        out.append(Line(labels, [_place(table, line, place) for place in places]))
    names = list(dict.fromkeys(name for line in out for name in line.labels))
    return Grid(names, places, out)


def ours(table: Measured, row: str, metric: str) -> str:
    """``5.41 ± 0.12``, or why there is no number."""
    found = table.spread(row, metric.replace(":", "_"))
    if not found.n:
        return FAILED if table.status(row) == "failed" else MISSING
    text = metric_number(table.experiment, metric, found.mean, found.sd)
    statuses = table.cells.loc[table.cells["row"] == row, "status"]
    return f"{text} {PARTLY}" if "failed" in set(statuses) else text


def _once(table: Measured, name: str) -> Column:
    titles = {
        **COUNTS,
        "rfd": f"reconstruction {floor_name(table.experiment, table.floors)}",
        "seconds_per_image": "seconds per image",
    }
    return Column(titles[name], name, once=True, published=in_paper(table.experiment, name))


def _place(table: Measured, line: tuple[str, ...], place: Column) -> Cell:
    experiment = table.experiment
    if place.once:
        value = table.beside(line, place.metric)
        return Cell(once_text(place.metric, value), _published_once(table, line, place), value)
    row = row_at(experiment, line, place.column)
    published = published_text(experiment, row, place.metric)
    if row in experiment.absent:  # said once a row
        first = place.metric == experiment.layout.get("metrics", ["fd"])[0]
        return Cell(experiment.absent[row] if first else MISSING, published)
    return Cell(ours(table, row, place.metric), published, table.spread(row, place.metric.replace(":", "_")).mean)


def once_text(name: str, value: float) -> str:
    return count_of(value) if name in COUNTS else number(value)


def _published_once(table: Measured, line: tuple[str, ...], place: Column) -> str | None:
    """The paper's number of the line, or of any of its rows."""
    if not place.published:
        return None
    experiment = table.experiment
    rows = [row_at(experiment, line, column) for column in lines_and_columns(experiment)[1]]
    for key in (line_key(experiment, rows[0]), *rows):
        if (value := experiment.paper.get(key, {}).get(place.metric)) is not None:
            return count_of(value) if place.metric in COUNTS else paper_number(place.metric, value)
    return MISSING
