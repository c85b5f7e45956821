"""Seconds per image: sampling plus decoding, including guidance's doubled batch, excluding image writing.

Throughput at the spec's batch size as in figure 6 of the paper, and the latency of a single image, because the head's
share depends strongly on the batch size. Medians with quartiles; the first batch is discarded."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mar_bench.config.spec import RunSpec
from mar_bench.models.ar import Generator
from mar_bench.models.build import generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.noise import NoiseSource


class Stopwatch:
    """Seconds spent in named parts; synchronises the GPU before reading the clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.seconds[part] += self._now() - begin

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@torch.inference_mode()
def measure_speed(
    spec: RunSpec, model: Generator, tokenizer: Tokenizer, device: torch.device, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """Metrics of a ``speed`` record; times in seconds, memory in MB (10^6 bytes)."""

    def batch(index: int, size: int, clock: Stopwatch) -> None:
        indices = range(index * size, (index + 1) * size)
        labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
        with clock("total"):
            tokens = generate(model, labels, spec.sampling, NoiseSource(spec.sampling.seed, indices), clock)
            with clock("decode"):
                tokenizer.decode(tokens)

    size, repeats = spec.speed.batch_size, spec.speed.repeats
    watches: dict[int, list[dict[str, float]]] = {1: [], size: []}
    for batch_size, laps in watches.items():
        for index in range(repeats + 1):  # the first warms up
            progress(len(watches[1]) + len(watches[size]), 2 * repeats)
            clock = Stopwatch(device)
            batch(index, batch_size, clock)
            if index:
                laps.append(dict(clock.seconds))
    totals = np.array([lap["total"] for lap in watches[size]]) / size
    whole = sum(lap["total"] for lap in watches[size])
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds_per_image": float(np.median(totals)),
        "seconds_per_image_q25": float(np.quantile(totals, 0.25)),
        "seconds_per_image_q75": float(np.quantile(totals, 0.75)),
        "latency_batch1": float(np.median([lap["total"] for lap in watches[1]])),
        **{f"share_{p}": sum(lap.get(p, 0.0) for lap in watches[size]) / whole for p in ("backbone", "head", "decode")},
        "peak_memory_mb": memory / 1e6,
    }
