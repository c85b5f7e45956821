"""MNIST's file format, as MNIST, Fashion-MNIST, KMNIST and EMNIST are published in: four files in one folder.

Images of 28 x 28 pixels are padded to 32 x 32; EMNIST's are stored transposed. Never imports torch."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mar_bench.config.spec import IdxData
from mar_bench.models.pretrained.fetch import weights_folder
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading

SIDE, MARGIN = 28, 2  # pixels of an image, and of the black border on each side of it
UINT8 = 8  # the code of the type in the header: 0, 0, type, number of dimensions, then their sizes as big-endian int32
MOST_IMAGES = 2**21  # in a file: EMNIST has 814,255; bounds what a small compressed file may expand to
EMNIST = "emnist-"  # the prefix of its files, which hold one of several splits, and of its names here
HINT = "copy or fetch the file again"


class Part(NamedTuple):
    """Images uint8 (N, 32, 32) and labels int64 (N,), which begin at 0."""

    pixels: np.ndarray
    labels: np.ndarray


def root_of(data: IdxData) -> Path:
    """``data.root``, else the folder to which ``mar-bench fetch`` writes a data set of this name."""
    return weights_folder() / data.name if data.root is None else Path(data.root)


def read_idx(data: IdxData) -> tuple[Part, Part]:
    """Training and test images. Raises UserError naming the file that is missing, damaged or of another data set."""
    root = root_of(data)
    if not root.is_dir():
        fetch = f" (mar-bench fetch {data.name} gets them)" * (data.name == "fashion-mnist")
        raise UserError(
            f"{root}: no such folder; set data.root to the folder of '{data.name}' in MNIST's format{fetch}"
        )
    split = data.name.removeprefix(EMNIST) if data.name.startswith(EMNIST) else None
    stems = [f"{EMNIST}{split}-{part}" for part in ("train", "test")] if split else ["train", "t10k"]
    train, test = (_part(root, stem, data) for stem in stems)
    first = 1 if train.labels.min() == 1 and train.labels.max() == data.num_classes else 0  # EMNIST letters begin at 1
    for stem, part in zip(stems, (train, test), strict=True):
        _check_labels(_find(root, stem, "labels", 1), part.labels - first, data.num_classes)
    return Part(train.pixels, train.labels - first), Part(test.pixels, test.labels - first)


def counts(data: IdxData) -> str:
    """How many images there are, for a plan; checks them as ``read_idx`` does."""
    train, test = read_idx(data)
    return f"{root_of(data)}: {len(train.labels):,} training and {len(test.labels):,} test images of '{data.name}'"


def _part(root: Path, stem: str, data: IdxData) -> Part:
    """The images and labels of ``<stem>-images-idx3-ubyte`` and ``<stem>-labels-idx1-ubyte``, each plain or gzipped."""
    files = _find(root, stem, "images", 3), _find(root, stem, "labels", 1)
    images, labels = _read(files[0], 3), _read(files[1], 1)
    if images.shape[1:] != (SIDE, SIDE):
        shape = f"{images.shape[1]} x {images.shape[2]}"
        raise UserError(f"{files[0]}: images of {shape} pixels, not {SIDE} x {SIDE}; save them as files (imagefolder)")
    if len(images) != len(labels):
        raise UserError(f"{files[1]}: {len(labels)} labels for the {len(images)} images of {files[0].name}; {HINT}")
    if stem.startswith(EMNIST):
        images = images.transpose(0, 2, 1)
    return Part(np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))), labels.astype(np.int64))


def _find(root: Path, stem: str, what: str, dims: int) -> Path:
    """The file in ``root``: gzipped or not, and with the dot that some unpackers put into its name."""
    names = [f"{stem}-{what}{mark}idx{dims}-ubyte{end}" for end in ("", ".gz") for mark in "-."]
    for name in names:
        if (root / name).is_file():
            return root / name
    message = f"{root / names[0]}: no such file, plain or as .gz"
    splits = sorted({name.split("-")[1] for name in os.listdir(root) if name.startswith(EMNIST)} - {*stem.split("-")})
    if splits:
        raise UserError(f"{message}; for EMNIST set data.name to {' or '.join(EMNIST + split for split in splits)}")
    raise UserError(f"{message}; data.root must hold the four files of the data set, and data.name is its name")


def _read(path: Path, dims: int) -> np.ndarray:
    """The uint8 array of a file, which must be exactly as long as its header says."""
    with reading(path, "IDX file", HINT), path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            with gzip.open(plain) if packed else plain as file:
                return _array(file, dims)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise ValueError("cut or damaged gzip data") from None


def _array(file: Any, dims: int) -> np.ndarray:
    header = file.read(4 + 4 * dims)
    if header[:4] != bytes([0, 0, UINT8, dims]):
        raise ValueError(f"it begins with {header[:4].hex() or 'nothing'}, not {bytes([0, 0, UINT8, dims]).hex()}")
    if len(header) < 4 + 4 * dims:
        raise ValueError("cut within its header")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
    if not 0 < shape[0] <= MOST_IMAGES or not all(0 < side <= 4 * SIDE for side in shape[1:]):
        raise ValueError(f"its header says {' x '.join(map(str, shape))}")
    array = np.empty(math.prod(shape), np.uint8)
    view, filled = array.data, 0
    while count := file.readinto(view[filled : filled + 2**20]):
        filled += count
    if filled < len(array) or file.read(1):
        has = f"only {filled}" if filled < len(array) else "more"
        raise ValueError(f"its header says {len(array)} bytes, it has {has}")
    return array.reshape(shape)


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Raises UserError unless the labels are exactly 0 to num_classes - 1."""
    if labels.min() < 0 or labels.max() >= num_classes:
        beyond = labels.max() if labels.max() >= num_classes else labels.min()
        raise UserError(f"{path}: label {beyond} is not one of data.num_classes {num_classes}, from 0; set it to fit")
    if missing := sorted(set(range(num_classes)) - set(np.unique(labels).tolist())):
        raise UserError(f"{path}: no image of class {missing[0]}; data.num_classes {num_classes} may be too large")
