"""What commands share: the application, options, arguments, and how they become experiments and runs."""

from __future__ import annotations

import fnmatch
import math
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mar_bench.utils.errors import UserError

app = typer.Typer(
    help="Benchmark and reproduction suite for discrete against continuous autoregressive image generation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Scale = Annotated[
    str, typer.Option(metavar="SCALE", help="An overlay in experiments/scale: smoke, tiny, desk or paper.")
]
OWN = "own"  # the seeds in the experiment file
All = Annotated[bool, typer.Option("--all", help="All experiments.")]
Seeds = Annotated[
    str,
    typer.Option(metavar="0,1,2", help="Training seeds; own: the experiment file's, implied by --all. Default: 0."),
]
SamplingSeeds = Annotated[
    str,
    typer.Option(
        metavar="0,1,2", help="Sampling seeds: other images from the same weights; own as in --seeds. Default: 0."
    ),
]
Only = Annotated[
    str, typer.Option(metavar="PATTERN", help="Shell pattern for row names, such as 'mar/*' or '*/diff/guided'.")
]


def _folder(name: str, help_text: str, default: str | None = None):
    """A folder as option and environment variable; ``default`` is shown in the help."""
    shown = default or True
    return typer.Option(metavar="DIR", help=help_text, envvar=f"MAR_BENCH_{name}", show_default=shown)


Runs = Annotated[str, _folder("RUNS", "Folder of checkpoints, latents and samples.", "runs")]
Records = Annotated[
    str, _folder("RECORDS", "Folder of records, the results.", "results/records in a checkout, else records")
]
Reports = Annotated[str, _folder("REPORTS", "Folder of tables and figures: <reports>/<scale>/<experiment>.*")]
Weights = Annotated[str, _folder("WEIGHTS", "Folder of public files.")]
ExperimentName = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A name (see list) or a YAML file.")]
ExperimentNames = Annotated[
    list[str], typer.Argument(metavar="EXPERIMENT|KEY=VALUE", help="Names or YAML files, then overrides.")
]
Overrides = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", help="Overrides of the spec, such as train.steps=100.")
]


def results(runs: str | None, records: str | None):
    """The two places and all records. Raises UserError for a broken record."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.record import CONFLICTS, read_records, set_aside

    places = default_places(runs, records)
    if names := set_aside(places.records):
        where = places.records / CONFLICTS
        print(f"note: records that disagree are left out, in {where}: {', '.join(names)}", file=sys.stderr)
    return places, read_records(places.records)


def is_record(name: str) -> bool:
    """Whether a word names a record by id or file."""
    return name.endswith(".json") or re.fullmatch("[0-9a-f]{12}", name) is not None


def find_record(name: str, runs: str | None, records: str | None):
    """The two places, and a record by id or file. Raises UserError if there is none."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.record import disagreeing, read_record

    places = default_places(runs, records)
    if files := disagreeing(places.records, name):
        raise UserError(f"record {name} is set aside, its files disagree: name one of {', '.join(map(str, files))}")
    path = Path(name) if name.endswith(".json") else places.records / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record {path}; name a record's id or its file")
    return places, read_record(path)


def load(name: str, scale: str, overrides: list[str] | None, records):
    """An experiment, with every sweep at the point chosen by the records."""
    from mar_bench.config.choices import with_choices
    from mar_bench.config.experiment import load_experiment

    return with_choices(load_experiment(name, scale, overrides or ()), records)


def named(names: list[str] | str | None, every: bool) -> list[str]:
    """The experiments a command applies to. Raises UserError for none, and for --all with names."""
    from mar_bench.config.experiment import experiment_files

    names = [names] if isinstance(names, str) else list(names or ())
    if every and names:
        raise UserError(f"--all is every experiment; leave out {' '.join(names)}")
    if not (names or every):
        raise UserError("this needs an experiment (mar-bench list has them), or --all")
    return list(experiment_files()) if every else names


def seeds_of(experiment, seeds: str | None, sampling_seeds: str | None, every: bool) -> tuple[list | None, list | None]:
    """Training and sampling seeds as requested; --all implies those of the experiment file."""
    from mar_bench.config.spec import CHOICE_SEED

    found = []
    for option, text, kind in (("--seeds", seeds, "training"), ("--sampling-seeds", sampling_seeds, "sampling")):
        own = text == OWN or text is None and every
        found.append(experiment.seeds.get(kind) if own else parse_seeds(option, text))
    if CHOICE_SEED in (found[1] or ()):
        raise UserError(f"--sampling-seeds {sampling_seeds}: {CHOICE_SEED} is the seed on which sweeps are compared")
    return found[0], found[1]


def plan_of(
    experiments: list, seeds, sampling_seeds, only: str | None, every: bool, device: str | None = None
) -> dict[str, list]:
    """The runs of each experiment by its id; for the seeds see ``seeds_of``.

    ``device``: name of the device whose speed is measured; None: this machine's."""
    from mar_bench.config.ids import plan_runs
    from mar_bench.records.provenance import device_name

    planned: dict[str, list] = {}
    files: dict[str, Path] = {}
    for experiment in experiments:
        if (file := files.setdefault(experiment.id, experiment.file)) != experiment.file:
            raise UserError(f"{experiment.file}: its id '{experiment.id}' is that of {file} too; give it another")
        if every and only is not None and not fnmatch.filter(experiment.rows, only):
            continue
        here = device or device_name(next(iter(experiment.rows.values())).compute.device)
        chosen = seeds_of(experiment, seeds, sampling_seeds, every)
        planned[experiment.id] = plan_runs(experiment, *chosen, only, here)
    if not planned:
        raise UserError(f"--only '{only}' matches no row of any experiment")
    return planned


def not_chosen(experiments: list, seeds: str | None, sampling_seeds: str | None, only: str | None, every: bool) -> int:
    """How many evaluations cannot be planned yet because their sweep point is not chosen."""
    from mar_bench.config.ids import chosen_rows

    count = 0
    for experiment in experiments:
        chosen = seeds_of(experiment, seeds, sampling_seeds, every)
        open_rows = sum(experiment.is_open(row) for row in chosen_rows(experiment, only, every))
        count += open_rows * math.prod(len(kind or [0]) for kind in chosen)
    return count


def once(planned: dict[str, list]) -> list:
    """The runs of several experiments, each id once; a cell takes precedence over a sweep point of the same id."""
    found: dict[str, Any] = {}
    for run in (run for runs in planned.values() for run in runs):
        if run.id not in found or (run.choice and not found[run.id].choice):
            found[run.id] = run
    return list(found.values())


def no_seeds(overrides: list[str] | None) -> list[str]:
    """The overrides. Raises UserError for one that sets a seed, which options do."""
    for key, option in (("train.seed", "--seeds"), ("sampling.seed", "--sampling-seeds")):
        if any(word.partition("=")[0] == key for word in overrides or ()):
            raise UserError(f"{key} is chosen by {option} of run and plan; a table shows every seed that has records")
    return overrides or []


def parse_seeds(option: str, text: str | None) -> list[int] | None:
    """``0,1,2`` as whole numbers; None if the option was not given."""
    if text is None:
        return None
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers with commas between, as in 0,1,2") from None
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UserError(f"{option} {text}: seeds are 0 or more and below 2^63")
    return list(dict.fromkeys(seeds))


def one_seed(option: str, text: str) -> int:
    """A single seed. Raises UserError for several."""
    found = parse_seeds(option, text)
    if len(found) != 1:
        raise UserError(f"{option} {text}: give a single seed")
    return found[0]


def split_row(name: str) -> tuple[str, str | None]:
    """``table1/mar/diff/guided`` -> experiment and row; a YAML file's path may hold slashes of its own."""
    if ".yaml" in name:
        file, _, row = name.partition(".yaml")
        return f"{file}.yaml", row.strip("/") or None
    experiment, _, row = name.partition("/")
    return experiment, row or None


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def names_and_overrides(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Split names from overrides. A key without value counts as an override; ``parse_overrides`` rejects it."""
    from mar_bench.config.experiment import RUN_KEYS

    def is_override(word: str) -> bool:
        block, dot, _ = word.partition(".")
        return "=" in word or bool(dot) and block in (*RUN_KEYS, "parts")

    return [w for w in words or () if not is_override(w)], [w for w in words or () if is_override(w)]
