"""Sweeps over a row's sampling settings, expanded into specs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mar_bench.config.experiment_file import Bundle
from mar_bench.config.spec import RunSpec
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Sweep:
    """Specs of a row from which measurements choose one."""

    points: list[tuple[dict[str, Any], RunSpec]]  # the sampling settings that vary, and the spec to measure
    metric: str
    minimise: bool


def points_of(bundles: list[Bundle]) -> Iterator[dict[str, Any]]:
    """All combinations of the values in the row's sweep, as trees; one empty tree without a sweep."""
    selects = [bundle.select for bundle in bundles if bundle.select]
    if len(selects) > 1:
        raise UserError("two of its bundles have a select; only one may")
    over = selects[0].over if selects else {}
    for values in itertools.product(*over.values()):
        yield {"sampling": {path.partition(".")[2]: value for path, value in zip(over, values)}} if over else {}


def sweep_of(bundles: list[Bundle], specs: list[RunSpec]) -> Sweep:
    """A row's sweep, with points named by the settings that vary; overrides may have fixed the others."""
    select = next(bundle.select for bundle in bundles if bundle.select)
    values = {path: [getattr(spec.sampling, path.partition(".")[2]) for spec in specs] for path in select.over}
    differ = [path for path, found in values.items() if len(set(found)) > 1]
    points = [({path: values[path][i] for path in differ}, spec) for i, spec in enumerate(specs)]
    return Sweep(points, select.minimise or select.maximise or "", select.minimise is not None)
