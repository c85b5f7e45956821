"""Stages -> a graph of cluster jobs: which stages share a job, what waits for what, what is sent as one array.

Pure functions of the plan and the profile: no Slurm, no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mar_bench.pipeline.graph import Job
from mar_bench.records.record import RECORDED

TABLE = "table"


@dataclass(frozen=True)
class ClusterJob:
    """One job of the cluster, or one element of an array: stages that it does one after another.

    ``needs`` must have ended well before it starts, ``follows`` must have ended; both are keys of jobs, or ids of
    jobs that another submission has sent, written ``@id``. ``shard`` (j, n): of its one stage only part j of n."""

    key: str
    kind: str  # the stage whose resources it asks for
    stages: tuple[Job, ...] = ()
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    shard: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        if self.kind == TABLE:
            return "table"
        if self.shard:
            return f"{self.stages[0].title} {self.shard[0] + 1}/{self.shard[1]}"
        if self.kind == "measure":  # what it samples is there already
            return self.stages[-1].title
        return self.stages[0].title + (f" +{len(self.stages) - 1}" if len(self.stages) > 1 else "")


def resource_stage(kind: str) -> str:
    """The profile's word for a stage."""
    return "measure" if kind in ("generation", "reconstruction") else kind


def build_graph(stages: list[Job], pack: bool, shards: int, elsewhere: dict[str, str]) -> list[ClusterJob]:
    """The jobs that do ``stages``, which stand behind what they need; the last one makes the table.

    ``elsewhere``: stages that are not in ``stages`` since another submission's job does them, and its id."""
    assert shards == 1 or not pack, "profiles are checked for it"
    groups: dict[tuple, list[Job]] = {}
    for stage in stages:
        groups.setdefault(_group(stage, pack, shards), []).append(stage)
    home = {stage.id: group for group, members in groups.items() for stage in members}
    jobs: list[ClusterJob] = []
    keys: dict[tuple, str] = {}
    shard_keys: dict[str, list[str]] = {}

    def add(kind: str, members: Iterable[Job], needs: Iterable[str], shard: tuple[int, int] | None = None) -> str:
        jobs.append(ClusterJob(str(len(jobs)), kind, tuple(members), tuple(dict.fromkeys(needs)), shard=shard))
        return jobs[-1].key

    def before(members: list[Job], group: tuple) -> list[str]:
        found = []
        for need in (need for stage in members for need in stage.needs):
            if need in elsewhere:
                found.append(f"@{elsewhere[need]}")
            elif need in home and home[need] != group:
                found.append(keys[home[need]])
        return found

    for group in _in_order(groups, home):
        members = groups[group]
        if group == (TABLE,):
            continue
        for stage in members if shards > 1 else ():
            if stage.kind == "sample":
                parts = [(j, shards) for j in range(shards)]
                shard_keys[stage.id] = [add("sample", [stage], before([stage], group), part) for part in parts]
        needs = before(members, group)
        needs += [key for stage in members for key in shard_keys.get(stage.id, ())]
        kinds = {stage.kind for stage in members}
        kind = next(k for k in ("train", "latents", "tokenizer", "sample", *kinds) if k in kinds)
        if kind == "sample" and len(kinds) > 1 and shards > 1:
            kind = "generation"  # what is left of sampling is to see that all shards are there
        keys[group] = add(resource_stage(kind), members, needs)
    last = groups.get((TABLE,), [])
    ids = [f"@{i}" for i in elsewhere.values()]
    kinds = {resource_stage(stage.kind) for stage in last}
    kind = next((kind for kind in ("speed", "measure") if kind in kinds), TABLE)
    follows = tuple(dict.fromkeys([*(job.key for job in jobs), *ids]))
    jobs.append(ClusterJob(str(len(jobs)), kind, tuple(last), follows=follows))
    return jobs


def _group(stage: Job, pack: bool, shards: int) -> tuple:
    """Stages of one group share a job."""
    ids = stage.run.ids
    if stage.kind == "extractor":
        return ("extractor", stage.id)
    if not pack:
        if stage.kind in ("sample", "generation") and shards > 1:
            return ("sample", ids["sample_id"])
        return (stage.kind, stage.id)
    if stage.kind in ("tokenizer", "latents"):
        return ("tokenizer", ids["tokenizer_id"])
    if stage.kind in ("train", "sample", "generation"):
        return ("train", ids["train_id"])
    return (TABLE,)  # the tokenizer alone, and speed, which wants the machine for itself


def _in_order(groups: dict[tuple, list[Job]], home: dict[str, tuple]) -> list[tuple]:
    """Groups behind what they need."""
    import graphlib

    waits = {
        group: {home[need] for stage in members for need in stage.needs if need in home} - {group}
        for group, members in groups.items()
    }
    return list(graphlib.TopologicalSorter(waits).static_order())


def arrays(jobs: list[ClusterJob], most: int) -> list[list[ClusterJob]]:
    """Jobs in the order in which they are sent; those that ask for the same and wait for the same go together.

    ``most``: elements of one array."""
    out: list[list[ClusterJob]] = []
    open_at: dict[tuple, int] = {}
    for job in jobs:
        alike = (job.kind, job.needs, job.follows)
        if job.kind != TABLE and alike in open_at and len(out[open_at[alike]]) < most:
            out[open_at[alike]].append(job)
        else:
            open_at[alike] = len(out)
            out.append([job])
    return out


def leaves_alone(stages: Iterable[Job]) -> bool:
    """Whether nothing else can wait for these stages: they end in records."""
    return all(stage.kind in RECORDED for stage in stages)
