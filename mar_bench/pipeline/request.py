"""What a command asks for: words, seeds and row patterns, resolved to experiments and their runs."""

from __future__ import annotations

import fnmatch
import math

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, chosen_rows, plan_runs
from mar_bench.config.spec import CHOICE_SEED, RUN_KEYS
from mar_bench.config.yaml_layers import experiment_files
from mar_bench.records.provenance import device_name
from mar_bench.records.record import Record
from mar_bench.utils.errors import UserError


def names_and_overrides(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Split words into experiments and overrides; a key without a value counts as a (bad) override."""

    def is_override(word: str) -> bool:
        block, dot, _ = word.partition(".")
        return "=" in word or bool(dot) and block in (*RUN_KEYS, "parts")

    return [w for w in words or () if not is_override(w)], [w for w in words or () if is_override(w)]


def named(names: list[str], every: bool) -> list[str]:
    """The experiments that a command is about. Raises UserError for none, and for --all beside names."""
    if every and names:
        raise UserError(f"--all means every experiment; leave out {' '.join(names)}")
    if not (names or every):
        raise UserError("this needs an experiment (mar-bench list shows them), or --all")
    return list(experiment_files()) if every else names


def no_seeds(overrides: list[str] | None) -> list[str]:
    """The overrides. Raises UserError for one that sets a seed, which is an option's job."""
    for key, option in (("train.seed", "--seeds"), ("sampling.seed", "--sampling-seeds")):
        if any(word.partition("=")[0] == key for word in overrides or ()):
            raise UserError(f"{key} is chosen by {option} of run and plan; a table shows every seed that has records")
    return overrides or []


def load(name: str, scale: str, overrides: list[str] | None, records: dict[str, Record]) -> Experiment:
    """An experiment, with every cell of a sweep at the point that the records choose."""
    return with_choices(load_experiment(name, scale, overrides or ()), records)


def load_all(words: list[str] | None, every: bool, scale: str, records: dict[str, Record]) -> list[Experiment]:
    """The experiments that a command's words name, with its overrides."""
    names, overrides = names_and_overrides(words)
    return [load(name, scale, no_seeds(overrides), records) for name in named(names, every)]


def parse_seeds(option: str, text: str | None) -> list[int] | None:
    """``0,1,2`` as whole numbers; None if the option was not given."""
    if text is None:
        return None
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers separated by commas, as in 0,1,2") from None
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UserError(f"{option} {text}: seeds are 0 or more and below 2^63")
    return list(dict.fromkeys(seeds))


def seeds_of(
    experiment: Experiment, seeds: str | None, sampling_seeds: str | None, every: bool
) -> tuple[list[int] | None, list[int] | None]:
    """Training and sampling seeds: those given, or the experiment file's ("own", implied by --all)."""

    def chosen(option: str, text: str | None, kind: str) -> list[int] | None:
        own = text == "own" or text is None and every
        return experiment.seeds.get(kind) if own else parse_seeds(option, text)

    sampling = chosen("--sampling-seeds", sampling_seeds, "sampling")
    if CHOICE_SEED in (sampling or ()):
        raise UserError(f"--sampling-seeds {sampling_seeds}: {CHOICE_SEED} is the seed on which sweeps are compared")
    return chosen("--seeds", seeds, "training"), sampling


def plan_of(
    experiments: list[Experiment],
    seeds: str | None,
    sampling_seeds: str | None,
    only: str | None,
    every: bool,
    device: str | None = None,
) -> dict[str, list[Run]]:
    """The runs of each experiment by its id. ``device``: name of the one whose speed is measured; default: this one."""
    planned: dict[str, list[Run]] = {}
    files: dict[str, object] = {}
    for experiment in experiments:
        if (file := files.setdefault(experiment.id, experiment.file)) != experiment.file:
            raise UserError(f"{experiment.file}: its id '{experiment.id}' is also that of {file}; give it another")
        if every and only is not None and not fnmatch.filter(experiment.rows, only):
            continue
        here = device or device_name(next(iter(experiment.rows.values())).compute.device)
        chosen = seeds_of(experiment, seeds, sampling_seeds, every)
        planned[experiment.id] = plan_runs(experiment, *chosen, only, here)
    if not planned:
        raise UserError(f"--only '{only}' matches no row of any experiment")
    return planned


def not_chosen(
    experiments: list[Experiment], seeds: str | None, sampling_seeds: str | None, only: str | None, every: bool
) -> int:
    """The number of evaluations that cannot be planned yet because their sweep point is not chosen."""
    count = 0
    for experiment in experiments:
        open_rows = sum(map(experiment.is_open, chosen_rows(experiment, only, every)))
        count += open_rows * math.prod(len(s or [0]) for s in seeds_of(experiment, seeds, sampling_seeds, every))
    return count


def once(planned: dict[str, list[Run]]) -> list[Run]:
    """The runs of several experiments, each id once; a cell takes precedence over a sweep point with its id."""
    found: dict[str, Run] = {}
    for run in (run for runs in planned.values() for run in runs):
        if run.id not in found or (run.choice and not found[run.id].choice):
            found[run.id] = run
    return list(found.values())
