"""The latent cache: what a tokenizer makes of every image under every view, computed once and kept in shards.

manifest.json                    what is here and what it was made from; written last
shard-00000.safetensors, ...     training images in order: tensors (V, n, L[, D]) and labels (n,)
heldout-00000.safetensors, ...   held-out images as they are: the same with V = 1
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mar_bench.config.spec import Discrete, RunSpec
from mar_bench.data.datasets import (
    BATCH,
    IMAGE_ENDINGS,
    ArrayImages,
    DataSet,
    FolderImages,
    Progress,
    apply_view,
    class_folders,
    folder_images,
    in_threads,
    silent,
    to_unit,
    views,
    visible,
)
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.noise import NoiseSource

FORMAT = 1  # of the folder
MANIFEST = "manifest.json"
FILES = {"train": "shard", "heldout": "heldout"}
ENCODED_PIXELS = 2**22  # encoded together at most: 64 images of 256 x 256
UPRIGHT, MIRRORED = "moments", "moments_flip"  # arrays of the official code's cache
DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}


# --- reading --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapped:
    """A tensor in a file that is mapped into memory; it begins at byte ``begin``."""

    array: np.ndarray
    memory: mmap.mmap
    begin: int

    def expect(self, index: tuple[np.ndarray, ...]) -> None:
        """Have the kernel read the rows of an index side by side, before they are waited for one by one."""
        size = self.array[(0,) * len(index)].nbytes
        for row in np.ravel_multi_index(index, self.array.shape[: len(index)]).tolist():
            begin = self.begin + size * row
            page = begin - begin % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # it is no more than advice
                self.memory.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


class Shards:
    """One tensor in several files, each with some of the rows of ``axis``; read as a tensor is, never held whole.

    With axis 1, (V, N, ...): ``values[0]`` is the first view, again in shards, and ``values[views, rows]`` reads.
    With axis 0, (N, ...): ``values[rows]`` reads. What is read is float32 where it is stored as float16."""

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
        *before, rows = (np.asarray(k) for k in key) if self.axis == 1 else (_rows(key, len(self)),)
        shards = np.searchsorted(self.begins, rows, side="right") - 1
        places = {}
        for shard in np.unique(shards):
            members = np.flatnonzero(shards == shard)
            places[shard] = members, (*(b[members] for b in before), rows[members] - self.begins[shard])
        for shard, (_, index) in places.items():
            self.files[shard].expect(index)
        out = np.empty((len(rows), *self.shape[self.axis + 1 :]), self.files[0].array.dtype)
        for shard, (members, index) in places.items():
            out[members] = self.files[shard].array[index]
        values = torch.from_numpy(out)
        return values.float() if values.dtype == torch.float16 else values


def _rows(key: slice | Sequence[int], count: int) -> np.ndarray:
    return np.arange(*key.indices(count)) if isinstance(key, slice) else np.asarray(key)


@dataclass(frozen=True)
class Latents:
    """``train`` holds tensors (V, N, L[, D]), one entry a view; ``heldout`` (N', L[, D]), images as they are."""

    train: dict[str, torch.Tensor | Shards]
    heldout: dict[str, torch.Tensor | Shards]  # empty where there are no held-out images
    labels: torch.Tensor
    heldout_labels: torch.Tensor
    tokens_of: Callable[[dict[str, torch.Tensor], torch.Tensor | None], torch.Tensor]
    stochastic: bool

    def draw(self, indices: Sequence[int] | np.ndarray, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training tokens (B, L[, D]) of images: a view drawn for each, and a sample of the latent."""
        first = next(iter(self.train.values()))
        chosen = noise.integers("view", step, first.shape[0], ())
        rows = torch.as_tensor(np.asarray(indices))
        stored = {name: values[chosen, rows] for name, values in self.train.items()}
        return self.tokens_of(stored, noise.normal("latent", step, first.shape[2:]) if self.stochastic else None)

    def split(self, heldout: bool, limit: int | None = None) -> tuple[dict[str, torch.Tensor | Shards], torch.Tensor]:
        """What is stored (N, L[, D]) and the labels of a split, images as they are.

        Nothing is read before it is sliced; with ``limit``, the first so many images are."""
        stored = self.heldout if heldout else {name: values[0] for name, values in self.train.items()}
        labels = self.heldout_labels if heldout else self.labels
        if limit is not None:
            stored, labels = {name: values[:limit] for name, values in stored.items()}, labels[:limit]
        return stored, labels


def load_latents(folder: Path, tokenizer: type[Tokenizer] | Tokenizer) -> Latents:
    """Latents mapped into memory. Raises UserError where the folder is damaged or of another version's making."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
        parts = {part: [_mapped(folder / f)[0] for f, _ in _shards(manifest, part)] for part in FILES}
        for part, shards in parts.items():
            if [len(s["labels"].array) for s in shards] != [len(rows) for _, rows in _shards(manifest, part)]:
                raise ValueError("a shard holds another number of images than the manifest says")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{folder}: not latents as this version of mar_bench makes them ({error}); delete the folder and run again"
        ) from None
    labels = {part: [torch.tensor(s.pop("labels").array) for s in shards] for part, shards in parts.items()}
    train = {name: Shards([s[name] for s in parts["train"]], 1) for name in parts["train"][0]}
    heldout = {name: Shards([s[name] for s in parts["heldout"]], 1)[0] for name in train if parts["heldout"]}
    none = torch.empty(0, dtype=torch.int64)
    return Latents(
        train=train,
        heldout=heldout,
        labels=torch.cat([none, *labels["train"]]),
        heldout_labels=torch.cat([none, *labels["heldout"]]),
        tokens_of=tokenizer.tokens_of,
        stochastic=tokenizer.stochastic,
    )


def _mapped(path: Path) -> tuple[dict[str, Mapped], dict[str, str]]:
    """Tensors of a safetensors file, mapped into memory, and its metadata. Raises ValueError where it is cut."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)  # otherwise the kernel reads far more than a row around each row
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


def _shards(manifest: dict[str, Any], part: str) -> Iterator[tuple[str, range]]:
    """File name and images of each shard."""
    count, size = manifest["images"][part], manifest["shard_images"]
    for i, begin in enumerate(range(0, count, size)):
        yield f"{FILES[part]}-{i:05d}.safetensors", range(begin, min(begin + size, count))


# --- sources: images to encode, or somebody else's cache ------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where the latents of a part of the data come from: ``stored(rows)`` gives tensors (V, n, L[, D]) of some images.

    It is asked for batches that begin at multiples of ``batch``, however images are put into shards, as the last
    bits of an encoding may depend on the images beside it."""

    labels: torch.Tensor
    stored: Callable[[range], dict[str, torch.Tensor]]
    batch: int = BATCH
    classes: list[str] | None = None
    files: list[str] | None = None
    left_out: int = 0


def encoded(spec: RunSpec, data: DataSet, tokenizer: Tokenizer, device: torch.device) -> dict[str, Source]:
    """Training images under every view and held-out images as they are, to be encoded when asked for."""
    every_view = views(spec.data)
    return {
        "train": _encoded(spec, data.train, tokenizer, every_view, device),
        "heldout": _encoded(spec, data.heldout, tokenizer, every_view[:1], device),
    }


def imported(
    spec: RunSpec, tokenizer: Tokenizer, device: torch.device, memo: Path | None = None, progress: Progress = silent
) -> dict[str, Source]:
    """The official code's cache in place of training images; held-out images where data.root is set, else none."""
    train = _imported(spec, tokenizer)
    if getattr(spec.data, "root", None) is None:
        return {"train": train}
    (images,) = folder_images(spec.data, ("val",), memo, progress)
    if images.classes != train.classes:
        name = min(set(images.classes) ^ set(train.classes))
        raise UserError(
            f"{spec.tokenizer.official_cache}: not the classes of {images.folder}: '{name}' is in one alone"
        )
    return {"train": train, "heldout": _encoded(spec, images, tokenizer, views(spec.data)[:1], device)}


def _encoded(
    spec: RunSpec, images: ArrayImages | FolderImages, tokenizer: Tokenizer, every_view: list, device: torch.device
) -> Source:
    @torch.inference_mode()
    def stored(rows: range) -> dict[str, torch.Tensor]:
        batch = images.get(rows)
        seen = [tokenizer.stored(to_unit(apply_view(batch, view)).to(device)) for view in every_view]
        return {name: torch.stack([s[name].cpu() for s in seen]) for name in seen[0]}

    batch = max(1, min(BATCH, ENCODED_PIXELS // spec.data.image_size**2))
    if isinstance(images, FolderImages):
        return Source(images.labels, stored, batch, images.classes, images.names, images.left_out)
    return Source(images.labels, stored, batch)


def _imported(spec: RunSpec, tokenizer: Tokenizer) -> Source:
    """The official code's cache: <root>/<class>/<image file>.npz with moments of the image and of its mirror image."""
    root = Path(spec.tokenizer.official_cache)
    if spec.data.shift:
        raise UserError(f"{root}: the official cache holds no shifted images; set data.shift=0")
    keys = [MIRRORED if flip else UPRIGHT for _, _, flip in views(spec.data)]
    side, dim = spec.data.image_size // spec.tokenizer.stride, spec.tokenizer.latent_dim
    classes = class_folders(root, spec.data.num_classes, "expected <tokenizer.official_cache>/<class>/<image>.npz")
    names, labels = [], []
    for label, name in enumerate(classes):
        # in the order of the images, whose names do not end in .npz
        files = sorted(f.removesuffix(".npz") for f in visible(root / name) if f.endswith(".npz"))
        if not files:
            raise UserError(f"{root / name}: no .npz file in it")
        _check_complete(spec, name, files)
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    scale = getattr(tokenizer, "inner", tokenizer).scale.cpu()
    joined = getattr(tokenizer, "joined", lambda latents: latents)

    def stored(rows: range) -> dict[str, torch.Tensor]:
        read = in_threads(lambda i: _moments(root / f"{names[i]}.npz", keys, (2 * dim, side, side)), rows)
        mean, log_variance = torch.from_numpy(np.concatenate(read)).chunk(2, dim=1)  # n V, D, side, side
        std = (0.5 * log_variance.clamp(-30, 20)).exp()
        tokens = {"mean": joined(grid_to_tokens(mean) * scale), "std": joined(grid_to_tokens(std) * scale)}
        return {name: values.unflatten(0, (-1, len(keys))).transpose(0, 1) for name, values in tokens.items()}

    return Source(torch.tensor(labels), stored, classes=classes, files=names)


def _check_complete(spec: RunSpec, name: str, files: list[str]) -> None:
    """Where the images are at hand: raises UserError for one that the official cache lacks, unless it may be bad."""
    if spec.data.root is None or spec.data.skip_bad or not (folder := Path(spec.data.root) / "train" / name).is_dir():
        return
    images = {file for file in visible(folder) if Path(file).suffix.lower() in IMAGE_ENDINGS}
    if missing := sorted(images - set(files)):
        raise UserError(
            f"{Path(spec.tokenizer.official_cache) / name}: {len(missing)} images of {folder} are not in it, the first "
            f"is {missing[0]}; finish the cache, or leave such images out with data.skip_bad=true"
        )


def _moments(path: Path, keys: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """(V, 2 D, side, side) float32. Raises UserError for a file that does not hold that."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [arrays[key] for key in keys]
    except MemoryError:
        raise
    except Exception as error:  # of zip, of its compression, of numpy
        raise UserError(f"{path}: not arrays {' and '.join(keys)} of the official cache ({error})") from None
    for key, array in zip(keys, found):
        if array.shape != shape or array.dtype != np.float32:
            raise UserError(f"{path}: {key} is {array.dtype} {array.shape}, not float32 {shape}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {key} has values that are not finite")
    return np.stack(found)


# --- making ---------------------------------------------------------------------------------------------


def manifest_of(
    spec: RunSpec, sources: dict[str, Source], tokenizer: Tokenizer, weights: str | Path | None
) -> dict[str, Any]:
    """What the latents are and what they are made from; ``weights`` is the tokenizer's file."""
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
    """Write the shards that are not there yet: of ``world`` processes each those of its ``rank``.

    A shard that is whole and was made from the same is kept. Raises UserError for latents that are not finite."""
    every = [(part, file, rows) for part in sources for file, rows in _shards(manifest, part)]
    mine = every[rank::world]
    done, total = 0, sum(len(rows) for _, _, rows in mine)
    for part, file, rows in mine:
        labels = sources[part].labels[rows.start : rows.stop].clone()
        if not _is_whole(folder / file, manifest, labels):
            tensors = {"labels": labels}
            for batch in _batches(rows, sources[part]):
                progress(done + max(0, batch.start - rows.start), total)
                inside = range(max(rows.start, batch.start), min(rows.stop, batch.stop))
                for name, values in sources[part].stored(batch).items():
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
    """The latents of images in ``folder``, by one process."""
    sources = encoded(spec, data, tokenizer, device)
    manifest = manifest_of(spec, sources, tokenizer, None)
    write_shards(sources, manifest, folder, progress)
    finish_latents(manifest, folder)


def finish_latents(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest, once all processes have made their shards, and remove what else lies there."""
    files = {file for part in FILES for file, _ in _shards(manifest, part)}
    for path in folder.glob("*.safetensors*"):  # hidden ones are what killed processes left
        if path.name not in files:
            path.unlink()
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _batches(rows: range, source: Source) -> Iterator[range]:
    """The source's batches that hold some of ``rows``."""
    for begin in range(rows.start // source.batch * source.batch, rows.stop, source.batch):
        yield range(begin, min(begin + source.batch, len(source.labels)))


def _storable(values: torch.Tensor, dtype: str, what: str) -> torch.Tensor:
    """Codes and pixels as they are, other values as float32 or float16."""
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


def _is_whole(path: Path, manifest: dict[str, Any], labels: torch.Tensor) -> bool:
    try:
        arrays, metadata = _mapped(path)
        return metadata["made_from"] == _digest(manifest) and np.array_equal(arrays["labels"].array, labels.numpy())
    except (OSError, ValueError, LookupError, TypeError):
        return False
