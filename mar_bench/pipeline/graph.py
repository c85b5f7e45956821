"""From runs to jobs: the stages a set of runs still needs, in dependency order. Never imports torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from mar_bench.config.ids import Run
from mar_bench.config.stages import STAGES
from mar_bench.pipeline.cost import seconds
from mar_bench.pipeline.store import Places, is_sound, record_failure


@dataclass(frozen=True)
class Job:
    """One stage to execute for ``run``, the first run that needs it.

    ``needs``: ids of the jobs it waits for. ``cost``: estimated seconds on one CPU core."""

    kind: str  # the stage's name
    id: str
    run: Run
    needs: tuple[str, ...]
    cost: float

    @property
    def title(self) -> str:
        """The stage and the part of the run that identifies it."""
        label, spec, row = STAGES[self.kind].label, self.run.spec, self.run.row
        if label in ("tokenizer", "extractor"):
            return f"{self.kind} {spec.tokenizer.kind if label == 'tokenizer' else spec.metrics.extractor.name}"
        if self.kind == "speed":
            return f"{self.kind} {row}"
        seed = f"{spec.train.seed}.{spec.sampling.seed}" if spec.sampling.seed else f"{spec.train.seed}"
        return f"{self.kind} {row.rsplit('/', 1)[0] if label == 'training' else row} seed {seed}"


def jobs_for(runs: list[Run], places: Places) -> list[Job]:
    """The jobs that ``runs`` still need, each id once, every job after the jobs it needs, speed last.

    A finished training no longer needs its latents, so they may have been deleted."""
    jobs: dict[str, Job] = {}
    sound: dict[str, bool] = {}

    def require(name: str, run: Run) -> str:
        """Add the jobs for a stage and all it needs; returns its id."""
        stage_id = run.ids[STAGES[name].id_key]
        if stage_id not in sound:
            sound[stage_id] = is_sound(places.folder(name, stage_id))
            of_published = name == "train" and run.spec.train.published is not None  # not trained on latents
            needs = () if sound[stage_id] or of_published else STAGES[name].needs
            waits = tuple(i for i in [require(need, run) for need in needs] if not sound[i])
            if not sound[stage_id]:
                jobs[stage_id] = Job(name, stage_id, run, waits, seconds(name, run.spec))
        return stage_id

    for run in sorted(runs, key=lambda r: r.task == "speed"):
        require(run.task, run)
    return list(jobs.values())


def give_up(job: Job, jobs: list[Job], error: str, seconds: float, places: Places) -> set[str]:
    """Publish failed records for a job and everything that depends on it; returns the ids of those jobs."""
    lost = {job.id}
    for other in jobs:  # in dependency order
        if other.id in lost or lost & set(other.needs):
            lost.add(other.id)
            if STAGES[other.kind].is_task:
                with suppress(OSError):  # a full disk; the exit code still reports the failure
                    record_failure(other.run, places, error, seconds)
    return lost
