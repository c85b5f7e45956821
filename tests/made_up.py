"""Records with made-up numbers for tests of tables, figures and claims."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, generation_run, likelihood_run, reconstruction_run, speed_run, with_seeds
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import RunSpec, drawing_part
from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record

PROVENANCE = {"git": {"commit": "0123456789abcdef" * 2, "dirty": False}, "device": "Example CPU"}
EXTRACTOR = {"kind": "classifier", "name": "mnist5k", "id": "e" * 12, "sha256": "f" * 64}
FLOOR = {"vq": 4.2, "kl": 2.6, "ldm_vq": 4.2, "ldm_kl": 2.6}  # reconstruction distances by kind of tokenizer
EXPERIMENTS = Path(__file__).parent / "made_up_experiments"  # small ones like those of the paper's figures and tables
Value = Callable[[str, int, int], float]  # row, training seed, sampling seed -> distance


def made_up(name: str, scale: str = "tiny") -> Experiment:
    return load_experiment(str(EXPERIMENTS / f"{name}.yaml"), scale)


def base(row: str) -> float:
    """A distance for each row, all different and above the floors."""
    variant, loss, guidance = row.split("/")
    start = {"raster_causal": 6, "random_causal": 12, "random_bidirectional": 13, "mar": 13.5}[variant]
    return (start - 0.5 * (loss == "diff")) * (0.5 if guidance == "guided" else 1)


def generation(
    experiment: Experiment, row: str, train_seed: int, sampling_seed: int, fd: float | None, **changes
) -> Record:
    """A generation record; a failed one if ``fd`` is None."""
    run = generation_run(row, with_seeds(experiment.rows[row], train_seed, sampling_seed))
    if fd is None:
        error = "ValueError: loss is not finite\n  a second line"
        return Record("generation", "failed", run.ids, as_tree(run.spec), error=error, provenance=PROVENANCE)
    values = {"fd": fd, "fd:heldout": fd + 0.4, "is": 9 - fd / 10, "kid": fd / 1000, "precision": 0.8, "recall": 0.6}
    record = _of_images(run, {**values, "copied": 0.02, "accuracy": 0.9}, run.spec.sampling.num_images)
    parameters = {"total": 300_000, "backbone": 250_000, "head": 50_000}
    training = {"loss_train": 2.5, "loss_heldout": 2.7, "seconds": 100.0}
    training["steps"] = run.spec.sampling.snapshot or run.spec.train.steps
    return replace(record, **{"parameters": parameters, "training": training, **changes})


def reconstruction(experiment: Experiment, row: str) -> Record:
    run = reconstruction_run(row, experiment.rows[row])
    fd = FLOOR[run.spec.tokenizer.kind]
    values = {"fd": fd, "fd:heldout": fd - 0.2, "is": 9.0, "kid": fd / 1000, "precision": 0.85, "recall": 0.8}
    record = _of_images(run, {**values, "copied": 0.01, "accuracy": 0.95}, 1000)
    real = {"fd:real": 0.45, "kid:real": 0.0003, "precision:real": 0.9, "recall:real": 0.88, "copied:real": 0.015}
    named = {metric_name(metric, record.spec["metrics"]["extractor"]): value for metric, value in real.items()}
    return replace(record, metrics={**record.metrics, **named, "psnr": 18.0})


def _of_images(run: Run, values: dict[str, float], images: int) -> Record:
    """A record of the values; standard errors are 2 % of all but the shares that have no jackknife."""
    spec = as_tree(run.spec)
    names = {metric: metric_name(metric, spec["metrics"]["extractor"]) for metric in values}
    doubt = {
        names[metric]: {"standard_error": 0.02 * value, "method": "jackknife, 10 groups"}
        for metric, value in values.items()
        if metric not in ("copied", "accuracy")
    }
    doubt[names["is"]]["sd_splits"], doubt[names["kid"]]["sd_subsets"] = 0.1, 0.0005
    return Record(
        task=run.task,
        status="done",
        ids=run.ids,
        spec=spec,
        metrics={names[metric]: value for metric, value in values.items()},
        protocol=protocol(run.spec, images, run.id),
        uncertainty=doubt,
        provenance=PROVENANCE,
    )


def protocol(spec: RunSpec, images: int, sha256: str) -> dict[str, Any]:
    """How ``images`` images with this ``sha256`` were measured."""
    size, metrics = [spec.data.image_size] * 2, spec.metrics
    real = {"size": size, "channels": spec.data.channels, "kind": spec.metrics.reference.kind}
    return {
        "extractor": dict(EXTRACTOR),
        "reference": {**real, "name": "mnist5k", "sha256": "a" * 64, "num_images": 4000, "num_features": 3000},
        "heldout": {**real, "kind": "data", "name": "mnist5k", "sha256": "b" * 64, "num_images": 1000,
                    "num_features": 1000},
        "samples": {"sha256": sha256, "first_batch_sha256": sha256, "num_images": images, "size": size,
                    "channels": spec.data.channels, "duplicates": 0, "index": "0 to the last, each once",
                    "conversion": "round(255 x), clipped"},
        "num_generated": images, "num_reference": 4000, "num_heldout": 1000,
        "label_mode": "balanced", "class_balance": {"classes": 10, "least": images // 10, "most": images // 10},
        "dtype": "float32",
        "settings": {"is_splits": metrics.is_splits, "is_seed": 0, "kid_subsets": metrics.kid_subsets,
                     "kid_subset_size": metrics.kid_subset_size, "kid_seed": 0, "kid_kernel": "polynomial, degree 3",
                     "mind_images": images, "mind_projections": 1000, "mind_seed": 0,
                     "neighbours": metrics.neighbours, "jackknife_groups": metrics.jackknife_groups},
        "singular": False,
    }  # fmt: skip


def as_before(record: Record) -> Record:
    """The record as an early version wrote it: few metrics, a short protocol, no standard errors."""
    old = ("num_generated", "num_reference", "num_heldout", "label_mode", "dtype", "extractor")
    new = ("kid", "precision", "recall", "copied")
    metrics = {k: v for k, v in record.metrics.items() if not k.startswith(new)}
    kept = {k: v for k, v in record.protocol.items() if k in old}
    return replace(record, metrics=metrics, protocol=kept, uncertainty={})


def speed(experiment: Experiment, row: str, device: str = "Example CPU", factor: float = 1.0) -> Record:
    """A speed record, slower by ``factor``; quartiles are 5 % below and 10 % above the median."""
    run = speed_run(row, experiment.rows[row], device)
    seconds = factor * 0.001 * run.spec.sampling.num_ar_steps**0.5
    seconds *= 2.5 if "diff" in row else 1
    seconds *= 1.9 if "/guided" in row else 1
    seconds *= 1.8 if "bidirectional" in row else 1
    metrics = {"seconds_per_image": seconds, "latency_batch1": 10 * seconds, "peak_memory_mb": 500.0}
    metrics |= {"seconds_per_image_q25": 0.95 * seconds, "seconds_per_image_q75": 1.1 * seconds}
    metrics |= {"share_backbone": 0.5, "share_head": 0.4, "share_decode": 0.1}
    protocol = {"device": device, "threads": 1, "batch_size": 64, "repeats": 5, "dtype": "float32"}
    return Record("speed", "done", run.ids, as_tree(run.spec), metrics, protocol, provenance=PROVENANCE)


def likelihood(experiment: Experiment, row: str, train_seed: int, nll: float | None) -> Record:
    """A likelihood record; a failed one if ``nll`` is None."""
    run = likelihood_run(row, with_seeds(experiment.rows[row], train_seed, 0))
    if nll is None:
        return Record("likelihood", "failed", run.ids, as_tree(run.spec), error="UserError: not finite")
    protocol = {
        "scored": {"heldout": 1000, "train": 800, "latents": run.ids["latents_id"]},
        "orders": 2,
        "skipped_timesteps": 0,
    }
    protocol |= {"likelihood": drawing_part(run.spec.model).likelihood}
    metrics, doubt = {"nll": nll, "nll_train": nll - 0.5}, {"nll": {"standard_error": 0.02}}
    return Record("likelihood", "done", run.ids, as_tree(run.spec), metrics, protocol, uncertainty=doubt)


def by_id(*records: Record) -> dict[str, Record]:
    return {record.id: record for record in records}


def generations(
    experiment: Experiment, value: Value | None = None, seeds=(0, 1, 2), sampling_seeds=(0,), rows=None
) -> dict[str, Record]:
    """Generation records of every row and seed; by default training seed s adds 0.1 s."""
    value = value or (lambda row, t, s: base(row) + 0.1 * t)
    made = itertools.product(rows or experiment.rows, seeds, sampling_seeds)
    return by_id(*(generation(experiment, row, t, s, value(row, t, s)) for row, t, s in made))


def everything(experiment: Experiment, value: Value | None = None, **kwargs) -> dict[str, Record]:
    rest = [make(experiment, row) for row in experiment.rows for make in (reconstruction, speed)]
    return {**generations(experiment, value, **kwargs), **by_id(*rest)}
