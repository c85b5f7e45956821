"""Memory of sampling and scoring at two numbers of images: what grows with their number, and by how much."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from mar_bench.pipeline.execute import execute
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.request import select
from mar_bench.pipeline.store import Places
from tests.torture.workshop import EXPERIMENT, SCALE, Figure, Workshop, forked, places_in

# four codes an image, all drawn in one step
TINY = ("parts.tokenizer.discrete.stride=8", "sampling.num_ar_steps=1", "sampling.batch_size=250", "train.steps=1")
COUNTS = {"sample": (2_000, 50_000), "generation": (10_000, 50_000)}  # below, its blocks of distances still grow
QUICK = {"sample": (500, 5_000)}
MOST = {"sample": 0.5, "generation": 5.0}  # MB that a thousand images may add; features are 16 numbers an image


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def peak(job: Job, places: Places) -> float:
    """MB that a stage adds to those of this process at most."""
    before = resident()
    execute(job, places, lambda *_: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before


def memory(lab: Workshop) -> Iterator[Figure]:
    counts = QUICK if lab.quick else COUNTS
    peaks: dict[tuple[str, int], float] = {}
    with lab.bench() as folder:
        places = places_in(folder)
        for count in sorted({count for both in counts.values() for count in both}):
            words = [str(EXPERIMENT), *TINY, f"sampling.num_images={count}"]
            runs = [run for run in select(words, False, SCALE, {}, only="codes").runs if run.task == "generation"]
            for job in jobs_for(runs, places):
                if job.kind != "generation" or count in counts.get("generation", ()):
                    peaks[job.kind, count] = forked(peak, job, places)
    wrong, notes = [], []
    for stage, (few, many) in counts.items():
        slope = 1000 * (peaks[stage, many] - peaks[stage, few]) / (many - few)
        notes.append(f"`{stage}` {peaks[stage, few]:.0f} MB at {few:,}, {peaks[stage, many]:.0f} at {many:,} images")
        if slope > MOST[stage]:
            wrong.append(f"{notes[-1]}: {slope:.2f} MB a thousand images")
    yield Figure(
        "memory of many images",
        "the most memory that sampling, and scoring with its blocks of distances, add to the process; a thousand tiny "
        "images may add " + ", ".join(f"{MOST[stage]} MB to `{stage}`" for stage in counts),
        len(counts),
        wrong,
        "; ".join(notes),
    )
