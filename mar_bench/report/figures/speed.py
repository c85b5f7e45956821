"""Speed against distance, as in the paper's figure 6: one panel per column of the table, one line of panels
per device, since seconds of two devices do not share an axis."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.figures.bars import bars_word
from mar_bench.report.figures.floor_lines import DASHES, NEUTRAL, floor_lines
from mar_bench.report.format import (
    axis_labels,
    column_axes,
    describe,
    metric_of,
    metric_title,
    row_axes,
    scale_title,
    thousands,
)
from mar_bench.report.frame import collect, floors, se_of, seed_values, speeds, spread
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.columnspacing": 1.5,
    "legend.handlelength": 1.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.edgecolor": "0.5",
    "svg.hashsalt": "mar_bench",  # else every svg differs in its ids
    "pdf.fonttype": 42,
}
# nothing in a file that changes from one drawing to the next
METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
DPI = 200
PANEL_INCHES = (3.1, 2.6)
MIN_RATIO = 6
CHARACTER_INCHES = 0.06  # of the legend, on average


def speed_accuracy(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Draw distance against seconds per image; write ``stem`` with .png, .pdf and .svg; return their paths.

    Equal records give equal bytes. Raises UserError where no row has both a distance and a speed."""
    found = points(experiment, records)
    with rc_context({**sns.axes_style("ticks"), **STYLE}):
        figure = _draw(experiment, found, floors(experiment, records))
        return save(figure, stem)


def save(figure: Figure, stem: Path) -> list[Path]:
    """``stem`` with .png, .pdf and .svg, without dates; returns their paths."""
    paths = []
    for kind, metadata in METADATA.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{kind}")
        atomic_write(path, content.getvalue())
        paths.append(path)
    return paths


def points(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per row and setting that has both numbers: distance with its ± and what that is of (sd, spread),
    seconds with quartiles, panel, hue, style (the texts of column, colour and marker)."""
    cells, timed = collect(experiment, records), speeds(experiment, records)
    run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
    if timed.empty:
        raise UserError(f"no speed records of {experiment.id} at scale {experiment.scale}; {run} measures them")
    distances = {row: spread(seed_values(cells, row), seed_values(cells, row, se_of("fd"))) for row in experiment.rows}
    if not any(d.n for d in distances.values()):
        raise UserError(no_generations(experiment))
    *style_axes, hue_axis = row_axes(experiment) or list(experiment.labels)
    lines = []
    for line in timed.to_dict("records"):
        distance = distances[line["row"]]
        if distance.n and not math.isnan(line["seconds_per_image"]):
            texts = {
                "panel": describe(axis_labels(experiment, line["row"], column_axes(experiment))),
                "hue": describe(axis_labels(experiment, line["row"], [hue_axis])),
                "style": describe(axis_labels(experiment, line["row"], style_axes)),
            }
            lines.append({**line, **texts, "fd": distance.mean, "sd": distance.sd or 0.0, "spread": distance})
    if not lines:
        raise UserError(
            f"{experiment.id} at scale {experiment.scale}: no row has both a speed and a generation record; "
            f"{run} makes the missing ones"
        )
    return pd.DataFrame(lines)


def no_generations(experiment: Experiment) -> str:
    """What a user is told where there is nothing to draw."""
    run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
    return f"no generation records of {experiment.id} at scale {experiment.scale}; {run} makes them"


def _draw(experiment: Experiment, points: pd.DataFrame, floor_frame: pd.DataFrame) -> Figure:
    looks = _Looks(experiment)
    settings = sorted(points["setting"].unique())
    panels = [p for p in looks.panels if p in set(points["panel"])]
    keys = _legend_columns(looks, points, with_floors=floor_frame["row"].isin(points["row"]).any())
    heading = title(experiment)
    widest = sum(max(len(handle.get_label()) for handle in column) + 10 for column in keys)
    widest = max(widest, *(int(1.15 * len(line)) for line in heading.splitlines()))
    width = max(PANEL_INCHES[0] * len(panels), CHARACTER_INCHES * widest)
    height = (PANEL_INCHES[1] + 0.3) * len(settings) + 0.19 * len(keys[0]) + 0.5
    figure = Figure(figsize=(width, height), layout="constrained")
    for setting, part in zip(settings, figure.subfigures(len(settings), 1, squeeze=False)[:, 0]):
        chosen = points[points["setting"] == setting]
        _panels(part, experiment, chosen, floor_frame, looks, panels)
        part.suptitle(textwrap.fill(setting, int(width / CHARACTER_INCHES)), fontsize=8, color=NEUTRAL)
    sns.despine(fig=figure)
    _legend(figure, keys)
    figure.suptitle(heading, fontsize=9, x=0.01, ha="left")
    return figure


def title(experiment: Experiment) -> str:
    """Of a figure: what it is of, the distance, the number of images and the scale."""
    counts = dict.fromkeys(thousands(spec.sampling.num_images) for spec in experiment.rows.values())
    images = f"{metric_of(experiment, 'fd', images=None, named=True)} of {'/'.join(counts)} images"
    return f"{experiment.title}\n{images}, {scale_title(experiment)}"


def _panels(
    part: SubFigure,
    experiment: Experiment,
    points: pd.DataFrame,
    floor_frame: pd.DataFrame,
    looks: _Looks,
    panels: list[str],
) -> None:
    """The panels of one setting; they share the axis of seconds."""
    axes = part.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    labelled = next(panel for panel in panels if panel in set(points["panel"]))
    for ax, panel in zip(axes, panels):
        chosen = points[points["panel"] == panel]
        ax.set_title(panel)
        if chosen.empty:
            ax.set_axis_off()
            ax.text(0.5, 0.5, "no points", ha="center", va="center", color=NEUTRAL, transform=ax.transAxes)
            continue
        _panel(ax, chosen, looks)
        floor_lines(ax, experiment, chosen, floor_frame, looks.colours)
        ax.set_xlabel("seconds per image")
        ax.set_ylabel(metric_title(experiment, "fd") if panel == labelled else "")
    widen(axes[0])


def widen(ax: Axes) -> None:
    """At least a factor of MIN_RATIO on the axis of seconds, so that two of its ticks 1, 2, 5 are in view."""
    low, high = ax.get_xlim()
    factor = max(1.0, MIN_RATIO * low / high) ** 0.5
    ax.set_xlim(low / factor, high * factor)


class _Looks:
    """Colour, marker and panel of every bundle, the same whichever records are there."""

    def __init__(self, experiment: Experiment):
        *style_axes, hue_axis = row_axes(experiment) or list(experiment.labels)
        texts = {
            axes: list(dict.fromkeys(describe(axis_labels(experiment, row, axes)) for row in experiment.rows))
            for axes in (tuple(column_axes(experiment)), (hue_axis,), tuple(style_axes))
        }
        self.panels = texts[tuple(column_axes(experiment))]
        hues, styles = texts[hue_axis,], texts[tuple(style_axes)]
        self.colours = dict(zip(hues, sns.color_palette("colorblind", len(hues)).as_hex()))
        self.markers = dict(zip(styles, itertools.cycle(MARKERS)))
        self.hue_title = hue_axis
        self.style_title = ", ".join(style_axes)


def _panel(ax: Axes, points: pd.DataFrame, looks: _Looks) -> None:
    for point in points.to_dict("records"):
        seconds, low, high = (point[f"seconds_per_image{q}"] for q in ("", "_q25", "_q75"))
        quartiles = [[max(seconds - low, 0)], [max(high - seconds, 0)]]
        known = not any(math.isnan(q[0]) for q in quartiles)
        ax.errorbar(
            seconds,
            point["fd"],
            xerr=quartiles if known else None,
            yerr=point["sd"] or None,
            fmt="none",
            ecolor=looks.colours[point["hue"]],
            elinewidth=1,
            capsize=2,
            zorder=2,
        )
    sns.scatterplot(
        points,
        x="seconds_per_image",
        y="fd",
        hue="hue",
        style="style",
        palette=looks.colours,
        markers=looks.markers,
        s=45,
        edgecolor="none",
        legend=False,
        zorder=3,
        ax=ax,
    )
    seconds_axis(ax)


def seconds_axis(ax: Axes) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 of each decade, written out."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(_decimal))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.12)


def _decimal(value: float, _position: int) -> str:
    return np.format_float_positional(value, precision=6, trim="-")


def _legend_columns(looks: _Looks, points: pd.DataFrame, with_floors: bool) -> list[list[Line2D]]:
    """Two columns of equal length: colours, floor and bars on the left, markers on the right."""

    def line(text: str, **look) -> Line2D:
        return Line2D([], [], **{"linestyle": "none", "color": NEUTRAL, "label": text, **look})

    def dot(text: str, marker: str, colour: str) -> Line2D:
        return line(text, marker=marker, color=colour, markeredgecolor="none")

    left = [line(looks.hue_title), *(dot(text, "o", colour) for text, colour in looks.colours.items())]
    right = [line(looks.style_title)] if looks.style_title else []
    right += [dot(text, marker, NEUTRAL) for text, marker in looks.markers.items()] if right else []
    bars = ", ".join([*bars_word(points["spread"]), "quartiles of the time"])
    more = [line("reconstruction alone", linestyle=DASHES, linewidth=1)] if with_floors else []
    left += [*more, line(f"bars: {bars}", marker="+", markersize=8)]
    longest = max(len(left), len(right))
    return [column + [line("")] * (longest - len(column)) for column in (left, right) if column]


def _legend(figure: Figure, columns: list[list[Line2D]]) -> None:
    """Below the panels; each column begins with its heading."""
    handles = [handle for column in columns for handle in column]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(columns), frameon=False)
    for column in columns:
        legend.get_texts()[handles.index(column[0])].set_fontweight("bold")
