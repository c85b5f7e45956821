"""Seconds per image: sampling plus decoding, including guidance's doubled batch, excluding image writing.

Throughput at the spec's batch size as in figure 6 of the paper, and the latency of a single image, because the head's
share depends strongly on the batch size. Medians with quartiles; the first batch is discarded."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from mar_bench.config.spec import RunSpec
from mar_bench.data.images import Progress
from mar_bench.models.ar import Generator
from mar_bench.models.build import generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.noise import NoiseSource


@contextlib.contextmanager
def _timed(seconds: dict[str, float], device: torch.device, part: str) -> Iterator[None]:
    """Add the time of the block to ``seconds[part]``."""
    begin = _now(device)
    yield
    seconds[part] = seconds.get(part, 0.0) + _now(device) - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # wait for queued work
    return time.perf_counter()


@torch.inference_mode()
def measure_speed(
    spec: RunSpec, model: Generator, tokenizer: Tokenizer, device: torch.device, progress: Progress
) -> dict[str, float]:
    """Metrics of a ``speed`` record; times in seconds, memory in MB (10^6 bytes)."""
    size, repeats = spec.speed.batch_size, spec.speed.repeats
    laps: dict[int, list[dict[str, float]]] = {1: [], size: []}
    for batch_size, found in laps.items():
        for index in range(repeats + 1):  # the first warms up
            progress(len(laps[1]) + len(laps[size]), 2 * repeats)
            seconds: dict[str, float] = {}
            clock, indices = partial(_timed, seconds, device), range(index * batch_size, (index + 1) * batch_size)
            labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
            with clock("total"):
                tokens = generate(model, labels, spec.sampling, NoiseSource(spec.sampling.seed, indices), clock)
                with clock("decode"):
                    tokenizer.decode(tokens)
            if index:
                found.append(seconds)
    totals = np.array([lap["total"] for lap in laps[size]])
    names = "seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75"
    parts = "backbone", "head", "decode"
    return {
        **dict(zip(names, np.quantile(totals / size, [0.5, 0.25, 0.75]).tolist())),
        "latency_batch1": float(np.median([lap["total"] for lap in laps[1]])),
        **{f"share_{p}": float(sum(lap.get(p, 0.0) for lap in laps[size]) / totals.sum()) for p in parts},
        "peak_memory_mb": peak_memory(device) / 1e6,
    }


def peak_memory(device: torch.device) -> int:
    """The most bytes allocated on a GPU, or used by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
