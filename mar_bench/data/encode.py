"""Writes the latent cache: encodes images, or imports the official code's cache of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from mar_bench.config.spec import Discrete, ImageFolderData, LDMKLTokenizer, RunSpec
from mar_bench.data.datasets import BATCH, ArrayImages, DataSet, apply_view, folder_images, silent, to_unit, views
from mar_bench.data.images import IMAGE_ENDINGS, FolderImages, Progress, class_folders, in_threads, visible
from mar_bench.data.latents import FILES, FORMAT, MANIFEST, mapped, shards_of
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens
from mar_bench.models.tokenizers.grouped import Grouped
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, reading, replacing, sha256_of

ENCODED_PIXELS = 2**22  # encoded together at most: 64 images of 256 x 256
UPRIGHT, MIRRORED = "moments", "moments_flip"  # arrays of the official code's cache


@dataclass(frozen=True)
class Source:
    """One split of the latents before they are written: ``stored(rows)`` returns tensors (V, n, L[, D]) of its images.

    It is called for batches that begin at multiples of ``batch``, whatever the shards: the last bits of an encoding may
    depend on the other images of a batch."""

    labels: Tensor
    stored: Callable[[range], dict[str, Tensor]]
    batch: int = BATCH
    classes: list[str] | None = None
    files: list[str] | None = None
    left_out: int = 0


def encoded(spec: RunSpec, data: DataSet, tokenizer: Tokenizer, device: torch.device) -> dict[str, Source]:
    """Training images under every view and held-out images without views, encoded when asked for."""
    every_view = views(spec.data)
    return {
        "train": _encoded(spec, data.train, tokenizer, every_view, device),
        "heldout": _encoded(spec, data.heldout, tokenizer, every_view[:1], device),
    }


def imported(
    spec: RunSpec, tokenizer: Tokenizer, device: torch.device, memo: Path | None = None, progress: Progress = silent
) -> dict[str, Source]:
    """The official code's cache for training, and held-out images to encode if data.root is set."""
    data, given = spec.data, spec.tokenizer
    assert isinstance(data, ImageFolderData) and isinstance(given, LDMKLTokenizer)
    root = Path(given.official_cache or "")
    train = _imported(data, given, root, tokenizer)
    if data.root is None:
        return {"train": train}
    (images,) = folder_images(data, ("val",), memo, progress)
    if differing := set(images.classes) ^ set(train.classes or ()):
        raise UserError(f"{root}: not the classes of {images.folder}: '{min(differing)}' is in only one of them")
    return {"train": train, "heldout": _encoded(spec, images, tokenizer, views(data)[:1], device)}


def _encoded(
    spec: RunSpec, images: ArrayImages | FolderImages, tokenizer: Tokenizer, every_view: list, device: torch.device
) -> Source:
    @torch.inference_mode()
    def stored(rows: range) -> dict[str, Tensor]:
        batch = images.get(rows)
        seen = [tokenizer.stored(to_unit(apply_view(batch, view)).to(device)) for view in every_view]
        return {name: torch.stack([s[name].cpu() for s in seen]) for name in seen[0]}

    batch = max(1, min(BATCH, ENCODED_PIXELS // spec.data.image_size**2))
    return Source(images.labels, stored, batch, images.classes, images.names, images.left_out)


def _imported(data: ImageFolderData, spec: LDMKLTokenizer, root: Path, tokenizer: Tokenizer) -> Source:
    """The official code's cache: <root>/<class>/<image file>.npz with the moments of the image and its mirror image."""
    if data.shift:
        raise UserError(f"{root}: the official cache holds no shifted images; set data.shift=0")
    keys = [MIRRORED if flip else UPRIGHT for _, _, flip in views(data)]
    side, dim = data.image_size // spec.stride, spec.latent_dim
    classes = class_folders(root, data.num_classes, "expected <tokenizer.official_cache>/<class>/<image>.npz")
    names, labels = [], []
    for label, name in enumerate(classes):
        # sorted like the images, whose names lack the ending .npz
        files = sorted(f.removesuffix(".npz") for f in visible(root / name) if f.endswith(".npz"))
        if not files:
            raise UserError(f"{root / name}: no .npz file in it")
        _check_complete(data, root / name, files)
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    inner: Any = tokenizer.inner if isinstance(tokenizer, Grouped) else tokenizer
    scale = inner.scale.cpu()
    joined = tokenizer.joined if isinstance(tokenizer, Grouped) else lambda latents: latents

    def stored(rows: range) -> dict[str, Tensor]:
        read = in_threads(lambda i: _moments(root / f"{names[i]}.npz", keys, (2 * dim, side, side)), rows)
        mean, log_variance = torch.from_numpy(np.concatenate(read)).chunk(2, dim=1)  # (n V, D, side, side)
        std = (0.5 * log_variance.clamp(-30, 20)).exp()
        tokens = {"mean": joined(grid_to_tokens(mean) * scale), "std": joined(grid_to_tokens(std) * scale)}
        return {name: values.unflatten(0, (-1, len(keys))).transpose(0, 1) for name, values in tokens.items()}

    return Source(torch.tensor(labels), stored, classes=classes, files=names)


def _check_complete(data: ImageFolderData, cached: Path, files: list[str]) -> None:
    """Raises UserError if the cache lacks an image of data.root, unless data.skip_bad allows for that."""
    if data.root is None or data.skip_bad or not (folder := Path(data.root) / "train" / cached.name).is_dir():
        return
    images = {file for file in visible(folder) if Path(file).suffix.lower() in IMAGE_ENDINGS}
    if missing := sorted(images - set(files)):
        raise UserError(
            f"{cached}: {len(missing)} images of {folder} are not in it, the first is {missing[0]}; finish the cache, "
            "or leave such images out with data.skip_bad=true"
        )


def _moments(path: Path, keys: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """(V, 2 D, side, side) float32."""
    with reading(path, f"file of the official cache with {' and '.join(keys)}"):
        with np.load(path, allow_pickle=False) as arrays:
            found = [arrays[key] for key in keys]
        for key, array in zip(keys, found):
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{key} is {array.dtype} {array.shape}, not float32 {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} has values that are not finite")
    return np.stack(found)


# --- writing --------------------------------------------------------------------------------------------


def manifest_of(
    spec: RunSpec, sources: dict[str, Source], tokenizer: Tokenizer, weights: str | Path | None
) -> dict[str, Any]:
    """The manifest: what the latents are and what they are computed from; ``weights`` is the tokenizer's file."""
    train, space = sources["train"], spec.space
    cache = getattr(spec.tokenizer, "official_cache", None)
    scale = getattr(getattr(tokenizer, "inner", tokenizer), "scale", None)
    files = [f"{part}/{name}" for part, source in sources.items() for name in source.files or ()]
    return {
        "format": FORMAT,
        "dtype": spec.latents.dtype,
        "shard_images": spec.latents.shard_images,
        "images": {part: len(sources[part].labels) if part in sources else 0 for part in FILES},
        "left_out": {part: source.left_out for part, source in sources.items()},
        "views": [list(view) for view in views(spec.data)],  # dx, dy, mirrored
        "grid": list(space.grid),
        **({"vocab_size": space.vocab_size} if isinstance(space, Discrete) else {"dim": space.dim}),
        "tokenizer": {
            "kind": spec.tokenizer.kind,
            "name": getattr(spec.tokenizer, "name", None),
            "sha256": None if weights is None else sha256_of(Path(weights)),
            "scale": None if scale is None else scale.tolist(),
        },
        "crop": {"method": "ADM centre crop", "size": spec.data.image_size} if train.classes else None,
        "classes": train.classes,
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

    Complete shards with the same manifest are kept. Raises UserError for latents that are not finite."""
    every = [(part, file, rows) for part in sources for file, rows in shards_of(manifest, part)]
    mine = every[rank::world]
    done, total = 0, sum(len(rows) for _, _, rows in mine)
    for part, file, rows in mine:
        source = sources[part]
        labels = source.labels[rows.start : rows.stop].clone()
        if not _is_whole(folder / file, manifest, labels):
            tensors = {"labels": labels}
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
            with replacing(folder / file) as temporary:
                save_file(tensors, temporary, {"made_from": _digest(manifest)})
        done += len(rows)


def build_latents(
    spec: RunSpec, data: DataSet, tokenizer: Tokenizer, folder: Path, device: torch.device, progress: Progress
) -> None:
    """Write the latents of ``data`` to ``folder`` in one process."""
    sources = encoded(spec, data, tokenizer, device)
    manifest = manifest_of(spec, sources, tokenizer, None)
    write_shards(sources, manifest, folder, progress)
    finish_latents(manifest, folder)


def finish_latents(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest once all shards are written, and remove stale files."""
    files = {file for part in FILES for file, _ in shards_of(manifest, part)}
    for path in folder.glob("*.safetensors*"):  # hidden ones are left by killed processes
        if path.name not in files:
            path.unlink()
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _storable(values: Tensor, dtype: str, what: str) -> Tensor:
    """Floating-point values as float32 or float16; codes and pixels unchanged."""
    if not values.is_floating_point():
        return values
    if not values.isfinite().all():
        raise UserError(f"latents of {what} are not finite; is the tokenizer trained, are its weights sound?")
    if dtype == "fp32":
        return values.float()
    half = values.half()
    if not half.isfinite().all():
        raise UserError(f"latents of {what} reach {values.abs().max():.3g}, too large for fp16; set latents.dtype=fp32")
    return half


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_whole(path: Path, manifest: dict[str, Any], labels: Tensor) -> bool:
    try:
        arrays, metadata = mapped(path)
        return metadata["made_from"] == _digest(manifest) and np.array_equal(arrays["labels"].array, labels.numpy())
    except (OSError, ValueError, LookupError, TypeError):
        return False
