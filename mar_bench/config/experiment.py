"""YAML -> Experiment -> [Run]: layers, axes of named bundles, strict parsing and cross-field checks.

Layers, later ones win: base file, experiment, scale overlay, the experiment's own section for that scale,
the bundles of a row, ``key=value`` from the command line. A block whose ``kind`` changes is replaced whole.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mar_bench.config.checks import finish
from mar_bench.config.experiment_checks import check_block, check_experiment, check_keys
from mar_bench.config.parse import KeyPathError, join, overlay, parse
from mar_bench.config.spec import CHOICE_SEED, RunSpec
from mar_bench.config.sweeps import Search, Sweep, points_of, searches_of, sweep_of
from mar_bench.records.paper import PublishedRow, lookup, published
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import shipped

SCALES = ("smoke", "tiny", "desk", "paper")
EXPERIMENT_KEYS = (
    "id", "title", "source", "base", "run", "parts", "seeds", "axes", "search", "layout", "figure", "paper",
    "quoted", "orderings", "scales",
)  # fmt: skip
LAYER_KEYS = ("run", "parts", "seeds")  # of a base and of a scale
SECTION_KEYS = tuple(key for key in EXPERIMENT_KEYS if key not in ("id", "base", "scales"))
RUN_KEYS = tuple(f.name for f in fields(RunSpec))


# --- where experiments live -----------------------------------------------------------------------------


def experiments_dir() -> Path:
    """``$MAR_BENCH_EXPERIMENTS``, else the folder of the checkout, else the copy inside the package."""
    return shipped("experiments", "experiments", "MAR_BENCH_EXPERIMENTS")


def experiment_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(experiments_dir().glob("*.yaml"))}


def scales() -> list[str]:
    """The scale overlays that there are, the usual ones first, from small to large."""
    found = {path.stem for path in (experiments_dir() / "scale").glob("*.yaml")}
    return sorted(found, key=lambda s: (SCALES.index(s) if s in SCALES else len(SCALES), s))


def experiment_summary(file: Path) -> dict[str, Any]:
    """An experiment's id, title and number of rows, without resolving it."""
    tree = load_yaml(file)
    axes = tree.get("axes")
    bundles = list(axes.values()) if isinstance(axes, dict) else [None]
    rows = math.prod(map(len, bundles)) if all(isinstance(b, dict) for b in bundles) else 0
    return {"id": file.stem, "title": str(tree.get("title", "")), "rows": rows}


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


def resolve(tree: dict, source: str) -> dict:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except InterpolationKeyError as error:
        missing = re.search(r"'(.*)' not found", str(error))[1]
        hint = did_you_mean(missing, [p for p, _ in _leaves_and_blocks(tree) if p.count(".") == missing.count(".")])
        raise UserError(f"{source}: {error.full_key}: there is no '{missing}', {hint}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_one_line(error)}") from None


def _leaves_and_blocks(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of a tree and what is there."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield join(path, key), value
        yield from _leaves_and_blocks(value, join(path, key))


def parse_overrides(pairs: tuple[str, ...] | list[str]) -> dict:
    """``key=value`` words as a tree; values are read as YAML."""
    import yaml
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
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"overrides {' '.join(pairs)}: {_one_line(error)}") from None
    if not isinstance(tree.get("parts", {}), dict):
        raise UserError(f"override parts={tree['parts']}: parts are blocks; name one, as in parts.few_steps=4")
    return tree


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
    paper: dict[str, dict[str, float]]  # row, or bundles of the row axes -> published numbers
    orderings: list[dict]
    rows: dict[str, RunSpec]  # "bundle/bundle/..." in the order of the axes
    absent: dict[str, str] = field(default_factory=dict)  # row that this scale has not -> what stands in its place
    quoted: list[PublishedRow] = field(default_factory=list)  # published rows of other systems
    figure: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)  # training, sampling: what run does unless told
    searches: list[Search] = field(default_factory=list)
    sweeps: dict[str, Sweep] = field(default_factory=dict)  # row -> the points among which one is to be chosen
    choices: dict[str, dict] = field(default_factory=dict)  # row -> how its point was chosen (selection.py)

    def is_open(self, row: str) -> bool:
        """Whether the row's point is still to be chosen, so that it cannot be run yet."""
        chosen = row in self.sweeps or any(row in search.rows for search in self.searches)
        return chosen and row not in self.choices

    def bundles(self, row: str) -> dict[str, str]:
        """The row's bundle on each axis."""
        return dict(zip(self.labels, row.split("/")))


def load_experiment(name: str, scale: str, overrides: tuple[str, ...] | list[str] = ()) -> Experiment:
    """Read, layer, expand and check an experiment.

    Raises UserError naming the file and the key for anything that is not as it should be."""
    file = find_experiment(name)
    command_line = parse_overrides(overrides)
    tree, files = _layered(file, scale, command_line.pop("parts", None))
    every_bundle = {axis: list(bundles) for axis, bundles in tree["axes"].items()}
    axes = {a: {n: b for n, b in bundles.items() if b is not None} for a, bundles in tree["axes"].items()}
    rows, absent, sweeps = {}, {}, {}
    for names in itertools.product(*(axes[a] for a in axes)):
        row = "/".join(names)
        bundles = [axes[axis][name] for axis, name in zip(axes, names)]
        if why := _absent(bundles, names):
            absent[row] = why
            continue
        spec_tree = tree.get("run") or {}
        for bundle in bundles:
            spec_tree = overlay(spec_tree, bundle.get("set") or {})
        try:
            specs = {
                finish(parse(RunSpec, overlay(overlay(spec_tree, point), command_line))): None
                for point in points_of(bundles)
            }
            rows[row] = next(iter(specs))
            if rows[row].sampling.seed == CHOICE_SEED:
                raise UserError(f"sampling.seed {CHOICE_SEED} is the one on which sweeps are compared; take another")
            if len(specs) > 1:
                sweeps[row] = sweep_of(bundles, list(specs))
        except KeyPathError as error:
            where = _blame(error.path, error.value, files, overrides)
            if where == "command line" and "of kind" in error.message:
                error.message += "; where rows differ, override the part that has it (parts.*)"
            raise UserError(f"{where}: row '{row}': {error.path}: {error.message}") from None
        except UserError as error:
            raise UserError(f"{file}: row '{row}' at scale {scale}: {error}") from None
    return Experiment(
        id=tree["id"],
        title=tree.get("title") or tree["id"],
        source=tree.get("source") or "",
        scale=scale,
        file=file,
        labels={
            axis: {b: {axis: b} if block.get("label") is None else block["label"] for b, block in axes[axis].items()}
            for axis in axes
        },
        layout=tree["layout"],
        **_published(file, tree, every_bundle),
        orderings=tree.get("orderings") or [],
        rows=rows,
        absent=absent,
        figure=tree.get("figure") or {},
        seeds=tree.get("seeds") or {},
        searches=searches_of(file, tree.get("search") or {}, rows, sweeps, overrides),
        sweeps=sweeps,
    )


def _absent(bundles: list[dict], names: tuple[str, ...]) -> str | None:
    """What stands in the place of a row that does not exist: of a bundle, or of a bundle beside another one."""
    for bundle in bundles:
        why = bundle.get("absent")
        if isinstance(why, dict):
            why = next((text for name, text in why.items() if name in names), None)
        if why:
            return why
    return None


def _published(file: Path, tree: dict, every_bundle: dict[str, list[str]]) -> dict[str, Any]:
    """``paper`` and ``quoted`` of an experiment: numbers written there, or references to results/paper.

    A key is a row, or the bundles of the row axes alone for what the paper gives once a line of its table; a reference
    to a whole published row brings all its columns. What is of a bundle that this scale leaves out is left out."""
    given, layout = tree.get("paper") or {}, tree["layout"]
    try:
        if isinstance(given, str):
            given = {name: f"{given}/{name}" for name in published(given)}
        here = [axis for axis in every_bundle if axis not in layout.get("columns", [])]
        names = {
            "/".join(names): all(tree["axes"][axis].get(name) is not None for axis, name in zip(axes, names))
            for axes in (here, list(every_bundle))
            for names in itertools.product(*(every_bundle[axis] for axis in axes))
        }
        paper: dict[str, dict[str, float]] = {}
        for key, value in given.items():
            cells = {key: value}
            if isinstance(value, str):
                table, _, row = value.partition("/")
                whole = published(table).get(row)
                columns = whole.numbers if whole else {"": lookup(value)}
                cells = {"/".join(filter(None, (key, column))): numbers for column, numbers in columns.items()}
            for cell, numbers in cells.items():
                if cell not in names:
                    raise UserError(f"paper.{cell}: no such row, {did_you_mean(cell, names)}")
                if names[cell]:
                    paper[cell] = numbers
        quoted = []
        for table in tree.get("quoted") or []:
            used = {value for value in given.values() if isinstance(value, str)}
            quoted += [row for row in published(table).values() if f"{table}/{row.row}" not in used]
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return {"paper": paper, "quoted": quoted}


def _layered(file: Path, scale: str, parts: Any) -> tuple[dict, list[Path]]:
    """All layers but the bundles and the run's overrides as one resolved tree, and the files it is made of."""
    own = load_yaml(file)
    _known_keys(file, own, EXPERIMENT_KEYS)
    files = [file]
    layers = []
    if base := own.get("base"):
        files.insert(0, _beside(file, "base", base))
        layers.append(load_yaml(files[0]))
        _known_keys(files[0], layers[0], LAYER_KEYS)
    files.append(_beside(file, "scale", scale))
    scale_tree = load_yaml(files[-1])
    _known_keys(files[-1], scale_tree, LAYER_KEYS)
    layers += [{k: v for k, v in own.items() if k not in ("base", "scales")}, scale_tree]
    layers.append(_section(file, own.get("scales") or {}, scale))
    tree: dict = {}
    try:
        for layer in layers:
            tree = overlay(tree, {k: v for k, v in layer.items() if v is not None})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if parts is not None:
        _known_parts(tree, parts)
        tree = overlay(tree, {"parts": parts})
    tree = resolve(tree, str(file))
    try:
        check_experiment(tree)
    except KeyPathError as error:
        where = _blame(error.path, error.value, files, ())
        raise UserError(f"{where}: {error.path}: {error.message}") from None
    return tree, files


def _section(file: Path, sections: Any, scale: str) -> dict:
    """What the experiment itself changes at a scale."""
    if not isinstance(sections, dict):
        raise UserError(f"{file}: scales: expected a block of scales, found {sections!r}")
    known = _overlays(file, "scale")
    for name in sections:
        if name not in known:
            raise UserError(f"{file}: scales: no scale '{name}', {did_you_mean(name, known)}")
    section = sections.get(scale) or {}
    if not isinstance(section, dict):
        raise UserError(f"{file}: scales.{scale}: expected a block of keys, found {section!r}")
    _known_keys(file, section, SECTION_KEYS)
    return section


def _known_parts(tree: dict, parts: Any) -> None:
    """An override of a part must be one: inside what a row refers to, the spec's own check says the rest."""
    known = dict(_leaves_and_blocks(tree))
    used = set(re.findall(r"\$\{([\w.]+)\}", str(tree)))
    for path, _ in _leaves_and_blocks({"parts": parts}):
        inside = any(path.startswith(f"{block}.") for block in used)
        if path not in known and not inside:
            folder = path.rpartition(".")[0]
            siblings = [p for p in known if p.rpartition(".")[0] == folder]
            raise UserError(f"override '{path}': no such part, {did_you_mean(path, siblings)}")


def _overlays(file: Path, folder: str) -> dict[str, Path]:
    """The files of ``base`` or ``scale`` by name: those beside the experiment before the shipped ones."""
    roots = (experiments_dir(), file.parent)
    return {path.stem: path for root in roots for path in sorted((root / folder).glob("*.yaml"))}


def _beside(file: Path, folder: str, name: str) -> Path:
    known = _overlays(file, folder)
    if name not in list(known):
        raise UserError(f"{file}: no {folder} overlay '{name}', {did_you_mean(name, known)}")
    return known[name]


def _known_keys(file: Path, tree: dict, known: tuple[str, ...]) -> None:
    """Of a layer's keys: that they are known, and that run and parts are blocks."""
    try:
        check_keys("", tree, known)
        for key in LAYER_KEYS:
            check_block(key, tree.get(key) or {})
    except KeyPathError as error:
        raise UserError(f"{_blame(error.path, error.value, [file], ())}: {error.path}: {error.message}") from None


def _blame(path: str, value: Any, files: list[Path], overrides: tuple[str, ...] | list[str]) -> str:
    """Where a key was written: the command line, ``file:line``, or the experiment's file.

    A key may stand under other names than in the spec (in a part, in a bundle): what counts is first that it
    has the bad value, then how many of its last names agree, then that the layer is a late one."""
    path = re.sub(r"\[\d+\]", "", path)
    names = path.split(".")
    for override in overrides:
        key, _, text = override.partition("=")
        if f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}."):
            return "command line"
        if key.startswith("parts.") and (key.split(".")[-1] in names or str(value) in text):
            return "command line"
    best, where = (), str(files[-2] if len(files) > 1 else files[0])
    for layer, file in enumerate(files):
        for written, text, line in _lines(file):
            pairs = zip(reversed(names), reversed(written))
            agree = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            score = (text == str(value), agree, layer)
            if agree and score > best:
                best, where = score, f"{file}:{line}"
    return where


def _lines(file: Path) -> Iterator[tuple[list[str], str | None, int]]:
    """Every key of a YAML file: the names down to it, its value's text (None for a block) and its line."""
    import yaml

    def walk(node: yaml.Node, above: list[str]) -> Iterator[tuple[list[str], str | None, int]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            names = [*above, str(key.value)]
            yield names, value.value if isinstance(value, yaml.ScalarNode) else None, key.start_mark.line + 1
            yield from walk(value, names)
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            yield from walk(item, above)

    yield from walk(yaml.compose(file.read_text()), [])
