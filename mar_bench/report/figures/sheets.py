"""Sheets of images: generated images, one panel per table row; possible copies beside the nearest training images."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment
from mar_bench.report import format as fmt
from mar_bench.report.figures.panels import save
from mar_bench.utils.errors import UserError

COLUMNS, ROWS = 10, 3  # images of a panel, at most
GAP = 1  # white pixels between images
DARK = 64  # images whose median grey is below this are drawn inverted
PANEL_INCHES = 3.3
CHARACTER_INCHES = 0.06  # of the titles, on average
CLOSENESS = (0.2, 5.0)  # range of the curves of copies
SHEET: Any = {"font.size": 7, "axes.titlesize": 7, "text.parse_math": False}


def sample_grid(experiment: Experiment, images: dict[str, np.ndarray], path: Path) -> Path:
    """Write one PNG with a panel per row key of ``images`` and return its path.

    ``images``: row -> uint8 (N, C, H, W), C 1 or 3, image i of class i mod num_classes. With up to ten classes a column
    of a panel is a class; with more, a panel shows the first images, each of another class. Grey images on a dark
    background (handwritten digits) are drawn inverted, either all of a sheet or none. Raises UserError if there is
    nothing to draw."""
    images = {row: batch for row, batch in images.items() if len(batch)}
    if not images:
        run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
        raise UserError(f"no images of {experiment.id} at scale {experiment.scale}; {run} draws them")
    inverted = is_dark(images.values())
    panels = {row: panel(batch, experiment.rows[row].data.num_classes, inverted) for row, batch in images.items()}
    with rc_context(SHEET):
        return save(_draw(experiment, panels), path)


def panel(images: np.ndarray, num_classes: int, inverted: bool = False) -> np.ndarray:
    """uint8 (N, C, H, W) -> one float image (h, w, 3) in [0, 1]: classes side by side, white between."""
    columns = min(num_classes, COLUMNS, len(images))
    return tiled(images[: ROWS * columns], columns, inverted)


def tiled(images: np.ndarray, columns: int, inverted: bool) -> np.ndarray:
    """uint8 (N, C, H, W) -> one float image (h, w, 3) in [0, 1], line by line with white gaps."""
    _, _, height, width = images.shape
    sheet = np.ones((-(-len(images) // columns) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3))
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        pixels = np.moveaxis(image, 0, -1) / 255.0
        sheet[top : top + height, left : left + width] = 1 - pixels if inverted else pixels
    return sheet


def is_dark(batches: Iterable[np.ndarray]) -> bool:
    """Whether all are grey images on a dark background, which are drawn inverted."""
    return all(batch.shape[1] == 1 and np.median(batch) < DARK for batch in batches)


def _draw(experiment: Experiment, panels: dict[str, np.ndarray]) -> Figure:
    lines, columns = fmt.lines_and_columns(experiment)
    lines = [line for line in lines if any(fmt.row_at(experiment, line, c) in panels for c in columns)]
    columns = [c for c in columns if any(fmt.row_at(experiment, line, c) in panels for line in lines)]
    tallest = max(sheet.shape[0] / sheet.shape[1] for sheet in panels.values())
    size = PANEL_INCHES * len(columns), (PANEL_INCHES * tallest + 0.24) * len(lines) + 0.5
    figure = Figure(figsize=size, layout="constrained")
    characters = int(size[0] / CHARACTER_INCHES)
    for line, axes in zip(lines, figure.subplots(len(lines), len(columns), squeeze=False)):
        rows = [fmt.row_at(experiment, line, column) for column in columns]
        label = textwrap.fill(fmt.row_words(experiment, rows[0], fmt.row_axes(experiment)), characters)
        axes[0].set_title(label, loc="left", pad=3)
        for ax, row in zip(axes, rows):
            ax.set_axis_off()
            if row in panels:
                ax.imshow(panels[row])
            else:
                ax.text(0.5, 0.5, "no samples", ha="center", va="center", color="0.5", transform=ax.transAxes)
            if line == lines[0]:  # above the line's label
                heading = fmt.row_words(experiment, row, fmt.column_axes(experiment))
                ax.set_title(heading + "\n" * (1 + label.count("\n")), pad=3)
    title = textwrap.fill(f"{experiment.title}, {fmt.scale_title(experiment)}", characters)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    return figure


def neighbour_page(experiment: Experiment, row: str, found, path: Path) -> Path:
    """Write one PNG of a row's ``neighbours.Neighbours`` and return its path.

    Left: each line shows a generated image, then its nearest training images; the closest of all come first. Right:
    the cumulative distribution of closeness, for generated and for held-out images."""
    images = np.concatenate([found.samples[:, None], found.found], axis=1)  # (n, 1 + k, C, H, W)
    inverted, half = is_dark([found.samples]), len(images) // 2
    sheets = [tiled(np.concatenate(part), images.shape[1], inverted) for part in (images[:half], images[half:])]
    with rc_context(SHEET):
        figure = Figure(figsize=(7.2, 0.9 + 2.0 * sheets[0].shape[0] / sheets[0].shape[1]), layout="constrained")
        closest, first, curves = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for ax, sheet, title in ((closest, sheets[0], "closest of all"), (first, sheets[1], "first ones")):
            ax.imshow(sheet, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(f"{title}: generated | training", loc="left")
        names = "/".join(fmt.extractors(experiment)) or "Inception"
        for label, values, style in (("generated", found.closeness, "-"), ("real, held out", found.real, "--")):
            near = np.sort(values).clip(min=CLOSENESS[0])  # a copy is at 0, which a logarithmic axis does not have
            share = f"{label}: {(values <= 1).mean():.0%} copied"
            curves.plot(near, np.arange(1, len(near) + 1) / len(near), style, label=share, linewidth=1.2)
        curves.axvline(1, color="0.5", linewidth=0.8)  # images left of it count as copied
        curves.set(xscale="log", xlim=CLOSENESS, ylim=(0, 1), ylabel="share of images at most so far away")
        curves.set_xticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
        curves.set_xticks((), minor=True)
        curves.set_xlabel("distance to the nearest training image /\nthat one's distance to its nearest other")
        curves.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        figure.suptitle(
            f"{experiment.title}, {fmt.scale_title(experiment)}\n{fmt.row_words(experiment, row)}\n"
            f"Generated images and their nearest training images, by the features of {names}",
            fontsize=8, x=0.01, ha="left",
        )  # fmt: skip
        return save(figure, path)
