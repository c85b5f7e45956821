"""The ledger of submissions: one folder each, where later commands look up which job runs which stage.

runs/submissions/<id>/
  submission.json   the request; every job with its stages, dependencies and, once it is sent, Slurm's id; the
                    expected records
  plan.json         the profile and the stages with their specs, for the jobs
  cancelled.json    ids of stages and names of rows that the user has cancelled
  jobs/<key>.json   a job's status file: stage, step, failures
  code/             the code that the jobs import
  experiments/      copies of the user's own experiment files
  logs/             submitit's pickles, the output of the jobs
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.cluster.profile import Profile
from mar_bench.config.parse import KeyPathError, as_tree, parse
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, reading

FOLDER = "submissions"


@dataclass(frozen=True)
class Request:
    """A ``submit`` command; ``runs`` and ``records`` are absolute."""

    command: str
    words: tuple[str, ...]  # experiments and overrides
    every: bool
    scale: str
    only: str | None
    seeds: str | None
    sampling_seeds: str | None
    runs: str
    records: str
    reports: str
    speed: bool = True  # whether seconds per image are measured


@dataclass(frozen=True)
class Row:
    """An expected record, as ``status`` lists it."""

    experiment: str
    row: str
    title: str  # the row, with seeds and task unless they are the defaults
    task: str
    id: str
    stages: dict[str, str]  # id -> kind of every stage that leads to the record; its own stage is last

    @property
    def name(self) -> str:
        """Unique across experiments, which may share a record."""
        return f"{self.experiment}:{self.id}"


@dataclass(frozen=True)
class Submission:
    """One call of submit."""

    id: str  # also its folder's name
    name: str  # Slurm's name for all its jobs
    request: Request
    jobs: dict[str, ClusterJob]
    rows: tuple[Row, ...]
    waiting: int  # evaluations that wait for the measurement of sweep points
    cancelled: set[str] = field(default_factory=set)  # in cancelled.json

    @property
    def places(self) -> Places:
        return Places(Path(self.request.runs), Path(self.request.records))

    @property
    def folder(self) -> Path:
        return self.places.runs / FOLDER / self.id

    @property
    def last(self) -> ClusterJob:
        """The job that follows all others."""
        return self.jobs[str(len(self.jobs) - 1)]

    def status(self, job: ClusterJob) -> dict[str, Any]:
        """A job's status file; empty if there is none, or if an earlier Slurm job with this key wrote it."""
        found = read_json(self.folder / "jobs" / f"{job.key}.json") or {}
        return found if found.get("job") == job.slurm_id else {}

    def write(self, profile: Profile, stages: list[Job]) -> None:
        """Write the folder, before anything is sent."""
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        plan = {"profile": as_tree(profile), "stages": [as_tree(stage) for stage in stages]}
        atomic_write(self.folder / "plan.json", json.dumps(plan))
        self.sent([])

    def plan(self) -> tuple[Profile, list[Job]]:
        """The arguments of ``write``; the stages include those that jobs of other submissions run."""
        with reading(self.folder / "plan.json", "plan of a submission", "submit again"):
            content = json.loads((self.folder / "plan.json").read_text())
            return parse(Profile, content["profile"]), list(parse(tuple[Job, ...], content["stages"]))

    def sent(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Save Slurm's ids of jobs to disk at once, so that an interrupt does not lose track of jobs that were sent."""
        for key, slurm_id in pairs:
            self.jobs[key] = replace(self.jobs[key], slurm_id=slurm_id)
        content = {key: value for key, value in as_tree(self).items() if key != "cancelled"}
        atomic_write(self.folder / "submission.json", json.dumps(content, indent=1))

    def unwanted(self) -> set[str]:
        """Stages and rows cancelled so far, read from disk."""
        return set(read_json(self.folder / "cancelled.json") or ())

    def cancel(self, names: Iterable[str]) -> None:
        """Mark ids of stages, or names of rows, as cancelled."""
        self.cancelled.update(names)
        if self.cancelled:
            atomic_write(self.folder / "cancelled.json", json.dumps(sorted(self.cancelled)))


def new_submission(
    label: str, request: Request, jobs: list[ClusterJob], rows: tuple[Row, ...], waiting: int
) -> Submission:
    """A submission that is not on disk yet."""
    folder = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"  # sorted by time
    name, by_key = f"{label}.{folder[-6:]}", {job.key: job for job in jobs}
    return Submission(folder, name, request, by_key, rows, waiting)


def read_submission(folder: Path) -> Submission:
    """Raises UserError for a folder that holds no submission."""
    try:
        content = json.loads((folder / "submission.json").read_text())
        content["request"]["runs"] = str(folder.absolute().parents[1])  # wherever the run root has been moved
        submission = parse(Submission, content)
    except (OSError, ValueError, TypeError, KeyError, KeyPathError):
        raise UserError(f"{folder}: not a submission of this version; move it elsewhere") from None
    submission.cancelled.update(submission.unwanted())
    return submission


def read_ledger(runs: Path) -> list[Submission]:
    """All submissions in a run root, oldest first; folders without submission.json are ignored."""
    return [read_submission(path.parent) for path in sorted((runs / FOLDER).glob("*/submission.json"))]


def find_rows(ledger: list[Submission], name: str) -> list[Row]:
    """The rows meant by an experiment, one of its rows, or the id of a record, a stage or a job. Raises UserError."""
    rows = {row.name: row for submission in ledger for row in submission.rows}.values()
    of_job = {stage.id for s in ledger for job in s.jobs.values() if job.slurm_id == name for stage in job.stages}
    names = {row.name: {row.experiment, f"{row.experiment}/{row.row}", *row.stages} for row in rows}
    found = [row for row in rows if name in names[row.name] or of_job & row.stages.keys()]
    if not found:
        known = set().union(*names.values())
        raise UserError(f"no submission has '{name}', {did_you_mean(name, known) if known else 'there are none yet'}")
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
