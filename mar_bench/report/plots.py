"""Speed against distance, as in the paper's figure 6: one panel per column of the table, one line of panels
per device, since seconds of two devices do not share an axis."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mar_bench.config import Experiment
from mar_bench.errors import UserError
from mar_bench.ids import reconstruction_run
from mar_bench.records import Record, atomic_write
from mar_bench.report.cells import collect, floor_of, floors, seed_values, speeds, spread
from mar_bench.report.wording import (
    axis_labels,
    column_axes,
    describe,
    metric_title,
    row_axes,
    scale_title,
    thousands,
)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
NEUTRAL = "0.35"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
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


def speed_accuracy(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Draw distance against seconds per image; write ``stem`` with .png, .pdf and .svg and return their paths.

    Equal records give equal bytes. Raises UserError where no row has both a distance and a speed."""
    points = _points(experiment, records)
    with rc_context({**sns.axes_style("ticks"), **STYLE}):
        figure = _draw(experiment, points, floors(experiment, records))
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


def _points(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per row and device that has both numbers: distance with sd, seconds with quartiles, panel, hue,
    style (the texts of column, colour and marker)."""
    cells, timed = collect(experiment, records), speeds(experiment, records)
    run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
    if timed.empty:
        raise UserError(
            f"no speed records of {experiment.id} at scale {experiment.scale}; {run} measures them"
        )
    distances = {row: spread(seed_values(cells, row)) for row in experiment.rows}
    if not any(d.n for d in distances.values()):
        raise UserError(
            f"no generation records of {experiment.id} at scale {experiment.scale}; {run} makes them"
        )
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
            lines.append({**line, **texts, "fd": distance.mean, "sd": distance.sd or 0.0})
    if not lines:
        raise UserError(
            f"{experiment.id} at scale {experiment.scale}: no row has both a speed and a generation record; "
            f"{run} makes the missing ones"
        )
    return pd.DataFrame(lines)


def _draw(experiment: Experiment, points: pd.DataFrame, floor_frame: pd.DataFrame) -> Figure:
    looks = _Looks(experiment)
    settings = sorted(points["setting"].unique())
    panels = [p for p in looks.panels if p in set(points["panel"])]
    figure = Figure(figsize=(3.1 * len(panels) + 2.3, 2.9 * len(settings) + 0.7), layout="constrained")
    grid = figure.subplots(len(settings), len(panels), squeeze=False)
    for (i, setting), (j, panel) in itertools.product(enumerate(settings), enumerate(panels)):
        ax = grid[i][j]
        chosen = points[(points["setting"] == setting) & (points["panel"] == panel)]
        _panel(ax, chosen, looks)
        _floor_lines(ax, experiment, chosen, floor_frame, looks)
        ax.set_title(panel if i == 0 else "")
        ax.set_xlabel(f"seconds per image\n{setting}" if i < len(settings) else "")
        ax.set_ylabel(metric_title(experiment, "fd") if j == 0 else "")
    sns.despine(fig=figure)
    _legend(figure, looks, points, with_floors=floor_frame["row"].isin(points["row"]).any())
    generated = next(iter(experiment.rows.values())).sampling.num_images
    title = f"{metric_title(experiment, 'fd')} of {thousands(generated)} images, {scale_title(experiment)}"
    figure.suptitle(f"{experiment.title}\n{title}", fontsize=10, x=0.01, ha="left")
    return figure


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
        edgecolor="white",
        linewidth=0.6,
        legend=False,
        zorder=3,
        ax=ax,
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.12)


def _floor_lines(
    ax: Axes, experiment: Experiment, points: pd.DataFrame, floor_frame: pd.DataFrame, looks: _Looks
) -> None:
    """A dashed line for each tokenizer, in the colour of its rows where these have one colour."""
    tokenizers: dict[str, set[str]] = {}
    values: dict[str, float] = {}
    for point in points.to_dict("records"):
        row, floor = point["row"], floor_of(floor_frame, point["row"])
        if not math.isnan(floor):
            tokenizer = reconstruction_run(row, experiment.rows[row]).cell_id
            tokenizers.setdefault(tokenizer, set()).add(point["hue"])
            values[tokenizer] = floor
    for tokenizer, hues in tokenizers.items():
        colour = looks.colours[next(iter(hues))] if len(hues) == 1 else NEUTRAL
        ax.axhline(values[tokenizer], color=colour, linestyle=(0, (4, 2)), linewidth=1, zorder=1)
    ax.set_ylim(bottom=0)  # so that heights compare as distances do


def _legend(figure: Figure, looks: _Looks, points: pd.DataFrame, with_floors: bool) -> None:
    """Outside the panels: colours, markers, floor and what the bars are."""

    def heading(text: str) -> Line2D:
        return Line2D([], [], linestyle="none", label=text)

    def dot(text: str, marker: str, colour: str) -> Line2D:
        return Line2D(
            [], [], linestyle="none", marker=marker, color=colour, markeredgecolor="white", label=text
        )

    handles = [heading(looks.hue_title)]
    handles += [dot(text, "o", colour) for text, colour in looks.colours.items()]
    if looks.style_title:
        handles += [heading(looks.style_title)]
        handles += [dot(text, marker, NEUTRAL) for text, marker in looks.markers.items()]
    if with_floors:
        handles.append(
            Line2D([], [], color=NEUTRAL, linestyle=(0, (4, 2)), linewidth=1, label="reconstruction alone")
        )
    bars = "± sd over seeds; quartiles of the time" if points["sd"].any() else "quartiles of the time"
    handles.append(heading(f"bars: {bars}"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
