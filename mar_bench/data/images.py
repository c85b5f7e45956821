"""Image files: decoding and cropping them, and folders with one subfolder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the suffix; no decoder of these runs another program
HINT = "make or copy it again, or remove it"
MOST_ELONGATED = 1000  # long side over short side; the crop of a longer strip would not fit into memory
# (done, total), called regularly; raises to stop the work, returns True to request a checkpoint
Progress = Callable[[int, int], bool | None]

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are read; twice as large is an error


def in_threads(function: Callable, items: Iterable) -> list:
    """``function`` of each item, in order: Pillow and file I/O release the GIL."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))


def visible(folder: Path) -> list[str]:
    """Sorted names in a folder, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None


def class_files(folder: Path, num_classes: int, endings: set[str]) -> tuple[list[str], list[str], torch.Tensor]:
    """Class names (the sorted subfolders), files as ``<class>/<file>``, and labels (N,).

    Files are sorted by name without ``.npz``. Raises UserError unless there are ``num_classes`` classes and each has a
    file with one of the ``endings``."""
    classes = [n for n in visible(folder) if (folder / n).is_dir()] if folder.is_dir() else []
    kinds = ", ".join(sorted(endings))
    if len(classes) != num_classes:
        raise UserError(
            f"{folder}: found {len(classes)} class folders but data.num_classes is {num_classes}; "
            f"expected {folder}/<class>/<image> ({kinds})"
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        found = [file for file in visible(folder / name) if Path(file).suffix.lower() in endings]
        if not found:
            raise UserError(f"{folder / name}: no image in it ({kinds})")
        files += [f"{name}/{file}" for file in sorted(found, key=lambda file: file.removesuffix(".npz"))]
        labels += [label] * len(found)
    return classes, files, torch.tensor(labels)


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """Pixels uint8 (channels, size, size) of a file after ADM's crop. Raises UserError if it cannot be decoded."""
    with reading(path, "image", HINT):  # Pillow raises almost anything on a damaged file
        if not path.is_file():  # reading a pipe would block
            raise ValueError("not a file")
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise ValueError(f"a strip of {image.width} x {image.height} pixels")
            pixels = np.asarray(centre_crop(opaque(image, channels), size))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def opaque(image: Image.Image, channels: int) -> Image.Image:
    """RGB, or grey for one channel; transparent pixels become white.

    Like ADM and the official code, it ignores the EXIF orientation; CMYK is converted without a profile. Raises
    ValueError for 16-bit greys, which Pillow would clip instead of scaling them."""
    if image.mode.startswith("I"):
        raise ValueError("16-bit grey; save it with 8 bits")
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
        self.classes, self.names, self.labels = class_files(folder, num_classes, IMAGE_ENDINGS)

    def __len__(self) -> int:
        return len(self.names)

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
