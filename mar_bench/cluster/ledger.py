"""What was submitted: a folder a submission, from which later commands know which job does which stage.

runs/submissions/<id>/
  submission.json   command, profile, code and git commit; every job with its stages and what it waits for
  runs.json         the stages with their specs: what the jobs read
  profile.yaml      the cluster profile as it was
  sent.jsonl        key of a job -> Slurm's id, a line each as it is sent
  cancelled.json    ids of stages that the user no longer wants
  jobs/<key>.json   what a job says of itself while it runs: stage, step, node, failures
  logs/             submitit's pickles, the output of the jobs
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.config.ids import Run
from mar_bench.config.parse import KeyPathError, as_tree, parse
from mar_bench.config.spec import RunSpec
from mar_bench.pipeline.graph import Job
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

FOLDER = "submissions"


@dataclass(frozen=True)
class Stage:
    """A stage as the ledger knows it, without its spec."""

    id: str
    kind: str
    title: str


@dataclass(frozen=True)
class Entry:
    """A job of a submission; ``slurm_id`` is None until it has been sent."""

    key: str
    kind: str
    name: str  # Slurm's job name
    stages: tuple[Stage, ...]
    needs: tuple[str, ...]
    follows: tuple[str, ...]
    shard: tuple[int, int] | None
    slurm_id: str | None = None


@dataclass(frozen=True)
class Row:
    """A record to be: what ``status`` has a line for."""

    experiment: str
    row: str
    task: str
    train_seed: int
    sampling_seed: int
    id: str
    stages: tuple[str, ...]  # ids on the way to it, the last one its own
    sweep: bool = False

    @property
    def name(self) -> str:
        """Its own among all experiments': records are shared between them."""
        return f"{self.experiment}:{self.id}"


@dataclass
class Submission:
    """One call of submit."""

    folder: Path
    created: str
    command: str
    words: list[str]  # the experiments and overrides
    scale: str
    options: dict[str, Any]  # of submit, as its final job gives them again
    cluster: str
    kind: str  # of the profile
    places: Places
    code: str
    git: dict
    jobs: dict[str, Entry]
    rows: list[Row]
    cancelled: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def last(self) -> str:
        """The key of the job that comes after all others."""
        return str(len(self.jobs) - 1)

    def progress(self, key: str) -> dict:
        """What a job has last said; empty before it does."""
        return _read_json(self.folder / "jobs" / f"{key}.json") or {}

    def said(self, entry: Entry) -> dict:
        """The same, of the job that was sent, not of one that bore the key before."""
        said = self.progress(entry.key)
        return said if self.kind != "slurm" or said.get("job") == entry.slurm_id else {}

    def log(self, entry: Entry, ending: str = "err") -> Path:
        return self.folder / "logs" / f"{entry.slurm_id or entry.key}_0_log.{ending}"

    def sent(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note Slurm's ids at once: a submission that is cut short must know what it has sent."""
        pairs = list(pairs)
        with (self.folder / "sent.jsonl").open("a") as file:
            file.write("".join(json.dumps(pair) + "\n" for pair in pairs))
            file.flush()
            os.fsync(file.fileno())
        for key, slurm_id in pairs:
            self.jobs[key] = Entry(**{**vars(self.jobs[key]), "slurm_id": slurm_id})

    def unwanted(self) -> set[str]:
        """Stages and rows that the user has cancelled, as of now."""
        found = _read_json(self.folder / "cancelled.json")
        return {str(i) for i in found} if isinstance(found, list) else set()

    def cancel(self, stages: Iterable[str]) -> None:
        """``stages``, and names of rows, which keep those of their stages that others need."""
        new = set(stages)
        if new <= self.cancelled:
            return
        self.cancelled |= new
        atomic_write(self.folder / "cancelled.json", json.dumps(sorted(self.cancelled)))

    def planned(self) -> dict[str, Job]:
        """Its stages with their specs, also those that jobs of other submissions do."""
        content = _read_json(self.folder / "runs.json")
        if content is None:
            raise UserError(f"{self.folder / 'runs.json'}: missing or broken; submit again")
        try:
            runs = [Run(**{**run, "spec": parse(RunSpec, run["spec"])}) for run in content["runs"]]
        except KeyPathError as error:
            raise UserError(f"{self.folder / 'runs.json'}: {error.path}: {error.message}; submit again") from None
        return {s["id"]: Job(**{**s, "run": runs[s["run"]], "needs": tuple(s["needs"])}) for s in content["stages"]}


def new_submission(
    places: Places,
    graph: list[ClusterJob],
    stages: list[Job],
    rows: list[Row],
    profile_text: str,
    label: str,
    **about: Any,
) -> Submission:
    """Write a submission's folder, before anything is sent. ``about``: the other fields of Submission."""
    now = datetime.now()
    name = f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"  # in the order of time
    entries = {
        job.key: Entry(
            job.key,
            job.kind,
            f"{label}.{name[-6:]}",
            tuple(Stage(s.id, s.kind, s.title) for s in job.stages),
            job.needs,
            job.follows,
            job.shard,
        )
        for job in graph
    }
    submission = Submission(
        folder=places.runs / FOLDER / name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        places=places,
        jobs=entries,
        rows=rows,
        **about,
    )
    runs: dict[str, int] = {}
    specs = []
    for stage in stages:
        if stage.run.id not in runs:
            runs[stage.run.id] = len(specs)
            specs.append({**vars(stage.run), "spec": as_tree(stage.run.spec)})
    tree = [{**vars(stage), "run": runs[stage.run.id]} for stage in stages]
    content = {k: v for k, v in vars(submission).items() if k not in ("folder", "cancelled")}
    content |= {
        "places": {"runs": str(places.runs), "records": str(places.records)},
        "jobs": [asdict(entry) for entry in entries.values()],
        "rows": [asdict(row) for row in rows],
    }
    atomic_write(submission.folder / "runs.json", json.dumps({"runs": specs, "stages": tree}))
    atomic_write(submission.folder / "profile.yaml", profile_text)
    atomic_write(submission.folder / "submission.json", json.dumps(content, indent=1))
    return submission


def read_submission(folder: Path) -> Submission:
    """Raises UserError for a folder that holds no submission."""
    content = _read_json(folder / "submission.json")
    try:
        entries = [
            Entry(
                **{
                    **e,
                    "stages": tuple(Stage(**s) for s in e["stages"]),
                    "needs": tuple(e["needs"]),
                    "follows": tuple(e["follows"]),
                    "shard": tuple(e["shard"]) if e["shard"] else None,
                }
            )
            for e in content.pop("jobs")
        ]
        rows = [Row(**{**r, "stages": tuple(r["stages"])}) for r in content.pop("rows")]
        places = Places(*(Path(content["places"][k]) for k in ("runs", "records")))
        submission = Submission(
            **{**content, "folder": folder, "jobs": {e.key: e for e in entries}, "rows": rows, "places": places}
        )
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{folder}: not a submission of this version; move it elsewhere") from None
    for line in _lines(folder / "sent.jsonl"):
        try:
            key, slurm_id = json.loads(line)
            entry = submission.jobs[key]
        except (ValueError, KeyError):  # cut by a kill
            break
        submission.jobs[key] = Entry(**{**vars(entry), "slurm_id": slurm_id})
    submission.cancelled = submission.unwanted()
    return submission


def read_ledger(runs: Path) -> list[Submission]:
    """All submissions of a run root, the oldest first; one that was cut before it was written is none."""
    folders = sorted(path.parent for path in (runs / FOLDER).glob("*/submission.json"))
    return [read_submission(folder) for folder in folders]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
