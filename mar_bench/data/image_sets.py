"""Sets of images to score: a folder of PNG files, an npz in ADM's format, or a built-in data set.

Whatever would silently distort a distance is an error: lossy files, images that would have to be resized or converted,
gaps and duplicates in the indices, values that are not uint8. Images are read on demand."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from mar_bench.config.spec import DigitsData, MnistData
from mar_bench.data.datasets import BATCH, Progress, batches, load_data
from mar_bench.data.images import FORMATS, IMAGE_ENDINGS, in_threads, read_image, visible
from mar_bench.data.npz import NpzImages
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading

OTHER_ENDINGS = {".jpe", ".jfif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".gif", ".tif", ".tiff"}
ENDINGS = IMAGE_ENDINGS | OTHER_ENDINGS  # PNG or refused; other files are ignored
PNG = b"\x89PNG\r\n\x1a\n"
DEPTH = 24  # offset of the bit depth in a PNG file; Pillow silently cuts 16-bit RGB to 8
BATCH_BYTES = 2**26  # batches of large images are smaller than BATCH
BUILT_IN = {"digits": DigitsData, "mnist5k": MnistData}
PARTS = ("", "train", "heldout")
NUMBERS, NAMES, POSITION = "numbers in file names", "file names", "position"  # where the order comes from
HINT = "make or copy it again, or remove it"
NOT_PNG = (
    "not a PNG file; lossy formats change every distance, so save samples as PNG when they are drawn (of photographs "
    "make a reference, with mar-bench reference build --size)"
)
Look = tuple[str, int, int]  # mode, width, height


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in the order of their global index, read on demand.

    ``batches(progress)`` may be called repeatedly. It yields uint8 (B, C, H, W) with B <= data.BATCH, calls
    ``progress(done, total)`` before each batch and raises UserError naming a file that turns out to be damaged."""

    name: str  # as the user gave it
    kind: str  # folder | npz | data
    count: int
    size: tuple[int, int]  # height, width
    channels: int  # 1 or 3
    labels: np.ndarray | None  # int64 (N,), if known
    index: str  # NUMBERS | NAMES | POSITION
    batches: Callable[[Progress], Iterator[torch.Tensor]]
    reference: bool = False  # an npz that also holds the statistics of a reference
    notes: tuple[str, ...] = ()  # shown beside the results


def open_images(text: str, indexed: bool = True) -> ImageSet:
    """An existing folder, else an npz by its suffix, else a data set by name. Raises UserError."""
    path = Path(text)
    if text and path.is_dir():
        return open_folder(path, indexed)
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    if text and path.exists():
        raise UserError(f"{text}: neither a folder of PNG files nor an npz file")
    name, _, part = text.partition(":")
    if name not in BUILT_IN or part not in PARTS:
        raise UserError(f"'{text}': no such folder, npz file or data set ({', '.join(BUILT_IN)}, also with :heldout)")
    part = part or "train"
    images = getattr(load_data(BUILT_IN[name]()), part)
    shape, read = images.pixels.shape[1:], _in_batches(len(images), images.pixels.shape[1:], images.get)
    return ImageSet(f"{name}:{part}", "data", len(images), shape[1:], shape[0], images.labels.numpy(), POSITION, read)


def open_npz(path: Path) -> ImageSet:
    """ADM's format, see ``NpzImages``. Raises UserError."""
    npz = NpzImages(path)
    count, height, width, channels = npz.shape

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        blocks = _batches(count, (channels, height, width))
        stream = npz.read(blocks)
        for rows in blocks:
            progress(rows.start, count)
            yield torch.from_numpy(next(stream).transpose(0, 3, 1, 2).copy())

    return ImageSet(str(path), "npz", count, (height, width), channels, npz.labels, POSITION, read, npz.has_statistics)


def _batches(count: int, shape: tuple[int, int, int]) -> list[range]:
    return batches(count, max(1, min(BATCH, BATCH_BYTES // math.prod(shape))))


def _in_batches(
    count: int, shape: tuple[int, int, int], get: Callable[[range], torch.Tensor]
) -> Callable[[Progress], Iterator[torch.Tensor]]:
    """``ImageSet.batches`` of images (C, H, W), of which ``get`` reads consecutive ones."""

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        for rows in _batches(count, shape):
            progress(rows.start, count)
            yield get(rows)

    return read


# --- folders --------------------------------------------------------------------------------------------


def open_folder(path: Path, indexed: bool = True) -> ImageSet:
    """8-bit grey or RGB PNG files of one size, in the folder or in its subfolders; reads only the headers.

    With ``indexed``, the last number in a file name is the image's index, from 0 or 1 without gaps; subfolders that
    repeat each other's numbers are classes, labelled by their place in the sorted names. Without it, or if no name
    has a number, images are ordered by name. Raises UserError for any other folder."""
    names = _names(path, ENDINGS)
    looks = dict(zip(names, in_threads(lambda name: _look(path / name), names)))
    first = looks[names[0]]
    for name in names:
        if looks[name] != first:
            one, other = ("{1}x{2} {0}".format(*looks[n]) for n in (names[0], name))
            raise UserError(
                f"{path}: {names[0]} is {one}, {name} is {other}; all images must have the same size and mode, and "
                "nothing is resized: convert or remove some"
            )
    names, labels, index = _by_number(path, names) if indexed else (names, None, NAMES)
    mode, width, height = first
    shape = (3 if mode == "RGB" else 1, height, width)
    read = _in_batches(len(names), shape, lambda rows: _stacked(lambda i: _pixels(path / names[i], first), rows))
    return ImageSet(str(path), "folder", len(names), shape[1:], shape[0], labels, index, read)


def cropped_folder(path: Path, size: int) -> ImageSet:
    """Photographs in any readable format, as RGB cropped to ``size`` as ADM does, ordered by name; for references.

    A note counts images smaller than ``size``. Raises UserError naming a file that cannot be read: immediately if its
    header is damaged, otherwise when it is decoded."""
    names = _names(path, IMAGE_ENDINGS)
    small = sum(in_threads(lambda name: min(_header(path / name)[0].size) < size, names))
    notes = (f"{small} of {len(names)} images are smaller than {size} and were enlarged",) if small else ()

    def pixels(i: int) -> np.ndarray:
        with reading(path / names[i], "image", HINT):
            return read_image(path / names[i], size, 3)

    read, name = (
        _in_batches(len(names), (3, size, size), lambda rows: _stacked(pixels, rows)),
        f"{path} cropped to {size}x{size}",
    )
    return ImageSet(name, "folder", len(names), (size, size), 3, None, NAMES, read, notes=notes)


def _stacked(pixels: Callable[[int], np.ndarray], rows: range) -> torch.Tensor:
    return torch.from_numpy(np.stack(in_threads(pixels, rows)))


def _names(path: Path, endings: set[str]) -> list[str]:
    """Images in the folder or in its subfolders, as ``name`` or ``folder/name``, sorted; other files are ignored.

    Raises UserError for fewer than two images, for images both in the folder and in subfolders, or further down."""
    if not path.is_dir():
        raise UserError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'} of images")
    beside, inside = [], []
    for entry in visible(path):
        folder = path / entry
        if not folder.is_dir():
            beside += [entry] if _is_image(folder, endings) else []
            continue
        for name in visible(folder):
            file = folder / name
            if file.is_dir() and any(_is_image(file / n, ENDINGS) for n in visible(file)):
                raise UserError(f"{file}: images two folders down; move them up, or give {folder}")
            if not file.is_dir() and _is_image(file, endings):
                inside.append(f"{entry}/{name}")
    if beside and inside:
        raise UserError(f"{path}: images both in it ({beside[0]}) and in subfolders ({inside[0]}); move some away")
    names = beside or inside
    if len(names) < 2:
        found = f"only one image, {names[0]}; a distribution needs at least two" if names else "no image in it"
        raise UserError(f"{path}: {found}; images must be in the folder or in its subfolders")
    return names


def _is_image(path: Path, endings: set[str]) -> bool:
    """By its suffix; a PNG file under any name, by its first bytes."""
    if _ending(path.name) in endings:
        return True
    with suppress(OSError):
        if path.is_file():  # reading a pipe would block forever
            with path.open("rb") as file:
                return file.read(len(PNG)) == PNG
    return False


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _look(path: Path) -> Look:
    """Mode, width and height of a PNG file. Raises UserError for an image that would have to be converted."""
    if _ending(path.name) in ENDINGS - {".png"}:
        raise UserError(f"{path}: {NOT_PNG}")
    image, frames, depth = _header(path)
    mode = image.mode
    if image.format != "PNG":
        raise UserError(f"{path}: {image.format}, {NOT_PNG}")
    found = {"16-bit": depth > 8, "animated": frames > 1, "transparent": "transparency" in image.info}
    faults = [fault for fault, applies in found.items() if applies]
    if faults or mode not in ("L", "RGB"):
        raise UserError(
            f"{path}: mode {' '.join([*faults, mode])} is not supported; save 8-bit RGB or grey (L) images without "
            "transparency, one per file"
        )
    return mode, image.width, image.height


def _header(path: Path) -> tuple[Image.Image, int, int]:
    """A closed image with the properties in its header, its number of frames, and its bit depth if it is a PNG."""
    with reading(path, "image", HINT):
        if not path.is_file():  # reading a pipe would block forever
            raise ValueError("not a file")
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            file.seek(DEPTH)
            return image, frames, file.read(1)[0]


def _pixels(path: Path, look: Look) -> np.ndarray:
    """uint8 (C, H, W) of a PNG file with this mode, width and height."""
    with reading(path, "image", HINT):
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # checksums and the end of the file, which decoding does not reach
        with Image.open(path, formats=("PNG",)) as image:
            if (image.mode, image.width, image.height) != look:
                raise ValueError("changed since it was opened")
            pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _by_number(path: Path, names: list[str]) -> tuple[list[str], np.ndarray | None, str]:
    """Sorted ``names`` in the order of their index, labels or None, and where the order comes from."""
    runs = {name: re.findall("[0-9]+", PurePosixPath(name).stem) for name in names}
    number = {name: int(found[-1]) for name, found in runs.items() if found}
    hint = "fix the names or, if the numbers are not indices, use --unindexed"
    if not number:
        return names, None, NAMES
    if len(number) < len(names):
        without = next(name for name in names if name not in number)
        raise UserError(f"{path}: {next(iter(number))} has a number in its name, {without} has none; {hint}")
    if len(set(number.values())) == len(names):
        indices = set(number.values())
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


# --- identity of a set ----------------------------------------------------------------------------------


class Digest:
    """Identifies a stream of images by the SHA-256 of its pixels in index order, and counts duplicates."""

    def __init__(self):
        self.count = 0
        self.duplicates = 0  # images whose pixels equal an earlier one's
        self.shape: tuple[int, ...] = ()  # (C, H, W)
        self._pixels, self._seen = hashlib.sha256(), set()

    def update(self, images: torch.Tensor) -> None:
        """Images uint8 (B, C, H, W), always of the same C, H and W; how they are batched makes no difference."""
        assert images.dtype == torch.uint8 and self.shape in ((), tuple(images.shape[1:]))
        if not self.shape:  # hashed first because 2x8 and 4x4 images may have the same bytes
            self.shape = tuple(images.shape[1:])
            self._pixels.update(np.array(self.shape, "<i8").tobytes())
        pixels = images.contiguous().numpy()
        self._pixels.update(pixels)
        self._seen.update(hashlib.blake2b(image, digest_size=16).digest() for image in pixels)
        self.count += len(images)
        self.duplicates = self.count - len(self._seen)

    @property
    def sha256(self) -> str:
        """Of C, H and W as little-endian int64, followed by all pixels."""
        return self._pixels.hexdigest()

    @property
    def set_sha256(self) -> str:
        """The same for the same images in any order, with or without duplicates."""
        return hashlib.sha256(b"".join(sorted(self._seen))).hexdigest()


def class_balance(labels: np.ndarray | torch.Tensor) -> dict[str, int]:
    """The number of classes that occur in labels (N,), and the number of images of the rarest and the commonest."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return {"classes": len(counts), "least": int(counts.min()), "most": int(counts.max())}
