"""Sweeps over a row's sampling settings and searches over tokenizers, expanded into specs."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mar_bench.config.checks import finish
from mar_bench.config.experiment_file import Bundle, SearchBlock
from mar_bench.config.parse import KeyPathError, as_tree, overlay, parse
from mar_bench.config.spec import RunSpec
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Sweep:
    """The sweep points of a row, which differ in ``sampling`` only, and the metric that chooses among them."""

    metric: str
    minimise: bool
    points: list[tuple[dict[str, Any], RunSpec]]  # dotted path -> value, and the row with these values


@dataclass(frozen=True)
class Search:
    """Tokenizer settings, of which one is chosen for several rows; each is tried in a short training."""

    judge: str  # the row that is trained to compare them
    points: list[tuple[dict[str, Any], RunSpec]]  # fields of the tokenizer, and that row with them, trained briefly
    rows: dict[str, list[RunSpec]]  # every row that the choice applies to, at each of the points


def points_of(bundles: list[Bundle]) -> Iterator[dict[str, Any]]:
    """All combinations of the values in the row's sweep, as trees; one empty tree without a sweep."""
    selects = [bundle.select for bundle in bundles if bundle.select]
    if len(selects) > 1:
        raise UserError("two of its bundles have a select; only one may")
    over = selects[0].over if selects else {}
    for values in itertools.product(*over.values()):
        yield {"sampling": {path.partition(".")[2]: value for path, value in zip(over, values)}} if over else {}


def sweep_of(bundles: list[Bundle], specs: list[RunSpec]) -> Sweep:
    """The row's sweep, with points named by the settings that vary; overrides may have fixed the others."""
    select = next(bundle.select for bundle in bundles if bundle.select)
    values = {path: [getattr(spec.sampling, path.partition(".")[2]) for spec in specs] for path in select.over}
    differ = [path for path, found in values.items() if len(set(found)) > 1]
    points = [({path: values[path][i] for path in differ}, spec) for i, spec in enumerate(specs)]
    return Sweep(select.minimise or select.maximise or "", select.minimise is not None, points)


def searches_of(
    file: Path,
    blocks: Mapping[str, SearchBlock | None],
    rows: dict[str, RunSpec],
    sweeps: dict[str, Sweep],
    overrides: Sequence[str],
) -> list[Search]:
    """The searches of an experiment. Raises UserError for one that conflicts with its rows or the overrides."""
    searches: list[Search] = []
    for name, search in blocks.items():
        if search is None:  # this scale has published tokenizers
            continue
        where = f"{file}: search.{name}"
        chosen = [row for row in rows if fnmatch.fnmatch(row, search.rows)]
        if search.judge not in chosen:
            raise UserError(f"{where}.judge: '{search.judge}' is none of {', '.join(chosen) or 'no rows'}")
        judge = rows[search.judge]
        if judge.model.kind == "ar" and judge.model.head.kind == "gmm":
            raise UserError(f"{where}.judge: a mixture's loss may be negative; take another row")
        for row in chosen:
            if row in sweeps or any(row in other.rows for other in searches):
                raise UserError(f"{where}: row '{row}' has another sweep or search too; only one may choose")
        for key in {key for setting in search.tokenizers for key in setting}:
            if hit := [w for w in overrides if "tokenizer" in w and w.partition("=")[0].endswith(f".{key}")]:
                raise UserError(f"override '{hit[0]}': search.{name} of {file} chooses this; change it there")
        settings = search.tokenizers
        try:
            specs = {row: [_with(rows[row], {"tokenizer": setting}) for setting in settings] for row in chosen}
            short = [_with(judge, {"tokenizer": setting, "train": {"steps": search.steps}}) for setting in settings]
        except (KeyPathError, UserError) as error:
            raise UserError(f"{where}: {error}") from None
        points = [({key: getattr(spec.tokenizer, key) for key in s}, spec) for s, spec in zip(settings, short)]
        searches.append(Search(search.judge, points, specs))
    return searches


def _with(spec: RunSpec, tree: dict[str, Any]) -> RunSpec:
    """A row with some of its fields replaced, parsed and checked again."""
    return finish(parse(RunSpec, overlay(as_tree(spec), tree)))
