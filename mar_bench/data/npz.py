"""npz files: their kind, judged by content, and their arrays, read within bounds. Nothing is ever unpickled.

A header may promise more than the file holds, and a zip of zeros unpacks to a thousand times its size, so headers are
checked against the file before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from mar_bench.utils.errors import UserError, some
from mar_bench.utils.files import reading

FOLDER, REFERENCE, STATISTICS, IMAGES, OTHER = "folder", "reference", "statistics", "images", "other"
HINT = "make or copy it again"
LARGEST = 2**28  # bytes that an array, or an image of arr_0, may unpack to in a smaller file
MOST_ARRAYS, LONGEST_HEADER = 100, 1000  # characters


class Header(NamedTuple):
    """The description of an array in front of its data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_npz(path: Path) -> bool:
    """Whether a file begins like a zip archive."""
    if not path.is_file():  # reading a pipe would block
        return False
    with reading(path), path.open("rb") as file:
        return file.read(2) == b"PK"


def kind_of(text: str | Path) -> str:
    """What a folder or an npz file of any name is, for every command.

    FOLDER; REFERENCE: of ``Reference.save``; STATISTICS: ADM's mu and sigma, perhaps with images; IMAGES: ``arr_0``
    without statistics; OTHER: other arrays. Raises UserError for anything else."""
    path = Path(text)
    if str(text) and path.is_dir():
        return FOLDER
    if not is_npz(path):
        raise UserError(f"'{text}': {'not a valid' if path.exists() else 'no such'} npz file or folder of PNG files")
    with opened(path) as archive:
        keys = headers(archive).keys()
    if "meta" in keys:
        return REFERENCE
    return STATISTICS if {"mu", "sigma"} <= keys else IMAGES if "arr_0" in keys else OTHER


@contextmanager
def opened(path: Path, hint: str = HINT) -> Iterator[ZipFile]:
    """The archive; errors of the block become a UserError naming the file."""
    with reading(path, "npz file", hint):
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise ValueError("not a file")
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise ValueError("a single array; use numpy.savez")
        with ZipFile(path) as archive:
            yield archive


def headers(archive: ZipFile) -> dict[str, Header]:
    """The headers of all arrays by name. Raises ValueError for one that is not a plain array of the size it claims."""
    return {name: header for name, header, _ in _arrays(archive)}


def _arrays(archive: ZipFile) -> Iterator[tuple[str, Header, IO[bytes]]]:
    """Name, header and data of every array."""
    members, seen = archive.infolist(), set()
    if len(members) > MOST_ARRAYS:
        raise ValueError(f"{len(members)} arrays")
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in seen:
            raise ValueError(f"{some([name])} is {'there twice' if name in seen else 'not an array'}")
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise ValueError(f"{some([name])} is not compressed as numpy does it")
        seen.add(name)
        with archive.open(member) as file:
            header, size = header_of(file), member.file_size - file.tell()
            if header.dtype.hasobject:
                raise ValueError(f"{some([name])} holds Python objects")
            if min(header.shape, default=0) < 0 or header.size != size:
                raise ValueError(f"{some([name])} has {size} bytes, which is not {header.dtype} {header.shape}")
            yield name, header, file


def header_of(file: IO[bytes]) -> Header:
    """The header of an npy file; leaves it at the start of the data."""
    if np.lib.format.read_magic(file) != (1, 0):  # later versions have headers of any length
        raise ValueError("not of npy version 1")
    try:
        return Header(*np.lib.format.read_array_header_1_0(file, max_header_size=LONGEST_HEADER))
    except Exception:  # numpy parses it as Python, and suggests to trust the file
        raise ValueError("a header that numpy does not write") from None


def read_arrays(path: Path, keys: Collection[str], hint: str = HINT) -> dict[str, Any]:
    """The arrays of an npz file by name; None for those not among ``keys``, which are not read.

    Raises UserError if the file is damaged, or would unpack to far more than it holds."""
    found: dict[str, Any] = {}
    with opened(path, hint) as archive:
        for name, header, file in _arrays(archive):
            found[name] = None
            if name in keys:
                check_size(header.size, name, path)
                data = np.frombuffer(bytearray(file.read(header.size)), header.dtype)  # writable
                found[name] = data.reshape(header.shape, order="F" if header.fortran else "C")
    return found


def check_size(size: int, name: str, path: Path) -> None:
    """Raises ValueError if ``size`` bytes of an array are far more than the file can hold."""
    if size > max(LARGEST, 8 * path.stat().st_size):
        raise ValueError(f"{name} unpacks to {size} bytes, the file has {path.stat().st_size}")
