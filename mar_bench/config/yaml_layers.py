"""Find experiment files, read their YAML and merge it in layers, with interpolation and overrides.

Layers, later ones win: base file, experiment, scale overlay (after the one it extends), the experiment's own section
for that scale. The bundles of a row and ``key=value`` from the command line come on top (experiment.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mar_bench.config import plugins
from mar_bench.config.parse import KeyPathError, check_keys, join, overlay
from mar_bench.utils.errors import UserError, did_you_mean, shortened, shown
from mar_bench.utils.files import expanded, reading, shipped
from mar_bench.utils.yaml_text import MOST_BYTES, MOST_CHARACTERS, MOST_DEPTH, MOST_NODES, Typed, read_yaml

SCALES = ("smoke", "tiny", "desk", "fashion", "gpu64", "gpu", "paper")
_REFERENCE = re.compile(r"\$\{([\w-]+(?:\.[\w-]+)*)\}")


def experiments_dir() -> Path:
    """``$MAR_BENCH_EXPERIMENTS``, else the folder of the checkout, else the copy inside the package."""
    return shipped("experiments", "experiments", "MAR_BENCH_EXPERIMENTS")


def yaml_files(folder: Path) -> dict[str, Path]:
    """The YAML files in a folder by their names without ending. Raises UserError for a name with both endings."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.glob("*.y*ml") if is_yaml(path.name)):
        if (other := found.setdefault(path.stem, path)) != path:
            raise UserError(f"{path}: {other.name} has the same name; delete or rename one of them")
    return found


def is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def split_row(name: str) -> tuple[str, str]:
    """``table1/mar/diff`` as experiment and row, ``my/own.yml/mar/diff`` as file and row; the row may be empty."""
    of_file = re.match(r"(.+?\.ya?ml)(?:/+(.*))?$", name)  # a file's path may hold slashes of its own
    experiment, row = of_file.groups("") if of_file else name.partition("/")[::2]
    return experiment, row.strip("/")


def experiment_files() -> dict[str, Path]:
    """The experiments by name. Raises UserError if there are none."""
    if not (files := yaml_files(experiments_dir())):
        raise UserError(f"no experiments in {experiments_dir()} (see MAR_BENCH_EXPERIMENTS)")
    added = {name: path for path, tree in _of_plugins() if "adds_to" not in tree for name in [path.stem]}
    if both := sorted(files.keys() & added.keys()):
        raise UserError(f"{added[both[0]]}: there is an experiment '{both[0]}' already; rename it, or write adds_to")
    return files | added


def _of_plugins() -> list[tuple[Path, dict[str, Any]]]:
    """The experiment files of plugins with their content."""
    folders = [plugin.experiments for plugin in plugins.installed().values() if plugin.experiments]
    return [(path, load_yaml(path)) for folder in folders for path in yaml_files(Path(folder)).values()]


def scales() -> list[str]:
    """The available scale overlays: the standard ones first, from small to large."""
    found = yaml_files(experiments_dir() / "scale").keys()
    return [*(scale for scale in SCALES if scale in found), *sorted(found - {*SCALES})]


def find_experiment(name: str) -> Path:
    """The file of an experiment, by its name or its path."""
    if is_yaml(name):
        if not (path := Path(expanded(name, "experiment"))).is_file():
            raise UserError(f"{path}: no such file")
        return path
    known = experiment_files()
    if (experiment := split_row(name)[0]) in known and experiment != name:
        rest = f"give {experiment}, to run, plan and submit with --only '{split_row(name)[1]}'"
        raise UserError(f"{shortened(name)}: this command takes whole experiments; {rest}")
    if name not in known:
        raise UserError(f"no experiment '{shortened(name)}' in {experiments_dir()}: {did_you_mean(name, known)}")
    return known[name]


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as plain containers, interpolations unresolved.

    Raises UserError if the file is missing, is not YAML as ``read_yaml`` reads it or is not a mapping."""
    with reading(path, "YAML file", "correct it"):
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        tree = read_yaml(content.decode("utf-8-sig"))
        tree = {} if tree is None else tree
        if not isinstance(tree, dict):
            raise ValueError(f"expected a mapping at the top level, found {shown(tree)}")
    return tree


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as a tree, whose values are ``Typed``: what they mean depends on the field."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        *blocks, last = path.split(".")
        if not equals or not all((*blocks, last)):
            raise UserError(f"'{shortened(pair)}': overrides are written key=value, as in train.steps=100")
        if not pair.isprintable() or len(pair) > MOST_CHARACTERS["text"]:
            raise UserError(f"override {shortened(path)}: it is too long or has characters that cannot be printed")
        inner = tree
        for i, block in enumerate(blocks):
            if isinstance(found := inner.setdefault(block, {}), Typed):
                with reading("command line", f"override {'.'.join(blocks[: i + 1])}", "correct it"):
                    found = found.as_yaml()
            if not isinstance(found, dict):
                raise UserError(f"override {pair}: {'.'.join(blocks[: i + 1])} is set to {found} before; leave one out")
            inner[block] = inner = found
        if isinstance(inner.get(last), dict):
            raise UserError(f"override {pair}: keys of {path} are set before; give the whole block first")
        inner[last] = Typed(value)
    if not isinstance(tree.get("parts", {}), dict):
        raise UserError(f"override parts={tree['parts']}: parts are blocks; name one, as in parts.few_steps=4")
    return tree


def layered(file: Path, scale: str, parts: dict[str, Any]) -> dict[str, Any]:
    """The merged, resolved layers of an experiment below its bundles; ``parts`` are the overrides of parts.

    Raises UserError naming the file for an unknown overlay or part and for an interpolation without a target."""
    own = load_yaml(file)
    sections = own.pop("scales", None) or {}
    try:
        check_keys("scales", sections, _overlays(file, "scale"))
        check_keys(f"scales.{scale}", section := sections.get(scale) or {})
        tree: dict[str, Any] = {}
        base = _overlay(file, "base", own["base"]) if own.get("base") else {}
        added = [tree for _, tree in _of_plugins() if tree.pop("adds_to", None) == own.get("id", "")]
        for layer in (base, own, *added, _overlay(file, "scale", scale), section):
            for key in ("run", "parts"):
                check_keys(key, layer.get(key) or {})
            tree = overlay(tree, {k: v for k, v in layer.items() if v is not None})
        _check_parts(tree.get("parts", {}), parts, "parts")
        return _resolved(overlay(tree, {"parts": parts}) if parts else tree)
    except (KeyPathError, UserError) as error:
        raise UserError(f"{file}: {error}") from None


def _overlays(file: Path, folder: str) -> dict[str, Path]:
    """The overlays of ``base`` or ``scale`` by name; those beside the experiment take precedence over shipped ones."""
    roots = (experiments_dir(), file.parent)
    return {name: path for root in roots for name, path in yaml_files(root / folder).items()}


def _overlay(file: Path, folder: str, name: Any) -> dict[str, Any]:
    """An overlay merged onto the one that it ``extends``: one beside it or, of its own name, a shipped one."""
    known, over = _overlays(file, folder), list[Path]()
    tree: dict[str, Any] = {}
    while name is not None:
        if str(name) not in known:
            raise UserError(f"no {folder} overlay {shown(name)}, {did_you_mean(name, known)}")
        if (path := known[str(name)]) in over:
            raise UserError(f"{path}: it extends itself: {' -> '.join(p.stem for p in (*over, path))}")
        over.append(path)
        layer = load_yaml(path)
        name = layer.pop("extends", None)
        tree = overlay({k: v for k, v in layer.items() if v is not None}, tree)
        # a shipped overlay extends shipped ones, whatever lies beside the experiment
        beside = yaml_files(path.parent)
        known = {**yaml_files(experiments_dir() / folder), **{n: p for n, p in beside.items() if p != path}}
    return tree


def _check_parts(block: dict[str, Any], over: dict[str, Any], path: str) -> None:
    """Raises UserError for an override of a part that does not exist.

    A block with a kind or without inner blocks becomes a block of the spec, where its keys are checked."""
    whole = "kind" in block or not any(isinstance(value, dict) for value in block.values())
    for key, value in over.items():
        if key not in block and not (whole and path != "parts"):
            raise UserError(f"override '{join(path, key)}': no such part, {did_you_mean(key, block)}")
        if isinstance(value, dict) and isinstance(block.get(key), dict):
            _check_parts(block[key], value, join(path, key))


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with each ``${key.of.tree}`` replaced by the value it refers to, a whole text by any value.

    Raises KeyPathError for other uses of ``${``, such as resolvers, which read what a file of others must not."""
    left = MOST_NODES

    def resolved(value: Any, path: str, within: tuple[str, ...]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyPathError(path, f"references expand to more than {MOST_NODES:,} values")
        if isinstance(value, dict):
            return {key: resolved(inner, join(path, str(key)), within) for key, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner, f"{path}[{i}]", within) for i, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return target(whole[1], path, within)
        if isinstance(value, Typed):
            return value  # as it was typed; in a path, ${NAME} is a variable
        text = _REFERENCE.sub(lambda match: str(target(match[1], path, within)), value)
        if len(text) > MOST_CHARACTERS["text"]:
            raise KeyPathError(path, f"its references expand to a text of {len(text):,} characters")
        if "${" in text:
            reason = "only ${key.of.this.file} is replaced; resolvers such as oc.env are not run: write the value out"
            raise KeyPathError(path, f"'{shortened(value)}': {reason}")
        return text

    def target(name: str, path: str, within: tuple[str, ...]) -> Any:
        if name in within or len(within) > MOST_DEPTH:
            raise KeyPathError(path, f"${{{name}}} refers to itself: {' -> '.join((*within[:5], name))}")
        found: Any = tree
        for key in name.split("."):
            if isinstance(found, str) and (reference := _REFERENCE.fullmatch(found)):
                found = target(reference[1], path, (*within, name))
            if not isinstance(found, dict) or key not in found:
                hint = did_you_mean(key, found) if isinstance(found, dict) else "a variable is written $NAME, in paths"
                raise KeyPathError(path, f"${{{shortened(name)}}}: no '{shortened(key)}', {hint}")
            found = found[key]
        return resolved(found, name, (*within, name))

    return resolved(tree, "", ())
