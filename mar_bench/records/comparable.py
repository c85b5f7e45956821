"""May two records' numbers be set side by side? What a metric's value depends on beside the images themselves.

Each metric has its own list: the number of IS splits says nothing about a distance. Three things do not count:

- seeds of subsets and of splits: another one is another draw of the same quantity;
- names, where the content's SHA-256 is known: the same file may be called otherwise;
- what neither record says: records of one age are alike in what was not yet recorded.

What only one of the two says does count: the other may have been measured in any way (IS was once taken over
images in file order, and no record of that time says so).

Two records of one id are two measurements of the same thing: ``disagreement`` says whether chance and rounding
explain what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mar_bench.records.record import Record, metric_name

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
SHARES = ON_NEIGHBOURS | {"copied", "copied:real", "accuracy"}  # of images, each of which counts or does not

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


# --- two measurements of one id -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far two measurements of one metric may be apart: the largest of what its fields allow.

    ``relative`` to the larger value; of metrics that are shares of images in its place ``share``, absolute, or
    ``images`` of them that count on one side only; ``errors`` standard errors of the difference (the jackknife's)."""

    between: str
    relative: float = 0.0
    share: float = 0.0
    images: int = 0
    errors: float = 0.0


# CPU, host, libraries, threads, commit and the way the work was split are the same: all numbers are functions of seeds,
# so nothing is left that may differ. The host counts, as virtual machines of unlike processors are called alike, and so
# do cores, which numpy's eigenvalues use. On a GPU sums have no fixed order.
SAME_MACHINE = Tolerance("same machine, same code")
# The images are equal to the last bit, so only the measuring was rounded otherwise. With another number of threads
# distances and scores moved by 1e-9 to 1e-7 of their value; across machines the golden metrics are held to 1e-4. Of a
# share, an image at the edge of a ball falls on the other side: one in a thousand does between float32 and float64. A
# distance near 0 is the difference of large numbers: there a hundredth of the standard error is nothing.
SAME_IMAGES = Tolerance("same images", relative=1e-4, share=2e-3, images=2, errors=0.01)
# The images differ, so the weights that drew them were rounded otherwise, which some hundred steps of training magnify
# to another sample of what the recipe gives: at tiny scale the same seeds with split batches moved distances by 3 % and
# precision by 0.03, up to 1.7 standard errors; among the trainings on three seeds of Table 1 3 of 48 pairs are more
# than 3 of them apart in some metric, and none 4. With many images, 3 % and 0.02 are what the paper's own numbers are
# allowed (report/verdict.py).
OTHER_IMAGES = Tolerance("other images, rounding magnified", relative=0.03, share=0.02, images=2, errors=4.0)


@dataclass(frozen=True)
class Disagreement:
    """What keeps two records of one id from being one result: a reason, and a metric with its two values.

    ``metric`` is the records' own name; a value is None where a record has none."""

    reason: str
    metric: str | None = None
    values: tuple[float | None, float | None] = (None, None)


def disagreement(one: Record, other: Record) -> Disagreement | None:
    """Why two results of one id cannot both hold; None where they may.

    They must have been measured alike, extractor and counts included, and have the same metrics. Seconds are never
    the same twice, so of speed the protocol alone counts; else the metric furthest beyond its tolerance is named."""
    both = {key: (one.metrics.get(key), other.metrics.get(key)) for key in {**one.metrics, **other.metrics}}
    if one.task != other.task:
        return Disagreement(f"a {one.task} and a {other.task} record")
    if one.task == "speed":
        unlike = [key for key in {**one.protocol, **other.protocol} if one.protocol.get(key) != other.protocol.get(key)]
        said = [f"{key} {one.protocol.get(key)} against {other.protocol.get(key)}" for key in unlike]
        key = "seconds_per_image"
        return Disagreement("; ".join(said), key, both.get(key, (None, None))) if said else None
    metrics = {key: metric for key, metric in _metrics_of(one).items() if key in both}
    for key, metric in metrics.items():
        if reasons := differences(one, other, metric):
            return Disagreement("; ".join(reasons), key, both[key])
    for key, values in both.items():
        if None in values:
            return Disagreement("only one of them has this metric", key, values)
    worst, excess = None, 1.0
    for key, (first, second) in both.items():
        tolerance = tolerance_of(one, other, metrics.get(key))
        allowed = _allowed(tolerance, one, other, key, metrics.get(key))
        apart = abs(first - second)
        if apart > excess * allowed * (1 + 1e-9):  # so that 0.80 - 0.78 is 0.02
            excess = apart / allowed if allowed else math.inf
            reason = f"{apart:.3g} apart, {allowed:.3g} allowed ({tolerance.between})"
            worst = Disagreement(reason, key, (first, second))
            if not allowed:
                break
    return worst


def tolerance_of(one: Record, other: Record, metric: str | None) -> Tolerance:
    """The tolerance that the circumstances of two measurements leave to a metric."""
    if (here := _circumstances(one)) is not None and here == _circumstances(other):
        return SAME_MACHINE
    digests = [_get(record.protocol, "samples.sha256") for record in (one, other)]
    same = None not in digests and digests[0] == digests[1]
    return SAME_IMAGES if same or metric in OF_REAL_IMAGES else OTHER_IMAGES


def largest_difference(metrics: dict[str, float], others: dict[str, float]) -> tuple[str | None, float]:
    """The metric in which two measurements are furthest apart, relative to the larger value, and how far."""
    sizes = {key: max(abs(metrics[key]), abs(others[key])) for key in metrics if key in others}
    apart = {key: abs(metrics[key] - others[key]) / size if size else 0.0 for key, size in sizes.items()}
    worst = max(apart, key=apart.get, default=None)
    return worst, apart.get(worst, 0.0)


def _metrics_of(record: Record) -> dict[str, str]:
    """The records' own names of metrics -> ours, ``fid_heldout`` -> ``fd:heldout``; distances first."""
    extractor = ((record.spec.get("metrics") or {}).get("extractor")) or {"kind": "", "name": ""}
    order = sorted(ALL - {"psnr"}, key=lambda metric: (not metric.startswith("fd"), metric))
    return {**{metric_name(metric, extractor): metric for metric in order}, "psnr": "psnr"}


def _circumstances(record: Record) -> list | None:
    """All that a number may depend on beside its id; None where it is not all known, or leaves the last digits open."""
    made, compute = record.provenance, record.spec.get("compute") or {}
    git = made.get("git") or {}
    names = ("host", "device", "platform", "cores", "threads", "versions")
    known = [made.get(name) for name in names] + [git.get("commit"), compute.get("device")]
    if None in known or git.get("dirty") or compute["device"] != "cpu":
        return None
    split = {key: value for key, value in compute.items() if key != "checkpoint_every"}
    return [*known, split, record.training.get("processes", 1)]


def _allowed(tolerance: Tolerance, one: Record, other: Record, key: str, metric: str | None) -> float:
    """How far the values of ``key`` may be apart."""
    if metric in SHARES:
        of = "reference.num_features" if metric in ("recall", "recall:real") else "num_generated"
        usual = max(tolerance.share, tolerance.images / (_get(one.protocol, of) or math.inf))
    else:
        usual = tolerance.relative * max(abs(one.metrics[key]), abs(other.metrics[key]))
    chance = math.hypot(*(_standard_error(record, key) for record in (one, other)))
    return max(usual, tolerance.errors * chance)


def _standard_error(record: Record, key: str) -> float:
    """The jackknife's; of KID that of its subsets, which falls with the root of the number of images; else 0."""
    known = record.uncertainty.get(key) or {}
    if "standard_error" in known:
        return known["standard_error"]
    size, count = (_get(record.protocol, path) for path in ("settings.kid_subset_size", "num_generated"))
    return known["sd_subsets"] * math.sqrt(size / count) if "sd_subsets" in known and size and count else 0.0
