"""What curves and trade-offs share: the look of their lines, bars, published points and the legend."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mar_bench.config.experiment import Experiment
from mar_bench.report.figures.speed import CHARACTER_INCHES, MARKERS, NEUTRAL, title
from mar_bench.report.format import label_of

MARKER_SIZE = 5
TITLE_INCHES = 0.072  # a character of it, on average
LEGEND_INCHES = 0.19  # a line of it


def heading(experiment: Experiment, width: float) -> str:
    """The figure's title in lines that fit on so many inches."""
    characters = int(width / TITLE_INCHES)
    return "\n".join(line for text in title(experiment).splitlines() for line in textwrap.wrap(text, characters))


class Looks:
    """Colour and marker of every line, the same whichever records are there."""

    def __init__(self, experiment: Experiment):
        self.title = experiment.figure.get("line", "")
        self.lines = list(dict.fromkeys(label_of(experiment, row, self.title) for row in experiment.rows))
        self.colours = dict(zip(self.lines, sns.color_palette("colorblind", len(self.lines)).as_hex()))
        self.markers = dict(zip(self.lines, itertools.cycle(MARKERS)))


def hollow(ax: Axes, x: Iterable[float], y: Iterable[float], looks: Looks, line: str) -> None:
    """Published points, above the others since they may be the same."""
    ax.plot(
        list(x),
        list(y),
        linestyle="none",
        marker=looks.markers[line],
        markersize=MARKER_SIZE + 2.5,
        markerfacecolor="none",
        markeredgecolor=looks.colours[line],
        zorder=4,
    )


def legend(figure: Figure, looks: Looks, published: str, bars: str, width: float) -> None:
    """Below the panels: the lines that the figure has, what a hollow marker is and what the bars are."""
    handles = legend_handles(looks, published, bars)
    columns = columns_that_fit(handles, width)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=looks.title or None)


def legend_handles(looks: Looks, published: str, bars: str) -> list[Line2D]:
    handles = [
        Line2D([], [], color=looks.colours[line], marker=looks.markers[line], markersize=MARKER_SIZE, label=line)
        for line in looks.lines
        if line
    ]
    if published:
        look = {"markersize": MARKER_SIZE + 2.5, "markerfacecolor": "none", "color": NEUTRAL}
        handles.append(Line2D([], [], linestyle="none", marker="o", label=published, **look))
    if bars:
        handles.append(Line2D([], [], color=NEUTRAL, marker="|", markersize=MARKER_SIZE, linewidth=1, label=bars))
    return handles


def columns_that_fit(handles: list[Line2D], width: float) -> int:
    """How many columns of the legend stand beside each other on so many inches."""
    widest = max((len(handle.get_label()) for handle in handles), default=0) + 7
    return max(1, min(len(handles), 4, int(width / (CHARACTER_INCHES * widest))))


def legend_inches(handles: list[Line2D], width: float) -> float:
    """How high the legend is, with its title."""
    return LEGEND_INCHES * (1 + -(-len(handles) // columns_that_fit(handles, width)))
