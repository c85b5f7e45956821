"""YAML -> Experiment -> [Run]: layers, axes of named bundles, strict parsing and cross-field checks.

Layers, later ones win: base file, experiment, scale overlay, the experiment's own section for that scale,
the bundles of a row, ``key=value`` from the command line. A block whose ``kind`` changes is replaced whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import types
import typing
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union

from mar_bench.errors import UserError, did_you_mean
from mar_bench.spec import RunSpec, num_tokens

SCALES = ("smoke", "tiny", "desk", "paper")
EXPERIMENT_KEYS = ("id", "title", "source", "base", "run", "parts", "axes", "layout", "paper", "orderings", "scales")
LAYOUT_KEYS = ("rows", "columns", "metrics", "show")
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


# --- strict parsing -------------------------------------------------------------------------------------


class _KeyError(Exception):
    """A bad key or value inside a tree: its dotted path and what is wrong, before the file is known."""

    def __init__(self, path: str, message: str):
        super().__init__(message)
        self.path, self.message = path, message


def parse(expected: Any, value: Any, path: str = "") -> Any:
    """``value`` as an instance of the type ``expected``: dataclass, union of kinds, Literal, tuple or scalar."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        members = [a for a in args if a is not type(None)]
        if all(is_dataclass(m) for m in members):
            return parse(_kind_of(members, value, path), value, path)
        return parse(members[0], value, path)
    if is_dataclass(expected):
        return _parse_dataclass(expected, value, path)
    if origin is Literal:
        if value not in args:
            raise _KeyError(path, f"'{value}' is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise _KeyError(path, f"expected a list of {len(args)} values, found {value!r}")
        return tuple(parse(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    return _parse_scalar(expected, value, path)


def _parse_scalar(expected: type, value: Any, path: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int and number and float(value).is_integer():
        return int(value)
    if expected is float and number and value == value and abs(value) != float("inf"):
        return float(value)
    if expected in (bool, str) and type(value) is expected:
        return value
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    raise _KeyError(path, f"expected {names[expected]}, found {value!r}")


def _kind_of(members: list[type], value: Any, path: str) -> type:
    kinds = {m.kind: m for m in members}
    if not isinstance(value, dict):
        raise _KeyError(path, f"expected a block with a kind ({', '.join(kinds)}), found {value!r}")
    kind = value.get("kind")
    if kind not in kinds:
        raise _KeyError(f"{path}.kind", f"unknown kind '{kind}', {did_you_mean(kind, kinds)}")
    return kinds[kind]


def _parse_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _KeyError(path, f"expected a block of keys, found {value!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in fields(cls)}
    for key in value:
        if key not in known:
            where = f" of kind '{cls.kind}'" if hasattr(cls, "kind") else ""
            raise _KeyError(_join(path, key), f"unknown key '{key}'{where}, {did_you_mean(key, known)}")
    return cls(**{key: parse(known[key], v, _join(path, key)) for key, v in value.items()})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


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
        except _KeyError as error:
            raise UserError(f"{_blame(error.path, files, overrides)}: row '{row}': {error.path}: {error.message}") from None
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


# --- normal form and cross-field checks -----------------------------------------------------------------


def finish(spec: RunSpec) -> RunSpec:
    """Fill what follows from other fields, drop knobs that the row's parts do not have, and check.

    So two rows that draw the same images have the same spec and the same ids."""
    length, sampling, model = num_tokens(spec.space), spec.sampling, spec.model
    if model.head.denoises and sampling.num_diffusion_steps is None:
        raise UserError(f"sampling.num_diffusion_steps is null but the {model.head.kind} head denoises; give a number")
    spec = replace(
        spec,
        sampling=replace(
            sampling,
            order=sampling.order or model.order,
            num_ar_steps=length if sampling.num_ar_steps is None else sampling.num_ar_steps,
            num_diffusion_steps=sampling.num_diffusion_steps if model.head.denoises else None,
            clamp_x0=sampling.clamp_x0 if model.head.denoises else None,
            guidance_schedule="linear" if sampling.guidance_scale == 1 else sampling.guidance_schedule,
        ),
    )
    check(spec)
    return spec


def check(spec: RunSpec) -> None:
    """Cross-field rules. Raises UserError with the way out."""
    data, tokenizer, model, train, sampling = spec.data, spec.tokenizer, spec.model, spec.train, spec.sampling
    backbone, head = model.backbone, model.head
    stride = tokenizer.stride

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(message)

    need(
        stride > 0 and stride & (stride - 1) == 0 and data.image_size % stride == 0,
        f"tokenizer.stride {stride} must be a power of two that divides data.image_size {data.image_size}",
    )
    length = num_tokens(spec.space)
    need(
        isinstance(spec.space, head.space),
        f"head '{head.kind}' needs {head.space.__name__.lower()} tokens but tokenizer '{tokenizer.kind}' gives "
        f"{type(spec.space).__name__.lower()} ones; take another head or another tokenizer",
    )
    steps = sampling.num_ar_steps
    need(
        1 <= steps <= length,
        f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image (null: one token a step)",
    )
    need(
        backbone.attention != "causal" or steps == length,
        f"causal attention draws one token a step: sampling.num_ar_steps {steps} is fewer than the {length} tokens; "
        "set it to null or take the masked backbone",
    )
    need(
        backbone.attention != "causal" or sampling.order == model.order,
        f"a causal backbone trained in {model.order} order cannot be sampled in {sampling.order} order; "
        "leave sampling.order null",
    )
    need(
        sampling.guidance_scale == 1 or 0 < train.label_dropout < 1,
        f"guidance (sampling.guidance_scale {sampling.guidance_scale}) needs a model trained both with and without "
        f"class: train.label_dropout {train.label_dropout} must lie strictly between 0 and 1, or turn guidance off (1)",
    )
    need(backbone.dim % backbone.num_heads == 0, f"model.backbone.dim {backbone.dim} is not a multiple of num_heads")
    if head.denoises:
        need(
            1 <= sampling.num_diffusion_steps <= head.num_train_timesteps,
            f"sampling.num_diffusion_steps {sampling.num_diffusion_steps} must lie between 1 and "
            f"model.head.num_train_timesteps {head.num_train_timesteps}",
        )
    if hasattr(backbone, "masking"):
        masking = backbone.masking
        need(
            0 <= masking.low <= masking.high <= 1 and masking.high > 0,
            f"model.backbone.masking: 0 <= low {masking.low} <= high {masking.high} <= 1 must hold",
        )
        if masking.kind == "truncated_normal":
            need(masking.std > 0, f"model.backbone.masking.std {masking.std} must be above 0")
    need(0 <= train.label_dropout <= 1, f"train.label_dropout {train.label_dropout} must lie between 0 and 1")
    need(0 <= train.ema_decay < 1, f"train.ema_decay {train.ema_decay} must lie in [0, 1)")
    need(sampling.temperature > 0, f"sampling.temperature {sampling.temperature} must be above 0")
    need(
        sampling.clamp_x0 is None or sampling.clamp_x0 > 0,
        f"sampling.clamp_x0 {sampling.clamp_x0} must be above 0 (null: no clamp)",
    )
    need(sampling.num_images >= 2, f"sampling.num_images {sampling.num_images}: a distance needs at least 2 images")
    need(0 <= backbone.dropout < 1, f"model.backbone.dropout {backbone.dropout} must lie in [0, 1)")
    need(getattr(data, "heldout", 2) >= 2, f"data.heldout {getattr(data, 'heldout', 0)} must be at least 2")
    for path, value in _positive(spec):
        need(value > 0, f"{path} {value} must be above 0")


_POSITIVE = {
    "steps", "batch_size", "lr", "width", "dim", "depth", "encoder_depth", "decoder_depth", "num_heads", "latent_dim",
    "vocab_size", "code_dim", "feature_dim", "num_class_tokens", "draws_per_token", "num_train_timesteps", "repeats",
    "threads", "checkpoint_every", "is_splits", "image_size", "channels", "num_classes", "mlp_ratio", "grad_clip",
    "scale", "init_std",
}  # fmt: skip


def _positive(block: Any, path: str = ""):
    for f in fields(block):
        value = getattr(block, f.name)
        if is_dataclass(value):
            yield from _positive(value, _join(path, f.name))
        elif f.name in _POSITIVE:
            yield _join(path, f.name), value


def as_tree(block: Any) -> dict:
    """A spec as plain containers, every field written out."""
    return dataclasses.asdict(block)
