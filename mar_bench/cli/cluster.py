"""The verbs of a cluster: submit, status, logs, cancel."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

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
    cores,
    load,
    named,
    names_and_overrides,
    no_seeds,
    not_chosen,
    once,
    plan_of,
    results,
)
from mar_bench.utils.errors import UserError, did_you_mean

RETRIES = ("failed",)
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="A profile in slurm/clusters, or a YAML file of your own (slurm/README.md).",
    ),
]
Retry = Annotated[str, typer.Option("--retry", metavar="failed", help="Send again what has failed before.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")]


@app.command()
def submit(
    words: ExperimentNames = None,
    cluster: Cluster = ...,
    every: All = False,
    scale: Scale = "tiny",
    only: Only = None,
    seeds: Seeds = None,
    sampling_seeds: SamplingSeeds = None,
    retry: Retry = None,
    dry_run: DryRun = False,
    runs: Runs = None,
    records: Records = None,
    reports: Reports = "reports",
) -> None:
    """Send what is not done yet to a cluster, as a graph of jobs.

    Submitted again, only what is new is sent. Trainings are shared with jobs that are queued already. The last job
    writes the table."""
    from mar_bench.cluster.profile import load_profile

    if retry is not None and retry not in RETRIES:
        raise UserError(f"--retry {retry}: {did_you_mean(retry, RETRIES)}")
    name, profile = load_profile(cluster)
    options = {
        "every": every, "scale": scale, "only": only, "seeds": seeds, "sampling_seeds": sampling_seeds,
        "runs": runs or profile.runs, "records": records, "reports": str(Path(reports).absolute()),
    }  # fmt: skip
    _submit(list(words or ()), name, profile, retry is not None, dry_run, _command(), options)


def _command() -> str:
    return shlex.join(["mar-bench", *(word for word in sys.argv[1:] if word != "--dry-run")])


def _submit(
    words: list[str], cluster: str, profile, retry: bool, dry_run: bool, command: str, options: dict, follows=False
) -> None:
    from mar_bench.cluster import submit as submitting
    from mar_bench.cluster.ledger import read_ledger
    from mar_bench.cluster.plan import followed, make_plan, rows_of
    from mar_bench.cluster.profile import SlurmProfile
    from mar_bench.pipeline.preflight import preflight, writable
    from mar_bench.pipeline.store import publish
    from mar_bench.records.provenance import git_state

    names, overrides = names_and_overrides(words)
    every, scale, only = options["every"], options["scale"], options["only"]
    names, overrides = named(names, every), no_seeds(overrides)
    places, found = results(options["runs"], options["records"])
    if not dry_run:
        writable(places)
    slurm = isinstance(profile, SlurmProfile)
    with submitting.one_at_a_time(places) if not dry_run else contextlib.nullcontext():
        experiments = [load(name, scale, overrides, found) for name in names]
        seeds = options["seeds"], options["sampling_seeds"]
        planned = plan_of(experiments, *seeds, only, every, profile.device)
        everything = once(planned)
        if not dry_run:
            publish(everything, places)
        ledger = read_ledger(places.runs) if dry_run else submitting.without_cut(read_ledger(places.runs))
        plan = make_plan(everything, places, found, profile, ledger, retry, follows)
        waiting = not_chosen(experiments, *seeds, only, every)
        where = ["--runs", str(places.runs)] if options["runs"] else []
        looking = shlex.join(["mar-bench", "status", *planned, *where])
        label = experiments[0].id if len(experiments) == 1 else "mar_bench"
        _say_plan(plan, profile, waiting, len(everything), retry)
        names_shown = {row.name for row in rows_of(planned, plan.stages)}
        if not plan.sends and (follows or not slurm or names_shown <= followed(ledger)):
            print("nothing to send" + ("" if follows else f"; {looking} says how it goes"))
            return
        if dry_run:
            _say_dry(plan, places, profile, command, label)
            return
        preflight([stage.run for stage in plan.stages])
        submission = submitting.prepare(
            plan, planned, places, _profile_text(profile), label, command=command, words=words, scale=scale,
            options=options | {"waiting": waiting, "process": os.getpid()}, cluster=cluster, kind=profile.kind,
            git=git_state(),
        )  # fmt: skip
        if slurm:
            submitting.send_all(submission, plan.graph, profile, conclude, lambda text: print(text, file=sys.stderr))
            ids = list(dict.fromkeys(e.slurm_id.partition("_")[0] for e in submission.jobs.values()))
            print(f"sent {len(plan.graph)} jobs with {len(ids)} calls of sbatch, {ids[0]} to {ids[-1]}")
            print(f"logs are in {submission.folder / 'logs'}")
            print(f"next: {looking}")
            return
    from mar_bench.cluster.local import gpus_here, run_here

    several = 1 if gpus_here() else max(1, cores() // _threads(experiments))
    parallel = 1 if profile.kind == "debug" else profile.parallel or several
    outcome = run_here(submission, plan.graph, profile, parallel, conclude, print)
    if outcome.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.failed:
        failed = len(outcome.failed)
        print(f"{failed} of {len(plan.graph)} jobs failed; mar-bench status says which and why", file=sys.stderr)
        raise typer.Exit(1)


def conclude(submission) -> None:
    """What the last job does: failed cells, cells that can be chosen now, the tables."""
    from mar_bench.cli.views import table
    from mar_bench.cluster.jobs import TABLE
    from mar_bench.cluster.submit import kept_words, settle

    for title in settle(submission):
        print(f"FAILED {title}", file=sys.stderr, flush=True)
    if TABLE not in submission.unwanted():
        _go_on(submission)
    about = {key: submission.options[key] for key in ("every", "scale", "reports")}
    about |= {"save": True, "output_format": "md", "records": str(submission.places.records)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it is in its file
            table(kept_words(submission), **about)
    except UserError as error:
        print(f"no table: {error}", file=sys.stderr, flush=True)


def _go_on(submission) -> None:
    """After a submission: send the cells whose points have been measured in it, as the same command would."""
    from mar_bench.cluster.profile import load_profile
    from mar_bench.cluster.submit import kept_words

    if not submission.options.get("waiting"):
        return
    _, profile = load_profile(str(submission.folder / "profile.yaml"))
    words = kept_words(submission)
    options = {**submission.options, "runs": str(submission.places.runs), "records": str(submission.places.records)}
    try:
        _submit(words, submission.cluster, profile, False, False, submission.command, options, follows=True)
    except UserError as error:
        print(
            f"{error}; the cells that can be chosen now are sent by the same command: {submission.command}",
            file=sys.stderr,
        )


def _threads(experiments: list) -> int:
    return next(iter(experiments[0].rows.values())).compute.threads


def _profile_text(profile) -> str:
    from mar_bench.config.parse import as_tree
    from mar_bench.utils.console import to_yaml

    return to_yaml(as_tree(profile)) + "\n"


def _say_plan(plan, profile, waiting: int, total: int, retry: bool) -> None:
    from mar_bench.records.provenance import device_name

    jobs = sum(bool(job.stages) for job in plan.graph)
    stages = sum(len(job.stages) for job in plan.graph if job.shard is None)
    print(f"{total} records: {plan.done} done; {jobs} jobs for {stages} stages to send")
    if plan.elsewhere:
        print(f"{len(plan.elsewhere)} stages are under way in jobs that were sent before")
    if plan.failed and not retry:
        print(
            f"{plan.left} records are left, since something on their way has failed: --retry failed sends them again "
            f"(the first: {next(iter(plan.failed.values()))})"
        )
    speed = any(stage.kind == "speed" for job in plan.graph for stage in job.stages)
    if speed and profile.device is None and profile.resources("speed").gpus_per_node:
        print(f"note: the profile names no device: speed is filed under this machine's, '{device_name()}'")
    if waiting:
        print(f"{waiting} evaluations wait until their points are measured; the last job sends them")


def _say_dry(plan, places, profile, command: str, label: str) -> None:
    from mar_bench.cluster import submit as submitting
    from mar_bench.cluster.profile import SlurmProfile
    from mar_bench.pipeline.cost import gpu_hours
    from mar_bench.pipeline.preflight import preflight
    from mar_bench.utils.console import console_table

    hours = sum(gpu_hours(s.kind, s.run.spec) for job in plan.graph if job.shard is None for s in job.stages)
    if not isinstance(profile, SlurmProfile):
        lines = [[job.key, job.title, "all others" if job.follows else " ".join(job.needs)] for job in plan.graph]
        print(console_table(["job", "does", "after"], lines))
    else:
        code = Path(places.runs).absolute() / "code" / "<snapshot>"
        folder = Path(places.runs).absolute() / "submissions" / "<new>"
        alike: dict[tuple, list] = {}
        for group, words, text in submitting.scripts(folder, code, plan.graph, profile, command, label):
            alike.setdefault((group[0].kind, len(group) > 1, len(group)), []).append((group, words, text))
        lines, texts = [], {}
        for (kind, array, elements), sent in alike.items():
            (group, words, text), wants = sent[0], profile.resources(kind)
            size, gpus = f"{wants.nodes} x {wants.tasks_per_node}", str(wants.gpus_per_node or 0)
            after = words if len(words) < 50 else f"{words[:47]}..."
            line = [kind, str(len(sent)), str(elements), size, gpus, wants.time]
            lines.append([*line, f"<{group[0].key}> {group[0].title}", after])
            texts.setdefault((kind, array), text)
        heading = [
            "stage",
            "sbatch calls",
            "jobs in each",
            "nodes x tasks",
            "GPUs a node",
            "time",
            "the first",
            "which waits for",
        ]
        print(console_table(heading, lines))
        for (kind, array), text in texts.items():
            print(f"\n# ---- {kind}{', an array' if array else ''}: the first of its kind\n{text}")
    if hours > 1:
        print(f"about {hours:,.0f} GPU hours of training and sampling (of an H100, estimated from the work of MAR-L)")
    try:
        preflight([stage.run for stage in plan.stages])
    except UserError as error:
        print(f"submit would be refused: {error}")


# --- looking --------------------------------------------------------------------------------------------


@app.command()
def status(
    names: Annotated[list[str], typer.Argument(metavar="[EXPERIMENT]...", help="Of these alone.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until nothing is under way.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    cluster: Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="Whose run root to look into.")] = None,
    runs: Runs = None,
) -> None:
    """Say how submitted rows go: stage, job, state, progress, and what to do about what went wrong."""
    from mar_bench.cluster.status import look, text

    places = _places(runs, cluster)
    while True:
        view = look(places, list(names or ()))
        if as_json:
            print(json.dumps(view.tree(), indent=1))
        else:
            shown = text(view)
            if watch and sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print(shown, flush=True)
        if not watch or not view.live:
            break
        time.sleep(5)


@app.command()
def logs(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A row, as in table1/mar/diff/guided, or any id of status.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Go on as it grows, until the job ends.")] = False,
    lines: Annotated[int, typer.Option(metavar="N", help="The last lines of each log.", min=1)] = 40,
    cluster: Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="Whose run root to look into.")] = None,
    runs: Runs = None,
) -> None:
    """Print what the jobs of a row have said."""
    from mar_bench.cluster.status import follow_logs, logs_of

    found = logs_of(_places(runs, cluster), run)
    if not found and not follow:
        raise UserError(f"no job of '{run}' has said anything yet; mar-bench status says what they wait for")
    for title, paths in found:
        print(f"==> {title}")
        for path in paths:
            text = path.read_text(errors="replace").splitlines()
            print(f"--- {path}" + (f" (last {lines} of {len(text)} lines)" if len(text) > lines else ""))
            print("\n".join(text[-lines:]))
    if follow:
        follow_logs(_places(runs, cluster), run, found)


@app.command()
def cancel(
    name: Annotated[
        str, typer.Argument(metavar="EXPERIMENT|RUN", help="All of an experiment; a row of it; a record's id.")
    ],
    cluster: Annotated[str, typer.Option("--cluster", metavar="PROFILE", help="Whose run root to look into.")] = None,
    runs: Runs = None,
) -> None:
    """Cancel jobs that nothing else needs.

    What is done stays, and submit sends the rest again."""
    from mar_bench.cluster import submit as submitting
    from mar_bench.cluster.ledger import read_ledger
    from mar_bench.cluster.status import chosen

    places = _places(runs, cluster)
    with submitting.one_at_a_time(places):
        ledger = submitting.without_cut(read_ledger(places.runs))
        if ledger and all(s.kind != "slurm" for s in ledger):
            raise UserError(f"no jobs of Slurm in {places.runs}: what submit runs on this machine is stopped by Ctrl-C")
        ledger = [s for s in ledger if s.kind == "slurm"]
        rows = chosen(ledger, name)
        names = {row.name for row in rows} | {name for s in ledger for name in s.cancelled}
        others = {
            row.experiment for s in ledger for row in s.rows if row.task == "generation" and row.name not in names
        }
        # the tokenizer alone is shown beside all rows that use it, and bears the name of the first
        rows = [row for row in rows if row.task != "reconstruction" or row.experiment not in others] or rows
        ids, kept = submitting.cancel(ledger, rows)
    shown = f": {' '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}" if ids else ""
    print(f"cancelled {len(rows)} record{'s' * (len(rows) > 1)}; {len(ids)} jobs ended{shown}")
    if kept:
        more = " ..." if len(kept) > 3 else ""
        print(f"{len(kept)} stages go on, since other rows need them: {', '.join(kept[:3])}{more}")


def _places(runs: str | None, cluster: str | None):
    from mar_bench.cluster.profile import load_profile
    from mar_bench.pipeline.store import default_places

    if runs is None and cluster is not None:
        runs = load_profile(cluster)[1].runs
    return default_places(runs, None)
