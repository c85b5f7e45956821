"""Writes the latent cache: encodes images, or imports the official code's cache of them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mar_bench.config.spec import Discrete, ImageFolderData, LDMKLTokenizer, RunSpec
from mar_bench.data.datasets import BATCH, ArrayImages, DataSet, apply_view, folder_images, to_unit, views
from mar_bench.data.images import FolderImages, Kind, Progress, class_files, counts, in_threads
from mar_bench.data.latents import FILES, FORMAT, MANIFEST, shards_of
from mar_bench.data.npz import is_npz, read_arrays
from mar_bench.data.parts import read_part, save_part
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens
from mar_bench.models.tokenizers.grouped import Grouped
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, reading, sha256_of

CACHED = Kind("npz file", {".npz"}, is_npz)
ENCODED_PIXELS = 2**22  # at most encoded together: 64 images of 256 x 256


@dataclass(frozen=True)
class Source:
    """One split of the latents to be written: ``stored(rows)`` returns tensors (V, n, L[, D]) of its images.

    It is called for batches that start at multiples of ``batch``, whatever the shards, because the last bits of an
    encoding may depend on the other images in its batch."""

    labels: Tensor
    stored: Callable[[range], dict[str, Tensor]]
    batch: int = BATCH
    files: list[str] | None = None


def encoded(spec: RunSpec, data: DataSet, tokenizer: Tokenizer, device: torch.device) -> dict[str, Source]:
    """Training images under every view and held-out images without views, encoded on demand."""
    parts = {"train": (data.train, views(spec.data)), "heldout": (data.heldout, views(spec.data)[:1])}
    return {part: _encoded(images, every, tokenizer, device) for part, (images, every) in parts.items()}


def _encoded(
    images: ArrayImages | FolderImages, every_view: list, tokenizer: Tokenizer, device: torch.device
) -> Source:
    @torch.inference_mode()
    def stored(rows: range) -> dict[str, Tensor]:
        batch = images.get(rows)
        seen = [tokenizer.stored(to_unit(apply_view(batch, view)).to(device)) for view in every_view]
        return {name: torch.stack([s[name].cpu() for s in seen]) for name in seen[0]}

    batch = max(1, min(BATCH, ENCODED_PIXELS // images.image_size**2))
    return Source(images.labels, stored, batch, images.names)


def imported(spec: RunSpec, tokenizer: Tokenizer, device: torch.device) -> dict[str, Source]:
    """The official code's cache for training, and held-out images to encode if data.root is set.

    The cache is ``<root>/<class>/<image file>.npz`` with the moments of the image and of its mirror image."""
    data, given = spec.data, spec.tokenizer
    assert isinstance(data, ImageFolderData) and isinstance(given, LDMKLTokenizer)
    root = Path(given.official_cache or "")
    if data.shift:
        raise UserError(f"{root}: the official cache holds no shifted images; set data.shift=0")
    keys = ["moments_flip" if flip else "moments" for _, _, flip in views(data)]
    side = data.image_size // given.stride
    classes, files, labels, left_out = class_files(root, data.num_classes, CACHED)
    if left_out:
        print(f"note: {root}: {counts(len(files), left_out)}", file=sys.stderr, flush=True)
    inner: Any = tokenizer.inner if isinstance(tokenizer, Grouped) else tokenizer
    scale = inner.scale.cpu()

    def tokens(grid: Tensor) -> Tensor:
        """(V, n, L, D) of moments (n V, D, side, side)."""
        found = grid_to_tokens(grid) * scale
        found = tokenizer.joined(found) if isinstance(tokenizer, Grouped) else found
        return found.unflatten(0, (-1, len(keys))).transpose(0, 1)

    def stored(rows: range) -> dict[str, Tensor]:
        read = in_threads(lambda i: _moments(root / files[i], keys, (2 * given.latent_dim, side, side)), rows)
        mean, log_variance = torch.from_numpy(np.concatenate(read)).chunk(2, dim=1)
        return {"mean": tokens(mean), "std": tokens((0.5 * log_variance.clamp(-30, 20)).exp())}

    names = [file.removesuffix(".npz") for file in files]
    sources = {"train": Source(labels, stored, files=names)}
    if data.root is not None:
        (images,) = folder_images(data, ("val",))
        if differing := set(images.classes) ^ set(classes):
            raise UserError(f"{root}: not the classes of {images.folder}: '{min(differing)}' is in only one of them")
        sources["heldout"] = _encoded(images, views(data)[:1], tokenizer, device)
    return sources


def _moments(path: Path, keys: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """(V, 2 D, side, side) float32."""
    with reading(path, f"file of the official cache with {' and '.join(keys)}"):
        arrays = read_arrays(path, keys)
        for key in keys:
            if (array := arrays.get(key)) is None:
                raise ValueError(f"{key} is not in it")
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{key} is {array.dtype} {array.shape}, expected finite float32 {shape}")
    return np.stack([arrays[key] for key in keys])


def manifest_of(
    spec: RunSpec, sources: dict[str, Source], tokenizer: Tokenizer, weights: str | Path | None
) -> dict[str, Any]:
    """The manifest describes the latents and their inputs; ``weights`` is the tokenizer's file."""
    space, cache = spec.space, getattr(spec.tokenizer, "official_cache", None)
    scale = getattr(getattr(tokenizer, "inner", tokenizer), "scale", None)
    files = [f"{part}/{name}" for part, source in sources.items() for name in source.files or ()]
    return {
        "format": FORMAT,
        "dtype": spec.latents.dtype,
        "shard_images": spec.latents.shard_images,
        "images": {part: len(sources[part].labels) if part in sources else 0 for part in FILES},
        "views": [list(view) for view in views(spec.data)],  # dx, dy, mirrored
        "grid": list(space.grid),
        **({"vocab_size": space.vocab_size} if isinstance(space, Discrete) else {"dim": space.dim}),
        "tokenizer": {
            "kind": spec.tokenizer.kind,
            "name": getattr(spec.tokenizer, "name", None),
            "sha256": None if weights is None else sha256_of(Path(weights)),
            "scale": None if scale is None else scale.tolist(),
        },
        "files_sha256": hashlib.sha256(os.fsencode("\n".join(files))).hexdigest() if files else None,
        "imported_from": None if cache is None else Path(cache).name,
    }


def write_shards(
    sources: dict[str, Source],
    manifest: dict[str, Any],
    folder: Path,
    progress: Progress,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write the missing shards; each of ``world`` processes writes those of its ``rank``.

    Intact shards with the same manifest are kept. Raises UserError for latents that are not finite."""
    made_from = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    mine = [(part, file, rows) for part in sources for file, rows in shards_of(manifest, part)][rank::world]
    done, total = 0, sum(len(rows) for _, _, rows in mine)
    for part, file, rows in mine:
        source = sources[part]
        tensors = {"labels": source.labels[rows.start : rows.stop].clone()}
        kept = read_part(folder / file, f"{file} {made_from}")
        if kept is None or not torch.equal(kept["labels"], tensors["labels"]):
            for begin in range(rows.start // source.batch * source.batch, rows.stop, source.batch):
                batch = range(begin, min(begin + source.batch, len(source.labels)))
                progress(done + max(0, batch.start - rows.start), total)
                inside = range(max(rows.start, batch.start), min(rows.stop, batch.stop))
                for name, values in source.stored(batch).items():
                    values = values[:, inside.start - batch.start : inside.stop - batch.start]
                    values = _storable(values, manifest["dtype"], f"{part} images {inside[0]} to {inside[-1]}")
                    if name not in tensors:
                        tensors[name] = values.new_empty(len(values), len(rows), *values.shape[2:])
                    tensors[name][:, inside.start - rows.start : inside.stop - rows.start] = values
            save_part(tensors, folder / file, f"{file} {made_from}")
        done += len(rows)


def _storable(values: Tensor, dtype: str, which: str) -> Tensor:
    """Floating-point values as float32 or float16; codes and pixels unchanged."""
    if not values.is_floating_point():
        return values
    stored = values.float() if dtype == "fp32" else values.half()
    if not stored.isfinite().all():
        most = f"reach {values.abs().max():.3g}, too large for fp16; set latents.dtype=fp32"
        broken = "are not finite; check that the tokenizer is trained and its weights are intact"
        raise UserError(f"latents of {which} {most if values.isfinite().all() else broken}")
    return stored


def finish_latents(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest once all shards are written, and remove stale files."""
    files = {file for part in FILES for file, _ in shards_of(manifest, part)}
    for path in folder.glob("*.safetensors*"):  # hidden ones are left by killed processes
        if path.name not in files:
            path.unlink()
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
