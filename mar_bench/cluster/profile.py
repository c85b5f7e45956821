"""Cluster profiles: ``slurm/clusters/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mar_bench.config.parse import Count, CountOrZero, KeyPathError, OneOf, Positive, Rule, parse
from mar_bench.config.stages import RESOURCES, STAGES
from mar_bench.config.yaml_layers import load_yaml
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import shipped

BLOCKS = (*RESOURCES, "table")  # keys of ``stages``
MULTIPROCESS = {stage.resources for stage in STAGES.values() if stage.multiprocess}
# sbatch options on which submit relies: another value would lose work
RESERVED = "array|dependency|error|export|job.name|kill.on.invalid.dep|no.requeue|ntasks|ntasks.per.node|open.mode"
RESERVED += "|output|parsable|requeue|signal|time|wait|wrap"
Block = Annotated[str, OneOf("stage", BLOCKS)]
_TIME = re.compile(r"(\d+|(\d+-)?\d+:\d\d:\d\d)\Z")  # M:SS looks like H:MM
Time = Annotated[str, Rule("is no time limit: write minutes, H:MM:SS or D-HH:MM:SS", _TIME.match)]
_FREE = re.compile(f"(?!-*({RESERVED})\\Z).+")
Option = Annotated[str, Rule("is set by mar-bench submit or a key of the profile", _FREE.match)]


@dataclass(frozen=True)
class Resources:
    """What one job requests from Slurm. None: the value of the block ``job``, or Slurm's own default there."""

    partition: str | None = None  # one, or several separated by commas
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Count | None = None
    tasks_per_node: Count | None = None  # None: one per GPU for stages that ranks can share, else 1
    gpus_per_node: CountOrZero | None = None
    gpu_type: str | None = None  # as in --gres=gpu:<type>:<n>
    cpus_per_task: Count | None = None
    memory_gb: Positive | None = None  # per task
    time: Time | None = None
    exclusive: bool | None = None  # whole nodes
    sbatch: dict[Option, Any] = field(default_factory=dict)  # any other sbatch option, without its dashes


@dataclass(frozen=True)
class Profile:
    """A cluster managed by Slurm."""

    kind: Literal["slurm"] = "slurm"
    runs: str | None = None  # run root, on a disk that all nodes share; None: --runs
    device: str | None = None  # GPU name as torch reports it, under which speed is recorded; None: this machine's
    pack: bool = False  # run the stages of one training in one job: where starting Python costs more than queueing
    sample_shards: Count = 1  # array elements that share the images of one evaluation, split by index

    array_parallelism: Count = 64  # elements of one array that run at a time
    signal_seconds: Count = 120  # how long before its time limit a job gets the signal to save
    max_timeouts: CountOrZero = 50  # times a job may hit its time limit and be requeued
    python: str | None = None  # a shell command; None: the Python that submits
    setup: tuple[str, ...] = ()  # shell lines before it: modules, environments
    job: Resources = field(default_factory=Resources)
    stages: dict[Block, Resources] = field(default_factory=dict)  # overrides per stage

    def resources(self, stage: str) -> Resources:
        """What a job of ``stage`` requests, with our defaults filled in."""
        own = self.stages.get(stage, Resources())
        changed = {f.name: v for f in fields(own) if f.name != "sbatch" and (v := getattr(own, f.name)) is not None}
        merged = replace(self.job, **changed, sbatch={**self.job.sbatch, **own.sbatch})
        tasks = max(1, merged.gpus_per_node or 0) if stage in MULTIPROCESS else 1
        defaults: dict[str, Any] = {"nodes": 1, "tasks_per_node": tasks, "time": "60"}
        return replace(merged, **{name: getattr(merged, name) or value for name, value in defaults.items()})


def profiles_dir() -> Path:
    """``$MAR_BENCH_CLUSTERS``, else the checkout's folder, else the copy inside the package."""
    return shipped("slurm/clusters", "clusters", "MAR_BENCH_CLUSTERS")


def load_profile(name: str) -> Profile:
    """A profile by its name or file. Raises UserError naming the file and the key."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else profiles_dir() / f"{name}.yaml"
    if file.suffix not in name and not file.is_file():
        known = [path.stem for path in profiles_dir().glob("*.yaml")]
        raise UserError(f"--cluster {name}: no such profile in {profiles_dir()}, {did_you_mean(name, known)}")
    try:
        profile = parse(Profile, load_yaml(file))
        _check(profile)
    except KeyPathError as error:
        raise UserError(f"{file}: {error}") from None
    runs = profile.runs and os.path.expandvars(os.path.expanduser(profile.runs))
    if "$" in (runs or ""):
        raise UserError(f"{file}: runs: '{runs}' names a variable that is not set")
    return replace(profile, runs=runs)


def minutes(time: str) -> int:
    """A time limit in whole minutes, rounded up."""
    if time.isdigit():
        return int(time)
    days, _, clock = time.rpartition("-")
    hours, mins, seconds = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)


def _check(profile: Profile) -> None:
    """Raises KeyPathError for values that would lose work or start the wrong number of processes."""
    if profile.pack and profile.sample_shards > 1:
        raise KeyPathError("sample_shards", "a packed job draws all images of an evaluation itself: set pack: false")
    for stage in BLOCKS:
        wants, path = profile.resources(stage), f"stages.{stage}"
        if wants.gpu_type and wants.gpus_per_node is None:
            raise KeyPathError(f"{path}.gpu_type", "needs gpus_per_node")
        if (seconds := profile.signal_seconds) >= 60 * minutes(wants.time or ""):
            raise KeyPathError("signal_seconds", f"{seconds} is not below the time of stage {stage}, {wants.time}")
        if stage not in MULTIPROCESS and (wants.nodes or 1) * (wants.tasks_per_node or 1) > 1:
            raise KeyPathError(path, "runs in one process: set nodes and tasks_per_node to 1 here")
