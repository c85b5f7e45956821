"""Scores a set of images against a reference: one pass extracts the features, from which all metrics are computed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mar_bench.config import plugins
from mar_bench.config.spec import MetricsSpec
from mar_bench.data.image_sets import Digest, check_digests, class_balance, overlap
from mar_bench.metrics import functions
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import KERNEL, SEED, Moments
from mar_bench.metrics.mind import PROJECTIONS, mind
from mar_bench.metrics.references import Reference
from mar_bench.records.metrics import metric_name
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading, replacing

PREVIEW_IMAGES = 100  # images kept for sample sheets
RECALL_IMAGES = 5000  # up to this many images, precision and recall (quadratic cost) get a standard error
LEAST_RANK = 4  # directions in which features vary: even two classes need more, a collapsed network has one or none
SETTINGS = ("is_splits", "kid_subsets", "kid_subset_size", "neighbours", "jackknife_groups")


@dataclass
class FeatureSet:
    """The features of one set of images."""

    features: torch.Tensor  # (N, F)
    logits: torch.Tensor | None  # (N, classes)
    labels: torch.Tensor | None  # classes (N,) of the images, if known
    about: dict[str, Any]  # the images in records
    extractor: dict[str, Any]  # FeatureSpace.about
    preview: torch.Tensor  # the first PREVIEW_IMAGES images
    digests: np.ndarray | None = None  # of the images, as ``Digest.each``, if known

    def save(self, path: Path) -> None:
        """Write everything except the preview."""
        tensors = {"features": self.features, "logits": self.logits, "labels": self.labels}
        tensors["digests"] = None if self.digests is None else torch.tensor(self.digests)
        notes = {"about": json.dumps(self.about), "extractor": json.dumps(self.extractor)}
        with replacing(path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, temporary, notes)


def load_features(path: Path) -> FeatureSet:
    """Read what ``FeatureSet.save`` wrote. Raises UserError if the file is anything else."""
    with reading(path, "file of kept features", "make it again"):
        with safe_open(path, "pt") as file:
            about, extractor = (json.loads(file.metadata()[name]) for name in ("about", "extractor"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        if any(len(t) != about["num_images"] or not t.isfinite().all() for t in tensors.values()):
            raise ValueError("expected finite numbers, one row for each image")
        digests = tensors["digests"].numpy() if "digests" in tensors else None
        if digests is not None:
            check_digests(digests)
        others = tensors.get("logits"), tensors.get("labels")
        return FeatureSet(tensors["features"], *others, about, extractor, torch.empty(0), digests)


def extract_features(
    images: Iterable[torch.Tensor], space: FeatureSpace, labels: torch.Tensor | None = None, **about: Any
) -> FeatureSet:
    """Features of batches of uint8 images (B, C, H, W) in the order of their index; ``about`` is added to records."""
    found, preview, digest, first = [], [], Digest(), Digest()
    for batch in images:
        found.append(space.extract(batch))
        preview.append(batch[: max(0, PREVIEW_IMAGES - digest.count)])
        if not first.count:
            first.update(batch)
        digest.update(batch)
    features, logits = zip(*found)
    about = {
        **digest.about,
        "first_batch": {"images": first.count, "sha256": first.sha256},
        "duplicates": digest.duplicates,
        **about,
    }
    scores = torch.cat(logits) if space.scores else None
    return FeatureSet(torch.cat(features), scores, labels, about, space.about, torch.cat(preview), digest.each)


@dataclass
class Scores:
    """The parts of a record with the measurements, their uncertainty and their protocol."""

    metrics: dict[str, float] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


class Measure:
    """Scores sets of images against one reference; metrics are named as in records.

    ``heldout`` is a second reference of real images unseen in training. Copies are counted if the reference has the
    features of all its images; they indicate memorisation if those are the training images.

    Raises UserError if both are the same images, or if the features of the reference hardly vary."""

    def __init__(
        self,
        settings: MetricsSpec,
        reference: Reference,
        heldout: Reference | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ):
        self.settings, self.reference, self.heldout, self.progress = settings, reference, heldout, progress
        name, found = reference.about["name"], reference.statistics
        if heldout and heldout.about.get("set_sha256", 0) == reference.about.get("set_sha256"):
            raise UserError(f"the held-out images are the images of reference '{name}': hold out others")
        self.distance = functions.FrechetDistance(found)
        if self.distance.rank < (least := min(LEAST_RANK, len(found["mu"]), int(found["count"]) - 1)):
            raise UserError(
                f"extractor '{reference.extractor['name']}' is not fit to measure: its features of reference '{name}' "
                f"vary in {self.distance.rank} directions, fewer than {least}; use another extractor or other images"
            )
        self.heldout_distance = functions.FrechetDistance(heldout.statistics) if heldout else None

    def __call__(self, images: FeatureSet) -> Scores:
        """Raises UserError if there are too few images for a setting, or images and reference do not match."""
        self._check(images)
        settings, real, scores = self.settings, self.reference.features, Scores()
        features, logits, labels = images.features, images.logits, images.labels
        groups = functions.jackknife_groups(len(features), settings.jackknife_groups, labels)
        rest = [groups != g for g in range(settings.jackknife_groups)]

        def add(metric: str, value: float, without: Iterable[float] = (), **std: float) -> None:
            """``without``: the values with each jackknife group left out."""
            name = metric_name(metric, images.extractor)
            scores.metrics[name], uncertainty = value, dict[str, Any](std)
            if without := list(without):
                uncertainty["standard_error"] = functions.standard_error(without)
                uncertainty["method"] = f"jackknife, {settings.jackknife_groups} groups"
            if uncertainty:
                scores.uncertainty[name] = uncertainty

        def share(metric: str, members: torch.Tensor) -> None:
            add(metric, members.double().mean().item(), [members[some].double().mean().item() for some in rest])

        self.progress("distances")
        total = Moments.near(features[: functions.ROWS]).add(features)
        parts = [Moments(total.shift).add(features[~some]) for some in rest]
        statistics, others = total.statistics(), [total.without(part).statistics() for part in parts]
        add("fd", self.distance(statistics), map(self.distance, others))
        if self.heldout_distance:
            add("fd:heldout", self.heldout_distance(statistics), map(self.heldout_distance, others))

        if logits is not None:
            self.progress("inception score")
            order = functions.shuffled(len(groups))  # once: a shuffle per group would add variance of its own
            orders = [order, *(order[some[order]] for some in rest)]
            found = [functions.inception_style_score(logits[o], settings.is_splits) for o in orders]
            add("is", found[0][0], [mean for mean, _ in found[1:]], sd_splits=found[0][1])
            if images.extractor["kind"] == "classifier" and labels is not None:  # its classes are the data set's
                share("accuracy", logits.argmax(-1) == labels)

        if real is not None:
            self.progress("KID")
            mean, sd = functions.kernel_distance(features, real, settings.kid_subsets, settings.kid_subset_size)
            add("kid", mean, sd_subsets=sd)
            self.progress("MIND")
            add("mind", *mind(features, real, settings.jackknife_groups, labels))
            self.progress("precision and recall")
            subsets = [features, *(features[some] for some in rest)] if len(features) <= RECALL_IMAGES else [features]
            pairs = map(functions.PrecisionRecall(real, settings.neighbours), subsets)
            for metric, (value, *without) in zip(("precision", "recall"), zip(*pairs)):
                add(metric, value, without)
            if self.reference.complete:
                self.progress("copies")
                share("copied", functions.copied(features, real))
            for metric, path in plugins.added("metrics").items():
                self.progress(metric.label)
                compute = plugins.resolve(path)
                value, *without = (
                    float(compute(given, real)) for given in (features, *(features[some] for some in rest))
                )
                add(metric.name, value, without)

        scores.protocol = self._protocol(images)
        scores.protocol["singular"] = any(map(functions.is_singular, (statistics, self.reference.statistics)))
        return scores

    def real(self) -> dict[str, float]:
        """Scores of the held-out images themselves, which a perfect generator would reach.

        Metrics that need more images are left out."""
        assert self.heldout is not None and self.heldout.features is not None
        settings, real, heldout, k = (
            self.settings,
            self.reference.features,
            self.heldout.features,
            self.settings.neighbours,
        )
        out = {"fd": self.distance(self.heldout.statistics)}
        if real is not None and min(len(heldout), len(real)) > k:
            size = min(settings.kid_subset_size, len(heldout), len(real))
            out["kid"], _ = functions.kernel_distance(heldout, real, settings.kid_subsets, size)
            out["mind"], _ = mind(heldout, real)
            out |= dict(zip(("precision", "recall"), functions.PrecisionRecall(real, k)(heldout)))
        if real is not None and self.reference.complete:
            out["copied"] = functions.copied(heldout, real).double().mean().item()
        return {metric_name(f"{metric}:real", self.reference.extractor): value for metric, value in out.items()}

    def _check(self, images: FeatureSet) -> None:
        about, count = self.reference.about, len(images.features)
        name, ours, theirs = f"reference '{about['name']}'", images.extractor, self.reference.extractor
        dims = images.features.shape[1], len(self.reference.statistics["mu"])
        if theirs["sha256"] != ours["sha256"] or dims[0] != dims[1]:
            raise UserError(
                f"{name} was made with extractor '{theirs['name']}' ({theirs['sha256'][:8]}, {dims[1]} features), the "
                f"samples with '{ours['name']}' ({ours['sha256'][:8]}, {dims[0]}); use the same for both"
            )
        drawn, real = ("x".join(map(str, [*(a["size"] or ()), a["channels"]])) for a in (images.about, about))
        if about["size"] and drawn != real:
            raise UserError(
                f"the samples are images of {drawn} (height x width x channels), {name} of {real}: nothing is resized; "
                "compare images of one size, or build the reference at this size"
            )
        if images.about.get("set_sha256") is not None and images.about["set_sha256"] == about.get("set_sha256"):
            raise UserError(f"the samples are the images of {name}: there is nothing to compare")
        others = len(self.reference.features) if self.reference.features is not None else count
        for key, most in largest_settings(self.settings, count, others).items():
            if getattr(self.settings, key) > most and not (key == "is_splits" and images.logits is None):
                raise UserError(
                    f"metrics.{key} {getattr(self.settings, key)} is too large for {count} images against {others}; "
                    f"at most {most} here"
                )

    def _protocol(self, images: FeatureSet) -> dict[str, Any]:
        settings = {key: getattr(self.settings, key) for key in SETTINGS}
        out = {
            "extractor": images.extractor | {k: v for k, v in self.reference.extractor.items() if k == "acceptance"},
            "reference": self.reference.about,
            "samples": images.about,
            "num_generated": images.about["num_images"],
            "num_reference": self.reference.about["num_images"],
            "label_mode": "unknown",
            "dtype": "float32",
            "settings": settings | {"is_seed": SEED, "kid_seed": SEED, "kid_kernel": KERNEL},
        }
        if self.reference.features is not None:
            count = min(len(images.features), len(self.reference.features))
            out["settings"] |= {"mind_images": count, "mind_projections": PROJECTIONS, "mind_seed": SEED}
        if self.heldout:
            out |= {"heldout": self.heldout.about, "num_heldout": self.heldout.about["num_images"]}
        sets: dict[str, Any] = {"samples": images, "held-out images": self.heldout, "reference": self.reference}
        known = {name: some.digests for name, some in sets.items() if some and some.digests is not None}
        if len(known) > 1:  # sets that share no image if nothing was copied or mixed up
            pairs = itertools.combinations(known, 2)
            out["overlaps"] = {f"{one} in {other}": overlap(known[one], known[other]) for one, other in pairs}
        if images.labels is not None:
            balance = class_balance(images.labels)
            mode = "balanced" if balance["most"] - balance["least"] <= 1 else "unbalanced"
            out |= {"label_mode": mode, "class_balance": balance}
        return out


def largest_settings(settings: MetricsSpec, count: int, others: int) -> dict[str, int]:
    """The largest value of each setting for ``count`` images against the features of ``others``.

    Metrics are also computed without each jackknife group, so the images outside the largest group must suffice.
    Raises UserError if these are fewer than two."""
    groups = min(settings.jackknife_groups, count)
    left = count - -(-count // groups)
    if left < 2:
        raise UserError(
            f"{count} images are too few: without one of {groups} jackknife groups {left} would be left; give more"
        )
    subsets = {"kid_subset_size": min(count, others), "neighbours": min(left, others) - 1}
    return {"jackknife_groups": count, "is_splits": left, **subsets}
