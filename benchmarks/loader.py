"""Latents per second in one process: the latent cache against the official code's npz file per image.

Both hold the same random KL-16 moments of images and their mirror images. A pass reads random batches of moments and
labels as tensors; passes of both alternate, and each pair gives a ratio."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mar_bench.config.spec import LatentsSpec, RunSpec
from mar_bench.data.encode import Source, finish_latents, manifest_of, write_shards
from mar_bench.data.latents import Latents, load_latents
from mar_bench.models.build import TOKENIZERS
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens
from mar_bench.utils.noise import NoiseSource, philox

BATCH, BATCHES = 128, 15  # per pass
CLASSES = 10


def moments(index: int) -> np.ndarray:
    """Mean and log variance of an image and of its mirror image, float32 (2, 32, 16, 16)."""
    return philox(0, "bench-moments", index, 0).standard_normal((2, 32, 16, 16), dtype=np.float32)


def write_official(root: Path, count: int) -> list[tuple[Path, int]]:
    samples = []
    for i in range(count):
        path = root / f"n{i % CLASSES:08d}" / f"{i:08d}.JPEG.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        upright, mirrored = moments(i)
        np.savez(path, moments=upright, moments_flip=mirrored)
        samples.append((path, i % CLASSES))
    return samples


def write_ours(folder: Path, count: int, dtype: str) -> None:
    def stored(rows: range) -> dict[str, torch.Tensor]:
        values = torch.from_numpy(np.stack([moments(i) for i in rows], axis=1)).flatten(0, 1)
        mean, log_variance = values.chunk(2, dim=1)
        tokens = {"mean": grid_to_tokens(mean), "std": grid_to_tokens((0.5 * log_variance).exp())}
        return {name: v.unflatten(0, (2, -1)) for name, v in tokens.items()}

    folder.mkdir()
    sources = {"train": Source(torch.arange(count) % CLASSES, stored)}
    spec = replace(RunSpec(), latents=LatentsSpec(dtype=dtype, shard_images=1024))
    manifest = manifest_of(spec, sources, Tokenizer(), None)
    write_shards(sources, manifest, folder, lambda *_: None)
    finish_latents(manifest, folder)


def official_batch(samples: list[tuple[Path, int]], rows: np.ndarray, flips: np.ndarray) -> tuple:
    """Like the official CachedFolder and PyTorch's collation: one of the two arrays of each file, stacked."""
    items = []
    for row, flip in zip(rows, flips):
        path, target = samples[row]
        data = np.load(path)
        items.append((data["moments_flip"] if flip else data["moments"], target))
    return torch.stack([torch.as_tensor(m) for m, _ in items]), torch.tensor([t for _, t in items])


def our_batch(latents: Latents, rows: np.ndarray, flips: np.ndarray) -> tuple:
    return {name: values[flips, rows] for name, values in latents.train.items()}, latents.labels[rows]


def speed(batch: Callable, source, count: int, seed: int) -> float:
    """Images per second in one pass."""
    rng = philox(seed, "bench-rows", 0, 0)
    batches = [(rng.integers(count, size=BATCH), rng.integers(2, size=BATCH)) for _ in range(BATCHES)]
    begin = time.perf_counter()
    for rows, flips in batches:
        batch(source, rows, flips)
    return BATCH * BATCHES / (time.perf_counter() - begin)


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def compare(folder: Path, samples: list[tuple[Path, int]], dtype: str, cold: bool, rounds: int) -> None:
    count, speeds, latents = len(samples), [], load_latents(folder / dtype, TOKENIZERS["ldm_kl"])
    for seed in range(-2, rounds):  # the first two warm up
        if cold:
            del latents  # mapped pages would stay in the cache
            forget(folder)
            latents = load_latents(folder / dtype, TOKENIZERS["ldm_kl"])
        speeds.append((speed(official_batch, samples, count, seed), speed(our_batch, latents, count, seed)))
    theirs, ours = zip(*speeds[2:])
    ratios = [b / a for a, b in speeds[2:]]
    state = "cold" if cold else "warm"
    print(f"{state} {dtype}: npz {spread(theirs)} images/s, shards {spread(ours)} images/s, ratio {spread(ratios, 1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write the files (default: the temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        samples = write_official(folder / "npz", options.images)
        for dtype in ("fp16", "fp32"):
            write_ours(folder / dtype, options.images, dtype)
        for part in ("npz", "fp16", "fp32"):
            size = sum(p.stat().st_size for p in (folder / part).rglob("*") if p.is_file())
            print(f"{part}: {size / options.images / 1e3:.1f} kB per image")
        print(f"{options.images} images, batches of {BATCH}, {platform.machine()}, {os.cpu_count()} cores, one thread")
        for dtype in ("fp16", "fp32"):
            compare(folder, samples, dtype, False, options.rounds)
        if hasattr(os, "posix_fadvise"):
            compare(folder, samples, "fp16", True, options.rounds)
        latents = load_latents(folder / "fp16", TOKENIZERS["ldm_kl"])
        noise = NoiseSource(0, range(BATCH))
        drawn = speed(lambda source, rows, flips: source.draw(rows, noise, 0), latents, options.images, 0)
        print(f"fp16 with the noise of training tokens (drawn on the GPU in the official code): {drawn:,.0f} images/s")


if __name__ == "__main__":
    main()
