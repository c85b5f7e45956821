"""How submitted rows go: what Slurm says of their jobs joined with what the jobs say of themselves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mar_bench.cluster.ledger import Entry, Row, Submission, read_ledger
from mar_bench.cluster.plan import GIVEN_UP, INTERRUPTED, failure_of, holders, states_of
from mar_bench.cluster.slurm import LOST, SILENT, JobState
from mar_bench.pipeline.progress import duration
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.records.record import read_record
from mar_bench.utils.console import console_table
from mar_bench.utils.errors import UserError, did_you_mean

KINDS = ("tokenizer", "latents", "extractor", "train", "sample")
AGAIN = "submit with --retry failed"
ADVICE = {  # Slurm's state or reason -> what to do
    "OUT_OF_MEMORY": f"raise memory_gb of the stage in the profile, or set compute.micro_batch, then {AGAIN}",
    "TIMEOUT": f"it could not save within signal_seconds, or ran into its limit too often: raise time, then {AGAIN}",
    "NODE_FAIL": f"its node has died and Slurm has not queued it again: {AGAIN}",
    "BOOT_FAIL": f"its node did not start: {AGAIN}",
    "DEADLINE": f"it could not end before its deadline: {AGAIN}",
    "FAILED": f"mar-bench logs says why; then {AGAIN}",
    "CANCELLED": "submit sends it again",
    "PREEMPTED": "submit sends it again",
    INTERRUPTED: "the same submit goes on from there",
    LOST: f"Slurm knows no such job: another cluster's (SLURM_CONF), or its history is gone; {AGAIN}",
    "SUSPENDED": "scontrol resume, or wait for who suspended it",
    SILENT: "Slurm does not answer: is this a machine of the cluster?",
    "DependencyNeverSatisfied": f"what it waits for has failed: mar-bench cancel, then {AGAIN}",
    "held": "scontrol release, once the node is well",
    "JobHeld": "held by you or an operator: scontrol release",
    "ReqNodeNotAvail": "nodes are down or reserved: sinfo -R says why",
    "NodeDown": "nodes are down: sinfo -R says why",
    "PartitionDown": "the partition is closed: sinfo",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: change the profile, cancel and submit",
    "PartitionTimeLimit": "it asks for more time than the partition allows: change the profile, cancel and submit",
    "BadConstraints": "no node is as asked for: change the profile, cancel and submit",
    "QOS": "a limit of the qos: it waits for your other jobs, or asks for too much",
    "Assoc": "a limit of the account: it waits for others' jobs, or asks for too much",
    "InvalidAccount": "set account in the profile, cancel and submit",
    "InvalidQOS": "set qos in the profile, cancel and submit",
}
SILENT_SECONDS = 300  # without a word of a running job


@dataclass
class Line:
    """A record to be, and where it is on its way."""

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
    tables: list[Line]  # the last jobs of submissions
    notes: list[str]

    @property
    def live(self) -> bool:
        return any(line.live for line in [*self.lines, *self.tables])

    def tree(self) -> dict:
        return {
            "rows": [asdict(line) for line in self.lines],
            "tables": [asdict(line) for line in self.tables],
            "notes": self.notes,
        }


def look(places: Places, experiments: list[str]) -> View:
    """The newest submission of every record. Raises UserError for an experiment that was never submitted."""
    ledger = read_ledger(places.runs)
    known = {row.experiment for submission in ledger for row in submission.rows}
    if not ledger:
        raise UserError(f"nothing has been submitted in {places.runs} (--runs, or --cluster for a profile's run root)")
    for name in experiments:
        if name not in known:
            raise UserError(f"{name} has not been submitted in {places.runs}: {did_you_mean(name, known)}")
    wanted = [s for s in ledger if not experiments or any(row.experiment in experiments for row in s.rows)]
    states = states_of(ledger)
    held = holders(ledger)
    rows: dict[str, tuple[Submission, Row]] = {}
    for submission in wanted:
        for row in submission.rows:
            if not experiments or row.experiment in experiments:
                rows[row.name] = (submission, row)
    cancelled = {stage for submission in ledger for stage in submission.cancelled} - held.keys()
    lines = [_line(submission, row, held, states, cancelled) for submission, row in rows.values()]
    if len({submission.scale for submission, _ in rows.values()}) > 1:
        for line, (submission, _) in zip(lines, rows.values()):
            line.experiment += f"@{submission.scale}"
    newest = {tuple(submission.words): submission for submission in wanted}.values()
    tables = [line for s in wanted if (line := _table_line(s, states)).live or line.error and s in newest]
    return View(places.runs, lines, tables, _notes(newest, states))


def _notes(newest: Iterable[Submission], states: dict[tuple[str, str], JobState]) -> list[str]:
    """What the user has to do for submissions that do not go on by themselves."""
    notes = []
    for submission in newest:
        last = submission.jobs[submission.last]
        state = states.get((submission.id, last.key))
        again = f"{submission.command} sends them"
        if submission.kind == "slurm" and any(entry.slurm_id is None for entry in submission.jobs.values()):
            notes.append(f"a submission was cut short, and some of its jobs were not sent: {again}")
        elif (n := submission.options.get("waiting")) and state is not None and not state.live:
            notes.append(f"{n} evaluations wait until their points are chosen: {again}")
    return notes


def _line(
    submission: Submission,
    row: Row,
    held: dict[str, tuple[Submission, Entry]],
    states: dict[tuple[str, str], JobState],
    cancelled: set[str],
) -> Line:
    places = submission.places
    seeds = "".join(
        f" {word} {seed}" for word, seed in (("seed", row.train_seed), ("images", row.sampling_seed)) if seed
    )
    name = row.row + seeds + (f" ({row.task})" if row.task != "generation" else " (a point)" if row.sweep else "")
    line = Line(row.experiment, name, row.task, row.id)
    if is_sound(places.folder(row.task, row.id)):
        line.state = "done"
        return line
    if row.id in cancelled or row.name in submission.cancelled:
        line.state, line.advice = "cancelled", ADVICE["CANCELLED"]
        return line
    for stage_id in row.stages:
        kind = next((k for k in (*KINDS, row.task) if is_sound(places.folder(k, stage_id))), None)
        if kind is None:
            break
    if stage_id not in held:
        record = places.records / f"{row.id}.json"
        failed = record.is_file() and (known := read_record(record)).status == "failed"
        line.state, line.advice = ("FAILED", AGAIN) if failed else ("not sent", ADVICE["CANCELLED"])
        line.error = known.error.splitlines()[0] if failed and known.error else ""
        return line
    owner, entry = held[stage_id]
    stage = next(s for s in entry.stages if s.id == stage_id)
    line.stage = stage.kind
    parts = [owner.jobs[k] for k in entry.needs if k in owner.jobs and owner.jobs[k].shard is not None]
    parts = [part for part in parts if part.stages[0].id == stage_id]
    about = [(part, states.get((owner.id, part.key))) for part in parts]
    busy = [(part, state) for part, state in about if state is not None and state.live]
    chosen = next((pair for pair in busy if pair[1].state == "RUNNING"), busy[0] if busy else None)
    entry, state = chosen or (entry, states.get((owner.id, entry.key)))
    _state(line, owner, entry, stage_id, state)
    if parts and busy:
        line.stage = f"sample {len(parts) - len(busy)}/{len(parts)}"
    if line.state in GIVEN_UP and (why := failure_of(owner, held[stage_id][1], stage_id, states)):
        line.state, line.error, line.advice = "FAILED", why, AGAIN
    return line


def _state(line: Line, owner: Submission, entry: Entry, stage_id: str | None, state: JobState | None) -> None:
    """Fill in a line from its job."""
    said = owner.said(entry)
    line.job = entry.slurm_id or entry.key
    if state is None:
        line.state, line.advice = "not sent", ADVICE["CANCELLED"]
        return
    line.state, line.node, line.live = state.state, state.nodes, state.live
    log = owner.log(entry)
    line.log = str(log.relative_to(owner.folder.parent.parent)) if log.is_file() else ""
    if state.state == "RUNNING" and said:
        if said.get("stage") not in (stage_id, None):
            line.state = "NEXT"
        elif said.get("step") is not None:
            line.step, line.total = said["step"], said["total"]
            if rate := said.get("rate"):
                line.images_per_second = rate * said.get("unit", 1)
                line.seconds_left = max(0, (line.total - line.step) / rate)
        if said.get("waiting"):
            line.state = "WAITING"
            line.error = said["waiting"]
        if time.time() - said.get("updated", time.time()) > SILENT_SECONDS and line.state == "RUNNING":
            line.error = f"no word for {duration(time.time() - said['updated'])}"
    if state.state == "PENDING" and state.reason:
        line.state = f"PENDING ({state.reason})"
        if said.get("history"):
            line.error = "queued again"
    if stage_id in said.get("failed", {}):
        line.error, line.live = said["failed"][stage_id], False
        line.state = "FAILED"
    elif not state.live and state.state not in ("COMPLETED", *GIVEN_UP):
        line.error = line.error or _last_line(log)
    elif state.state == "COMPLETED":
        line.state, line.error = "FAILED", "its job has ended without it"
    line.advice = advice(state.reason if line.state.startswith("PENDING") else line.state)


def advice(state: str) -> str:
    """What to do about a state or a reason of Slurm's; empty where nothing is."""
    if state in ADVICE:
        return ADVICE[state]
    # reasons come with more words, as in QOSMaxJobsPerUserLimit
    return next((text for word, text in ADVICE.items() if word in state and word != "FAILED"), "")


def _table_line(submission: Submission, states: dict[tuple[str, str], JobState]) -> Line:
    line = Line(" ".join(submission.words) or "all", "table", "table", submission.id, "table")
    _state(line, submission, submission.jobs[submission.last], None, states.get((submission.id, submission.last)))
    if line.error == "its job has ended without it":
        line.error = ""
    return line


def _last_line(log: Path) -> str:
    """The last line of a job's log that looks like an error, else the last one."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    told = [line for line in lines if not line.startswith(("srun:", "slurmstepd"))]
    errors = [line for line in told if "Error" in line or "error:" in line]
    ended = [line for line in lines if line not in told and "error" in line]
    return (errors or ended or told or [""])[-1][:200]


# --- as text --------------------------------------------------------------------------------------------


def text(view: View) -> str:
    """A line a row that is not done, what to do about the rest, and how many there are of each."""
    shown = [line for line in view.lines if line.state != "done"] + view.tables
    several = len({line.experiment for line in view.lines}) > 1
    heading = ["row", "stage", "job", "state", "node", "step", "images/s", "left", "log"]
    out = []
    if shown:
        out.append(console_table(heading, [_cells(group, several) for group in _folded(shown)]))
    problems: dict[tuple[str, str], list[Line]] = {}
    for line in shown:
        if line.error or line.advice:
            problems.setdefault((line.error, line.advice), []).append(line)
    for (error, hint), lines in list(problems.items()):
        rows = ", ".join(line.row for line in lines[:2]) + (f" and {len(lines) - 2} more" if len(lines) > 2 else "")
        out.append(f"{rows}: " + "; ".join(part for part in (error, hint) if part))
    if folders := dict.fromkeys(str(Path(line.log).parent) for line in shown if line.log):
        out.append(f"logs in {', '.join(str(view.runs / folder) for folder in folders)}")
    out += view.notes
    counts = Counter(line.state.partition(" (")[0] for line in view.lines)
    names = ", ".join(dict.fromkeys(line.experiment for line in view.lines))
    out.append(f"{names}: {len(view.lines)} records; " + ", ".join(f"{n} {state}" for state, n in counts.most_common()))
    return "\n".join(out)


def _folded(lines: list[Line]) -> list[list[Line]]:
    """What is measured beside the rows, in one line as far as it is at the same point."""
    groups: dict[tuple, list[Line]] = {}
    for i, line in enumerate(lines):
        beside = line.task in ("reconstruction", "speed")
        alike = (line.experiment, line.task, line.stage, line.job, line.state) if beside else (i,)
        groups.setdefault(alike, []).append(line)
    return list(groups.values())


def _cells(group: list[Line], several: bool) -> list[str]:
    line = group[0]
    row = f"{line.experiment}/{line.row}" if several and line.task != "table" else line.row
    return [
        row + (f" and {len(group) - 1} more" if len(group) > 1 else ""),
        line.stage,
        line.job,
        line.state,
        line.node,
        "" if line.step is None else f"{line.step}/{line.total}",
        "" if line.images_per_second is None else f"{line.images_per_second:.3g}",
        "" if line.seconds_left is None else duration(line.seconds_left),
        Path(line.log).name,
    ]


# --- rows by name ---------------------------------------------------------------------------------------


def chosen(ledger: list[Submission], name: str) -> list[Row]:
    """The rows that a word means: an experiment, a row of one, the id of a record, of a stage or of a job.

    Raises UserError where it means none."""
    rows = {row.name: row for submission in ledger for row in submission.rows}
    experiment, _, row = name.partition("/")
    found = [r for r in rows.values() if r.experiment == experiment and row in ("", r.row)]
    of_job = {s.id for submission in ledger for e in submission.jobs.values() if e.slurm_id == name for s in e.stages}
    found = found or [r for r in rows.values() if name == r.id or name in r.stages or of_job & set(r.stages)]
    if not found:
        known = {r.experiment for r in rows.values()} | {f"{r.experiment}/{r.row}" for r in rows.values()}
        raise UserError(f"nothing submitted is called '{name}', {did_you_mean(name, known) if known else 'nothing is'}")
    return found


def logs_of(places: Places, name: str) -> list[tuple[str, list[Path]]]:
    """(job, its logs) of all jobs on the way to a row that have said something, in the order of their work."""
    ledger = read_ledger(places.runs)
    wanted = {stage for row in chosen(ledger, name) for stage in row.stages}
    found = []
    for submission in ledger:
        for entry in submission.jobs.values():
            if wanted & {stage.id for stage in entry.stages}:
                paths = [p for p in _log_files(submission, entry) if p.stat().st_size]
                titles = ", ".join(stage.title for stage in entry.stages[:3])
                if paths:
                    found.append((f"job {entry.slurm_id or entry.key}: {titles}", paths))
    return found


def _log_files(submission: Submission, entry: Entry) -> Iterable[Path]:
    """Of all its processes."""
    for ending in ("out", "err"):
        yield from sorted((submission.folder / "logs").glob(f"{entry.slurm_id or entry.key}_[0-9]*_log.{ending}"))


def follow_logs(places: Places, name: str, found: list[tuple[str, list[Path]]]) -> None:
    """Print what is added to logs, also of jobs that start meanwhile, until no row of ``name`` is under way."""
    ends = {path: path.stat().st_size for _, paths in found for path in paths}
    while True:
        wanted = {row.id for row in chosen(read_ledger(places.runs), name)}
        live = any(line.live for line in look(places, []).lines if line.id in wanted)
        for title, paths in logs_of(places, name):
            for path in paths:
                with path.open(errors="replace") as file:
                    file.seek(ends.get(path, 0))
                    if new := file.read():
                        print((f"==> {title}\n" if path not in ends else "") + new, end="", flush=True)
                    ends[path] = file.tell()
        if not live:
            return
        time.sleep(2)
