"""The schema of an experiment file around its specs: axes, layout, figure, published numbers, orderings, sweeps."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from mar_bench.config import plugins
from mar_bench.config.parse import (
    NOT_EMPTY,
    Identifier,
    KeyPathError,
    Line,
    Name,
    OneOf,
    Rule,
    Seed,
    Word,
    between,
    parse,
)
from mar_bench.config.spec import CHOICE_SEED, SamplingSpec
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, METRICS, ONCE_METRICS
from mar_bench.utils.errors import did_you_mean

KNOBS = tuple(f"sampling.{f.name}" for f in fields(SamplingSpec))
FIXED = ("sampling.num_images", "sampling.batch_size", "sampling.weights", "sampling.seed")  # no sweep may change these
Metric = Annotated[str, OneOf("metric", tuple(GENERATION_METRICS), plugins.metric_names)]
Shown = Annotated[str, OneOf("metric", (*GENERATION_METRICS, *LIKELIHOOD_METRICS), plugins.metric_names)]
_JUDGED = [
    m for m in (*GENERATION_METRICS, *LIKELIHOOD_METRICS) if METRICS[m].lower_is_better and METRICS[m].scale == 1
]
Judged = Annotated[str, OneOf("metric", _JUDGED)]
Column = Annotated[str, OneOf("column", (*ONCE_METRICS, *LIKELIHOOD_METRICS))]
ChosenKnob = Annotated[str, OneOf("knob to choose", tuple(knob for knob in KNOBS if knob not in FIXED))]
Abscissa = Annotated[str, OneOf("knob of sampling or measured number", (*KNOBS, "latent_noise"))]
BundleName = Annotated[Name, Rule("is the name of a bundle, which has no /", re.compile("[^/]+$").match)]
# columns of an experiment's data frame, beside its axes
LEADING = ("experiment", "scale", "row")
TRAILING = (
    "task", "setting", "metric", "key", "train_seed", "sampling_seed", "value", "se", "num_images", "paper", "status",
    "error", "warnings", "record",
)  # fmt: skip
MOST_ROWS, MOST_POINTS = 10_000, 1000  # of an experiment; of a sweep


@dataclass(frozen=True)
class Select:
    """A sweep: one metric chooses among all combinations of the values in ``over``."""

    over: Annotated[dict[ChosenKnob, Annotated[tuple[Any, ...], NOT_EMPTY]], NOT_EMPTY]
    minimise: Metric | None = None
    maximise: Metric | None = None


@dataclass(frozen=True)
class Bundle:
    """Named overrides on one axis of the rows.

    ``absent``: the text tables print for rows that a scale lacks, or one text for each bundle of another axis."""

    label: dict[Line, Word] | None = None  # column of labels -> text in tables; None: the bundle's name
    set: dict[str, Any] | None = None
    select: Select | None = None
    absent: Any = None


@dataclass(frozen=True)
class Layout:
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    metrics: Annotated[tuple[Shown, ...], NOT_EMPTY] = ("fd",)
    beside: tuple[Column, ...] = ()


@dataclass(frozen=True)
class FigureBlock:
    kind: Literal["speed", "curve", "training", "gallery"]
    x: Abscissa | None = None
    x_title: Line | None = None
    y: tuple[Shown, ...] = ()
    line: str | None = None
    point: str | None = None
    panels: str | None = None  # of a figure over training: the axis with a panel for each bundle
    log_x: bool = False


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper that one bundle of an axis beats another, or is worse by at most a given share."""

    claim: Line
    axis: str
    better: str
    worse: str
    costs_at_most: Annotated[float, between(0, 100)] = 0.0
    metric: Judged = "fd"  # by which it is judged


@dataclass(frozen=True)
class ExperimentFile:
    """The merged and resolved layers of an experiment at one scale."""

    id: Identifier
    axes: Annotated[dict[str, dict[BundleName, Bundle | None]], NOT_EMPTY]  # None: this scale leaves the bundle out
    layout: Layout
    title: Line = ""
    question: Line = ""  # that it answers, in one sentence
    source: Line = ""
    base: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    seeds: dict[Literal["training", "sampling"], Annotated[tuple[Seed, ...], NOT_EMPTY]] = field(default_factory=dict)
    figure: FigureBlock | None = None
    paper: Any = field(default_factory=dict)  # published numbers, or the tables of results/paper that have them
    quoted: tuple[str, ...] = ()  # tables of results/paper whose other rows are shown
    beside_literature: tuple[str, ...] = ()  # claims of results/paper/small_scale.csv, shown below the table
    orderings: tuple[Ordering, ...] = ()

    @property
    def likelihoods(self) -> list[str]:
        """The keys under which a likelihood is shown or judged."""
        figure = self.figure.y if self.figure else ()
        shown = {"layout.metrics": self.layout.metrics, "layout.beside": self.layout.beside, "figure.y": figure}
        judged = {f"orderings[{i}].metric": [ordering.metric] for i, ordering in enumerate(self.orderings)}
        return [key for key, metrics in (shown | judged).items() if {*metrics} & {*LIKELIHOOD_METRICS}]

    def bundles(self, axis: str) -> dict[str, Bundle]:
        """The bundles of an axis that this scale has."""
        return {name: bundle for name, bundle in self.axes[axis].items() if bundle is not None}


def parse_experiment(tree: dict[str, Any]) -> ExperimentFile:
    """Parse and check an experiment's merged layers. Raises KeyPathError."""
    file = parse(ExperimentFile, tree)
    labels: set[str] = set()
    for axis in file.axes:
        _need(file.bundles(axis), f"axes.{axis}", "an axis needs at least one bundle")
        _need(
            axis not in (*LEADING, *TRAILING), f"axes.{axis}", "is a column of data frames; give the axis another name"
        )
        for name, bundle in file.bundles(axis).items():
            labels |= {axis} if bundle.label is None else bundle.label.keys()
            absent = bundle.absent if isinstance(bundle.absent, dict) else {None: bundle.absent}
            texts = bundle.absent is None or all(isinstance(text, str) for text in absent.values())
            _need(texts, f"axes.{axis}.{name}.absent", "expected a text, or a text for each bundle of another axis")
            one = bundle.select is None or (bundle.select.minimise is None) != (bundle.select.maximise is None)
            _need(one, f"axes.{axis}.{name}.select", "needs one of minimise and maximise")
            points = math.prod(len(values) for values in bundle.select.over.values()) if bundle.select else 1
            _need(points <= MOST_POINTS, f"axes.{axis}.{name}.select.over", f"more than {MOST_POINTS:,} points")
    rows = math.prod(len(file.bundles(axis)) for axis in file.axes)
    _need(rows <= MOST_ROWS, "axes", f"{rows:,} rows are more than {MOST_ROWS:,}; leave out axes or bundles")
    for axis in (*file.layout.rows, *file.layout.columns):
        _one_of("layout", axis, file.axes, "axis")
    if (figure := file.figure) is not None:
        for key in ("line", "point"):
            if (name := getattr(figure, key)) is not None:
                _one_of(f"figure.{key}", name, labels, "label")
        if figure.panels is not None:
            _one_of("figure.panels", figure.panels, file.axes, "axis")
            _need(figure.kind == "training", "figure.panels", f"a figure of kind {figure.kind} has no such panels")
        _need(figure.kind != "curve" or figure.x, "figure.x", "is missing; a curve runs over a knob of sampling")
    reserved = f"{CHOICE_SEED} is the sampling seed reserved for comparing sweep points; choose another"
    _need(CHOICE_SEED not in file.seeds.get("sampling", ()), "seeds.sampling", reserved)
    for i, ordering in enumerate(file.orderings):
        _one_of(f"orderings[{i}].axis", ordering.axis, file.axes, "axis")
        for key in ("better", "worse"):
            bundles, what = file.bundles(ordering.axis), f"bundle of axis '{ordering.axis}'"
            _one_of(f"orderings[{i}].{key}", getattr(ordering, key), bundles, what)
        _need(ordering.better != ordering.worse, f"orderings[{i}].worse", "better and worse are the same bundle")
        shares = ordering.costs_at_most == 0 or ordering.metric not in LIKELIHOOD_METRICS
        _need(shares, f"orderings[{i}].costs_at_most", "is a share; bits have no zero from which to count one")
    return file


def _need(holds: Any, path: str, message: str) -> None:
    if not holds:
        raise KeyPathError(path, message)


def _one_of(path: str, name: Any, known: Collection[str], what: str) -> None:
    _need(name in known, path, f"no {what} '{name}', {did_you_mean(name, known)}")
