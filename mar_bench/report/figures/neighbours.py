"""The page on copies: generated images beside the training images nearest to them, and how near all of them are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment
from mar_bench.report.figures.samples import is_dark, tiled
from mar_bench.report.figures.style import SHEET, save
from mar_bench.report.format import extractors, row_words, scale_title

CLOSENESS = (0.2, 5.0)  # range of the curves' axis


def neighbour_page(experiment: Experiment, row: str, found, path: Path) -> Path:
    """Write one PNG of a row's ``neighbours.Neighbours`` and return its path.

    Left: a line is a generated image, then its nearest training images; first those that are closest of all. Right:
    which share of images is at least how close, of the generated ones and of held-out ones."""
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
        names = "/".join(extractors(experiment)) or "Inception"
        _curves(curves, {"generated": found.closeness, "real, held out": found.real})
        figure.suptitle(
            f"{experiment.title}, {scale_title(experiment)}\n{row_words(experiment, row)}\n"
            f"Generated images and their nearest training images, by the features of {names}",
            fontsize=8, x=0.01, ha="left",
        )  # fmt: skip
        return save(figure, path)


def _curves(ax: Axes, closeness: dict[str, np.ndarray]) -> None:
    for (label, values), style in zip(closeness.items(), ("-", "--")):
        near = np.sort(values).clip(min=CLOSENESS[0])  # a copy is at 0, which a logarithmic axis does not have
        share = f"{label}: {(values <= 1).mean():.0%} copied"
        ax.plot(near, np.arange(1, len(near) + 1) / len(near), style, label=share, linewidth=1.2)
    ax.axvline(1, color="0.5", linewidth=0.8)  # copied are those left of it
    ax.set(xscale="log", xlim=CLOSENESS, ylim=(0, 1), ylabel="share of images at most so far away")
    ax.set_xticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
    ax.set_xticks((), minor=True)
    ax.set_xlabel("distance to the nearest training image /\nthat one's distance to its nearest other")
    ax.legend(frameon=False, loc="lower right")
