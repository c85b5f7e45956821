"""From stages to a graph of cluster jobs: which stages share a job, which jobs it waits for, which jobs form an array.

Pure functions of the plan and the profile: no Slurm, no files."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import TopologicalSorter

from mar_bench.config.stages import STAGES
from mar_bench.pipeline.graph import Job

TABLE = "table"
HEAVIEST = ("train", "latents", "tokenizer", "sample")  # a job requests the resources of its heaviest stage


@dataclass(frozen=True)
class StageRef:
    """A stage as a job lists it, without its spec."""

    id: str
    kind: str
    title: str


@dataclass(frozen=True)
class ClusterJob:
    """One cluster job, or one element of an array: it runs its stages in order.

    It starts once all jobs in ``needs`` have succeeded and all in ``follows`` have ended, however they ended. Both hold
    keys of jobs of this submission, or Slurm ids of another submission's jobs, written ``@id``. With ``shard`` (j, n)
    the job draws only part j of n of its single sample stage."""

    key: str
    kind: str  # the stage whose resources it requests
    stages: tuple[StageRef, ...] = ()
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None
    slurm_id: str | None = None  # None until it is sent

    @property
    def title(self) -> str:
        more = f" +{len(self.stages) - 1}" if len(self.stages) > 1 else ""
        more = f" {self.shard[0] + 1}/{self.shard[1]}" if self.shard else more
        return self.stages[0].title + more if self.stages else TABLE


def build_graph(stages: list[Job], pack: bool, shards: int, elsewhere: dict[str, str]) -> list[ClusterJob]:
    """The jobs that run ``stages`` (each listed after the stages it needs); the last job writes the table.

    ``elsewhere`` maps stages that a job of another submission runs to that job's Slurm id."""
    groups: dict[tuple, list[Job]] = {}
    for stage in stages:
        groups.setdefault(_group(stage, pack, shards), []).append(stage)
    home = {stage.id: group for group, members in groups.items() for stage in members}
    waits = {
        group: {home[need] for stage in members for need in stage.needs if need in home} - {group}
        for group, members in groups.items()
    }
    jobs: list[ClusterJob] = []
    keys: dict[tuple, str] = {}

    def add(kind: str, members: list[Job], more: list[str], shard: tuple[int, int] | None = None) -> str:
        """A job for stages of a group, which waits for what they need from outside it and for ``more``."""
        needs = [need for stage in members for need in stage.needs]
        others = [f"@{elsewhere[need]}" for need in needs if need in elsewhere]
        ours = [keys[home[need]] for need in needs if home.get(need) in keys]
        refs = tuple(StageRef(stage.id, stage.kind, stage.title) for stage in members)
        resources = STAGES[kind].resources
        jobs.append(ClusterJob(str(len(jobs)), resources, refs, tuple(dict.fromkeys(others + ours + more)), (), shard))
        return jobs[-1].key

    for group in TopologicalSorter(waits).static_order():
        if group == (TABLE,):
            continue
        members = groups[group]
        kinds = {stage.kind for stage in members}
        kind = next(k for k in (*HEAVIEST, *kinds) if k in kinds)
        parts: list[str] = []
        if shards > 1 and "sample" in kinds:
            sample = [stage for stage in members if stage.kind == "sample"]
            parts = [add("sample", sample, [], (j, shards)) for j in range(shards)]
            kind = "generation" if len(kinds) > 1 else kind  # all that is left of sampling is to check the shards
        keys[group] = add(kind, members, parts)
    last = groups.get((TABLE,), [])
    kinds = {STAGES[stage.kind].resources for stage in last}
    kind = next((kind for kind in ("speed", "measure") if kind in kinds), TABLE)
    refs = tuple(StageRef(stage.id, stage.kind, stage.title) for stage in last)
    follows = dict.fromkeys([*(job.key for job in jobs), *(f"@{i}" for i in elsewhere.values())])
    return [*jobs, ClusterJob(str(len(jobs)), kind, refs, follows=tuple(follows))]


def _group(stage: Job, pack: bool, shards: int) -> tuple:
    """Stages with the same group share a job."""
    ids = stage.run.ids
    if stage.kind == "extractor" or not pack:
        shared = shards > 1 and stage.kind in ("sample", "generation")
        return ("sample", ids["sample_id"]) if shared else (stage.kind, stage.id)
    if stage.kind in ("tokenizer", "latents"):
        return ("tokenizer", ids["tokenizer_id"])
    if stage.kind in ("train", "sample", "generation", "likelihood"):
        return ("train", ids["train_id"])
    return (TABLE,)  # reconstruction, and speed, which needs the machine to itself


def arrays(jobs: list[ClusterJob], most: int) -> list[list[ClusterJob]]:
    """Jobs in the order of sending; those with equal resources and dependencies form arrays of at most ``most``."""
    out: list[list[ClusterJob]] = []
    open_at: dict[tuple, list[ClusterJob]] = {}
    for job in jobs:
        alike = (job.kind, job.needs, job.follows)
        if job.kind != TABLE and len(open_at.get(alike, [])) in range(1, most):
            open_at[alike].append(job)
        else:
            open_at[alike] = [job]
            out.append(open_at[alike])
    return out
