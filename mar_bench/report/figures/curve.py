"""Metrics against a knob of the sampling, as in the paper's figures 4 and 5: a panel a metric."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.figures.bars import bars_word
from mar_bench.report.figures.speed import PANEL_INCHES, STYLE, no_generations, save
from mar_bench.report.figures.style import (
    MARKER_SIZE,
    Looks,
    heading,
    hollow,
    legend,
    legend_handles,
    legend_inches,
)
from mar_bench.report.format import in_units, label_of, metric_title, value_at, with_unit
from mar_bench.report.frame import Spread, collect, se_of, seed_values, spread
from mar_bench.report.verdict import is_comparable
from mar_bench.utils.errors import UserError

MOST_TICKS = 12  # more values of x than that are too many to have a tick each


@dataclass(frozen=True)
class Point:
    row: str
    x: float
    line: str
    spread: Spread  # in the units of tables
    published: float | None  # None where the paper has none, or none that compares


def curve(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Draw it; write ``stem`` with .png, .pdf and .svg; return their paths.

    Raises UserError where no row has a number and where two rows of a line are at the same place."""
    points = {metric: _points(experiment, records, metric) for metric in experiment.figure.get("y", ["fd", "is"])}
    if not any(point.spread.n for found in points.values() for point in found):
        raise UserError(no_generations(experiment))
    with rc_context({**sns.axes_style("ticks"), **STYLE}):
        return save(_draw(experiment, points), stem)


def _points(experiment: Experiment, records: dict[str, Record], metric: str) -> list[Point]:
    """Every row's point, in the order of x within a line."""
    cells, role = collect(experiment, records), metric.replace(":", "_")
    places: dict[tuple[str, float], str] = {}
    points = []
    for row in experiment.rows:
        x = value_at(experiment, row, experiment.figure["x"])
        if x is None:
            continue
        line = label_of(experiment, row, experiment.figure.get("line"))
        if (other := places.setdefault((line, x), row)) != row:
            where = f"{experiment.figure['x']} {x:g} of line '{line}'"
            raise UserError(f"{experiment.file}: figure: rows {other} and {row} are both at {where}; name another line")
        values, errors = (
            {seed: in_units(experiment, metric, value) for seed, value in seed_values(cells, row, name).items()}
            for name in (role, se_of(role))
        )
        published = experiment.paper.get(row, {}).get(metric) if is_comparable(experiment, row) else None
        points.append(Point(row, x, line, spread(values, errors), in_units(experiment, metric, published)))
    return sorted(points, key=lambda point: point.x)


def _draw(experiment: Experiment, points: dict[str, list[Point]]) -> Figure:
    looks, every = Looks(experiment), [point for found in points.values() for point in found]
    published = "paper" if any(point.published is not None for point in every) else ""
    bars = ", ".join(bars_word(point.spread for point in every))
    width = PANEL_INCHES[0] * max(len(points), 1.4)
    words = heading(experiment, width)
    handles = legend_handles(looks, published, bars)
    height = PANEL_INCHES[1] + legend_inches(handles, width) + 0.17 * (1 + words.count("\n"))
    figure = Figure(figsize=(width, height), layout="constrained")
    for ax, (metric, found) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items()):
        _panel(ax, found, looks)
        _ticks(ax, sorted({point.x for point in found}), log=experiment.figure.get("log_x", False))
        ax.set_xlabel(_x_title(experiment))
        ax.set_ylabel(with_unit(experiment, metric_title(experiment, metric), metric))
    sns.despine(fig=figure)
    legend(figure, looks, published, bars, width)
    figure.suptitle(words, fontsize=9, x=0.01, ha="left")
    return figure


def _x_title(experiment: Experiment) -> str:
    return experiment.figure.get("x_title") or experiment.figure["x"].rpartition(".")[2].replace("_", " ")


def _panel(ax: Axes, points: list[Point], looks: Looks) -> None:
    by_line: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        by_line[point.line].append(point)
    for line in looks.lines:
        measured = [point for point in by_line[line] if point.spread.n]
        ax.errorbar(
            [point.x for point in measured],
            [point.spread.mean for point in measured],
            yerr=[point.spread.sd or 0 for point in measured],
            color=looks.colours[line],
            marker=looks.markers[line],
            markersize=MARKER_SIZE,
            markeredgecolor="none",
            linewidth=1.3,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
        known = [point for point in by_line[line] if point.published is not None]
        hollow(ax, [point.x for point in known], [point.published for point in known], looks, line)


def _ticks(ax: Axes, values: list[float], log: bool) -> None:
    """A tick at every value of x, where there is room for them."""
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    if log or len(values) <= MOST_TICKS // 2:
        ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.margins(x=0.06, y=0.08)
