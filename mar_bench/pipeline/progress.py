"""The state of a run's jobs (waiting, running, done, failed): bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn

from mar_bench.pipeline.graph import Job, give_up
from mar_bench.pipeline.store import Places
from mar_bench.utils.console import printable
from mar_bench.utils.files import atomic_write, with_folder

LOG_SECONDS = 15  # between two log lines about the state of the work
RECENT = 60  # seconds for which a state counts
PRIOR = 20.0  # seconds of measured work before measurements outweigh the planned costs


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _state_file(runs: Path) -> Path:
    """Where this process tells what it does."""
    return runs / "state" / f"{socket.gethostname()}-{os.getpid()}.json"


def states(runs: Path) -> list[list[str]]:
    """What the runs do that have told so within the last minute: the jobs done and the time left, then each job."""
    found = []
    for path in sorted((runs / "state").glob("*.json")):
        with suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < RECENT:
                found.append(json.loads(path.read_text()))
    return found


@dataclass
class Outcome:
    """The result of a run: ``failed`` maps ids of failed jobs to errors; their dependents were not run."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


class Report:
    """Tracks and shows the jobs of a run; ``bars`` is a context manager around the work.

    ``quiet``: shows nothing; ``told``: writes what it does for a page that watches."""

    def __init__(self, jobs: list[Job], places: Places, num_workers: int, quiet: bool = False, told: bool = True):
        self.jobs, self.places, self.num_workers = jobs, places, num_workers
        self.told, self.outcome = told, Outcome()
        self.pending = {job.id: job for job in jobs}
        self.running: dict[str, tuple[Job, Task]] = {}  # the bar holds the share that is done, and a note
        self.first: dict[str, tuple[int, float]] = {}  # of a running job: its first step told, and when
        self.done_cost = self.done_seconds = 0.0
        self.begin = time.monotonic()
        self.next_line = self.begin + LOG_SECONDS
        console = Console(quiet=quiet)
        self.on_terminal = console.is_terminal and not quiet
        texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[note]")]
        parts = texts[0], BarColumn(24), texts[1], TimeElapsedColumn()
        self.bars = Progress(*parts, console=console, disable=not self.on_terminal, get_time=time.monotonic)
        self.whole = self.bars.add_task(f"{len(jobs)} jobs", total=len(jobs), note="")

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(self.elapsed()), 60)
        line = printable(f"[{minutes:3d}:{seconds:02d}] {text}")
        self.bars.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def started(self, job: Job) -> None:
        del self.pending[job.id]
        self.bars.add_task(f"  {job.title}", total=1.0, note="starting")
        self.running[job.id] = job, self.bars.tasks[-1]

    def progress(self, job: Job, step: int, total: int, loss: float = math.nan) -> None:
        first, since = self.first.setdefault(job.id, (step, time.monotonic()))
        seconds, batch = time.monotonic() - since, job.run.spec.train.batch_size
        note = f"{step}/{total}"
        if job.kind == "train" and step > first:
            note += f", {step * batch:,} images at {(step - first) * batch / seconds:,.0f}/s"
        self.waiting(job, note + f", loss {loss:.4g}" * math.isfinite(loss))
        self.running[job.id][1].completed = step / max(1, total)

    def waiting(self, job: Job, why: str) -> None:
        self.running[job.id][1].fields["note"] = why

    def done(self, job: Job) -> None:
        seconds = self._ended(job)
        self.outcome.done += 1
        self.done_cost, self.done_seconds = self.done_cost + job.cost, self.done_seconds + seconds
        self.say(f"done   {job.title}, {duration(seconds)} ({self.outcome.done}/{len(self.jobs)})")

    def failed(self, job: Job, error: str) -> None:
        """Publish failed records for the job and its dependents, which are no longer pending."""
        self.outcome.failed[job.id] = error
        for lost in give_up(job, self.jobs, error, self._ended(job), self.places):
            self.pending.pop(lost, None)
        self.say(f"FAILED {job.title}: {error.splitlines()[0]}")

    def _ended(self, job: Job) -> float:
        """Remove the job's bar; returns how long it ran, in seconds."""
        task = self.running.pop(job.id)[1]
        self.bars.remove_task(task.id)
        return task.elapsed or 0.0

    def tick(self) -> None:
        """Show the state; to be called at least twice a second."""
        state = f"{self.outcome.done}/{len(self.jobs)}, about {duration(self.seconds_left())} left"
        self.bars.update(self.whole, completed=self.outcome.done, note=state)
        if self.running and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LOG_SECONDS
            lines = [state, *(self._line(job, task.fields["note"]) for job, task in self.running.values())]
            if not self.on_terminal:
                self.say("; ".join(lines))
            if self.told:
                with suppress(OSError):
                    atomic_write(with_folder(_state_file(self.places.runs)), json.dumps(lines))

    def _line(self, job: Job, note: str) -> str:
        """What a job does, and how many others wait for it."""
        waiting = {job.id}
        for other in self.jobs:  # dependencies come first
            if waiting.intersection(other.needs):
                waiting.add(other.id)
        count = len(waiting) - 1
        return f"{job.title} {note}" + f" ({count} wait for it)" * (count > 0)

    def close(self) -> None:
        """Forget the state; to be called when the work has ended."""
        _state_file(self.places.runs).unlink(missing_ok=True)

    def seconds_left(self) -> float:
        """Estimate from the planned costs, scaled by the ratio of measured to planned time so far."""
        running = self.running.values()
        spent = self.done_seconds + sum(task.elapsed or 0.0 for _, task in running)
        done = self.done_cost + sum(job.cost * task.completed for job, task in running)
        left = [(job.kind, job.cost * (1 - task.completed)) for job, task in running]
        left += [(job.kind, job.cost) for job in self.pending.values()]
        alone = sum(cost for kind, cost in left if kind == "speed")
        others = [cost for kind, cost in left if kind != "speed"]
        together = max(sum(others) / self.num_workers, max(others, default=0.0))
        return (alone + together) * (PRIOR + spent) / (PRIOR + done)

    def elapsed(self) -> float:
        return time.monotonic() - self.begin
