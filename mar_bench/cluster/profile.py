"""What a user says once about a cluster: ``slurm/clusters/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mar_bench.config.layers import load_yaml
from mar_bench.config.parse import KeyPathError, parse
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import shipped

STAGES = ("tokenizer", "latents", "extractor", "train", "sample", "measure", "speed", "table")
SHARED = ("latents", "train", "sample")  # that several processes may do together
OURS = {  # what sbatch is told by other keys or by what we do, and must not be told twice
    "array": "array_parallelism", "dependency": "the graph", "job-name": "the submission", "output": "the submission",
    "error": "the submission", "signal": "signal_seconds", "time": "time", "nodes": "nodes", "mem": "memory_gb",
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "exclusive": "exclusive",
    "gpus-per-node": "gpus_per_node", "gres": "gpus_per_node and gpu_type", "cpus-per-task": "cpus_per_task",
    "ntasks-per-node": "tasks_per_node", "requeue": "what every job is", "no-requeue": "what no job is",
    "kill-on-invalid-dep": "the graph", "open-mode": "the submission", "wckey": "the submission",
    "parsable": "the submission", "wait": "the submission", "test-only": "--dry-run", "ntasks": "tasks_per_node",
    "wrap": "the submission", "export": "the submission", "quiet": "the submission",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What one job asks Slurm for. None: what the block ``job`` says, and there Slurm's own default."""

    partition: str | None = None  # one, or several with commas between
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int | None = None
    tasks_per_node: int | None = None  # processes that share a stage; None: one a GPU where a stage can be shared
    gpus_per_node: int | None = None
    gpu_type: str | None = None  # as in --gres=gpu:<type>:<n>
    cpus_per_task: int | None = None
    memory_gb: float | None = None  # a task; a node has to have it for all of its tasks
    time: str | None = None  # minutes, H:MM:SS or D-HH:MM:SS
    exclusive: bool | None = None  # the node for itself
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch, without its dashes


@dataclass(frozen=True)
class SlurmProfile:
    """A cluster that Slurm runs."""

    kind: Literal["slurm"] = "slurm"
    runs: str | None = None  # run root, on a disk that all nodes share; None: --runs
    device: str | None = None  # the GPU's name as torch gives it, under which speed is filed; None: this machine's
    pack: bool = False  # stages of one training share a job: where starting Python costs more than waiting
    sample_shards: int = 1  # array elements over which the images of one evaluation are split, by index
    array_parallelism: int = 64  # elements of one array that run at a time
    signal_seconds: int = 120  # before its time limit a job is told to save
    max_timeouts: int = 50  # times that a job may reach its time limit and be queued again
    python: str | None = None  # a shell command; None: the Python that submits
    setup: tuple[str, ...] = ()  # shell lines before it: modules, environments
    job: Resources = field(default_factory=Resources)
    stages: dict[str, Resources] = field(default_factory=dict)  # what is different in a stage

    def resources(self, stage: str) -> Resources:
        """What a job of a stage asks for, every default filled in that is ours to fill."""
        own = self.stages.get(stage, Resources())
        changed = {f.name: v for f in fields(own) if f.name != "sbatch" and (v := getattr(own, f.name)) is not None}
        merged = replace(self.job, **changed, sbatch={**self.job.sbatch, **own.sbatch})
        shared = stage in SHARED
        return replace(
            merged,
            nodes=merged.nodes or 1,
            tasks_per_node=merged.tasks_per_node or (max(1, merged.gpus_per_node or 0) if shared else 1),
            time=merged.time or "60",
        )


@dataclass(frozen=True)
class ProcessesProfile:
    """The same graph on this machine, every job a process that submitit starts."""

    kind: Literal["processes"] = "processes"
    runs: str | None = None
    device: str | None = None
    pack: bool = True
    sample_shards: int = 1
    parallel: int | None = None  # jobs at a time; None: cores / threads of a process

    def resources(self, stage: str) -> Resources:
        return Resources()


@dataclass(frozen=True)
class DebugProfile:
    """The same graph in this very process, one job after another, for a debugger."""

    kind: Literal["debug"] = "debug"
    runs: str | None = None
    device: str | None = None
    pack: bool = False
    sample_shards: int = 1

    def resources(self, stage: str) -> Resources:
        return Resources()


Profile = SlurmProfile | ProcessesProfile | DebugProfile


def profiles_dir() -> Path:
    """``$MAR_BENCH_CLUSTERS``, else the folder of the checkout, else the copy inside the package."""
    return shipped("slurm/clusters", "clusters", "MAR_BENCH_CLUSTERS")


def load_profile(name: str) -> tuple[str, Profile]:
    """A profile by its name or its file, and its name. Raises UserError naming the file and the key."""
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
    """A time limit as Slurm writes it, in whole minutes. Raises KeyPathError for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", str(time))
    if not match:
        raise KeyPathError(path, f"'{time}' is no time: minutes, H:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(g) if g is not None else None for g in match.groups())
    if days is not None:
        total = days * 1440 + first * 60 + (second or 0) + (1 if third else 0)
    elif second is None:
        total = first
    elif third is None:  # which Slurm reads as M:SS, and people as hours
        ways = f"0:{first:02d}:{second:02d} for minutes, {first}:{second:02d}:00 for hours"
        raise KeyPathError(path, f"'{time}' may be read both ways: write {ways}")
    else:
        total = first * 60 + second + (1 if third else 0)
    if total < 1:
        raise KeyPathError(path, f"'{time}' is less than a minute")
    return total


def _check(profile: Profile) -> None:
    for name in ("sample_shards", "array_parallelism", "signal_seconds", "parallel"):
        if (value := getattr(profile, name, None)) is not None and value < 1:
            raise KeyPathError(name, f"{value} is less than 1")
    if profile.pack and profile.sample_shards > 1:
        raise KeyPathError(
            "sample_shards", "images are not split where a training shares a job with them: set pack: false"
        )
    if not isinstance(profile, SlurmProfile):
        return
    if profile.max_timeouts < 0:
        raise KeyPathError("max_timeouts", f"{profile.max_timeouts} is less than 0")
    for stage in profile.stages:
        if stage not in STAGES:
            raise KeyPathError(f"stages.{stage}", f"no such stage, {did_you_mean(stage, STAGES)}")
    for path, block in (("job", profile.job), *((f"stages.{s}", r) for s, r in profile.stages.items())):
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("cpus_per_task", 1), ("gpus_per_node", 0)):
            if (value := getattr(block, name)) is not None and value < least:
                raise KeyPathError(f"{path}.{name}", f"{value} is less than {least}")
        if block.memory_gb is not None and block.memory_gb <= 0:
            raise KeyPathError(f"{path}.memory_gb", f"{block.memory_gb} is not above 0")
        if block.time is not None:
            minutes(block.time, f"{path}.time")
        for option in block.sbatch:
            if (plain := option.lstrip("-").replace("_", "-")) in OURS:
                raise KeyPathError(f"{path}.sbatch.{option}", f"is set by {OURS[plain]}")
    if profile.job.gpu_type and not profile.job.gpus_per_node:
        raise KeyPathError("job.gpu_type", "says which GPUs, and job.gpus_per_node says that there are none")
    for stage in STAGES:
        wants = profile.resources(stage)
        if profile.signal_seconds >= 60 * minutes(wants.time):
            which = f"the time of stage {stage}, {wants.time}"
            raise KeyPathError("signal_seconds", f"{profile.signal_seconds} is not below {which}")
        if stage not in SHARED and wants.nodes * wants.tasks_per_node > 1:
            raise KeyPathError(
                f"stages.{stage}", "this stage is work for one process: set nodes and tasks_per_node to 1 here"
            )
