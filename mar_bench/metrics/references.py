"""References: real images as an extractor sees them, in memory and as a file that knows what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mar_bench.data.datasets import Progress
from mar_bench.data.image_sets import Digest, open_npz
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import Moments, Statistics
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import replacing, sha256_of
from mar_bench.utils.noise import SHARED, philox


@dataclass(frozen=True)
class Reference:
    """``features`` (n, F) are those of all images, or of a random part of them: enough for what needs more than
    statistics, and None where there are only statistics.

    ``about`` goes into records: kind, name, sha256, num_images (None: unknown), num_features, size, channels."""

    statistics: Statistics
    features: torch.Tensor | None
    about: dict[str, Any]
    extractor: dict[str, Any]  # FeatureSpace.about

    @property
    def complete(self) -> bool:
        return self.features is not None and len(self.features) == self.about["num_images"]

    def save(self, path: Path) -> None:
        arrays = {**self.statistics, "meta": np.array(json.dumps({"about": self.about, "extractor": self.extractor}))}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def build_reference(
    batches: Iterable[torch.Tensor], count: int, space: FeatureSpace, most: int, kind: str, name: str
) -> Reference:
    """Of ``count`` uint8 images that come in batches (B, C, H, W); the features of at most ``most`` are kept."""
    chosen = _chosen(count, most)
    moments, kept, digest, begin = None, [], Digest(), 0
    for images in batches:
        features, _ = space.extract(images)
        moments = (moments or Moments.near(features)).add(features)
        kept.append(features[chosen[begin : begin + len(features)]])
        digest.update(images)
        begin, shape = begin + len(images), images.shape
    assert begin == count
    about = {
        "kind": kind,
        "name": name,
        "sha256": digest.sha256,
        "set_sha256": digest.set_sha256,
        "num_images": count,
        "num_features": min(count, most),
        "size": list(shape[2:]),
        "channels": shape[1],
    }
    return Reference(moments.statistics(), torch.cat(kept), about, space.about)


def _chosen(count: int, most: int) -> torch.Tensor:
    """bool (count,): at most ``most`` of them, at random."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[philox(0, "reference", SHARED, 0).permutation(count)[:most]] = True
    return chosen


def read_reference(path: Path) -> Reference:
    """What a stage has saved. Raises UserError where the file is not that."""
    try:
        return _ours(path, _arrays(path))
    except UserError as error:
        raise UserError(f"{error}; if another version of mar_bench made it: delete its folder and run again") from None


def is_reference(path: Path) -> bool:
    """Whether a file is one that ``Reference.save`` wrote."""
    try:
        return "meta" in _arrays(path)
    except UserError:
        return False


def load_reference(path: Path, name: str, space: FeatureSpace, most: int, progress: Progress) -> Reference:
    """From an npz that ``Reference.save`` wrote, or from ADM's: images (``arr_0``), statistics, or both.

    ADM's statistics are of Inception's features; with another extractor they are left aside and its images are taken.
    Raises UserError where the file is damaged, of another extractor, or has not what is needed."""
    stored = _arrays(path)
    if "meta" in stored:
        reference = _ours(path, stored)
        theirs = reference.extractor
        if theirs["sha256"] != space.sha256:
            raise UserError(
                f"{path}: made with extractor '{theirs['name']}' (sha256 {theirs['sha256'][:8]}), not with "
                f"'{space.about['name']}' ({space.sha256[:8]}); take that extractor or build it again"
            )
        about = {**reference.about, "name": name, "file_sha256": sha256_of(path)}
        features = reference.features
        if features is not None and len(features) > most:
            features = features[_chosen(len(features), most)]
            about["num_features"] = most
        return replace(reference, features=features, about=about)
    inception, statistics = space.about["kind"] == "inception", {"mu", "sigma"} <= set(stored)
    if statistics:
        _check_statistics(path, stored)
    reference = None
    if "arr_0" in stored:
        images = open_npz(path)
        reference = build_reference(images.batches(progress), images.count, space, most, "file", name)
    elif not (inception and statistics):
        what = f"{', '.join(stored) or 'nothing'} alone"
        raise UserError(
            f"{path}: no reference for extractor '{space.about['name']}': it holds {what}; mar-bench reference build "
            "makes one from images"
        )
    about = {"kind": "file", "name": name, "sha256": sha256_of(path), "size": None, "channels": None}
    about |= {"num_images": None, "num_features": 0}
    if reference is not None:
        about = {**reference.about, "sha256": about["sha256"]}
    if inception and statistics:
        about |= {"num_images": None, "statistics": "of the file"}  # of more images than are in it
        found = {"mu": stored["mu"].astype(np.float64), "sigma": stored["sigma"].astype(np.float64)}
        found["count"] = np.array(len(found["mu"]) + 1)  # unknown, and surely enough
        return Reference(found, reference and reference.features, about, space.about)
    return Reference(reference.statistics, reference.features, about, space.about)


def _arrays(path: Path) -> dict[str, Any]:
    """All arrays but the images, whose place is held by None. Raises UserError where the file is not a whole npz."""
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("a single array")
        with stored:
            arrays = {k: None if k == "arr_0" else stored[k] for k in stored.files}
        if foreign := [k for k, v in arrays.items() if not (v is None or isinstance(v, np.ndarray))]:
            raise ValueError(f"{foreign[0]} is no array")
        return arrays
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # zipfile's, zlib's, tokenize's: of a damaged file numpy lets them all through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a whole npz file ({reason}); get it or build it again") from None


def _ours(path: Path, stored: dict[str, Any]) -> Reference:
    try:
        meta = json.loads(str(stored["meta"]))
        about, extractor = dict(meta["about"]), dict(meta["extractor"])
        assert {"sha256", "name", "kind"} <= extractor.keys()
        assert {"kind", "name", "sha256", "num_images", "num_features", "size", "channels"} <= about.keys()
        assert stored["count"].ndim == 0 and stored["count"].dtype.kind in "iu"
    except (ValueError, TypeError, LookupError, AssertionError):
        raise UserError(f"{path}: not what mar-bench reference build writes; build it again") from None
    _check_statistics(path, stored)
    found = {k: stored[k] for k in ("mu", "sigma", "count")}
    if "features" not in stored:
        return Reference(found, None, about, extractor)
    features, dims = stored["features"], len(found["mu"])
    if features.dtype.kind != "f" or features.shape != (about["num_features"], dims):
        raise UserError(f"{path}: features {features.dtype} {features.shape} do not fit; build it again")
    if not np.isfinite(features).all():
        raise UserError(f"{path}: features that are not finite; build it again")
    return Reference(found, torch.from_numpy(features), about, extractor)


def _check_statistics(path: Path, stored: dict[str, Any]) -> None:
    mu, sigma = stored.get("mu"), stored.get("sigma")
    whole = mu is not None and sigma is not None and mu.ndim == 1 and sigma.shape == (len(mu), len(mu))
    if not whole or mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise UserError(f"{path}: mu (F,) and sigma (F, F) are needed; build it again")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: mu or sigma holds numbers that are not finite; build it again")
