"""Cluster profiles: ``slurm/clusters/*.yaml`` as frozen dataclasses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mar_bench.config.parse import (
    Few,
    FilePath,
    KeyPathError,
    Line,
    OneOf,
    Rule,
    Word,
    between,
    parse,
)
from mar_bench.config.stages import RESOURCES, STAGES
from mar_bench.config.yaml_layers import is_yaml, load_yaml, yaml_files
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import expanded, shipped

BLOCKS = (*RESOURCES, "table")  # keys of ``stages``
MULTIPROCESS = {stage.resources for stage in STAGES.values() if stage.multiprocess}
# sbatch options on which submit relies, where another value would lose work, and those that are keys of a profile
TAKEN = (
    "account array constraint cpus-per-task dependency error exclusive export gpus-per-node help job-name "
    "kill-on-invalid-dep no-requeue nodes ntasks ntasks-per-node open-mode output parsable partition qos requeue "
    "signal test-only time usage version wait wrap"
)
_SHORT = (
    "A=account a=array B=extra-node-info b=begin C=constraint c=cpus-per-task D=chdir d=dependency e=error F=nodefile "
    "G=gpus H=hold h=help i=input J=job-name k=no-kill L=licenses M=clusters m=distribution N=nodes n=ntasks "
    "O=overcommit o=output p=partition Q=quiet q=qos S=core-spec s=oversubscribe t=time V=version v=verbose W=wait "
    "w=nodelist x=exclude"
)
SHORT = dict(pair.split("=") for pair in _SHORT.split())
Block = Annotated[str, OneOf("stage", BLOCKS)]
_TIME = re.compile(r"([0-9]{1,7}|([0-9]{1,4}-)?[0-9]{1,4}:[0-5][0-9]:[0-5][0-9])\Z")  # M:SS looks like H:MM
Time = Annotated[str, Rule("is no time limit: write minutes, H:MM:SS or D-HH:MM:SS", _TIME.match)]


def long_option(name: str) -> str:
    """An sbatch option as submitit takes it: ``--mail_type`` is mail-type, ``-w`` nodelist."""
    return SHORT.get(bare := name.lstrip("-"), bare.replace("_", "-"))


def _free(name: str) -> bool:
    """Whether a profile may set an option. sbatch takes abbreviations too, so the start of a taken name is taken."""
    known = re.fullmatch("[A-Za-z][A-Za-z-]+", option := long_option(name))
    return known is not None and (option == "gpus" or not any(taken.startswith(option) for taken in TAKEN.split()))


Option = Annotated[str, Rule("is no option of sbatch, or is set by mar-bench submit or a key of the profile", _free)]


@dataclass(frozen=True)
class Resources:
    """What one job requests from Slurm. None: the value of the block ``job``, or Slurm's own default there."""

    partition: Line | None = None  # one, or several separated by commas
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    nodes: Few | None = None
    tasks_per_node: Few | None = None  # None: one per GPU for stages that ranks can share, else 1
    gpus_per_node: Annotated[int, between(0, 1000)] | None = None
    gpu_type: Line | None = None  # as in --gres=gpu:<type>:<n>
    cpus_per_task: Few | None = None
    memory_gb: Annotated[float, between(0.001, 1e6)] | None = None  # per task
    time: Time | None = None
    exclusive: bool | None = None  # whole nodes
    sbatch: dict[Option, Word] = field(default_factory=dict)  # other sbatch options; "" for one without a value


@dataclass(frozen=True)
class Profile:
    """A cluster managed by Slurm."""

    kind: Literal["slurm"] = "slurm"
    runs: FilePath | None = None  # run root, on a disk that all nodes share; None: --runs
    device: Line | None = None  # GPU name as torch reports it, under which speed is recorded; None: this machine's
    pack: bool = False  # run the stages of one training in one job: where starting Python costs more than queueing
    sample_shards: Few = 1  # array elements that share the images of one evaluation, split by index

    array_parallelism: Few = 64  # elements of one array that run at a time
    signal_seconds: Annotated[int, between(1, 86_400)] = (
        120  # how long before its time limit a job gets the signal to save
    )
    max_timeouts: Annotated[int, between(0, 10_000)] = 50  # times a job may hit its time limit and be requeued
    python: Line | None = None  # a shell command; None: the Python that submits
    setup: tuple[str, ...] = ()  # shell lines before it: modules, environments
    job: Resources = field(default_factory=Resources)
    stages: dict[Block, Resources] = field(default_factory=dict)  # overrides per stage

    def resources(self, stage: str) -> Resources:
        """What a job of ``stage`` requests, with our defaults filled in."""
        own = self.stages.get(stage, Resources())
        changed = {f.name: v for f in fields(own) if f.name != "sbatch" and (v := getattr(own, f.name)) is not None}
        options = {long_option(name): value for name, value in [*self.job.sbatch.items(), *own.sbatch.items()]}
        options = {name: True if value == "" else value for name, value in options.items()}  # True: no value
        merged = replace(self.job, **changed, sbatch=options)
        tasks = max(1, merged.gpus_per_node or 0) if stage in MULTIPROCESS else 1
        defaults: dict[str, Any] = {"nodes": 1, "tasks_per_node": tasks, "time": "60"}
        return replace(merged, **{name: getattr(merged, name) or value for name, value in defaults.items()})


def profiles_dir() -> Path:
    """``$MAR_BENCH_CLUSTERS``, else the checkout's folder, else the copy inside the package."""
    return shipped("slurm/clusters", "clusters", "MAR_BENCH_CLUSTERS")


def load_profile(name: str) -> Profile:
    """A profile by its name or file. Raises UserError naming the file and the key."""
    known = yaml_files(profiles_dir())
    if not is_yaml(name) and name not in known:
        raise UserError(f"--cluster {name}: no such profile in {profiles_dir()}, {did_you_mean(name, known)}")
    file = Path(expanded(name, "--cluster")) if is_yaml(name) else known[name]
    tree = load_yaml(file)
    try:
        profile = parse(Profile, tree)
        _check(profile)
    except (KeyPathError, UserError) as error:
        raise UserError(f"{file}: {error}") from None
    return profile


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
