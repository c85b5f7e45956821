"""What commands share: the application, options, arguments, and how they become experiments and runs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.pipeline.request import (  # noqa: F401, the commands import them from here
    load,
    load_all,
    names_and_overrides,
    no_seeds,
    not_chosen,
    once,
    parse_seeds,
    plan_of,
)
from mar_bench.utils.errors import UserError

app = typer.Typer(
    help="Benchmark and reproduction suite for discrete against continuous autoregressive image generation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Scale = Annotated[str, typer.Option(metavar="SCALE", help="An overlay in experiments/scale: smoke, tiny, desk, paper.")]
All = Annotated[bool, typer.Option("--all", help="All experiments.")]
_OWN = "own: the experiment file's, implied by --all. Default: 0."
Seeds = Annotated[str, typer.Option(metavar="0,1,2", help=f"Training seeds; {_OWN}")]
SamplingSeeds = Annotated[
    str, typer.Option(metavar="0,1,2", help=f"Sampling seeds: other images from the same weights; {_OWN}")
]
Only = Annotated[
    str, typer.Option(metavar="PATTERN", help="Shell pattern for row names, such as 'mar/*' or '*/diff/guided'.")
]


def _folder(name: str, help_text: str, default: str | None = None):
    """A folder as option and environment variable; ``default`` is shown in the help."""
    return typer.Option(metavar="DIR", help=help_text, envvar=f"MAR_BENCH_{name}", show_default=default or True)


Runs = Annotated[str | None, _folder("RUNS", "Folder of checkpoints, latents and samples.", "runs")]
Records = Annotated[
    str | None, _folder("RECORDS", "Folder of records, the results.", "results/records in a checkout, else records")
]
Reports = Annotated[str, _folder("REPORTS", "Folder of tables and figures: <reports>/<scale>/<experiment>.*")]
Weights = Annotated[str, _folder("WEIGHTS", "Folder of public files.")]
ExperimentName = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A name (see list) or a YAML file.")]
ExperimentNames = Annotated[
    list[str] | None, typer.Argument(metavar="EXPERIMENT|KEY=VALUE", help="Names or YAML files, then overrides.")
]
Overrides = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", help="Overrides of the spec, such as train.steps=100.")
]


def results(runs: str | None, records: str | None):
    """The two places and all records. Raises UserError for a broken record."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.record import CONFLICTS, conflicting_ids, read_records

    places = default_places(runs, records)
    if names := conflicting_ids(places.records):
        where = places.records / CONFLICTS
        print(f"note: records that disagree are left out, in {where}: {', '.join(names)}", file=sys.stderr)
    return places, read_records(places.records)


def is_record(name: str) -> bool:
    """Whether a word names a record by id or file."""
    return name.endswith(".json") or re.fullmatch("[0-9a-f]{12}", name) is not None


def find_record(name: str, runs: str | None, records: str | None):
    """The two places, and a record by id or file. Raises UserError if there is none."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.record import conflicting_files, read_record

    places = default_places(runs, records)
    if files := conflicting_files(places.records, name):
        raise UserError(f"record {name} is set aside, its files disagree: name one of {', '.join(map(str, files))}")
    path = Path(name) if name.endswith(".json") else places.records / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record {path}; name a record's id or its file")
    return places, read_record(path)


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
