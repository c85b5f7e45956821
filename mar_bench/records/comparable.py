"""Which recorded values may be compared: everything that a metric depends on, except the images, must be equal.

Each metric has its own conditions (``MetricSpec.conditions``): the number of IS splits does not matter to a distance.
Seeds of subsets and splits are not conditions (another seed is another draw of the same quantity), nor are names where
the SHA-256 of the content is known, nor values missing from both records. A value that only one record has counts as
a difference, since the protocol of the other is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mar_bench.records.metrics import IMAGES, METRICS
from mar_bench.records.record import Record

# condition -> its path in a protocol (``samples.size``), and the text of a difference, filled with both values
CONDITIONS = {
    "extractor": ("extractor", "another feature extractor ({} against {})"),
    "dtype": ("dtype", "features in {} against {}"),
    "reference": ("reference", "another reference ({} against {})"),
    "num_reference": ("num_reference", "{} against {} reference images"),
    # with more reference images the neighbours are nearer
    "num_features": ("reference.num_features", "neighbours among {} against {} reference images"),
    "heldout": ("heldout", "other held-out images ({} against {})"),
    "num_heldout": ("num_heldout", "{} against {} held-out images"),
    "is_splits": ("settings.is_splits", "IS over {} against {} splits"),
    "kid_subsets": ("settings.kid_subsets", "KID over {} against {} subsets"),
    "kid_subset_size": ("settings.kid_subset_size", "KID over subsets of {} against {} images"),
    "kid_kernel": ("settings.kid_kernel", "KID with kernel {} against {}"),
    "mind_images": ("settings.mind_images", "MIND of {} against {} images"),
    "mind_projections": ("settings.mind_projections", "MIND over {} against {} projections"),
    "neighbours": ("settings.neighbours", "the radius of {} against {} neighbours"),
    "num_generated": ("num_generated", "{} against {} generated images"),
    "label_mode": ("label_mode", "labels {} against {}"),
    "image_size": ("samples.size", "images of {} against {}"),
    "channels": ("samples.channels", "{} against {} channels"),
    "conversion": ("samples.conversion", "converted by {} against {}"),
    "scored_latents": ("scored.latents", "likelihoods of other tokens (latents {} against {})"),
    "skipped_timesteps": ("skipped_timesteps", "bounds without the {} against {} noisiest denoising steps"),
    "scored_heldout": ("scored.heldout", "{} against {} held-out images"),
    "scored_train": ("scored.train", "{} against {} training images"),
}
CONTENT = ("extractor", "reference", "heldout")  # blocks of the protocol, compared by sha256 or, without one, by name
_PATHS = {name: tuple(path.split(".")) for name, (path, _) in CONDITIONS.items()}


def differences(one: Record, other: Record, metric: str) -> list[str]:
    """Why the values of ``metric`` (``fd:heldout``, not the key in a record) must not be compared; [] if they may.

    Both records have the same task. Each reason is a short phrase with the first record's value first."""
    return _differences(one, other, METRICS[metric].conditions)


def instrument_differences(one: Record, other: Record, metric: str) -> list[str]:
    """The same for records of different images, such as generated ones and reconstructions: extractor, reference and
    settings must be equal; the number and the origin of the images may differ."""
    return _differences(one, other, [name for name in METRICS[metric].conditions if name not in IMAGES])


def conditions(record: Record) -> dict[str, Any]:
    """The values of all conditions: a metric of two records may be compared if and only if its conditions are equal."""
    return {name: _compared(name, _get(record.protocol, name)) for name in CONDITIONS}


def _differences(one: Record, other: Record, names: Iterable[str]) -> list[str]:
    reasons, half_known = [], []
    for name in names:
        phrase = CONDITIONS[name][1]
        found = [_get(record.protocol, name) for record in (one, other)]
        values = [_compared(name, value) for value in found]
        if (values[0] is None) != (values[1] is None):
            half_known.append(name)
        elif values[0] != values[1]:
            reasons.append(phrase.format(*(_described(*found) if name in CONTENT else found)))
    return reasons + [f"recorded for one of them only: {', '.join(half_known)}"] * bool(half_known)


def _get(protocol: dict[str, Any], name: str) -> Any:
    """A condition's value in a protocol; sizes as ``32x32``, so that a record read from JSON equals one just made."""
    found: Any = protocol
    for key in _PATHS[name]:
        found = found.get(key) if isinstance(found, dict) else None
    return "x".join(map(str, found)) if isinstance(found, (list, tuple)) else found


def _compared(name: str, value: Any) -> Any:
    if name in CONTENT:
        return (value.get("sha256") or value.get("name")) if isinstance(value, dict) else None
    return str(value) if isinstance(value, dict) else value


def _described(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str]:
    """Two networks or sets of images by name or, if the names are equal, by the start of their SHA-256."""
    names = [str(block.get("name") or "unnamed") for block in (one, other)]
    digests = [(block.get("sha256") or "unknown")[:8] for block in (one, other)]
    return (names[0], names[1]) if names[0] != names[1] else (f"sha256 {digests[0]}", digests[1])
