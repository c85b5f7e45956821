"""Draw a tidy frame of points: a column of panels for each metric or guidance, a line of panels for each device.

This module also has the common style of all figures and writes the files."""

from __future__ import annotations

import hashlib
import io
import itertools
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from mar_bench.utils.console import printable
from mar_bench.utils.files import atomic_write, with_folder

MARKERS = "os^DvPX<>*"
LINES = ("-", "--")
MARKER_SIZE = 5.5
HOLLOW_SIZE = 8  # of the paper's points, which may coincide with ours
NEUTRAL = "0.35"
FLOOR: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1}
STYLE = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", rc={"lines.markersize": MARKER_SIZE}),
    "text.parse_math": False,  # a dollar in a label is a dollar
    "legend.frameon": False,
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.6,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.edgecolor": "0.5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mar_bench",  # equal records give equal ids in the svg
    "pdf.fonttype": 42,
}
# without dates and versions, so that equal records give equal bytes
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}
PANEL_INCHES = 2.5, 2.2  # two panels keep their texts readable in a column of 3.3 inches
CHARACTERS = 36  # that fit the width of a panel
MOST_TICKS = 6  # if a knob has more values, not each of them gets a tick
MIN_RATIO = 6  # between the ends of a logarithmic axis, so that at least two of its ticks at 1, 2 and 5 are visible
MOST_RATIO = 60  # up to this ratio there is room for all these ticks


# offsets of a name from its point in points of 1/72 inch, best first
PLACES = ((9, 4), (-9, 4), (9, -9), (-9, -9), (0, 8), (0, -12), (12, 9), (-12, 9), (12, -14), (0, 16), (0, -20))


@dataclass(frozen=True)
class Plot:
    """``points`` has the columns panel, setting, x, x_low, x_high (quartiles), y, sd, colour, marker and line (texts of
    the legend), name (written beside the point) and published (the paper's, drawn hollow)."""

    points: pd.DataFrame
    title: str
    panels: dict[str, str]  # panel -> label of its y axis, with the unit
    # title -> texts: of the colours, and of the markers or lines unless these are the same
    legend: dict[str, list[str]]
    x_label: str
    joined: bool  # whether points of one colour are joined in the order of x
    bars: str  # meaning of the error bars
    x_values: list[float] = field(default_factory=list)  # of a knob; empty if x is seconds
    log_x: bool = True
    over_training: bool = False  # settings name the y axes of a line of panels, panels the x axes of a column
    floors: pd.DataFrame | None = None  # panel, value, colour, name
    against: str = ""  # ``vs training``: the images of the floors' distances


@dataclass(frozen=True)
class Encoding:
    """How texts of the legend are drawn; a line has a style, and a fill of its markers."""

    colours: dict[str, str]
    markers: dict[str, str]
    lines: dict[str, tuple[str, str]]


def wrapped(setting: str) -> list[str]:
    """The lines of a setting below an axis, which break at its commas."""
    lines = textwrap.wrap(setting.replace(" ", "\xa0").replace(",\xa0", ", "), CHARACTERS)
    return [line.replace("\xa0", " ") for line in lines]


def fingerprint(plot: Plot) -> str:
    """A digest of what a figure shows, by which one of other records is known whatever draws it."""
    floors = "" if plot.floors is None else plot.floors.to_csv(float_format="%.6g")
    shown = plot.points.to_csv(float_format="%.6g") + floors + repr((plot.title, plot.panels, plot.legend, plot.bars))
    return hashlib.sha256(shown.encode()).hexdigest()[:12]


def save(figure: Figure, path: Path, about: str | None = None, **layout: Any) -> Path:
    """Write a figure in the format that the path ends with, ``about`` in its metadata; return the path."""
    _make_printable(figure)
    content, metadata = io.BytesIO(), METADATA[path.suffix]
    if about:
        metadata = metadata | {"Subject" if path.suffix == ".pdf" else "Description": about}
    figure.savefig(content, format=path.suffix[1:], dpi=200, metadata=metadata, **layout)
    atomic_write(with_folder(path), _grey(content) if path.suffix == ".png" else content.getvalue())
    return path


def _grey(content: io.BytesIO) -> bytes:
    """A PNG in one channel if it has no colour, which halves a sheet of handwritten digits."""
    image = Image.open(content).convert("RGB")
    red, green, blue = image.split()
    if not red.tobytes() == green.tobytes() == blue.tobytes():
        return content.getvalue()
    red.save(smaller := io.BytesIO(), "png", optimize=True)
    return smaller.getvalue()


def _make_printable(figure: Figure) -> None:
    """Replace control characters, which fonts lack and an svg must not contain."""
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text(), keep="\n"))


def render(plot: Plot) -> Figure:
    points, (first, *_, last) = plot.points, [*plot.legend.values()] * 2
    colours = dict(zip(first, sns.color_palette("colorblind", len(first)).as_hex()))
    by_line = points["line"].any()  # then markers stand for what colours do
    code = Encoding(colours, dict(zip(first if by_line else last, itertools.cycle(MARKERS))), {"": (LINES[0], "full")})
    if by_line:
        code.lines.update(zip(last, itertools.cycle(zip(LINES, ("full", "none")))))
    settings, panels = sorted(points["setting"].unique()), list(plot.panels)
    size = PANEL_INCHES[0] * len(panels), PANEL_INCHES[1] * len(settings)
    figure = Figure(figsize=size, layout="constrained")
    share: Any = {"sharex": "col", "sharey": "row"} if plot.over_training else {"sharex": "row"}
    grid = figure.subplots(len(settings), len(panels), squeeze=False, **share)
    for axes, setting in zip(grid, settings):
        for ax, panel in zip(axes, panels):
            here = points[(points["setting"] == setting) & (points["panel"] == panel)]
            if plot.over_training:
                ax.set_ylabel(setting if panel == panels[0] else "")
                ax.set_xlabel(plot.panels[panel] if setting == settings[-1] else "")
            elif not plot.x_values:
                ax.set_title(panel)
            if here.empty and plot.over_training:
                continue  # the panels share their axes
            if here.empty:
                ax.set_axis_off()
                ax.text(0.5, 0.5, "no points", ha="center", color=NEUTRAL, transform=ax.transAxes)
                continue
            _points(ax, here, plot.joined, code)
            if plot.over_training:
                ax.set_xscale("log")
                _decades(ax.xaxis, (1, 3))
                _scale_y(ax, points[points["setting"] == setting]["y"])
                continue
            if plot.floors is not None:
                _floors(ax, plot.floors[plot.floors["panel"] == panel], colours)
            ax.set_xlabel("\n".join([plot.x_label, *wrapped(setting)]))
            ax.margins(y=0.1)
            ax.set_ylabel(plot.panels[panel])
            if plot.joined and not plot.x_values:
                _scale_y(ax, here["y"])
        if not plot.over_training:
            _scale_x(axes[0], plot)
    _legend(figure, plot, code)
    title = "\n".join(textwrap.fill(line, CHARACTERS * len(panels)) for line in plot.title.splitlines())
    figure.suptitle(title, fontsize=9, x=0.01, y=1.01, ha="left", va="bottom")
    _make_printable(figure)
    figure.draw_without_rendering()  # fixes the places of the points
    for ax in grid.flat:
        _place_names(ax)
    return figure


def _points(ax: Axes, points: pd.DataFrame, joined: bool, code: Encoding) -> None:
    keys = ["colour", "marker", "line"]
    for (colour, marker, line), group in points.sort_values("x", kind="stable").groupby(keys, sort=False):
        look: dict[str, Any] = {"color": code.colours[str(colour)], "marker": code.markers[str(marker)]}
        ours, theirs = group[~group["published"]], group[group["published"]]
        quartiles = np.array([ours["x"] - ours["x_low"], ours["x_high"] - ours["x"]]).clip(min=0)
        ax.errorbar(
            ours["x"], ours["y"], ours["sd"], quartiles, linewidth=1.3, elinewidth=1, capsize=2, zorder=3,
            **look, **_stroke(joined, look["color"], *code.lines[str(line)]),
        )  # fmt: skip
        ax.plot(theirs["x"], theirs["y"], linestyle="none", fillstyle="none", markersize=HOLLOW_SIZE, zorder=4, **look)
        for name, x, y in zip(ours["name"], ours["x"], ours["y"]):
            if name:
                halo = [withStroke(linewidth=2, foreground="white")]
                text = ax.annotate(
                    name, (x, y), xytext=PLACES[0], textcoords="offset points", fontsize=7, zorder=5, ha="center"
                )
                text.set(color=look["color"], path_effects=halo, in_layout=False)


def _floors(ax: Axes, floors: pd.DataFrame, colours: dict[str, str]) -> None:
    """A dashed line for each tokenizer alone, from a y axis that starts at 0."""
    for value, colour, name in zip(floors["value"], floors["colour"], floors["name"]):
        ax.axhline(value, color=colours.get(colour, NEUTRAL), zorder=1, **FLOOR)
        side = "bottom" if value == floors["value"].max() else "top"  # the lines may be close together
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": side}
        ax.annotate(name, (1, value), xytext=(2, 0), fontsize=7, color=NEUTRAL, **place)
    ax.set_ylim(bottom=0)


def is_wide(values: pd.Series) -> bool:
    """Whether a plain axis would press most points together; never if a logarithmic one cannot show them."""
    return bool(values.min() > 0 and values.max() > MIN_RATIO * values.min())


def _short(number: float) -> str:
    """``0.002``, ``5000``, ``300k``."""
    if number >= 10_000:
        return f"{number / 1000:g}k"
    return np.format_float_positional(number, precision=6, trim="-")


def _decades(axis: Axis, ticks: tuple[int, ...]) -> None:
    """Ticks of a logarithmic axis at these multiples of every decade, as plain numbers."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(LogLocator(subs=ticks))


def _scale_y(ax: Axes, values: pd.Series) -> None:
    if is_wide(values):
        ax.set_yscale("log")
        _decades(ax.yaxis, (1, 2, 5))


def _scale_x(ax: Axes, plot: Plot) -> None:
    """Put a tick at every value of a knob if there is room; seconds get a logarithmic axis, a few ticks per decade."""
    if plot.log_x:
        ax.set_xscale("log")
    ax.margins(x=0.06 if plot.x_values else 0.12)
    if not plot.x_values:
        low, high = ax.get_xlim()
        factor = max(1.0, MIN_RATIO * low / high) ** 0.5
        ax.set_xlim(low / factor, high * factor)
        _decades(ax.xaxis, (1, 2, 5) if high / low < MOST_RATIO else (1, 3))
    elif plot.log_x or len(plot.x_values) <= MOST_TICKS:
        ax.set_xticks(
            plot.x_values, [f"{value:.0f}" if value.is_integer() else f"{value:.3g}" for value in plot.x_values]
        )
        ax.xaxis.set_minor_locator(NullLocator())


def _stroke(joined: bool, colour: str, line: str, fill: str) -> dict[str, Any]:
    """The line and the marker of a curve, or of points that are not joined. Hollow markers hide the line."""
    edge = {"markeredgecolor": colour, "markerfacecolor": "white"} if fill == "none" else {"markeredgecolor": "none"}
    return {"linestyle": line if joined else "none", "markersize": MARKER_SIZE, **edge}


def _handle(label: str, **look: Any) -> Line2D:
    """An entry of the legend; by default text alone."""
    return Line2D([], [], **{"linestyle": "none", "color": NEUTRAL, "markersize": MARKER_SIZE, "label": label, **look})


def _legend(figure: Figure, plot: Plot, code: Encoding) -> None:
    """Draw one legend below the panels: colours and markers in columns under bold headings, or one below the other."""
    notes = []
    if plot.floors is not None and len(plot.floors):
        notes.append(_handle(f"reconstruction alone, {plot.against}", **FLOOR))
    if plot.points["published"].any():
        where = "" if plot.x_values else " (one A100)"
        notes.append(_handle(f"paper{where}", marker="o", fillstyle="none", markersize=HOLLOW_SIZE))
    if plot.bars:
        notes.append(_handle(f"bars: {plot.bars}", marker="|" if plot.x_values else "+", markersize=8))
    title, *second = plot.legend
    wide = len(plot.panels) > 1
    filled = _stroke(plot.joined, NEUTRAL, *code.lines[""])
    first = [_handle(t, color=c, marker=code.markers.get(t, "o"), **filled) for t, c in code.colours.items() if t]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01)}
    if not second:
        figure.legend(handles=[*first, *notes], ncols=2 if wide else 1, title=title or None, **place)
        return
    lines = {t: {"marker": "o", **_stroke(plot.joined, NEUTRAL, *line)} for t, line in code.lines.items() if t}
    shown = lines or {t: {"marker": marker, **filled} for t, marker in code.markers.items()}
    columns = [
        [_handle(title), *first],
        [_handle(second[0]), *(_handle(t, **(shown[t])) for t in plot.legend[second[0]])],
    ]
    min(columns, key=len).extend(notes)
    texts = [max(len(str(handle.get_label())) for handle in column) for column in columns]
    wide = wide and sum(texts) < 1.1 * CHARACTERS * len(plot.panels)
    longest = max(map(len, columns)) if wide else 0
    handles = [h for column in columns for h in column + [_handle("")] * (longest - len(column))]
    legend = figure.legend(handles=handles, ncols=2 if wide else 1, **place)
    for column in columns:
        legend.get_texts()[handles.index(column[0])].set_fontweight("bold")


def _place_names(ax: Axes) -> None:
    """Write each name beside its point, where it hides the fewest points and names."""
    names = [text for text in ax.texts if isinstance(text, Annotation) and text.get_path_effects()]
    points = [ax.transData.transform(text.xy) for text in names]
    taken = [Bbox([at - MARKER_SIZE, at + MARKER_SIZE]) for at in points]
    for text in names:
        boxes = {}
        for place in PLACES:
            text.set_position(place)
            boxes[place] = text.get_window_extent()
        best = min(PLACES, key=lambda place: boxes[place].count_overlaps(taken))
        text.set_position(best)
        taken += [boxes[best]] * 2  # worse to hide than a marker
