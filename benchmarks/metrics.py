"""Seconds and memory of the metrics of 50,000 generated images, on random features of Inception's size.

Precision and recall are against 10,000 reference images, the field's protocol; ``--reference 50000`` takes as many as
were generated. Each part is measured in turn, in one process; memory is the process's peak so far."""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import torch

from mar_bench.metrics import (
    FrechetDistance,
    inception_style_score,
    is_singular,
    kernel_distance,
    precision_recall,
    statistics,
)

FEATURES, CLASSES = 2048, 1008


def features(count: int, shift: float, seed: int) -> torch.Tensor:
    """Positive and skewed, as pooled activations are."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, FEATURES)
    for rows in out.split(10_000):
        rows.copy_(torch.randn(len(rows), FEATURES, generator=generator).add_(shift).clamp_(min=0))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generated", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    generated, reference = features(options.generated, 0.05, 0), features(options.reference, 0.0, 1)
    total = 0.0

    def timed(name: str, work: Callable):
        nonlocal total
        begin = time.perf_counter()
        value = work()
        seconds = time.perf_counter() - begin
        total += seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name:28} {seconds:8.1f} s   peak {peak:5.2f} GiB   {value if isinstance(value, tuple | float) else ''}"
        )
        return value

    print(
        f"{options.generated} against {options.reference} images of {FEATURES} features, "
        f"{torch.get_num_threads()} threads"
    )
    found = timed("statistics, generated", lambda: statistics(generated))
    real = timed("statistics, reference", lambda: statistics(reference))
    assert not is_singular(found)
    distance = timed("root of the reference", lambda: FrechetDistance(real))
    timed("Frechet distance", lambda: distance(found))
    timed("KID, 100 subsets of 1000", lambda: tuple(kernel_distance(generated, reference, 100, 1000)))
    timed("precision and recall", lambda: precision_recall(generated=generated, reference=reference, neighbours=3))
    logits = generated[:, :CLASSES] * 4
    timed("inception score", lambda: tuple(inception_style_score(logits, 10)))
    print(f"{'all':28} {total:8.1f} s")


if __name__ == "__main__":
    main()
