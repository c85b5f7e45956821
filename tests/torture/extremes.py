"""Every field of specs, cluster profiles and experiment files at extreme values: accepted, or refused in one line."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mar_bench.cluster.profile import BLOCKS, Profile, Resources, load_profile, minutes
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import plan_runs
from mar_bench.config.parse import as_tree
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.room import check_room
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from mar_bench.utils.yaml_text import to_yaml

VALUES = (
    "0", "-1", "1", "2", "1e-320", "1e-9", "0.5", "1e5", "1e18", "9223372036854775808", "1e308", "-1e308", "1e400",
    ".inf", "-.inf", ".nan", "1" + "0" * 6000, "true", "null", "~", "", "''", "[]", "[1, 2]", "{}", "{a: 1}", "x",
    "010", "0x10", "1:30", "1_000", "[", "${oc.env:HOME}", "$NO_SUCH_VARIABLE/x", "~/x",
)  # fmt: skip
# scale, tokenizer and other settings of rows that together have every kind of part
ROWS = {
    "mar": ("smoke", "continuous", 'model: {backbone: "${parts.backbone.masked}", head: "${parts.head.diffusion}"}'),
    "codes": ("tiny", "discrete", "model: {head: {kind: cross_entropy}}, sampling: {order: confidence}"),
    "causal": (
        "smoke",
        "continuous",
        'model: {order: raster, backbone: "${parts.backbone.causal}", head: {kind: gmm}}',
    ),
    "energy": ("tiny", "discrete_latents", 'model: {head: "${parts.head.energy}"}'),
    "flow": ("desk", "grouped", 'model: {head: "${parts.head.flow}"}'),
    "dit": ("smoke", "whole_image", 'model: "${parts.dit}", train: "${parts.dit_training}"'),
    "paper": ("paper", "continuous", "model: {}"),
    "paper codes": ("paper", "discrete", "model: {head: {kind: cross_entropy}}"),
    "published": ("paper", "consistency", "train: {published: mar-l}"),
}
EXPERIMENT = """
id: extreme
base: imagenet256
axes: {part: {one: {label: {part: one}, set: {tokenizer: "${parts.tokenizer.TOK}", REST}}}}
run: {sampling: {num_ar_steps: null}}
layout: {rows: [part], metrics: [fd]}
"""
# values of an experiment file outside its specs, as text in place of the first part of each pair
ELSEWHERE = {
    "seeds": ("layout:", "seeds: {training: [VALUE]}\nlayout:"),
    "label": ("part: one}", "part: VALUE}"),
    "absent": ("{label:", "{absent: VALUE, label:"),
    "minimise": ("{label:", "{select: {minimise: fd, over: {sampling.temperature: [VALUE, 0.9]}}, label:"),
    "paper": ("layout:", "paper: {one: {fd: VALUE}}\nlayout:"),
    "costs": ("layout:", "orderings: [{claim: a, axis: part, better: one, worse: one, costs_at_most: VALUE}]\nlayout:"),
    "base": ("base: imagenet256", "base: VALUE"),
    "id": ("id: extreme", "id: VALUE"),
    "title": ("layout:", "title: VALUE\nlayout:"),
    "layout": ("metrics: [fd]", "metrics: VALUE"),
}


class Case(NamedTuple):
    """A value of a field: ``read`` raises UserError with ``named`` in its message, or accepts the value."""

    title: str
    named: str
    read: Callable[[], object]


def field_extremes(every: int = 1) -> tuple[int, int, list[str]]:
    """Try every value of every field, or one of ``every`` cases: numbers tried and accepted, and the failures."""
    tried, accepted, failures = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for case in list(_cases(Path(folder)))[::every]:
            tried += 1
            try:
                case.read()
                accepted += 1
            except UserError as error:
                if case.named not in str(error) or "\n" in str(error) or len(str(error)) > 1000:
                    failures.append(f"{case.title}: its message is not one line that names {case.named}: {error}")
            except Exception:
                failures.append(f"{case.title}: {traceback.format_exc()}")
    return tried, accepted, failures


def _cases(folder: Path) -> Iterator[Case]:
    for row, (scale, tokenizer, rest) in ROWS.items():
        file = folder / f"{row.replace(' ', '-')}.yml"
        file.write_text(EXPERIMENT.replace("TOK", tokenizer).replace("REST", rest))
        (spec,) = load_experiment(str(file), scale).rows.values()
        for key in _keys(spec):
            for value in VALUES:
                yield Case(f"{row}: {key}={value[:30]}", key, _experiment(file, scale, f"{key}={value}"))
    for name, (old, new) in ELSEWHERE.items():
        for i, value in enumerate(VALUES):
            file = folder / f"{name}-{i}.yaml"
            text = EXPERIMENT.replace("TOK", "continuous").replace(", REST", "").replace(old, new)
            file.write_text(text.replace("VALUE", value))
            yield Case(f"{name}: {value[:30]}", file.name, _experiment(file, "smoke"))
    for i, (block, name) in enumerate(
        [("", f.name) for f in fields(Profile)] + [("job", f.name) for f in fields(Resources)]
    ):
        for j, value in enumerate(VALUES):
            file = folder / f"profile-{i}-{j}.yaml"
            text = f"{name}: {value}" if name == "kind" else f"kind: slurm\n{name}: {value}"
            file.write_text(f"kind: slurm\njob: {{time: '60', {name}: {value}}}\n" if block else text)
            yield Case(f"profile {block} {name}: {value[:30]}", file.name, lambda file=file: _profile(file))


def _keys(block: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all fields of a spec, blocks included."""
    for f in fields(block):
        yield (key := f"{path}{f.name}")
        if is_dataclass(inner := getattr(block, f.name)):
            yield from _keys(inner, f"{key}.")


def _experiment(file: Path, scale: str, *overrides: str) -> Callable[[], None]:
    def read() -> None:
        """As far as a plan goes."""
        experiment = load_experiment(str(file), scale, overrides)
        to_yaml({row: as_tree(spec) for row, spec in experiment.rows.items()})
        runs = plan_runs(experiment)
        try:
            check_room(runs)
        except UserError as error:  # names the stage and the row
            raise UserError(f"{file}, {overrides}: {error}") from None
        jobs_for(runs, Places(Path("/nowhere"), Path("/nowhere")))

    return read


def _profile(file: Path) -> None:
    profile = load_profile(str(file))
    for stage in BLOCKS:
        minutes(profile.resources(stage).time or "")
