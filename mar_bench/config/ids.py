"""Content addresses: the id of a stage is the hash of everything that determines its output, and of nothing else.

Canonical JSON omits fields at their default, so adding a field leaves old ids unchanged. When a code change alters a
stage's output, raise the stage's revision in ``config.stages``; tests of golden losses, samples and metrics catch most
omissions."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import CHOICE_SEED, ARModel, RunSpec, SamplingSpec, measures_scale
from mar_bench.config.stages import STAGES, TASKS
from mar_bench.records.record import HINT, Record
from mar_bench.utils.errors import UserError, did_you_mean, shown

PLAIN = {str, int, float, bool, type(None)}  # most values


def canonical(value: Any) -> Any:
    """Plain containers that determine ``value``: defaults and unhashed fields are omitted, ``kind`` is kept."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for name, default in _hashed(type(value)).items():
            item = getattr(value, name)
            if type(item) not in PLAIN:
                item = canonical(item)
            if item != default:
                found[name] = item
        return found
    if isinstance(value, (tuple, list)):
        return [canonical(v) for v in value]
    return value


@functools.cache
def _hashed(cls: Any) -> dict[str, Any]:
    """The fields of a class that determine something, with the canonical default of those that are omitted at it."""
    found = {}
    for f in fields(cls):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if not f.metadata.get("unhashed"):
            found[f.name] = MISSING if f.name == "kind" or default is MISSING else canonical(default)
    return found


def stage_id(name: str, **inputs: Any) -> str:
    """12 hex digits of the SHA-256 of a stage's name, revision and inputs; inputs that are None do not count."""
    stage = STAGES[name]
    content = {"stage": stage.hashed_as, **{k: v for k, v in inputs.items() if v is not None}}
    if stage.revision != 1:
        content["revision"] = stage.revision
    text = ",".join([f'"{key}":{_json(content[key])}' for key in sorted(content)])
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()[:12]


_dumped = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _json(value: Any) -> str:
    """The canonical JSON of a value. A dataclass, which is frozen, keeps its own: plans ask for the same parts often.

    A cache by equality would not do, as 1 == 1.0 but their JSON differs."""
    if not hasattr(value, "__dict__"):
        return _dumped(canonical(value))
    kept = vars(value)
    if "_json" not in kept:
        kept["_json"] = _dumped(canonical(value))
    return kept["_json"]


def stage_ids(spec: RunSpec) -> dict[str, str]:
    """The id of every stage that leads to a generation record; ``eval_id`` is the record's own. Kept in the spec."""
    kept = vars(spec)
    if "_ids" not in kept:
        kept["_ids"] = _seeded_ids(spec, _seedless_ids(spec))
    return kept["_ids"]


def _seedless_ids(spec: RunSpec) -> dict[str, str]:
    """The ids of the stages that do not depend on the seeds of training and sampling."""
    views: dict[str, Any] = {f.name: f.default for f in fields(spec.tokenizer) if f.metadata.get("view")}
    viewed = {name: getattr(spec.tokenizer, name) for name in views if getattr(spec.tokenizer, name) != views[name]}
    tokenizer = replace(spec.tokenizer, **views) if viewed else spec.tokenizer
    data, metrics = spec.data, spec.metrics
    ids: dict[str, str] = {}
    fitted = tokenizer.trained or measures_scale(spec.tokenizer)
    ids["tokenizer_id"] = stage_id("tokenizer", tokenizer=tokenizer, data=data if fitted else None)
    latents = canonical(spec.latents) or None
    ids["latents_id"] = stage_id("latents", **ids, data=data, view=viewed or None, latents=latents)
    real = {"reference": metrics.reference, "reference_images": metrics.reference_images}
    ids["extractor_id"] = stage_id("extractor", extractor=metrics.extractor, data=data, **real)
    return ids


def _seeded_ids(spec: RunSpec, ids: dict[str, str]) -> dict[str, str]:
    """All ids of a spec, given the seedless ones."""
    train_id = stage_id("train", latents_id=ids["latents_id"], model=spec.model, train=spec.train)
    sample_id = stage_id("sample", train_id=train_id, sampling=spec.sampling)
    measured = {"sample_id": sample_id, "extractor_id": ids["extractor_id"]}
    eval_id = stage_id("generation", **measured, metrics=spec.metrics)
    return {**ids, "train_id": train_id, "sample_id": sample_id, "eval_id": eval_id}


def with_seeds(spec: RunSpec, train_seed: int, sampling_seed: int) -> RunSpec:
    """The same cell with other seeds; published weights keep the training seed of their spec."""
    train_seed = train_seed if spec.train.published is None else spec.train.seed
    if (train_seed, sampling_seed) == (spec.train.seed, spec.sampling.seed):
        return spec
    train, sampling = replace(spec.train, seed=train_seed), replace(spec.sampling, seed=sampling_seed)
    seeded = replace(spec, train=train, sampling=sampling)
    vars(seeded)["_ids"] = _seeded_ids(seeded, stage_ids(spec))
    return seeded


@dataclass(frozen=True)
class Run:
    """A planned record: one task on a resolved spec. ``cell_id`` is the same for all seeds (speed: all devices)."""

    task: str
    row: str
    spec: RunSpec
    ids: dict[str, str]
    sweep: bool = False  # measures a sweep point, only to choose that of a cell
    choice: dict[str, Any] | None = None  # how this cell's sweep point was chosen

    @property
    def id(self) -> str:
        return self.ids["eval_id"]

    @property
    def cell_id(self) -> str:
        return self.ids["cell_id"]


def generation_run(row: str, spec: RunSpec) -> Run:
    """The run that samples and scores images of a trained model."""
    cell_id = stage_ids(with_seeds(spec, 0, 0))["eval_id"]
    return Run("generation", row, spec, {**stage_ids(spec), "cell_id": cell_id})


def reconstruction_run(row: str, spec: RunSpec) -> Run:
    """The run that scores the tokenizer alone: a floor for every generator that uses it."""
    kept = {name: i for name, i in stage_ids(spec).items() if name in ("tokenizer_id", "extractor_id")}
    eval_id = stage_id("reconstruction", **kept, data=spec.data, metrics=spec.metrics)
    return Run("reconstruction", row, spec, {**kept, "eval_id": eval_id, "cell_id": eval_id})


def speed_run(row: str, spec: RunSpec, device: str) -> Run:
    """The run that measures seconds per image on the device named ``device`` with the spec's number of threads."""
    irrelevant = ("num_images", "batch_size", "weights", "snapshot", "temperature", "guidance_schedule", "seed")
    neutral: dict[str, Any] = {name: getattr(SamplingSpec(), name) for name in irrelevant}
    neutral["guidance_scale"] = 1.0 if spec.sampling.guidance_scale == 1 else 2.0  # its strength does not affect speed
    inputs = {name: getattr(spec, name) for name in ("tokenizer", "data", "model", "speed")}
    inputs |= {"sampling": replace(spec.sampling, **neutral), "precision": spec.train.precision}
    kept = {name: i for name, i in stage_ids(spec).items() if name in ("tokenizer_id", "latents_id", "train_id")}
    here = {"device": device, "threads": spec.compute.threads, **spec.compute.kernels}
    eval_id = stage_id("speed", **inputs, **here)
    return Run("speed", row, spec, {**kept, "eval_id": eval_id, "cell_id": stage_id("speed", **inputs)})


def likelihood_run(row: str, spec: RunSpec) -> Run:
    """The run that measures the likelihood of stored tokens: one for all rows that share weights and order.

    Its spec has neutral values for the settings of sampling that do not matter. Confidence order depends on the tokens
    drawn and has no chain rule; it counts as the order at the end of training."""
    relevant = [f.name for f in fields(SamplingSpec) if f.name in ("weights", "snapshot", "order")]
    kept: dict[str, Any] = {name: getattr(spec.sampling, name) for name in relevant}
    if spec.sampling.order == "confidence" and isinstance(spec.model, ARModel):
        kept["order"] = "raster" if spec.train.annealing else spec.model.order
    spec = replace(spec, sampling=SamplingSpec(**kept))

    def ids_of(spec: RunSpec) -> dict[str, str]:
        kept = {name: i for name, i in stage_ids(spec).items() if name in ("tokenizer_id", "latents_id", "train_id")}
        inputs = {"train_id": kept["train_id"], "sampling": spec.sampling, "likelihood": spec.likelihood}
        return {**kept, "eval_id": stage_id("likelihood", **inputs)}

    return Run("likelihood", row, spec, {**ids_of(spec), "cell_id": ids_of(with_seeds(spec, 0, 0))["eval_id"]})


def choosing_run(row: str, point: RunSpec) -> Run:
    """The run that measures a sweep point, on the seed reserved for choosing."""
    return replace(generation_run(row, with_seeds(point, point.train.seed, CHOICE_SEED)), sweep=True)


def recorded_ids(record: Record, spec: RunSpec) -> dict[str, str]:
    """The ids that this version gives to a record of ``spec``; without the eval_id of a speed record, which depends on
    the device too."""
    if record.task == "speed":
        return {name: i for name, i in speed_run("", spec, "").ids.items() if name != "eval_id"}
    runs = {"generation": generation_run, "reconstruction": reconstruction_run, "likelihood": likelihood_run}
    return runs[record.task]("", spec).ids


class IdCheck:
    """Raises UserError for a record with an id that does not follow from its spec.

    For records that are found by an id or a cell of this version: their stages have the revisions of this version, so
    all other ids must follow too. A spec that this version cannot parse is not judged."""

    def __init__(self) -> None:
        self._cells: dict[str, tuple[dict[str, Any], RunSpec | None, dict[str, str]]] = {}  # as last seen

    def __call__(self, path: Path, record: Record) -> None:
        if record.task not in TASKS:
            if "cell_id" in record.ids:  # of a run, so no table would show it
                raise UserError(f"{path}: its task {shown(record.task)} is none of {', '.join(TASKS)}; {HINT}")
            return
        (train_seed, sampling_seed), tree = record.seeds, dict(record.spec)
        for block in ("train", "sampling"):
            tree[block] = {**(tree.get(block) or {}), "seed": 0}
        cell_id = record.ids.get("cell_id", "")
        seen, spec, ids = self._cells.get(cell_id, (None, None, {}))
        if seen != tree:  # parsing each seed of a cell would take most of the time of a large table
            try:
                spec = parse(RunSpec, tree)
                ids = recorded_ids(record, spec)
            except (KeyPathError, UserError):
                spec = None
            self._cells[cell_id] = tree, spec, ids
        if spec is None:
            return
        train, sampling = replace(spec.train, seed=train_seed), replace(spec.sampling, seed=sampling_seed)
        spec = replace(spec, train=train, sampling=sampling)
        if record.task == "generation":
            ids = {**_seeded_ids(spec, ids), "cell_id": ids["cell_id"]}
        else:
            ids = recorded_ids(record, spec)
        for name, now in ids.items():
            if (value := record.ids.get(name, now)) != now:
                raise UserError(f"{path}: its {name} {value} is not that of its spec, {now}; {HINT}")


def chosen_rows(experiment: Experiment, only: str | None, may_be_empty: bool = False) -> dict[str, RunSpec]:
    """The rows whose names match the shell pattern ``only``; None: all rows.

    Raises UserError if no row matches, unless ``may_be_empty``."""
    rows = {r: s for r, s in experiment.rows.items() if only is None or fnmatch.fnmatch(r, only)}
    if not experiment.rows and not may_be_empty:
        raise UserError(f"{experiment.file}: it has no row at scale {experiment.scale}; choose another scale")
    if not rows and not may_be_empty:
        raise UserError(f"--only '{only}' matches no row of {experiment.id}, {did_you_mean(only, experiment.rows)}")
    return rows


def plan_runs(
    experiment: Experiment,
    seeds: list[int] | None = None,
    sampling_seeds: list[int] | None = None,
    only: str | None = None,
    device: str = "cpu",
) -> list[Run]:
    """Every run of an experiment: generation per row and seed, reconstruction per tokenizer, speed per row; likelihood
    per training if the experiment shows it.

    A row with a sweep contributes all its sweep points, and itself once its point is chosen. ``only``: see
    ``chosen_rows``."""
    rows, runs = chosen_rows(experiment, only), []
    for row, spec in rows.items():
        if row in experiment.sweeps:
            runs += [choosing_run(row, point) for _, point in experiment.sweeps[row].points]
        if experiment.is_open(row):
            continue
        for seed in [spec.train.seed] if seeds is None else seeds:
            for sampling_seed in [spec.sampling.seed] if sampling_seeds is None else sampling_seeds:
                seeded = with_seeds(spec, seed, sampling_seed)
                runs.append(replace(generation_run(row, seeded), choice=experiment.choices.get(row)))
                runs += [reconstruction_run(row, seeded), speed_run(row, seeded, device)]
                runs += [likelihood_run(row, seeded)] * experiment.shows_likelihood
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: TASKS.index(run.task)):
        first.setdefault(run.id, run)
    return list(first.values())
