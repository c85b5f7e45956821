"""Find experiment files, read their YAML and merge it in layers, with interpolation and overrides.

Layers, later ones win: base file, experiment, scale overlay, the experiment's own section for that scale. The bundles
of a row and ``key=value`` from the command line come on top (experiment.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mar_bench.config.parse import KeyPathError, check_keys, join, overlay
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import reading, shipped

SCALES = ("smoke", "tiny", "desk", "paper")


def experiments_dir() -> Path:
    """``$MAR_BENCH_EXPERIMENTS``, else the folder of the checkout, else the copy inside the package."""
    return shipped("experiments", "experiments", "MAR_BENCH_EXPERIMENTS")


def experiment_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(experiments_dir().glob("*.yaml"))}


def scales() -> list[str]:
    """The available scale overlays: the standard ones first, from small to large."""
    found = {path.stem for path in (experiments_dir() / "scale").glob("*.yaml")}
    return [*(scale for scale in SCALES if scale in found), *sorted(found - {*SCALES})]


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


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as plain containers, interpolations unresolved.

    Raises UserError if the file is missing, is not YAML or is not a mapping."""
    from omegaconf import OmegaConf

    with reading(path, "YAML file", "correct it"):
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if not isinstance(tree, dict):
            raise ValueError(f"expected a mapping at the top level, found {type(tree).__name__}")
    return cast(dict[str, Any], tree)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as a tree; values are read as YAML."""
    from omegaconf import OmegaConf

    for pair in pairs:
        if not pair.partition("=")[1] or pair.startswith("="):
            raise UserError(f"'{pair}': overrides are written key=value, as in train.steps=100")
    with reading("command line", "list of overrides", "write key=value, as in train.steps=100"):
        tree = cast(dict, OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)), resolve=False))
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
        for layer in (base, own, _overlay(file, "scale", scale), section):
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
    return {path.stem: path for root in roots for path in sorted((root / folder).glob("*.yaml"))}


def _overlay(file: Path, folder: str, name: Any) -> dict[str, Any]:
    known = _overlays(file, folder)
    if str(name) not in known:
        raise UserError(f"no {folder} overlay '{name}', {did_you_mean(name, known)}")
    return load_yaml(known[str(name)])


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
    """The tree with its interpolations replaced by the values they refer to."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(tree), resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or ''}: {str(error).splitlines()[0]}") from None
