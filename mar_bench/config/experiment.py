"""An experiment: its layers of YAML, expanded over axes of named bundles into rows, each parsed and checked.

``load_experiment`` is the entry point; yaml_layers.py merges files, experiment_file.py checks all parts but specs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from mar_bench.config.checks import finish
from mar_bench.config.experiment_file import Bundle, ExperimentFile, parse_experiment
from mar_bench.config.parse import KeyPathError, OneOf, between, overlay, parse
from mar_bench.config.spec import CHOICE_SEED, HeadSpec, RunSpec, SamplingSpec, drawing_part
from mar_bench.config.sweeps import Sweep, points_of, sweep_of
from mar_bench.config.yaml_layers import find_experiment, layered, parse_overrides
from mar_bench.records.metrics import PUBLISHED
from mar_bench.records.paper import Finding, PublishedRow, findings, lookup, published
from mar_bench.utils.errors import UserError, did_you_mean, shortened
from mar_bench.utils.yaml_text import Typed

Numbers = dict[Annotated[str, OneOf("metric", PUBLISHED)], Annotated[float, between(0, 10**12)]]


@dataclass(frozen=True)
class Experiment:
    """One table or figure at one scale, every row resolved and checked."""

    id: str
    title: str
    question: str
    source: str
    scale: str
    file: Path
    labels: dict[str, dict[str, dict[str, str]]]  # axis -> bundle -> its labels in the table
    layout: dict[str, list[str]]
    paper: dict[str, dict[str, float]]  # row, or bundles of the row axes -> published numbers
    orderings: list[dict[str, Any]]
    rows: dict[str, RunSpec]  # "bundle/bundle/..." in the order of the axes
    absent: dict[str, str] = field(default_factory=dict)  # row that this scale lacks -> text in its place
    quoted: list[PublishedRow] = field(default_factory=list)  # published rows of other systems
    literature: list[Finding] = field(default_factory=list)  # what others have measured at small scale
    figure: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)  # training, sampling: for `--seeds own` and `run --all`
    sweeps: dict[str, Sweep] = field(default_factory=dict)  # row -> the points from which one is chosen
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)  # row -> how its point was chosen (choices.py)
    shows_likelihood: bool = False  # so that each training has one measured
    overrides: tuple[str, ...] = ()  # of the command line

    @property
    def stem(self) -> str:
        """The name of its reports: the id and, so that none replaces that of the file, the overrides."""
        words = re.sub(r"[^\w.=,-]+", "_", "+".join(self.overrides))
        return "+".join(filter(None, [self.id, shortened(words, 100)]))

    def is_open(self, row: str) -> bool:
        """Whether the row's point is still to be chosen, so that the row cannot be run yet."""
        return row in self.sweeps and row not in self.choices

    def bundles(self, row: str) -> dict[str, str]:
        """The row's bundle on each axis."""
        return dict(zip(self.labels, row.split("/")))


def load_experiment(
    name: str, scale: str, overrides: Sequence[str] = (), only: Callable[[str], object] = lambda row: True
) -> Experiment:
    """Read, layer, expand and check an experiment. A row for which ``only`` is false is absent if an override does not
    fit it, unless it fits no row.

    Raises UserError naming the file and the key for any mistake in them."""
    path = find_experiment(name)
    command_line = parse_overrides(overrides)
    tree = layered(path, scale, command_line.pop("parts", {}))
    where = f"{path} at scale {scale}" + (f", command line {shortened(' '.join(overrides), 200)}" if overrides else "")
    try:
        file = parse_experiment(tree)
        paper, quoted = _published(file)
        literature = findings(file.beside_literature) if file.beside_literature else []
    except (KeyPathError, UserError) as error:
        raise UserError(f"{where}: {error}") from None
    axes = {axis: file.bundles(axis) for axis in file.axes}
    rows, absent, sweeps, unfit = {}, {}, {}, []
    for names in itertools.product(*axes.values()):
        row, bundles = "/".join(names), [axes[axis][name] for axis, name in zip(axes, names)]
        if text := _absent(bundles, names):
            absent[row] = text
            continue
        try:
            specs = _specs(file.run, bundles, command_line)
            if file.likelihoods:
                _need_likelihood(specs[0], file.likelihoods[0])
        except (KeyPathError, UserError) as error:
            wrong = UserError(f"{where}: row '{row}': {error}")
            if not overrides:
                raise wrong from None
            unfit.append((bool(only(row)), wrong))
            absent[row] = f"no row with {' '.join(overrides)}"
            continue
        rows[row] = specs[0]
        if len(specs) > 1:
            sweeps[row] = sweep_of(bundles, specs)
    asked = [wrong for chosen, wrong in unfit if chosen]
    if asked or (unfit and not rows):
        raise _clearest(asked or [wrong for _, wrong in unfit])
    return Experiment(
        id=file.id,
        title=file.title or file.id,
        question=file.question,
        source=file.source,
        scale=scale,
        file=path,
        labels={
            axis: {name: {axis: name} if bundle.label is None else bundle.label for name, bundle in bundles.items()}
            for axis, bundles in axes.items()
        },
        layout=tree["layout"],
        paper=paper,
        quoted=quoted,
        literature=literature,
        orderings=tree.get("orderings", []),
        rows=rows,
        absent=absent,
        figure=tree.get("figure", {}),
        seeds=tree.get("seeds", {}),
        sweeps=sweeps,
        shows_likelihood=bool(file.likelihoods),
        overrides=tuple(overrides),
    )


def _clearest(errors: list[UserError]) -> UserError:
    """Of what keeps an override from rows: a slip in a row that has the key, rather than a row of another kind."""
    fits = [error for error in errors if "unknown key" not in str(error) or "did you mean" in str(error)]
    if fits:
        return fits[0]
    by_kind = " of kind " in str(errors[0])
    return UserError(f"{errors[0]}{'; where rows differ, override the part that has it (parts.*)' * by_kind}")


def need_distinct_rows(experiment: Experiment) -> None:
    """Raises UserError if overrides have made two rows equal, so that one number would have two labels."""
    if not experiment.overrides:
        return
    plain, seen = load_experiment(str(experiment.file), experiment.scale).rows, dict[RunSpec, str]()
    for row, spec in experiment.rows.items():
        other = seen.setdefault(spec, row)
        if other != row and plain.get(other) != plain.get(row):
            same = f"rows '{other}' and '{row}' of {experiment.id} would be the same under two labels"
            way = f"leave it out, or take a row out in a copy of {experiment.file}"
            raise UserError(f"{' '.join(experiment.overrides)}: {same}; {way}")


def _specs(run: dict[str, Any], bundles: list[Bundle], command_line: dict[str, Any]) -> list[RunSpec]:
    """A row's specs, one per sweep point; points made equal by overrides are merged."""
    tree: Any = run
    for bundle in bundles:
        tree = overlay(tree, bundle.set or {})
    trees = [overlay(overlay(tree, point), command_line) for point in points_of(bundles)]
    first = _reachable(parse(RunSpec, trees[0]), command_line)
    sampled = (parse(SamplingSpec, tree.get("sampling", {}), "sampling") for tree in trees)  # points differ in no more
    specs = list(dict.fromkeys(finish(replace(first, sampling=sampling)) for sampling in sampled))
    if specs[0].sampling.seed == CHOICE_SEED:
        raise UserError(f"sampling.seed {CHOICE_SEED} is reserved for comparing sweep points; choose another")
    return specs


def _reachable(spec: RunSpec, command_line: dict[str, Any]) -> RunSpec:
    """The spec without the snapshots that a training shortened on the command line does not reach."""
    given, train = command_line.get("train"), spec.train
    given = given.as_yaml() if isinstance(given, Typed) else given
    if not isinstance(given, dict) or "steps" not in given or "snapshots" in given:
        return spec
    return replace(spec, train=replace(train, snapshots=tuple(s for s in train.snapshots if s <= train.steps)))


def _need_likelihood(spec: RunSpec, key: str) -> None:
    """Raises UserError for a row without a likelihood in an experiment that shows one under ``key``."""
    if not (part := drawing_part(spec.model)).likelihood:
        heads = " or ".join(head.kind for head in get_args(HeadSpec) if head.likelihood)
        raise UserError(f"'{part.kind}' has no likelihood: take nll out of {key}, or use head {heads}")


def _absent(bundles: Iterable[Bundle], names: tuple[str, ...]) -> str | None:
    """The text that tables print for a row that this scale lacks; None if the row exists."""
    for bundle in bundles:
        texts = bundle.absent if isinstance(bundle.absent, dict) else dict.fromkeys(names, bundle.absent)
        if text := next(filter(None, map(texts.get, names)), None):
            return text
    return None


def _published(file: ExperimentFile) -> tuple[dict[str, dict[str, float]], list[PublishedRow]]:
    """``paper`` and ``quoted`` of an experiment: numbers in the file itself, or references to results/paper.

    A key is a row, or only the bundles of the row axes for numbers that the paper prints once per line. A reference to
    a published row includes all its columns. Bundles that this scale omits have no numbers."""
    exists = {}
    for axes in ([axis for axis in file.axes if axis not in file.layout.columns], list(file.axes)):
        for names in itertools.product(*(file.axes[axis] for axis in axes)):
            exists["/".join(names)] = all(name in file.bundles(axis) for axis, name in zip(axes, names))
    if isinstance(file.paper, str):
        given: dict[str, Any] = {name: f"{file.paper}/{name}" for name in published(file.paper)}
    else:
        given = parse(dict[str, Any], file.paper, "paper")
    paper = {}
    for key, value in given.items():
        numbers = lookup(value) if isinstance(value, str) else {"": parse(Numbers, value, f"paper.{key}")}
        for column in numbers:
            cell = f"{key}/{column}" if column else key
            if cell not in exists:
                raise KeyPathError(f"paper.{cell}", f"no such row, {did_you_mean(cell, exists)}")
            if exists[cell]:
                paper[cell] = numbers[column]
    quoted = [row for table in file.quoted for row in published(table).values()]
    return paper, [row for row in quoted if f"{row.table}/{row.row}" not in given.values()]
