"""Points among which a cell's or a tokenizer's is chosen: sweeps of a row's sampling, searches of a tokenizer."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mar_bench.config.checks import finish
from mar_bench.config.parse import KeyPathError, as_tree, overlay, parse
from mar_bench.config.spec import RunSpec
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Sweep:
    """The points of a row that differ in ``sampling`` alone, and the metric by which one is chosen."""

    metric: str
    minimise: bool
    points: list[tuple[dict[str, Any], RunSpec]]  # dotted path -> value, and the row with these values


@dataclass(frozen=True)
class Search:
    """Settings of a tokenizer, of which one is to be chosen for several rows, each tried in a short training."""

    judge: str  # the row that is trained to compare them
    points: list[tuple[dict[str, Any], RunSpec]]  # fields of the tokenizer, and that row with these, trained shortly
    rows: dict[str, list[RunSpec]]  # every row that the choice is for, at each of the points


def points_of(bundles: list[dict]) -> Iterator[dict]:
    """Every combination of values that the row's sweep names, as a tree; an empty one without a sweep."""
    selects = [bundle["select"] for bundle in bundles if bundle.get("select")]
    if len(selects) > 1:
        raise UserError("two of its bundles have a select; one of them decides")
    over = selects[0]["over"] if selects else {}
    for values in itertools.product(*over.values()):
        tree: dict = {}
        for path, value in zip(over, values):
            block = value
            for key in reversed(path.split(".")):
                block = {key: block}
            tree = overlay(tree, block)
        yield tree


def sweep_of(bundles: list[dict], specs: list[RunSpec]) -> Sweep:
    """The row's points by the knobs in which they differ; one that an override fixes is none."""
    select = next(bundle["select"] for bundle in bundles if bundle.get("select"))
    values = {path: [getattr(spec.sampling, path.partition(".")[2]) for spec in specs] for path in select["over"]}
    differ = [path for path, found in values.items() if len(set(found)) > 1]
    minimise = "minimise" in select
    points = [({path: values[path][i] for path in differ}, spec) for i, spec in enumerate(specs)]
    return Sweep(select["minimise" if minimise else "maximise"], minimise, points)


def searches_of(
    file: Path, tree: dict, rows: dict[str, RunSpec], sweeps: dict[str, Sweep], overrides: tuple[str, ...] | list[str]
) -> list[Search]:
    """The searches of an experiment. Raises UserError naming the one that does not fit its rows or the overrides."""
    searches: list[Search] = []
    for name, search in tree.items():
        if not search:  # this scale has published tokenizers
            continue
        where = f"{file}: search.{name}"
        chosen = [row for row in rows if fnmatch.fnmatch(row, search["rows"])]
        if search["judge"] not in chosen:
            raise UserError(f"{where}.judge: '{search['judge']}' is none of {', '.join(chosen) or 'no rows'}")
        if rows[search["judge"]].model.kind == "ar" and rows[search["judge"]].model.head.kind == "gmm":
            raise UserError(
                f"{where}.judge: a mixture's loss may be below 0, where no multiple of the best one is better"
            )
        for row in chosen:
            if row in sweeps or any(row in other.rows for other in searches):
                raise UserError(f"{where}: row '{row}' is chosen by another sweep or search too; one of them decides")
        for key in {key for setting in search["tokenizers"] for key in setting}:
            if hit := [w for w in overrides if "tokenizer" in w and w.partition("=")[0].endswith(f".{key}")]:
                raise UserError(f"override '{hit[0]}': search.{name} of {file} chooses this; change it there")
        specs: dict[str, list[RunSpec]] = {row: [] for row in chosen}
        points = []
        for setting in search["tokenizers"]:
            try:
                for row in chosen:
                    specs[row].append(_with(rows[row], {"tokenizer": setting}))
                short = _with(rows[search["judge"]], {"tokenizer": setting, "train": {"steps": search["steps"]}})
            except (KeyPathError, UserError) as error:
                raise UserError(f"{where}: {error}") from None
            points.append(({key: getattr(short.tokenizer, key) for key in setting}, short))
        searches.append(Search(search["judge"], points, specs))
    return searches


def _with(spec: RunSpec, tree: dict) -> RunSpec:
    """A row with some of its fields changed, as if its file had said so."""
    return finish(parse(RunSpec, overlay(as_tree(spec), tree)))
