"""Image files: decoding and cropping them, and folders with one subfolder per class."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, reading

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the ending; none of them runs another program
MOST_ELONGATED = 1000  # long side over short side; the crop of a longer strip would not fit into memory
CHECKED = 256  # files between two reports of progress
# (done, total), called regularly; raises to stop the work, returns True to have a checkpoint written
Progress = Callable[[int, int], bool | None]

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are read; twice as large is an error


def in_threads(function: Callable, items: Iterable) -> list:
    """``function`` of each item, in order, with one thread per core: Pillow and file I/O release the GIL."""
    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(cores, len(items)) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(cores, len(items))) as pool:
        return list(pool.map(function, items))


def visible(folder: Path) -> list[str]:
    """Sorted names in a folder, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None


def class_folders(folder: Path, num_classes: int, expected: str) -> list[str]:
    """Sorted names of the folders in ``folder``. Raises UserError unless there are ``num_classes``."""
    names = [n for n in visible(folder) if (folder / n).is_dir()] if folder.is_dir() else []
    if len(names) != num_classes:
        raise UserError(f"{folder}: found {len(names)} class folders but data.num_classes is {num_classes}; {expected}")
    return names


# --- one file -------------------------------------------------------------------------------------------


def read_image(path: Path, size: int, channels: int, draft: bool = False) -> np.ndarray:
    """Pixels uint8 (channels, size, size) of a file after ADM's crop. Raises ValueError if it cannot be decoded.

    ``draft`` decodes a JPEG at an eighth of its size, which is enough to find damage, not for training."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise ValueError(f"a strip of {image.width} x {image.height} pixels")
            if draft:
                image.draft(None, (size, size))
            pixels = np.asarray(centre_crop(opaque(image, channels), size))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises almost anything on a damaged file
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
        raise ValueError(reason or type(error).__name__) from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)


def opaque(image: Image.Image, channels: int) -> Image.Image:
    """RGB, or grey for one channel; transparent pixels become white, 16-bit greys keep the high byte.

    Like ADM and the official code it ignores the EXIF orientation; CMYK is converted without a profile."""
    mode, transparency = "RGB" if channels == 3 else "L", image.info.get("transparency")
    if image.mode.startswith("I"):  # Pillow would clip such greys instead of scaling them
        levels = np.asarray(image)
        grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
        if isinstance(transparency, int):
            grey[levels == transparency] = 255
        return Image.fromarray(grey).convert(mode)
    if transparency is not None or image.mode[-1] in "Aa":
        image = image.convert("RGBA")
        clear = ImageChops.invert(image.getchannel("A"))
        image = image.convert("RGB")
        image.paste("white", mask=clear)
    return image.convert(mode)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, scale the short side (bicubic), cut the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


# --- folders --------------------------------------------------------------------------------------------


class FolderImages:
    """Images on disk, one subfolder per class, read when asked for; ``names`` are their paths in ``folder``."""

    def __init__(self, folder: Path, image_size: int, channels: int, num_classes: int):
        self.folder, self.image_size, self.channels = folder, image_size, channels
        self.classes = class_folders(folder, num_classes, "expected <root>/train/<class>/* and <root>/val/<class>/*")
        files = [[n for n in visible(folder / c) if Path(n).suffix.lower() in IMAGE_ENDINGS] for c in self.classes]
        for name, found in zip(self.classes, files):
            if not found:
                raise UserError(f"{folder / name}: no image in it ({', '.join(sorted(IMAGE_ENDINGS))})")
        self.names = [f"{c}/{n}" for c, found in zip(self.classes, files) for n in found]
        self.labels = torch.tensor([i for i, found in enumerate(files) for _ in found])
        self.left_out = 0

    def __len__(self) -> int:
        return len(self.names)

    def get(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Images uint8 (n, C, H, W). Raises UserError naming a file that cannot be decoded."""
        pixels = in_threads(self._read, [self.folder / self.names[int(i)] for i in indices])
        return torch.from_numpy(np.stack(pixels))

    def _read(self, path: Path) -> np.ndarray:
        try:
            return read_image(path, self.image_size, self.channels)
        except ValueError as error:
            raise UserError(
                f"{path}: not readable as an image ({error}); remove or replace it, or leave such files out with "
                "data.skip_bad=true (delete the folder images in runs if the file was readable before)"
            ) from None

    def check(self, notes: Path, skip: bool, progress: Progress) -> None:
        """Decode every file once, coarsely, and leave out those that fail (``skip``) or raise a UserError.

        The failures and their reasons are written into ``notes``, a folder. Later checks of the same listing decode
        only those that failed: files that were good are assumed to stay so."""
        listing = hashlib.sha256(os.fsencode("\n".join([str(self.folder.resolve()), *self.names]))).hexdigest()
        file = notes / f"{listing[:12]}.json"
        # parallel stages need the same images: one of them checks, the others wait
        with locks.held(file.with_suffix(".lock"), waiting=lambda: progress(0, len(self))):
            with reading(file, "list of unreadable images"):
                suspects = list(json.loads(file.read_text())["bad"]) if file.exists() else self.names
            bad: dict[str, str] = {}
            for begin in range(0, len(suspects), CHECKED):
                progress(begin, len(suspects))
                some = suspects[begin : begin + CHECKED]
                reasons = in_threads(lambda name: _damage(self.folder / name), some)
                bad |= {name: why for name, why in zip(some, reasons) if why is not None}
            atomic_write(file, json.dumps({"folder": str(self.folder), "bad": bad}, indent=1) + "\n")
        if not bad:
            return
        first, why = next(iter(bad.items()))
        found = f"{self.folder}: {len(bad)} of {len(self)} files are not readable as images"
        if not skip:
            raise UserError(
                f"{found}, the first {self.folder / first} ({why}); remove or replace them, or leave such files out "
                f"with data.skip_bad=true; all of them: {file}"
            )
        warnings.warn(f"{found} and left out, the first {first}; all of them: {file}", stacklevel=2)
        kept = [i for i, name in enumerate(self.names) if name not in bad]
        self.left_out = len(bad)
        self.names, self.labels = [self.names[i] for i in kept], self.labels[kept]
        for label, name in enumerate(self.classes):
            if not (self.labels == label).any():
                raise UserError(f"{self.folder / name}: none of its images can be read; fix or remove the class")


def _damage(path: Path) -> str | None:
    """Why a file cannot be decoded as an image, or None."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would block
            return "not a file"
        read_image(path, 1, 3, draft=True)
    except OSError as error:
        return error.strerror
    except ValueError as error:
        return str(error)
    return None
