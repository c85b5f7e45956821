"""Inside a cluster job: run its stages in order, continuing from the files on disk.

A job may be restarted at any time. Finished stages are skipped, trainings resume from their newest checkpoint, drawn
images are kept. ``signals`` handles its signals."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mar_bench.cluster.jobs import TABLE, ClusterJob
from mar_bench.cluster.ledger import Submission, read_json, read_submission
from mar_bench.cluster.signals import Signals, who
from mar_bench.config.stages import STAGES
from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.store import is_sound
from mar_bench.utils.errors import Stopped, Superseded, UserError, described
from mar_bench.utils.files import atomic_write
from mar_bench.utils.locks import Claim

if TYPE_CHECKING:
    from mar_bench.pipeline.distributed import World

WRITE_SECONDS = 2.0  # between two writes of the status file, and between two checks for cancellation


class StagesFailed(Exception):
    """Ends a job in failure because a stage failed; the stage's own error is in its records and the status file."""


class _Cancelled(Stopped):
    """The user has cancelled the current stage."""


class StatusFile:
    """A job's stage, step and events, for ``mar-bench status``; of its processes only the first writes the file."""

    def __init__(self, path: Path, first: bool):
        self.path, self.first = path, first
        (job, restart), before = who(), read_json(path) or {}
        self.content: dict[str, Any] = {"job": job, "restart": restart, "pid": os.getpid()}
        self.content["failed"] = {}  # stages that failed before are tried again
        self.content["history"] = before.get("history", []) if before.get("job") == job else []
        self.next_write = 0.0
        self.begin: tuple[int, float] | None = None  # first step of this stage, and when

    def write(self, **what: Any) -> None:
        self.next_write = time.monotonic() + WRITE_SECONDS
        self.content |= what
        if self.first:
            with suppress(OSError):  # a full disk: the work itself reports it
                atomic_write(self.path, json.dumps(self.content))

    def event(self, stage: str | None, event: str) -> None:
        """A stage starts, ends, stops or fails; without a stage, the job."""
        now = {"stage": stage, "event": event}
        self.content["history"].append({**now, "at": round(time.time(), 1), "restart": self.content["restart"]})
        self.begin = None
        self.write(**now, step=None, total=None, waiting=None)
        self.next_write = 0.0

    def step(self, step: int, total: int, images_per_step: int) -> None:
        if self.begin is None:
            self.begin = (step, time.monotonic())
            self.content["history"][-1].setdefault("first_step", step)
        if time.monotonic() >= self.next_write:
            rate = (step - self.begin[0]) / max(1e-9, time.monotonic() - self.begin[1]) or None  # steps per second
            speed, left = (rate * images_per_step, (total - step) / rate) if rate else (None, None)
            self.write(step=step, total=total, images_per_second=speed, seconds_left=left, waiting=None)

    def wait(self, why: str) -> None:
        if time.monotonic() >= self.next_write:
            self.write(waiting=why)


@dataclass
class Work:
    """A job as submitit pickles it, called in the job: its submission's folder and its key there."""

    submission: str
    key: str
    last: Callable[[Submission], None]  # called after the stages of the submission's last job
    signal_seconds: int  # between the warning and the kill

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


def _run_job(submission: Submission, key: str, last: Callable[[Submission], None], signals: Signals) -> None:
    """Run all stages of a job, skipping those whose needs have failed. Raises StagesFailed at the end."""
    from mar_bench.pipeline.distributed import ALONE, join, world_of

    planned = {stage.id: stage for stage in submission.plan()[1]}
    job = submission.jobs[key]
    world = world_of() if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys() else ALONE
    if world.size > 1:
        join(world)
    status = StatusFile(submission.folder / "jobs" / f"{key}.json", world.first)
    failed: dict[str, str] = {}
    lost: set[str] = set()
    for stage in (planned[ref.id] for ref in job.stages):
        if stage.id in lost:
            continue
        if signals.stop and world.size == 1:
            raise Stopped
        try:
            if world.agreed(stage.id in submission.unwanted()):
                raise _Cancelled
            for need in (planned[i] for i in stage.needs if i in planned):
                if not is_sound(submission.places.folder(need.kind, need.id)):
                    raise UserError(f"{need.title} is needed but not done; see its own failure")
            _run_stage(stage, submission, job, world, signals, status)
        except _Cancelled:
            status.event(stage.id, "cancelled")
        except Exception as failure:
            if signals.stop or signals.ending:  # another rank has stopped or was killed, so this one is alone
                raise Stopped from failure
            error = described(failure)
            lost |= give_up(stage, list(planned.values()), error, 0.0, submission.places)
            failed[stage.id] = error.splitlines()[0]
            status.write(failed=failed)
            status.event(stage.id, "failed")
            print(f"FAILED {stage.title}: {error}", file=sys.stderr, flush=True)
            if world.size > 1:  # the other ranks wait for this one: nothing more can be done together
                raise
    if job == submission.last:
        status.event(TABLE, "start")
        last(submission)
    status.event(None, "end")
    needed = {ref.id for ref in job.stages if not STAGES[ref.kind].is_task}  # other jobs may wait for these
    if failed and (not needed or needed & failed.keys()):
        raise StagesFailed("; ".join(f"{planned[i].title}: {error}" for i, error in failed.items()))


def _run_stage(
    stage: Job, submission: Submission, job: ClusterJob, world: World, signals: Signals, status: StatusFile
) -> None:
    from mar_bench.pipeline.execute import execute

    block = STAGES[stage.kind].trains
    images_per_step = getattr(attrgetter(block)(stage.run.spec), "batch_size", 1) if block else 1
    claims: list[Claim] = []
    next_look = 0.0

    def look_around(together: bool = False) -> None:
        """Raises Superseded, _Cancelled or Stopped."""
        nonlocal next_look
        for claim in claims:
            claim.check()
        if world.size == 1 and (now := time.monotonic()) >= next_look:
            next_look = now + WRITE_SECONDS
            if stage.id in submission.unwanted():
                raise _Cancelled
        if world.any(signals.stop) if together else signals.stop:
            raise Stopped

    def progress(step: int, total: int, loss: float | None = None) -> bool:
        look_around(stage.kind == "train" and world.size > 1)  # ranks agree whether to stop, at the same step
        status.step(step, total, images_per_step)
        return signals.asked_to_save()

    def waiting(why: str) -> None:
        look_around()
        status.wait(why)

    def claimed(path: Path) -> Claim:
        # Job ids count from 1 again on a fresh cluster; a submission's id is unique.
        claims.append(Claim(path, f"{submission.id} {who()[0]}", who()[1]))
        return claims[-1]

    if stage.kind == "speed":
        _check_device(stage)
    status.event(stage.id, "start")
    print(f"start {stage.title} ({stage.kind} {stage.id})", flush=True)
    try:
        did = execute(stage, submission.places, progress, waiting, world, job.shard, claimed)
    except Stopped as stop:
        if type(stop) is Stopped:
            status.event(stage.id, "stopped")
        raise
    status.event(stage.id, "done" if did else "found")
    print(f"{'done' if did else 'already done:'} {stage.title}", flush=True)


def _check_device(stage: Job) -> None:
    """Raises UserError if speed would be recorded under another device's name."""
    from mar_bench.config.ids import speed_run
    from mar_bench.records.provenance import device_name

    spec = stage.run.spec
    device = device_name(spec.compute.device)
    if speed_run(stage.run.row, spec, device).id != stage.id:
        raise UserError(f"this job runs on '{device}': set device in the profile to this name, or request other nodes")
