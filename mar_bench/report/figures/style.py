"""The one style of all figures, and how files are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib.figure import Figure

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
SHEET: Any = {"font.size": 7, "axes.titlesize": 7}  # of images
# without dates and versions, so that equal records give equal bytes
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


def save(figure: Figure, path: Path, **layout: Any) -> Path:
    """Write a figure in the format that the path ends with; return the path."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=200, metadata=METADATA[path.suffix], **layout)
    atomic_write(path, content.getvalue())
    return path
