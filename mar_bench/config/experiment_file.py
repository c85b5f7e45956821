"""The schema of an experiment file around its specs: axes, layout, figure, published numbers, orderings, sweeps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from mar_bench.config.parse import (
    Count,
    Form,
    Identifier,
    KeyPathError,
    NotEmpty,
    NotNegative,
    OneOf,
    Seed,
    join,
    parse,
)
from mar_bench.config.spec import CHOICE_SEED, SamplingSpec
from mar_bench.records.metrics import GENERATION_METRICS, ONCE_METRICS, PUBLISHED
from mar_bench.utils.errors import did_you_mean

# a sweep may not change the number of images, their batches, seed or weights
CHOSEN = (
    "guidance_scale", "guidance_schedule", "temperature", "num_ar_steps", "num_diffusion_steps", "sampler",
    "choice_temperature", "clamp_x0", "guided_channels", "order",
)  # fmt: skip
Metric = Annotated[str, OneOf("metric", GENERATION_METRICS)]
Column = Annotated[str, OneOf("column", ONCE_METRICS)]
Published = Annotated[str, OneOf("metric", PUBLISHED)]
ChosenKnob = Annotated[str, OneOf("knob to choose", tuple(f"sampling.{name}" for name in CHOSEN))]
SamplingKnob = Annotated[str, OneOf("knob of sampling", tuple(f"sampling.{f.name}" for f in fields(SamplingSpec)))]
BundleName = Annotated[str, Form("[^/]+", "names of bundles have no /")]


@dataclass(frozen=True)
class Select:
    """A sweep: one metric chooses among all combinations of the values in ``over``."""

    over: Annotated[dict[ChosenKnob, Annotated[tuple[Any, ...], NotEmpty()]], NotEmpty()]
    minimise: Metric | None = None
    maximise: Metric | None = None


@dataclass(frozen=True)
class Bundle:
    """Named overrides on one axis of the rows.

    ``absent``: the text tables print for rows that a scale lacks, or one text for each bundle of another axis."""

    label: dict[str, Any] | None = None  # column of labels -> what tables print; None: the bundle's name
    set: dict[str, Any] | None = None
    select: Select | None = None
    absent: Any = None


@dataclass(frozen=True)
class SearchBlock:
    """Candidate tokenizers for all rows that match a pattern, compared by a short training of the row ``judge``."""

    rows: str
    judge: str
    steps: Count
    tokenizers: Annotated[tuple[dict[str, Any], ...], NotEmpty()]


@dataclass(frozen=True)
class Layout:
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    metrics: Annotated[tuple[Metric, ...], NotEmpty()] = ("fd",)
    beside: tuple[Column, ...] = ()


@dataclass(frozen=True)
class FigureBlock:
    kind: Literal["speed", "curve", "gallery"]
    x: SamplingKnob | None = None
    x_title: str | None = None
    y: tuple[Metric, ...] = ()
    line: str | None = None
    point: str | None = None
    log_x: bool = False


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper that one bundle of an axis beats another, or costs at most a share more."""

    claim: str
    axis: str
    better: str
    worse: str
    costs_at_most: NotNegative = 0.0


@dataclass(frozen=True)
class Seeds:
    training: Annotated[tuple[Seed, ...], NotEmpty()] | None = None
    sampling: Annotated[tuple[Seed, ...], NotEmpty()] | None = None


@dataclass(frozen=True)
class ExperimentFile:
    """The merged and resolved layers of an experiment at one scale."""

    id: Identifier
    axes: Annotated[
        dict[str, dict[BundleName, Bundle | None]], NotEmpty()
    ]  # a bundle that is None is left out at this scale
    layout: Layout
    title: str = ""
    source: str = ""
    base: str | None = None
    run: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    seeds: Seeds = field(default_factory=Seeds)
    search: dict[str, SearchBlock | None] = field(default_factory=dict)
    figure: FigureBlock | None = None
    paper: Any = field(default_factory=dict)  # published numbers, or the tables of results/paper that have them
    quoted: tuple[str, ...] = ()  # tables of results/paper whose other rows are shown
    orderings: tuple[Ordering, ...] = ()
    scales: dict[str, Any] = field(default_factory=dict)

    def bundles(self, axis: str) -> dict[str, Bundle]:
        """The bundles of an axis that this scale has."""
        return {name: bundle for name, bundle in self.axes[axis].items() if bundle is not None}


EXPERIMENT_KEYS = tuple(f.name for f in fields(ExperimentFile))


def parse_experiment(tree: dict[str, Any]) -> ExperimentFile:
    """Parse and check an experiment's merged layers. Raises KeyPathError."""
    file = parse(ExperimentFile, tree)
    for axis in file.axes:
        _need(file.bundles(axis), f"axes.{axis}", "an axis needs at least one bundle")
        others = [name for other in file.axes if other != axis for name in file.axes[other]]
        for name, bundle in file.bundles(axis).items():
            _bundle(bundle, f"axes.{axis}.{name}", others)
    placed = [*file.layout.rows, *file.layout.columns]
    for axis in placed:
        key = "layout.rows" if axis in file.layout.rows else "layout.columns"
        _one_of(key, axis, file.axes, "axis")
        _need(placed.count(axis) == 1, key, f"axis '{axis}' is placed twice")
    _figure(file)
    what = f"{CHOICE_SEED} is the sampling seed on which sweeps are compared; take another"
    _need(CHOICE_SEED not in (file.seeds.sampling or ()), "seeds.sampling", what, CHOICE_SEED)
    if not isinstance(file.paper, str):  # else a table of results/paper
        for row, cell in parse(dict[str, Any], file.paper, "paper").items():
            if not isinstance(cell, str):  # else one of its rows
                parse(dict[Published, float], cell, join("paper", row))
    for i, ordering in enumerate(file.orderings):
        path = f"orderings[{i}]"
        _one_of(f"{path}.axis", ordering.axis, file.axes, "axis")
        for key in ("better", "worse"):
            known = file.bundles(ordering.axis)
            _one_of(f"{path}.{key}", getattr(ordering, key), known, f"bundle of axis '{ordering.axis}'")
        _need(ordering.better != ordering.worse, f"{path}.worse", "better and worse are the same bundle")
    return file


def _need(holds: Any, path: str, message: str, value: Any = None) -> None:
    if not holds:
        raise KeyPathError(path, message, value)


def _one_of(path: str, name: Any, known: Collection[str], what: str) -> None:
    _need(name in known, path, f"no {what} '{name}', {did_you_mean(name, known)}", name)


def _bundle(bundle: Bundle, path: str, others: list[str]) -> None:
    absent = bundle.absent if isinstance(bundle.absent, dict) else {}
    texts = absent.values() if absent else [bundle.absent or ""]
    what = "expected a text, or a text for each bundle of another axis that it cannot stand beside"
    _need(all(isinstance(text, str) for text in texts), f"{path}.absent", what)
    for name in absent:
        _one_of(f"{path}.absent", name, others, "bundle of another axis")
    if (select := bundle.select) is not None:
        one = (select.minimise is None) != (select.maximise is None)
        _need(one, f"{path}.select", "needs one of minimise and maximise")


def _figure(file: ExperimentFile) -> None:
    if (figure := file.figure) is None:
        return
    labels = {name for axis in file.axes for bundle in file.bundles(axis).values() for name in bundle.label or [axis]}
    for key in ("line", "point"):
        if (name := getattr(figure, key)) is not None:
            _one_of(f"figure.{key}", name, labels, "label")
    _need(figure.kind != "curve" or figure.x, "figure.x", "is missing; a curve runs over a knob of sampling")
