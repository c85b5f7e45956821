"""The page on copies: generated images beside the training images nearest to them, and how near all of them are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment
from mar_bench.report.format import axis_labels, describe, extractors, scale_title
from mar_bench.report.samples import DPI, GAP, is_dark, pixels_of
from mar_bench.utils.files import atomic_write

ROOM = 6  # white pixels between a generated image and its neighbours
CLOSENESS = (0.2, 5.0)  # range of the curves' axis


def neighbour_page(experiment: Experiment, row: str, found, path: Path) -> Path:
    """Write one PNG of a row's ``neighbours.Neighbours`` and return its path.

    Left: a line is a generated image, then its nearest training images; first those that are closest of all. Right:
    which share of images is at least how close, of the generated ones and of held-out ones."""
    half = len(found.shown) // 2
    inverted = is_dark([found.samples])
    sheets = [_sheet(found, rows, inverted) for rows in (range(half), range(half, len(found.shown)))]
    with rc_context({"font.size": 7, "axes.titlesize": 7}):
        figure = Figure(figsize=(7.2, 0.9 + 2.0 * sheets[0].shape[0] / sheets[0].shape[1]), layout="constrained")
        closest, first, curves = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for ax, sheet, title in ((closest, sheets[0], "closest of all"), (first, sheets[1], "first ones")):
            ax.imshow(sheet, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(f"{title}: generated | training", loc="left")
        _curves(curves, found)
        names = "/".join(extractors(experiment)) or "Inception"
        label = describe(axis_labels(experiment, row, experiment.labels))
        figure.suptitle(
            f"{experiment.title}, {scale_title(experiment)}\n{label}\n"
            f"Generated images, and behind each the training images nearest to it in the features of {names}",
            fontsize=8, x=0.01, ha="left",
        )  # fmt: skip
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    atomic_write(path, content.getvalue())
    return path


def _curves(ax, found) -> None:
    for values, label, style in ((found.closeness, "generated", "-"), (found.real, "real, held out", "--")):
        # a copy is at 0, which a logarithmic axis has not: at its left end
        near = np.sort(values).clip(min=CLOSENESS[0])
        ax.plot(near, np.arange(1, len(near) + 1) / len(near), style, label=label, linewidth=1.2)
    ax.axvline(1, color="0.5", linewidth=0.8)
    ax.set(xscale="log", xlim=CLOSENESS, ylim=(0, 1), ylabel="share of images at most so far away")
    ax.set_xticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
    ax.set_xticks((), minor=True)
    ax.set_xlabel("distance to the nearest training image /\nthat one's distance to its nearest other")
    sets = (("generated", found.closeness), ("real", found.real))
    shares = [f"{label} {(values <= 1).mean():.0%}" for label, values in sets]
    ax.set_title(f"copied (left of 1): {', '.join(shares)}", loc="left")
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)


def _sheet(found, rows: range, inverted: bool) -> np.ndarray:
    """One float image (h, w, 3): a line for each of the rows."""
    lines = []
    for i in rows:
        images = [pixels_of(image, inverted) for image in (found.samples[i], *found.found[i])]
        height = images[0].shape[0]
        line = [images[0], np.ones((height, ROOM, 3))]
        for image in images[1:]:
            line += [image, np.ones((height, GAP, 3))]
        lines += [np.concatenate(line[:-1], axis=1), np.ones((GAP, sum(part.shape[1] for part in line[:-1]), 3))]
    return np.concatenate(lines[:-1])
