"""The same bits however the work is split, and how far numbers move where sums are taken in another order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mar_bench.pipeline.execute import execute
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.request import select
from tests.torture import workshop
from tests.torture.workshop import (
    EXPERIMENT,
    SCALE,
    Figure,
    Workshop,
    before,
    copied,
    difference,
    forked,
    places_in,
    records,
)

SHARDS = 3
SPLITS: dict[str, tuple[object, ...]] = {  # ways to split the same work, as words for ``run``
    "shards": (),
    "another folder, é": (),
    "latents": ("latents.shard_images=7",),
    "checkpoints": ("compute.checkpoint_every=5", "compute.log_every=7"),
    "jobs": ("--jobs", 2),
}
# largest allowed difference of weights and of tokens, of their std
TOLERANCE = {
    "compute.micro_batch=5": 2e-3, "compute.threads=2": 2e-3, "compute.compile=true": 2e-3,
    "sampling.batch_size=20": 1e-4,
}  # fmt: skip


def numbers(folder: Path) -> dict[str, Any]:
    """What was measured, without settings and seconds."""
    kept = ("metrics", "uncertainty", "protocol", "training", "parameters")
    return {i: {k: r[k] for k in kept} for i, r in records(folder).items() if r["task"] != "speed"}


def draw_shards(folder: Path) -> None:
    """Draw the samples in shards, the last first."""
    places = places_in(folder)
    jobs = [j for j in jobs_for(select([str(EXPERIMENT)], False, SCALE, {}).runs, places) if j.kind == "sample"]
    for job, j in itertools.product(jobs, reversed(range(SHARDS))):
        execute(job, places, lambda *_: None, shard=(j, SHARDS))


def bits(lab: Workshop) -> Iterator[Figure]:
    done = lab.undisturbed()
    truth = numbers(done)

    def unequal(name: str) -> list[str]:
        with lab.bench() as base:
            (folder := base / name).mkdir()
            if name == "shards":
                forked(draw_shards, copied(done, folder, before("sample")))
            code, text = workshop.run(folder, *SPLITS[name])
            found = numbers(folder) if code == 0 else {}
            return [f"{name}: {told}" for i in truth if (told := difference(truth[i], found.get(i, text[-300:])))]

    names = list(SPLITS)[: 2 if lab.quick else None]
    yield Figure(
        "equal bits",
        f"records of two rows to the last digit with sampling in {SHARDS} shards, in another folder, with other "
        "`latents.shard_images`, other checkpoints, and `--jobs 2`",
        len(names) * len(truth),
        [told for each in lab.each(unequal, names) for told in each],
    )
    words = list(TOLERANCE)[3 if lab.quick else 0 :]
    moved = dict(zip(words, lab.each(lambda word: apart(lab, done, word), words)))
    yield Figure(
        "close numbers",
        "largest difference of the weights and of the tokens of a row, in units of their std, where sums are taken in "
        "another order; allowed: " + ", ".join(f"{TOLERANCE[word]:.0e} with `{word}`" for word in words),
        len(moved),
        [f"{word}: {value:.3g} of the std" for word, value in moved.items() if not value <= TOLERANCE[word]],
        "measured: " + ", ".join(f"{value:.1e}" for value in moved.values()),
    )


def apart(lab: Workshop, done: Path, word: str) -> float:
    """How far an override of how the work is done moves weights or tokens."""
    first = "sample" if word.startswith("sampling") else "train"
    with lab.bench() as folder:
        code, text = workshop.run(copied(done, folder, before(first)), word, "--only", "diffusion")
        assert code == 0, text
        pairs = zip(outcome(done), outcome(folder, word))
        return max(float((one - other).abs().max() / one.std()) for one, other in pairs)


def outcome(folder: Path, *words: str) -> list[torch.Tensor]:
    """All weights and all tokens of a row."""
    ids = select([str(EXPERIMENT), *words], False, SCALE, {}, only="diffusion").runs[0].ids
    weights = load_file(folder / "runs/train" / ids["train_id"] / "ema.safetensors")
    tokens = [load_file(path)["tokens"] for path in sorted((folder / "runs/sample" / ids["sample_id"]).glob("*.saf*"))]
    return [torch.cat([tensor.flatten() for _, tensor in sorted(weights.items())]), torch.cat(tokens)]
