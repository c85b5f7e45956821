"""Seconds per image: sampling plus decoding, including guidance's doubled batch, excluding image writing.

Throughput at the spec's batch size as in figure 6 of the paper, and the latency of a single image, because the head's
share depends strongly on the batch size. Medians with quartiles; the first batch is discarded."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from mar_bench.config.spec import RunSpec
from mar_bench.data.images import Progress
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
    spec: RunSpec, model: Generator, tokenizer: Tokenizer, device: torch.device, progress: Progress
) -> dict[str, float]:
    """Metrics of a ``speed`` record; times in seconds, memory in MB (10^6 bytes)."""
    size, repeats = spec.speed.batch_size, spec.speed.repeats
    laps: dict[int, list[dict[str, float]]] = {1: [], size: []}
    for batch_size, found in laps.items():
        for index in range(repeats + 1):  # the first warms up
            progress(len(laps[1]) + len(laps[size]), 2 * repeats)
            clock, indices = Stopwatch(device), range(index * batch_size, (index + 1) * batch_size)
            labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
            with clock("total"):
                tokens = generate(model, labels, spec.sampling, NoiseSource(spec.sampling.seed, indices), clock)
                with clock("decode"):
                    tokenizer.decode(tokens)
            if index:
                found.append(dict(clock.seconds))
    totals = np.array([lap["total"] for lap in laps[size]])
    median, low, high = np.quantile(totals / size, [0.5, 0.25, 0.75])
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    parts = ("backbone", "head", "decode")
    return {
        "seconds_per_image": float(median),
        "seconds_per_image_q25": float(low),
        "seconds_per_image_q75": float(high),
        "latency_batch1": float(np.median([lap["total"] for lap in laps[1]])),
        **{f"share_{p}": float(sum(lap.get(p, 0.0) for lap in laps[size]) / totals.sum()) for p in parts},
        "peak_memory_mb": memory / 1e6,
    }
