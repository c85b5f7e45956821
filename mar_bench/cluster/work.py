"""Inside a cluster job: run its stages in order, continuing from the files on disk.

A job may be restarted at any time. Finished stages are skipped, trainings resume from their newest checkpoint, drawn
images are kept. submitit's pickle only identifies the job."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mar_bench.cluster.jobs import TABLE, ClusterJob
from mar_bench.cluster.ledger import Submission, read_submission
from mar_bench.cluster.notes import WRITE_SECONDS, Notes, Signals, who
from mar_bench.config.stages import STAGES
from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.store import is_sound
from mar_bench.utils.errors import Stopped, Superseded, UserError, described
from mar_bench.utils.locks import Claim

if TYPE_CHECKING:
    from mar_bench.pipeline.distributed import World


class StagesFailed(Exception):
    """Ends a job in failure because a stage failed; the stage's own error is in its records and the status file."""


class _Cancelled(Stopped):
    """The user has cancelled the current stage."""


@dataclass
class Work:
    """A job as submitit pickles it, called in the job: its submission's folder and its key there."""

    submission: str
    key: str
    signal_seconds: int = 0  # between the warning and the kill; 0: no warning
    last: Callable[[Submission], None] | None = None  # called after the stages

    def __call__(self) -> None:
        with Signals(self.signal_seconds) as signals:
            try:
                _run_job(read_submission(Path(self.submission)), self.key, self.last, signals)
            except Superseded:
                print("a newer start of this job has taken over: leaving", file=sys.stderr, flush=True)
                os._exit(0)  # bypass submitit: its files belong to the newer start
            except Stopped:
                if signals.stop:
                    signals.requeue()
                raise

    def checkpoint(self) -> Any:
        """Called by submitit when it requeues the job; the same work resumes from disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run_job(submission: Submission, key: str, last: Callable[[Submission], None] | None, signals: Signals) -> None:
    """Run all stages of a job, skipping those whose needs have failed. Raises StagesFailed at the end."""
    from mar_bench.pipeline.distributed import ALONE, join, world_of

    planned = submission.planned()
    stages = [planned[ref.id] for ref in submission.jobs[key].stages]
    world = world_of() if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys() else ALONE
    if world.size > 1:
        join(world)
    notes = Notes(submission, key, world.first)
    failed: dict[str, str] = {}
    lost: set[str] = set()
    for stage in stages:
        if stage.id in lost:
            continue
        if signals.stop and world.size == 1:
            raise Stopped
        if world.agreed(stage.id in submission.unwanted()):
            notes.event(stage, "cancelled")
            continue
        try:
            _check_needs(stage, planned, submission)
            _run_stage(stage, submission, submission.jobs[key], world, signals, notes)
            continue
        except _Cancelled:
            notes.event(stage, "cancelled")
            continue
        except Exception as failure:
            if signals.stop or signals.ending:  # another rank has stopped, or was killed, and left this one alone
                raise Stopped from failure
            error = described(failure)
            lost |= give_up(stage, list(planned.values()), error, 0.0, submission.places)
            failed[stage.id] = error.splitlines()[0]
            if world.size > 1:  # the other ranks wait for this one: nothing more can be done together
                traceback.print_exc()
                notes.event(stage, "failed", error=failed[stage.id])
                raise
        print(f"FAILED {stage.title}: {error}", file=sys.stderr, flush=True)
        notes.write(failed=failed)
        notes.event(stage, "failed", error=failed[stage.id])
    if last is not None:
        notes.write(stage=TABLE, event="start", step=None, total=None, waiting=None)
        last(submission)
    notes.write(stage=None, event="end")
    needed = {stage.id for stage in stages if not STAGES[stage.kind].is_task}  # other jobs may wait for these
    if failed and (not needed or needed & failed.keys()):
        raise StagesFailed("; ".join(f"{planned[i].title}: {error}" for i, error in failed.items()))


def _check_needs(stage: Job, planned: dict[str, Job], submission: Submission) -> None:
    """Raises UserError if a stage that ``stage`` needs is not done."""
    for need in stage.needs:
        before = planned.get(need)
        if before is not None and not is_sound(submission.places.folder(before.kind, before.id)):
            raise UserError(f"{before.title} is needed and not done; see its own failure")


def _run_stage(
    stage: Job, submission: Submission, job: ClusterJob, world: World, signals: Signals, notes: Notes
) -> None:
    from mar_bench.pipeline.execute import execute

    block = STAGES[stage.kind].trains
    images_per_step = getattr(attrgetter(block)(stage.run.spec), "batch_size", 1) if block else 1
    together = stage.kind == "train" and world.size > 1  # ranks agree whether to stop, at the same step
    claims: list[Claim] = []
    next_look = 0.0

    def check_ours() -> None:
        nonlocal next_look
        for claim in claims:
            claim.check()
        if world.size == 1 and (now := time.monotonic()) >= next_look:
            next_look = now + WRITE_SECONDS
            if stage.id in submission.unwanted():
                raise _Cancelled

    def progress(step: int, total: int) -> bool:
        check_ours()
        if world.any(signals.stop) if together else signals.stop:
            raise Stopped
        notes.step(step, total, images_per_step)
        return signals.asked_to_save()

    def waiting(why: str) -> None:
        check_ours()
        if signals.stop:
            raise Stopped
        notes.wait(why)

    def claimed(path: Path) -> Claim:
        # Job ids count from 1 again on a fresh cluster; a submission's id is unique.
        claims.append(Claim(path, f"{submission.id} {who()[0]}", who()[1]))
        return claims[-1]

    if stage.kind == "speed":
        _check_device(stage)
    notes.event(stage, "start")
    print(f"start {stage.title} ({stage.kind} {stage.id})", flush=True)
    try:
        did = execute(stage, submission.places, progress, waiting, world, job.shard, claimed)
    except (Superseded, _Cancelled):
        raise
    except Stopped:
        notes.event(stage, "stopped")
        raise
    notes.event(stage, "done" if did else "found")
    print(f"{'done' if did else 'already done:'} {stage.title}", flush=True)


def _check_device(stage: Job) -> None:
    """Raises UserError if speed would be recorded under a device that is not this one."""
    from mar_bench.config.ids import speed_run
    from mar_bench.records.provenance import device_name

    spec = stage.run.spec
    device = device_name(spec.compute.device)
    if speed_run(stage.run.row, spec, device).id != stage.id:
        raise UserError(
            f"this job runs on '{device}', not on the profile's device: set device in the cluster profile to it, "
            "or request nodes that have the profile's (constraint, gpu_type)"
        )
