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

from mar_bench.cli.options import (
    All,
    ExperimentNames,
    Only,
    Records,
    Reports,
    Runs,
    SamplingSeeds,
    Scale,
    Seeds,
    app,
    results,
)
from mar_bench.utils.errors import UserError

Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="A profile in slurm/clusters, or a YAML file of your own (slurm/README.md).",
    ),
]
RunsOf = Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="Look in the run root of this profile.")]


@app.command()
def submit(
    words: ExperimentNames = None,
    cluster: Cluster = ...,  # type: ignore[assignment]  # typer: required
    every: All = False,
    scale: Scale = "tiny",
    only: Only = None,
    seeds: Seeds = None,
    sampling_seeds: SamplingSeeds = None,
    retry: Annotated[str, typer.Option("--retry", metavar="failed", help="Also send work that failed before.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    runs: Runs = None,
    records: Records = None,
    reports: Reports = "reports",
) -> None:
    """Send unfinished work to a cluster as a graph of jobs.

    Repeating the command sends only new work; queued trainings are shared. The last job writes the table."""
    from mar_bench.cluster.ledger import Request
    from mar_bench.cluster.profile import load_profile
    from mar_bench.cluster.submit import submit as submit_request

    if retry not in (None, "failed"):
        raise UserError(f"--retry {retry}: the only choice is 'failed'")
    name, profile = load_profile(cluster)
    command = shlex.join(["mar-bench", *(word for word in sys.argv[1:] if word != "--dry-run")])
    request = Request(
        command, tuple(words or ()), name, every, scale, only, seeds, sampling_seeds, runs or profile.runs, records,
        str(Path(reports).absolute()),
    )  # fmt: skip
    results(request.runs, records)  # names records that disagree
    outcome = submit_request(request, profile, retry is not None, dry_run)
    if outcome.stopped:
        print("stopped; the same command resumes", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.failed:
        print(f"{len(outcome.failed)} jobs failed; mar-bench status shows which and why", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def status(
    names: Annotated[list[str], typer.Argument(metavar="[EXPERIMENT]...", help="Only of these.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing is queued or running.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    cluster: RunsOf = None,
    runs: Runs = None,
) -> None:
    """Show the progress of submitted rows: stage, job, state, step, and what to do about failures."""
    from mar_bench.cluster.status import look, text

    places = _places(runs, cluster)
    while True:
        view = look(places, list(names or ()))
        shown = json.dumps(view.tree(), indent=1) if as_json else text(view)
        if watch and not as_json:
            rich.get_console().clear()  # does nothing unless the output is a terminal
        print(shown, flush=True)
        if not watch or not view.live:
            break
        time.sleep(5)


@app.command()
def logs(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A row, as in table1/mar/diff/guided, or any id that status shows.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until its jobs have ended.")] = False,
    lines: Annotated[int, typer.Option(metavar="N", help="How many of the last lines of each log.", min=1)] = 40,
    cluster: RunsOf = None,
    runs: Runs = None,
) -> None:
    """Print the logs of the jobs of a row."""
    from mar_bench.cluster.logs import print_logs

    if not print_logs(_places(runs, cluster), run, lines, follow) and not follow:
        raise UserError(f"no job of '{run}' has a log yet; mar-bench status shows what they wait for")


@app.command()
def cancel(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT|RUN", help="A whole experiment, one of its rows, or a record's id.")
    ],
    cluster: RunsOf = None,
    runs: Runs = None,
) -> None:
    """Cancel jobs that nothing else needs. Finished work is kept; submit sends the rest again."""
    from mar_bench.cluster.send import cancel_rows

    rows, ids, kept = cancel_rows(_places(runs, cluster), name)
    print(f"cancelled {rows} records; {len(ids)} jobs ended: {' '.join(ids)}")
    if kept:
        print(f"{len(kept)} stages go on, since other rows need them: {', '.join(kept)}")


def _places(runs: str | None, cluster: str | None):
    from mar_bench.cluster.profile import load_profile
    from mar_bench.pipeline.store import default_places

    if runs is None and cluster is not None:
        runs = load_profile(cluster)[1].runs
    return default_places(runs, None)
