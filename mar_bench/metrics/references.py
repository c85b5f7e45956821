"""References: statistics and features of real images, in memory and in files that identify their images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mar_bench.data.datasets import Progress
from mar_bench.data.image_sets import Digest, check_digests, open_npz
from mar_bench.data.npz import REFERENCE, STATISTICS, kind_of, read_arrays
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import Moments, Statistics
from mar_bench.utils.errors import UserError, some
from mar_bench.utils.files import reading, replacing, sha256_of
from mar_bench.utils.noise import SHARED, philox

ABOUT = {"kind", "name", "sha256", "num_images", "num_features", "size", "channels"}
ARRAYS = ("mu", "sigma", "count", "features", "meta", "digests")
HINT = "build it again (if it is a run's, delete its folder and run again)"


@dataclass(frozen=True)
class Reference:
    """``features`` (n, F) belong to all images or to a random subset; None if only the statistics are known.

    ``about`` is stored in records and has at least the keys ABOUT; ``num_images`` is None if unknown."""

    statistics: Statistics
    features: torch.Tensor | None
    about: dict[str, Any]
    extractor: dict[str, Any]  # FeatureSpace.about; of a run also the figures of its acceptance test
    digests: np.ndarray | None = None  # of its images, as ``Digest.each``, if known

    @property
    def complete(self) -> bool:
        """Whether the features of all images are present."""
        return self.features is not None and len(self.features) == self.about["num_images"]

    def save(self, path: Path) -> None:
        meta = {"about": self.about, "extractor": self.extractor}
        arrays: dict[str, Any] = {**self.statistics, "meta": np.array(json.dumps(meta))}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        if self.digests is not None:
            arrays["digests"] = self.digests
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def build_reference(
    batches: Iterable[torch.Tensor], count: int, space: FeatureSpace, most: int, kind: str, name: str
) -> Reference:
    """A reference of ``count`` uint8 images in batches (B, C, H, W) that keeps at most ``most`` features."""
    chosen = _subset(count, most)
    moments, kept, digest = None, [], Digest()
    for images in batches:
        features, _ = space.extract(images)
        moments = (moments or Moments.near(features)).add(features)
        kept.append(features[chosen[digest.count : digest.count + len(features)]])
        digest.update(images)
    assert moments is not None and digest.count == count
    about = {"kind": kind, "name": name, **digest.about, "num_features": min(count, most)}
    return Reference(moments.statistics(), torch.cat(kept), about, space.about, digest.each)


def _subset(count: int, most: int) -> torch.Tensor:
    """bool (count,): a random subset of at most ``most``."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[philox(0, "reference", SHARED, 0).permutation(count)[:most]] = True
    return chosen


def read_reference(path: Path) -> Reference:
    """The reference that ``Reference.save`` wrote. Raises UserError if the file is anything else."""
    stored = read_arrays(path, ARRAYS, HINT)
    with reading(path, "reference", HINT):
        meta, features = json.loads(str(stored["meta"])), stored.get("features")
        about, extractor = dict(meta["about"]), dict(meta["extractor"])
        if missing := ABOUT - about.keys() | {"kind", "name", "sha256"} - extractor.keys():
            raise ValueError(f"meta has no {', '.join(sorted(missing))}")
        if stored["count"].ndim or stored["count"].dtype.kind not in "iu":
            raise ValueError("count is not an integer")
        _check_statistics(stored)
        if features is not None:
            shape = (about["num_features"], len(stored["mu"]))
            if features.dtype != np.float32 or features.shape != shape or not np.isfinite(features).all():
                found = f"{features.dtype} {features.shape}"
                raise ValueError(f"features are {found}, expected finite floats of 32 bits {shape}")
            features = torch.from_numpy(features)
        if (digests := stored.get("digests")) is not None:
            check_digests(digests)
    return Reference({key: stored[key] for key in ("mu", "sigma", "count")}, features, about, extractor, digests)


def load_reference(path: Path, name: str, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    """Load an npz of ``Reference.save`` or in ADM's format: images (``arr_0``), statistics (``mu``, ``sigma``) or both.

    ADM's statistics are used with Inception only; any other extractor needs the images. At most ``most`` features are
    kept. Raises UserError if the file is damaged, was made with another extractor or lacks required arrays."""
    kind, file_sha256 = kind_of(path), sha256_of(path)
    if kind == REFERENCE:
        found = read_reference(path)
        theirs = found.extractor
        if theirs["sha256"] != space.sha256:
            raise UserError(
                f"{path}: made with extractor '{theirs['name']}' (sha256 {theirs['sha256'][:8]}), not with "
                f"'{space.about['name']}' ({space.sha256[:8]}); use that extractor or build the reference again"
            )
        features, about = found.features, {**found.about, "name": name, "file_sha256": file_sha256}
        if features is not None and len(features) > most:
            features, about["num_features"] = features[_subset(len(features), most)], most
        return replace(found, features=features, about=about)
    stored = read_arrays(path, ARRAYS, HINT)
    if has_statistics := kind == STATISTICS:
        with reading(path, "reference", HINT):
            _check_statistics(stored)
    has_statistics &= space.about["kind"] == "inception"
    if "arr_0" in stored:
        images = open_npz(path)
        found = build_reference(images.batches(progress), images.count, space, most, "file", name)
    elif has_statistics:
        about = {"kind": "file", "name": name, "num_images": None, "num_features": 0, "size": None, "channels": None}
        found = Reference({}, None, about, space.about)
    else:
        raise UserError(
            f"{path}: not a reference for extractor '{space.about['name']}': it holds only "
            f"{some(stored) or 'nothing'}; build one from images with mar-bench reference build"
        )
    found.about["sha256"] = file_sha256
    if has_statistics:  # of more images than the file holds
        statistics = {key: stored[key].astype(np.float64) for key in ("mu", "sigma")}
        statistics["count"] = np.array(len(statistics["mu"]) + 1)  # unknown; surely large enough for full rank
        about = found.about | {"num_images": None, "statistics": "of the file"}
        found = replace(found, statistics=statistics, about=about)
    return found


def _check_statistics(stored: dict[str, Any]) -> None:
    mu, sigma = stored["mu"], stored["sigma"]
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or not {mu.dtype.kind, sigma.dtype.kind} <= set("fiu"):
        raise ValueError("expected numbers mu (F,) and sigma (F, F)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("mu or sigma are not finite")
