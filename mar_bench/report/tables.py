"""The table of an experiment, laid out as the paper's: ours, and in brackets what was published."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from mar_bench.config import Experiment
from mar_bench.records import Record, metric_name
from mar_bench.report import captions, orderings
from mar_bench.report.cells import (
    Selection,
    Spread,
    collect,
    extractor_block,
    floor_of,
    floors,
    roles,
    seed_values,
    select,
    speeds,
    spread,
)
from mar_bench.report.orderings import Comparison, compare
from mar_bench.report.wording import (
    FAILED,
    MISSING,
    axis_labels,
    column_axes,
    describe,
    in_paper,
    lines_and_columns,
    markdown_table,
    metric_short,
    number,
    paper_number,
    plus_minus,
    row_at,
    row_axes,
    scale_title,
)

PARTLY = "†"  # some runs of the cell failed


@dataclass(frozen=True)
class ResultTable:
    """All that a rendered table says, taken from the records once."""

    experiment: Experiment
    selection: Selection
    cells: pd.DataFrame
    floors: pd.DataFrame
    speeds: pd.DataFrame
    comparisons: list[Comparison]

    def spread(self, row: str, role: str) -> Spread:
        """A cell's mean and sd of a metric; the mean is NaN where there is no number."""
        return spread(seed_values(self.cells, row, role))

    def status(self, row: str) -> str:
        """``done`` (one run at least), ``failed`` or ``missing``."""
        found = set(self.cells.loc[self.cells["row"] == row, "status"])
        return "done" if "done" in found else "failed" if "failed" in found else "missing"

    def markdown(self) -> str:
        """Title, table, caption, warnings, failed runs and the orderings."""
        experiment = self.experiment
        role = next(iter(experiment.layout.get("metrics", ["fd"]))).replace(":", "_")
        spreads = {row: self.spread(row, role) for row in experiment.rows}
        spreads = {row: s for row, s in spreads.items() if s.n}
        notes = captions.caption(experiment, self.selection, self.floors, spreads)
        failed = captions.failures(self.selection)
        parts = [
            f"# {experiment.title} ({experiment.id}, {scale_title(experiment)})",
            *captions.warnings(experiment, self.selection),
            markdown_table(*_published(self)),
            _beside(self),
            _bullets(notes),
            f"Failed runs ({PARTLY}: the cell's other runs are shown):\n\n{_bullets(failed)}" if failed else "",
            orderings.markdown(experiment, self.comparisons),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """One line per cell and metric, under the records' own metric names."""
        return _tidy(self).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def build(experiment: Experiment, records: dict[str, Record]) -> ResultTable:
    """The table of an experiment from whatever records there are. Raises UserError for a bad ordering."""
    return ResultTable(
        experiment=experiment,
        selection=select(experiment, records),
        cells=collect(experiment, records),
        floors=floors(experiment, records),
        speeds=speeds(experiment, records),
        comparisons=compare(experiment, records),
    )


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# --- Markdown -------------------------------------------------------------------------------------------


def _published(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of the paper's own columns."""
    experiment = table.experiment
    lines, columns = lines_and_columns(experiment)
    metrics = experiment.layout.get("metrics", ["fd"])
    labels = [axis_labels(experiment, row_at(experiment, line, columns[0]), row_axes(experiment)) for line in lines]
    names = list(dict.fromkeys(name for values in labels for name in values))
    heading = names + [_heading(experiment, m, column, published=True) for column in columns for m in metrics]
    out = []
    for line, values in zip(lines, labels):
        rows = [row_at(experiment, line, column) for column in columns]
        cells = [_cell(table, row, metric) for row in rows for metric in metrics]
        out.append([*(values.get(name, "") for name in names), *cells])
    return heading, out


def _beside(table: ResultTable) -> str:
    """A second table, of what was measured beside the paper's columns; empty where there is nothing."""
    experiment, names = table.experiment, roles(table.experiment)
    lines, columns = lines_and_columns(experiment)
    metrics = experiment.layout.get("metrics", ["fd"])
    shown = [role for role in ("fd_heldout", "accuracy") if names[role] not in metrics]
    beside = [role for role in shown if table.cells[role].notna().any()]
    with_floors = int(table.floors["fd"].notna().any())
    if not beside and not with_floors:
        return ""
    heading = ["row", *[f"reconstruction {metric_short(experiment, 'fd')}"] * with_floors]
    heading += [_heading(experiment, names[role], column) for role in beside for column in columns]
    out = []
    for line in lines:
        rows = [row_at(experiment, line, column) for column in columns]
        floors_here = dict.fromkeys(number(floor_of(table.floors, row)) for row in rows)
        cells = [" / ".join(floors_here)] * with_floors
        out.append(["/".join(line), *cells, *(_ours(table, row, role) for role in beside for row in rows)])
    return f"The same rows, beside the columns above:\n\n{markdown_table(heading, out)}"


def _heading(experiment: Experiment, metric: str, column: tuple[str, ...], published: bool = False) -> str:
    """``FD, without CFG (paper)``; no brackets where the paper has no such number."""
    axes = column_axes(experiment)
    labels = {k: str(v) for axis, b in zip(axes, column) for k, v in experiment.labels[axis][b].items()}
    words = ", ".join(w for w in (metric_short(experiment, metric), describe(labels)) if w)
    return f"{words} (paper)" if published and in_paper(experiment, metric) else words


def _cell(table: ResultTable, row: str, metric: str) -> str:
    """Ours and the paper's: ``5.41 ± 0.12 (19.58)``."""
    ours = _ours(table, row, metric.replace(":", "_"))
    if not in_paper(table.experiment, metric):
        return ours
    return f"{ours} ({paper_number(metric, table.experiment.paper.get(row, {}).get(metric))})"


def _ours(table: ResultTable, row: str, role: str) -> str:
    found = table.spread(row, role)
    if not found.n:
        return FAILED if table.status(row) == "failed" else MISSING
    text = plus_minus(found.mean, found.sd)
    statuses = table.cells.loc[table.cells["row"] == row, "status"]
    return f"{text} {PARTLY}" if "failed" in set(statuses) else text


# --- CSV ------------------------------------------------------------------------------------------------


def _tidy(table: ResultTable) -> pd.DataFrame:
    """The table's frame. ``seconds_per_image`` is of one setting throughout, named in ``speed_setting``."""
    experiment, setting = table.experiment, _main_setting(table.speeds)
    lines = []
    for row, spec in experiment.rows.items():
        timed = table.speeds[(table.speeds["row"] == row) & (table.speeds["setting"] == setting)]
        seconds = float(timed["seconds_per_image"].iloc[0]) if len(timed) else math.nan
        for role, metric in roles(experiment).items():
            if metric == "accuracy" and extractor_block(spec)["kind"] == "inception":
                continue  # the 2015 network does not know the data set's classes
            found = table.spread(row, role)
            lines.append(
                {
                    "experiment": experiment.id,
                    "scale": experiment.scale,
                    "row": row,
                    **experiment.bundles(row),
                    "metric": metric_name(metric, extractor_block(spec)),
                    "status": table.status(row),
                    "mean": found.mean,
                    "sd": math.nan if found.sd is None else found.sd,
                    "n_train_seeds": len(found.train_seeds),
                    "n_sampling_seeds": len(found.sampling_seeds),
                    "paper": experiment.paper.get(row, {}).get(metric, math.nan),
                    "floor_fd": floor_of(table.floors, row),
                    "seconds_per_image": seconds,
                    "speed_setting": setting if len(timed) else None,
                    "records": " ".join(_record_ids(table.cells, row)),
                }
            )
    return pd.DataFrame(lines)


def _main_setting(frame: pd.DataFrame) -> str | None:
    """The setting in which most rows were timed, the first by name among equals."""
    counts = frame["setting"].value_counts()
    return min((s for s, n in counts.items() if n == counts.max()), default=None)


def _record_ids(cells: pd.DataFrame, row: str) -> list[str]:
    """The records that the cell's numbers are of, or its failed ones where none is done."""
    mine = cells[cells["row"] == row]
    done = mine[mine["status"] == "done"]
    return list((done if len(done) else mine)["id"])
