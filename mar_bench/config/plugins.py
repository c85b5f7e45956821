"""What other packages add: heads, tokenizers, orders, data sets, metrics, experiments, and rows of our experiments.

A package has an entry point in the group ``mar_bench.plugins`` that leads to a ``Plugin``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mar_bench.records.metrics import MetricSpec, register
from mar_bench.records.provenance import PLUGINS
from mar_bench.utils.errors import UserError

OF_DATA = ("image_size", "channels", "num_classes", "flip", "shift", "images")  # what a spec of data must have


@dataclass(frozen=True)
class Plugin:
    """What a package adds. Whatever is built or called is written ``module:name``, so that planning need not import it.

    ``heads`` and ``tokenizers`` map a spec, a frozen dataclass with a ``kind``, to the class that is built from it;
    ``data`` maps one, with the fields of ``OF_DATA``, to a function (spec) -> ``data.datasets.DataSet``. ``orders``
    maps a name to a function (noise, step, length) -> orders (B, L), and ``metrics`` a ``records.metrics.MetricSpec``
    to a function of the features of generated and of real images, (N, F) and (M, F) -> a number. docs/plugins.md has an
    example of each.

    ``experiments`` is a folder of YAML files. One with ``adds_to: heads`` is laid over the experiment of that name, so
    that its bundles become rows there; any other is an experiment of its own."""

    heads: Mapping[type, str] = field(default_factory=dict)
    tokenizers: Mapping[type, str] = field(default_factory=dict)
    data: Mapping[type, str] = field(default_factory=dict)
    orders: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[MetricSpec, str] = field(default_factory=dict)
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
            for spec in (*plugin.heads, *plugin.tokenizers, *plugin.data):
                if not (is_dataclass(spec) and isinstance(getattr(spec, "kind", None), str)):
                    raise TypeError(f"{spec} is not a dataclass with a kind")
            for spec in plugin.data:
                if missing := [name for name in OF_DATA if not hasattr(spec, name)]:
                    raise TypeError(f"{spec} has no {' and no '.join(missing)}")
            for metric in plugin.metrics:
                register(metric)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"plugin '{point.name}': {reason}; correct or uninstall its package") from None
        found[point.name] = plugin
    return found


def specs(part: str) -> dict[str, type]:
    """The specs of ``heads``, ``tokenizers`` or ``data`` by their kinds."""
    return {spec.kind: spec for plugin in installed().values() for spec in getattr(plugin, part)}  # type: ignore[attr-defined]


def added(part: str) -> dict[Any, str]:
    """All that plugins add to a part, with the paths of what is built or called."""
    return {of: path for plugin in installed().values() for of, path in getattr(plugin, part).items()}


def order_names() -> list[str]:
    return [*added("orders")]


def metric_names() -> list[str]:
    return [metric.name for metric in added("metrics")]


def resolve(path: str) -> Any:
    """What ``module:name`` names. Raises UserError if there is no such thing."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"a plugin's '{path}': {error}; correct or uninstall its package") from None


def class_of(part: str, spec: Any, own: Mapping[str, Any]) -> Any:
    """What is built from a spec: one of our ``own`` classes by its kind, or a plugin's."""
    return own[spec.kind] if spec.kind in own else resolve(added(part)[type(spec)])
