"""A cluster without Slurm: submissions with made-up job states, and stand-ins for Slurm's programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mar_bench.cluster.jobs import ClusterJob
from mar_bench.cluster.ledger import Request, Row, Submission, new_submission
from mar_bench.cluster.pending import Plan, Queue, make_plan, rows_of
from mar_bench.cluster.profile import Profile
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, plan_runs
from mar_bench.pipeline.store import Places, mark_done, record_failure
from mar_bench.records.record import read_records
from mar_bench.utils.errors import UserError

EXPERIMENT: Experiment = load_experiment("table1", "smoke")
GUIDED, UNGUIDED = "mar/diff/guided", "mar/diff/unguided"
PROFILE = Profile()
SHARDS = Profile(sample_shards=3)


def runs_of(only: str = GUIDED, task: str | None = None) -> list[Run]:
    return [run for run in plan_runs(EXPERIMENT, only=only) if task in (None, run.task)]


class Squeue:
    """In place of ``slurm.ask``: squeue knows the jobs it was told about, sacct none."""

    def __init__(self) -> None:
        self.jobs: dict[str, list[str]] = {}
        self.away = False
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str]) -> str:
        self.calls.append(words)
        if self.away:
            raise UserError(f"{words[0]}: error: Unable to contact slurm controller")
        return "".join("|".join(fields) + "\n" for fields in self.jobs.values()) if words[0] == "squeue" else ""

    def say(self, job: ClusterJob, state: str, nodes: str = "", reason: str = "None") -> None:
        self.jobs[job.slurm_id][2:] = [state, nodes, reason]


class Lab:
    """Submissions in a folder; their jobs have ids from 100 on and are pending until told otherwise."""

    def __init__(self, folder: Path, squeue: Squeue):
        self.places = Places(folder / "runs", folder / "records")
        self.places.check_writable()
        self.squeue = squeue
        self.ledger: list[Submission] = []

    def plan(self, runs: list[Run], profile: Profile = PROFILE, retry: bool = False, last: bool = False) -> Plan:
        records = read_records(self.places.records)
        return make_plan(runs, self.places, records, profile, Queue(self.ledger), retry, last)

    def rows(self, *runs: Run) -> list[Row]:
        ids = {run.id for run in runs}
        return [row for submission in self.ledger for row in submission.rows if row.id in ids]

    def request(self) -> Request:
        folders = str(self.places.runs), str(self.places.records), "reports"
        return Request("mar-bench submit", ("table1",), False, "smoke", None, None, None, *folders)

    def submit(
        self, runs: list[Run], profile=PROFILE, retry: bool = False, experiment: str = "table1", **about
    ) -> Submission:
        """Like ``submit`` up to sbatch, with made-up ids; ``about``: fields of the submission."""
        plan = self.plan(runs, profile, retry)
        rows = rows_of({experiment: runs}, plan.stages)
        submission = replace(new_submission(experiment, self.request(), plan.graph, rows, 0), **about)
        submission.write(profile, plan.stages)
        first = 100 + len(self.squeue.jobs)
        submission.sent([(key, str(first + i)) for i, key in enumerate(submission.jobs)])
        for job in submission.jobs.values():
            self.squeue.jobs[job.slurm_id] = [job.slurm_id, submission.name, "PENDING", "", "Priority"]
        self.ledger.append(submission)
        return submission

    def job(self, kind: str, shard: int | None = None, of: int = -1) -> ClusterJob:
        """The first job of a submission with a stage of a kind, or that shard of it."""
        jobs = self.ledger[of].jobs.values()
        return next(j for j in jobs if (j.shard or (None,))[0] == shard and any(s.kind == kind for s in j.stages))

    def say(self, kind: str, state: str, shard: int | None = None, of: int = -1, **about: str) -> ClusterJob:
        self.squeue.say(job := self.job(kind, shard, of), state, **about)
        return job

    def say_all(self, state: str, submission: Submission | None = None) -> None:
        for job in (submission or self.ledger[-1]).jobs.values():
            self.squeue.say(job, state)

    def finish(self, *kinds: str, run: Run | None = None) -> None:
        run = run or runs_of(task="generation")[0]
        for kind in kinds:
            folder = self.places.folder(kind, run.ids.get(f"{kind}_id", run.id))
            folder.mkdir(parents=True)
            mark_done(folder, 1.0)

    def fail(self, run: Run, error: str) -> None:
        record_failure(run, self.places, error, 1.0)

    def failed_records(self) -> dict[str, str | None]:
        return {i: r.error for i, r in read_records(self.places.records).items() if r.status == "failed"}

    def note(self, job: ClusterJob, /, **what: object) -> None:
        """Write a job's status file."""
        path = self.ledger[-1].folder / "jobs" / f"{job.key}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"job": job.slurm_id, "failed": {}, **what}))

    def log(self, job: ClusterJob, text: str, ending: str = "err", task: int = 0) -> Path:
        path = self.ledger[-1].folder / "logs" / f"{job.slurm_id}_{task}_log.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path


SBATCH = """
n=$(( $(cat calls) + 1 )); echo $n > calls
if [ "$n" = "$(cat refused)" ]; then
  echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
  exit 1
fi
cp "$1" "script.$n"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do
  echo "$(( 1000 + n ))${last:+_$i}|$name|PENDING||Priority" >> queue
done
echo "Submitted batch job $(( 1000 + n ))"
"""
PROGRAMS = {
    "sbatch": SBATCH,
    "squeue": "cat queue",
    "sacct": ":",
    "scancel": 'echo "$@" >> cancelled; for name; do :; done; sed -i "/|$name|/d" queue',
    "srun": "exit 1",
}


class FakeSlurm:
    """Slurm's programs as shell scripts in a folder; sbatch keeps what it is given."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        for name, text in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\ncd {folder}\n{text}\n")
            (folder / name).chmod(0o755)
        for name, text in (("calls", "0"), ("queue", ""), ("refused", ""), ("cancelled", "")):
            (folder / name).write_text(text)

    def refuse(self, call: int) -> None:
        (self.folder / "refused").write_text(f"{call}")

    def say_all(self, state: str) -> None:
        queue = self.folder / "queue"
        queue.write_text(queue.read_text().replace("PENDING", state))

    @property
    def calls(self) -> int:
        return int((self.folder / "calls").read_text())

    @property
    def queue(self) -> list[list[str]]:
        return [line.split("|") for line in (self.folder / "queue").read_text().splitlines()]

    @property
    def cancelled(self) -> list[str]:
        return (self.folder / "cancelled").read_text().splitlines()

    def scripts(self) -> list[str]:
        """What sbatch was given, in the order of its calls."""
        return [(self.folder / f"script.{n}").read_text() for n in range(1, self.calls + 1)]
