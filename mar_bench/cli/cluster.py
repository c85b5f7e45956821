"""Commands for a cluster: submit, status, logs, cancel."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import rich
import typer

from mar_bench.cli import options
from mar_bench.cli.options import app
from mar_bench.utils.errors import UserError

Cluster = Annotated[
    str, typer.Option("--cluster", metavar="PROFILE", help="A profile in slurm/clusters, or a YAML file of your own.")
]
RunsOf = Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="Look in the run root of this profile.")]


@app.command()
def submit(
    words: options.ExperimentNames = None,
    cluster: Cluster = ...,  # type: ignore[assignment]  # typer: required
    every: options.All = False,
    scale: options.Scale = "tiny",
    only: options.Only = None,
    seeds: options.Seeds = None,
    sampling_seeds: options.SamplingSeeds = None,
    retry: Annotated[str, typer.Option("--retry", metavar="failed", help="Also send work that failed before.")] = None,
    no_speed: options.NoSpeed = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    runs: options.Runs = None,
    records: options.Records = None,
    reports: options.Reports = "reports",
) -> None:
    """Send unfinished work to a cluster as a graph of jobs.

    Repeating the command sends only new work; queued trainings are shared. The last job writes the table."""
    from mar_bench.cluster.ledger import Request
    from mar_bench.cluster.profile import load_profile
    from mar_bench.cluster.submit import submit as submit_request

    if retry not in (None, "failed"):
        raise UserError(f"--retry {retry}: the only choice is 'failed'")
    profile = load_profile(cluster)
    command = shlex.join(["mar-bench", *(word for word in sys.argv[1:] if word != "--dry-run")])
    places, _ = options.results(runs or profile.runs, records)  # prints ids of records that disagree
    root, kept, tables = (str(Path(folder).absolute()) for folder in (places.runs, places.records, reports))
    asked = tuple(words or ()), every, scale, only, seeds, sampling_seeds
    request = Request(command, *asked, root, kept, tables, not no_speed)
    submit_request(request, profile, retry is not None, dry_run)


@app.command()
def status(
    names: Annotated[list[str], typer.Argument(metavar="[EXPERIMENT]...", help="Show only these.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing is queued or running.")] = False,
    as_json: options.AsJson = False,
    cluster: RunsOf = None,
    runs: options.Runs = None,
) -> None:
    """Show the progress of submitted rows: stage, job, state, step, and what to do about failures."""
    from mar_bench.cluster.status import look, text

    places = _places(runs, cluster)
    while True:
        lines = look(places, list(names or ()))
        if watch and not as_json:
            rich.get_console().clear()  # does nothing unless the output is a terminal
        print(json.dumps({"rows": lines}, indent=1, default=vars) if as_json else text(lines), flush=True)
        if not watch or not any(line.live for line in lines):
            break
        time.sleep(5)


@app.command()
def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A row, as in table1/mar/diff/guided, or an id.")],
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until the jobs have ended.")] = False,
    cluster: RunsOf = None,
    runs: options.Runs = None,
) -> None:
    """Print the last lines of the logs of a row's jobs."""
    from mar_bench.cluster.status import print_logs

    if not print_logs(_places(runs, cluster), run, follow) and not follow:
        raise UserError(f"no job of '{run}' has a log yet; mar-bench status shows what they wait for")


@app.command()
def cancel(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT|RUN", help="An experiment, one of its rows, or an id.")],
    cluster: RunsOf = None,
    runs: options.Runs = None,
) -> None:
    """Cancel jobs that nothing else needs. Finished work is kept; submit sends the rest again."""
    from mar_bench.cluster.send import cancel_rows

    rows, ids = cancel_rows(_places(runs, cluster), name)
    print(f"cancelled {rows} records and {len(ids)} jobs that no other row needs{': ' * bool(ids)}{' '.join(ids)}")


def _places(runs: str | None, cluster: str | None):
    from mar_bench.cluster.profile import load_profile
    from mar_bench.pipeline.store import default_places

    return default_places(runs or (load_profile(cluster).runs if cluster else None), None)
