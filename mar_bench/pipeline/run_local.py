"""Run jobs on this machine: a scheduler and worker processes, one pipe each.

Workers are spawned, import torch once and execute one job after another. A stop (Ctrl-C, SIGTERM) reaches them as a
message: they save a checkpoint, from which the same command resumes. A worker whose scheduler died sees its pipe
closed and stops the same way.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.progress import Report
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import Stopped, described

STOP = "stop"
TELL_SECONDS = 0.25  # between two reports of a worker, which also checks for a stop
STOP_SECONDS = 120  # time a worker has to save before it is killed


# --- in the worker --------------------------------------------------------------------------------------


def _work(pipe: Connection, places: Places) -> None:
    """Execute jobs from the pipe until it closes; answers with (event, ...) tuples."""
    from mar_bench.pipeline.execute import execute  # imports torch

    with pipe:
        while (job := _receive(pipe)) is not None:
            begin = time.monotonic()
            try:
                execute(job, places, *_channels(pipe))
                answer = ("done", time.monotonic() - begin)
            except Stopped:
                answer = ("stopped",)
            except Exception as error:
                answer = ("failed", described(error))
            try:
                pipe.send(answer)
            except OSError:
                return


def _receive(pipe: Connection) -> Job | None:
    try:
        message = pipe.recv()
    except (EOFError, OSError):
        return None
    return message if isinstance(message, Job) else None


def _channels(pipe: Connection) -> tuple[Callable[[int, int], None], Callable[[str], None]]:
    """``progress(step, total)`` and ``waiting(why)`` for a stage; both raise Stopped after a stop."""
    next_time = 0.0

    def tell(*message) -> None:
        nonlocal next_time
        if (now := time.monotonic()) < next_time:
            return
        next_time = now + TELL_SECONDS
        try:
            if pipe.poll():
                pipe.recv()  # the only message to a busy worker is STOP; a closed pipe raises
                raise Stopped
            pipe.send(message)
        except (EOFError, OSError):
            raise Stopped from None

    return (lambda step, total: tell("progress", step, total)), (lambda why: tell("waiting", why))


# --- the scheduler --------------------------------------------------------------------------------------


@dataclass
class Worker:
    process: Any  # of multiprocessing
    pipe: Connection
    job: Job | None = None
    since: float = 0.0

    def give(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        with suppress(OSError):  # a dead worker is noticed on the next receive
            self.pipe.send(job)


@dataclass
class Outcome:
    """The result of a run: ``failed`` maps ids of failed jobs to errors; their dependents were not run."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


def run_jobs(jobs: list[Job], places: Places, num_workers: int, report: Report) -> Outcome:
    """Execute jobs on ``num_workers`` processes, dependencies first, longest chains first.

    A failed job fails the records that depend on it and nothing else. Stops cleanly on Ctrl-C and SIGTERM."""
    outcome = Outcome()
    pending = {job.id: job for job in jobs}
    urgency = _urgency(jobs)
    workers: list[Worker] = []
    with Interrupts() as interrupts, report:
        try:
            while not interrupts.count and (pending or any(w.job for w in workers)):
                for job in _ready(pending, workers, urgency):
                    idle = next((w for w in workers if w.job is None), None)
                    if idle is None:
                        if len(workers) >= num_workers:
                            break
                        workers.append(idle := _spawn(places))
                    idle.give(pending.pop(job.id))
                    report.started(job)
                for pipe in wait([w.pipe for w in workers], timeout=0.5):
                    worker = next(w for w in workers if w.pipe is pipe)
                    if not _hear(worker, jobs, pending, places, outcome, report):
                        workers.remove(worker)
                report.tick(list(pending.values()))
            if pending or any(w.job for w in workers):
                outcome.stopped = True
                report.say("stopping: saving running jobs (press Ctrl-C again to abandon them)")
                _stop(workers, interrupts)
        finally:
            for worker in workers:
                worker.pipe.close()
            for worker in workers:
                _end(worker, STOP_SECONDS)
    return outcome


def _ready(pending: dict[str, Job], workers: list[Worker], urgency: dict[str, float]) -> list[Job]:
    """Jobs that may start now, most urgent first. Speed is measured alone, after everything else."""
    running = [w.job for w in workers if w.job]
    unfinished = pending.keys() | {job.id for job in running}
    ready = [job for job in pending.values() if not unfinished & set(job.needs)]
    others = [job for job in ready if job.kind != "speed"]
    if others or running:
        return sorted(others, key=lambda job: -urgency[job.id])
    return ready[:1]


def _urgency(jobs: list[Job]) -> dict[str, float]:
    """The cost of the longest chain of dependents starting at each job."""
    urgency: dict[str, float] = {}
    behind: dict[str, list[str]] = {}
    for job in reversed(jobs):  # jobs are in dependency order
        urgency[job.id] = job.cost + max((urgency[b] for b in behind.get(job.id, [])), default=0.0)
        for before in job.needs:
            behind.setdefault(before, []).append(job.id)
    return urgency


def _hear(
    worker: Worker, jobs: list[Job], pending: dict[str, Job], places: Places, outcome: Outcome, report: Report
) -> bool:
    """Receive one message from a worker; False if it has died."""
    job = worker.job
    try:
        event, *content = worker.pipe.recv()
    except (EOFError, OSError):
        _end(worker, 5)
        event, content = "failed", [f"the worker process died ({_cause(worker.process.exitcode)})"]
    if event == "progress":
        report.progress(job, *content)
    elif event == "waiting":
        report.waiting(job, *content)
    else:
        worker.job = None
        if event == "done":
            outcome.done += 1
            report.finished(job, *content)
        elif event == "failed" and job is not None:
            report.failed(job, content[0])
            outcome.failed[job.id] = content[0]
            for lost in give_up(job, jobs, content[0], time.monotonic() - worker.since, places):
                pending.pop(lost, None)
    return worker.process.is_alive() or event in ("progress", "waiting", "done")


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"{name}: out of memory?" if name == "SIGKILL" else name
    return f"exit code {exitcode}"


def _spawn(places: Places) -> Worker:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, places))
    with ignoring_interrupts():
        process.start()
    theirs.close()
    return Worker(process, mine)


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started in the block ignore SIGINT: Ctrl-C reaches all of a terminal, only the scheduler acts on it."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _stop(workers: list[Worker], interrupts: Interrupts) -> None:
    """Ask busy workers to stop and wait until they have saved; a second Ctrl-C terminates them."""
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        with suppress(OSError):
            worker.pipe.send(STOP)
    while (busy := [w for w in workers if w.job]) and interrupts.count < 2 and time.monotonic() < deadline:
        for pipe in wait([w.pipe for w in busy], timeout=0.5):
            worker = next(w for w in busy if w.pipe is pipe)
            try:
                saved = worker.pipe.recv()[0] not in ("progress", "waiting")
            except (EOFError, OSError):
                saved = True  # dead: nothing to wait for
            if saved:
                worker.job = None
    for worker in busy:
        worker.process.terminate()


def _end(worker: Worker, seconds: float) -> None:
    worker.process.join(seconds)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


class Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising, so no message from a worker is cut off."""

    def __init__(self):
        self.count = 0

    def __enter__(self) -> Interrupts:
        self.previous = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.count += 1
