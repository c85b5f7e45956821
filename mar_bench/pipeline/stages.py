"""What each stage does, from tokenizer to record; ``execute`` runs one, locked and at most once.

``config.stages`` says how stages depend on each other; ``STAGES`` below maps their names to functions."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mar_bench.config import stages as table
from mar_bench.config.ids import Run
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import RunSpec, is_causal, measures_scale, num_tokens
from mar_bench.data.datasets import DataSet, apply_view, load_data, to_unit, views
from mar_bench.data.latents import encoded, finish_latents, imported, load_latents, manifest_of, write_shards
from mar_bench.metrics.features import Classifier
from mar_bench.metrics.functions import statistics
from mar_bench.metrics.references import load_reference
from mar_bench.metrics.score import Seen, save_seen
from mar_bench.models.build import TOKENIZERS, build_tokenizer, count_parameters, pick_device
from mar_bench.models.pretrained.fetch import located
from mar_bench.models.schedules import learning_rate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.pipeline.fit import Progress, fit, save_tensors
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.load import (
    FITTED,
    HELDOUT,
    IMAGES,
    REFERENCE,
    SEEN,
    STATISTICS,
    SUMMARY,
    load_extractor,
    load_generator,
    load_measure,
    load_tokenizer,
    tokenizer_file,
)
from mar_bench.pipeline.sample import (
    decoded_samples,
    draw_samples,
    evaluate_generation,
    evaluate_reconstruction,
    not_drawn,
    reference_of_part,
)
from mar_bench.pipeline.speed import measure_speed
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.pipeline.train import take_published, train_generator
from mar_bench.records.provenance import device_name, provenance
from mar_bench.records.record import PREVIEW, Record, write_record
from mar_bench.utils import locks
from mar_bench.utils.files import atomic_write, sha256_of
from mar_bench.utils.locks import Claim
from mar_bench.utils.noise import NoiseSource, epoch_indices, seeded

SCALE_IMAGES = 2000  # training images on which a tokenizer fits its shift and scale


def execute(
    job: Job,
    places: Places,
    progress: Progress,
    waiting: Callable[[str], None] = lambda why: None,
    world: World = ALONE,
    shard: tuple[int, int] | None = None,
    claimed: Callable[[Path], Claim] | None = None,
) -> bool:
    """Do a job unless its output exists; returns whether it did. A lock keeps two processes from doing the same job.

    All ranks of a ``world`` call this: they share multiprocess stages, rank 0 does the others.
    ``shard`` (j, n): draws batches j, j + n, ... of sampling; a later call without ``shard`` marks the stage complete.
    ``claimed`` makes the claim that tells earlier starts of the same job to leave.

    Speed is measured alone: it waits for other work of mar_bench on this machine and blocks it meanwhile.
    ``progress`` and ``waiting`` are called regularly and may raise to stop; finished work is kept."""
    run, folder = job.run, places.folder(job.kind, job.id)
    torch.set_num_threads(run.spec.compute.threads)
    if world.size == 1 and (device := pick_device(run.spec.compute.device)).index is not None:
        torch.cuda.set_device(device)  # torch-fidelity only uses the current GPU
    with contextlib.ExitStack() as held:
        if world.first:
            others, same = "waiting for other work on this machine", "another process does it"
            name = job.id if shard is None else f"{job.id}-{shard[0]}-{shard[1]}"
            lock = places.runs / "locks" / f"{name}.lock"
            claim = claimed(lock.with_suffix(".claim")) if claimed else None
            if claim:
                claim.fence()
            held.enter_context(locks.machine(job.kind != "speed", lambda: waiting(others)))
            held.enter_context(locks.held(lock, waiting=lambda: waiting(same)))
            if claim:
                claim.take()
        if world.agreed(is_sound(folder)):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        if shard is not None:
            draw(run, places, folder, progress, (shard[0] * world.size + world.rank, shard[1] * world.size))
        elif table.STAGES[job.kind].multiprocess:
            STAGES[job.kind](run, places, folder, progress, world)
        elif world.first:
            STAGES[job.kind](run, places, folder, progress)
        world.wait()
        if world.first and shard is None:
            mark_done(folder, time.perf_counter() - begin)
        world.wait()
        return True


# --- training stages ------------------------------------------------------------------------------------


def train_tokenizer(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    """Train our own tokenizer; for a published one only measure the scale of its latents, if the spec asks for it."""
    spec, device = run.spec.tokenizer, pick_device(run.spec.compute.device)
    if not (spec.trained or measures_scale(spec)):
        return
    tokenizer = build_tokenizer(replace(run.spec, tokenizer=replace(spec, group=1))).to(device)
    data = load_data(run.spec.data, places.runs / IMAGES, progress)
    if spec.trained:
        _train_tokenizer(tokenizer, run, data, folder, progress)
    tokenizer.fit_scale(to_unit(data.train.get(range(min(SCALE_IMAGES, len(data.train))))).to(device))
    save_tensors(tokenizer.fitted_state(), folder / FITTED)


def _train_tokenizer(tokenizer: Tokenizer, run: Run, data: DataSet, folder: Path, progress: Progress) -> None:
    spec, device = run.spec.tokenizer, pick_device(run.spec.compute.device)
    length, dim = num_tokens(tokenizer.space), spec.latent_dim if tokenizer.stochastic else 1
    batches = _image_batches(run.spec, data, spec.seed, spec.batch_size)

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        images, _, noise = batches(step)
        latent_noise = noise.normal("latent", step, (length, dim))
        yield tokenizer.training_loss(to_unit(images).to(device), latent_noise.to(device))

    _fit_part(tokenizer, losses_at, spec, run.spec, folder, progress)


def prepare_extractor(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    """Train the extractor if it is our own, and extract the features of the real images."""
    device, metrics = pick_device(run.spec.compute.device), run.spec.metrics
    data = load_data(run.spec.data, places.runs / IMAGES, progress)
    if metrics.extractor.trained:
        train_extractor(run, data, folder, device, progress)
    space = load_extractor(run, places, device)
    rest = space, metrics.reference_images, progress
    if metrics.reference.kind == "training":
        reference = reference_of_part(run.spec.data, data.train, "training", "train", *rest)
    else:
        source = metrics.reference
        file = located(source.name, source.file, "metrics.reference.file")
        reference = load_reference(file, source.name, *rest)
    reference.save(folder / REFERENCE)
    reference_of_part(run.spec.data, data.heldout, "heldout", "heldout", *rest).save(folder / HELDOUT)


def train_extractor(run: Run, data: DataSet, folder: Path, device: torch.device, progress: Progress) -> None:
    spec = run.spec.metrics.extractor
    with seeded(spec.seed, "extractor-init"):
        classifier = Classifier(spec, run.spec.data).to(device)
    batches = _image_batches(run.spec, data, spec.seed, spec.batch_size)

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        images, labels, _ = batches(step)
        yield torch.nn.functional.cross_entropy(classifier(images.to(device))[1], labels.to(device))

    _fit_part(classifier, losses_at, spec, run.spec, folder, progress)
    save_tensors(classifier.state_dict(), folder / "extractor.safetensors")


def _image_batches(run_spec: RunSpec, data: DataSet, seed: int, batch_size: int):
    """step -> (uint8 images, labels, noise), each image under a randomly drawn view."""
    every_view, slots = views(run_spec.data), range(batch_size)
    noise = NoiseSource(seed, slots)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, NoiseSource]:
        indices = epoch_indices(seed, step, slots, batch_size, len(data.train))
        images = data.train.get(indices)
        chosen = noise.integers("view", step, len(every_view), ())
        for i, view in enumerate(every_view):
            members = chosen == i
            if i and members.any():
                images[members] = apply_view(images[members], view)
        return images, data.train.labels[torch.from_numpy(indices)], noise

    return batch


def _fit_part(module, losses_at, spec, run_spec: RunSpec, folder: Path, progress: Progress) -> None:
    """Train a tokenizer or an extractor: AdamW, short warm-up, cosine decay to zero."""
    fit(
        module,
        losses_at,
        steps=spec.steps,
        lr_at=lambda s: learning_rate("cosine", spec.lr, s, max(1, spec.steps // 20), spec.steps),
        seed=spec.seed,
        folder=folder,
        progress=progress,
        checkpoint_every=run_spec.compute.checkpoint_every,
        grad_clip=1.0,
        log_every=run_spec.compute.log_every,
    )


def make_latents(run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE) -> None:
    """Encode all images, or import the official code's cache if the tokenizer spec names one."""
    spec, device = run.spec, pick_device(run.spec.compute.device)
    tokenizer = load_tokenizer(run, places, device)
    if getattr(spec.tokenizer, "official_cache", None) is not None:
        sources = imported(spec, tokenizer, device, places.runs / IMAGES, progress)
    else:
        sources = encoded(spec, load_data(spec.data, places.runs / IMAGES, progress), tokenizer, device)
    manifest = manifest_of(spec, sources, tokenizer, tokenizer_file(run, places))
    write_shards(sources, manifest, folder, progress, world.rank, world.size)
    world.wait()
    if world.first:
        finish_latents(manifest, folder)


def train(run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE) -> None:
    """Train the generator, or take the published weights named in the spec."""
    if run.spec.train.published is not None:
        if world.first:
            take_published(run.spec, folder)
        return
    latents = load_latents(places.folder("latents", run.ids["latents_id"]), TOKENIZERS[run.spec.tokenizer.kind])
    summary = train_generator(run.spec, latents, folder, progress, world)
    if summary is not None:
        atomic_write(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def sample(run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE) -> None:
    draw(run, places, folder, progress, (world.rank, world.size))


def draw(run: Run, places: Places, folder: Path, progress: Progress, part: tuple[int, int]) -> None:
    """Draw the missing batches of ``part``; the generator is loaded only if there are any."""
    if missing := not_drawn(run.spec, folder, part):
        device = pick_device(run.spec.compute.device)
        draw_samples(run.spec, load_generator(run, places, device), folder, device, progress, missing)


# --- measuring stages: each ends in a record ------------------------------------------------------------


def measure_generation(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin = time.perf_counter()
    device = pick_device(run.spec.compute.device)
    tokenizer, space = load_tokenizer(run, places, device), load_extractor(run, places, device)
    images = decoded_samples(run.spec, tokenizer, places.folder("sample", run.ids["sample_id"]), device)
    scores, seen = evaluate_generation(run.spec, images, space, load_measure(run, places))
    keep(seen, folder, run.spec.metrics.keep_features)
    scores.protocol["tokenizer"] = _about_tokenizer(run, places)
    training = json.loads((places.folder("train", run.ids["train_id"]) / SUMMARY).read_text())
    parameters = training.pop("parameters")
    _record(run, places, folder, begin, **vars(scores), parameters=parameters, training=training)


def keep(seen: Seen, folder: Path, features: bool) -> None:
    """Keep what metrics can be recomputed from: always the statistics, on request features and logits."""
    np.savez(folder / STATISTICS, **statistics(seen.features))
    np.save(folder / PREVIEW, seen.preview.numpy())
    if features:
        save_seen(seen, folder / SEEN)


def measure_reconstruction(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin = time.perf_counter()
    device = pick_device(run.spec.compute.device)
    tokenizer, space = load_tokenizer(run, places, device), load_extractor(run, places, device)
    data = load_data(run.spec.data, places.runs / IMAGES, progress)
    measure = load_measure(run, places)
    scores, seen = evaluate_reconstruction(run.spec, tokenizer, data, space, measure, device, progress)
    keep(seen, folder, run.spec.metrics.keep_features)
    scores.protocol["tokenizer"] = _about_tokenizer(run, places)
    parameters = {"total": sum(p.numel() for p in tokenizer.parameters())}
    _record(run, places, folder, begin, **vars(scores), parameters=parameters)


def measure_seconds(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin = time.perf_counter()
    compute, device = run.spec.compute, pick_device(run.spec.compute.device)
    model, tokenizer = load_generator(run, places, device), load_tokenizer(run, places, device)
    metrics = measure_speed(run.spec, model, tokenizer, device, progress)
    protocol = {
        "device": device_name(compute.device),
        "threads": compute.threads,
        "dtype": "float32",
        "batch_size": run.spec.speed.batch_size,
        "repeats": run.spec.speed.repeats,
        "includes": "sampling and decoding, no image writing",
        "kv_cache": is_causal(run.spec.model),
    }
    _record(run, places, folder, begin, metrics=metrics, protocol=protocol, parameters=count_parameters(model))


def _about_tokenizer(run: Run, places: Places) -> dict[str, str | None]:
    spec, file = run.spec.tokenizer, tokenizer_file(run, places)
    sha256 = None if file is None else sha256_of(file)
    return {"kind": spec.kind, "name": getattr(spec, "name", None), "sha256": sha256}


def _record(run: Run, places: Places, folder: Path, begin: float, **measured) -> None:
    """Write the record next to the stage's output and publish it."""
    compute, seconds = run.spec.compute, time.perf_counter() - begin
    record = Record(
        task=run.task,
        status="done",
        ids=run.ids,
        spec=as_tree(run.spec),
        provenance=provenance(compute.device, compute.threads, seconds),
        selection={run.choice["metric"]: run.choice} if run.choice else {},
        **measured,
    )
    path = write_record(folder, record)
    path.replace(folder / "record.json")
    write_record(places.records, record)


STAGES = {
    "tokenizer": train_tokenizer,
    "latents": make_latents,
    "extractor": prepare_extractor,
    "train": train,
    "sample": sample,
    "generation": measure_generation,
    "reconstruction": measure_reconstruction,
    "speed": measure_seconds,
}
