"""A cluster without Slurm: submissions whose jobs are in made-up states, and programs of Slurm's names on the PATH."""

from __future__ import annotations

from pathlib import Path

from mar_bench.cluster.ledger import Entry, Row, Submission, new_submission
from mar_bench.cluster.plan import Plan, make_plan, rows_of
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, plan_runs
from mar_bench.pipeline.store import Places, mark_done, record_failure
from mar_bench.utils.errors import UserError

EXPERIMENT: Experiment = load_experiment("table1", "smoke")
GUIDED = "mar/diff/guided"
PROFILE = SlurmProfile(pack=False, sample_shards=1)


def runs_of(only: str = GUIDED, task: str | None = None) -> list[Run]:
    return [run for run in plan_runs(EXPERIMENT, only=only) if task in (None, run.task)]


def finish(places: Places, kind: str, stage_id: str) -> None:
    """A stage that is done."""
    places.folder(kind, stage_id).mkdir(parents=True)
    mark_done(places.folder(kind, stage_id), 1.0)


class Squeue:
    """In place of ``slurm._run``: squeue knows the jobs that it has been told of, sacct none."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, ...]] = {}
        self.away = False
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str]) -> str:
        self.calls.append(words)
        if self.away:
            raise UserError(f"{words[0]}: error: Unable to contact slurm controller")
        return "".join("|".join(fields) + "\n" for fields in self.jobs.values()) if words[0] == "squeue" else ""

    def say(self, entry: Entry, state: str, nodes: str = "", reason: str = "None", elapsed: str = "1:00") -> None:
        self.jobs[entry.slurm_id] = (entry.slurm_id, entry.name, state, nodes, reason, elapsed)

    def forget(self, entry: Entry) -> None:
        del self.jobs[entry.slurm_id]


class Lab:
    """Submissions in a folder; their jobs have ids from 100 on and are pending until told otherwise."""

    def __init__(self, folder: Path, squeue: Squeue):
        self.places = Places(folder / "runs", folder / "records")
        self.squeue = squeue
        self.ledger: list[Submission] = []
        self.next_id = 100

    def plan(
        self, runs: list[Run], profile: SlurmProfile = PROFILE, retry: bool = False, records: dict | None = None
    ) -> Plan:
        return make_plan(runs, self.places, records or {}, profile, self.ledger, retry)

    def rows(self, ids: set[str]) -> list[Row]:
        return [row for submission in self.ledger for row in submission.rows if row.id in ids]

    def submit(
        self, runs: list[Run], profile: SlurmProfile = PROFILE, retry: bool = False, experiment: str = "table1", **about
    ) -> Submission:
        """Like ``submit`` up to sbatch, whose ids are made up."""
        plan = self.plan(runs, profile, retry)
        rows = rows_of({experiment: runs}, plan.stages)
        fields = {
            "command": "mar-bench submit", "words": ["table1"], "scale": "smoke", "options": {}, "cluster": "made up",
            "kind": profile.kind, "code": "", "git": {},
        }  # fmt: skip
        submission = new_submission(self.places, plan.graph, plan.stages, rows, "", "table1", **(fields | about))
        submission.sent([(job.key, str(self.next_id + i)) for i, job in enumerate(plan.graph)])
        self.next_id += len(plan.graph)
        for entry in submission.jobs.values():
            self.squeue.say(entry, "PENDING", reason="Priority")
        self.ledger.append(submission)
        return submission

    def job(self, kind: str, shard: int | None = None, of: int = -1) -> Entry:
        """The first job of a submission with a stage of a kind, or such a shard of it."""
        return next(
            entry
            for entry in self.ledger[of].jobs.values()
            if (entry.shard or (None,))[0] == shard and any(stage.kind == kind for stage in entry.stages)
        )

    def say(self, kind: str, state: str, shard: int | None = None, **about: str) -> Entry:
        self.squeue.say(entry := self.job(kind, shard), state, **about)
        return entry

    def finish(self, *kinds: str, run: Run | None = None) -> None:
        for kind in kinds:
            run = run or runs_of(task="generation")[0]
            finish(self.places, kind, run.ids.get(f"{kind}_id", run.id))

    def fail(self, run: Run, error: str) -> None:
        record_failure(run, self.places, error, 1.0)


# --- programs -------------------------------------------------------------------------------------------

SBATCH = """
n=$(( $(cat calls) + 1 )); echo $n > calls
if [ "$n" = "$(cat refused)" ]; then
  echo "sbatch: error: invalid partition specified: nowhere" >&2
  echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
  exit 1
fi
cp "$1" "script.$n"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do
  echo "$(( 1000 + n ))${last:+_$i}|$name|PENDING||Priority|0:00" >> queue
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
    """Programs in a folder that is all of the PATH, but for what they need themselves."""

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
        paths = self.folder.glob("script.*")
        return [path.read_text() for path in sorted(paths, key=lambda path: int(path.suffix[1:]))]
