"""Cluster profiles: ``slurm/clusters/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mar_bench.config.parse import Count, CountOrZero, KeyPathError, OneOf, Positive, parse
from mar_bench.config.stages import RESOURCES, STAGES
from mar_bench.config.yaml_layers import load_yaml
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import shipped

BLOCKS = (*RESOURCES, "table")  # keys of ``stages``
MULTIPROCESS = {stage.resources for stage in STAGES.values() if stage.multiprocess}
RESERVED = {  # sbatch options that have a key of their own, or that mar-bench submit sets
    "array", "signal", "time", "nodes", "mem", "partition", "account", "qos", "constraint", "exclusive", "gres",
    "gpus-per-node", "cpus-per-task", "ntasks", "ntasks-per-node", "dependency", "job-name", "output", "error",
    "requeue", "no-requeue", "kill-on-invalid-dep", "open-mode", "wckey", "parsable", "wait", "test-only", "wrap",
    "export", "quiet",
}  # fmt: skip
Block = Annotated[str, OneOf("stage", BLOCKS)]


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
    time: str | None = None  # minutes, H:MM:SS or D-HH:MM:SS
    exclusive: bool | None = None  # whole nodes
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other sbatch option, without its dashes


@dataclass(frozen=True)
class _AnyProfile:
    runs: str | None = None  # run root, on a disk that all nodes share; None: --runs
    device: str | None = None  # GPU name as torch reports it, under which speed is filed; None: this machine's
    pack: bool = False  # run the stages of one training in one job: where starting Python costs more than queueing
    sample_shards: Count = 1  # array elements that share the images of one evaluation, split by index


@dataclass(frozen=True)
class SlurmProfile(_AnyProfile):
    """A cluster managed by Slurm."""

    kind: Literal["slurm"] = "slurm"
    array_parallelism: Count = 64  # elements of one array that run at a time
    signal_seconds: Count = 120  # how long before its time limit a job is told to save
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


@dataclass(frozen=True)
class ProcessesProfile(_AnyProfile):
    """The same graph on this machine: each job is a process that submitit starts."""

    kind: Literal["processes"] = "processes"
    pack: bool = True
    parallel: Count | None = None  # jobs at a time; None: cores / threads per process


@dataclass(frozen=True)
class DebugProfile(_AnyProfile):
    """The same graph in this process, one job after another, for a debugger."""

    kind: Literal["debug"] = "debug"


Profile = SlurmProfile | ProcessesProfile | DebugProfile


def profiles_dir() -> Path:
    """``$MAR_BENCH_CLUSTERS``, else the checkout's folder, else the copy inside the package."""
    return shipped("slurm/clusters", "clusters", "MAR_BENCH_CLUSTERS")


def load_profile(name: str) -> tuple[str, Profile]:
    """The name of a profile, and the profile, by its name or file. Raises UserError naming the file and the key."""
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
    else:
        known = {path.stem: path for path in sorted(profiles_dir().glob("*.yaml"))}
        if name not in known:
            raise UserError(f"--cluster {name}: no such profile in {profiles_dir()}, {did_you_mean(name, known)}")
        file = known[name]
    try:
        profile = parse(Profile, load_yaml(file))
        _check(profile)
    except KeyPathError as error:
        unquoted = error.path.endswith(".time") and error.message.startswith("expected")
        quotes = "; write it in quotes, as in '4:00:00'" if unquoted else ""
        raise UserError(f"{file}: {error.path}: {error.message}{quotes}") from None
    if profile.runs is not None:
        profile = replace(profile, runs=os.path.expandvars(os.path.expanduser(profile.runs)))
        if "$" in profile.runs:
            raise UserError(f"{file}: runs: '{profile.runs}' names a variable that is not set")
    return file.stem, profile


def minutes(time: str, path: str = "time") -> int:
    """A time limit in whole minutes, rounded up. Raises KeyPathError for another format or less than a minute.

    M:SS and H:MM look alike, so neither is accepted."""
    match = re.fullmatch(r"(\d+)|(?:(\d+)-)?(\d+):(\d\d):(\d\d)", time)
    if not match:
        raise KeyPathError(path, f"'{time}' is not a time limit: write minutes, H:MM:SS or D-HH:MM:SS")
    whole, days, hours, mins, seconds = (int(group or 0) for group in match.groups())
    total = whole + days * 1440 + hours * 60 + mins + (seconds > 0)
    if total < 1:
        raise KeyPathError(path, f"'{time}' is less than a minute")
    return total


def _check(profile: Profile) -> None:
    """Raises KeyPathError for values that do not go together."""
    if profile.pack and profile.sample_shards > 1:
        raise KeyPathError("sample_shards", "a packed job draws all images of an evaluation itself: set pack: false")
    if not isinstance(profile, SlurmProfile):
        return
    for path, block in (("job", profile.job), *((f"stages.{s}", r) for s, r in profile.stages.items())):
        if block.time is not None:
            minutes(block.time, f"{path}.time")
        for option in block.sbatch:
            if option.lstrip("-").replace("_", "-") in RESERVED:
                raise KeyPathError(f"{path}.sbatch.{option}", "is set by mar-bench submit or a key of the profile")
    if profile.job.gpu_type and not profile.job.gpus_per_node:
        raise KeyPathError("job.gpu_type", "needs job.gpus_per_node")
    for stage in BLOCKS:
        wants = profile.resources(stage)
        if (seconds := profile.signal_seconds) >= 60 * minutes(wants.time or ""):
            raise KeyPathError("signal_seconds", f"{seconds} is not below the time of stage {stage}, {wants.time}")
        if stage not in MULTIPROCESS and (wants.nodes or 1) * (wants.tasks_per_node or 1) > 1:
            raise KeyPathError(f"stages.{stage}", "runs in one process: set nodes and tasks_per_node to 1 here")
