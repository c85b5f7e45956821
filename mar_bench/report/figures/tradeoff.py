"""Distance against seconds per image along the steps of several systems, as in the paper's figure 6.

A panel a setting (device, threads, precision, batch), since seconds of two settings do not share an axis; in each the
points of a system are joined in the order of their seconds and carry the name of their point."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.figures.bars import bars_word
from mar_bench.report.figures.labels import name_points
from mar_bench.report.figures.speed import CHARACTER_INCHES, NEUTRAL, PANEL_INCHES, STYLE, save, seconds_axis, widen
from mar_bench.report.figures.speed import points as timed_points
from mar_bench.report.figures.style import (
    MARKER_SIZE,
    Looks,
    heading,
    hollow,
    legend,
    legend_handles,
    legend_inches,
)
from mar_bench.report.format import axis_labels, column_axes, describe, label_of, metric_title
from mar_bench.report.verdict import is_comparable

PAPER = "paper (one A100)"
PANEL_WIDTH, PANEL_HEIGHT = 1.35 * PANEL_INCHES[0], 1.15 * PANEL_INCHES[1]


def tradeoff(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Draw it; write ``stem`` with .png, .pdf and .svg; return their paths.

    Raises UserError where no row has both a distance and a speed."""
    found = timed_points(experiment, records)
    for key in ("line", "point"):
        found[key] = [label_of(experiment, row, experiment.figure.get(key)) for row in found["row"]]
    with rc_context({**sns.axes_style("ticks"), **STYLE}):
        return save(_draw(experiment, found), stem)


def _draw(experiment: Experiment, points: pd.DataFrame) -> Figure:
    looks, published = Looks(experiment), _published(experiment)
    settings = sorted(points["setting"].unique())
    panels = [
        p for p in dict.fromkeys(_panel_of(experiment, row) for row in experiment.rows) if p in set(points["panel"])
    ]
    width = PANEL_WIDTH * len(panels)
    words = heading(experiment, width)
    bars = ", ".join([*bars_word(points["spread"]), "quartiles of the time"])
    handles = legend_handles(looks, PAPER if len(published) else "", bars)
    height = PANEL_HEIGHT * len(settings) + legend_inches(handles, width) + 0.17 * (1 + words.count("\n"))
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(settings), len(panels), squeeze=False)
    named = []
    for line_of_axes, setting in zip(grid, settings):
        for ax, panel in zip(line_of_axes, panels):
            here = points[(points["setting"] == setting) & (points["panel"] == panel)]
            theirs = published[published["panel"] == panel]
            above = ", ".join(w for w in (panel, setting) if w)
            ax.set_title(textwrap.fill(above, int(PANEL_WIDTH / CHARACTER_INCHES)), fontsize=8, color=NEUTRAL)
            _panel(ax, here, theirs, looks)
            ax.set_xlabel("seconds per image")
            ax.set_ylabel(metric_title(experiment, "fd"))
            named.append((ax, here, theirs))
    sns.despine(fig=figure)
    legend(figure, looks, PAPER if len(published) else "", bars, width)
    figure.suptitle(words, fontsize=9, x=0.01, ha="left")
    figure.draw_without_rendering()  # so that it is known where the points are
    for ax, here, theirs in named:
        name_points(ax, here, theirs, looks.colours)
    return figure


def _panel_of(experiment: Experiment, row: str) -> str:
    return describe(axis_labels(experiment, row, column_axes(experiment)))


def _published(experiment: Experiment) -> pd.DataFrame:
    """The paper's points, where ours compare with them: seconds, fd, line, point, panel."""
    lines = []
    for row in experiment.rows:
        numbers = experiment.paper.get(row, {})
        if is_comparable(experiment, row) and {"fd", "seconds_per_image"} <= numbers.keys():
            words = {key: label_of(experiment, row, experiment.figure.get(key)) for key in ("line", "point")}
            place = {"seconds_per_image": numbers["seconds_per_image"], "fd": numbers["fd"]}
            lines.append({**place, **words, "panel": _panel_of(experiment, row)})
    return pd.DataFrame(lines, columns=["seconds_per_image", "fd", "line", "point", "panel"])


def _panel(ax: Axes, points: pd.DataFrame, published: pd.DataFrame, looks: Looks) -> None:
    for line in looks.lines:
        here = points[points["line"] == line].sort_values("seconds_per_image", kind="stable")
        if len(here):
            ax.errorbar(
                here["seconds_per_image"],
                here["fd"],
                xerr=_quartiles(here),
                yerr=here["sd"],
                color=looks.colours[line],
                marker=looks.markers[line],
                markersize=MARKER_SIZE,
                markeredgecolor="none",
                linewidth=1.3,
                elinewidth=1,
                capsize=2,
                zorder=3,
            )
        theirs = published[published["line"] == line]
        hollow(ax, theirs["seconds_per_image"], theirs["fd"], looks, line)
    seconds_axis(ax)
    ax.margins(x=0.12, y=0.12)
    widen(ax)


def _quartiles(points: pd.DataFrame) -> np.ndarray:
    """Distances to the quartiles of the time; 0 where they are unknown."""
    seconds = points["seconds_per_image"]
    sides = seconds - points["seconds_per_image_q25"], points["seconds_per_image_q75"] - seconds
    return np.array([[0.0 if math.isnan(value) else max(value, 0.0) for value in side] for side in sides])
