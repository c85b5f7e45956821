"""The table of an experiment, laid out as the paper's: ours, and in brackets what was published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.claims import orderings
from mar_bench.report.claims.orderings import compare
from mar_bench.report.format import (
    column_words,
    lines_and_columns,
    markdown_table,
    metric_short,
    number,
    row_at,
    scale_title,
    with_unit,
)
from mar_bench.report.frame import ROLES, Spread, collect, floor_of, floors, left_out, select, speeds
from mar_bench.report.table import caption as captions
from mar_bench.report.table import caveats as cautions
from mar_bench.report.table import latex, quoted
from mar_bench.report.table import sweeps as choices
from mar_bench.report.table import versus_paper as against
from mar_bench.report.table.csv import tidy
from mar_bench.report.table.data import Measured
from mar_bench.report.table.grid import PARTLY, Cell, Column, grid, ours

# roles of the tables beside the main one
FURTHER = ("fd_heldout", "kid", "precision", "recall", "copied", "accuracy")


@dataclass(frozen=True)
class ResultTable(Measured):
    """All that a rendered table says, taken from the records once."""

    def markdown(self) -> str:
        """Title, table, caption, warnings, failed runs, the paper's numbers and the orderings."""
        experiment = self.experiment
        notes = captions.caption(self, self.first_spreads()) + choices.footnotes(experiment)
        failed = cautions.failures(self.selection)
        parts = [
            f"# {experiment.title} ({experiment.id}, {scale_title(experiment)})",
            *cautions.warnings(experiment, self.selection),
            markdown_table(*_main(self)),
            quoted.markdown(experiment),
            *_further(self),
            _bullets(notes),
            f"Failed runs ({PARTLY}: the cell's other runs are shown):\n\n{_bullets(failed)}" if failed else "",
            against.markdown(self),
            orderings.markdown(experiment, self.comparisons),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """One line per cell and metric, under the records' own metric names."""
        return tidy(self).to_csv(index=False, lineterminator="\n", float_format="%.6g")

    def tex(self) -> str:
        """The main table in LaTeX, for the package booktabs."""
        return latex.tex(self, captions.short(self, self.first_spreads()))

    def first_spreads(self) -> dict[str, Spread]:
        """The first metric of every row that has a number."""
        role = next(iter(self.experiment.layout.get("metrics", ["fd"]))).replace(":", "_")
        spreads = {row: self.spread(row, role) for row in self.experiment.rows}
        return {row: s for row, s in spreads.items() if s.n}


def build(experiment: Experiment, records: dict[str, Record]) -> ResultTable:
    """The table of an experiment from whatever records there are. Raises UserError for a bad ordering."""
    return ResultTable(
        experiment=experiment,
        selection=select(experiment, records),
        cells=collect(experiment, records),
        floors=floors(experiment, records),
        speeds=speeds(experiment, records),
        comparisons=compare(experiment, records),
        left_out=left_out(experiment, records),
    )


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _main(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of the paper's own columns."""
    found = grid(table)
    heading = found.names + [_heading(column) for column in found.columns]
    lines = [[*(line.labels.get(name, "") for name in found.names), *(map(_cell, line.cells))] for line in found.lines]
    return heading, lines


def _heading(column: Column) -> str:
    """``FD-1k, without CFG (paper)``; no brackets where the paper has no such number."""
    words = ", ".join(w for w in (column.title, column.words) if w)
    return f"{words} (paper)" if column.published else words


def _cell(cell: Cell) -> str:
    """Ours and the paper's: ``5.41 ± 0.12 (19.58)``."""
    return cell.ours if cell.published is None else f"{cell.ours} ({cell.published})"


def _further(table: ResultTable) -> list[str]:
    """For each of the table's columns one more table, of what was measured beside the paper's metrics."""
    metrics = table.experiment.layout.get("metrics", ["fd"])
    shown = [role for role, metric in ROLES.items() if role in FURTHER and metric not in metrics]
    tables = []
    for column in lines_and_columns(table.experiment)[1]:
        heading, lines = _further_columns(table, column, shown)
        if len(heading) > 1:
            words = ", ".join(w for w in ("The same rows", column_words(table.experiment, column)) if w)
            tables.append(f"{words}, beside the columns above:\n\n{markdown_table(heading, lines)}")
    return tables


def _further_columns(
    table: ResultTable, column: tuple[str, ...], shown: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of one such table: of ``shown`` what has a number in any of its rows."""
    experiment = table.experiment
    rows = {line: row_at(experiment, line, column) for line in lines_and_columns(experiment)[0]}
    rows = {line: row for line, row in rows.items() if row in experiment.rows}
    heading, cells = ["row"], {line: ["/".join(line)] for line in rows}
    floors_here = {line: floor_of(table.floors, row) for line, row in rows.items()}
    if "rfd" not in experiment.layout.get("beside", []) and not all(map(math.isnan, floors_here.values())):
        heading.append(f"reconstruction {captions.floor_name(experiment, table.floors)}")
        for line, floor in floors_here.items():
            cells[line].append(number(floor))
    for role in shown:
        metric = ROLES[role]
        if any(table.spread(row, role).n for row in rows.values()):
            heading.append(with_unit(experiment, metric_short(experiment, metric), metric))
            for line, row in rows.items():
                cells[line].append(ours(table, row, metric))
    return heading, list(cells.values())
