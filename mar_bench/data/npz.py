"""Npz files: images in ADM's format are read in blocks, other arrays whole. Nothing is ever unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading

HINT = "make or copy it again"
IMAGES = "arr_0"


def read_arrays(path: Path, hint: str = HINT) -> dict[str, Any]:
    """The arrays of an npz file by name, with None for the images ``arr_0``.

    Raises UserError if the file is damaged or an array holds Python objects."""
    with reading(path, "npz file", hint):
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("a single array")
        with stored:
            arrays = {key: None if key == IMAGES else stored[key] for key in stored.files}
        for key, value in arrays.items():
            if key != IMAGES and not isinstance(value, np.ndarray):
                raise ValueError(f"{key} is not an array")
    return arrays


class NpzImages:
    """``arr_0``, uint8 (N, H, W, C) with C 1 or 3, and ``arr_1``, optional integer labels (N,).

    ``has_statistics``: the file also has ``mu`` and ``sigma``, as ADM's references do."""

    def __init__(self, path: Path):
        """Raises UserError naming the array that is not as above."""
        arrays = read_arrays(path)
        self.path, self.labels, self.has_statistics = path, arrays.get("arr_1"), {"mu", "sigma"} <= arrays.keys()
        if IMAGES not in arrays and self.has_statistics:
            raise UserError(f"{path}: has statistics only (mu, sigma), a reference; are the arguments swapped?")
        if IMAGES not in arrays:
            raise UserError(f"{path}: no arr_0 (keys: {', '.join(sorted(arrays)) or 'none'}); name the images arr_0")
        with reading(path, "npz file", HINT), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            self.header = self.shape, fortran, dtype = _header(file)
            expected = {
                "no Python objects, which are never loaded; save the images as one uint8 array": not dtype.hasobject,
                "(N, H, W, C) with C 1 or 3; stack, reshape or transpose the images": (
                    len(self.shape) == 4 and self.shape[3] in (1, 3) and 0 not in self.shape[1:3]
                ),
                "uint8; save round(clip(255 x)) if x is in [0, 1]": dtype == np.uint8,
                "at least two images; add more": self.shape[:1] >= (2,),
                "C order, to be read in blocks, not Fortran's; save np.ascontiguousarray(arr_0)": not fortran,
            }
            if missing := [what for what, holds in expected.items() if not holds]:
                raise UserError(f"{path}: arr_0 is {dtype} {self.shape}, expected {missing[0]}")
            if archive.getinfo("arr_0.npy").file_size != file.tell() + math.prod(self.shape):
                raise ValueError("arr_0 has more or fewer bytes than its shape says")
        if self.labels is not None:
            if self.labels.dtype.kind not in "iu" or self.labels.shape != self.shape[:1]:
                raise UserError(
                    f"{path}: arr_1 is {self.labels.dtype} {self.labels.shape}, expected integer labels "
                    f"({self.shape[0]},), one per image; fix it or leave it out"
                )
            self.labels = self.labels.astype(np.int64)

    def read(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Consecutive blocks of images, uint8 (n, H, W, C). Raises UserError if the file is damaged or has changed."""
        count, *shape = self.shape
        with (
            reading(self.path, "npz file", HINT),
            zipfile.ZipFile(self.path) as archive,
            archive.open("arr_0.npy") as file,
        ):
            if _header(file) != self.header:
                raise ValueError("changed since it was opened")
            for block in blocks:
                content = file.read(len(block) * math.prod(shape))
                if block.stop == count and file.read(1):  # zipfile compares the checksum at the end of the data
                    raise ValueError("arr_0 has more bytes than its shape says")
                yield np.frombuffer(content, np.uint8).reshape(len(block), *shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an npy file; leaves it at the start of the data."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not of npy version 1")
    return np.lib.format.read_array_header_1_0(file)
