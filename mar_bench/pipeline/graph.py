"""From runs to jobs: which stages a set of runs needs, which of them are done, where their output lies.

Nothing here imports torch, so planning and a second ``run`` that has nothing to do take no time."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mar_bench.config.ids import Run
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import DiTModel, ExtractorSpec, MetricsSpec, RunSpec, TokenizerSpec, num_tokens
from mar_bench.models.pretrained.fetch import located
from mar_bench.records.provenance import provenance
from mar_bench.records.record import PREVIEW, RECORDED, Record, read_record, records_dir, write_record
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

MARKER = "stage.json"
CHECKPOINTS = ("checkpoint*.pt", ".damaged-checkpoint*.pt")


@dataclass(frozen=True)
class Places:
    """``runs``: check-points, latents, samples, logs (large, ignored by git); ``records``: the results."""

    runs: Path
    records: Path

    def folder(self, kind: str, stage_id: str) -> Path:
        return self.runs / kind / stage_id


@dataclass(frozen=True)
class Job:
    """One stage to execute: its id, a run that needs it, the jobs before it and its cost in arbitrary units."""

    kind: str
    id: str
    run: Run
    needs: tuple[str, ...]
    cost: float

    @property
    def title(self) -> str:
        """What the user sees: the stage and the row it was first needed for."""
        spec = self.run.spec
        if self.kind in ("tokenizer", "latents"):
            return f"{self.kind} {spec.tokenizer.kind}"
        if self.kind == "extractor":
            return f"extractor {spec.metrics.extractor.name}"
        if self.kind == "reconstruction":
            return f"reconstruction {spec.tokenizer.kind}"
        row = self.run.row.rsplit("/", 1)[0] if self.kind == "train" else self.run.row
        seeds = f" seed {spec.train.seed}" if self.kind != "speed" else ""
        return f"{self.kind} {row}{seeds}" + (f".{spec.sampling.seed}" if spec.sampling.seed else "")


def default_places(runs: str | None, records: str | None) -> Places:
    """Options, else the environment, else ./runs, and results/records in a checkout or ./records elsewhere."""
    runs = runs or os.environ.get("MAR_BENCH_RUNS") or "runs"
    return Places(Path(runs), records_dir(records))


def is_sound(folder: Path) -> bool:
    """Whether a stage's marker is there and every file it lists has the size it had."""
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def mark_done(folder: Path, seconds: float) -> None:
    """Written last, so that its presence means that the stage is complete; then check-points are of no more use."""
    on_the_way = {path for pattern in CHECKPOINTS for path in folder.glob(pattern)}
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARKER and not p.name.startswith("."))
    files = {str(p.relative_to(folder)): p.stat().st_size for p in names if p not in on_the_way}
    atomic_write(folder / MARKER, json.dumps({"files": files, "seconds": round(seconds, 2)}, indent=1) + "\n")
    for path in on_the_way:
        path.unlink()


def jobs_for(runs: list[Run], places: Places) -> list[Job]:
    """The jobs that runs still need, each id once and behind all that it needs.

    Latents are of no more use once the training is done: they may be gone."""
    jobs: dict[str, Job] = {}
    sound: dict[str, bool] = {}

    def done(kind: str, stage_id: str) -> bool:
        if stage_id not in sound:
            sound[stage_id] = is_sound(places.folder(kind, stage_id))
        return sound[stage_id]

    def need(kind: str, stage_id: str, run: Run, *before: str) -> None:
        if stage_id not in jobs and not done(kind, stage_id):
            needs = tuple(b for b in before if not sound[b])
            jobs[stage_id] = Job(kind, stage_id, run, needs, cost(kind, run.spec))

    for run in sorted(runs, key=lambda r: r.task == "speed"):
        ids = run.ids
        if is_sound(places.folder(run.task, run.id)):
            continue
        need("tokenizer", ids["tokenizer_id"], run)
        if run.task != "speed":
            need("extractor", ids["extractor_id"], run)
        if run.task != "reconstruction" and not done("train", ids["train_id"]):
            learns = run.spec.train.published is None
            if learns:
                need("latents", ids["latents_id"], run, ids["tokenizer_id"])
            need("train", ids["train_id"], run, *[ids["latents_id"]] * learns)
        if run.task == "generation":
            need("sample", ids["sample_id"], run, ids["train_id"])
        needs = ("tokenizer_id", "extractor_id", "train_id", "sample_id")
        need(run.task, run.id, run, *(ids[k] for k in needs if k in ids))
    return list(jobs.values())


def cost(kind: str, spec: RunSpec) -> float:
    """About the seconds a stage takes on one CPU core: weights of the time left, not a promise."""
    if kind == "tokenizer":
        return _convolutional(spec.tokenizer, spec, 7e-4)
    if kind == "extractor":
        return _convolutional(spec.metrics.extractor, spec, 3e-4)
    if isinstance(spec.model, DiTModel):
        return _whole_image(kind, spec, spec.model)
    sampling, backbone, head = spec.sampling, spec.model.backbone, spec.model.head
    length = num_tokens(spec.space)
    depth = getattr(backbone, "depth", 0) or backbone.encoder_depth + backbone.decoder_depth
    # measured on tiny's sizes and scaled from there
    forward = 1e-4 * length / 16 * (backbone.dim / 64) ** 1.5 * depth / 4
    # one pass of a head's MLP over the image; a linear head costs next to nothing
    mlp = 1.3e-6 * length * getattr(head, "width", 0) / 96 * getattr(head, "depth", 0)
    if kind == "train" and spec.train.published is None:
        draws = 2.5 * mlp * (getattr(head, "draws_per_token", 0) or getattr(head, "samples_per_token", 0))
        return spec.train.steps * (0.006 + (3 * forward + draws) * spec.train.batch_size)
    # with a kv-cache all steps together cost about three passes over the image
    passes = sampling.num_ar_steps if backbone.attention == "bidirectional" else 3
    image = passes * forward + (sampling.num_diffusion_steps or 1) * mlp
    image *= 1 if sampling.guidance_scale == 1 else 2
    if kind == "sample":
        return sampling.num_images * image
    if kind == "speed":
        return spec.speed.repeats * (spec.speed.batch_size + 10) * image
    return 1.0


def _whole_image(kind: str, spec: RunSpec, model: DiTModel) -> float:
    """``cost`` of what a diffusion transformer over all latents does: a pass over the image in each denoising step."""
    sampling = spec.sampling
    patches = num_tokens(spec.space) / model.patch_size**2
    forward = 1.3e-4 * patches / 16 * (model.dim / 64) ** 1.5 * model.depth / 4  # measured at these sizes
    image = sampling.num_diffusion_steps * forward * (1 if sampling.guidance_scale == 1 else 2)
    if kind == "train" and spec.train.published is None:
        return spec.train.steps * (0.006 + 3 * forward * spec.train.batch_size)
    if kind == "sample":
        return sampling.num_images * image
    if kind == "speed":
        return spec.speed.repeats * (spec.speed.batch_size + 10) * image
    return 1.0


def _convolutional(part: TokenizerSpec | ExtractorSpec, spec: RunSpec, factor: float) -> float:
    if not part.trained:
        return 1.0
    pixels = spec.data.image_size**2 * spec.data.channels / 1024
    return 1.0 + factor * part.steps * part.batch_size * pixels * (part.width / 16) ** 1.5


def writable(places: Places) -> None:
    """Make both folders. Raises UserError where they cannot be written to, before hours of work."""
    for option, folder in (("--runs", places.runs), ("--records", places.records)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"{option} {folder}: cannot be written to ({error.strerror}); choose another") from None


def preflight(runs: list[Run]) -> None:
    """What only the machine can tell, before any work starts: files that the user must provide.

    Raises UserError naming the key."""
    for run in runs:
        spec = run.spec
        if spec.data.kind == "imagefolder":
            root = spec.data.root
            if root is None or not Path(root).is_dir():
                raise UserError(
                    f"the images of '{spec.data.name}' are yours to provide: set data.root to a folder with "
                    f"train/<class>/* and val/<class>/* (found {root or 'none'})"
                )
        part = spec.tokenizer
        if hasattr(part, "weights") and (part.weights is None or not Path(part.weights).is_file()):
            raise UserError(
                f"tokenizer '{part.name}' needs its published weights: set tokenizer.weights to a local file, or that "
                f"of its part where rows differ (parts.tokenizer.continuous.weights; found {part.weights or 'none'}); "
                "mar-bench fetch lists the files and says where they are, mar-bench convert makes them ours"
            )
        if run.task != "speed":
            _preflight_metrics(spec.metrics)
        cache = getattr(spec.tokenizer, "official_cache", None)
        if cache is not None and not Path(cache).is_dir():
            raise UserError(f"tokenizer.official_cache {cache}: no such folder; it holds <class>/<image>.npz")
        train = spec.train
        if train.published is not None and (train.weights is None or not Path(train.weights).is_file()):
            raise UserError(
                f"train.published is '{train.published}': set train.weights to the file that mar-bench convert wrote "
                f"(found {train.weights or 'none'})"
            )


def _preflight_metrics(metrics: MetricsSpec) -> None:
    extractor, reference = metrics.extractor, metrics.reference
    if extractor.kind == "inception":
        try:
            located("inception", extractor.weights, "metrics.extractor.weights")
        except UserError as error:
            raise UserError(
                f"{error}; without it there is no FID, but an FD: metrics.extractor.kind=efficientnet_lite0 works "
                "offline"
            ) from None
    if extractor.kind == "plugin" and not entry_points(group="mar_bench.extractors", name=extractor.name):
        known = ", ".join(sorted(p.name for p in entry_points(group="mar_bench.extractors"))) or "none"
        raise UserError(f"metrics.extractor.name '{extractor.name}': no installed package has this extractor ({known})")
    if reference.kind == "file":
        try:
            located(reference.name, reference.file, "metrics.reference.file")
        except UserError as error:
            raise UserError(
                f"{error}; or measure against your own training images: metrics.reference.kind=training"
            ) from None


def status(run: Run, places: Places, records: dict[str, Record]) -> str:
    """``done``, ``failed`` or ``missing``; a record among the results is enough to be done."""
    recorded = records[run.id].status if run.id in records else "missing"
    return "done" if is_sound(places.folder(run.task, run.id)) else recorded


def previews(runs: dict[str, Run], places: Places) -> dict[str, Any]:
    """Decoded images of rows, uint8 (N, C, H, W), as far as their runs are here."""
    import numpy as np

    folders = {row: places.folder(run.task, run.id) for row, run in runs.items()}
    return {row: np.load(folder / PREVIEW) for row, folder in folders.items() if is_sound(folder)}


def publish(runs: list[Run], places: Places) -> None:
    """Copy records that are done in ``runs`` and are not among the results yet.

    The cell of a sweep may have been measured for another table before: its record learns how it was chosen."""
    for run in runs:
        source = places.folder(run.task, run.id) / "record.json"
        target = places.records / f"{run.id}.json"
        if is_sound(source.parent) and not (target.is_file() and read_record(target).status == "done"):
            write_record(places.records, read_record(source))
        if run.choice and target.is_file():
            record, metric = read_record(target), run.choice["metric"]  # two tables may choose one cell in two ways
            if record.selection.get(metric) != run.choice:
                write_record(places.records, replace(record, selection={**record.selection, metric: run.choice}))


def give_up(job: Job, jobs: list[Job], error: str, seconds: float, places: Places) -> set[str]:
    """The ids of a failed job and of all jobs that need it; the records among them say why."""
    lost = {job.id}
    for other in jobs:  # jobs stand behind what they need
        if other.id in lost or lost & set(other.needs):
            lost.add(other.id)
            if other.kind in RECORDED:
                with suppress(OSError):  # a full disk: the run's exit says it anyway
                    record_failure(other.run, places, error, seconds)
    return lost


def record_failure(run: Run, places: Places, error: str, seconds: float) -> None:
    """A failure is a record too; it never replaces a result."""
    spec = run.spec
    record = Record(
        task=run.task,
        status="failed",
        ids=run.ids,
        spec=as_tree(spec),
        provenance=provenance(spec.compute.device, spec.compute.threads, seconds),
        error=error,
    )
    write_record(places.records, record)
