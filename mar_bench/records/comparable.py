"""Which recorded values may be compared: everything a metric depends on beside the images must be equal.

Each metric has its own conditions (``MetricSpec.conditions``): the number of IS splits does not matter to a distance.
Three things are no condition:

- seeds of subsets and splits: another seed is another draw of the same quantity;
- names, where the SHA-256 of the content is known: the same file may have another name;
- whatever neither record holds: records of one age agree in what was not recorded yet.

What only one of the two records holds is one: the other may have been measured in any way (IS was once computed over
images in file order, and no record of that time says so)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mar_bench.records.metrics import IMAGES, METRICS
from mar_bench.records.record import Record

Protocol = dict[str, Any]  # of a record
SHA_DIGITS = 8  # enough to tell a few files apart


@dataclass(frozen=True)
class Condition:
    """A property of a protocol that must be equal: ``value`` reads it (None: not recorded), ``describe`` puts the
    difference of two protocols in words."""

    noun: str
    value: Callable[[Protocol], Any]
    describe: Callable[[Protocol, Protocol], str]


def differences(one: Record, other: Record, metric: str) -> list[str]:
    """Why the values of ``metric`` (``fd:heldout``, not the key in a record) must not be compared; [] if they may.

    Both records are of one task. Each reason is a short phrase that gives the first record's value first."""
    return _differences(one, other, METRICS[metric].conditions)


def instrument_differences(one: Record, other: Record, metric: str) -> list[str]:
    """The same for records of different images, such as generated ones and reconstructions: extractor, reference and
    settings must be equal; the number of images and how they were made need not."""
    return _differences(one, other, [name for name in METRICS[metric].conditions if name not in IMAGES])


def _differences(one: Record, other: Record, names: Iterable[str]) -> list[str]:
    reasons, half_known = [], []
    for condition in [CONDITIONS[name] for name in names]:
        values = condition.value(one.protocol), condition.value(other.protocol)
        if (values[0] is None) != (values[1] is None):
            half_known.append(condition.noun)
        elif values[0] != values[1]:
            reasons.append(condition.describe(one.protocol, other.protocol))
    return reasons + [f"recorded for one of them only: {', '.join(half_known)}"] * bool(half_known)


def _get(protocol: Protocol, path: str) -> Any:
    """``samples.size`` of a protocol; lists as tuples, so that a record read from JSON equals one just made."""
    found: Any = protocol
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(found) if isinstance(found, list) else found


def _field(noun: str, path: str, phrase: str) -> Condition:
    """``phrase`` is ``{} against {} generated images``; sizes are written 32x32."""

    def text(protocol: Protocol) -> str:
        value = _get(protocol, path)
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return Condition(noun, lambda protocol: _get(protocol, path), lambda a, b: phrase.format(text(a), text(b)))


def _content(noun: str, block: str, word: str = "another") -> Condition:
    """A network or a set of images, compared by content where that is recorded, else by name."""

    def value(protocol: Protocol) -> Any:
        return _get(protocol, f"{block}.sha256") or _get(protocol, f"{block}.name")

    def describe(one: Protocol, other: Protocol) -> str:
        names = [str(_get(p, f"{block}.name") or "unnamed") for p in (one, other)]
        digests = [(_get(p, f"{block}.sha256") or "")[:SHA_DIGITS] or "unknown" for p in (one, other)]
        if names[0] == names[1]:
            return f"{word} {noun} (sha256 {digests[0]} against {digests[1]})"
        return f"{word} {noun} ({names[0]} against {names[1]})"

    return Condition(noun, value, describe)


def _subsets(protocol: Protocol) -> tuple[str, str] | None:
    """The number and size of KID's subsets, and its kernel; None where that is not recorded."""
    count, size, kernel = (_get(protocol, f"settings.kid_{key}") for key in ("subsets", "subset_size", "kernel"))
    return None if count is None or size is None else (f"{count} subsets of {size}", f"kernel {kernel}")


def _describe_subsets(one: Protocol, other: Protocol) -> str:
    (first, first_kernel), (second, second_kernel) = (_subsets(p) or ("", "") for p in (one, other))
    if first_kernel != second_kernel:
        first, second = f"{first} ({first_kernel})", f"{second} ({second_kernel})"
    return f"KID over {first} against {second}"


CONDITIONS = {
    "extractor": _content("feature extractor", "extractor"),
    "dtype": _field("precision of the numbers", "dtype", "features in {} against {}"),
    "reference": _content("reference", "reference"),
    "num_reference": _field("number of reference images", "num_reference", "{} against {} reference images"),
    "num_features": _field(  # with more reference images the neighbours are nearer
        "number of reference features", "reference.num_features", "neighbours among {} against {} reference images"
    ),
    "heldout": _content("held-out images", "heldout", "other"),
    "num_heldout": _field("number of held-out images", "num_heldout", "{} against {} held-out images"),
    "is_splits": _field("number of IS splits", "settings.is_splits", "IS over {} against {} splits"),
    "kid_subsets": Condition("subsets of KID", _subsets, _describe_subsets),
    "neighbours": _field("neighbours", "settings.neighbours", "the radius of {} against {} neighbours"),
    "num_generated": _field("number of images", "num_generated", "{} against {} generated images"),
    "label_mode": _field("labels", "label_mode", "labels {} against {}"),
    "image_size": _field("image size", "samples.size", "images of {} against {}"),
    "channels": _field("channels", "samples.channels", "{} against {} channels"),
    "conversion": _field("conversion to bytes", "samples.conversion", "converted by {} against {}"),
}
