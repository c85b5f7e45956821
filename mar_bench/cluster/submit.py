"""A submission from end to end: what ``mar-bench submit`` does, and what the last of its jobs does."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from mar_bench.cluster.jobs import TABLE
from mar_bench.cluster.ledger import Request, Submission, new_submission, read_ledger
from mar_bench.cluster.local import run_here
from mar_bench.cluster.plan import Plan, Queue, make_plan, rows_of
from mar_bench.cluster.profile import Profile, SlurmProfile, load_profile
from mar_bench.cluster.send import batch_scripts, one_at_a_time, send_all, without_incomplete
from mar_bench.cluster.snapshot import take_snapshot
from mar_bench.cluster.work import StagesFailed
from mar_bench.pipeline.cost import gpu_hours
from mar_bench.pipeline.preflight import preflight, writable
from mar_bench.pipeline.request import load, named, names_and_overrides, no_seeds, not_chosen, once, plan_of
from mar_bench.pipeline.run_local import Outcome
from mar_bench.pipeline.store import Places, default_places, is_sound, publish, record_failure
from mar_bench.records.provenance import git_state
from mar_bench.records.record import read_record, read_records
from mar_bench.report.table.build import save_formats, table
from mar_bench.utils.console import console_table, to_yaml
from mar_bench.utils.errors import Stopped, UserError


def submit(
    request: Request, profile: Profile, retry: bool = False, dry_run: bool = False, follows: bool = False
) -> Outcome:
    """Send unfinished work, or run it here if the profile has no Slurm, and print what is sent.

    ``retry``: include work that failed before. ``follows``: the caller is the last job of a submission with this
    request. Raises UserError if a file is missing or Slurm refuses; then nothing is left of the submission."""
    places = default_places(request.runs, request.records)
    names, overrides = names_and_overrides(list(request.words))
    names, overrides = named(names, request.every), no_seeds(overrides)
    records = read_records(places.records)
    if not dry_run:
        writable(places)
    slurm = isinstance(profile, SlurmProfile)
    with contextlib.nullcontext() if dry_run else one_at_a_time(places):
        experiments = [load(name, request.scale, overrides, records) for name in names]
        seeds = request.seeds, request.sampling_seeds
        planned = plan_of(experiments, *seeds, request.only, request.every, profile.device)
        waiting = not_chosen(experiments, *seeds, request.only, request.every)
        runs = once(planned)
        ledger = read_ledger(places.runs)
        if not dry_run:
            publish(runs, places)
            ledger = without_incomplete(ledger)
        queue = Queue([s for s in ledger if s.kind == "slurm"] if slurm else [])
        plan = make_plan(runs, places, records, profile, queue, retry, follows)
        rows = rows_of(planned, plan.stages)
        look = shlex.join(["mar-bench", "status", *planned, *(["--runs", str(places.runs)] if request.runs else [])])
        label = experiments[0].id if len(experiments) == 1 else "mar_bench"
        _print_plan(plan, waiting, len(runs), retry)
        if not plan.sends and (follows or not slurm or {row.name for row in rows} <= queue.followed()):
            print("nothing to send" + ("" if follows else f"; {look} shows progress"))
            return Outcome()
        if dry_run:
            _print_dry_run(plan, places, profile, request.command, label)
            return Outcome()
        preflight([stage.run for stage in plan.stages])
        absolute = Places(places.runs.absolute(), places.records.absolute())
        submission = new_submission(
            absolute, plan.graph, plan.stages, to_yaml(asdict(profile)) + "\n", label, request=request,
            kind=profile.kind, process=os.getpid(), waiting=waiting, code=str(take_snapshot(absolute.runs)),
            git=git_state(), rows=rows,
        )  # fmt: skip
        _copy_experiments(submission)
        if isinstance(profile, SlurmProfile):
            calls = send_all(submission, profile, conclude)
            ids = [str(job.slurm_id).partition("_")[0] for job in submission.jobs.values()]
            print(f"sent {len(ids)} jobs with {calls} calls of sbatch, {ids[0]} to {ids[-1]}")
            print(f"logs are in {submission.folder / 'logs'}; next: {look}")
            return Outcome()
    threads = next(iter(experiments[0].rows.values())).compute.threads
    return run_here(submission, profile, threads, conclude)


def _copy_experiments(submission: Submission) -> None:
    """Copy the user's own experiment files and their layers: later edits must not change what was submitted."""
    folder = submission.folder / "experiments"
    for file in map(Path, submission.request.words):
        if file.suffix in (".yaml", ".yml") and file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for layers in (file.parent / name for name in ("base", "scale")):
                if layers.is_dir():
                    shutil.copytree(layers, folder / layers.name, dirs_exist_ok=True)
            shutil.copy(file, folder)


def repeated(submission: Submission) -> Request:
    """The request of a submission, with its copies of experiment files and its folders."""
    copies = {path.name: str(path) for path in (submission.folder / "experiments").glob("*.y*ml")}
    words = (copies.get(Path(w).name, w) if w.endswith((".yaml", ".yml")) else w for w in submission.request.words)
    runs, records = str(submission.places.runs), str(submission.places.records)
    return replace(submission.request, words=tuple(words), runs=runs, records=records)


# --- the last job ---------------------------------------------------------------------------------------


def conclude(submission: Submission) -> None:
    """Record failures, send the cells whose sweep points are measured now, and write the tables."""
    for title in settle(submission):
        print(f"FAILED {title}", file=sys.stderr, flush=True)
    request, outcome = repeated(submission), Outcome()
    if submission.waiting and TABLE not in submission.unwanted():
        _, profile = load_profile(str(submission.folder / "profile.yaml"))
        try:
            outcome = submit(request, profile, follows=True)
        except UserError as error:
            print(f"{error}; to send the cells that can be chosen now, repeat: {request.command}", file=sys.stderr)
    if outcome.stopped:
        raise Stopped
    try:
        _write_tables(request, submission.places)
    except UserError as error:
        print(f"no table: {error}", file=sys.stderr, flush=True)
    if outcome.failed:
        raise StagesFailed(f"{len(outcome.failed)} jobs of cells chosen by a sweep failed")


def _write_tables(request: Request, places: Places) -> None:
    names, overrides = names_and_overrides(list(request.words))
    records = read_records(places.records)
    for name in named(names, request.every):
        experiment = load(name, request.scale, overrides, records)
        try:
            for path in save_formats(table(experiment, records), Path(request.reports, request.scale)):
                print(f"wrote {path}", file=sys.stderr)
        except UserError as error:
            print(f"no table: {error}", file=sys.stderr, flush=True)


def settle(submission: Submission) -> list[str]:
    """Write a failed record for every cell that no job of the submission can finish; returns the cells' titles.

    A killed job could not write its own."""
    queue = Queue(read_ledger(submission.places.runs))
    jobs = {stage.id: job for job in submission.jobs.values() if job.shard is None for stage in job.stages}
    lost: dict[str, str] = {}
    titles = []
    for stage in submission.planned().values():  # each is listed after what it needs
        job = jobs.get(stage.id)
        if stage.id in submission.cancelled or is_sound(submission.places.folder(stage.kind, stage.id)):
            continue
        if job is not None and job.key == submission.last.key:
            continue  # this very job
        why = next((lost[need] for need in stage.needs if need in lost), None)
        if why is None and job is not None:
            why = queue.failure(submission, job, stage.id)
        elif why is None and stage.id in queue.holders:
            why = queue.failure(*queue.holders[stage.id], stage.id)
            why = why and f"{stage.title}, of another submission: {why}"
        if why is None:
            continue
        lost[stage.id] = why
        if job is not None and stage.id == stage.run.id:
            path = submission.places.records / f"{stage.id}.json"
            known = read_record(path) if path.is_file() else None
            old = known and known.status == "failed" and known.provenance.get("finished", "") < submission.created
            if known is None or old:
                record_failure(stage.run, submission.places, why, 0.0)
                titles.append(stage.title)
    return titles


# --- what submit prints ---------------------------------------------------------------------------------


def _print_plan(plan: Plan, waiting: int, total: int, retry: bool) -> None:
    jobs = sum(bool(job.stages) for job in plan.graph)
    print(f"{total} records: {plan.done} done; {jobs} jobs for {len(plan.new)} stages to send")
    if plan.elsewhere:
        print(f"{len(plan.elsewhere)} stages are queued or running in jobs that were sent before")
    if plan.failed and not retry:
        why = next(iter(plan.failed.values()))
        print(f"{plan.left} records are left out, since they or their stages have failed: --retry failed sends them")
        print(f"the first failure: {why}")
    if waiting:
        print(f"{waiting} evaluations wait until their sweep points are measured; the last job sends them")


def _print_dry_run(plan: Plan, places: Places, profile: Profile, command: str, name: str) -> None:
    """One line per sbatch call and the script of the first for each stage, or without Slurm one line per job."""
    scripts: dict[tuple[str, bool], str] = {}
    if isinstance(profile, SlurmProfile):
        heading, lines = ["stage", "jobs", "nodes x tasks", "GPUs per node", "time", "first job"], []
        for group, text in batch_scripts(plan.graph, profile, places.runs, command, name):
            kind, wants = group[0].kind, profile.resources(group[0].kind)
            size = f"{wants.nodes} x {wants.tasks_per_node}"
            gpus, time = str(wants.gpus_per_node or 0), str(wants.time)
            lines.append([kind, str(len(group)), size, gpus, time, group[0].title])
            scripts.setdefault((kind, len(group) > 1), text)
    else:
        heading = ["job", "runs", "after"]
        lines = [[job.key, job.title, "all others" if job.follows else " ".join(job.needs)] for job in plan.graph]
    print(console_table(heading, lines))
    for (kind, array), text in scripts.items():
        print(f"\n# ---- {kind}{', an array' if array else ''}: the first of its kind\n{text}")
    if (hours := sum(gpu_hours(stage.kind, stage.run.spec) for stage in plan.new)) > 1:
        print(f"about {hours:,.0f} GPU hours of training and sampling (estimated for an H100)")
    try:
        preflight([stage.run for stage in plan.stages])
    except UserError as error:
        print(f"submit would be refused: {error}")
