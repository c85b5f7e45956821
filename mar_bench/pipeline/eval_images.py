"""Scores any set of images against any reference with any extractor, for ``mar-bench eval`` and ``reference``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import Run, generation_run, with_seeds
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import EfficientNetExtractor, InceptionExtractor, MetricsSpec, PluginExtractor
from mar_bench.config.yaml_layers import parse_overrides
from mar_bench.data.datasets import CONVERSION, Progress, load_data
from mar_bench.data.image_sets import ImageSet, cropped_folder, open_images
from mar_bench.metrics.features import FeatureSpace, KeptSpace, plugins
from mar_bench.metrics.references import Reference, build_reference, load_reference, read_reference
from mar_bench.metrics.score import FeatureSet, Measure, extract_features, largest_settings, load_features
from mar_bench.models.build import pick_device
from mar_bench.models.pretrained.fetch import located
from mar_bench.pipeline.sample import class_labels, decoded_samples, reference_of_part
from mar_bench.pipeline.stages import HELDOUT, IMAGES, REFERENCE, SEEN, load_extractor, load_tokenizer
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.records.provenance import provenance
from mar_bench.records.record import Record, read_records, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError, did_you_mean

TASK = "evaluation"
SPLIT_IMAGES = 100  # default number of images per IS split, at least
FIXED = {"extractor", "reference", "keep_features"}  # fields of MetricsSpec that are options of eval
BUILT_IN: dict[str, Callable] = {"inception": InceptionExtractor, "efficientnet_lite0": EfficientNetExtractor}


def finished(places: Places, kind: str, stage_id: str, owner: str) -> Path:
    """The folder of a finished stage. Raises UserError if it is missing or incomplete."""
    folder = places.folder(kind, stage_id)
    if not is_sound(folder):
        raise UserError(
            f"{owner}: its {kind} ({stage_id}) is missing or incomplete in {places.runs}; mar-bench run makes it, "
            "--runs names another folder"
        )
    return folder


# --- sources --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Images to score: a folder, an npz, a data set, the samples of a row, or features kept of any of these.

    ``batches(progress)`` yields uint8 images (B, C, H, W) and ``about`` describes them in records; ``run`` is set for
    a row, ``kept`` for kept features."""

    name: str
    batches: Callable[[Progress], Iterator[torch.Tensor]]
    labels: torch.Tensor | None
    about: dict[str, Any]
    run: Run | None = None
    kept: FeatureSet | None = None

    def features(self, space: FeatureSpace, progress: Progress) -> FeatureSet:
        return self.kept or extract_features(self.batches(progress), space, self.labels, **self.about)


def open_source(text: str, indexed: bool = True) -> Source:
    """Kept features by their suffix, else a set of images (see ``open_images``). Raises UserError."""
    if text.endswith(".safetensors"):
        kept = load_features(Path(text))
        return Source(text, lambda progress: iter(()), kept.labels, kept.about, kept=kept)
    images = open_images(text, indexed)
    if images.reference:
        raise UserError(
            f"{images.name} has the statistics of a reference beside its images: are the arguments swapped? "
            "mar-bench eval SAMPLES --reference REFERENCE"
        )
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    about = {"kind": images.kind, "name": Path(images.name).name, "index": images.index}
    return Source(images.name, images.batches, labels, about)


def row_run(
    name: str, row: str, scale: str, overrides: list[str], places: Places, seed: int = 0, sampling_seed: int = 0
) -> Run:
    """The generation run of a row. Raises UserError for an unknown row or one whose sweep is not measured yet."""
    experiment = load_experiment(name, scale, overrides)
    if experiment.sweeps or experiment.searches:
        experiment = with_choices(experiment, read_records(places.records))
    if row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    if experiment.is_open(row):
        raise UserError(f"{name}/{row}: the sweep that chooses its settings is not measured yet; run mar-bench run")
    return generation_run(row, with_seeds(experiment.rows[row], seed, sampling_seed))


def source_of_run(run: Run, places: Places) -> Source:
    """The samples of a row, decoded from their tokens. Raises UserError if it has not been sampled."""
    folder = finished(places, "sample", run.ids["sample_id"], run.row)

    def decoded(progress: Progress) -> Iterator[torch.Tensor]:
        device, done = pick_device(run.spec.compute.device), 0
        for batch in decoded_samples(run.spec, load_tokenizer(run, places, device), folder, device):
            progress(done, run.spec.sampling.num_images)
            done += len(batch)
            yield batch

    about = {"kind": "run", "name": run.row, "conversion": CONVERSION}
    return Source(run.row, decoded, class_labels(run.spec), about, run)


# --- extractors -----------------------------------------------------------------------------------------


def open_extractors(
    names: list[str], source: Source, inception_weights: str | None, weights: Path, places: Places
) -> list[Callable[[], FeatureSpace]]:
    """Functions that load the extractors, so that one may fail alone. The default is a row's own, else Inception."""
    if source.kept is not None:
        if names:
            raise UserError(f"--extractor {names[0]}: {source.name} has features of one extractor; leave it out")
        space = KeptSpace(source.kept.extractor)
        return [lambda: space]
    if (run := source.run) is not None and not names:
        return [lambda: own_extractor(run, places)]
    return [
        lambda name=name: named_extractor(name, inception_weights, weights)  # type: ignore[misc]
        for name in dict.fromkeys(names or ["inception"])
    ]


def named_extractor(name: str, inception_weights: str | None, weights: Path) -> FeatureSpace:
    """inception, efficientnet_lite0 or an extractor of an installed package.

    Raises UserError if there is none of this name or its weights are missing."""
    device = pick_device("auto")
    if name in BUILT_IN:
        inception = name == "inception"
        file = located(name, inception_weights, "--inception-weights", weights) if inception else None
        return FeatureSpace(BUILT_IN[name](), None, file, device)
    if name not in (found := plugins()):
        known = did_you_mean(name, [*BUILT_IN, *found])
        raise UserError(f"no extractor '{name}', {known}; without --extractor a row is scored with its own")
    return FeatureSpace(PluginExtractor(name=name), None, None, device)


def own_extractor(run: Run, places: Places) -> FeatureSpace:
    """The extractor of a row. Raises UserError if it has not been trained."""
    if run.spec.metrics.extractor.trained:
        finished(places, "extractor", run.ids["extractor_id"], run.row)
    return load_extractor(run, places, pick_device(run.spec.compute.device))


# --- references -----------------------------------------------------------------------------------------


def open_reference(text: str, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    """An npz (ADM's or from ``reference build``), else a set of images, with at most ``most`` features."""
    path = Path(text)
    if path.suffix == ".npz" and not path.is_dir():
        return load_reference(path, path.name, space, most, progress)
    if path.suffix == ".safetensors":
        raise UserError(f"{text}: features of samples, not a reference; are the arguments swapped?")
    return reference_of_set(open_images(text, indexed=False), space, most, progress)


def reference_of_set(images: ImageSet, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    name = Path(images.name).name
    reference = build_reference(images.batches(progress), images.count, space, most, images.kind, name)
    return replace(reference, about=reference.about | ({"notes": list(images.notes)} if images.notes else {}))


def images_for_reference(text: str, size: int | None) -> ImageSet:
    """A set of images; with ``size``, a folder of photographs in any format, cropped as ADM does."""
    if size is None:
        return open_images(text, indexed=False)
    if not Path(text).is_dir():
        raise UserError(f"{text}: no such folder; --size crops the images of a folder")
    return cropped_folder(Path(text), size)


def own_references(
    run: Run, space: FeatureSpace, places: Places, most: int, progress: Progress
) -> tuple[Reference, Reference]:
    """A row's own reference and held-out images; with another extractor, its training and held-out images."""
    folder = places.folder("extractor", run.ids["extractor_id"])
    if is_sound(folder):
        kept = read_reference(folder / REFERENCE), read_reference(folder / HELDOUT)
        if kept[0].extractor["sha256"] == space.sha256:
            return kept
    spec, data = run.spec.data, load_data(run.spec.data, places.runs / IMAGES, progress)
    return (
        reference_of_part(spec, data.train, "training", "train", space, most, progress),
        reference_of_part(spec, data.heldout, "heldout", "heldout", space, most, progress),
    )


# --- scores ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A record of its own task, and what it can be scored from again."""

    record: Record
    features: FeatureSet
    reference: Reference
    heldout: Reference | None

    def save(self, places: Places) -> None:
        """Publish the record and keep its features and references in ``runs``."""
        record = self.record
        folder = places.folder(TASK, record.id)
        with locks.held(places.runs / "locks" / f"{record.id}.lock"):
            folder.mkdir(parents=True, exist_ok=True)
            self.features.save(folder / SEEN)
            self.reference.save(folder / REFERENCE)
            if self.heldout is not None:
                self.heldout.save(folder / HELDOUT)
            mark_done(folder, record.provenance["seconds"])
            write_record(places.records, record)


def evaluate(
    source: Source,
    reference: str | None,
    space: FeatureSpace,
    settings: tuple[MetricsSpec, set[str]],
    places: Places,
    progress: Callable[[str], Progress],
    say: Callable[[str], None],
) -> Evaluation:
    """Score ``source`` against ``reference``, or a row against its own. ``settings`` as from ``settings_of``.

    Raises UserError if images, reference and extractor do not match."""
    begin = time.monotonic()
    chosen, heldout = settings[0], None
    if reference is not None:
        real = open_reference(reference, space, chosen.reference_images, progress("reference"))
    else:
        assert source.run is not None
        real, heldout = own_references(source.run, space, places, chosen.reference_images, progress("reference"))
    features = source.features(space, progress("samples"))  # last, as this takes longest
    chosen = fitted(*settings, features, real)
    scores = Measure(chosen, real, heldout, say)(features)
    protocol = scores.protocol
    parts = [part for part in ("samples", "reference", "heldout", "extractor") if part in protocol]
    hashes = {part: protocol[part]["sha256"] for part in parts}
    content = json.dumps([hashes, protocol["settings"], protocol.get("class_balance")], sort_keys=True)
    block = {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name not in ("extractor", "reference")}
    block["extractor"] = {key: space.about[key] for key in ("kind", "name")}
    record = Record(
        task=TASK,
        status="done",
        ids={"eval_id": hashlib.sha256(content.encode()).hexdigest()[:12]},
        spec={"metrics": block},
        provenance=provenance("auto", torch.get_num_threads(), time.monotonic() - begin),
        **vars(scores),
    )
    return Evaluation(record, features, real, heldout)


def settings_of(overrides: list[str], run: Run | None) -> tuple[MetricsSpec, set[str]]:
    """The settings and the names of those that were chosen: all of a row's, or the ``metrics.*`` overrides.

    Raises UserError for an unknown key or a value out of range."""
    known = {f.name for f in fields(MetricsSpec)} - FIXED
    if run is not None:
        return run.spec.metrics, known
    tree = parse_overrides(overrides)
    given = tree.pop("metrics", {})
    if not isinstance(given, dict):
        raise UserError(f"override metrics={given}: metrics is a block; name a setting, as in metrics.is_splits=5")
    unknown = [*tree, *(f"metrics.{key}" for key in given if key not in known)]
    if unknown:
        hint = did_you_mean(unknown[0], [f"metrics.{key}" for key in known])
        raise UserError(f"override '{unknown[0]}' is not a setting of eval, {hint}")
    try:
        settings = parse(MetricsSpec, given, "metrics")
    except KeyPathError as error:
        raise UserError(f"{error.path}: {error.message}") from None
    return settings, set(given)


def fitted(settings: MetricsSpec, chosen: set[str], images: FeatureSet, reference: Reference) -> MetricsSpec:
    """Lower settings that were not ``chosen`` to what few images allow.

    Raises UserError if the reference is too small for any."""
    count = len(images.features)
    others = count if reference.features is None else len(reference.features)
    if others < 2:
        raise UserError(
            f"reference '{reference.about['name']}' has only {others} image to compare with; give two or more"
        )
    most = largest_settings(settings, count, others)
    most["is_splits"] = max(1, min(most["is_splits"], count // SPLIT_IMAGES))
    lowered = {key: min(getattr(settings, key), limit) for key, limit in most.items() if key not in chosen}
    return replace(settings, **lowered)
