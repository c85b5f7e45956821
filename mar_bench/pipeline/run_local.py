"""Run jobs on this machine: ``run_jobs`` on worker processes, ``run_together`` on ranks that torchrun or srun started.

Workers are forked from a server that has imported torch, and execute one job after another. If its pipe closes, because
the user stops the run or the scheduler has died, a worker saves a checkpoint and exits; the same command resumes from
there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.progress import Outcome, Report
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import DiskError, Stopped, described

if TYPE_CHECKING:
    from mar_bench.pipeline.distributed import World

TELL_SECONDS = 0.25  # between two reports of a worker; each report also detects a closed pipe
# seconds of imports, once for all workers
PRELOADED = ["mar_bench.pipeline.execute", "torch_fidelity", "vector_quantize_pytorch"]
STOPPING = signal.SIGINT, signal.SIGTERM  # requests to stop
STOP_SECONDS = 120  # time a worker has to save before it is killed
# A worker keeps the memory it has freed (glibc): to give it back and ask again in each step costs a sixth of the time
# of training a convolutional tokenizer.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**32}


def _work(pipe: Connection, places: Places) -> None:
    """In a worker: execute jobs from the pipe until it closes. Answers: a Report method and its arguments."""
    from mar_bench.pipeline.execute import execute  # imports torch

    next_time = 0.0

    def tell(*message: Any) -> None:
        nonlocal next_time
        if (now := time.monotonic()) < next_time:
            return
        next_time = now + TELL_SECONDS
        try:
            pipe.send(message)
        except OSError:
            raise Stopped from None

    with pipe, suppress(EOFError, OSError, Stopped):
        while True:
            job, answer = pipe.recv(), ["done"]
            try:
                execute(job, places, partial(tell, "progress"), partial(tell, "waiting"))
            except DiskError as error:
                answer = ["halted", str(error)]
            except Exception as error:
                answer = ["failed", described(error)]
            pipe.send(answer)


def run_jobs(jobs: list[Job], places: Places, num_workers: int, report: Report) -> Outcome:
    """Execute jobs on ``num_workers`` processes, dependencies first, longest chains first.

    A failed job fails the records that depend on it and nothing else. Stops cleanly on Ctrl-C and SIGTERM, and on a
    DiskError, which it raises: no job could go on."""
    urgency = _urgency(jobs)
    workers: dict[Any, Any] = {}  # pipes to processes
    busy: dict[Any, Job] = {}
    with Interrupts() as interrupts, report.bars:
        try:
            while not interrupts.count and (report.pending or busy):
                for job in _ready(report.pending, busy.values(), urgency)[: num_workers - len(busy)]:
                    pipe = next((pipe for pipe in workers if pipe not in busy), None) or _spawn(places, workers)
                    busy[pipe] = job
                    report.started(job)
                    with suppress(OSError):  # a dead worker is noticed on the next receive
                        pipe.send(job)
                ready: list[Any] = wait(list(workers), timeout=0.5)
                for pipe in ready:
                    try:
                        event, *content = pipe.recv()
                    except (EOFError, OSError):
                        process = workers.pop(pipe)
                        end(process, 5)
                        event, content = "failed", [f"the worker process died ({cause(process.exitcode)})"]
                    if event == "halted":
                        raise DiskError(*content)
                    if pipe in busy:
                        getattr(report, event)(busy[pipe], *content)
                    if event in ("done", "failed"):
                        busy.pop(pipe, None)
                report.tick()
            if report.pending or busy:
                report.outcome.stopped = True
                report.say("stopping: saving running jobs (press Ctrl-C again to abandon them)")
        finally:
            for pipe in workers:
                pipe.close()
            deadline = time.monotonic() + STOP_SECONDS
            while interrupts.count < 2 and time.monotonic() < deadline and any(p.is_alive() for p in workers.values()):
                time.sleep(0.05)
            for process in workers.values():
                end(process, 0)
            report.close()
    return report.outcome


def _ready(pending: dict[str, Job], running: Collection[Job], urgency: dict[str, float]) -> list[Job]:
    """Jobs that may start now, most urgent first. Speed is measured alone, after everything else."""
    unfinished = pending.keys() | {job.id for job in running}
    ready = [job for job in pending.values() if not unfinished & set(job.needs)]
    others = [job for job in ready if job.kind != "speed"]
    return sorted(others, key=lambda job: -urgency[job.id]) if others or running else ready[:1]


def _urgency(jobs: list[Job]) -> dict[str, float]:
    """The cost of the longest chain of dependents starting at each job."""
    urgency: dict[str, float] = {}
    behind: dict[str, float] = defaultdict(float)
    for job in reversed(jobs):  # jobs are in dependency order
        urgency[job.id] = job.cost + behind[job.id]
        for before in job.needs:
            behind[before] = max(behind[before], urgency[job.id])
    return urgency


def _spawn(places: Places, workers: dict[Any, Any]) -> Any:
    """Add a process to ``workers``; returns the pipe to it."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    mine, theirs = context.Pipe()
    workers[mine] = context.Process(target=_work, args=(theirs, places))
    for name, size in MALLOC.items():
        os.environ.setdefault(name, str(size))
    with ignoring_interrupts():
        workers[mine].start()
    theirs.close()
    return mine


def end(process: Any, seconds: float) -> None:
    """Wait for a process, then kill it."""
    process.join(seconds)
    process.kill()
    process.join()


def cause(exitcode: int | None) -> str:
    """How a process died, in words."""
    name = signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit code {exitcode}"
    return f"{name}: out of memory?" if name == "SIGKILL" else name


def run_together(jobs: list[Job], places: Places, world: World, report: Report) -> Outcome:
    """Execute jobs that the ranks have agreed on, one after another, dependencies first, speed last.

    Rank 0 alone does what cannot be split. Ranks agree before every training step whether to stop, so none waits for
    another. A failure ends the run: ranks waiting for this one are ended by their launcher."""
    from mar_bench.pipeline.execute import execute

    with Interrupts() as interrupts, report.bars:

        def progress(job: Job, *state: Any) -> None:
            stop = interrupts.count > 0
            if world.any(stop) if job.kind == "train" else stop:
                raise Stopped
            report.progress(job, *state)
            report.tick()

        try:
            for job in sorted(jobs, key=lambda job: job.kind == "speed"):
                report.started(job)
                execute(job, places, partial(progress, job), partial(report.waiting, job), world)
                report.done(job)
        except Stopped:
            report.outcome.stopped = True
        except DiskError:
            raise
        except Exception as error:
            report.outcome.stopped = interrupts.count > 0  # another rank stopped and left this one waiting
            if not report.outcome.stopped:
                report.failed(job, described(error))
        finally:
            report.close()
    return report.outcome


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Processes started in the block ignore SIGINT and SIGTERM: Ctrl-C and service managers send them to all, but only
    the scheduler acts on them."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Interrupts:
    """Counts Ctrl-C and SIGTERM instead of raising, so no message from a worker is cut off."""

    count = 0

    def __enter__(self) -> Interrupts:
        self.previous = {n: signal.signal(n, self._note) for n in STOPPING}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.count += 1
