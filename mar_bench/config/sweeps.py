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
    """Specs from which measurements choose one: sampling settings of a row, or tokenizer settings of several rows (a
    search), which are tried in short trainings."""

    judge: str  # the row that is measured at each point
    points: list[tuple[dict[str, Any], RunSpec]]  # the settings that vary, and the judge's spec to measure
    rows: dict[str, list[RunSpec]]  # every row that the choice applies to, at each of the points
    metric: str = "reconstruction + loss"
    minimise: bool = True


def points_of(bundles: list[Bundle]) -> Iterator[dict[str, Any]]:
    """All combinations of the values in the row's sweep, as trees; one empty tree without a sweep."""
    selects = [bundle.select for bundle in bundles if bundle.select]
    if len(selects) > 1:
        raise UserError("two of its bundles have a select; only one may")
    over = selects[0].over if selects else {}
    for values in itertools.product(*over.values()):
        yield {"sampling": {path.partition(".")[2]: value for path, value in zip(over, values)}} if over else {}


def sweep_of(row: str, bundles: list[Bundle], specs: list[RunSpec]) -> Sweep:
    """The row's sweep, with points named by the settings that vary; overrides may have fixed the others."""
    select = next(bundle.select for bundle in bundles if bundle.select)
    values = {path: [getattr(spec.sampling, path.partition(".")[2]) for spec in specs] for path in select.over}
    differ = [path for path, found in values.items() if len(set(found)) > 1]
    points = [({path: values[path][i] for path in differ}, spec) for i, spec in enumerate(specs)]
    return Sweep(row, points, {row: specs}, select.minimise or select.maximise or "", select.minimise is not None)


def searches_of(
    file: Path,
    blocks: Mapping[str, SearchBlock | None],
    rows: dict[str, RunSpec],
    sweeps: dict[str, Sweep],
    overrides: Sequence[str],
) -> list[Sweep]:
    """The searches of an experiment; a block is None if the scale uses published tokenizers.

    Raises UserError if a search conflicts with its rows or the overrides."""
    searches: list[Sweep] = []
    for name, block in ((name, block) for name, block in blocks.items() if block is not None):
        taken = {*sweeps, *(row for other in searches for row in other.rows)}
        settings = {key for setting in block.tokenizers for key in setting}
        try:
            for key in (override.partition("=")[0] for override in overrides):
                if "tokenizer" in key and key.rpartition(".")[2] in settings:
                    raise UserError(f"it chooses {key}; change the setting there, not by an override")
            searches.append(_search(block, rows, taken))
        except (KeyPathError, UserError) as error:
            raise UserError(f"{file}: search.{name}: {error}") from None
    return searches


def _search(block: SearchBlock, rows: dict[str, RunSpec], taken: set[str]) -> Sweep:
    """A search whose settings are applied to its rows; ``taken`` rows have another sweep or search."""
    chosen = fnmatch.filter(rows, block.rows)
    if block.judge not in chosen:
        raise KeyPathError("judge", f"'{block.judge}' is none of {', '.join(chosen) or 'no rows'}")
    judge = rows[block.judge]
    if judge.model.kind == "ar" and judge.model.head.kind == "gmm":
        raise KeyPathError("judge", "a mixture's loss may be negative; choose another row")
    if both := taken.intersection(chosen):
        raise UserError(f"row '{min(both)}' has another sweep or search too; only one may choose")
    short = [_with(judge, setting, {"steps": block.steps, "snapshots": []}) for setting in block.tokenizers]
    points = [({key: getattr(spec.tokenizer, key) for key in s}, spec) for s, spec in zip(block.tokenizers, short)]
    return Sweep(block.judge, points, {row: [_with(rows[row], s) for s in block.tokenizers] for row in chosen})


def _with(spec: RunSpec, tokenizer: dict[str, Any], train: dict[str, Any] | None = None) -> RunSpec:
    """A row with some fields of its tokenizer and training replaced, parsed and checked again."""
    return finish(parse(RunSpec, overlay(as_tree(spec), {"tokenizer": tokenizer, "train": train or {}})))
