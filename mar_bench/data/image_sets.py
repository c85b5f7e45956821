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
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import reading

LOSSY_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".jp2", ".jxl"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}  # lossless WebP cannot be told from lossy by its header
ENDINGS = IMAGE_ENDINGS | LOSSY_ENDINGS | {".gif", ".tif", ".tiff"}  # other files are ignored
PNG = b"\x89PNG\r\n\x1a\n"
DEPTH = 24  # offset of the bit depth in a PNG file; Pillow silently cuts 16-bit RGB to 8
BATCH_BYTES = 2**26  # batches of large images are smaller than BATCH
BUILT_IN = {"digits": DigitsData, "mnist5k": MnistData}
PARTS = ("train", "heldout")
FROM_NUMBERS, FROM_NAMES, FROM_POSITION = "numbers in file names", "file names", "position"
HINT = "make or copy it again, or remove it"
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
    index: str  # where the order comes from: FROM_NUMBERS | FROM_NAMES | FROM_POSITION
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
    if text.partition(":")[0] in BUILT_IN:
        return open_data(text)
    raise UserError(f"'{text}': no such folder, npz file or data set ({', '.join(BUILT_IN)})")


def open_data(name: str) -> ImageSet:
    """A data set that comes in a wheel: digits or mnist5k, optionally with a part, as in ``digits:heldout``."""
    base, _, part = name.partition(":")
    part = part or PARTS[0]
    if base not in BUILT_IN:
        raise UserError(f"data set '{base}': {did_you_mean(base, BUILT_IN)}")
    if part not in PARTS:
        raise UserError(f"data set '{name}': no part '{part}'; {did_you_mean(part, PARTS)}")
    images = getattr(load_data(BUILT_IN[base]()), part)
    channels, height, width = images.pixels.shape[1:]

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        for rows in batches(len(images)):
            progress(rows.start, len(images))
            yield images.get(rows)

    labels = images.labels.numpy()
    return ImageSet(f"{base}:{part}", "data", len(images), (height, width), channels, labels, FROM_POSITION, read)


def open_npz(path: Path) -> ImageSet:
    """ADM's format, see ``NpzImages``. Raises UserError."""
    npz = NpzImages(path)
    count, height, width, channels = npz.shape

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        for pixels in npz.read(_batches(count, (channels, height, width)), progress):
            yield torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    return ImageSet(
        str(path), "npz", count, (height, width), channels, npz.labels, FROM_POSITION, read, npz.has_statistics
    )


def _batches(count: int, shape: tuple[int, int, int]) -> list[range]:
    return batches(count, max(1, min(BATCH, BATCH_BYTES // math.prod(shape))))


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
    names, labels, index = _by_number(path, names) if indexed else (names, None, FROM_NAMES)
    mode, width, height = first
    shape = (3 if mode == "RGB" else 1, height, width)
    return _folder_set(path, str(path), names, shape, lambda file: _pixels(file, first), labels, index)


def cropped_folder(path: Path, size: int) -> ImageSet:
    """Photographs in any readable format, as RGB cropped to ``size`` as ADM does, ordered by name; for references.

    A note counts images smaller than ``size``. Raises UserError naming a file that cannot be read: immediately if its
    header is damaged, otherwise when it is decoded."""
    names = _names(path, IMAGE_ENDINGS)
    small = sum(in_threads(lambda name: min(_header(path / name)[0].size) < size, names))
    notes = (f"{small} of {len(names)} images are smaller than {size} and were enlarged",) if small else ()

    def pixels(file: Path) -> np.ndarray:
        with reading(file, "image", HINT):
            return read_image(file, size, 3)

    name = f"{path} cropped to {size}x{size}"
    return _folder_set(path, name, names, (3, size, size), pixels, None, FROM_NAMES, notes)


def _folder_set(
    path: Path,
    name: str,
    names: list[str],
    shape: tuple[int, int, int],
    pixels: Callable[[Path], np.ndarray],
    labels: np.ndarray | None,
    index: str,
    notes: tuple[str, ...] = (),
) -> ImageSet:
    """The files ``names`` of a folder; ``pixels`` decodes one to uint8 of ``shape``."""
    files = [path / name for name in names]

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        for rows in _batches(len(files), shape):
            progress(rows.start, len(files))
            yield torch.from_numpy(np.stack(in_threads(pixels, files[rows.start : rows.stop])))

    return ImageSet(name, "folder", len(files), shape[1:], shape[0], labels, index, read, notes=notes)


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
    lossy = "a lossy format, which changes every distance; save samples as PNG when they are drawn"
    if _ending(path.name) in LOSSY_ENDINGS:
        raise UserError(f"{path}: {lossy}; of photographs make a reference, with mar-bench reference build --size")
    image, frames, depth = _header(path)
    kind, mode = image.format, image.mode
    reasons = {
        f"{kind}, {lossy}": kind in LOSSY_FORMATS,
        f"{kind} is not supported; convert the images to PNG": kind != "PNG",
        f"mode 16-bit {mode} is not supported; save 8-bit images": mode == "RGB" and depth > 8,
        f"mode animated {mode} is not supported; save one image per file": frames > 1,
        f"mode transparent {mode} is not supported": "transparency" in image.info and mode in ("L", "RGB"),
        f"mode {mode} is not supported; save 8-bit RGB or grey (L) images": mode not in ("L", "RGB"),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"{path}: {reason}")
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
        return names, None, FROM_NAMES
    if len(number) < len(names):
        without = next(name for name in names if name not in number)
        raise UserError(f"{path}: {next(iter(number))} has a number in its name, {without} has none; {hint}")
    if len(set(number.values())) == len(names):
        indices = set(number.values())
        first, last = (1 if min(indices) == 1 else 0), max(indices)
        if (missing := last - first + 1 - len(indices)) > 0:
            some = next(i for i in range(first, last + 1) if i not in indices)
            raise UserError(f"{path}: {missing} of the images {first}..{last} missing, the first is {some}; {hint}")
        return sorted(names, key=number.__getitem__), None, FROM_NUMBERS
    by_place: dict[tuple[str, int], str] = {}
    for name in names:
        if (other := by_place.setdefault((name.rpartition("/")[0], number[name]), name)) != name:
            raise UserError(f"{path}: {other} and {name} have the same number; {hint}")
    label = {folder: i for i, folder in enumerate(sorted({folder for folder, _ in by_place}))}
    places = sorted(by_place)
    labels = np.array([label[folder] for folder, _ in places], dtype=np.int64)
    return [by_place[place] for place in places], labels, FROM_NUMBERS


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
