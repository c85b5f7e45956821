"""Image files: decoding and cropping them, and folders with one subfolder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops

from mar_bench.utils.errors import UserError, some
from mar_bench.utils.files import reading

# read whatever the suffix; no decoder of these runs another program
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
IMAGE_ENDINGS = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif",
}  # fmt: skip
UNREADABLE = {".heic", ".heif", ".jxl", ".tga", ".psd", ".exr", ".hdr", ".svg", ".ico", ".dng", ".qoi", ".sgi", ".eps"}
NO_IMAGES = {
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".log", ".npy", ".npz",
    ".pt", ".py", ".zip", ".tar", ".db",
}  # fmt: skip
HINT = "save it as 8-bit PNG, copy it again, or remove it"
MOST_ELONGATED = 1000  # long side over short side; the crop of a longer strip would not fit into memory
# called regularly with (done, total) and, in training, the loss; raises to stop the work, returns True to request a
# checkpoint
Progress = Callable[..., bool | None]

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are read; twice as large is an error


def in_threads(function: Callable, items: Iterable) -> list:
    """``function`` of each item, in order: Pillow and file I/O release the GIL."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def is_image(path: Path) -> bool:
    """Whether the header of a file is that of an image in one of the FORMATS."""
    try:
        if path.is_file():  # reading a pipe would block
            with Image.open(path, formats=FORMATS):
                return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow raises almost anything
        pass
    return False


class Kind(NamedTuple):
    """A kind of file, known by its suffix; ``fits(path)`` decides by the content of files with an unknown one."""

    what: str
    endings: set[str]
    fits: Callable[[Path], bool]


IMAGE = Kind("image", IMAGE_ENDINGS, is_image)


def listing(folder: Path, kind: Kind = IMAGE) -> tuple[list[str], list[str], list[str]]:
    """Sorted names in a folder: files of a kind, subfolders, and the rest, to which hidden ones belong.

    Raises UserError for an image in a format that is not read."""
    files, folders, rest = [], [], []
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in found:  # of a million files: no Path and no stat for most
        name, suffix = entry.name, os.path.splitext(entry.name)[1].lower()
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        if name.startswith("."):
            rest.append(name + "/" * is_folder)
        elif is_folder:
            folders.append(name)
        elif suffix in kind.endings:
            files.append(name)
        elif suffix in UNREADABLE:
            raise UserError(f"{entry.path}: {suffix} files are not read; {HINT}")
        else:
            (files if suffix not in NO_IMAGES and kind.fits(folder / name) else rest).append(name)
    return files, folders, rest


def counts(images: int, left_out: list[str]) -> str:
    """How many files are images, and the names of the others."""
    others = f", left out: {some(left_out)}" if left_out else ""
    files = images + len(left_out)
    return f"{images} image{'s' * (images != 1)} of {files} file{'s' * (files != 1)}{others}"


def class_files(
    folder: Path, num_classes: int, kind: Kind = IMAGE
) -> tuple[list[str], list[str], torch.Tensor, list[str]]:
    """Class names (the sorted subfolders), files as ``<class>/<file>``, labels (N,), and what is left out; see listing.

    Files are sorted by name without ``.npz``. Raises UserError unless there are ``num_classes`` classes, each with a
    file, and for files beside the class folders or folders inside them, which would be left out."""
    beside, classes, left_out = listing(folder, kind) if folder.is_dir() else ([], [], [])
    if len(classes) != num_classes:
        raise UserError(
            f"{folder}: found {len(classes)} class folders but data.num_classes is {num_classes}; "
            f"expected {folder}/<class>/<{kind.what}>"
        )
    if beside:
        raise UserError(f"{folder}: {some(beside)} belong to no class; move them into class folders")
    files, labels = [], []
    for label, name in enumerate(classes):
        found, folders, rest = listing(folder / name, kind)
        if folders:
            raise UserError(f"{folder / name / folders[0]}: a folder inside a class folder; move its files up or away")
        if not found:
            raise UserError(f"{folder / name}: no {kind.what} in it")
        files += [f"{name}/{file}" for file in sorted(found, key=lambda file: file.removesuffix(".npz"))]
        labels += [label] * len(found)
        left_out += [f"{name}/{file}" for file in rest]
    return classes, files, torch.tensor(labels), left_out


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """Pixels uint8 (channels, size, size) of a file after ADM's crop. Raises UserError if it cannot be decoded."""
    with reading(path, "image", HINT):  # Pillow raises almost anything on a damaged file
        if not path.is_file():  # reading a pipe would block
            raise ValueError("not a file")
        with Image.open(path, formats=FORMATS) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph, then other views
                raise ValueError("animated, or of several pages; save the image that counts")
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise ValueError(f"a strip of {image.width} x {image.height} pixels")
            pixels = np.asarray(centre_crop(opaque(image, channels), size))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def opaque(image: Image.Image, channels: int) -> Image.Image:
    """RGB, or grey for one channel; transparent pixels become white.

    Like ADM and the official code, it ignores the EXIF orientation; CMYK is converted without a profile. Raises
    ValueError for greys of 16 or 32 bits and floats, which Pillow would clip: what is white in them is not known."""
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}: a 16-bit, 32-bit or float image of unknown range; save it with 8 bits")
    if "transparency" in image.info or image.mode[-1] in "Aa":
        image = image.convert("RGBA")
        clear = ImageChops.invert(image.getchannel("A"))
        image = image.convert("RGB")
        image.paste("white", mask=clear)
    return image.convert("RGB" if channels == 3 else "L")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, scale the short side (bicubic), cut the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


class FolderImages:
    """Images on disk, one subfolder per class, read on demand; ``names`` are their paths in ``folder``."""

    def __init__(self, folder: Path, image_size: int, channels: int, num_classes: int):
        self.folder, self.image_size, self.channels = folder, image_size, channels
        self.classes, self.names, self.labels, self.left_out = class_files(folder, num_classes)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> str:
        """How many files are images, and the names of the others."""
        return f"{self.folder}: {counts(len(self), self.left_out)}"

    def get(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Images uint8 (n, C, H, W). Raises UserError naming every file that cannot be decoded."""

        def read(index: int) -> np.ndarray | str:
            try:
                return read_image(self.folder / self.names[int(index)], self.image_size, self.channels)
            except UserError as error:
                return str(error)

        found = in_threads(read, indices)
        if bad := sorted({each for each in found if isinstance(each, str)}):
            raise UserError("; ".join(bad))
        return torch.from_numpy(np.stack(found))
