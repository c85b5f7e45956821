"""What an experiment says beside its specs: axes, layout, figure, published cells, orderings, choices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from mar_bench.config.parse import KeyPathError, join, parse
from mar_bench.config.spec import CHOICE_SEED, SamplingSpec
from mar_bench.records.metrics import GENERATION_METRICS, ONCE_METRICS, PUBLISHED
from mar_bench.utils.errors import did_you_mean

LAYOUT_KEYS = ("rows", "columns", "metrics", "beside")
BUNDLE_KEYS = ("label", "set", "select", "absent")
SELECT_KEYS = ("minimise", "maximise", "over")
# what is chosen must not change what a number is of: how many images, in which batches, from which seed and weights
CHOSEN = ("guidance_scale", "guidance_schedule", "temperature", "num_ar_steps", "num_diffusion_steps", "sampler")
CHOSEN += ("choice_temperature", "clamp_x0", "guided_channels", "order")
SEARCH_KEYS = ("rows", "judge", "steps", "tokenizers")
FIGURES = ("speed", "curve", "gallery")
FIGURE_KEYS = ("kind", "x", "x_title", "y", "line", "point", "log_x")
SEED_KEYS = ("training", "sampling")
ORDERING_KEYS = ("claim", "axis", "better", "worse", "costs_at_most")


def check_experiment(tree: dict) -> None:
    """What an experiment says beside the spec: axes, layout, published cells, orderings.

    Raises KeyPathError with the way out."""
    for key in ("id", "axes", "layout"):
        _need(tree.get(key), key, "is missing; an experiment has an id, axes and a layout")
    name = tree["id"]
    _need(isinstance(name, str) and re.fullmatch(r"[\w-]+", name), "id", f"'{name}': letters, digits, _ and - only")
    for key in ("title", "source"):
        _need(isinstance(tree.get(key) or "", str), key, f"expected a text, found {tree.get(key)!r}")
    axes = {axis: [name for name, b in bundles.items() if b is not None] for axis, bundles in _axes(tree["axes"])}
    _search(tree.get("search") or {})
    _layout(tree["layout"], axes)
    _paper(tree.get("paper") or {})
    _need(isinstance(tree.get("quoted") or [], list), "quoted", "expected a list of tables of results/paper")
    _figure(tree.get("figure") or {}, axes, tree["axes"])
    _seeds(tree.get("seeds") or {})
    _orderings(tree.get("orderings") or [], axes)


def check_block(path: str, value: Any) -> dict:
    """Raises KeyPathError for anything but a mapping."""
    _need(isinstance(value, dict), path, f"expected a block of keys, found {value!r}")
    return value


def check_keys(path: str, tree: Any, known: tuple[str, ...]) -> None:
    """Raises KeyPathError for a key of the block ``tree`` that is not one of ``known``."""
    for key in check_block(path, tree):
        _need(key in known, join(path, key), f"unknown key '{key}', {did_you_mean(key, known)}")


def _need(holds: Any, path: str, message: str, value: Any = None) -> None:
    if not holds:
        raise KeyPathError(path, message, value)


def _one_of(path: str, name: Any, known: Any, what: str, where: str = "") -> None:
    _need(name in list(known), path, f"no {what} '{name}'{where}, {did_you_mean(name, known)}", name)


def _axes(axes: Any) -> Iterator[tuple[str, dict]]:
    for axis in check_block("axes", axes):
        check_block(join("axes", str(axis)), axes[axis] or {})
    for axis, bundles in axes.items():
        path = join("axes", axis)
        _need(isinstance(axis, str), path, "names of axes are texts; put it in quotes")
        _need(check_block(path, bundles or {}), path, "an axis needs at least one bundle")
        for name, bundle in bundles.items():
            where = join(path, name)
            _need(isinstance(name, str) and "/" not in name, where, "names of bundles are texts without /; quote them")
            if bundle is None:  # this scale leaves it out
                continue
            check_keys(where, bundle, BUNDLE_KEYS)
            for key in BUNDLE_KEYS[:3]:
                check_block(join(where, key), bundle.get(key) or {})
            absent = bundle.get("absent") or ""
            texts = absent.values() if isinstance(absent, dict) else [absent]
            what = "expected a text, or a text for each bundle of another axis that it cannot stand beside"
            _need(all(isinstance(text, str) for text in texts), join(where, "absent"), what)
            others = [name for other, them in axes.items() if other != axis for name in them or {}]
            for name in absent if isinstance(absent, dict) else ():
                _one_of(join(where, "absent"), name, others, "bundle", " on another axis")
            if bundle.get("select"):
                _select(bundle["select"], join(where, "select"))
        _need(any(b is not None for b in bundles.values()), path, "an axis needs at least one bundle")
        yield axis, bundles


def _select(select: dict, path: str) -> None:
    """How a cell's point is chosen: one metric, and the values of knobs of the sampling to choose from."""
    check_keys(path, select, SELECT_KEYS)
    metrics = [select[key] for key in SELECT_KEYS[:2] if key in select]
    _need(len(metrics) == 1, path, "needs one of minimise and maximise")
    _one_of(path, metrics[0], GENERATION_METRICS, "metric")
    _need(check_block(join(path, "over"), select.get("over")), join(path, "over"), "names no knob to choose")
    for knob, values in select["over"].items():
        where = join(join(path, "over"), str(knob))
        block, _, name = str(knob).partition(".")
        _need(block == "sampling", where, "only knobs of sampling are chosen")
        _one_of(where, name, CHOSEN, "knob")
        _need(isinstance(values, list) and values, where, f"expected a list of values, found {values!r}", values)


def _search(searches: Any) -> None:
    """Tokenizers to choose from for the rows of a pattern, each judged by a short training of one of these rows."""
    for name, search in check_block("search", searches).items():
        path = join("search", name)
        if search is None:
            continue
        check_keys(path, search, SEARCH_KEYS)
        for key in SEARCH_KEYS:
            _need(key in search, join(path, key), "is missing; a search has rows, judge, steps and tokenizers")
        for key in ("rows", "judge"):
            _need(isinstance(search[key], str), join(path, key), f"expected a text, found {search[key]!r}")
        _need(parse(int, search["steps"], join(path, "steps")) > 0, join(path, "steps"), "must be above 0")
        blocks = search["tokenizers"]
        _need(isinstance(blocks, list) and blocks, join(path, "tokenizers"), "expected a list of blocks", blocks)
        for i, block in enumerate(search["tokenizers"]):
            check_block(f"{path}.tokenizers[{i}]", block)


def _figure(figure: Any, axes: dict[str, list[str]], bundles: dict) -> None:
    if not check_block("figure", figure):
        return
    check_keys("figure", figure, FIGURE_KEYS)
    _one_of("figure.kind", figure.get("kind"), FIGURES, "kind of figure")
    labels = {name for axis in axes for b in bundles[axis].values() if b for name in b.get("label") or {axis: 0}}
    for key in ("line", "point"):
        if key in figure:
            _one_of(f"figure.{key}", figure[key], labels, "label")
    for metric in figure.get("y", []):
        _one_of("figure.y", metric, GENERATION_METRICS, "metric")
    if figure["kind"] == "curve":
        x = figure.get("x")
        knobs = [f"sampling.{f.name}" for f in fields(SamplingSpec)]
        _need(x in knobs, "figure.x", f"a curve runs over a knob of sampling, {did_you_mean(str(x), knobs)}", x)


def _seeds(seeds: Any) -> None:
    check_keys("seeds", seeds, SEED_KEYS)
    for key, values in seeds.items():
        path = f"seeds.{key}"
        _need(isinstance(values, list) and values, path, f"expected a list of seeds, found {values!r}", values)
        for value in values:
            _need(parse(int, value, path) >= 0, path, f"{value} must be 0 or more", value)
            what = f"{CHOICE_SEED} is the sampling seed on which sweeps are compared; take another"
            _need(key != "sampling" or value != CHOICE_SEED, path, what, value)


def _layout(layout: Any, axes: dict[str, list[str]]) -> None:
    check_keys("layout", layout, LAYOUT_KEYS)
    for key in LAYOUT_KEYS:
        _need(isinstance(layout.get(key, []), list), f"layout.{key}", f"expected a list, found {layout.get(key)!r}")
    placed = [*layout.get("rows", []), *layout.get("columns", [])]
    for key in ("rows", "columns"):
        for axis in layout.get(key, []):
            _one_of(f"layout.{key}", axis, axes, "axis")
            _need(placed.count(axis) == 1, f"layout.{key}", f"axis '{axis}' is placed twice")
    for name in layout.get("beside", []):
        _one_of("layout.beside", name, ONCE_METRICS, "column")
    metrics = layout.get("metrics", GENERATION_METRICS)
    _need(metrics, "layout.metrics", f"is empty; {did_you_mean('', GENERATION_METRICS)}")
    for metric in metrics:
        _one_of("layout.metrics", metric, GENERATION_METRICS, "metric")


def _paper(paper: Any) -> None:
    """Published numbers, or where they are: a table of results/paper, or one of its rows for a row of ours."""
    if isinstance(paper, str):
        return
    for row, cell in check_block("paper", paper).items():
        if isinstance(cell, str):
            continue
        for metric, value in check_block(f"paper.{row}", cell).items():
            path = f"paper.{row}.{metric}"
            _one_of(path, metric, PUBLISHED, "metric")
            parse(float, value, path)


def _orderings(orderings: Any, axes: dict[str, list[str]]) -> None:
    _need(isinstance(orderings, list), "orderings", f"expected a list, found {orderings!r}")
    for i, item in enumerate(orderings):
        path = f"orderings[{i}]"
        check_keys(path, item, ORDERING_KEYS)
        for key in ORDERING_KEYS[:4]:
            _need(item.get(key), path, f"key '{key}' is missing")
        _one_of(f"{path}.axis", item["axis"], axes, "axis")
        for key in ("better", "worse"):
            _one_of(f"{path}.{key}", item[key], axes[item["axis"]], "bundle", f" on axis '{item['axis']}'")
        _need(item["better"] != item["worse"], f"{path}.worse", "better and worse are the same bundle")
        limit = parse(float, item.get("costs_at_most", 0), f"{path}.costs_at_most")
        _need(limit >= 0, f"{path}.costs_at_most", f"{limit:g} must be 0 or more", item.get("costs_at_most"))
