"""The application, and the options, arguments and look-ups that commands share."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import mar_bench
from mar_bench.utils.console import printable
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import expanded


class _Command(TyperCommand):
    """A command that refuses an option given twice, of which it would ignore the first value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for param in {p for p in given if given.count(p) > 1 and not p.multiple and not getattr(p, "is_flag", False)}:
            raise UserError(f"{param.opts[0]} is given twice; leave one out")
        return super().parse_args(ctx, args)


class Typer(typer.Typer):
    def command(self, name: str | None = None, **more: Any) -> Any:
        return super().command(name, cls=_Command, **more)


app = Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        print(mar_bench.__version__)
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Benchmark and reproduction suite for discrete against continuous autoregressive image generation."""


Scale = Annotated[str, typer.Option(metavar="SCALE", help="An overlay in experiments/scale (see list).")]
All = Annotated[bool, typer.Option("--all", help="All experiments.")]
_OWN = "own: those in the experiment file, implied by --all. Default: 0."
Seeds = Annotated[str, typer.Option(metavar="0,1,2", help=f"Training seeds; {_OWN}")]
SamplingSeeds = Annotated[
    str, typer.Option(metavar="0,1,2", help=f"Sampling seeds: other images from the same weights; {_OWN}")
]
Only = Annotated[
    str, typer.Option(metavar="PATTERN", help="Shell pattern for row names, such as 'mar/*' or '*/diff/guided'.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
NoSpeed = Annotated[bool, typer.Option("--no-speed", help="Do not measure seconds per image.")]


def as_path(param: typer.CallbackParam, value: Any) -> Any:
    """Callback of every option and argument that is a path, or several: expands them. Raises UserError naming it."""
    name = param.opts[0] if param.opts[0].startswith("-") else param.metavar
    key = f"{name} (or {param.envvar})" if param.envvar else str(name)
    if isinstance(value, (list, tuple)):
        return [expanded(path, key) for path in value]
    return None if value is None else expanded(value, key)


def _folder(name: str, help_text: str, default: str | None = None):
    """A folder as option and environment variable; ``default`` is shown in the help."""
    about: Any = {"envvar": f"MAR_BENCH_{name}", "show_default": default or True, "callback": as_path}
    return typer.Option(metavar="DIR", help=help_text, **about)


Runs = Annotated[str | None, _folder("RUNS", "Folder of checkpoints, latents and samples.", "runs")]
Records = Annotated[
    str | None, _folder("RECORDS", "Folder of records (the results).", "results/records in a checkout, else records")
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
    """Run and record folders, and the records, read when they are needed: a broken one then raises UserError."""
    from mar_bench.config.ids import IdCheck
    from mar_bench.pipeline.store import default_places
    from mar_bench.records import record

    places = default_places(runs, records)
    if names := record.conflicting_ids(places.records):
        where = places.records / record.CONFLICTS
        listed = printable(", ".join(names))
        print(f"note: records that disagree are left out (see {where}): {listed}", file=sys.stderr)
    return places, record.RecordFolder(places.records, IdCheck())


def print_json(content: Any) -> None:
    """For ``--json``; a number that JSON cannot hold is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(plain(content), indent=1, default=str, allow_nan=False))


def is_record(name: str) -> bool:
    """Whether an argument is the id or the file of a record."""
    return name.endswith(".json") or re.fullmatch("[0-9a-f]{12}", name) is not None


def find_record(name: str, records: str | None):
    """A record by id or file. Raises UserError if there is none."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records import record

    folder, name = default_places(None, records).records, expanded(name, "record")
    if files := record.conflicting_files(folder, name):
        raise UserError(f"record {name} is set aside, as its files disagree: give one of {', '.join(map(str, files))}")
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record {path}; give a record's id or its file")
    return record.read_record(path, None if name.endswith(".json") else name)


def one_seed(option: str, text: str) -> int:
    """A single seed. Raises UserError for several."""
    from mar_bench.pipeline.request import parse_seeds

    found = parse_seeds(option, text)
    if len(found) != 1:
        raise UserError(f"{option} {text}: give a single seed")
    return found[0]
