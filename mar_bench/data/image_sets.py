"""Sets of images that users hand in to be measured: a folder of PNG files, an npz as ADM's, a built-in data set.

What makes a distance wrong without a word is an error here: lossy files, images that would have to be resized or
converted, gaps and doubles in their numbers, values that are not uint8. Nothing is loaded before it is asked for."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from mar_bench.config.spec import DigitsData, MnistData
from mar_bench.data.datasets import BATCH, Progress, batches, load_data
from mar_bench.data.images import FORMATS, IMAGE_ENDINGS, in_threads, read_image, visible
from mar_bench.utils.errors import UserError, did_you_mean

LOSSY_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".jp2", ".jxl"}
LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}  # of a lossless WebP nothing says so at a glance
ENDINGS = IMAGE_ENDINGS | LOSSY_ENDINGS | {".gif", ".tif", ".tiff"}  # files that say that they are images
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH = 24  # where a PNG file says how many bits its values have; Pillow cuts 16-bit RGB to 8 without a word
BATCH_BYTES = 2**26  # of large images a batch holds fewer
BUILT_IN = {"digits": DigitsData, "mnist5k": MnistData}
PARTS = ("train", "heldout")
FROM_NUMBERS, FROM_NAMES, FROM_POSITION = "numbers in file names", "file names", "position"


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in the order of their global index, read when asked for.

    ``batches(progress)`` may be called again and again; it gives uint8 (B, C, H, W) with B <= data.BATCH and calls
    ``progress(done, total)`` before each batch. It raises UserError naming the file that turns out to be damaged."""

    name: str  # what the user called it
    kind: str  # folder | npz | data
    count: int
    size: tuple[int, int]  # height, width
    channels: int  # 1 or 3
    labels: np.ndarray | None  # int64 (N,), where known
    index: str  # how the order was found: FROM_NUMBERS | FROM_NAMES | FROM_POSITION
    batches: Callable[[Progress], Iterator[torch.Tensor]]
    reference: bool = False  # an npz that holds the statistics of a reference beside its images
    notes: tuple[str, ...] = ()  # what a reader of the results should know


def open_images(text: str, indexed: bool = True) -> ImageSet:
    """A folder that exists, else an npz by its ending, else a data set by its name. Raises UserError."""
    path = Path(text)
    if text and path.is_dir():
        return open_folder(path, indexed)
    if path.suffix.lower() == ".npz":
        return open_npz(path)
    if text and path.exists():
        raise UserError(f"{text}: neither a folder of PNG files nor an npz; give one of them")
    if text.partition(":")[0] in BUILT_IN:
        return open_data(text)
    beside = visible(path.parent) if path.parent.is_dir() else []
    known = {name: str(path.parent / name) for name in beside if _can_be_opened(path.parent / name)}
    known |= {name: name for base in BUILT_IN for name in (base, *(f"{base}:{part}" for part in PARTS))}
    close = difflib.get_close_matches(path.name, known, n=1)
    hint = f"did you mean '{known[close[0]]}'?" if close else f"data sets: {', '.join(BUILT_IN)}"
    raise UserError(f"'{text}': no such folder, npz file or data set; {hint}")


def _can_be_opened(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".npz"


def open_data(name: str) -> ImageSet:
    """A data set from a wheel: digits, mnist5k, and behind a colon its part, train (default) or heldout."""
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


# --- folders --------------------------------------------------------------------------------------------


def open_folder(path: Path, indexed: bool = True) -> ImageSet:
    """8-bit grey or RGB PNG files of one size, in the folder or in folders in it; the header of each is looked at.

    ``indexed``: the last number in a file's name is the image's index, from 0 or 1 without gaps. Where folders
    repeat each other's numbers, each is a class (its label is its place among their sorted names). Without, or
    where no name holds a number, the order is that of the names. Raises UserError for whatever is not so."""
    files = _files(path)
    looks = dict(zip(files, in_threads(lambda name: _look(path / name), files)))
    names = [name for name, look in looks.items() if look]
    _check_places(path, names)
    first = looks[names[0]]
    for name in names:
        if looks[name] != first:
            raise UserError(
                f"{path}: {names[0]} is {_words(first)}, {name} is {_words(looks[name])}; all images need the same "
                "size and mode, and nothing is resized: make them alike or remove some"
            )
    names, labels, index = _by_number(path, names) if indexed else (names, None, FROM_NAMES)
    mode, width, height = first
    channels = 3 if mode == "RGB" else 1
    read = _reader([path / name for name in names], (channels, height, width), lambda file: _pixels(file, first))
    return ImageSet(str(path), "folder", len(names), (height, width), channels, labels, index, read)


def cropped_folder(path: Path, size: int, channels: int = 3) -> ImageSet:
    """Photographs in any readable format, cropped to ``size`` as ADM does, in the order of their names.

    For references; a note counts those that are smaller than ``size``. Raises UserError naming a file that cannot
    be read: at once where its header is broken, else when it is its turn."""
    if size < 1:
        raise UserError(f"{path}: cannot be cropped to {size} pixels; give a size of 1 or more")
    names = [name for name in _files(path) if _ending(name) in IMAGE_ENDINGS]
    _check_places(path, names)
    small = sum(short < size for short in in_threads(lambda name: _short_side(path / name), names))
    notes = (f"{small} of {len(names)} images are smaller than {size} and were enlarged",) if small else ()

    def pixels(file: Path) -> np.ndarray:
        with _readable(file):
            return read_image(file, size, channels)

    read = _reader([path / name for name in names], (channels, size, size), pixels)
    name = f"{path} cropped to {size}x{size}"
    return ImageSet(name, "folder", len(names), (size, size), channels, None, FROM_NAMES, read, notes=notes)


def _files(path: Path) -> list[str]:
    """What is in the folder and in the folders in it, but no hidden ones, as ``name`` or ``folder/name``; sorted."""
    if not path.is_dir():
        raise UserError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'} of images")
    files = []
    for name in visible(path):
        if not (path / name).is_dir():
            files.append(name)
            continue
        for inner in visible(path / name):
            deep = path / name / inner
            if not deep.is_dir():
                files.append(f"{name}/{inner}")
            elif any(_ending(n) in ENDINGS for n in visible(deep)):
                raise UserError(f"{deep}: images two folders down; move them up, or give {path / name}")
    return sorted(files, key=_folder_and_name)


def _folder_and_name(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    return folder, file


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _check_places(path: Path, names: list[str]) -> None:
    """Raises UserError where images are too few, or both in the folder and in folders in it."""
    if len(names) < 2:
        found = f"only one image, {names[0]}; a distribution needs at least two" if names else "no image in it"
        raise UserError(f"{path}: {found}; is it the right folder? Images lie in it or one folder down")
    inside = [name for name in names if "/" in name]
    if inside and len(inside) < len(names):
        beside = next(name for name in names if "/" not in name)
        raise UserError(
            f"{path}: images both in it ({beside}) and one folder down ({inside[0]}); move one of them away"
        )


def _look(path: Path) -> tuple[str, int, int] | None:
    """Mode, width and height of a PNG file, from its header; None for a file that neither says it is an image nor is.

    Raises UserError of an image that would have to be changed to be measured."""
    if _ending(path.name) in LOSSY_ENDINGS:
        raise UserError(f"{path}: a lossy format, which moves every distance; save the images as PNG when drawn")
    head = b""
    try:
        with _readable(path):
            head = _head(path)
            with Image.open(path, formats=FORMATS) as image:
                kind, look, info = image.format, (image.mode, image.width, image.height), image.info
                frames = getattr(image, "n_frames", 1)
    except UserError:
        if _ending(path.name) in ENDINGS or head.startswith(SIGNATURE):
            raise
        return None
    if kind in LOSSY_FORMATS:
        raise UserError(
            f"{path}: {kind} is lossy, which moves every distance; save samples as PNG when drawn, and of "
            "photographs make a reference: mar-bench reference build FOLDER TARGET.npz --size PIXELS"
        )
    if kind != "PNG":
        raise UserError(f"{path}: {kind} is not measured, only PNG is; convert the images to PNG")
    mode = look[0]
    odd = "16-bit " if mode == "RGB" and head[DEPTH] > 8 else ""
    odd += "animated " if frames > 1 else ""
    odd += "transparent " if mode in ("L", "RGB") and "transparency" in info else ""
    if odd or mode not in ("L", "RGB"):
        raise UserError(f"{path}: mode {odd}{mode}; only 8-bit RGB and grey (L) are measured: save it as one of them")
    return look


def _head(path: Path) -> bytes:
    if not path.is_file():  # a pipe would never end
        raise ValueError("not a file")
    with path.open("rb") as file:
        return file.read(DEPTH + 1)


def _words(look: tuple[str, int, int]) -> str:
    mode, width, height = look
    return f"{width}x{height} {mode}"


def _short_side(path: Path) -> int:
    with _readable(path):
        _head(path)
        with Image.open(path, formats=FORMATS) as image:
            return min(image.size)


def _pixels(path: Path, look: tuple[str, int, int]) -> np.ndarray:
    """uint8 (C, H, W) of a PNG file that has the mode, width and height ``look``."""
    with _readable(path):
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # check-sums and the end of the file: decoding stops where it has all pixels
        with Image.open(path, formats=("PNG",)) as image:
            if (image.mode, image.width, image.height) != look:
                raise ValueError("changed since it was opened")
            pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


@contextmanager
def _readable(path: Path, what: str = "an image") -> Iterator[None]:
    """Whatever Pillow, zipfile, zlib and numpy raise for a spoiled file becomes a UserError that names it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # there is hardly one that Pillow does not raise
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        reason = " ".join(reason.split())  # numpy's have several lines
        raise UserError(f"{path}: not readable as {what} ({reason}); make or copy it again, or remove it") from None


def _reader(files: Sequence[Path], shape: tuple[int, int, int], pixels: Callable[[Path], np.ndarray]) -> Callable:
    """``batches`` of an ImageSet: ``pixels`` of each file, uint8 of ``shape``, decoded side by side."""

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        for rows in _batches(len(files), shape):
            progress(rows.start, len(files))
            yield torch.from_numpy(np.stack(in_threads(pixels, files[rows.start : rows.stop])))

    return read


def _batches(count: int, shape: tuple[int, int, int]) -> list[range]:
    return batches(count, max(1, min(BATCH, BATCH_BYTES // math.prod(shape))))


# --- the order of files ---------------------------------------------------------------------------------


def _by_number(path: Path, names: list[str]) -> tuple[list[str], np.ndarray | None, str]:
    """Names in the order of their index, labels or None, how the order was found; ``names`` are sorted."""
    runs = {name: re.findall("[0-9]+", PurePosixPath(name).stem) for name in names}
    number = {name: int(found[-1]) for name, found in runs.items() if found}
    if not number:
        return names, None, FROM_NAMES
    if len(number) < len(names):
        without = next(name for name in names if name not in number)
        raise UserError(
            f"{path}: {next(iter(number))} has a number in its name and {without} has none; remove what does not "
            "belong, or, where the numbers are no indices, --unindexed"
        )
    folder = {name: _folder_and_name(name)[0] for name in names}
    if not _twins(names, number.get):
        _check_gaps(path, set(number.values()))
        return sorted(names, key=number.get), None, FROM_NUMBERS
    if twins := _twins(names, lambda name: (folder[name], number[name])):
        raise UserError(
            f"{path}: {twins[0]} and {twins[1]} have the same number; remove one, or, where the numbers are no "
            "indices, --unindexed"
        )
    label = {name: i for i, name in enumerate(sorted(set(folder.values())))}
    names = sorted(names, key=lambda name: (folder[name], number[name]))
    return names, np.array([label[folder[name]] for name in names], dtype=np.int64), FROM_NUMBERS


def _twins(names: list[str], key: Callable) -> tuple[str, str] | None:
    """The first two names with the same key."""
    seen: dict = {}
    return next(((seen[key(name)], name) for name in names if seen.setdefault(key(name), name) != name), None)


def _check_gaps(path: Path, numbers: set[int]) -> None:
    first, last = (1 if min(numbers) == 1 else 0), max(numbers)
    count = last - first + 1 - len(numbers)
    if count:
        some = ", ".join(map(str, islice((i for i in range(first, last + 1) if i not in numbers), 5)))
        images = f"image {some} is" if count == 1 else f"images {some}{', ...' if count > 5 else ''} are"
        raise UserError(
            f"{path}: {images} missing of {first}..{last}; copy what is missing or, where the numbers are no indices, "
            "--unindexed"
        )


# --- npz files ------------------------------------------------------------------------------------------


def open_npz(path: Path) -> ImageSet:
    """ADM's format: arr_0 uint8 (N, H, W, C), C 1 or 3, and perhaps arr_1 the labels, integers (N,).

    Read in blocks of rows, compressed or not. ``reference`` is set where mu and sigma are there too; no object array
    is ever loaded. Raises UserError naming the key that is not so."""
    with _readable(path, "an npz"), zipfile.ZipFile(path) as archive:
        keys = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        statistics = {"mu", "sigma"} <= keys
        if "arr_0" not in keys and statistics:
            raise UserError(f"{path}: holds statistics only (mu, sigma), a reference; are the arguments swapped?")
        if "arr_0" not in keys:
            raise UserError(
                f"{path}: no arr_0 in it (keys: {', '.join(sorted(keys)) or 'none'}); name the images arr_0"
            )
        with archive.open("arr_0.npy") as file:
            header = _array_header(file)
            _check_images(path, *header)
            (count, height, width, channels), _, _ = header
            if archive.getinfo("arr_0.npy").file_size != file.tell() + math.prod(header[0]):
                raise ValueError("arr_0 holds more or fewer bytes than its shape says")
        labels = _labels(path, archive, count) if "arr_1" in keys else None

    def read(progress: Progress) -> Iterator[torch.Tensor]:
        with _readable(path, "an npz"):
            archive = zipfile.ZipFile(path)
        with archive:
            with _readable(path, "an npz"):
                file = archive.open("arr_0.npy")
                if _array_header(file) != header:
                    raise ValueError("changed since it was opened")
            for rows in _batches(count, (channels, height, width)):
                progress(rows.start, count)
                with _readable(path, "an npz"):
                    pixels = _rows(file, len(rows), header[0][1:], header[2], rows.stop == count)
                yield torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    return ImageSet(
        str(path), "npz", count, (height, width), channels, labels, FROM_POSITION, read, reference=statistics
    )


def _array_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype; leaves ``file`` where the data begin."""
    version = np.lib.format.read_magic(file)
    known = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in known:
        raise ValueError(f"npy version {version}")
    return known[version](file)


def _check_images(path: Path, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> None:
    """Raises UserError where this is not the header of images."""
    key = f"{path}: arr_0 is {dtype} {shape}"
    if dtype.hasobject:
        raise UserError(f"{key}: Python objects, which are never loaded; save the images as one uint8 array")
    if len(shape) != 4:
        raise UserError(f"{key}: (N, H, W, C) needed, C 1 or 3; stack and reshape the images")
    if shape[3] not in (1, 3) and shape[1] in (1, 3):
        raise UserError(f"{key}: channels come last; transpose it: arr_0.transpose(0, 2, 3, 1)")
    if shape[3] not in (1, 3) or 0 in shape[1:3]:
        raise UserError(f"{key}: (N, H, W, C) needed, C 1 or 3; save grey or RGB images")
    if dtype != np.uint8:
        raise UserError(f"{key}: uint8 needed: round(clip(255 x)) where x is in [0, 1]")
    if shape[0] < 2:
        raise UserError(f"{key}: a distribution needs at least two images; add more")
    if fortran:
        raise UserError(f"{key} in Fortran order: not readable row by row; save np.ascontiguousarray(arr_0)")


def _labels(path: Path, archive: zipfile.ZipFile, count: int) -> np.ndarray:
    """int64 (N,) of arr_1. Raises UserError where it is anything but one integer an image."""
    with archive.open("arr_1.npy") as file:
        shape, _, dtype = _array_header(file)
        if dtype.kind not in "iu" or len(shape) != 1:
            raise UserError(f"{path}: arr_1 is {dtype} {shape}: labels are integers (N,); convert it or leave it out")
        if shape[0] != count:
            raise UserError(
                f"{path}: {shape[0]} labels in arr_1 of {count} images in arr_0; mend it or leave arr_1 out"
            )
        return _rows(file, count, (), dtype, last=True).astype(np.int64)


def _rows(file, count: int, shape: tuple[int, ...], dtype: np.dtype, last: bool) -> np.ndarray:
    """The next (count, *shape) of an array's data, or the last of them."""
    length = count * math.prod(shape) * dtype.itemsize
    content = file.read(length)
    if len(content) < length or (last and file.read(1)):  # reading to the end makes zipfile compare the check-sum
        raise ValueError("its data are shorter or longer than its shape says")
    return np.frombuffer(content, dtype).reshape(count, *shape)


# --- what a set is --------------------------------------------------------------------------------------


class Digest:
    """What a stream of images is: the SHA-256 of the pixels in index order and how many are copies of another."""

    def __init__(self):
        self.count = 0
        self.duplicates = 0  # images whose pixels equal an earlier one's
        self._pixels, self._seen = hashlib.sha256(), set()
        self._shape: tuple[int, ...] | None = None

    def update(self, images: torch.Tensor) -> None:
        """Images uint8 (B, C, H, W), the same C, H and W every time; how they are batched makes no difference."""
        assert images.dtype == torch.uint8 and self._shape in (None, images.shape[1:])
        if self._shape is None:  # hashed first, as 2x8 and 4x4 images can have the same bytes
            self._shape = images.shape[1:]
            self._pixels.update(np.array(self._shape, "<i8").tobytes())
        pixels = images.contiguous().numpy()
        self._pixels.update(pixels)
        self._seen.update(hashlib.blake2b(image, digest_size=16).digest() for image in pixels)
        self.count += len(images)
        self.duplicates = self.count - len(self._seen)

    @property
    def sha256(self) -> str:
        """Of C, H and W as little-endian int64 and then all pixels."""
        return self._pixels.hexdigest()

    @property
    def set_sha256(self) -> str:
        """The same for the same images in any order, however many copies there are of each."""
        return hashlib.sha256(b"".join(sorted(self._seen))).hexdigest()


def class_balance(labels: np.ndarray | torch.Tensor) -> dict[str, int]:
    """How many classes occur among labels (N,), and the images of the rarest and the most frequent that occur."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    return {"classes": len(counts), "least": int(counts.min()), "most": int(counts.max())}
