"""The progress of submitted rows, from Slurm and from their jobs' status files; the logs of these jobs."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mar_bench.cluster.jobs import TABLE, ClusterJob
from mar_bench.cluster.ledger import Row, Submission, find_rows, read_ledger
from mar_bench.cluster.pending import NOT_SENT, Queue, shards_of
from mar_bench.pipeline.progress import duration
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.records.record import read_record
from mar_bench.utils.console import console_table, printable
from mar_bench.utils.errors import UserError

AGAIN = "submit with --retry failed"
ADVICE = {  # pattern of a state or a pending reason -> advice; the first match counts
    "OUT_OF_MEMORY": f"raise memory_gb of the stage in the profile, or set compute.micro_batch, then {AGAIN}",
    "TIMEOUT": f"it could not save within signal_seconds, or hit its limit too often: raise time, then {AGAIN}",
    "FAIL|DEADLINE|LOST": f"mar-bench logs shows why; then {AGAIN}",
    "(?i)cancelled|PREEMPTED|not sent": "submit sends it again",
    "UNKNOWN": "Slurm does not answer: is this a machine of the cluster?",
    "DependencyNeverSatisfied": f"a job that it needs has failed: mar-bench cancel, then {AGAIN}",
    "(?i)held": "scontrol release, once the cause is gone",
    "NodeNotAvail|NodeDown|PartitionDown": "nodes are down or reserved: sinfo -R shows why",
    "PartitionNodeLimit|PartitionTimeLimit|Constraints|Invalid": "change the profile, cancel and submit",
    "QOS|Assoc": "a limit of the qos or account: it waits for other jobs, or requests too much",
}


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
    live: bool = False


def look(places: Places, names: list[str]) -> list[Line]:
    """The rows that match ``names``, or all, as of their newest submissions. Raises UserError if there are none."""
    ledger = read_ledger(places.runs)
    if not ledger:
        raise UserError(f"nothing has been submitted in {places.runs} (--runs, or --cluster for a profile's run root)")
    wanted = {row.name for name in names for row in find_rows(ledger, name)}
    rows = {row.name: (s, row) for s in ledger for row in s.rows if not names or row.name in wanted}
    queue = Queue(ledger)
    lines = [_line(s, row, queue) for s, row in rows.values()]
    newest = {s.request.command: s.id for s in ledger}.values()
    for s in ledger:
        table = Line(s.name.rpartition(".")[0], TABLE, TABLE, s.id, TABLE)
        _fill(table, s, s.last, None, queue)
        if s.waiting and table.state == "COMPLETED":  # where jobs cannot call sbatch
            table.error = f"{s.waiting} evaluations wait for their sweep points; to send them: {s.request.command}"
        ended = table.state in ("COMPLETED", NOT_SENT, "CANCELLED")
        shown = table.live or (s.id in newest and (table.error or not ended))
        if shown and (not names or wanted & {row.name for row in s.rows}):
            lines.append(table)
    for line in lines:
        line.advice = next((text for pattern, text in ADVICE.items() if re.search(pattern, line.state)), "")
    return lines


def _line(submission: Submission, row: Row, queue: Queue) -> Line:
    places = submission.places
    line = Line(row.experiment, row.title, row.task, row.id)
    stage_id = next((i for i, kind in row.stages.items() if not is_sound(places.folder(kind, i))), row.id)
    if is_sound(places.folder(row.task, row.id)):
        line.state = "done"
    elif row.id in queue.cancelled or row.name in submission.cancelled:
        line.state = "cancelled"
    elif stage_id in queue.holders:
        owner, holder = queue.holders[stage_id]
        shards = [shard for shard in shards_of(owner, holder) if shard.stages[0].id == stage_id]
        busy = [shard for shard in shards if queue.state(owner, shard).live]
        running = [shard for shard in busy if queue.state(owner, shard).state == "RUNNING"]
        line.stage = f"sample {len(shards) - len(busy)}/{len(shards)}" if busy else row.stages[stage_id]
        _fill(line, owner, [*running, *busy, holder][0], stage_id, queue)
        if line.state == "CANCELLED" and (why := queue.failure(owner, holder, stage_id)):
            line.state, line.error = "FAILED", why
    else:
        path = places.records / f"{row.id}.json"
        record = read_record(path) if path.is_file() else None
        line.state = NOT_SENT
        if record is not None and record.status == "failed":
            line.state, line.error = "FAILED", (record.error or "").partition("\n")[0]
    return line


def _fill(line: Line, owner: Submission, job: ClusterJob, stage_id: str | None, queue: Queue) -> None:
    """Complete a line from the job that runs stage ``stage_id`` (None: the table)."""
    state, status = queue.state(owner, job), owner.status(job)
    line.job, line.state, line.node, line.live = job.slurm_id or job.key, state.state, state.nodes, state.live
    if stage_id in status.get("failed", {}):
        line.state, line.error, line.live = "FAILED", status["failed"][stage_id], False
    elif state.state == "RUNNING" and status:
        if status.get("waiting"):
            line.state, line.error = "WAITING", status["waiting"]
        elif status.get("stage") not in (stage_id, None, TABLE):
            line.state = "NEXT"
        elif status.get("step") is not None:
            line.step, line.total = status["step"], status["total"]
            line.images_per_second, line.seconds_left = status["images_per_second"], status["seconds_left"]
    elif state.state == "PENDING" and state.reason:
        line.state = f"PENDING ({state.reason})"
    elif state.state == "COMPLETED" and stage_id is not None:
        line.state, line.error = "FAILED", "its job has ended without it"


def text(lines: list[Line]) -> str:
    """A line per unfinished row, what to do about problems, and a count per state."""
    cells, problems = [], dict[str, list[str]]()
    for line in lines:
        step = "" if line.step is None else f"{line.step}/{line.total}"
        rate = "" if line.images_per_second is None else f"{line.images_per_second:.3g}"
        left = "" if line.seconds_left is None else duration(line.seconds_left)
        cells.append([f"{line.experiment}/{line.row}", line.stage, line.job, line.state, line.node, step, rate, left])
        if problem := "; ".join(part for part in (line.error, line.advice) if part):
            problems.setdefault(problem, []).append(line.row)
    unfinished = [cell for cell, line in zip(cells, lines) if line.state != "done"]
    heading = ["row", "stage", "job", "state", "node", "step", "images/s", "left"]
    out = [console_table(heading, unfinished)] if unfinished else []
    out += [printable(f"{', '.join(rows)}: {problem}") for problem, rows in problems.items()]
    counts = Counter(line.state.partition(" (")[0] for line in lines if line.task != TABLE)
    return "\n".join([*out, f"{counts.total()} records; {', '.join(f'{n} {s}' for s, n in counts.most_common())}"])


def logs_of(places: Places, name: str) -> Iterator[tuple[str, Path]]:
    """(title, log) of every process of the jobs that lead to a row, in the order of work; empty logs are left out."""
    ledger = read_ledger(places.runs)
    wanted = {stage for row in find_rows(ledger, name) for stage in row.stages}
    jobs = [(s, job) for s in ledger for job in s.jobs.values() if wanted & {stage.id for stage in job.stages}]
    for submission, job in jobs:
        number = job.slurm_id or job.key
        for path in sorted((submission.folder / "logs").glob(f"{number}_[0-9]*_log.*")):
            if path.stat().st_size:
                yield f"job {number}: {job.title}", path


def print_logs(places: Places, name: str, follow: bool = False, lines: int = 40) -> bool:
    """Print the last lines of a row's logs, with ``follow`` until no job is live; returns whether there are any."""
    ends: dict[Path, int] = {}  # how many bytes of each log are printed
    while True:
        live = follow and any(line.live and line.task != TABLE for line in look(places, [name]))
        for title, path in logs_of(places, name):
            new = path.read_bytes()[ends.get(path, 0) :]
            shown = new.splitlines(keepends=True)
            if path not in ends:
                print(f"==> {title}\n--- {path}")
                shown = shown[-lines:]
            ends[path] = ends.get(path, 0) + len(new)
            print(b"".join(shown).decode(errors="replace"), end="", flush=True)
        if not live:
            return bool(ends)
        time.sleep(2)
