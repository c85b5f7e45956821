"""The metrics a record can hold: one MetricSpec each, with everything that is specific to the metric.

Metrics are written ``fd``, ``fd:heldout`` (against held-out images) and ``fd:real`` (the held-out images themselves
against the reference); the key in a record also names the extractor (``metric_name``). Start with ``METRICS``.

To add a metric of generated images, add its MetricSpec to ``_GENERATION``, whose order is that of tables. A condition
that no metric has yet also needs an entry in ``CONDITIONS`` of comparable.py. An experiment shows the metric if its
``layout.metrics`` lists it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

LARGEST = 1e15  # far above any measurement, and still printed in full
PAPER_SAMPLES = 50_000  # generated images behind each of the paper's numbers

# conditions that must be equal for two values to compare; records/comparable.py defines how each is read and reported
EXTRACTOR = ("extractor", "dtype")
HELDOUT = ("heldout", "num_heldout")
IMAGES = ("num_generated", "label_mode", "image_size", "channels", "conversion")
TOKENS = ("scored_latents", "skipped_timesteps")  # of a likelihood
NEIGHBOURS = ("reference", "num_features", "neighbours")


@dataclass(frozen=True)
class PaperTolerance:
    """Tolerance for a difference from a published value.

    Up to ``absolute``, or ``share`` of the published value, is a match; up to ``close`` of it is close."""

    share: float = 0.0
    absolute: float = 0.0
    close: float = 0.0


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its names, its format in tables, and the conditions for comparing two values.

    A plugin's needs a name and a label; without conditions it is compared as a distance to the reference is."""

    name: str
    label: str  # its name in tables
    task: str = "generation"  # of the records that hold it, if it is a metric of the main table
    paper_label: str = ""  # the name if the 2015 Inception network measured it; default: label
    prefix: str = ""  # of either label
    conditions: tuple[str, ...] = ()
    lower_is_better: bool = False
    scale: float = 1.0  # tables show the value times this, with the unit behind the name
    unit: str = ""
    unit_of_inception: bool = False  # scale and unit hold for Inception features only
    paper_decimals: int | None = None  # decimals the paper prints; None: as many as the number has
    is_count: bool = False  # parameters, printed as 943M
    depends_on_count: bool = False  # biased by the number of images, which therefore is part of the name
    paired: bool = False  # measured on as many images as the reference keeps features, if those are fewer
    with_inception: bool = True  # False: needs an extractor trained on the data set itself
    tolerance: PaperTolerance | None = None  # of the verdict against the paper; None: no verdict
    optional: bool = False  # newer than the first records: CSV files leave it out where no record has it
    low: float = -LARGEST  # the range of values that a record may hold
    high: float = LARGEST

    @property
    def base(self) -> str:
        """``fd`` of ``fd:heldout``."""
        return self.name.partition(":")[0]

    @property
    def column(self) -> str:
        """``fd_heldout`` of ``fd:heldout``: its column in data frames."""
        return self.name.replace(":", "_")

    def title(self, extractor: Mapping[str, Any], images: int | None, named: bool = True) -> str:
        """``FID``, ``FD-1k mnist5k``, ``held-out FD-1k``: the metric's name in text.

        ``images`` is the number of images measured, or None to leave it out; ``named`` adds the extractor."""
        inception = extractor["kind"] == "inception"
        name = (inception and self.paper_label) or self.label
        if self.depends_on_count and images not in (None, PAPER_SAMPLES):
            name += f"-{thousands(images)}"
        suffix = f" {extractor['name']}" if named and not inception and self.task != "likelihood" else ""
        return f"{self.prefix}{name}{suffix}"

    def scaling(self, inception: bool) -> tuple[float, str]:
        """The factor by which tables show a value, and its unit."""
        return (1.0, "") if self.unit_of_inception and not inception else (self.scale, self.unit)


def thousands(count: int) -> str:
    """``1k`` of 1000, ``1797`` of 1797."""
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def metric_name(metric: str, extractor: Mapping[str, Any]) -> str:
    """The key of a metric in a record: ``fd`` -> ``fid`` for the 2015 Inception network, ``fd_<name>`` otherwise.

    ``extractor`` is the ``metrics.extractor`` block of a resolved spec; the suffix of ``fd:heldout`` comes last. A
    likelihood has no extractor."""
    if metric in LIKELIHOOD_METRICS:
        return metric
    base, _, suffix = metric.partition(":")
    name = {"fd": "fid"}.get(base, base) if extractor["kind"] == "inception" else f"{base}_{extractor['name']}"
    return f"{name}_{suffix}" if suffix else name


def metrics_by_key(extractor: Mapping[str, Any]) -> dict[str, MetricSpec]:
    """The metrics of images by their keys in records that used this extractor; distances first."""
    found = {metric_name(name, extractor): METRICS[name] for name in (*GENERATION_METRICS, *REAL_METRICS)}
    return {**found, **{name: METRICS[name] for name in ("psnr", *LIKELIHOOD_METRICS)}}


@cache
def range_of(key: str, kind: str, name: str) -> tuple[float, float]:
    """The lowest and highest value of a metric by its key in a record; ``kind`` and ``name`` are the extractor's.

    A metric that this version does not know may have any size that can be printed."""
    known = {**METRICS, **metrics_by_key({"kind": kind, "name": name})}
    return (known[key].low, known[key].high) if key in known else (-LARGEST, LARGEST)


def _of_images(name: str, label: str, *conditions: str, **properties: Any) -> MetricSpec:
    return MetricSpec(name, label, conditions=(*EXTRACTOR, *conditions, *IMAGES), **properties)


_UNIT: dict[str, Any] = {"low": 0, "high": 1}
_FRECHET: dict[str, Any] = {"lower_is_better": True, "paper_decimals": 2, "low": -0.1}  # below 0 by rounding only
_DISTANCE: dict[str, Any] = {**_FRECHET, "paper_label": "FID", "depends_on_count": True}
_SCORE: dict[str, Any] = {"paper_decimals": 1, "depends_on_count": True, "low": 0.999, "high": 1e6}  # up to all classes
_SHARE: dict[str, Any] = {**_UNIT, "paper_decimals": 2, "tolerance": PaperTolerance(absolute=0.02)}
_KID: dict[str, Any] = {"scale": 1000, "unit": "x 1000", "unit_of_inception": True}  # its size depends on the features
_MIND: dict[str, Any] = {"lower_is_better": True, "depends_on_count": True, "paired": True, "optional": True, "low": 0}
_COPIED: dict[str, Any] = {**_UNIT, "lower_is_better": True, "scale": 100, "unit": "%", "with_inception": False}
_GENERATION = (
    _of_images("fd", "FD", "reference", "num_reference", **_DISTANCE, tolerance=PaperTolerance(0.03, 0.05, 0.10)),
    _of_images("fd:heldout", "FD", *HELDOUT, **_DISTANCE, prefix="held-out "),
    _of_images("is", "IS", "is_splits", **_SCORE, tolerance=PaperTolerance(0.03, close=0.10)),
    _of_images("kid", "KID", "reference", "kid_subsets", "kid_subset_size", "kid_kernel", lower_is_better=True, **_KID),
    _of_images("mind", "MIND", "reference", "mind_images", "mind_projections", **_MIND),
    _of_images("precision", "Precision", *NEIGHBOURS, **_SHARE),
    _of_images("recall", "Recall", *NEIGHBOURS, **_SHARE),
    _of_images("copied", "copied", "reference", "num_features", **_COPIED),
    _of_images("accuracy", "accuracy", with_inception=False, **_UNIT),
)
_REAL = tuple(
    replace(
        metric,
        name=f"{metric.name}:real",
        prefix="real held-out ",
        conditions=(*(c for c in metric.conditions if c not in IMAGES), *HELDOUT),
        depends_on_count=False,
        tolerance=None,
    )
    for metric in _GENERATION
    if metric.name in ("fd", "kid", "mind", "precision", "recall", "copied")
)
# bits per token, of a density for continuous tokens, which may be negative
_BITS: dict[str, Any] = {"task": "likelihood", "lower_is_better": True, "unit": "bits/token"}
_LIKELIHOOD = (
    MetricSpec("nll", "NLL", prefix="held-out ", conditions=(*TOKENS, "scored_heldout"), **_BITS),
    MetricSpec("nll_train", "NLL", prefix="training ", conditions=(*TOKENS, "scored_train"), **_BITS),
)
_SECONDS = "seconds per image"
_TIME: dict[str, Any] = {"lower_is_better": True, "low": 1e-9, "high": 1e7}
_ONCE = (  # printed once per line of a table, whatever its columns
    MetricSpec("parameters", "parameters", is_count=True, low=1),
    MetricSpec("head_parameters", "head parameters", is_count=True, low=0),
    MetricSpec("rfd", "rFID", paper_label="reconstruction FID against training images", **_FRECHET),
    MetricSpec("rfd:heldout", "held-out rFID", paper_label="reconstruction FID against held-out images", **_FRECHET),
    MetricSpec("latent_noise", "latent noise", **_UNIT),
    MetricSpec("seconds_per_image", _SECONDS, paper_label=f"{_SECONDS} (one A100)", **_TIME),
)
_BESIDE = (  # in records, but not in tables
    MetricSpec("psnr", "PSNR", conditions=IMAGES, low=0, high=200),
    MetricSpec("seconds_per_image_q25", f"{_SECONDS}, lower quartile", **_TIME),
    MetricSpec("seconds_per_image_q75", f"{_SECONDS}, upper quartile", **_TIME),
    MetricSpec("latency_batch1", "seconds of one image alone", **_TIME),
    MetricSpec("peak_memory_mb", "peak memory (MB)", lower_is_better=True, low=0, high=1e9),
    *(MetricSpec(f"share_{part}", f"share of time, {part}", **_UNIT) for part in ("backbone", "head", "decode")),
)

GENERATION_METRICS = [metric.name for metric in _GENERATION]  # of a generation record, as tables order them
REAL_METRICS = tuple(metric.name for metric in _REAL)  # of the held-out images, in a reconstruction record
LIKELIHOOD_METRICS = tuple(metric.name for metric in _LIKELIHOOD)  # of a likelihood record
ONCE_METRICS = tuple(metric.name for metric in _ONCE)
METRICS = {metric.name: metric for metric in (*_GENERATION, *_REAL, *_LIKELIHOOD, *_ONCE, *_BESIDE)}
# other numbers that experiment files and results/paper may publish: counts in the official code, lower bounds
PUBLISHED = (*GENERATION_METRICS, *ONCE_METRICS, "head_parameters_code", "parameters_code", "fd_above")


def register(metric: MetricSpec) -> None:
    """Add a plugin's metric of generated images. Raises ValueError if its name is taken or no name."""
    if metric.name in METRICS or not metric.name.isidentifier():
        raise ValueError(f"a metric's name must be new, of letters, digits and _: {metric.name!r}")
    conditions = metric.conditions or (*EXTRACTOR, "reference", "num_features", *IMAGES)
    METRICS[metric.name] = replace(metric, task="generation", conditions=conditions, optional=True)
    GENERATION_METRICS.append(metric.name)
    range_of.cache_clear()
