"""Any set of images against any reference, with any extractor: what ``mar-bench eval`` and ``reference`` do.

A set is a folder of PNG files, an npz as ADM's, a built-in data set, a row of an experiment that ``run`` has sampled,
or features that were kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mar_bench.config.checks import check_bounds
from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import load_experiment, parse_overrides
from mar_bench.config.ids import Run, generation_run, with_seeds
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import EfficientNetExtractor, InceptionExtractor, MetricsSpec, PluginExtractor
from mar_bench.data.datasets import CONVERSION, Progress, load_data
from mar_bench.data.image_sets import ImageSet, cropped_folder, open_images
from mar_bench.metrics.features import FeatureSpace, RememberedSpace, plugins
from mar_bench.metrics.references import Reference, build_reference, load_reference, read_reference
from mar_bench.metrics.score import Scores, Seen, largest_settings, load_seen, one_pass, save_seen
from mar_bench.models.build import pick_device
from mar_bench.models.pretrained.fetch import located
from mar_bench.pipeline.sample import class_labels, decoded_samples, reference_of_part
from mar_bench.pipeline.stages import HELDOUT, IMAGES, REFERENCE, SEEN, load_extractor, load_tokenizer
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.records.record import Record, read_records, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError, did_you_mean

TASK = "evaluation"
SPLIT_IMAGES = 100  # of an IS split, at least, unless splits are chosen
OURS = {"inception": InceptionExtractor, "efficientnet_lite0": EfficientNetExtractor}


def row_run(
    name: str, row: str, scale: str, overrides: list[str], places: Places, seed: int = 0, sampling_seed: int = 0
) -> Run:
    """The generation run of a row of an experiment. Raises UserError where there is no such row, or none chosen yet."""
    experiment = load_experiment(name, scale, overrides)
    if experiment.sweeps or experiment.searches:
        experiment = with_choices(experiment, read_records(places.records))
    if row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    if experiment.is_open(row):
        raise UserError(f"{name}/{row}: its point is chosen by a sweep that is not measured yet; mar-bench run does it")
    return generation_run(row, with_seeds(experiment.rows[row], seed, sampling_seed))


# --- samples --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """``see(space, progress)`` is one pass over them; ``run`` is set for a row's, whose extractor is the default, and
    ``remembered`` for kept features, which only have that one."""

    name: str
    see: Callable[[FeatureSpace, Progress], Seen]
    run: Run | None = None
    remembered: RememberedSpace | None = None


def samples_of_set(images: ImageSet) -> Samples:
    """Raises UserError where the set is a reference."""
    if images.reference:
        raise UserError(
            f"{images.name} holds the statistics of a reference beside its images: are the arguments swapped? "
            "mar-bench eval SAMPLES --reference REFERENCE"
        )
    labels = None if images.labels is None else torch.from_numpy(images.labels)

    def see(space: FeatureSpace, progress: Progress) -> Seen:
        about = {"kind": images.kind, "name": Path(images.name).name, "index": images.index}
        return one_pass(images.batches(progress), space, labels, **about)

    return Samples(images.name, see)


def samples_of_features(path: Path) -> Samples:
    """Features that ``--keep-features`` or a run has kept: nothing is looked at again."""
    seen = load_seen(path)
    return Samples(str(path), lambda space, progress: seen, remembered=RememberedSpace(seen.extractor))


def samples_of_run(run: Run, places: Places) -> Samples:
    """Images of a row, decoded from its tokens: no file between. Raises UserError where it has not been sampled."""
    folder = places.folder("sample", run.ids["sample_id"])
    if not is_sound(folder):
        raise UserError(f"{run.row} has no samples in {places.runs} ({folder.name}); mar-bench run draws them")

    def see(space: FeatureSpace, progress: Progress) -> Seen:
        device, total = pick_device(run.spec.compute.device), run.spec.sampling.num_images

        def told():
            done = 0
            for batch in decoded_samples(run.spec, load_tokenizer(run, places, device), folder, device):
                progress(done, total)
                done += len(batch)
                yield batch

        return one_pass(told(), space, class_labels(run.spec), kind="run", name=run.row, conversion=CONVERSION)

    return Samples(run.row, see, run)


# --- extractors -----------------------------------------------------------------------------------------


def named_extractor(name: str, weights: str | None, folder: Path, device: torch.device) -> FeatureSpace:
    """An extractor by its name: inception, efficientnet_lite0 or one of an installed package.

    Raises UserError where there is none, or its weights are not here."""
    if name == "inception":
        return FeatureSpace(OURS[name](), None, located(name, weights, "--inception-weights", folder), device)
    if name in OURS:
        return FeatureSpace(OURS[name](), None, None, device)
    if name not in (found := plugins()):
        known = did_you_mean(name, [*OURS, *found])
        raise UserError(f"no extractor '{name}', {known}; a row of an experiment is measured with its own by default")
    return FeatureSpace(PluginExtractor(name=name), None, None, device)


def own_extractor(run: Run, places: Places) -> FeatureSpace:
    """The extractor of a row. Raises UserError where it has not been made."""
    folder = places.folder("extractor", run.ids["extractor_id"])
    if run.spec.metrics.extractor.trained and not is_sound(folder):
        raise UserError(f"the extractor of {run.row} is not in {places.runs} ({folder.name}); mar-bench run makes it")
    return load_extractor(run, places, pick_device(run.spec.compute.device))


# --- references -----------------------------------------------------------------------------------------


def open_reference(text: str, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    """An npz (ADM's, or that of ``reference build``), else a set of images. Raises UserError."""
    path = Path(text)
    if path.suffix == ".npz" and not path.is_dir():
        return load_reference(path, path.name, space, most, progress)
    if path.suffix == ".safetensors":
        raise UserError(f"{text}: features of samples, not a reference; are the arguments swapped?")
    return reference_of_set(open_images(text, indexed=False), space, most, progress)


def reference_of_set(images: ImageSet, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    name = Path(images.name).name
    reference = build_reference(images.batches(progress), images.count, space, most, images.kind, name)
    if not images.notes:
        return reference
    return replace(reference, about={**reference.about, "notes": list(images.notes)})


def own_references(
    run: Run, space: FeatureSpace, places: Places, most: int, progress: Progress
) -> tuple[Reference, Reference]:
    """A row's own reference and its held-out images; with another extractor than its own, its training images."""
    folder = places.folder("extractor", run.ids["extractor_id"])
    if is_sound(folder):
        kept = read_reference(folder / REFERENCE), read_reference(folder / HELDOUT)
        if kept[0].extractor["sha256"] == space.sha256:
            return kept
    data = load_data(run.spec.data, places.runs / IMAGES, progress)
    parts = (data.train, "training", "train"), (data.heldout, "heldout", "heldout")
    return tuple(reference_of_part(run.spec.data, *part, space, most, progress) for part in parts)


def open_pictures(text: str, size: int | None) -> ImageSet:
    """Images to build a reference from; with ``size``, any files that can be read, cropped as ADM does."""
    if size is None:
        return open_images(text, indexed=False)
    if not Path(text).is_dir():
        raise UserError(f"{text}: no such folder; --size crops the images of a folder")
    return cropped_folder(Path(text), size)


# --- scores ---------------------------------------------------------------------------------------------


def settings_of(overrides: list[str], run: Run | None) -> tuple[MetricsSpec, set[str]]:
    """Settings of a row (of its spec, all chosen) or the defaults under ``metrics.*`` overrides, and which were chosen.

    Raises UserError for a key that is none of them or a value out of range."""
    every = {f.name for f in fields(MetricsSpec)} - {"extractor", "reference", "keep_features"}
    if run is not None:
        return run.spec.metrics, every
    tree = parse_overrides(overrides)
    given = tree.pop("metrics", {})
    if not isinstance(given, dict):
        raise UserError(f"override metrics={given}: metrics is a block; name a setting, as in metrics.is_splits=5")
    unknown = [*tree, *(f"metrics.{key}" for key in given if key not in every)]
    if unknown:
        hint = did_you_mean(unknown[0], [f"metrics.{key}" for key in every])
        raise UserError(f"override '{unknown[0]}' is no setting of eval, {hint}")
    try:
        settings = parse(MetricsSpec, given, "metrics")
    except KeyPathError as error:
        raise UserError(f"{error.path}: {error.message}") from None
    check_bounds(settings, "metrics")
    return settings, set(given)


def fitted(settings: MetricsSpec, chosen: set[str], seen: Seen, reference: Reference) -> MetricsSpec:
    """Settings that were not ``chosen`` are lowered to what so few images allow; a record tells what they were.

    Raises UserError where a reference is too small for any."""
    count = len(seen.features)
    others = count if reference.features is None else len(reference.features)
    if others < 2:
        raise UserError(f"reference '{reference.about['name']}' has {others} image to compare with; two are the least")
    most = largest_settings(settings, count, others)
    most["is_splits"] = max(1, min(most["is_splits"], count // SPLIT_IMAGES))
    lowered = {key: min(getattr(settings, key), limit) for key, limit in most.items() if key not in chosen}
    return replace(settings, **lowered)


def as_record(scores: Scores, extractor: dict[str, Any], settings: MetricsSpec, provenance: dict[str, Any]) -> Record:
    """A record of its own task: what was measured and how, without a generator's spec."""
    block = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in ("extractor", "reference")}
    block["extractor"] = {key: extractor[key] for key in ("kind", "name")}
    protocol = scores.protocol
    hashes = {
        part: protocol[part]["sha256"] for part in ("samples", "reference", "heldout", "extractor") if part in protocol
    }
    content = json.dumps([hashes, protocol["settings"], protocol.get("class_balance")], sort_keys=True)
    eval_id = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Record(
        task=TASK,
        status="done",
        ids={"eval_id": eval_id},
        spec={"metrics": block},
        metrics=scores.metrics,
        uncertainty=scores.uncertainty,
        protocol=protocol,
        provenance=provenance,
    )


def save(record: Record, seen: Seen, reference: Reference, heldout: Reference | None, places: Places) -> None:
    """The record among the results; in ``runs`` what it can be scored from again."""
    folder = places.folder(TASK, record.id)
    with locks.held(places.runs / "locks" / f"{record.id}.lock"):
        folder.mkdir(parents=True, exist_ok=True)
        save_seen(seen, folder / SEEN)
        reference.save(folder / REFERENCE)
        if heldout is not None:
            heldout.save(folder / HELDOUT)
        mark_done(folder, record.provenance["seconds"])
        write_record(places.records, record)
