"""The one style of all figures: fonts, colours and markers, the legend, and how files are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mar_bench.utils.files import atomic_write

MARKERS = "os^DvPX<>*"
MARKER_SIZE = 5.5
HOLLOW_SIZE = 8  # of the paper's points, which may coincide with ours
NEUTRAL = "0.35"
FLOOR: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1}
STYLE = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", rc={"lines.markersize": MARKER_SIZE}),
    "legend.frameon": False,
    "legend.columnspacing": 1.5,
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
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
DPI = 200


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem`` with .png, .pdf and .svg, cropped to what is drawn; return their paths."""
    paths = []
    for kind, metadata in METADATA.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.05)
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        atomic_write(paths[-1], content.getvalue())
    return paths


def handle(label: str, **look) -> Line2D:
    """An entry of the legend; by default text alone."""
    return Line2D([], [], **{"linestyle": "none", "color": NEUTRAL, "markersize": MARKER_SIZE, "label": label, **look})


def legend_below(figure: Figure, groups: dict[str, list[Line2D]], notes: list[Line2D], wide: bool) -> None:
    """One legend below the panels. Several groups become columns under bold headings, or one column unless ``wide``."""
    if len(groups) == 1:
        ((title, handles),) = groups.items()
        handles, columns, headings = [*handles, *notes], 3 if wide else 1, []
    else:
        headings = [handle(title) for title in groups]
        lists = [[head, *handles] for head, handles in zip(headings, groups.values())]
        min(lists, key=len).extend(notes)
        longest = max(map(len, lists)) if wide else 0
        handles = [h for of_group in lists for h in of_group + [handle("")] * (longest - len(of_group))]
        title, columns = None, len(lists) if wide else 1
    place: dict[str, Any] = {"bbox_to_anchor": (0.5, -0.01), "ncols": columns, "title": title or None}
    legend = figure.legend(handles=handles, loc="upper center", **place)
    for head in headings:
        legend.get_texts()[handles.index(head)].set_fontweight("bold")
