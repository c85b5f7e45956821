"""What other packages add: heads, tokenizers, experiments, and rows of existing experiments.

A package has an entry point in the group ``mar_bench.plugins`` that leads to a ``Plugin``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mar_bench.records.provenance import PLUGINS
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Plugin:
    """``heads`` and ``tokenizers`` map a spec, a frozen dataclass with a ``kind``, to the class that is built from it,
    written ``module:name`` so that planning need not import it.

    ``experiments`` is a folder of YAML files. One with ``adds_to: heads`` is laid over the experiment of that name, so
    that its bundles become rows there; any other is an experiment of its own."""

    heads: Mapping[type, str] = field(default_factory=dict)
    tokenizers: Mapping[type, str] = field(default_factory=dict)
    experiments: Path | None = None


@functools.cache
def installed() -> dict[str, Plugin]:
    """The plugins by the names of their entry points. Raises UserError for one that cannot be used."""
    found = {}
    for point in entry_points(group=PLUGINS):
        try:
            plugin = point.load()
            if not isinstance(plugin, Plugin):
                raise TypeError(f"{point.value} is not a mar_bench.Plugin")
            for spec in (*plugin.heads, *plugin.tokenizers):
                if not (is_dataclass(spec) and isinstance(getattr(spec, "kind", None), str)):
                    raise TypeError(f"{spec} is not a dataclass with a kind")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"plugin '{point.name}': {reason}; correct or uninstall its package") from None
        found[point.name] = plugin
    return found


def specs(part: str) -> dict[str, type]:
    """The specs of ``heads`` or ``tokenizers`` by their kinds."""
    return {spec.kind: spec for plugin in installed().values() for spec in getattr(plugin, part)}  # type: ignore[attr-defined]


def class_of(part: str, spec: Any, own: Mapping[str, Any]) -> Any:
    """What is built from a spec: one of our ``own`` classes by its kind, or a plugin's."""
    if spec.kind in own:
        return own[spec.kind]
    paths = {of: path for plugin in installed().values() for of, path in getattr(plugin, part).items()}
    module, _, name = paths[type(spec)].partition(":")
    return getattr(importlib.import_module(module), name)
