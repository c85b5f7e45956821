"""A running job's signals and its status file."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from mar_bench.cluster.ledger import Submission
from mar_bench.cluster.slurm import requeue_job
from mar_bench.pipeline.graph import Job
from mar_bench.utils.errors import Stopped
from mar_bench.utils.files import atomic_write

WRITE_SECONDS = 2.0  # between two writes of the status file, and two reads of what was cancelled
RESERVE_SECONDS = 15  # of the time between the signal and the kill, kept for requeueing


class Signals:
    """Handlers of a job's signals; submitit's own would act in the middle of a step.

    SIGUSR2 comes before a time limit or a preemption: stop at the next step, then let submitit requeue the job.
    SIGTERM without SIGUSR2 comes when a job is requeued or cancelled from outside: save and go on until the kill.
    SIGALRM: no step has ended in time, stop in the middle of one.

    Without a warning before the kill (``seconds`` is 0: on this machine) SIGTERM means stop."""

    def __init__(self, seconds: int):
        self.seconds = seconds
        self.stop = self.save = self.ending = False
        self.stop_time = 0.0  # of SIGUSR2, on the monotonic clock
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        handlers = {signal.SIGUSR2: self._stop, signal.SIGTERM: self._save, signal.SIGALRM: self._late}
        if not self.seconds:
            handlers = {signal.SIGTERM: self._stop}
        self.previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        return self

    def __exit__(self, *error: object) -> None:
        signal.alarm(0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop, self.stop_time = True, time.monotonic()
        print("told to stop: saving at the next step", file=sys.stderr, flush=True)
        if self.seconds:
            signal.alarm(max(1, self.seconds - RESERVE_SECONDS))

    def _late(self, number: int, frame: FrameType | None) -> None:
        print("no step has ended in time: stopping in the middle of one", file=sys.stderr, flush=True)
        raise Stopped

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save = self.ending = True

    def asked_to_save(self) -> bool:
        """True once per SIGTERM."""
        asked, self.save = self.save, False
        return asked

    def requeue(self) -> None:
        """Let submitit requeue the job, which ends this process."""
        signal.alarm(0)
        handler = self.previous.get(signal.SIGUSR2)
        if callable(handler):
            handler(signal.SIGUSR2, None)
            # Only rank 0 requeues and exits there. The others let it save, unless it is stuck waiting for them.
            time.sleep(max(0.0, self.stop_time + self.seconds - RESERVE_SECONDS - time.monotonic()))
            requeue_job(who()[0])
            time.sleep(60)


class Notes:
    """The job's status file, which ``status`` reads; only the first process writes it."""

    def __init__(self, submission: Submission, key: str, first: bool):
        self.path = submission.folder / "jobs" / f"{key}.json"
        self.first = first
        before = submission.notes(key)
        job, restart = who()
        self.content: dict[str, Any] = {
            "job": job,
            "restart": restart,
            "node": os.environ.get("SLURMD_NODENAME", ""),
            "pid": os.getpid(),
            "started": time.time(),
            "failed": {},  # stages that failed before are tried again
            "history": before.get("history", []) if before.get("job") == job else [],
        }
        self.next_write = 0.0
        self.begin: tuple[int, float] | None = None  # first step of this stage, and when

    def write(self, **what: Any) -> None:
        self.content |= what | {"updated": time.time()}
        if self.first:
            with suppress(OSError):  # a full disk: the work itself reports it
                atomic_write(self.path, json.dumps(self.content))

    def event(self, stage: Job, event: str, **what: Any) -> None:
        """A stage starts, ends, stops or fails."""
        at = round(time.time(), 1)
        self.content["history"].append(
            {"stage": stage.id, "event": event, "at": at, "restart": self.content["restart"], **what}
        )
        self.begin = None
        self.write(stage=stage.id, event=event, step=None, total=None, rate=None, waiting=None)

    def step(self, step: int, total: int, images_per_step: int) -> None:
        now = time.monotonic()
        if self.begin is None:
            self.begin = (step, now)
            self.content["history"][-1].setdefault("first_step", step)
        if now < self.next_write:
            return
        self.next_write = now + WRITE_SECONDS
        seconds = now - self.begin[1]
        rate = (step - self.begin[0]) / seconds if seconds > 0.5 else None
        self.write(step=step, total=total, rate=rate, unit=images_per_step, waiting=None)

    def wait(self, why: str) -> None:
        if time.monotonic() >= self.next_write:
            self.next_write = time.monotonic() + WRITE_SECONDS
            self.write(waiting=why)


def who() -> tuple[str, int]:
    """This job's id, and how often Slurm has restarted it."""
    environ = os.environ
    array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else environ.get("SLURM_JOB_ID", f"{os.uname().nodename}-{os.getpid()}")
    return job, int(environ.get("SLURM_RESTART_COUNT", 0))
