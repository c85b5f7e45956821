"""A submission from end to end: the work of ``mar-bench submit`` and of the last job."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from mar_bench.cluster.jobs import TABLE
from mar_bench.cluster.ledger import Request, Submission, new_submission, read_ledger
from mar_bench.cluster.pending import Plan, Queue, make_plan, rows_of
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.send import batch_scripts, send_all, submit_lock, without_incomplete
from mar_bench.cluster.slurm import overruled
from mar_bench.cluster.snapshot import take_snapshot
from mar_bench.config.ids import IdCheck
from mar_bench.config.yaml_layers import is_yaml
from mar_bench.pipeline.cost import gpu_hours
from mar_bench.pipeline.request import load_all, preflight, select
from mar_bench.pipeline.store import Places, is_sound, publish, record_failure
from mar_bench.records.record import RecordFolder, read_record
from mar_bench.utils.console import console_table
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import expanded, writing


def submit(
    request: Request, profile: Profile, retry: bool = False, dry_run: bool = False, follows: bool = False
) -> None:
    """Send unfinished work, and print what is sent.

    ``retry``: include work that failed before. ``follows``: the caller is the last job of a submission with this
    request. Raises UserError if a file is missing or Slurm refuses; the submission is then undone completely."""
    places = Places(Path(request.runs), Path(request.records))
    if set("%\\") & set(request.runs) or not request.runs.isprintable():
        raise UserError(f"--runs {request.runs!r}: Slurm writes no logs to a path with %, \\ or control characters")
    if ignored := overruled():
        print(f"{', '.join(ignored)} in the environment: ignored, the profile decides", file=sys.stderr)
    if not (dry_run or follows):
        places.check_writable()
    with contextlib.nullcontext() if dry_run else submit_lock(places):
        records = RecordFolder(places.records, IdCheck())
        asked = request.seeds, request.sampling_seeds, request.only
        selection = select(list(request.words), request.every, request.scale, records, *asked, profile.device)
        experiments, planned = selection.experiments, selection.planned
        runs = [run for run in selection.runs if request.speed or run.task != "speed"]
        waiting, ledger = sum(selection.waiting.values()), read_ledger(places.runs)
        if not dry_run:
            publish(runs, places)
            ledger = without_incomplete(ledger)
        plan = make_plan(runs, places, records, profile, Queue(ledger), retry, follows)
        shared = f"{len(plan.elsewhere)} more are in jobs that were sent before"
        print(f"{len(runs)} records: {plan.done} done; {len(plan.new)} stages to send, {shared}")
        if plan.failed and not retry:
            why = next(iter(plan.failed.values()))
            print(f"work that failed before is left out (--retry failed sends it); the first failure: {why}")
        if waiting:
            print(f"{waiting} evaluations wait until their sweep points are measured; the last job sends them")
        progress = f"{shlex.join(['mar-bench', 'status', '--runs', request.runs])} shows progress"
        if not plan.new:
            print(f"nothing to send; {progress}")
            return
        label = experiments[0].id if len(experiments) == 1 else "mar_bench"
        rows = rows_of(planned, plan.stages)
        submission = new_submission(label, request, plan.graph, rows, waiting)
        if dry_run:
            _print_dry_run(plan, submission, profile)
        preflight([stage.run for stage in plan.stages])
        if dry_run:
            return
        with writing(submission.folder):  # copies and pickles too
            try:
                take_snapshot(submission.folder / "code")
                submission = replace(submission, request=with_copies(request, submission.folder / "experiments"))
                submission.write(profile, plan.stages)
            except OSError:
                shutil.rmtree(submission.folder, ignore_errors=True)
                raise
            send_all(submission, profile, conclude)
        ids = [str(job.slurm_id) for job in submission.jobs.values()]
        print(f"sent {len(ids)} jobs, {ids[0]} to {ids[-1]}; {progress}")


def with_copies(request: Request, folder: Path) -> Request:
    """Copy the user's own experiment files and their layers: later edits must not affect the submission."""
    named = {word: Path(expanded(word, "experiment")) for word in request.words if is_yaml(word) and "=" not in word}
    files = {word: file for word, file in named.items() if file.is_file()}
    for source in [*files.values(), *(file.parent / layers for file in files.values() for layers in ("base", "scale"))]:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        elif source.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder)
    return replace(request, words=tuple(str(folder / files[w].name) if w in files else w for w in request.words))


def _print_dry_run(plan: Plan, submission: Submission, profile: Profile) -> None:
    """One line per call of sbatch, the script of the first for each stage, and the GPU hours."""
    calls = list(batch_scripts(submission, profile))
    print(console_table(["jobs", "first of them"], [[str(len(jobs)), jobs[0].title] for jobs, _ in calls]))
    for kind, script in {jobs[0].kind: script for jobs, script in reversed(calls) if script}.items():
        print(f"\n# ---- {kind}\n{script}")
    hours = sum(gpu_hours(stage.kind, stage.run.spec) for stage in plan.new)
    print(f"about {hours:,.0f} GPU hours of training and sampling (estimated for an H100)")


def conclude(submission: Submission) -> None:
    """Record failures, send the cells whose sweep points are measured now, and write the tables."""
    for title in settle(submission):
        print(f"FAILED {title}", file=sys.stderr, flush=True)
    request = submission.request
    if submission.waiting and TABLE not in submission.unwanted():
        try:
            submit(request, submission.plan()[0], follows=True)
        except UserError as error:
            print(f"{error}; to send the cells that can be chosen now, repeat: {request.command}", file=sys.stderr)
    from mar_bench.report.table.build import save_formats, table  # pandas: in every job, if imported above

    records = RecordFolder(submission.places.records, IdCheck())
    for experiment in load_all(list(request.words), request.every, request.scale, records):
        try:
            for path in save_formats(table(experiment, records), Path(request.reports, request.scale)):
                print(f"wrote {path}", file=sys.stderr)
        except UserError as error:
            print(f"no table: {error}", file=sys.stderr, flush=True)


def settle(submission: Submission) -> list[str]:
    """Write failed records, which killed jobs could not, for all cells that no job can finish; returns their titles."""
    places, queue = submission.places, Queue(read_ledger(submission.places.runs))
    jobs = {stage.id: job for job in submission.jobs.values() if job.shard is None for stage in job.stages}
    lost: dict[str, str] = {}
    titles = []
    for stage in submission.plan()[1]:  # each follows the stages it needs
        job = jobs.get(stage.id)
        if stage.id in submission.cancelled or is_sound(places.folder(stage.kind, stage.id)) or job == submission.last:
            continue
        why = next((lost[need] for need in stage.needs if need in lost), None)
        if why is None and (holder := (submission, job) if job else queue.holders.get(stage.id)):
            why = queue.failure(*holder, stage.id)
        if why is None:
            continue
        lost[stage.id] = why
        path = places.records / f"{stage.id}.json"
        known = read_record(path) if path.is_file() else None
        ended = re.sub(r"\D", "", known.provenance.get("finished") or "")[:14] if known else ""  # as in submission ids
        stale = known is None or (known.status == "failed" and ended < submission.id[:15].replace("-", ""))
        if job is not None and stage.id == stage.run.id and stale:
            record_failure(stage.run, places, why, 0.0)
            titles.append(stage.title)
    return titles
