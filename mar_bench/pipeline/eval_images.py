"""Score any set of images against any reference with any extractor; find the training images near a row's samples."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import Run, generation_run, with_seeds
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.config.spec import EfficientNetExtractor, InceptionExtractor, MetricsSpec, PluginExtractor
from mar_bench.config.yaml_layers import parse_overrides
from mar_bench.data.datasets import CONVERSION, Progress, load_data, silent
from mar_bench.data.image_sets import ImageSet, cropped_folder, open_folder, open_images
from mar_bench.data.npz import FOLDER, kind_of
from mar_bench.data.npz import REFERENCE as BUILT
from mar_bench.metrics import features
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import nearest, spacing
from mar_bench.metrics.references import Reference, build_reference, load_reference, read_reference
from mar_bench.metrics.score import FeatureSet, Measure, extract_features, largest_settings, load_features
from mar_bench.models.build import pick_device
from mar_bench.models.pretrained.fetch import located
from mar_bench.pipeline.outputs import load_extractor, load_tokenizer
from mar_bench.pipeline.sample import class_labels, decoded_samples, reference_of_part
from mar_bench.pipeline.store import HELDOUT, REFERENCE, SEEN, Places, fault_in, is_sound, mark_done
from mar_bench.records.provenance import provenance
from mar_bench.records.record import Record, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError, did_you_mean

TASK = "evaluation"
SPLIT_IMAGES = 100  # least number of images per IS split by default
SETTINGS = {f.name for f in fields(MetricsSpec)} - {"extractor", "reference", "keep_features"}  # overrides of eval


# --- images, extractors and references ------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Images to score: a folder, an npz or the samples of a row, whose ``run`` is set.

    ``batches(progress)`` yields uint8 images (B, C, H, W) and ``about`` describes them in records."""

    batches: Callable[[Progress], Iterator[torch.Tensor]]
    labels: torch.Tensor | None
    about: dict[str, Any]
    run: Run | None = None

    def features(self, space: FeatureSpace, progress: Progress) -> FeatureSet:
        return extract_features(self.batches(progress), space, self.labels, **self.about)


def open_source(text: str, indexed: bool) -> Source:
    """A set of images, see ``open_images``. Raises UserError."""
    images = open_images(text, indexed)
    labels = None if images.labels is None else torch.from_numpy(images.labels)
    return Source(images.batches, labels, {"kind": images.kind, "name": Path(images.name).name, "index": images.index})


def open_row(experiment: Experiment, row: str | None, places: Places, seeds: tuple[int, int]) -> Source:
    """The samples of a row, decoded from their tokens; ``seeds`` of training and of sampling.

    Raises UserError if the row is missing, not sampled, or its sweep is not measured yet."""
    if row is None:
        raise UserError(f"{experiment.id}: a row is needed, as in table1/mar/diff/guided; mar-bench show lists them")
    if experiment.is_open(row):
        raise UserError(f"{row}: the sweep that chooses its settings is not measured yet; run mar-bench run")
    run = generation_run(row, with_seeds(experiment.rows[row], *seeds))
    folder = places.finished("sample", run.ids["sample_id"], row, run)

    def decoded(progress: Progress) -> Iterator[torch.Tensor]:
        device, done = pick_device(run.spec.compute.device), 0
        for batch in decoded_samples(run.spec, load_tokenizer(run, places, device), folder, device):
            progress(done, run.spec.sampling.num_images)
            done += len(batch)
            yield batch

    return Source(decoded, class_labels(run.spec), {"kind": "run", "name": row, "conversion": CONVERSION}, run)


def open_extractor(name: str, inception_weights: str | None, weights: Path) -> FeatureSpace:
    """inception, efficientnet_lite0 or an extractor of an installed package.

    Raises UserError if no extractor has this name or its weights are missing."""
    device = pick_device("auto")
    if name == "inception":
        file = located(name, inception_weights, "--inception-weights", weights)
        return FeatureSpace(InceptionExtractor(), None, file, device)
    if name == "efficientnet_lite0":
        return FeatureSpace(EfficientNetExtractor(), None, None, device)
    if name not in (found := features.plugins()):
        known = did_you_mean(name, ["inception", "efficientnet_lite0", *found])
        raise UserError(f"no extractor '{name}', {known}; without --extractor a row is scored with its own")
    return FeatureSpace(PluginExtractor(name=name), None, None, device)


def extractor_of(reference: str | None) -> str | None:
    """The extractor with which ``reference build`` made a file; None for any other reference."""
    if reference is None or not Path(reference).is_file() or kind_of(reference) != BUILT:
        return None
    return read_reference(Path(reference)).extractor["name"]


def own_extractor(run: Run, places: Places) -> FeatureSpace:
    """The extractor of a row. Raises UserError if it has not been trained."""
    if run.spec.metrics.extractor.trained:
        places.finished("extractor", run.ids["extractor_id"], run.row)
    return load_extractor(run, places, pick_device(run.spec.compute.device))


def open_reference(text: str, space: FeatureSpace, most: int, progress: Progress, size: int | None = None) -> Reference:
    """An npz (ADM's or from ``reference build``) or a folder, with at most ``most`` features.

    With ``size``, a folder of photographs in any format, cropped as ADM does."""
    path = Path(text)
    if size is not None:
        return reference_of_set(cropped_folder(path, size), space, most, progress)
    if kind_of(text) == FOLDER:
        return reference_of_set(open_folder(path, indexed=False), space, most, progress)
    return load_reference(path, path.name, space, most, progress)


def reference_of_set(images: ImageSet, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    name = Path(images.name).name
    return build_reference(images.batches(progress), images.count, space, most, images.kind, name)


def own_references(
    run: Run, space: FeatureSpace, places: Places, most: int, progress: Progress
) -> tuple[Reference, Reference]:
    """A row's own reference and held-out images; with another extractor, its training and held-out images."""
    folder = places.folder("extractor", run.ids["extractor_id"])
    if is_sound(folder) and not fault_in(folder):
        kept = read_reference(folder / REFERENCE), read_reference(folder / HELDOUT)
        if kept[0].extractor["sha256"] == space.sha256:
            return kept
    spec, data = run.spec.data, load_data(run.spec.data)
    return (
        reference_of_part(spec, data.train, "training", "train", space, most, progress),
        reference_of_part(spec, data.heldout, "heldout", "heldout", space, most, progress),
    )


# --- scores ---------------------------------------------------------------------------------------------


def evaluate(
    source: Source,
    reference: str | None,
    space: FeatureSpace,
    overrides: list[str],
    places: Places,
    announce: Callable[[str], Any],
    save: bool,
) -> Record:
    """Score ``source`` against ``reference``, or a row against its own; ``save`` publishes the record.

    ``announce(what)`` reports the start of a step and returns its Progress. Raises UserError if images, reference and
    extractor do not match."""
    begin = time.monotonic()
    if save:
        places.check_writable()
    settings, given = (source.run.spec.metrics, SETTINGS) if source.run else settings_of(overrides)
    most, heldout = settings.reference_images, None
    if reference is not None:
        real = open_reference(reference, space, most, announce("reference"))
    else:
        assert source.run is not None
        real, heldout = own_references(source.run, space, places, most, announce("reference"))
    images = source.features(space, announce("samples"))  # last, as this takes longest
    settings = fitted(settings, given, images, real)
    scores = Measure(settings, real, heldout, announce)(images)
    protocol = scores.protocol
    hashes = {p: protocol[p]["sha256"] for p in ("samples", "reference", "heldout", "extractor") if p in protocol}
    content = json.dumps([hashes, protocol["settings"], protocol.get("class_balance")], sort_keys=True)
    block = {key: value for key, value in vars(settings).items() if key not in ("extractor", "reference")}
    record = Record(
        task=TASK,
        status="done",
        ids={"eval_id": hashlib.sha256(content.encode()).hexdigest()[:12]},
        spec={"metrics": {**block, "extractor": {key: space.about[key] for key in ("kind", "name")}}},
        provenance=provenance("auto", torch.get_num_threads(), time.monotonic() - begin),
        **vars(scores),
    )
    if save:
        with locks.held(places.runs / "locks" / f"{record.id}.lock"):
            folder = places.make_folder(TASK, record.id)
            images.save(folder / SEEN)
            real.save(folder / REFERENCE)
            if heldout is not None:
                heldout.save(folder / HELDOUT)
            mark_done(folder, record.provenance["seconds"])
            write_record(places.records, record)
    return record


def settings_of(overrides: list[str]) -> tuple[MetricsSpec, set[str]]:
    """The settings in ``metrics.*`` overrides and the names of those given.

    Raises UserError for an unknown key or a value out of range."""
    tree = parse_overrides(overrides)
    given = tree.pop("metrics", {})
    if not isinstance(given, dict):
        raise UserError(f"override metrics={given}: metrics is a block; name a setting, as in metrics.is_splits=5")
    unknown = [*tree, *(f"metrics.{key}" for key in given if key not in SETTINGS)]
    if unknown:
        hint = did_you_mean(unknown[0], [f"metrics.{key}" for key in SETTINGS])
        raise UserError(f"override '{unknown[0]}' is not a setting of eval, {hint}")
    try:
        return parse(MetricsSpec, given, "metrics"), set(given)
    except KeyPathError as error:
        raise UserError(f"{error.path}: {error.message}") from None


def fitted(settings: MetricsSpec, given: set[str], images: FeatureSet, reference: Reference) -> MetricsSpec:
    """Lower settings that were not ``given`` to values that the number of images allows.

    Raises UserError if the reference is too small for any value."""
    count = len(images.features)
    others = count if reference.features is None else len(reference.features)
    if others < 2:
        raise UserError(f"reference '{reference.about['name']}' has only {others} image; give two or more")
    most = largest_settings(settings, count, others)
    most["is_splits"] = max(1, min(most["is_splits"], count // SPLIT_IMAGES))
    return replace(settings, **{k: min(getattr(settings, k), limit) for k, limit in most.items() if k not in given})


# --- nearest training images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Generated images of a row and their nearest training images.

    ``closeness`` (N,) is an image's distance to its nearest training image divided by the distance from that one to
    its nearest other training image (its spacing); an image with at most 1 counts as copied. ``real`` is the same for
    held-out images. ``samples`` uint8 (n, C, H, W) are the generated images shown, ``found`` uint8 (n, k, C, H, W)
    their neighbours, nearest first."""

    closeness: np.ndarray
    real: np.ndarray
    samples: np.ndarray
    found: np.ndarray


def neighbours(source: Source, places: Places, count: int, k: int) -> Neighbours:
    """The ``count`` images of a row closest to a training image and its first ``count`` others, with ``k`` neighbours.

    Raises UserError if the row's reference lacks the features of all training images."""
    run = source.run
    assert run is not None
    folder = places.finished("extractor", run.ids["extractor_id"], run.row)
    reference, heldout = (read_reference(folder / name) for name in (REFERENCE, HELDOUT))
    training, about = reference.features, reference.about
    if training is None or about["kind"] != "training" or not reference.complete:
        raise UserError(
            f"{run.row}: neighbours need the features of all training images, but its reference '{about['name']}' "
            f"has {about['num_features']}; set metrics.reference.kind=training and a larger metrics.reference_images"
        )
    measured = places.folder("generation", run.id)
    kept = is_sound(measured) and not places.fault(measured, run) and (measured / SEEN).is_file()
    seen = load_features(measured / SEEN) if kept else source.features(own_extractor(run, places), silent)
    spaces = spacing(training)

    def closeness(images: torch.Tensor) -> torch.Tensor:
        distances, indices = nearest(images, training)
        return distances[:, 0] / spaces[indices[:, 0]].clamp(min=1e-12)

    assert heldout.features is not None
    generated = closeness(seen.features)
    order = generated.argsort(stable=True)[:count].tolist()
    shown = order + [i for i in range(len(generated)) if i not in order][:count]
    indices = nearest(seen.features[shown], training, k)[1]
    found = load_data(run.spec.data).train.get(indices.flatten().tolist()).unflatten(0, indices.shape)
    images = enumerate(image for batch in source.batches(silent) for image in batch)
    samples = {i: image for i, image in images if i in shown}
    drawn = torch.stack([samples[i] for i in shown])
    return Neighbours(generated.numpy(), closeness(heldout.features).numpy(), drawn.numpy(), found.numpy())
