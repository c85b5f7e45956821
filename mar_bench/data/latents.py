"""The latent cache: the tokenizer's output for every image under every view, computed once and stored in shards.

manifest.json                    contents and provenance; written last
shard-00000.safetensors, ...     training images in order: tensors (V, n, L[, D]) and labels (n,)
heldout-00000.safetensors, ...   held-out images without views: the same with V = 1

This module reads it, encode.py writes it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mar_bench.data.datasets import batches
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading
from mar_bench.utils.noise import SHARED, NoiseSource, philox

FORMAT = 1  # version of the folder's layout
MANIFEST = "manifest.json"
FILES = {"train": "shard", "heldout": "heldout"}
DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}


@dataclass(frozen=True)
class Mapped:
    """A tensor in a memory-mapped file, starting at byte ``begin``."""

    array: np.ndarray
    memory: mmap.mmap
    begin: int

    def expect(self, views: np.ndarray, rows: np.ndarray) -> None:
        """Ask the kernel to read ``array[views, rows]`` ahead and in parallel, before it is read row by row."""
        size = self.array[0, 0].nbytes
        for begin in (self.begin + size * (views * self.array.shape[1] + rows)).tolist():
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # the advice is optional
                self.memory.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


class Shards:
    """A tensor (V, N, ...) in several files split along N, indexed like a tensor but never loaded as a whole.

    ``values[0]`` is the first view (N, ...), again Shards; ``values[views, rows]``, or ``values[rows]`` of one view,
    reads the files. float16 is converted to float32."""

    def __init__(self, files: list[Mapped], view: int | None = None):
        self.files, self.view = files, view
        self.begins = np.cumsum([0] + [file.array.shape[1] for file in files])
        views, _, *rest = files[0].array.shape
        self.shape = torch.Size([*([views] if view is None else []), int(self.begins[-1]), *rest])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> torch.Tensor | Shards:
        if self.view is None and isinstance(key, int):
            return Shards(self.files, key)
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        views, rows = map(np.asarray, key if self.view is None else (np.full(len(key), self.view), key))
        shards = np.searchsorted(self.begins, rows, side="right") - 1
        places = []
        for shard in np.unique(shards):
            members = np.flatnonzero(shards == shard)
            index = views[members], rows[members] - self.begins[shard]
            self.files[shard].expect(*index)
            places.append((self.files[shard].array, members, index))
        out = np.empty((len(rows), *self.files[0].array.shape[2:]), self.files[0].array.dtype)
        for array, members, index in places:
            out[members] = array[index]
        values = torch.from_numpy(out)
        return values.float() if values.dtype == torch.float16 else values


class Rows:
    """Some rows (n,) of a tensor or Shards (N, ...), in this order, read when they are indexed."""

    def __init__(self, values: torch.Tensor | Shards, rows: np.ndarray):
        self.values, self.rows = values, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key) -> torch.Tensor | Shards:
        return self.values[self.rows[key]]


Stored = dict[str, Any]  # tensors, Shards or Rows by name


@dataclass(frozen=True)
class Latents:
    """The output of a tokenizer: ``train`` tensors (V, N, L[, D]), one entry per view; ``heldout`` (N', L[, D])."""

    train: Stored
    heldout: Stored  # empty without held-out images
    labels: torch.Tensor
    heldout_labels: torch.Tensor
    tokens_of: Callable[[dict[str, torch.Tensor], torch.Tensor | None], torch.Tensor]
    stochastic: bool
    chosen: np.ndarray | None = None  # the images of ``train`` that ``labels`` belong to; None: all

    def some(self, images: int | None) -> Latents:
        """The same with only so many training images (``balanced``). Raises UserError if there are fewer."""
        if images is None:
            return self
        if images > len(self.labels):
            raise UserError(f"train.images {images} is more than the {len(self.labels)} training images; lower it")
        chosen = balanced(self.labels.numpy(), images)
        return replace(self, labels=self.labels[chosen], chosen=chosen)

    def draw(self, indices: Sequence[int] | np.ndarray, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training tokens (B, L[, D]) of images, each under a random view, with a sample of the latent."""
        first = next(iter(self.train.values()))
        chosen = noise.integers("view", step, first.shape[0], ())
        rows = torch.as_tensor(np.asarray(indices) if self.chosen is None else self.chosen[indices])
        stored = {name: values[chosen, rows] for name, values in self.train.items()}
        return self.tokens_of(stored, noise.normal("latent", step, first.shape[2:]) if self.stochastic else None)

    def split(self, heldout: bool, limit: int | None = None) -> tuple[Stored, torch.Tensor]:
        """Tensors (N, L[, D]) and labels of a split without views: the first ``limit`` images, or all, not yet read."""
        stored = self.heldout if heldout else {name: values[0] for name, values in self.train.items()}
        if not heldout and self.chosen is not None:
            stored = {name: Rows(values, self.chosen) for name, values in stored.items()}
        labels = self.heldout_labels if heldout else self.labels
        if limit is None:
            return stored, labels
        return {name: values[:limit] for name, values in stored.items()}, labels[:limit]


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the images with these labels (N,), the same share of each class: sorted indices (count,).

    Fixed by the labels, whatever the seed of a training; a smaller choice is part of every larger one."""
    shuffled = philox(0, "some images", SHARED, 0).permutation(len(labels))
    place = np.empty(len(labels))  # of an image within its shuffled class, from 0 to 1
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(place[shuffled], kind="stable")][:count])


def load_latents(folder: Path, tokenizer: type[Tokenizer] | Tokenizer) -> Latents:
    """Memory-map the latents. Raises UserError if the folder is damaged or from another version."""
    stored, labels = {}, {}
    with reading(folder, "latent cache of this version of mar_bench", "delete the folder and run again"):
        manifest = json.loads((folder / MANIFEST).read_bytes()) if (folder / MANIFEST).is_file() else {}
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{MANIFEST} is missing or not of format {FORMAT}")
        for part in FILES:
            files = shards_of(manifest, part)
            shards = [mapped(folder / file)[0] for file, _ in files]
            found = [torch.tensor(shard.pop("labels").array) for shard in shards]
            if any(len(each) != len(rows) for each, (_, rows) in zip(found, files)):
                raise ValueError("the number of images in a shard differs from the manifest")
            stored[part] = {name: Shards([shard[name] for shard in shards]) for name in shards[0]} if shards else {}
            labels[part] = torch.cat([torch.empty(0, dtype=torch.int64), *found])
    heldout = {name: values[0] for name, values in stored["heldout"].items()}
    every = labels["train"], labels["heldout"]
    return Latents(stored["train"], heldout, *every, tokenizer.tokens_of, tokenizer.stochastic)


def mapped(path: Path) -> tuple[dict[str, Mapped], dict[str, str]]:
    """Memory-mapped tensors of a safetensors file, and its metadata. Raises ValueError if it is truncated."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)  # or the kernel reads far more than a row around each row
    start = 8 + int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8:start])
    metadata, arrays = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        begin = start + entry["data_offsets"][0]
        flat = np.frombuffer(memory, DTYPES[entry["dtype"]], int(np.prod(entry["shape"])), begin)
        arrays[name] = Mapped(flat.reshape(entry["shape"]), memory, begin)
    return arrays, metadata


def shards_of(manifest: dict[str, Any], part: str) -> list[tuple[str, range]]:
    """File name and images of each shard."""
    every = batches(manifest["images"][part], manifest["shard_images"])
    return [(f"{FILES[part]}-{i:05d}.safetensors", rows) for i, rows in enumerate(every)]
