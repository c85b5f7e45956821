"""May two records' numbers be set side by side? What a metric's value depends on beside the images themselves.

Each metric has its own list: the number of IS splits says nothing about a distance. Three things do not count:

- seeds of subsets and of splits: another one is another draw of the same quantity;
- names, where the content's SHA-256 is known: the same file may be called otherwise;
- what neither record says: records of one age are alike in what was not yet recorded.

What only one of the two says does count: the other may have been measured in any way (IS was once taken over
images in file order, and no record of that time says so)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mar_bench.records import Record

Protocol = dict[str, Any]  # of a record

# metrics by what they are of, and sets of them by what they depend on
OF_REAL_IMAGES = frozenset(f"{metric}:real" for metric in ("fd", "kid", "precision", "recall", "copied"))
OF_MADE_IMAGES = frozenset({"fd", "fd:heldout", "is", "kid", "precision", "recall", "copied", "accuracy", "psnr"})
ALL = OF_MADE_IMAGES | OF_REAL_IMAGES
WITH_FEATURES = ALL - {"psnr"}
ON_STATISTICS = frozenset({"fd", "fd:real"})
ON_SUBSETS = frozenset({"kid", "kid:real"})
ON_NEIGHBOURS = frozenset({"precision", "recall", "precision:real", "recall:real"})
ON_EVERY_FEATURE = ON_NEIGHBOURS | {"copied", "copied:real"}  # more reference images, nearer neighbours
AGAINST_REFERENCE = ON_STATISTICS | ON_SUBSETS | ON_EVERY_FEATURE
WITH_HELD_OUT = OF_REAL_IMAGES | {"fd:heldout"}

SHA_DIGITS = 8  # enough to tell a few files apart


@dataclass(frozen=True)
class Condition:
    """What must be equal for ``metrics`` to compare.

    ``value`` is taken from a protocol, None where it is not recorded; ``say`` puts the difference of two protocols
    in words. ``of_images`` where it describes the images that were measured, not what they were measured with."""

    noun: str
    metrics: frozenset[str]
    value: Callable[[Protocol], Any]
    say: Callable[[Protocol, Protocol], str]
    of_images: bool = False


def differences(one: Record, other: Record, metric: str) -> list[str]:
    """Why the values of ``metric`` (``fd:heldout``, not the record's own name) must not be compared; [] if they may.

    Both records are of one task. Reasons are short phrases that name the first record's value first."""
    return _differences(one, other, _conditions(metric))


def instrument_differences(one: Record, other: Record, metric: str) -> list[str]:
    """The same for records of different images, as generated ones and reconstructions: extractor, reference and
    settings count; how many images there are and how they were made does not."""
    return _differences(one, other, [c for c in _conditions(metric) if not c.of_images])


def _conditions(metric: str) -> list[Condition]:
    if metric not in ALL:
        raise ValueError(f"no metric '{metric}'")
    return [condition for condition in CONDITIONS if metric in condition.metrics]


def _differences(one: Record, other: Record, conditions: list[Condition]) -> list[str]:
    reasons, half_known = [], []
    for condition in conditions:
        values = condition.value(one.protocol), condition.value(other.protocol)
        if (values[0] is None) != (values[1] is None):
            half_known.append(condition.noun)
        elif values[0] != values[1]:
            reasons.append(condition.say(one.protocol, other.protocol))
    return reasons + [f"recorded for one of them only: {', '.join(half_known)}"] * bool(half_known)


# --- what must be equal ---------------------------------------------------------------------------------


def _get(protocol: Protocol, path: str) -> Any:
    """``samples.size`` of a protocol; lists as tuples, so that a record read from JSON equals one just made."""
    found: Any = protocol
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return tuple(found) if isinstance(found, list) else found


def _field(noun: str, metrics: frozenset[str], path: str, phrase: str, of_images: bool = False) -> Condition:
    """``phrase`` is ``{} against {} generated images``; sizes are written 32x32."""

    def text(protocol: Protocol) -> str:
        value = _get(protocol, path)
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def value(protocol: Protocol) -> Any:
        return _get(protocol, path)

    return Condition(noun, metrics, value, lambda a, b: phrase.format(text(a), text(b)), of_images)


def _content(noun: str, metrics: frozenset[str], block: str, word: str = "another") -> Condition:
    """A network or a set of images, equal by content where that is recorded, else by name."""

    def value(protocol: Protocol) -> Any:
        return _get(protocol, f"{block}.sha256") or _get(protocol, f"{block}.name")

    def say(one: Protocol, other: Protocol) -> str:
        names = [str(_get(p, f"{block}.name") or "unnamed") for p in (one, other)]
        digests = [(_get(p, f"{block}.sha256") or "")[:SHA_DIGITS] or "unknown" for p in (one, other)]
        if names[0] == names[1]:
            return f"{word} {noun} (sha256 {digests[0]} against {digests[1]})"
        return f"{word} {noun} ({names[0]} against {names[1]})"

    return Condition(noun, metrics, value, say)


def _subsets(protocol: Protocol) -> tuple[str, str] | None:
    """How many subsets of which size KID is the mean of, and its kernel; None where that is not recorded."""
    count, size, kernel = (_get(protocol, f"settings.kid_{key}") for key in ("subsets", "subset_size", "kernel"))
    return None if count is None or size is None else (f"{count} subsets of {size}", f"kernel {kernel}")


def _say_subsets(one: Protocol, other: Protocol) -> str:
    (first, first_kernel), (second, second_kernel) = _subsets(one), _subsets(other)
    if first_kernel != second_kernel:
        first, second = f"{first} ({first_kernel})", f"{second} ({second_kernel})"
    return f"KID over {first} against {second}"


CONDITIONS = (
    _content("feature extractor", WITH_FEATURES, "extractor"),
    _field("precision of the numbers", WITH_FEATURES, "dtype", "features in {} against {}"),
    _content("reference", AGAINST_REFERENCE, "reference"),
    _field("number of reference images", ON_STATISTICS, "num_reference", "{} against {} reference images"),
    _field(
        "number of reference features",
        ON_EVERY_FEATURE,
        "reference.num_features",
        "neighbours among {} against {} reference images",
    ),
    _content("held-out images", WITH_HELD_OUT, "heldout", "other"),
    _field("number of held-out images", WITH_HELD_OUT, "num_heldout", "{} against {} held-out images"),
    _field("number of IS splits", frozenset({"is"}), "settings.is_splits", "IS over {} against {} splits"),
    Condition("subsets of KID", ON_SUBSETS, _subsets, _say_subsets),
    _field("neighbours", ON_NEIGHBOURS, "settings.neighbours", "the radius of {} against {} neighbours"),
    _field("number of images", OF_MADE_IMAGES, "num_generated", "{} against {} generated images", True),
    _field("labels", OF_MADE_IMAGES, "label_mode", "labels {} against {}", True),
    _field("image size", OF_MADE_IMAGES, "samples.size", "images of {} against {}", True),
    _field("channels", OF_MADE_IMAGES, "samples.channels", "{} against {} channels", True),
    _field("conversion to bytes", OF_MADE_IMAGES, "samples.conversion", "converted by {} against {}", True),
)
