"""What a job of the cluster does: its stages, one after another, from what is on disk.

It can be started again at any time: finished stages are skipped, trainings go on from their own newest check-point,
images that are drawn are kept. Nothing depends on what submitit's pickle remembers but which job this is."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mar_bench.cluster.jobs import TABLE, leaves_alone
from mar_bench.cluster.ledger import Submission, read_submission
from mar_bench.cluster.slurm import requeue_job
from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.store import is_sound
from mar_bench.records.record import RECORDED
from mar_bench.utils.errors import Stopped, Superseded, UserError, described
from mar_bench.utils.files import atomic_write
from mar_bench.utils.locks import Claim

TELL_SECONDS = 2.0  # between two notes of what a job is at
LAST_SECONDS = 15  # kept back, of the time between the signal and the end, for queueing again


class StagesFailed(Exception):
    """Ends a job in failure when one of its stages failed; the stage's own error is in records and notes."""


@dataclass
class Work:
    """A job as submitit pickles it: where its submission is, and its key there. Called in the job."""

    submission: str
    key: str
    signal_seconds: int = 0  # between the signal and the end; 0: no signal is expected
    last: Callable[[Submission], None] | None = None  # what follows its stages

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        signals = Signals(self.signal_seconds)
        environment = _environment()
        if environment is not None and environment.num_tasks > 1 and "WORLD_SIZE" not in os.environ:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        with signals:
            try:
                _do(read_submission(Path(self.submission)), self.key, self.last, signals)
            except Superseded:
                print("a newer start of this job has taken over: leaving", file=sys.stderr, flush=True)
                os._exit(0)  # without a word to submitit, whose files are the newer start's
            except Stopped:
                if signals.stop:
                    signals.requeue()
                raise

    def checkpoint(self):
        """Asked by submitit when the job is queued again: the same work, which finds on disk how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _environment():
    from submitit import JobEnvironment

    try:
        return JobEnvironment()
    except RuntimeError:  # called by hand
        return None


class Signals:
    """USR2, before a time limit or a preemption: stop at the next step, then let submitit queue the job again.

    TERM, which comes without USR2 when a job is requeued or cancelled from outside: save, and go on to the end that
    follows. submitit's own handlers would act in the middle of a step.

    Without a signal before the end (``seconds`` 0), on this machine, TERM is the word to stop."""

    def __init__(self, seconds: int):
        self.seconds = seconds
        self.stop = self.save = self.ending = False
        self.told = 0.0  # when, on the monotonic clock
        self.previous: dict = {}

    def __enter__(self) -> Signals:
        handlers = {signal.SIGUSR2: self._stop, signal.SIGTERM: self._save, signal.SIGALRM: self._late}
        if not self.seconds:
            handlers = {signal.SIGTERM: self._stop}
        self.previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        return self

    def __exit__(self, *error) -> None:
        signal.alarm(0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame) -> None:
        self.stop, self.told = True, time.monotonic()
        print("told to stop: saving at the next step", file=sys.stderr, flush=True)
        if self.seconds:
            signal.alarm(max(1, self.seconds - LAST_SECONDS))

    def _late(self, number: int, frame) -> None:
        print("no step has ended in time: stopping where it is", file=sys.stderr, flush=True)
        raise Stopped

    def _save(self, number: int, frame) -> None:
        self.save = self.ending = True

    def asked_to_save(self) -> bool:
        """Once for each TERM."""
        asked, self.save = self.save, False
        return asked

    def requeue(self) -> None:
        """Have submitit queue the job again, which ends this process; others of the job wait for that end."""
        signal.alarm(0)
        handler = self.previous.get(signal.SIGUSR2)
        if callable(handler):
            handler(signal.SIGUSR2, None)
            # not the first process of the job: that one has to save yet, unless it is stuck waiting for this one
            time.sleep(max(0.0, self.told + self.seconds - LAST_SECONDS - time.monotonic()))
            requeue_job(who()[0])
            time.sleep(60)


class Notes:
    """What a job says of itself: a file that ``status`` reads, written now and then by the first process."""

    def __init__(self, submission: Submission, key: str, first: bool):
        self.path = submission.folder / "jobs" / f"{key}.json"
        self.first = first
        before = submission.progress(key)
        job, restart = who()
        self.content = {
            "job": job,
            "restart": restart,
            "node": os.environ.get("SLURMD_NODENAME", ""),
            "pid": os.getpid(),
            "started": time.time(),
            "failed": before.get("failed", {}) if before.get("job") == job else {},
            "history": before.get("history", []) if before.get("job") == job else [],
        }
        self.next_time = 0.0
        self.begin = (0, 0.0)

    def say(self, **what) -> None:
        """At once."""
        self.content |= what | {"updated": time.time()}
        if self.first:
            with suppress(OSError):  # a full disk: the work itself says it
                atomic_write(self.path, json.dumps(self.content))

    def stage(self, stage: Job, event: str, **what) -> None:
        """A stage begins, ends, stops or fails."""
        now = round(time.time(), 1)
        self.content["history"].append(
            {"stage": stage.id, "event": event, "at": now, "restart": self.content["restart"], **what}
        )
        self.begin = (-1, 0.0)
        self.say(stage=stage.id, event=event, step=None, total=None, rate=None, waiting=None)

    def at(self, step: int, total: int, unit: int) -> None:
        """``unit``: images a step."""
        now = time.monotonic()
        if self.begin[0] < 0:
            self.begin = (step, now)
            self.content["history"][-1].setdefault("first_step", step)
        if now < self.next_time:
            return
        self.next_time = now + TELL_SECONDS
        seconds = now - self.begin[1]
        rate = (step - self.begin[0]) / seconds if seconds > 0.5 else None
        self.say(step=step, total=total, rate=rate, unit=unit, waiting=None)

    def waits(self, why: str) -> None:
        if time.monotonic() >= self.next_time:
            self.next_time = time.monotonic() + TELL_SECONDS
            self.say(waiting=why)


def who() -> tuple[str, int]:
    """This job's id and how often Slurm has started it again."""
    environ = os.environ
    array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else environ.get("SLURM_JOB_ID", f"{os.uname().nodename}-{os.getpid()}")
    return job, int(environ.get("SLURM_RESTART_COUNT", 0))


def _do(submission: Submission, key: str, last: Callable | None, signals: Signals) -> None:
    """All stages of a job; those that cannot be done are left out, and it fails in the end."""
    from mar_bench.pipeline.distributed import ALONE, join, world_of

    entry, planned = submission.jobs[key], submission.planned()
    world = world_of() if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys() else ALONE
    if world.size > 1:
        join(world)
    notes = Notes(submission, key, world.first)
    notes.content["failed"] = {}  # what had failed is tried again
    every = list(planned.values())
    failed: dict[str, str] = {}
    lost: set[str] = set()
    for stage in (planned[stage.id] for stage in entry.stages):
        if stage.id in lost:
            continue
        if signals.stop and world.size == 1:
            raise Stopped
        if world.agreed(stage.id in submission.unwanted()):
            notes.stage(stage, "cancelled")
            continue
        try:
            error = _missing(stage, planned, submission)
            if error is None:
                _one(stage, submission, entry.shard, world, signals, notes)
                continue
        except _Cancelled:
            notes.stage(stage, "cancelled")
            continue
        except Exception as failure:
            if signals.stop or signals.ending:  # another process has stopped, or been ended, and left this one alone
                raise Stopped from failure
            error = described(failure)
            if world.size > 1:  # the others wait for this one: nothing more can be done together
                traceback.print_exc()
                lost |= give_up(stage, every, error, 0.0, submission.places)
                notes.stage(stage, "failed", error=error.splitlines()[0])
                raise
        print(f"FAILED {stage.title}: {error}", file=sys.stderr, flush=True)
        failed[stage.id] = error.splitlines()[0]
        lost |= give_up(stage, every, error, 0.0, submission.places)
        notes.say(failed=failed)
        notes.stage(stage, "failed", error=failed[stage.id])
    if last is not None:
        notes.say(stage=TABLE, event="start", step=None, total=None, waiting=None)
        last(submission)
    notes.say(stage=None, event="end")
    needed = {stage.id for stage in entry.stages if stage.kind not in RECORDED}  # by other jobs, perhaps
    if failed and (leaves_alone(planned[s.id] for s in entry.stages) or failed.keys() & needed):
        raise StagesFailed("; ".join(f"{planned[i].title}: {error}" for i, error in failed.items()))


def _missing(stage: Job, planned: dict[str, Job], submission: Submission) -> str | None:
    """Why a stage cannot begin: something that it needs is not there."""
    for need in stage.needs:
        before = planned.get(need)
        if before is not None and not is_sound(submission.places.folder(before.kind, before.id)):
            return f"{before.title} is not done, which this needs; its own failure says why"
    return None


class _Cancelled(Stopped):
    """The stage under way is no longer wanted."""


def _one(stage: Job, submission: Submission, shard, world, signals: Signals, notes: Notes) -> None:
    from mar_bench.pipeline.stages import execute

    spec = stage.run.spec
    sizes = {"train": spec.train, "tokenizer": spec.tokenizer, "extractor": spec.metrics.extractor}
    unit = getattr(sizes.get(stage.kind), "batch_size", 1)
    claims: list[Claim] = []
    next_look = 0.0

    def still_ours() -> None:
        nonlocal next_look
        for claim in claims:
            claim.check()
        if world.size == 1 and (now := time.monotonic()) >= next_look:
            next_look = now + TELL_SECONDS
            if stage.id in submission.unwanted():
                raise _Cancelled

    def stop_if_told() -> None:
        if world.any(signals.stop) if stage.kind == "train" and world.size > 1 else signals.stop:
            raise Stopped

    def progress(step: int, total: int) -> bool:
        still_ours()
        stop_if_told()
        notes.at(step, total, unit)
        return signals.asked_to_save()

    def waiting(why: str) -> None:
        still_ours()
        if signals.stop:
            raise Stopped
        notes.waits(why)

    def claimed(path: Path) -> Claim:
        # ids of jobs begin anew with a cluster's history; a submission's name does not come again
        claims.append(Claim(path, f"{submission.id} {who()[0]}", who()[1]))
        return claims[-1]

    _check_device(stage)
    notes.stage(stage, "start")
    print(f"start {stage.title} ({stage.kind} {stage.id})", flush=True)
    try:
        did = execute(stage, submission.places, progress, waiting, world, shard, claimed)
    except (Superseded, _Cancelled):
        raise
    except Stopped:
        notes.stage(stage, "stopped")
        raise
    notes.stage(stage, "done" if did else "found")
    print(f"{'done' if did else 'was there:'} {stage.title}", flush=True)


def _check_device(stage: Job) -> None:
    """Raises UserError where speed would be filed under another device than it was measured on."""
    if stage.kind != "speed":
        return
    from mar_bench.config.ids import speed_run
    from mar_bench.records.provenance import device_name

    spec = stage.run.spec
    device = device_name(spec.compute.device)
    if speed_run(stage.run.row, spec, device).id != stage.id:
        raise UserError(
            f"this job runs on '{device}', another device than the profile's: set device in the cluster profile to it, "
            "or ask for nodes that have the profile's (constraint, gpu_type)"
        )
