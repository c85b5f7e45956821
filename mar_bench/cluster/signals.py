"""The signals that a running job receives: stop, save, and requeue."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Any

from mar_bench.cluster.slurm import ask
from mar_bench.records.provenance import slurm_job
from mar_bench.utils.errors import Stopped

RESERVE_SECONDS = 15  # of the time between the signal and the kill, kept for requeueing


class Signals:
    """Handlers of a job's signals; submitit's own would act in the middle of a step.

    SIGUSR2 comes before a time limit or a preemption: stop at the next step, then let submitit requeue the job.
    SIGTERM without SIGUSR2 comes when a job is requeued or cancelled from outside: save and go on until the kill.
    SIGALRM: no step has ended in time, stop in the middle of one. ``seconds`` pass between SIGUSR2 and the kill."""

    def __init__(self, seconds: int):
        self.seconds = seconds
        self.stop = self.save = self.ending = False
        self.stop_time = 0.0  # of SIGUSR2, on the monotonic clock
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        handlers = {signal.SIGUSR2: self._stop, signal.SIGTERM: self._save, signal.SIGALRM: self._late}
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
            ask(["scontrol", "requeue", who()[0]])
            time.sleep(60)


def who() -> tuple[str, int]:
    """This job's id, and how often Slurm has restarted it."""
    return slurm_job() or (f"{os.uname().nodename}-{os.getpid()}", 0)
