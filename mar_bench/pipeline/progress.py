"""What the user sees while jobs run: bars on a terminal, lines of a log elsewhere, the time left on both."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mar_bench.pipeline.graph import Job

LOG_SECONDS = 15  # between two lines about the state of the work
PRIOR = 20.0  # seconds for which the planned costs are believed before the measured ones


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Report:
    """Counts the work; the two subclasses print it. Used as a context manager around the work."""

    def __init__(self, jobs: list[Job], num_workers: int):
        self.total = len(jobs)
        self.num_workers = num_workers
        self.running: dict[str, Job] = {}
        self.share: dict[str, float] = {}  # of a running job that is done
        self.note: dict[str, str] = {}  # step/total, or what it waits for
        self.begin: dict[str, float] = {}
        self.finished_jobs = 0
        self.finished_cost = 0.0
        self.finished_seconds = 0.0
        self.pending: list[Job] = jobs
        self.started_at = time.monotonic()

    # events

    def started(self, job: Job) -> None:
        self.running[job.id], self.begin[job.id], self.share[job.id] = job, time.monotonic(), 0.0
        self.note[job.id] = "starting"

    def progress(self, job: Job, step: int, total: int) -> None:
        self.share[job.id] = step / max(1, total)
        self.note[job.id] = f"{step}/{total}"

    def waiting(self, job: Job, why: str) -> None:
        self.note[job.id] = why

    def finished(self, job: Job, seconds: float) -> None:
        self.finished_jobs += 1
        self.finished_cost += job.cost
        self.finished_seconds += seconds
        self.running.pop(job.id, None)

    def failed(self, job: Job, error: str) -> None:
        self.finished_jobs += 1
        self.running.pop(job.id, None)

    def tick(self, pending: list[Job]) -> None:
        """Called twice a second or more often, with the jobs that have not started."""
        self.pending = pending

    def say(self, text: str) -> None:
        raise AssertionError("a report says things")

    # what they come to

    def seconds_left(self) -> float:
        """From the planned costs, scaled by how they compared with the clock so far."""
        now = time.monotonic()
        running = sum(job.cost * self.share[i] for i, job in self.running.items())
        spent = sum(now - self.begin[i] for i in self.running)
        pace = (PRIOR + self.finished_seconds + spent) / (PRIOR + self.finished_cost + running)
        left = [*self.running.values(), *self.pending]
        cost = {job.id: job.cost * (1 - self.share.get(job.id, 0.0)) for job in left}
        alone = sum(cost[job.id] for job in left if job.kind == "speed")
        others = [cost[job.id] for job in left if job.kind != "speed"]
        return pace * (alone + max(sum(others) / self.num_workers, max(others, default=0.0)))

    def share_done(self) -> float:
        left = sum(job.cost for job in self.pending)
        running = sum(job.cost for job in self.running.values())
        part = sum(job.cost * self.share[i] for i, job in self.running.items())
        return (self.finished_cost + part) / max(1e-9, self.finished_cost + running + left)

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return


class NoReport(Report):
    """For a process beside the one that reports."""

    def say(self, text: str) -> None:
        return


class LogReport(Report):
    """A line for each job that ends, and the state of the work now and then."""

    def __init__(self, jobs: list[Job], num_workers: int):
        super().__init__(jobs, num_workers)
        self.next_line = time.monotonic() + LOG_SECONDS

    def say(self, text: str) -> None:
        print(f"[{int(self.elapsed()) // 60:3d}:{int(self.elapsed()) % 60:02d}] {text}", flush=True)

    def started(self, job: Job) -> None:
        super().started(job)
        if job.cost > LOG_SECONDS:
            self.say(f"start  {job.title}")

    def finished(self, job: Job, seconds: float) -> None:
        super().finished(job, seconds)
        self.say(f"done   {job.title}, {duration(seconds)} ({self.finished_jobs}/{self.total})")

    def failed(self, job: Job, error: str) -> None:
        super().failed(job, error)
        self.say(f"FAILED {job.title}: {error.splitlines()[0]}")

    def tick(self, pending: list[Job]) -> None:
        super().tick(pending)
        if self.running and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LOG_SECONDS
            busy = "; ".join(f"{job.title} {self.note[i]}" for i, job in self.running.items())
            self.say(f"{100 * self.share_done():.0f} %, about {duration(self.seconds_left())} left: {busy}")


class TerminalReport(Report):
    """A bar for the whole and one for each running job."""

    def __init__(self, jobs: list[Job], num_workers: int, console: Console):
        super().__init__(jobs, num_workers)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.whole = self.bars.add_task(f"{self.total} jobs", total=1.0, note="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> TerminalReport:
        self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False)

    def started(self, job: Job) -> None:
        super().started(job)
        self.tasks[job.id] = self.bars.add_task(f"  {job.title}", total=1.0, note="starting")

    def finished(self, job: Job, seconds: float) -> None:
        super().finished(job, seconds)
        self.bars.remove_task(self.tasks.pop(job.id))
        self.say(f"done {job.title}, {duration(seconds)}")

    def failed(self, job: Job, error: str) -> None:
        super().failed(job, error)
        self.bars.remove_task(self.tasks.pop(job.id))
        self.say(f"FAILED {job.title}: {error.splitlines()[0]}")

    def tick(self, pending: list[Job]) -> None:
        super().tick(pending)
        for job_id, task in self.tasks.items():
            self.bars.update(task, completed=self.share[job_id], note=self.note[job_id])
        left = f"{self.finished_jobs}/{self.total}, about {duration(self.seconds_left())} left"
        self.bars.update(self.whole, completed=self.share_done(), note=left)


def make_report(jobs: list[Job], num_workers: int, quiet: bool = False) -> Report:
    if quiet:
        return NoReport(jobs, num_workers)
    console = Console()
    if console.is_terminal:
        return TerminalReport(jobs, num_workers, console)
    return LogReport(jobs, num_workers)
