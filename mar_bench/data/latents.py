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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.files import reading
from mar_bench.utils.noise import NoiseSource

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

    def expect(self, index: tuple[np.ndarray, ...]) -> None:
        """Ask the kernel to read the rows of an index ahead and in parallel, before they are read one by one."""
        size = self.array[(0,) * len(index)].nbytes
        for row in np.ravel_multi_index(index, self.array.shape[: len(index)]).tolist():
            begin = self.begin + size * row
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # only advice
                self.memory.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


class Shards:
    """One tensor in several files, split along ``axis``; indexed like a tensor but never loaded as a whole.

    With axis 1, (V, N, ...): ``values[0]`` is the first view, again Shards, and ``values[views, rows]`` reads.
    With axis 0, (N, ...): ``values[rows]`` reads. float16 is converted to float32."""

    def __init__(self, files: list[Mapped], axis: int):
        self.files, self.axis = files, axis
        self.begins = np.cumsum([0] + [file.array.shape[axis] for file in files])
        first = files[0].array.shape
        self.shape = torch.Size((*first[:axis], int(self.begins[-1]), *first[axis + 1 :]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> torch.Tensor | Shards:
        if self.axis == 1 and isinstance(key, int):
            return Shards(
                [replace(f, array=f.array[key], begin=f.begin + key * f.array[0].nbytes) for f in self.files], 0
            )
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        *before, rows = (np.asarray(k) for k in (key if self.axis == 1 else (key,)))
        shards = np.searchsorted(self.begins, rows, side="right") - 1
        places = []
        for shard in np.unique(shards):
            members = np.flatnonzero(shards == shard)
            index = (*(b[members] for b in before), rows[members] - self.begins[shard])
            self.files[shard].expect(index)
            places.append((self.files[shard].array, members, index))
        out = np.empty((len(rows), *self.shape[self.axis + 1 :]), self.files[0].array.dtype)
        for array, members, index in places:
            out[members] = array[index]
        values = torch.from_numpy(out)
        return values.float() if values.dtype == torch.float16 else values


Stored = dict[str, Any]  # tensors or Shards by name


@dataclass(frozen=True)
class Latents:
    """What a tokenizer stored: ``train`` tensors (V, N, L[, D]), one entry per view; ``heldout`` (N', L[, D])."""

    train: Stored
    heldout: Stored  # empty without held-out images
    labels: torch.Tensor
    heldout_labels: torch.Tensor
    tokens_of: Callable[[dict[str, torch.Tensor], torch.Tensor | None], torch.Tensor]
    stochastic: bool

    def draw(self, indices: Sequence[int] | np.ndarray, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training tokens (B, L[, D]) of images, each under a random view, with a sample of the latent."""
        first = next(iter(self.train.values()))
        chosen = noise.integers("view", step, first.shape[0], ())
        rows = torch.as_tensor(np.asarray(indices))
        stored = {name: values[chosen, rows] for name, values in self.train.items()}
        return self.tokens_of(stored, noise.normal("latent", step, first.shape[2:]) if self.stochastic else None)

    def split(self, heldout: bool, limit: int | None = None) -> tuple[Stored, torch.Tensor]:
        """What is stored (N, L[, D]) and the labels of a split, without views.

        Nothing is read before it is sliced; with ``limit`` the first so many images are read."""
        stored = self.heldout if heldout else {name: values[0] for name, values in self.train.items()}
        labels = self.heldout_labels if heldout else self.labels
        if limit is not None:
            stored, labels = {name: values[:limit] for name, values in stored.items()}, labels[:limit]
        return stored, labels


def load_latents(folder: Path, tokenizer: type[Tokenizer] | Tokenizer) -> Latents:
    """Latents mapped into memory. Raises UserError if the folder is damaged or from another version."""
    with reading(folder, "latent cache of this version of mar_bench", "delete the folder and run again"):
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"no {MANIFEST}")
        manifest = json.loads((folder / MANIFEST).read_text())
        if missing := [f for part in FILES for f, _ in shards_of(manifest, part) if not (folder / f).is_file()]:
            raise ValueError(f"no {missing[0]}")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        parts = {part: [mapped(folder / f)[0] for f, _ in shards_of(manifest, part)] for part in FILES}
        for part, shards in parts.items():
            if [len(s["labels"].array) for s in shards] != [len(rows) for _, rows in shards_of(manifest, part)]:
                raise ValueError("the number of images in a shard differs from the manifest")
    stored: dict[str, Stored] = {
        part: {name: Shards([s[name] for s in shards], 1) for name in shards[0] if name != "labels"} if shards else {}
        for part, shards in parts.items()
    }
    none = torch.empty(0, dtype=torch.int64)
    labels = {part: [none, *(torch.tensor(s["labels"].array) for s in shards)] for part, shards in parts.items()}
    heldout = {name: values[0] for name, values in stored["heldout"].items()}
    every = torch.cat(labels["train"]), torch.cat(labels["heldout"])
    return Latents(stored["train"], heldout, *every, tokenizer.tokens_of, tokenizer.stochastic)


def mapped(path: Path) -> tuple[dict[str, Mapped], dict[str, str]]:
    """Memory-mapped tensors of a safetensors file, and its metadata. Raises ValueError if it is truncated."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)  # or the kernel reads far more than a row around each row
    start = 8 + int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8:start])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        shape = entry["shape"]
        begin = start + entry["data_offsets"][0]
        flat = np.frombuffer(memory, DTYPES[entry["dtype"]], int(np.prod(shape)), begin)
        arrays[name] = Mapped(flat.reshape(shape), memory, begin)
    return arrays, metadata


def shards_of(manifest: dict[str, Any], part: str) -> Iterator[tuple[str, range]]:
    """File name and images of each shard."""
    count, size = manifest["images"][part], manifest["shard_images"]
    for i, begin in enumerate(range(0, count, size)):
        yield f"{FILES[part]}-{i:05d}.safetensors", range(begin, min(begin + size, count))
