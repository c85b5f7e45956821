"""Tables as data: columns and lines of cells. Templates only lay them out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, ONCE_METRICS, PUBLISHED
from mar_bench.report import format as fmt
from mar_bench.report.table.measured import Measured
from mar_bench.report.verdict import NOT_COMPARABLE, agreement

QUOTED = "Quoted from the paper"
PARTLY = "†"  # some runs of the cell failed
FURTHER = ("rfd", "fd:heldout", "kid", "precision", "recall", "copied", "accuracy")  # shown below the main table


@dataclass(frozen=True)
class Column:
    """``group`` names the bundles of the column axes (``with CFG``), ``published`` whether cells show the paper's."""

    title: str
    group: str = ""
    published: bool = False
    metric: str = ""
    bundles: list[tuple[str, ...]] = field(default_factory=list)  # of the column axes, for each row behind a cell

    def __str__(self) -> str:
        """``FD-1k, without CFG (paper)``."""
        text = ", ".join(filter(None, (self.title, self.group)))
        return f"{text} (paper)" if self.published else text


@dataclass(frozen=True)
class Cell:
    """``published`` is None if the column has no published numbers; ``best`` marks the best of our column."""

    text: str
    published: str | None = None
    value: float = math.nan
    best: bool = False

    def __str__(self) -> str:
        """``5.41 ± 0.12 (19.58)``."""
        return self.text if self.published is None else f"{self.text} ({self.published})"


@dataclass(frozen=True)
class Grid:
    """Lines of labels and cells under ``labels`` and ``columns``."""

    labels: list[str]
    columns: list[Column]
    lines: list[tuple[list[str], list[Cell]]]
    intro: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Consecutive columns of one group: its name and their number."""
        return [(group, len(list(same))) for group, same in itertools.groupby(c.group for c in self.columns)]

    def markdown(self) -> str:
        heading = [*self.labels, *map(str, self.columns)]
        table = fmt.markdown_table(heading, [[*labels, *map(str, cells)] for labels, cells in self.lines])
        return f"{self.intro}\n\n{table}" if self.intro else table


def main_grid(found: Measured) -> Grid:
    """The paper's table: what a line has once, then the metrics of every column; absent rows too."""
    experiment, layout = found.experiment, found.experiment.layout
    lines, bundles = fmt.lines_and_columns(experiment)
    columns = []
    for metric in layout.get("beside", []):
        columns.append(Column(_title(found, metric), "", fmt.in_paper(experiment, metric), metric, bundles))
    for column, metric in itertools.product(bundles, layout.get("metrics", ["fd"])):
        group, published = fmt.column_words(experiment, column), fmt.in_paper(experiment, metric)
        columns.append(Column(_title(found, metric), group, published, metric, [column]))
    axes, first = fmt.row_axes(experiment), [fmt.row_at(experiment, line, bundles[0]) for line in lines]
    labels = [fmt.axis_labels(experiment, row, axes) for row in first]
    names = list(dict.fromkeys(name for of_line in labels for name in of_line)) or [""]
    by_column = [_with_best(experiment, c, [_cell(found, line, c) for line in lines]) for c in columns]
    cells = [[of_column[i] for of_column in by_column] for i in range(len(lines))]
    return Grid(names, columns, [([of.get(name, "") for name in names], line) for of, line in zip(labels, cells)])


def further_grids(found: Measured) -> Iterator[Grid]:
    """For each column of the main table, what was measured beside the paper's metrics."""
    experiment, layout = found.experiment, found.experiment.layout
    lines, bundles = fmt.lines_and_columns(experiment)
    shown = {*layout.get("metrics", ["fd"]), *layout.get("beside", [])}
    measured = {*found.spreads, *((row, "rfd") for row in found.once("rfd"))}
    for column in bundles:
        rows = {line: row for line in lines if (row := fmt.row_at(experiment, line, column)) in experiment.rows}
        new = (m for m in FURTHER if m not in shown and any((row, m) in measured for row in rows.values()))
        columns = [Column(_title(found, metric), metric=metric, bundles=[column]) for metric in new]
        if columns:
            cells = [(["/".join(line)], [_cell(found, line, c) for c in columns]) for line in rows]
            words = ", ".join(filter(None, ("The same rows", fmt.column_words(experiment, column))))
            yield Grid(["row"], columns, cells, f"{words}, beside the columns above:")


def quoted_grid(experiment: Experiment) -> Grid | None:
    """Published rows of systems that the suite does not measure; None without any."""
    rows, own = experiment.quoted, ["/".join(column) for column in fmt.lines_and_columns(experiment)[1]]
    keys = dict.fromkeys(["", *own, *(key for row in rows for key in row.numbers)])  # the row itself, columns, others
    columns, texts = [], []
    for key, metric in itertools.product(keys, [metric for metric in PUBLISHED if metric in METRICS]):
        of_column = [fmt.number_or_bound(row.numbers.get(key, {}), metric) for row in rows]
        if set(of_column) - {fmt.MISSING}:
            group = fmt.column_words(experiment, tuple(key.split("/"))) if key in own else key
            columns.append(Column(fmt.paper_name(metric), group))
            texts.append([Cell(text) for text in of_column])
    sources = "; ".join(dict.fromkeys(row.source for row in rows if row.source))
    intro = f"{QUOTED}{f' ({sources})' if sources else ''}, not measured here:"
    lines = [([row.label], list(cells)) for row, cells in zip(rows, zip(*texts))]
    return Grid(["system"], columns, lines, intro) if rows else None


def agreement_grid(found: Measured) -> Grid | None:
    """Ours beside the paper's, number by number; None if nothing is comparable."""
    experiment = found.experiment
    lines = []
    for row, metric in itertools.product(experiment.rows, GENERATION_METRICS):
        spread = found.spread(row, metric)
        one = agreement(experiment, row, metric, spread.mean)
        if one.verdict in ("", NOT_COMPARABLE):
            continue
        change = fmt.number(one.difference, like=spread.mean)
        if one.published and not math.isnan(one.difference):
            sign = "+" if one.difference > 0 else ""
            change = f"{sign}{change} ({fmt.percent(100 * one.difference / one.published)})"
        published = fmt.published_text(experiment, row, metric) or fmt.MISSING
        texts = [fmt.plus_minus(spread.mean, spread.sd), published, change, one.verdict]
        lines.append(([row, _title(found, metric)], [Cell(text) for text in texts]))
    columns = [Column(title) for title in ("ours", "published", "difference", "verdict")]
    return Grid(["row", "metric"], columns, lines) if lines else None


def _title(found: Measured, metric: str) -> str:
    if metric == "rfd":
        return f"reconstruction {found.reconstruction_distance}"
    if metric in ONCE_METRICS:
        return METRICS[metric].label
    return fmt.column_title(found.experiment, metric)


def _cell(found: Measured, line: tuple[str, ...], column: Column) -> Cell:
    experiment, metric = found.experiment, column.metric
    rows = [fmt.row_at(experiment, line, bundles) for bundles in column.bundles]
    if metric in ONCE_METRICS:
        numbers, papers = found.once(metric), [fmt.published_value(experiment, row, metric) for row in rows]
        text = fmt.metric_number(experiment, metric, next((numbers[row] for row in rows if row in numbers), None))
        paper = next((value for value in papers if value is not None), None)
        return Cell(text, fmt.paper_number(metric, paper) if column.published else None)
    (row,) = rows
    published = fmt.published_text(experiment, row, metric) if column.published else None
    if row in experiment.absent:  # the reason stands in the first metric's column only
        first = metric == experiment.layout.get("metrics", ["fd"])[0]
        return Cell(experiment.absent[row] if first else fmt.MISSING, published)
    spread = found.spread(row, metric)
    if not spread.n:
        return Cell(fmt.FAILED if found.status(row) == "failed" else fmt.MISSING, published)
    text = fmt.metric_number(experiment, metric, spread.mean, spread.sd)
    return Cell(f"{text} {PARTLY}" if "failed" in found.statuses(row) else text, published, spread.mean)


def _with_best(experiment: Experiment, column: Column, cells: list[Cell]) -> list[Cell]:
    """The cells of a column, the best means among several marked; means that print alike tie."""
    means = [cell.value for cell in cells if not math.isnan(cell.value)]
    if len(means) < 2:
        return cells
    best = min(means) if METRICS[column.metric].lower_is_better else max(means)
    shown = fmt.metric_number(experiment, column.metric, best)
    return [replace(cell, best=fmt.metric_number(experiment, column.metric, cell.value) == shown) for cell in cells]
