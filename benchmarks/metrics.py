"""Time and peak memory of all metrics of 50,000 generated images, on random features of Inception's size.

Precision and recall use 10,000 reference images, the standard protocol; ``--reference 50000`` uses as many as were
generated. Each part includes its jackknife; memory is the peak of the process so far."""

from __future__ import annotations

import argparse
import os
import resource
import time

import torch

from mar_bench.config.spec import MetricsSpec
from mar_bench.metrics.functions import statistics
from mar_bench.metrics.references import Reference
from mar_bench.metrics.score import FeatureSet, Measure

FEATURES, CLASSES = 2048, 1008
EXTRACTOR = {"kind": "inception", "name": "inception", "sha256": "0" * 64}


def features(count: int, shift: float, seed: int) -> torch.Tensor:
    """Positive and skewed, like pooled activations."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, FEATURES)
    for rows in out.split(10_000):
        rows.copy_(torch.randn(len(rows), FEATURES, generator=generator).add_(shift).clamp_(min=0))
    return out


class Clock:
    """Prints the time of each part and the peak memory at its end."""

    def __init__(self):
        self.part, self.begin, self.total = "root of the reference", time.perf_counter(), 0.0

    def __call__(self, part: str) -> None:
        seconds = time.perf_counter() - self.begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{self.part:24} {seconds:7.1f} s   peak {peak:5.2f} GiB", flush=True)
        self.part, self.begin, self.total = part, time.perf_counter(), self.total + seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generated", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads)
    real = features(options.reference, 0.0, 1)
    about = {"name": "random", "sha256": "1", "size": None, "channels": None, "num_images": None}
    reference = Reference(statistics(real), real, {**about, "num_features": len(real)}, EXTRACTOR)
    generated = features(options.generated, 0.05, 0)
    labels = torch.arange(len(generated)) % 1000
    about = {**about, "sha256": "2", "num_images": len(generated)}
    images = FeatureSet(generated, 4 * generated[:, :CLASSES], labels, about, EXTRACTOR, torch.empty(0))
    print(f"{len(generated)} against {len(real)} images of {FEATURES} features, {threads} threads")
    clock = Clock()
    scores = Measure(MetricsSpec(), reference, progress=clock)(images)
    clock("")
    print(f"{'all':24} {clock.total:7.1f} s")
    for name, value in scores.metrics.items():
        print(f"{name:24} {value:.6g}   {scores.uncertainty.get(name, '')}")


if __name__ == "__main__":
    main()
