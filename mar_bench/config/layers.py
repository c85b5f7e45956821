"""Find experiment files, read their YAML and merge it in layers, with interpolation and overrides.

Layers, later ones win: base file, experiment, scale overlay, the experiment's own section for that scale. The bundles
of a row and ``key=value`` from the command line come on top (experiment.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mar_bench.config.experiment_file import EXPERIMENT_KEYS
from mar_bench.config.parse import KeyPathError, check_keys, join, overlay, parse
from mar_bench.config.spec import RUN_KEYS
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import reading, shipped

SCALES = ("smoke", "tiny", "desk", "paper")
LAYER_KEYS = ("run", "parts", "seeds")  # of a base and of a scale
SECTION_KEYS = tuple(key for key in EXPERIMENT_KEYS if key not in ("id", "base", "scales"))


# --- where experiments are ------------------------------------------------------------------------------


def experiments_dir() -> Path:
    """``$MAR_BENCH_EXPERIMENTS``, else the folder of the checkout, else the copy inside the package."""
    return shipped("experiments", "experiments", "MAR_BENCH_EXPERIMENTS")


def experiment_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(experiments_dir().glob("*.yaml"))}


def scales() -> list[str]:
    """The available scale overlays: the standard ones first, from small to large."""
    found = {path.stem for path in (experiments_dir() / "scale").glob("*.yaml")}
    return sorted(found, key=lambda s: (SCALES.index(s) if s in SCALES else len(SCALES), s))


def find_experiment(name: str) -> Path:
    """The file of an experiment, by its name or its path."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    known = experiment_files()
    if name not in known:
        raise UserError(f"no experiment '{name}' in {experiments_dir()}: {did_you_mean(name, known)}")
    return known[name]


def _overlay_file(file: Path, folder: str, name: str) -> Path:
    known = _overlays(file, folder)
    if name not in known:
        raise UserError(f"{file}: no {folder} overlay '{name}', {did_you_mean(name, known)}")
    return known[name]


def _overlays(file: Path, folder: str) -> dict[str, Path]:
    """The overlays of ``base`` or ``scale`` by name: shipped ones and, before them, those beside the experiment."""
    roots = (experiments_dir(), file.parent)
    return {path.stem: path for root in roots for path in sorted((root / folder).glob("*.yaml"))}


# --- YAML -----------------------------------------------------------------------------------------------


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as plain containers, interpolations unresolved.

    Raises UserError where the file is missing, is not YAML or is not a mapping."""
    from omegaconf import OmegaConf

    with reading(path, "YAML file", "correct it"):
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if not isinstance(tree, dict):
            raise ValueError(f"expected a mapping at the top level, found {type(tree).__name__}")
    return cast(dict[str, Any], tree)


def _resolve(tree: dict, source: Path) -> dict[str, Any]:
    """Replace interpolations by the values they refer to."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return cast(dict, OmegaConf.to_container(OmegaConf.create(tree), resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {error.full_key or ''}: {str(error).splitlines()[0]}") from None


def leaves_and_blocks(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All dotted paths of a tree with their values."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield join(path, key), value
        yield from leaves_and_blocks(value, join(path, key))


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as a tree; values are read as YAML."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = (*RUN_KEYS, "parts")
    for pair in pairs:
        key, sign, _ = pair.partition("=")
        if not sign or not key:
            raise UserError(f"'{pair}': overrides are written key=value, as in train.steps=100")
        top = key.split(".")[0]
        if top not in known:
            raise UserError(f"override '{pair}': unknown key '{top}', {did_you_mean(top, known)}")
    try:
        tree = cast(dict, OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)), resolve=False))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"overrides {' '.join(pairs)}: {_one_line(error)}") from None
    if not isinstance(tree.get("parts", {}), dict):
        raise UserError(f"override parts={tree['parts']}: parts are blocks; name one, as in parts.few_steps=4")
    return tree


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- layers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layered:
    """An experiment's layers, merged and resolved, and the tree of each file."""

    tree: dict[str, Any]
    files: dict[Path, dict[str, Any]]

    def source(self, error: KeyPathError, overrides: Sequence[str] = ()) -> str:
        """The source of a bad key or value: the command line, or the last file that sets it."""
        path = re.sub(r"\[\d+\]", "", error.path)
        name = path.rpartition(".")[2]
        for key, _, text in (override.partition("=") for override in overrides):
            through_part = key.startswith("parts.") and (key.endswith(f".{name}") or str(error.value) in text)
            if through_part or f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}."):
                return "command line"
        for tail in (path, name):  # parts and bundles have the key under another path
            found = [
                file
                for file, tree in self.files.items()
                for where, value in leaves_and_blocks(tree)
                if f".{where}".endswith(f".{tail}") and error.value in (None, value)
            ]
            if found:
                return str(found[-1])
        return str(list(self.files)[-2])  # the experiment's own


def layered(file: Path, scale: str, parts: Any = None) -> Layered:
    """All layers but bundles and overrides; ``parts`` are the overrides of parts, which come before interpolation."""
    own = _checked(file, load_yaml(file), EXPERIMENT_KEYS)
    base_files = [_overlay_file(file, "base", own["base"])] if own.get("base") else []
    base, scaled = (
        {path: _checked(path, load_yaml(path), LAYER_KEYS) for path in paths}
        for paths in (base_files, [_overlay_file(file, "scale", scale)])
    )
    sections = _checked(file, own.get("scales") or {}, _overlays(file, "scale"), "scales")
    section = _checked(file, sections.get(scale) or {}, SECTION_KEYS, f"scales.{scale}")
    tree: dict[str, Any] = {}
    try:
        for layer in (*base.values(), {**own, "base": None, "scales": None}, *scaled.values(), section):
            tree = overlay(tree, {k: v for k, v in layer.items() if v is not None})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if parts is not None:
        _check_parts(tree, parts)
        tree = overlay(tree, {"parts": parts})
    return Layered(_resolve(tree, file), {**base, file: own, **scaled})


def _checked(file: Path, tree: Any, known: Collection[str], path: str = "") -> dict[str, Any]:
    """``tree``, a layer of ``file``. Raises UserError for an unknown key or if run or parts is not a block."""
    try:
        check_keys(path, tree, known)
        for key in ("run", "parts"):
            parse(dict[str, Any], tree.get(key) or {}, join(path, key))
    except KeyPathError as error:
        raise UserError(f"{file}: {error}") from None
    return tree


def _check_parts(tree: dict, parts: Any) -> None:
    """Raises UserError for an override of a part that does not exist.

    A row may refer to a whole block; the keys inside it are checked with the spec."""
    known = dict(leaves_and_blocks(tree))
    used = set(re.findall(r"\$\{([\w.]+)\}", str(tree)))
    for path, _ in leaves_and_blocks({"parts": parts}):
        inside = any(path.startswith(f"{block}.") for block in used)
        if path not in known and not inside:
            parts_known = [name for name in known if name.startswith("parts.")]
            raise UserError(f"override '{path}': no such part, {did_you_mean(path, parts_known)}")
