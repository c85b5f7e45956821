"""The progress of submitted rows: Slurm's view of their jobs joined with the jobs' status files."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.cluster.ledger import Row, Submission, read_ledger
from mar_bench.cluster.plan import GIVEN_UP, INTERRUPTED, Queue, shards_of
from mar_bench.cluster.slurm import LOST, SILENT
from mar_bench.pipeline.progress import duration
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.records.record import read_record
from mar_bench.utils.console import console_table
from mar_bench.utils.errors import UserError, did_you_mean

AGAIN = "submit with --retry failed"
RESUBMIT = "submit sends it again"
CHANGE = "change the profile, cancel and submit"
ADVICE = {  # pattern of a state or a pending reason -> what to do; the first match counts
    "OUT_OF_MEMORY": f"raise memory_gb of the stage in the profile, or set compute.micro_batch, then {AGAIN}",
    "TIMEOUT": f"it could not save within signal_seconds, or hit its limit too often: raise time, then {AGAIN}",
    "NODE_FAIL|BOOT_FAIL|DEADLINE": AGAIN,
    "FAILED": f"mar-bench logs shows why; then {AGAIN}",
    "CANCELLED|PREEMPTED": RESUBMIT,
    INTERRUPTED: "the same submit resumes it",
    LOST: f"Slurm does not know this job: another cluster's (SLURM_CONF), or its history is gone; {AGAIN}",
    SILENT: "Slurm does not answer: is this a machine of the cluster?",
    "DependencyNeverSatisfied": f"a job that it needs has failed: mar-bench cancel, then {AGAIN}",
    "Held|held": "scontrol release, once the cause is gone",
    "NodeNotAvail|NodeDown|PartitionDown": "nodes are down or reserved: sinfo -R shows why",
    "PartitionNodeLimit|PartitionTimeLimit|BadConstraints|InvalidAccount|InvalidQOS": CHANGE,
    "QOS|Assoc": "a limit of the qos or account: it waits for other jobs, or requests too much",
}
SILENT_SECONDS = 300  # without an update of a running job's status file


@dataclass
class Line:
    """An expected record, or the table of a submission's last job, and its progress."""

    experiment: str
    row: str
    task: str
    id: str
    stage: str = ""
    job: str = ""
    state: str = ""
    node: str = ""
    step: int | None = None
    total: int | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    error: str = ""
    advice: str = ""
    log: str = ""
    live: bool = False


@dataclass
class View:
    """What ``status`` shows."""

    runs: Path
    lines: list[Line]
    tables: list[Line]
    notes: list[str]

    @property
    def live(self) -> bool:
        return any(line.live for line in [*self.lines, *self.tables])

    def tree(self) -> dict[str, Any]:
        rows, tables = ([asdict(line) for line in lines] for lines in (self.lines, self.tables))
        return {"rows": rows, "tables": tables, "notes": self.notes}


def look(places: Places, experiments: list[str]) -> View:
    """Every record as of its newest submission. Raises UserError for an experiment that was never submitted."""
    ledger = read_ledger(places.runs)
    known = {row.experiment for submission in ledger for row in submission.rows}
    if not ledger:
        raise UserError(f"nothing has been submitted in {places.runs} (--runs, or --cluster for a profile's run root)")
    for name in experiments:
        if name not in known:
            raise UserError(f"{name} has not been submitted in {places.runs}: {did_you_mean(name, known)}")
    wanted = set(experiments or known)
    shown = [s for s in ledger if not experiments or any(row.experiment in wanted for row in s.rows)]
    queue = Queue(ledger)
    rows = {row.name: (s, row) for s in shown for row in s.rows if row.experiment in wanted}
    lines = [_line(s, row, queue) for s, row in rows.values()]
    newest = {tuple(s.request.words): s for s in shown}.values()
    tables = [line for s in shown if (line := _table_line(s, queue)).live or line.error and s in newest]
    notes = []  # what the user has to do for submissions that do not continue by themselves
    for s in newest:
        if not s.complete:
            notes.append(f"a submission was cut short: {s.request.command} sends the rest of it")
        elif s.waiting and queue.state(s, s.last) is not None and not queue.live(s, s.last):
            notes.append(f"{s.waiting} evaluations wait until their points are chosen: {s.request.command} sends them")
    return View(places.runs, lines, tables, notes)


def _line(submission: Submission, row: Row, queue: Queue) -> Line:
    places = submission.places
    name = row.row + (f" seed {row.train_seed}" if row.train_seed else "")
    name += f" images {row.sampling_seed}" if row.sampling_seed else ""
    name += f" ({row.task})" if row.task != "generation" else " (sweep point)" if row.sweep else ""
    line = Line(row.experiment, name, row.task, row.id)
    if is_sound(places.folder(row.task, row.id)):
        line.state = "done"
        return line
    if row.id in queue.cancelled or row.name in submission.cancelled:
        line.state, line.advice = "cancelled", RESUBMIT
        return line
    stage_id = next((i for i, kind in row.stages.items() if not is_sound(places.folder(kind, i))), row.id)
    if stage_id not in queue.holders:
        path = places.records / f"{row.id}.json"
        record = read_record(path) if path.is_file() else None
        line.state, line.advice = "not sent", RESUBMIT
        if record is not None and record.status == "failed":
            line.state, line.error, line.advice = "FAILED", (record.error or "").partition("\n")[0], AGAIN
        return line
    owner, holder = queue.holders[stage_id]
    shards = [shard for shard in shards_of(owner, holder) if shard.stages[0].id == stage_id]
    busy = [shard for shard in shards if queue.live(owner, shard)]
    running = [shard for shard in busy if queue.states[owner.id, shard.key].state == "RUNNING"]
    line.stage = f"sample {len(shards) - len(busy)}/{len(shards)}" if busy else row.stages[stage_id]
    _fill(line, owner, [*running, *busy, holder][0], stage_id, queue)
    if line.state in GIVEN_UP and (why := queue.failure(owner, holder, stage_id)):
        line.state, line.error, line.advice = "FAILED", why, AGAIN
    return line


def _table_line(submission: Submission, queue: Queue) -> Line:
    line = Line(" ".join(submission.request.words) or "all", "table", "table", submission.id, "table")
    _fill(line, submission, submission.last, None, queue)
    return line


def _fill(line: Line, owner: Submission, job: ClusterJob, stage_id: str | None, queue: Queue) -> None:
    """Complete a line from the job that runs stage ``stage_id``, or the table for None."""
    line.job = job.slurm_id or job.key
    state, notes, log = queue.state(owner, job), owner.notes_of(job), owner.log(job)
    if state is None:
        line.state, line.advice = "not sent", RESUBMIT
        return
    line.state, line.node, line.live = state.state, state.nodes, state.live
    line.log = str(log.relative_to(owner.folder.parent.parent)) if log.is_file() else ""
    reason = state.state
    if stage_id in notes.get("failed", {}):
        line.state = reason = "FAILED"
        line.error, line.live = notes["failed"][stage_id], False
    elif state.state == "RUNNING" and notes:
        _fill_running(line, notes, stage_id)
    elif state.state == "PENDING" and state.reason:
        line.state, reason = f"PENDING ({state.reason})", state.reason
        line.error = "requeued" if notes.get("history") else ""
    elif state.state == "COMPLETED" and stage_id is not None:
        line.state = reason = "FAILED"
        line.error = "its job has ended without it"
    elif not state.live and state.state not in ("COMPLETED", *GIVEN_UP):
        line.error = _last_error(log)
    line.advice = advice(reason)


def _fill_running(line: Line, notes: dict[str, Any], stage_id: str | None) -> None:
    silent = time.time() - notes.get("updated", time.time())
    if notes.get("stage") not in (stage_id, None):
        line.state = "NEXT"
    elif notes.get("step") is not None:
        line.step, line.total = notes["step"], notes["total"]
        if rate := notes.get("rate"):
            line.images_per_second = rate * notes.get("unit", 1)
            line.seconds_left = max(0, (notes["total"] - notes["step"]) / rate)
    if notes.get("waiting"):
        line.state, line.error = "WAITING", notes["waiting"]
    elif silent > SILENT_SECONDS and line.state == "RUNNING":
        line.error = f"no update for {duration(silent)}"


def advice(state: str) -> str:
    """What to do about a state or a pending reason of Slurm's; empty if nothing."""
    # reasons come with more words, as in QOSMaxJobsPerUserLimit
    return next((text for pattern, text in ADVICE.items() if re.search(pattern, state)), "")


def _last_error(log: Path) -> str:
    """The last line of a job's log that looks like an error, else its last line."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    # Python's errors before those of srun and slurmstepd, which only repeat that a task has ended
    errors = [line for line in lines if "Error" in line] or [line for line in lines if "error" in line]
    return (errors or lines or [""])[-1][:200]


# --- as text --------------------------------------------------------------------------------------------


def text(view: View) -> str:
    """A line per unfinished row, what to do about problems, and a count per state."""
    shown = [line for line in view.lines if line.state != "done"] + view.tables
    experiments = dict.fromkeys(line.experiment for line in view.lines)
    out = []
    if shown:
        heading = ["row", "stage", "job", "state", "node", "step", "images/s", "left", "log"]
        out.append(console_table(heading, [_cells(line, len(experiments) > 1) for line in shown]))
    problems: dict[str, list[str]] = {}
    for line in shown:
        if problem := "; ".join(part for part in (line.error, line.advice) if part):
            problems.setdefault(problem, []).append(line.row)
    for problem, rows in problems.items():
        more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
        out.append(f"{', '.join(rows[:2])}{more}: {problem}")
    if folders := dict.fromkeys(str(view.runs / Path(line.log).parent) for line in shown if line.log):
        out.append(f"logs in {', '.join(folders)}")
    counts = Counter(line.state.partition(" (")[0] for line in view.lines)
    states = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    return "\n".join([*out, *view.notes, f"{', '.join(experiments)}: {len(view.lines)} records; {states}"])


def _cells(line: Line, several: bool) -> list[str]:
    return [
        f"{line.experiment}/{line.row}" if several and line.task != "table" else line.row,
        line.stage,
        line.job,
        line.state,
        line.node,
        "" if line.step is None else f"{line.step}/{line.total}",
        "" if line.images_per_second is None else f"{line.images_per_second:.3g}",
        "" if line.seconds_left is None else duration(line.seconds_left),
        Path(line.log).name,
    ]
