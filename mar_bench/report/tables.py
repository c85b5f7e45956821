"""The table of an experiment, laid out as the paper's: ours, and in brackets what was published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

import pandas as pd

from mar_bench.config import Experiment
from mar_bench.records import Record, metric_name
from mar_bench.report import captions, cautions, orderings
from mar_bench.report.cells import (
    ROLES,
    SeedValues,
    Selection,
    Spread,
    collect,
    extractor_block,
    floor_of,
    floors,
    is_shown,
    roles,
    se_of,
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
    in_units,
    lines_and_columns,
    markdown_table,
    metric_short,
    number,
    paper_number,
    plus_minus,
    row_at,
    row_axes,
    scale_title,
    with_unit,
)

PARTLY = "†"  # some runs of the cell failed
# roles of the tables beside the main one
FURTHER = ("fd_heldout", "kid", "precision", "recall", "copied", "accuracy")


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
        """A cell's mean of a metric with its deviation, of one run with its standard error; NaN without a number."""
        return spread(seed_values(self.cells, row, role), seed_values(self.cells, row, se_of(role)))

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
        failed = cautions.failures(self.selection)
        parts = [
            f"# {experiment.title} ({experiment.id}, {scale_title(experiment)})",
            *cautions.warnings(experiment, self.selection),
            markdown_table(*_published(self)),
            *_further(self),
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
    heading = names + [_heading(experiment, m, column) for column in columns for m in metrics]
    out = []
    for line, values in zip(lines, labels):
        rows = [row_at(experiment, line, column) for column in columns]
        cells = [_cell(table, row, metric) for row in rows for metric in metrics]
        out.append([*(values.get(name, "") for name in names), *cells])
    return heading, out


def _further(table: ResultTable) -> list[str]:
    """For each of the table's columns one more table, of what was measured beside the paper's metrics."""
    metrics = table.experiment.layout.get("metrics", ["fd"])
    shown = [role for role, metric in ROLES.items() if role in FURTHER and metric not in metrics]
    tables = []
    for column in lines_and_columns(table.experiment)[1]:
        heading, lines = _further_columns(table, column, shown)
        if len(heading) > 1:
            words = ", ".join(w for w in ("The same rows", _column_words(table.experiment, column)) if w)
            tables.append(f"{words}, beside the columns above:\n\n{markdown_table(heading, lines)}")
    return tables


def _further_columns(
    table: ResultTable, column: tuple[str, ...], shown: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of one such table: of ``shown`` what has a number in any of its rows."""
    experiment = table.experiment
    rows = {line: row_at(experiment, line, column) for line in lines_and_columns(experiment)[0]}
    heading, cells = ["row"], {line: ["/".join(line)] for line in rows}
    floors_here = {line: floor_of(table.floors, row) for line, row in rows.items()}
    if not all(map(math.isnan, floors_here.values())):
        heading.append(f"reconstruction {captions.floor_name(experiment, table.floors)}")
        for line, floor in floors_here.items():
            cells[line].append(number(floor))
    for role in shown:
        metric = ROLES[role]
        if any(table.spread(row, role).n for row in rows.values()):
            heading.append(with_unit(experiment, metric_short(experiment, metric), metric))
            for line, row in rows.items():
                cells[line].append(_ours(table, row, metric))
    return heading, list(cells.values())


def _heading(experiment: Experiment, metric: str, column: tuple[str, ...]) -> str:
    """``FD-1k, without CFG (paper)``; no brackets where the paper has no such number."""
    name = with_unit(experiment, metric_short(experiment, metric), metric)
    words = ", ".join(w for w in (name, _column_words(experiment, column)) if w)
    return f"{words} (paper)" if in_paper(experiment, metric) else words


def _column_words(experiment: Experiment, column: tuple[str, ...]) -> str:
    """``without CFG``; empty where the table's rows are not spread over columns."""
    axes = column_axes(experiment)
    return describe({k: str(v) for axis, b in zip(axes, column) for k, v in experiment.labels[axis][b].items()})


def _cell(table: ResultTable, row: str, metric: str) -> str:
    """Ours and the paper's: ``5.41 ± 0.12 (19.58)``."""
    ours = _ours(table, row, metric)
    if not in_paper(table.experiment, metric):
        return ours
    published = in_units(table.experiment, metric, table.experiment.paper.get(row, {}).get(metric))
    return f"{ours} ({paper_number(metric, published)})"


def _ours(table: ResultTable, row: str, metric: str) -> str:
    found = table.spread(row, metric.replace(":", "_"))
    if not found.n:
        return FAILED if table.status(row) == "failed" else MISSING
    text = plus_minus(in_units(table.experiment, metric, found.mean), in_units(table.experiment, metric, found.sd))
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
            if not is_shown(metric, extractor_block(spec)):
                continue
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
                    "sd": found.sd if found.over in ("training", "sampling") else math.nan,
                    "sd_training": found.sd_training,
                    "sd_sampling": found.sd_sampling,
                    "se": _mean_of(seed_values(table.cells, row, se_of(role))),
                    "n_train_seeds": len(found.train_seeds),
                    "n_sampling_seeds": len(found.sampling_seeds),
                    "num_generated": _images(table.cells, row),
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


def _mean_of(values: SeedValues) -> float:
    """Of the runs' own standard errors: that of one run, not of their mean."""
    return mean(values.values()) if values else math.nan


def _images(cells: pd.DataFrame, row: str) -> str:
    """How many images a run of the cell generated; several numbers joined by a slash, empty where unknown."""
    return "/".join(f"{n:.0f}" for n in sorted(set(cells.loc[cells["row"] == row, "num_generated"].dropna())))


def _record_ids(cells: pd.DataFrame, row: str) -> list[str]:
    """The records that the cell's numbers are of, or its failed ones where none is done."""
    mine = cells[cells["row"] == row]
    done = mine[mine["status"] == "done"]
    return list((done if len(done) else mine)["id"])
