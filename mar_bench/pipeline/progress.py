"""Progress of running jobs: bars on a terminal, timed log lines elsewhere, the time left on both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mar_bench.pipeline.graph import Job

LOG_SECONDS = 15  # between two log lines about the state of the work
PRIOR = 20.0  # seconds of measured work before measurements outweigh the planned costs


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass
class Running:
    """A job under way: the share of it that is done, and its step or what it waits for."""

    job: Job
    task: TaskID
    share: float = 0.0
    note: str = "starting"
    begin: float = field(default_factory=lambda: time.monotonic())


class Report:
    """Tracks and shows the jobs of a run; a context manager around the work. ``quiet``: shows nothing."""

    def __init__(self, jobs: list[Job], num_workers: int, quiet: bool = False):
        self.total, self.num_workers, self.quiet = len(jobs), num_workers, quiet
        self.running: dict[str, Running] = {}
        self.pending: list[Job] = jobs
        self.ended = 0
        self.done_cost = self.done_seconds = 0.0
        self.started_at = time.monotonic()
        self.next_line = self.started_at + LOG_SECONDS
        console = Console(quiet=quiet)
        self.on_terminal = console.is_terminal and not quiet
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}")
        self.bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not self.on_terminal)
        self.whole = self.bars.add_task(f"{self.total} jobs", total=1.0, note="")

    def __enter__(self) -> Report:
        self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        if self.on_terminal:
            self.bars.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            minutes, seconds = divmod(int(self.elapsed()), 60)
            print(f"[{minutes:3d}:{seconds:02d}] {text}", flush=True)

    # --- events -----------------------------------------------------------------------------------------

    def started(self, job: Job) -> None:
        self.running[job.id] = Running(job, self.bars.add_task(f"  {job.title}", total=1.0, note="starting"))
        if job.cost > LOG_SECONDS and not self.on_terminal:
            self.say(f"start  {job.title}")

    def progress(self, job: Job, step: int, total: int) -> None:
        self.running[job.id].share, self.running[job.id].note = step / max(1, total), f"{step}/{total}"

    def waiting(self, job: Job, why: str) -> None:
        self.running[job.id].note = why

    def finished(self, job: Job, seconds: float) -> None:
        self.done_cost += job.cost
        self.done_seconds += seconds
        self._end(job)
        self.say(f"done   {job.title}, {duration(seconds)} ({self.ended}/{self.total})")

    def failed(self, job: Job, error: str) -> None:
        self._end(job)
        self.say(f"FAILED {job.title}: {error.splitlines()[0]}")

    def _end(self, job: Job) -> None:
        self.ended += 1
        self.bars.remove_task(self.running.pop(job.id).task)

    def tick(self, pending: list[Job]) -> None:
        """Called at least twice a second, with the jobs that have not started."""
        self.pending = pending
        for item in self.running.values():
            self.bars.update(item.task, completed=item.share, note=item.note)
        left = f"about {duration(self.seconds_left())} left"
        self.bars.update(self.whole, completed=self.share_done(), note=f"{self.ended}/{self.total}, {left}")
        if self.running and not self.on_terminal and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LOG_SECONDS
            busy = "; ".join(f"{item.job.title} {item.note}" for item in self.running.values())
            self.say(f"{100 * self.share_done():.0f} %, {left}: {busy}")

    # --- estimates --------------------------------------------------------------------------------------

    def seconds_left(self) -> float:
        """From the planned costs, scaled by how they compared with the clock so far."""
        now, running = time.monotonic(), self.running.values()
        spent = PRIOR + self.done_seconds + sum(now - item.begin for item in running)
        pace = spent / (PRIOR + self.done_cost + sum(item.job.cost * item.share for item in running))
        left = [(item.job, item.job.cost * (1 - item.share)) for item in running]
        left += [(job, job.cost) for job in self.pending if job.id not in self.running]
        alone = sum(cost for job, cost in left if job.kind == "speed")
        others = [cost for job, cost in left if job.kind != "speed"]
        return pace * (alone + max(sum(others) / self.num_workers, max(others, default=0.0)))

    def share_done(self) -> float:
        running = self.running.values()
        done = self.done_cost + sum(item.job.cost * item.share for item in running)
        left = sum(item.job.cost * (1 - item.share) for item in running)
        return done / max(1e-9, done + left + sum(job.cost for job in self.pending))

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at
