"""Images of a page: sheets of many small images as one data URI each."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mar_bench.report.figures.sheets import is_dark, panel, tiled

MOST_PIXELS = 64  # width of an image on a sheet; larger ones are reduced
COLUMNS, ROWS = 10, 2
Curve = list[tuple[int, float]]  # training step and loss


@dataclass(frozen=True)
class Pictures:
    """What the run folder has of an experiment, by row; images are uint8 (N, C, H, W)."""

    samples: dict[str, np.ndarray] = field(default_factory=dict)  # of one pair of seeds, image i of class i mod C
    strips: dict[str, np.ndarray] = field(default_factory=dict)  # one image after more and more AR steps
    reconstructions: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # held-out, decoded again
    curves: dict[str, Curve] = field(default_factory=dict)


def sheets(images: dict[str, np.ndarray], num_classes: int, invert: bool) -> dict[str, str]:
    """Row -> a sheet of its first images as a data URI, a class in each column."""
    return {
        row: data_uri(panel(reduced(batch[: ROWS * COLUMNS]), num_classes, invert)) for row, batch in images.items()
    }


def strip(frames: np.ndarray, invert: bool) -> str:
    """Images (N, C, H, W) side by side, as a data URI."""
    return data_uri(tiled(reduced(frames), len(frames), invert))


def pairs(first: np.ndarray, second: np.ndarray, invert: bool) -> str:
    """A line of images above a line of their counterparts, as a data URI."""
    count = min(COLUMNS, len(first), len(second))
    return data_uri(tiled(reduced(np.concatenate([first[:count], second[:count]])), count, invert))


def dark(pictures: Pictures) -> bool:
    """Whether all images are grey on a dark background and so are drawn inverted."""
    return is_dark(pictures.samples.values()) if pictures.samples else False


def reduced(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) at most MOST_PIXELS wide; each pixel is the mean of those it replaces."""
    step = -(-images.shape[-1] // MOST_PIXELS)
    if step == 1:
        return images
    count, channels, height, width = images.shape
    cut = images[:, :, : height - height % step, : width - width % step]
    blocks = cut.reshape(count, channels, height // step, step, width // step, step)
    return blocks.mean((3, 5)).round().astype(np.uint8)


def data_uri(sheet: np.ndarray) -> str:
    """A float image (h, w, 3) in [0, 1] as a data URI, in whichever of PNG and WebP takes fewer bytes."""
    pixels = (sheet * 255).round().astype(np.uint8)
    grey = bool((pixels == pixels[..., :1]).all())
    image, best = Image.fromarray(pixels[..., 0] if grey else pixels), None
    for kind, options in (("png", {"optimize": True}), ("webp", {"quality": 85, "method": 4})):
        image.save(content := io.BytesIO(), kind, **options)
        if best is None or len(content.getvalue()) < len(best[1]):
            best = kind, content.getvalue()
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode()}"


def file_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
