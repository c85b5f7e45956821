"""Seconds per image: sampling plus decoding, including guidance's doubled batch, excluding image writing.

Throughput at the spec's batch size as in figure 6 of the paper, and the latency of a single image, because the head's
share depends strongly on the batch size. Medians with quartiles; the first batch is discarded."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mar_bench.config.spec import RunSpec
from mar_bench.data.images import Progress
from mar_bench.models.ar import Generator
from mar_bench.models.build import generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline.sample import decoded
from mar_bench.utils.noise import NoiseSource

PARTS = "backbone", "head", "noise", "decode"  # what a batch's time is split into; the rest is bookkeeping
PEAK = Path("/proc/self/clear_refs")  # writing 5 forgets the peak of this process's memory


@dataclass(frozen=True)
class Laps:
    """Seconds of whole batches, and of further ones in parts: a GPU is waited for between parts, so these take longer
    in all."""

    wholes: list[float]
    parts: list[dict[str, float]]  # by part, and "total"

    def share(self, part: str) -> float:
        """The share of a part in the batches that were timed in parts."""
        return sum(lap.get(part, 0.0) for lap in self.parts) / sum(lap["total"] for lap in self.parts)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], device: torch.device, part: str) -> Iterator[None]:
    """Add the time of the block to ``seconds[part]``."""
    begin = now(device)
    yield
    seconds[part] = seconds.get(part, 0.0) + now(device) - begin


def now(device: torch.device) -> float:
    """Seconds of a clock, once all queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def sampling_laps(
    spec: RunSpec,
    model: Generator,
    tokenizer: Tokenizer,
    device: torch.device,
    size: int,
    repeats: int,
    told: Callable[[], object] = lambda: None,
) -> Laps:
    """Draw and decode ``size`` images once to warm up, ``repeats`` times whole and as often in parts.

    ``told`` is called before each batch and may raise an exception to stop."""

    def draw(index: int, clock: Callable = contextlib.nullcontext) -> None:
        told()
        indices = range(index * size, (index + 1) * size)
        labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
        noise = NoiseSource(spec.sampling.seed, indices)
        tokens = generate(model, labels, spec.sampling, noise, clock)
        with clock("decode"):
            decoded(spec, tokenizer, tokens, noise)

    laps = Laps([], [])
    for index in range(repeats + 1):
        begin = now(device)
        draw(index)
        if index:
            laps.wholes.append(now(device) - begin)
    for index in range(1, repeats + 1):
        seconds: dict[str, float] = {}
        clock = partial(_timed, seconds, device)
        with clock("total"):
            draw(index, clock)
        laps.parts.append(seconds)
    return laps


def measure_speed(
    spec: RunSpec, model: Generator, tokenizer: Tokenizer, device: torch.device, progress: Progress
) -> dict[str, float]:
    """Metrics of a ``speed`` record; times in seconds, memory in MB (10^6 bytes). Noise counts as part of the head."""
    size, repeats = spec.speed.batch_size, spec.speed.repeats
    steps = iter(range(last := 2 * (2 * repeats + 1)))
    one, many = (
        sampling_laps(spec, model, tokenizer, device, n, repeats, lambda: progress(next(steps), last))
        for n in (1, size)
    )
    names = "seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75"
    head = many.share("head")  # none in DiT
    return {
        **dict(zip(names, np.quantile(np.array(many.wholes) / size, [0.5, 0.25, 0.75]).tolist())),
        "latency_batch1": float(np.median(one.wholes)),
        **{f"share_{part}": many.share(part) for part in ("backbone", "decode")},
        "share_head": head + many.share("noise") if head else 0.0,
        "peak_memory_mb": peak_memory(device) / 1e6,
    }


def forget_peak(device: torch.device) -> None:
    """Begin to measure ``peak_memory`` anew, where that is possible: on a GPU, and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            PEAK.write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes allocated on a GPU, or used by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
