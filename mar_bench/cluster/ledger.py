"""What was submitted: one folder per submission, from which later commands know which job runs which stage.

runs/submissions/<id>/
  submission.json   request, code and git commit; every job with its stages and dependencies; the expected records
  runs.json         the stages with their specs: what the jobs read
  profile.yaml      the cluster profile at the time
  sent.jsonl        [key of a job, Slurm's id], one line per job as it is sent
  cancelled.json    ids of stages and names of rows that the user has cancelled
  jobs/<key>.json   a job's status file: stage, step, node, failures
  experiments/      copies of the user's own experiment files
  logs/             submitit's pickles, the output of the jobs
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.config.ids import Run
from mar_bench.config.parse import KeyPathError, as_tree, parse
from mar_bench.config.spec import RunSpec
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write

FOLDER = "submissions"


@dataclass(frozen=True)
class Request:
    """A ``submit`` command; the submission's last job repeats it once sweep points are measured."""

    command: str
    words: tuple[str, ...]  # experiments and overrides
    cluster: str  # name of the profile
    every: bool
    scale: str
    only: str | None
    seeds: str | None
    sampling_seeds: str | None
    runs: str | None
    records: str | None
    reports: str


@dataclass(frozen=True)
class Row:
    """An expected record, as ``status`` lists it."""

    experiment: str
    row: str
    task: str
    train_seed: int
    sampling_seed: int
    id: str
    stages: dict[str, str]  # id -> kind of every stage that leads to it, its own last
    sweep: bool = False

    @property
    def name(self) -> str:
        """Unique across experiments, which may share a record."""
        return f"{self.experiment}:{self.id}"


@dataclass
class Submission:
    """One call of submit."""

    folder: Path
    created: str
    request: Request
    name: str  # Slurm's name of all its jobs
    kind: str  # of the profile
    process: int  # pid of the submitting process
    waiting: int  # evaluations that wait for the measurement of sweep points
    places: Places
    code: str
    git: dict[str, Any]
    jobs: dict[str, ClusterJob]
    rows: list[Row]
    cancelled: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def last(self) -> ClusterJob:
        """The job that follows all others."""
        return self.jobs[str(len(self.jobs) - 1)]

    @property
    def complete(self) -> bool:
        """Whether every job was sent; on this machine, jobs are sent as they start."""
        return self.kind != "slurm" or all(job.slurm_id for job in self.jobs.values())

    def notes(self, key: str) -> dict[str, Any]:
        """A job's status file; empty before its first write."""
        return _read_json(self.folder / "jobs" / f"{key}.json") or {}

    def notes_of(self, job: ClusterJob) -> dict[str, Any]:
        """A job's status file, unless an earlier Slurm job with this key wrote it."""
        notes = self.notes(job.key)
        return notes if self.kind != "slurm" or notes.get("job") == job.slurm_id else {}

    def log(self, job: ClusterJob) -> Path:
        return self.folder / "logs" / f"{job.slurm_id or job.key}_0_log.err"

    def sent(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Write Slurm's ids to disk at once: after an interrupt, it must be known which jobs were sent."""
        pairs = list(pairs)
        with (self.folder / "sent.jsonl").open("a") as file:
            file.write("".join(json.dumps(pair) + "\n" for pair in pairs))
            file.flush()
            os.fsync(file.fileno())
        for key, slurm_id in pairs:
            self.jobs[key] = replace(self.jobs[key], slurm_id=slurm_id)

    def unwanted(self) -> set[str]:
        """Stages and rows cancelled so far, read from disk."""
        found = _read_json(self.folder / "cancelled.json")
        return {str(i) for i in found} if isinstance(found, list) else set()

    def cancel(self, stages: Iterable[str]) -> None:
        """Mark ids of stages, or names of rows, as cancelled."""
        if not self.cancelled.issuperset(stages := set(stages)):
            self.cancelled |= stages
            atomic_write(self.folder / "cancelled.json", json.dumps(sorted(self.cancelled)))

    def planned(self) -> dict[str, Job]:
        """Its stages with their specs, including those that jobs of other submissions run."""
        path = self.folder / "runs.json"
        content = _read_json(path)
        if content is None:
            raise UserError(f"{path}: missing or broken; submit again")
        try:
            runs = [Run(**{**run, "spec": parse(RunSpec, run["spec"])}) for run in content["runs"]]
        except KeyPathError as error:
            raise UserError(f"{path}: {error.path}: {error.message}; submit again") from None
        return {s["id"]: Job(**{**s, "run": runs[s["run"]], "needs": tuple(s["needs"])}) for s in content["stages"]}


def new_submission(
    places: Places, jobs: list[ClusterJob], stages: list[Job], profile_text: str, label: str, **about: Any
) -> Submission:
    """Write a submission's folder before anything is sent. ``about``: the other fields of Submission."""
    folder = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"  # sorted by time
    submission = Submission(
        folder=places.runs / FOLDER / folder,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=f"{label}.{folder[-6:]}",
        places=places,
        jobs={job.key: job for job in jobs},
        **about,
    )
    runs: dict[str, int] = {}
    specs: list[dict[str, Any]] = []
    for stage in stages:
        if stage.run.id not in runs:
            runs[stage.run.id] = len(specs)
            specs.append({**vars(stage.run), "spec": as_tree(stage.run.spec)})
    tree = [{**vars(stage), "run": runs[stage.run.id]} for stage in stages]
    content = {k: v for k, v in vars(submission).items() if k not in ("folder", "cancelled")}
    content |= {
        "request": asdict(submission.request),
        "places": {"runs": str(places.runs), "records": str(places.records)},
        "jobs": [asdict(job) for job in jobs],
        "rows": [asdict(row) for row in submission.rows],
    }
    atomic_write(submission.folder / "runs.json", json.dumps({"runs": specs, "stages": tree}))
    atomic_write(submission.folder / "profile.yaml", profile_text)
    atomic_write(submission.folder / "submission.json", json.dumps(content, indent=1))
    return submission


def read_submission(folder: Path) -> Submission:
    """Raises UserError for a folder that holds no submission."""
    content = _read_json(folder / "submission.json")
    try:
        jobs = {job.key: job for job in parse(tuple[ClusterJob, ...], content["jobs"])}
        content |= {
            "folder": folder,
            "request": parse(Request, content["request"]),
            "rows": list(parse(tuple[Row, ...], content["rows"])),
            "places": Places(Path(content["places"]["runs"]), Path(content["places"]["records"])),
            "jobs": jobs,
        }
        submission = Submission(**content)
    except (TypeError, KeyError, KeyPathError):
        raise UserError(f"{folder}: not a submission of this version; move it elsewhere") from None
    sent = folder / "sent.jsonl"
    for line in sent.read_text().splitlines() if sent.is_file() else ():
        try:
            key, slurm_id = json.loads(line)
            jobs[key] = replace(jobs[key], slurm_id=slurm_id)
        except (ValueError, KeyError):  # cut off by a kill
            break
    submission.cancelled = submission.unwanted()
    return submission


def read_ledger(runs: Path) -> list[Submission]:
    """All submissions in a run root, oldest first; folders without submission.json are ignored."""
    return [read_submission(path.parent) for path in sorted((runs / FOLDER).glob("*/submission.json"))]


def find_rows(ledger: list[Submission], name: str) -> list[Row]:
    """The rows meant by ``name``: an experiment, one of its rows, or the id of a record, a stage or a job.

    Raises UserError if there is none."""
    rows = {row.name: row for submission in ledger for row in submission.rows}.values()
    experiment, _, row_name = name.partition("/")
    if found := [row for row in rows if row.experiment == experiment and row_name in ("", row.row)]:
        return found
    of_job = {stage.id for s in ledger for job in s.jobs.values() if job.slurm_id == name for stage in job.stages}
    if found := [row for row in rows if name in row.stages or of_job & row.stages.keys()]:
        return found
    known = {row.experiment for row in rows} | {f"{row.experiment}/{row.row}" for row in rows}
    raise UserError(f"nothing submitted is called '{name}', {did_you_mean(name, known) if known else 'nothing is'}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
