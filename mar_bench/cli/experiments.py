"""Commands for experiments: list, show, plan, run."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from mar_bench.cli import options
from mar_bench.cli.options import app
from mar_bench.utils.console import printable
from mar_bench.utils.errors import UserError


@app.command("list")
def list_experiments(as_json: options.AsJson = False) -> None:
    """List experiments and scales."""
    from mar_bench.config.yaml_layers import experiment_files, load_yaml, scales
    from mar_bench.utils.console import console_table

    lines, broken = [], []
    for name, file in experiment_files().items():
        try:
            lines.append([name, str((content := load_yaml(file)).get("question") or content.get("title", ""))])
        except UserError as error:
            broken.append(str(error))
    if as_json:
        options.print_json({"experiments": dict(lines), "scales": scales()})
    else:
        print(console_table(["experiment", "question"], lines))
        print(f"scales: {', '.join(scales())}")
    if broken:
        raise UserError("; ".join(broken))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT[/ROW]|RECORD", help="table1, table1/mar/diff/guided, a record's id or file."
        ),
    ],
    overrides: options.Overrides = None,
    scale: options.Scale = "tiny",
    as_json: options.AsJson = False,
    runs: options.Runs = None,
    records: options.Records = None,
) -> None:
    """Show an experiment's rows, one row's resolved spec, or a record.

    For a row: everything that determines it, its ids and the paper's numbers. For a record (id or file): its numbers
    and everything needed to reproduce them."""
    from mar_bench.config.ids import generation_run, reconstruction_run, speed_run
    from mar_bench.config.parse import as_tree
    from mar_bench.pipeline.request import load_row
    from mar_bench.pipeline.store import status
    from mar_bench.records.provenance import device_name
    from mar_bench.report.format import paper_name, paper_number
    from mar_bench.report.show_record import record_text
    from mar_bench.utils.console import console_table
    from mar_bench.utils.yaml_text import to_yaml

    def paper(row: str) -> str:
        cell = experiment.paper.get(row, {})
        return ", ".join(f"{paper_name(metric)} {paper_number(metric, v)}" for metric, v in cell.items())

    if options.is_record(name):
        record = options.find_record(name, records)
        if as_json:
            options.print_json(asdict(record))
        else:
            print(record_text(record))
        return
    places, found = options.results(runs, records)
    experiment, chosen = load_row(name, scale, overrides, found)
    if chosen is None:
        lines = []
        for row, spec in experiment.rows.items():
            run = generation_run(row, spec)
            state = "not chosen yet" if experiment.is_open(row) else status(run, places, found)
            lines.append([row, run.ids["train_id"], run.id, state, paper(row)])
        lines += [[row, "", "", why, paper(row)] for row, why in experiment.absent.items()]
        heading = ["row", "train_id", "eval_id", "status", "paper"]
        about = {key: getattr(experiment, key) for key in ("id", "title", "question", "source", "scale")}
        if as_json:
            options.print_json({**about, "rows": [dict(zip(heading, line)) for line in lines]})
        else:
            print(f"{experiment.id}: {experiment.title}, {scale} scale\n{experiment.source}\n")
            print(console_table(heading, lines))
        return
    spec = experiment.rows[chosen]
    if experiment.is_open(chosen):
        points = experiment.sweeps[chosen].points
        state = f"not chosen yet, one of {len(points)} points; run measures them"
        shown = {"points": [values for values, _ in points], "spec of the first": as_tree(points[0][1])}
    else:
        run, device = generation_run(chosen, spec), device_name(spec.compute.device)
        others = reconstruction_run(chosen, spec), speed_run(chosen, spec, device)
        state = status(run, places, found)
        shown = {"ids": {**run.ids, **{f"{r.task}_id": r.id for r in others}}, "spec": as_tree(spec)}
    if as_json:
        cell = experiment.paper.get(chosen, {})
        options.print_json({"row": chosen, "scale": scale, "status": state, "paper": cell, **shown})
        return
    print(f"# {experiment.id}/{chosen}, {scale} scale: {state}")
    print(f"# paper: {paper(chosen) or 'no such cell'}")
    print(to_yaml(shown))


@app.command()
def plan(
    words: options.ExperimentNames = None,
    every: options.All = False,
    scale: options.Scale = "tiny",
    seeds: options.Seeds = None,
    sampling_seeds: options.SamplingSeeds = None,
    only: options.Only = None,
    rows: Annotated[bool, typer.Option("--rows", help="List the rows of several experiments too.")] = False,
    as_json: options.AsJson = False,
    runs: options.Runs = None,
    records: options.Records = None,
) -> None:
    """Show what a run would do.

    Lists evaluations, trainings and the work that they share; what is done, missing or failed. For several
    experiments, or --all, a summary, with the work that they share with each other."""
    from mar_bench.pipeline.plan import make_plan, plan_text
    from mar_bench.pipeline.request import select

    places, found = options.results(runs, records)
    selection = select(words, every, scale, found, seeds, sampling_seeds, only)
    content = make_plan(selection, scale, places, found)
    if as_json:
        options.print_json(content)
    else:
        print(plan_text(content, rows or len(selection.planned) == 1))


@app.command()
def run(
    words: options.ExperimentNames = None,
    every: options.All = False,
    scale: options.Scale = "tiny",
    jobs: Annotated[
        int,
        typer.Option(metavar="N", help="Parallel processes. Default: cores / threads per process; 1 on a GPU.", min=1),
    ] = None,
    only: options.Only = None,
    seeds: options.Seeds = None,
    sampling_seeds: options.SamplingSeeds = None,
    reuse_records: Annotated[
        bool, typer.Option("--reuse-records", help="Skip runs that have a record but no output here.")
    ] = False,
    no_speed: options.NoSpeed = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the whole error of a failed job.")] = False,
    runs: options.Runs = None,
    records: options.Records = None,
) -> None:
    """Train, sample and measure what is not done yet.

    If interrupted, the same command resumes. Cells chosen by a sweep run once its points are measured."""
    from mar_bench.pipeline.request import names_and_overrides, select
    from mar_bench.pipeline.store import publish

    world, tried = _world(), set()
    outcomes: list = []
    for _ in range(2):  # the second pass runs the cells whose sweep points the first has measured
        places, found = options.results(runs, records)
        selection = select(words, every, scale, found, seeds, sampling_seeds, only)
        wanted = [r for r in selection.runs if not (no_speed and r.task == "speed")]
        planned = [r for r in wanted if r.id not in tried]
        if reuse_records:
            planned = [r for r in planned if r.id not in found or found[r.id].status != "done"]
        tried |= {r.id for r in planned}
        outcomes.append(_run_planned(planned, places, jobs, world, not any(outcomes), quiet, verbose))
        publish([*planned, *(r for of_one in selection.planned.values() for r in of_one if r.choice)], places)
        if not selection.waiting:
            break
    if any(outcome and outcome.failed for outcome in outcomes):
        print("see the failed records for details; run the same command to retry", file=sys.stderr)
        raise typer.Exit(1)
    if world is not None and not world.first:
        return
    if waiting := list(selection.waiting):
        print(
            f"no sweep point can be chosen for {len(waiting)} rows, such as {waiting[0]}: a point lacks the deciding "
            "metric; see the records of its points (mar-bench show)",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    if quiet:
        return
    if not any(outcomes):
        print(f"nothing to do: all {len(wanted)} runs are done; records are in {places.records}")
        return
    names, overrides = names_and_overrides(words)
    which = ["--all"] if every else names
    print(
        "next:",
        shlex.join(
            ["mar-bench", "table", *which, "--scale", scale, *(["--records", records] if records else []), *overrides]
        ),
    )


def _run_planned(planned: list, places, jobs: int | None, world, first: bool, quiet: bool, verbose: bool):
    """Execute the jobs that runs still need; returns the Outcome, None if there is nothing to do. Exits if stopped.

    ``first``: no work has been done yet, so the folders are created. Stages that turn out to be damaged are set aside
    on the way and made again in another pass."""
    from mar_bench.pipeline.graph import jobs_for
    from mar_bench.pipeline.plan import images_of
    from mar_bench.pipeline.request import preflight
    from mar_bench.pipeline.store import publish

    outcome, tried = None, set[str]()
    todo = jobs_for(planned, places)
    preflight([job.run for job in todo])
    for job in todo if world else ():
        if job.kind == "train" and job.run.spec.train.published is None:
            world.share(range(job.run.spec.train.batch_size))  # raises before any work
    images = images_of([job.run for job in todo]) if first else []
    if first and planned:
        places.check_writable() if todo else places.records.mkdir(parents=True, exist_ok=True)
    publish(planned, places)
    while True:
        todo = jobs_for(planned, places)
        todo = world.agreed(todo) if world else todo
        if {job.id for job in todo} <= tried:
            return outcome
        tried |= {job.id for job in todo}
        outcome = _run_jobs(todo, places, jobs, world, images, quiet, verbose)
        images = []


def _run_jobs(todo: list, places, jobs: int | None, world, images: list[str], quiet: bool, verbose: bool):
    """Print ``images``, execute jobs and print the result; returns the Outcome. Exits if stopped."""
    from mar_bench.pipeline import run_local
    from mar_bench.pipeline.progress import Report, duration

    workers = world.size if world else min(jobs or _default_jobs(todo), len(todo))
    tells = world is None or world.first
    report = Report(todo, places, 1 if world else workers, quiet or not tells, tells)
    report.say(
        f"{len(todo)} jobs on {workers} process{'es' * (workers > 1)}{' together' if world else ''}, about "
        f"{duration(report.seconds_left())}; runs in {places.runs}, records in {places.records}"
    )
    for line in images:
        report.say(line)
    if world:
        outcome = run_local.run_together(todo, places, world, report)
    else:
        outcome = run_local.run_jobs(todo, places, workers, report)
    taken = duration(report.elapsed())
    if outcome.stopped:
        print(f"stopped after {taken}; the same command resumes from here", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.failed:
        skipped = len(todo) - outcome.done - len(outcome.failed)
        print(f"{len(outcome.failed)} of {len(todo)} jobs failed after {taken}; {skipped} dependent jobs were not run:",
              file=sys.stderr)  # fmt: skip
        for job in todo:
            if job.id in outcome.failed:
                error = outcome.failed[job.id] if verbose else outcome.failed[job.id].splitlines()[0]
                print(printable(f"  {job.title}: {error}", keep="\n"), file=sys.stderr)
    elif tells and not quiet:
        print(f"{outcome.done} jobs done in {taken}")
    return outcome


def _world():
    """Join the ranks that torchrun or srun started; None for a single process, without importing torch."""
    if not {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys():
        return None
    from mar_bench.pipeline.distributed import join, world_of

    world = world_of()
    if world.size == 1:
        return None
    join(world)
    return world


def _default_jobs(jobs) -> int:
    """One process per ``threads`` cores; one on a GPU, which processes would have to share."""
    from mar_bench.records.provenance import cores, cpu_name, device_name

    compute = jobs[0].run.spec.compute
    on_cpu = device_name(compute.device) == cpu_name()
    return max(1, cores() // compute.threads) if on_cpu else 1
