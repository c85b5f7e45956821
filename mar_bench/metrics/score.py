"""Scores of a set of images against a reference: one pass for the features, then every metric, its chance, and how it
was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mar_bench.config.spec import MetricsSpec
from mar_bench.data.image_sets import Digest, class_balance
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import (
    KERNEL,
    ROWS,
    SEED,
    FrechetDistance,
    Moments,
    Statistics,
    copied,
    inception_style_score,
    is_singular,
    jackknife_groups,
    kernel_distance,
    precision_recall,
    shuffled,
    standard_error,
)
from mar_bench.metrics.references import Reference
from mar_bench.records.metrics import metric_name
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import replacing

PREVIEW_IMAGES = 100  # images kept for the sample sheets
RECALL_IMAGES = 5000  # up to so many generated ones recall is measured again without each group: its cost is quadratic


@dataclass
class Seen:
    """What one pass over images left.

    Features (N, F); logits (N, classes) if the extractor has them; the images' classes ``labels`` (N,) where they are
    known; what the images were and what looked at them, for records; ``preview``, the first of them."""

    features: torch.Tensor
    logits: torch.Tensor | None
    labels: torch.Tensor | None
    about: dict[str, Any]
    extractor: dict[str, Any]
    preview: torch.Tensor


def one_pass(
    images: Iterable[torch.Tensor], space: FeatureSpace, labels: torch.Tensor | None = None, **about: Any
) -> Seen:
    """Of uint8 images (B, C, H, W) in the order of their global index, batch by batch; ``about`` goes into records."""
    features, logits, preview, digest, first = [], [], [], Digest(), Digest()
    for batch in images:
        found = space.extract(batch)
        features.append(found[0])
        logits.append(found[1])
        preview.append(batch[: PREVIEW_IMAGES - sum(map(len, preview))])
        if not first.count:
            first.update(batch)
        digest.update(batch)
    about = {
        "sha256": digest.sha256,
        "set_sha256": digest.set_sha256,
        "first_batch": {"images": first.count, "sha256": first.sha256},
        "num_images": digest.count,
        "size": list(batch.shape[2:]),
        "channels": batch.shape[1],
        "duplicates": digest.duplicates,
        **about,
    }
    scores = torch.cat(logits) if space.scores else None
    return Seen(torch.cat(features), scores, labels, about, space.about, torch.cat(preview))


def save_seen(seen: Seen, path: Path) -> None:
    """Without the preview."""
    tensors = {"features": seen.features, "logits": seen.logits, "labels": seen.labels}
    notes = {name: json.dumps(getattr(seen, name)) for name in ("about", "extractor")}
    with replacing(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, temporary, notes)


def load_seen(path: Path) -> Seen:
    """Raises UserError where the file is not what ``save_seen`` writes."""
    try:
        with safe_open(path, "pt") as file:
            about, extractor = (json.loads(file.metadata()[name]) for name in ("about", "extractor"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, not a dict
        features, others = tensors["features"], (tensors.get("logits"), tensors.get("labels"))
        if any(len(t) != about["num_images"] or not t.isfinite().all() for t in tensors.values()):
            raise ValueError("a row for each image is needed, finite numbers only")
        return Seen(features, *others, about, extractor, torch.empty(0))
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: no features as mar-bench keeps them ({reason}); make them again") from None


@dataclass
class Scores:
    """The parts of a record that say what was measured and how."""

    metrics: dict[str, float] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


class Measure:
    """Scores sets of images against one reference, each metric under its name in records.

    ``heldout`` are real images that nothing was trained on, where there are any. Copies are looked for where the
    reference has the features of all its images; they tell of memorising where those are the training images."""

    def __init__(
        self,
        settings: MetricsSpec,
        reference: Reference,
        heldout: Reference | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ):
        self.settings, self.reference, self.heldout, self.progress = settings, reference, heldout, progress
        self.distance = FrechetDistance(reference.statistics)
        self.heldout_distance = FrechetDistance(heldout.statistics) if heldout else None

    def __call__(self, seen: Seen) -> Scores:
        """Raises UserError where there are too few images for a setting, or the sets do not fit each other."""
        self._check(seen)
        scores, settings, extractor = Scores(), self.settings, seen.extractor
        groups = jackknife_groups(len(seen.features), settings.jackknife_groups, seen.labels)

        def add(metric: str, value: float, without_groups: list[float] | None = None, **others: float) -> None:
            name = metric_name(metric, extractor)
            scores.metrics[name] = value
            doubt: dict[str, Any] = dict(others)
            if without_groups is not None:
                doubt |= {"standard_error": standard_error(without_groups)}
                doubt |= {"method": f"jackknife, {settings.jackknife_groups} groups"}
            if doubt:
                scores.uncertainty[name] = doubt

        def share(metric: str, members: torch.Tensor) -> None:
            parts = [members[groups != g].double().mean().item() for g in range(settings.jackknife_groups)]
            add(metric, members.double().mean().item(), parts)

        self.progress("distances")
        statistics = self._distances(seen, groups, add)
        if seen.logits is not None:
            self.progress("inception score")
            order = shuffled(len(groups))  # once: another shuffle without each group would be chance of its own
            logits, members = seen.logits[order], groups[order]
            found = inception_style_score(logits, settings.is_splits, shuffle=False)
            without = (logits[members != g] for g in range(settings.jackknife_groups))
            parts = [inception_style_score(some, settings.is_splits, shuffle=False).mean for some in without]
            add("is", found.mean, parts, sd_splits=found.sd)
            if extractor["kind"] == "classifier" and seen.labels is not None:  # its classes are the data set's
                share("accuracy", seen.logits.argmax(-1) == seen.labels)
        if self.reference.features is not None:
            self._against_features(seen.features, groups, add)
        if self.reference.complete:
            self.progress("copies")
            share("copied", copied(seen.features, self.reference.features))
        singular = is_singular(statistics) or is_singular(self.reference.statistics)
        scores.protocol = self._protocol(seen, singular)
        return scores

    def real(self) -> dict[str, float]:
        """What the held-out images themselves score against the reference: how near a perfect generator comes.

        What so few images do not allow is left out."""
        assert self.heldout is not None
        settings, reference, heldout = self.settings, self.reference.features, self.heldout.features
        out = {"fd": self.distance(self.heldout.statistics)}
        if reference is not None and min(len(heldout), len(reference)) > settings.neighbours:
            size = min(settings.kid_subset_size, len(heldout), len(reference))
            out["kid"] = kernel_distance(heldout, reference, settings.kid_subsets, size).mean
            out["precision"], out["recall"] = precision_recall(
                generated=heldout, reference=reference, neighbours=settings.neighbours
            )
        if self.reference.complete:
            out["copied"] = copied(heldout, reference).double().mean().item()
        return {metric_name(f"{metric}:real", self.reference.extractor): value for metric, value in out.items()}

    def _check(self, seen: Seen) -> None:
        about, settings, count = self.reference.about, self.settings, len(seen.features)
        theirs, dims = self.reference.extractor, len(self.reference.statistics["mu"])
        if theirs["sha256"] != seen.extractor["sha256"] or dims != seen.features.shape[1]:
            raise UserError(
                f"reference '{about['name']}' was made with extractor '{theirs['name']}' ({theirs['sha256'][:8]}, "
                f"{dims} features), the samples were seen with '{seen.extractor['name']}' "
                f"({seen.extractor['sha256'][:8]}, {seen.features.shape[1]}); take the same for both"
            )
        for key, what in (("size", "pixels"), ("channels", "channels")):
            ours, theirs = (_size(x[key]) for x in (seen.about, about))
            if about[key] is not None and ours != theirs:
                raise UserError(
                    f"generated images have {ours} {what} and those of reference '{about['name']}' {theirs}: nothing "
                    "is resized silently; compare images of one size, or build the reference at this size"
                )
        if (ours := seen.about.get("set_sha256")) is not None and ours == about.get("set_sha256"):
            raise UserError(f"the samples are the images of reference '{about['name']}': there is nothing to compare")
        others = len(self.reference.features) if self.reference.features is not None else count
        for key, most in largest_settings(settings, count, others).items():
            if getattr(settings, key) > most and not (key == "is_splits" and seen.logits is None):
                raise UserError(
                    f"metrics.{key} {getattr(settings, key)} is too large for {count} images against {others}; "
                    f"at most {most} here"
                )

    def _distances(self, seen: Seen, groups: torch.Tensor, add: Callable) -> Statistics:
        parts = [Moments.near(seen.features[:ROWS]) for _ in range(self.settings.jackknife_groups)]
        total = Moments.near(seen.features[:ROWS]).add(seen.features)
        for g, part in enumerate(parts):
            part.add(seen.features[groups == g])
        found = total.statistics()
        without = [total.without(part).statistics() for part in parts]
        add("fd", self.distance(found), [self.distance(w) for w in without])
        if self.heldout_distance:
            add("fd:heldout", self.heldout_distance(found), [self.heldout_distance(w) for w in without])
        return found

    def _against_features(self, features: torch.Tensor, groups: torch.Tensor, add: Callable) -> None:
        settings, real = self.settings, self.reference.features
        self.progress("KID")
        found = kernel_distance(features, real, settings.kid_subsets, settings.kid_subset_size)
        add("kid", found.mean, sd_subsets=found.sd)
        self.progress("precision and recall")

        def both(some: torch.Tensor) -> tuple[float, float]:
            return precision_recall(generated=some, reference=real, neighbours=settings.neighbours)

        values = both(features)
        without = (None, None)
        if len(features) <= RECALL_IMAGES:
            without = zip(*(both(features[groups != g]) for g in range(settings.jackknife_groups)))
        for metric, value, parts in zip(("precision", "recall"), values, without):
            add(metric, value, parts and list(parts))

    def _protocol(self, seen: Seen, singular: bool) -> dict[str, Any]:
        settings, heldout = self.settings, self.heldout
        balance = class_balance(seen.labels.numpy()) if seen.labels is not None else None
        even = balance and balance["most"] - balance["least"] <= 1
        return {
            "extractor": seen.extractor,
            "reference": self.reference.about,
            **({"heldout": heldout.about} if heldout else {}),
            "samples": seen.about,
            "num_generated": seen.about["num_images"],
            "num_reference": self.reference.about["num_images"],
            **({"num_heldout": heldout.about["num_images"]} if heldout else {}),
            "label_mode": "unknown" if balance is None else "balanced" if even else "unbalanced",
            **({"class_balance": balance} if balance else {}),
            "dtype": "float32",
            "settings": {
                "is_splits": settings.is_splits,
                "is_seed": SEED,
                "kid_subsets": settings.kid_subsets,
                "kid_subset_size": settings.kid_subset_size,
                "kid_seed": SEED,
                "kid_kernel": KERNEL,
                "neighbours": settings.neighbours,
                "jackknife_groups": settings.jackknife_groups,
            },
            "singular": singular,
        }


def largest_settings(settings: MetricsSpec, count: int, others: int) -> dict[str, int]:
    """The largest value each setting can have for ``count`` images against the features of ``others``.

    Metrics are taken again without each jackknife group, so it is what the largest leaves that must be enough.
    Raises UserError where that is not even two images."""
    groups = min(settings.jackknife_groups, count)
    left = count - -(-count // groups)
    if left < 2:
        raise UserError(
            f"{count} images are too few: without one of {groups} jackknife groups {left} is left; give more"
        )
    return {
        "jackknife_groups": count,
        "is_splits": left,
        "kid_subset_size": min(count, others),
        "neighbours": min(left, others) - 1,
    }


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
