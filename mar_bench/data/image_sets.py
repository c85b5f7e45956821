"""Sets of images to score: a folder of PNG files, or an npz in ADM's format.

Whatever would silently distort a distance is an error: lossy files, images that would have to be resized or converted,
gaps and duplicates in the indices, values that are not uint8. Images are read on demand."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from mar_bench.data import npz
from mar_bench.data.datasets import BATCH, Progress, batches
from mar_bench.data.images import FORMATS, HINT, counts, in_threads, listing, read_image
from mar_bench.utils.errors import UserError, some
from mar_bench.utils.files import reading

DEPTH = 24  # offset of the bit depth in a PNG file; Pillow silently cuts 16-bit RGB to 8
BATCH_BYTES = 2**26  # batches of large images are smaller than BATCH
NUMBERS, NAMES, POSITION = "numbers in file names", "file names", "position"  # origins of the order of images


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in the order of their global index, read on demand."""

    name: str  # as the user gave it
    kind: str  # folder | npz
    count: int
    size: tuple[int, int]  # height, width
    channels: int  # 1 or 3
    labels: np.ndarray | None  # int64 (N,), if known
    index: str  # NUMBERS | NAMES | POSITION
    read: Callable[[list[range]], Iterable[torch.Tensor]]  # consecutive blocks of images, uint8 (n, C, H, W)

    def batches(self, progress: Progress) -> Iterator[torch.Tensor]:
        """uint8 (B, C, H, W) with B <= data.BATCH, each after a call of ``progress(done, total)``.

        Raises UserError naming a file that turns out to be damaged."""
        blocks = batches(self.count, max(1, min(BATCH, BATCH_BYTES // (self.channels * math.prod(self.size)))))
        images = iter(self.read(blocks))
        for rows in blocks:
            progress(rows.start, self.count)
            yield next(images)


def open_images(text: str, indexed: bool = True) -> ImageSet:
    """Open an existing folder or an npz file of any name. Raises UserError for anything else."""
    kind = npz.kind_of(text)
    if kind == npz.FOLDER:
        return open_folder(Path(text), indexed)
    if kind in (npz.REFERENCE, npz.STATISTICS):
        raise UserError(
            f"{text} has the statistics of a reference: are the arguments swapped? "
            "mar-bench eval SAMPLES --reference REFERENCE"
        )
    return open_npz(Path(text))


def open_npz(path: Path) -> ImageSet:
    """ADM's format: ``arr_0``, uint8 (N, H, W, C) with C 1 or 3, and ``arr_1``, optional integer labels (N,).

    Images are read in blocks. Raises UserError naming an array that does not fit this description."""
    with npz.opened(path) as archive:
        headers = npz.headers(archive)
    if "arr_0" not in headers:
        raise UserError(f"{path}: no arr_0 (keys: {some(sorted(headers)) or 'none'}); name the images arr_0")
    header = shape, fortran, dtype = headers["arr_0"]
    if len(shape) != 4 or 0 in shape or shape[0] < 2 or shape[3] not in (1, 3) or dtype != np.uint8 or fortran:
        raise UserError(
            f"{path}: arr_0 is {dtype} {shape}{' in Fortran order' * fortran}; save two or more images as uint8 "
            "(N, H, W, C) with C 1 or 3, in C order"
        )
    count, height, width, channels = shape
    labels = npz.read_arrays(path, ["arr_1"]).get("arr_1")
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise UserError(f"{path}: arr_1 is {labels.dtype} {labels.shape}, expected integer labels ({count},)")
        labels = labels.astype(np.int64)

    def read(blocks: list[range]) -> Iterator[torch.Tensor]:
        with npz.opened(path) as archive, archive.open("arr_0.npy") as file:
            npz.check_size(math.prod(shape[1:]), "an image", path)
            if npz.header_of(file) != header:
                raise ValueError("changed since it was opened")
            for block in blocks:  # zipfile compares the checksum at the end of the data
                content = file.read(len(block) * math.prod(shape[1:]))
                images = np.frombuffer(content, np.uint8).reshape(len(block), *shape[1:])
                yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    return _with_levels(ImageSet(str(path), "npz", count, (height, width), channels, labels, POSITION, read))


def _with_levels(images: ImageSet) -> ImageSet:
    """The set itself. Raises UserError if its pixels are only 0 and 1; reads no further than the first other value."""
    if not any((image > 1).any() for image in images.read([range(i, i + 1) for i in range(images.count)])):
        raise UserError(f"{images.name}: all pixels are 0 or 1; multiply floats by 255 before they become uint8")
    return images


def open_folder(path: Path, indexed: bool = True) -> ImageSet:
    """8-bit grey or RGB PNG files of one size, in the folder or in its subfolders; reads only the headers.

    With ``indexed``, the last number in a file name is the image's index, from 0 or 1 without gaps; subfolders that
    repeat each other's numbers are classes, labelled by their place in the sorted names. Without it, or if no name
    has a number, images are ordered by name. Raises UserError for any other folder."""
    names = _names(path)
    looks = dict(zip(names, in_threads(lambda name: _look(path / name), names)))
    first = looks[names[0]]
    if other := next((name for name in names if looks[name] != first), None):
        shown = " and ".join("{0} is {2}x{3} {1}".format(name, *looks[name]) for name in (names[0], other))
        raise UserError(f"{path}: {shown}; images must have one size and mode, and nothing is resized: convert some")
    names, labels, index = _by_number(path, names) if indexed else (names, None, NAMES)
    mode, width, height = first

    def pixels(name: str) -> np.ndarray:
        with reading(path / name, "image", HINT):
            with Image.open(path / name, formats=("PNG",)) as image:
                image.verify()  # checksums and the end of the file, which decoding does not reach
            with Image.open(path / name, formats=("PNG",)) as image:
                if (image.mode, image.width, image.height) != first:
                    raise ValueError("changed since it was opened")
                found = np.asarray(image)
        return np.ascontiguousarray(found[None] if found.ndim == 2 else found.transpose(2, 0, 1))

    channels, read = 3 if mode == "RGB" else 1, _reader(names, pixels)
    return _with_levels(ImageSet(str(path), "folder", len(names), (height, width), channels, labels, index, read))


def cropped_folder(path: Path, size: int) -> ImageSet:
    """Photographs in any readable format, as RGB cropped to ``size`` as ADM does, ordered by name; for references."""
    names = _names(path)
    name, read = f"{path} cropped to {size}x{size}", _reader(names, lambda name: read_image(path / name, size, 3))
    return ImageSet(name, "folder", len(names), (size, size), 3, None, NAMES, read)


def _reader(names: list[str], pixels: Callable[[str], np.ndarray]) -> Callable[[list[range]], Iterable[torch.Tensor]]:
    """``ImageSet.read`` for a list of files; ``pixels(name)`` is an image (C, H, W)."""
    return lambda blocks: (torch.from_numpy(np.stack(in_threads(pixels, names[b.start : b.stop]))) for b in blocks)


def _names(path: Path) -> list[str]:
    """Images in the folder or in its subfolders, as ``name`` or ``folder/name``, sorted.

    Prints a note on stderr that names the other files. Raises UserError for fewer than two images, for images at both
    depths, and for deeper folders."""
    if not path.is_dir():
        raise UserError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'} of images")
    names, folders, left_out = listing(path)
    inside: list[str] = []
    for folder in folders:
        found, deeper, rest = listing(path / folder)
        if deeper:
            raise UserError(f"{path / folder / deeper[0]}: a folder in a subfolder; move its files up or away")
        inside += [f"{folder}/{name}" for name in found]
        left_out += [f"{folder}/{name}" for name in rest]
    if names and inside:
        raise UserError(
            f"{path}: move images all into the folder or all into its subfolders; found {names[0]} and {inside[0]}"
        )
    if len(names := names or inside) < 2:
        raise UserError(
            f"{path}: {counts(len(names), left_out)} in it and its subfolders; a distribution needs at least two"
        )
    if left_out:
        print(f"note: {path}: {counts(len(names), left_out)}", file=sys.stderr)
    return names


def _look(path: Path) -> tuple[str, int, int]:
    """Mode, width and height of a PNG file. Raises UserError for an image that would have to be converted."""
    with reading(path, "image", HINT):
        if not path.is_file():  # reading a pipe would block forever
            raise ValueError("not a file")
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            faults = {f"{image.format}, not PNG": image.format != "PNG", "animated": getattr(image, "n_frames", 1) > 1}
            file.seek(DEPTH)
            faults["16-bit"] = file.read(1)[0] > 8
    faults |= {"transparent": "transparency" in image.info, f"mode {image.mode}": image.mode not in ("L", "RGB")}
    if found := [fault for fault, applies in faults.items() if applies]:
        raise UserError(
            f"{path}: {', '.join(found)}; save samples as opaque 8-bit RGB or grey PNG files when they are drawn, as "
            "lossy formats and conversions change distances (for photographs: mar-bench reference build --size)"
        )
    return image.mode, image.width, image.height


def _by_number(path: Path, names: list[str]) -> tuple[list[str], np.ndarray | None, str]:
    """Sorted ``names`` in the order of their index, labels or None, and the origin of this order."""
    runs = {name: re.findall("[0-9]+", PurePosixPath(name).stem) for name in names}
    number = {name: int(found[-1]) for name, found in runs.items() if found}
    hint = "fix the names or, if the numbers are not indices, use --unindexed"
    if not number:
        return names, None, NAMES
    if without := [name for name in names if name not in number]:
        raise UserError(f"{path}: {next(iter(number))} has a number in its name, {without[0]} has none; {hint}")
    indices = set(number.values())
    if len(indices) == len(names):
        first, last = (1 if min(indices) == 1 else 0), max(indices)
        if (missing := last - first + 1 - len(indices)) > 0:
            some = next(i for i in range(first, last + 1) if i not in indices)
            raise UserError(f"{path}: {missing} of the images {first}..{last} missing, the first is {some}; {hint}")
        return sorted(names, key=number.__getitem__), None, NUMBERS
    places: dict[tuple[str, int], str] = {}
    for name in names:
        if (other := places.setdefault((name.rpartition("/")[0], number[name]), name)) != name:
            raise UserError(f"{path}: {other} and {name} have the same number; {hint}")
    _, labels = np.unique([folder for folder, _ in sorted(places)], return_inverse=True)
    return [places[place] for place in sorted(places)], labels.astype(np.int64), NUMBERS


class Digest:
    """Identifies a stream of images by the SHA-256 of its pixels in index order, and each image by a hash."""

    def __init__(self):
        self.shape: tuple[int, ...] = ()  # (C, H, W)
        self._pixels, self._each = hashlib.sha256(), list[bytes]()

    def update(self, images: torch.Tensor) -> None:
        """Add images uint8 (B, C, H, W), always of the same C, H and W; the batch size does not matter."""
        assert images.dtype == torch.uint8 and self.shape in ((), tuple(images.shape[1:]))
        if not self.shape:  # hashed first because 2x8 and 4x4 images may have the same bytes
            self.shape = tuple(images.shape[1:])
            self._pixels.update(np.array(self.shape, "<i8").tobytes())
        pixels = images.contiguous().numpy()
        self._pixels.update(pixels)
        self._each += (hashlib.blake2b(image, digest_size=16).digest() for image in pixels)

    @property
    def count(self) -> int:
        return len(self._each)

    @property
    def duplicates(self) -> int:
        """The number of images whose pixels equal an earlier one's."""
        return len(self._each) - len(set(self._each))

    @property
    def each(self) -> np.ndarray:
        """The hash of every image, uint8 (N, 16), sorted; see ``overlap``."""
        return np.frombuffer(b"".join(sorted(self._each)), np.uint8).reshape(-1, 16)

    @property
    def sha256(self) -> str:
        """The hash of C, H and W as little-endian int64, followed by all pixels."""
        return self._pixels.hexdigest()

    @property
    def about(self) -> dict[str, Any]:
        """The description in records; ``set_sha256`` is the same in any order, with or without duplicates."""
        return {
            "sha256": self.sha256,
            "set_sha256": hashlib.sha256(b"".join(sorted(set(self._each)))).hexdigest(),
            "num_images": self.count,
            "size": list(self.shape[1:]),
            "channels": self.shape[0],
        }


def check_digests(each: np.ndarray) -> None:
    """Raises ValueError unless this can be ``Digest.each``."""
    if each.dtype != np.uint8 or each.ndim != 2 or each.shape[1] != 16:
        raise ValueError(f"digests are {each.dtype} {each.shape}, expected uint8 (N, 16)")


def overlap(some: np.ndarray, others: np.ndarray) -> int:
    """How many images of one set are in another, pixel by pixel; both given as ``Digest.each``."""
    return int(np.isin(some.view("S16"), others.view("S16")).sum())


def class_balance(labels: np.ndarray | torch.Tensor) -> dict[str, int]:
    """The number of classes that occur in labels (N,), and the number of images of the rarest and the commonest."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return {"classes": len(counts), "least": int(counts.min()), "most": int(counts.max())}
