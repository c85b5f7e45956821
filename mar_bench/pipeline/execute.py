"""The work of each stage, from tokenizer to record; ``execute`` runs one stage, locked and at most once.

``config.stages`` defines the dependencies between stages; ``STAGES`` below maps their names to functions."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from mar_bench.config import stages as table
from mar_bench.config.ids import Run
from mar_bench.config.spec import ClassifierExtractor, measures_scale, num_tokens
from mar_bench.data import encode
from mar_bench.data.datasets import DataSet, apply_view, load_data, to_unit, views
from mar_bench.data.images import Progress
from mar_bench.data.latents import load_latents
from mar_bench.metrics.acceptance import accept
from mar_bench.metrics.features import Classifier, kept_classifier
from mar_bench.metrics.references import load_reference
from mar_bench.metrics.score import Measure
from mar_bench.models.build import build_tokenizer, pick_device, tokenizer_class
from mar_bench.models.pretrained.fetch import located
from mar_bench.models.schedules import learning_rate
from mar_bench.pipeline import store
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.pipeline.fit import fit
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.measure import measure_generation, measure_nll, measure_reconstruction, measure_seconds
from mar_bench.pipeline.outputs import (
    load_extractor,
    load_generator,
    load_tokenizer,
    tokenizer_file,
)
from mar_bench.pipeline.sample import draw_samples, not_drawn, reference_of_part
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.pipeline.train import save_tensors, take_published, train_generator
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write
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
    """Run a job unless its output exists; returns whether it did. A lock keeps two processes from doing the same job.

    All ranks of a ``world`` call this: they share multiprocess stages, rank 0 does the others. ``shard`` (j, n): draw
    batches j, j + n, ... of sampling; a later call without it marks the stage complete. ``claimed`` makes the claim
    that stops earlier starts of the same job. Speed is measured alone: no other work of mar_bench runs on this machine
    at that time. ``progress`` and ``waiting`` are called regularly and may raise an exception to stop; finished work
    is kept."""
    run, folder = job.run, places.folder(job.kind, job.id)
    torch.set_num_threads(run.spec.compute.threads)
    if world.size == 1 and (device := pick_device(run.spec.compute.device)).index is not None:
        torch.cuda.set_device(device)  # torch-fidelity only uses the current GPU
    with places.mounted(), contextlib.ExitStack() as held:
        if world.first:
            name = job.id if shard is None else f"{job.id}-{shard[0]}-{shard[1]}"
            lock = places.runs / "locks" / f"{name}.lock"
            if claim := claimed(lock.with_suffix(".claim")) if claimed else None:
                claim.fence()
            machine = locks.machine(job.kind != "speed", lambda: waiting("waiting for other work on this machine"))
            held.enter_context(machine)
            held.enter_context(locks.held(lock, waiting=lambda: waiting("another process does it")))
            if claim:
                claim.take()
        if world.agreed(is_sound(folder)):
            return False
        inputs = world.agreed(_inputs(job, places) if world.first else None)
        if isinstance(inputs, str):
            raise UserError(inputs)
        places.make_folder(job.kind, job.id)
        begin = time.perf_counter()
        if shard is not None:
            sample(run, places, folder, progress, world, shard)
        elif table.STAGES[job.kind].multiprocess:
            STAGES[job.kind](run, places, folder, progress, world)
        elif world.first:
            STAGES[job.kind](run, places, folder, progress)
        world.wait()
        if world.first and shard is None:
            mark_done(folder, time.perf_counter() - begin, inputs)
        world.wait()
        return True


def _inputs(job: Job, places: Places) -> dict[str, str] | str:
    """Digests of what a job is made from, once its files are checked; the reason, if one is damaged or missing."""
    of_published = job.kind == "train" and job.run.spec.train.published is not None  # not trained on latents
    for need in () if of_published else table.STAGES[job.kind].needs:
        if not places.intact(need, job.run):
            stage_id = job.run.ids[table.STAGES[need].id_key]
            return (
                f"stage {need} ({stage_id}) is missing or was damaged; repeat the command (submit: with --retry failed)"
            )
    return places.inputs(job.kind, job.run)


# --- training stages ------------------------------------------------------------------------------------


def train_tokenizer(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    """Train our own tokenizer; for a published one only measure the scale of its latents, if the spec asks for it."""
    spec, device = run.spec.tokenizer, pick_device(run.spec.compute.device)
    if not (spec.trained or measures_scale(spec)):
        return
    tokenizer = build_tokenizer(replace(run.spec, tokenizer=replace(spec, group=1))).to(device)
    data = load_data(run.spec.data)
    if spec.trained:
        length, dim = num_tokens(tokenizer.space), spec.latent_dim if tokenizer.stochastic else 1

        def loss_of(images: torch.Tensor, labels: torch.Tensor, noise: NoiseSource, step: int) -> torch.Tensor:
            latent_noise = noise.normal("latent", step, (length, dim))
            return tokenizer.training_loss(to_unit(images).to(device), latent_noise.to(device))

        _fit_on_images(tokenizer, loss_of, spec, run, data, folder, progress)
    tokenizer.fit_scale(to_unit(data.train.get(range(min(SCALE_IMAGES, len(data.train))))).to(device))
    save_tensors(tokenizer.fitted_state(), folder / store.FITTED)


def prepare_extractor(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    """Take the kept classifier or train one, extract the features of the real images, and test it with them."""
    device, metrics, spec = pick_device(run.spec.compute.device), run.spec.metrics, run.spec.metrics.extractor
    data = load_data(run.spec.data)
    if isinstance(spec, ClassifierExtractor) and kept_classifier(folder.name) is None:
        with seeded(spec.seed, "extractor-init"):
            classifier = Classifier(spec, run.spec.data).to(device)

        def loss_of(images: torch.Tensor, labels: torch.Tensor, noise: NoiseSource, step: int) -> torch.Tensor:
            return cross_entropy(classifier(images.to(device))[1], labels.to(device))

        _fit_on_images(classifier, loss_of, spec, run, data, folder, progress)
        save_tensors(classifier.state_dict(), folder / store.EXTRACTOR)
    space, most = load_extractor(run, places, device), metrics.reference_images
    if metrics.reference.kind == "training":
        reference = reference_of_part(run.spec.data, data.train, "training", "train", space, most, progress)
    else:
        name, file = metrics.reference.name, metrics.reference.file
        reference = load_reference(located(name, file, "metrics.reference.file"), name, space, most, progress)
    heldout = reference_of_part(run.spec.data, data.heldout, "heldout", "heldout", space, most, progress)
    figures = accept(spec, space, Measure(metrics, reference, heldout), data)
    replace(reference, extractor=reference.extractor | {"acceptance": figures}).save(folder / store.REFERENCE)
    heldout.save(folder / store.HELDOUT)


def _fit_on_images(module, loss_of, spec, run: Run, data: DataSet, folder: Path, progress: Progress) -> None:
    """Train a tokenizer or an extractor: AdamW, short warm-up, cosine decay to zero.

    ``loss_of(images, labels, noise, step)`` takes uint8 images, each under a randomly drawn view."""
    every_view, slots, compute = views(run.spec.data), range(spec.batch_size), run.spec.compute
    noise = NoiseSource(spec.seed, slots)

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        indices = epoch_indices(spec.seed, step, slots, spec.batch_size, len(data.train))
        images = data.train.get(indices)
        chosen = noise.integers("view", step, len(every_view), ())
        for i, view in enumerate(every_view):
            members = chosen == i
            if i and members.any():
                images[members] = apply_view(images[members], view)
        yield loss_of(images, data.train.labels[torch.from_numpy(indices)], noise, step)

    fit(
        module,
        losses_at,
        about={"id": folder.name},
        steps=spec.steps,
        lr_at=lambda s: learning_rate("cosine", spec.lr, s, max(1, spec.steps // 20), spec.steps),
        seed=spec.seed,
        folder=folder,
        progress=progress,
        checkpoint_every=compute.checkpoint_every,
        grad_clip=1.0,
        log_every=compute.log_every,
    )


def make_latents(run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE) -> None:
    """Encode all images, or import the official code's cache if the tokenizer spec names one."""
    spec, device = run.spec, pick_device(run.spec.compute.device)
    tokenizer = load_tokenizer(run, places, device)
    if getattr(spec.tokenizer, "official_cache", None) is not None:
        sources = encode.imported(spec, tokenizer, device)
    else:
        sources = encode.encoded(spec, load_data(spec.data), tokenizer, device)
    manifest = encode.manifest_of(spec, sources, tokenizer, tokenizer_file(run, places))
    encode.write_shards(sources, manifest, folder, progress, world.rank, world.size)
    world.wait()
    if world.first:
        encode.finish_latents(manifest, folder)


def train(run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE) -> None:
    """Train the generator, or take the published weights named in the spec."""
    if run.spec.train.published is not None:
        if world.first:
            take_published(run.spec, folder)
        return
    latents = load_latents(places.stage("latents", run), tokenizer_class(run.spec.tokenizer))
    summary = train_generator(run.spec, latents, folder, progress, world, places.inputs("train", run))
    if summary is not None:
        atomic_write(folder / store.SUMMARY, json.dumps(summary, indent=1) + "\n")


def sample(
    run: Run, places: Places, folder: Path, progress: Progress, world: World = ALONE, shard: tuple[int, int] = (0, 1)
) -> None:
    """Draw this rank's missing batches of the shard; the generator is loaded only if there are any."""
    part = shard[0] * world.size + world.rank, shard[1] * world.size
    made_from = json.dumps(places.inputs("sample", run), sort_keys=True)
    if missing := not_drawn(run.spec, folder, made_from, part):
        device = pick_device(run.spec.compute.device)
        draw_samples(run.spec, load_generator(run, places, device), folder, device, progress, missing, made_from)


STAGES: dict[str, Callable[..., None]] = {
    "tokenizer": train_tokenizer,
    "latents": make_latents,
    "extractor": prepare_extractor,
    "train": train,
    "sample": sample,
    "generation": measure_generation,
    "reconstruction": measure_reconstruction,
    "likelihood": measure_nll,
    "speed": measure_seconds,
}
