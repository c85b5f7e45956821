"""Provenance of a record: code, versions, machine. Imports torch inside one function only."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import mar_bench
from mar_bench.utils.errors import UserError

LIBRARIES = ("torch", "timm", "torch-fidelity", "vector-quantize-pytorch", "numpy", "scipy")

SNAPSHOT = "snapshot.json"  # beside a copy of the package: the checkout it was copied from
PLUGINS = "mar_bench.plugins"  # the entry points of packages that add to the suite
COMMAND_VARIABLE = "MAR_BENCH_COMMAND"  # in a Slurm job: the command that submitted it


@lru_cache(maxsize=1)
def git_state() -> dict:
    """Commit of the checkout that contains the package and whether its code is modified; empty outside a checkout.

    In a snapshot: the state of the checkout it was copied from."""
    root = Path(mar_bench.__file__).parents[1]
    if (root / SNAPSHOT).is_file():
        return json.loads((root / SNAPSHOT).read_text())["git"]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {}
        changes = git("status", "--porcelain", "--", "mar_bench", "experiments", "pyproject.toml")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {}


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slurm_job() -> tuple[str, int] | None:
    """The Slurm job that this process belongs to and how often it was restarted; None outside Slurm."""
    env = os.environ
    array, element = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else env.get("SLURM_JOB_ID")
    return (job, int(env.get("SLURM_RESTART_COUNT", 0))) if job else None


@lru_cache(maxsize=1)
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=8)
def device_name(device: str = "auto") -> str:
    """The name of the device that ``compute.device`` selects on this machine."""
    if device == "cpu" or (device == "auto" and not Path("/dev/nvidiactl").exists()):
        return cpu_name()
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device("cuda" if device == "auto" else device))
    if device == "auto":
        return cpu_name()
    raise UserError(f"compute.device '{device}': torch finds no GPU here; set compute.device=cpu or auto")


def _plugins() -> dict[str, str]:
    """The packages that add parts or experiments, with their versions."""
    points = importlib.metadata.entry_points(group=PLUGINS)
    return {point.dist.name: point.dist.version for point in points if point.dist}


def provenance(device: str, threads: int, seconds: float) -> dict:
    """A record's provenance; ``seconds`` is the wall time of the measuring stage."""
    script, job = Path(sys.argv[0] if sys.argv else ""), slurm_job()
    typed = script.name == "mar-bench" or script == Path(mar_bench.__file__).parent / "__main__.py"
    return {
        "mar_bench": mar_bench.__version__,
        "git": git_state(),
        "command": os.environ.get(COMMAND_VARIABLE) or (shlex.join(["mar-bench", *sys.argv[1:]]) if typed else None),
        **({"slurm": {"job": job[0], "restarts": job[1]}} if job else {}),
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in LIBRARIES}},
        **({"plugins": plugins} if (plugins := _plugins()) else {}),
        "platform": f"{platform.system()} {platform.machine()}",
        # a digest distinguishes hosts without publishing their names
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds": round(seconds, 2),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
