"""YAML -> Experiment -> [Run]: layers, axes of named bundles, strict parsing and cross-field checks.

Layers, later ones win: base file, experiment, scale overlay, the experiment's own section for that scale,
the bundles of a row, ``key=value`` from the command line. A block whose ``kind`` changes is replaced whole.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mar_bench.checks import finish
from mar_bench.errors import UserError, did_you_mean
from mar_bench.parse import KeyPathError, as_tree, parse  # noqa: F401
from mar_bench.spec import RunSpec

SCALES = ("smoke", "tiny", "desk", "paper")
EXPERIMENT_KEYS = ("id", "title", "source", "base", "run", "parts", "axes", "layout", "paper", "orderings", "scales")
LAYOUT_KEYS = ("rows", "columns", "metrics")
RUN_KEYS = tuple(f.name for f in fields(RunSpec))


# --- where experiments live -----------------------------------------------------------------------------


def experiments_dir() -> Path:
    """``$MAR_BENCH_EXPERIMENTS``, else the folder of the checkout, else the copy inside the package."""
    if chosen := os.environ.get("MAR_BENCH_EXPERIMENTS"):
        return Path(chosen)
    package = Path(__file__).parent
    checkout = package.parent / "experiments"
    return checkout if checkout.is_dir() else package / "experiments"


def experiment_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(experiments_dir().glob("*.yaml"))}


def scales() -> list[str]:
    """The scale overlays that there are, the usual ones first, from small to large."""
    found = {path.stem for path in (experiments_dir() / "scale").glob("*.yaml")}
    return sorted(found, key=lambda s: (SCALES.index(s) if s in SCALES else len(SCALES), s))


def experiment_summary(file: Path) -> dict[str, Any]:
    """An experiment's id, title and number of rows, without resolving it."""
    tree = load_yaml(file)
    rows = math.prod(len(bundles) for bundles in (tree.get("axes") or {}).values())
    return {"id": tree.get("id", file.stem), "title": tree.get("title", ""), "rows": rows}


def find_experiment(name: str) -> Path:
    """The file of an experiment, by its name or by its path."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    known = experiment_files()
    if name not in known:
        raise UserError(f"no experiment '{name}' in {experiments_dir()}: {did_you_mean(name, known)}")
    return known[name]


# --- YAML and layers ------------------------------------------------------------------------------------


def load_yaml(path: Path) -> dict:
    """A YAML mapping as plain containers, interpolations unresolved.

    Raises UserError where the file is missing, is not YAML or is not a mapping."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping at the top level, found {type(tree).__name__}")
    return tree


def overlay(base: Any, over: Any) -> Any:
    """``over`` laid on ``base``, recursively; a mapping that changes ``kind`` replaces the old one."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "kind" in over and over["kind"] != base.get("kind"):
        return over
    return {**base, **{key: overlay(base.get(key), value) for key, value in over.items()}}


def resolve(tree: dict, source: str) -> dict:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_one_line(error)}") from None


def parse_overrides(pairs: tuple[str, ...] | list[str]) -> dict:
    """``key=value`` words as a tree; values are read as YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for pair in pairs:
        key, sign, _ = pair.partition("=")
        if not sign or not key:
            raise UserError(f"'{pair}': overrides are written key=value, as in train.steps=100")
        top = key.split(".")[0]
        if top not in (*RUN_KEYS, "parts"):
            raise UserError(f"override '{pair}': unknown key '{top}', {did_you_mean(top, (*RUN_KEYS, 'parts'))}")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)), resolve=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"overrides {' '.join(pairs)}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()


# --- experiments ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """One table or figure at one scale, every row resolved and checked."""

    id: str
    title: str
    source: str
    scale: str
    file: Path
    labels: dict[str, dict[str, dict[str, str]]]  # axis -> bundle -> what the table prints for it
    layout: dict[str, list[str]]
    paper: dict[str, dict[str, float]]  # row -> published numbers
    orderings: list[dict]
    rows: dict[str, RunSpec]  # "bundle/bundle/..." in the order of the axes

    def bundles(self, row: str) -> dict[str, str]:
        """The row's bundle on each axis."""
        return dict(zip(self.labels, row.split("/")))


def load_experiment(name: str, scale: str, overrides: tuple[str, ...] | list[str] = ()) -> Experiment:
    """Read, layer, expand and check an experiment.

    Raises UserError naming the file and the key for anything that is not as it should be."""
    file = find_experiment(name)
    own = load_yaml(file)
    _known_keys(file, own, EXPERIMENT_KEYS)
    files = [file]
    tree: dict = {}
    if base := own.get("base"):
        files.insert(0, _beside(file, "base", base))
        tree = load_yaml(files[0])
        _known_keys(files[0], tree, ("run", "parts"))
    scale_file = _beside(file, "scale", scale)
    scale_tree = load_yaml(scale_file)
    _known_keys(scale_file, scale_tree, ("run", "parts"))
    files.append(scale_file)
    section = (own.get("scales") or {}).get(scale) or {}
    command_line = parse_overrides(overrides)
    parts = {"parts": command_line.pop("parts")} if "parts" in command_line else {}
    for layer in (own, scale_tree, section, parts):
        tree = overlay(tree, {k: v for k, v in layer.items() if k != "scales"})
    tree = resolve(tree, str(file))

    for key in ("id", "axes", "layout"):
        if not tree.get(key):
            raise UserError(f"{file}: key '{key}' is missing")
    axes = tree["axes"]
    _known_keys(file, tree["layout"], LAYOUT_KEYS)
    rows = {}
    for names in itertools.product(*(axes[a] for a in axes)):
        row = "/".join(names)
        spec_tree = tree.get("run") or {}
        for axis, bundle in zip(axes, names):
            spec_tree = overlay(spec_tree, axes[axis][bundle].get("set") or {})
        try:
            spec = finish(parse(RunSpec, overlay(spec_tree, command_line)))
        except KeyPathError as error:
            where = _blame(error.path, files, overrides)
            raise UserError(f"{where}: row '{row}': {error.path}: {error.message}") from None
        except UserError as error:
            raise UserError(f"{file}: row '{row}' at scale {scale}: {error}") from None
        rows[row] = spec
    paper = tree.get("paper") or {}
    for row in paper:
        if row not in rows:
            raise UserError(f"{file}: paper: no row '{row}', {did_you_mean(row, rows)}")
    return Experiment(
        id=tree["id"],
        title=tree.get("title", tree["id"]),
        source=tree.get("source", ""),
        scale=scale,
        file=file,
        labels={axis: {b: block.get("label") or {axis: b} for b, block in axes[axis].items()} for axis in axes},
        layout=tree["layout"],
        paper=paper,
        orderings=tree.get("orderings") or [],
        rows=rows,
    )


def _beside(file: Path, folder: str, name: str) -> Path:
    """``base/NAME.yaml`` or ``scale/NAME.yaml`` beside the experiment, else among the shipped ones."""
    for root in (file.parent, experiments_dir()):
        if (root / folder / f"{name}.yaml").is_file():
            return root / folder / f"{name}.yaml"
    known = [p.stem for p in (experiments_dir() / folder).glob("*.yaml")]
    raise UserError(f"{file}: no {folder} overlay '{name}', {did_you_mean(name, known)}")


def _known_keys(file: Path, tree: dict, known: tuple[str, ...]) -> None:
    for key in tree:
        if key not in known:
            raise UserError(f"{_blame(str(key), [file], ())}: unknown key '{key}', {did_you_mean(key, known)}")


def _blame(path: str, files: list[Path], overrides) -> str:
    """Where the last component of a dotted key was written: the command line, file:line, or the files."""
    key = re.sub(r"\[\d+\]$", "", path).split(".")[-1]
    if any(o.split("=")[0].split(".")[-1] == key for o in overrides):
        return "command line"
    for file in reversed(files):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if re.search(rf"(^|[\s{{,.'\"])({re.escape(key)})['\"]?\s*:", line.split(" #")[0]):
                return f"{file}:{number}"
    return str(files[0])
