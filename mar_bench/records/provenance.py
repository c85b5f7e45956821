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
COMMAND_VARIABLE = "MAR_BENCH_COMMAND"  # in a Slurm job: the command that submitted it


@lru_cache(maxsize=1)
def git_state() -> dict:
    """Commit of the checkout that contains the package and whether its code is modified; empty outside a checkout.

    In a snapshot: those of the checkout it was copied from."""
    root = Path(mar_bench.__file__).parents[1]
    if (root / SNAPSHOT).is_file():
        return json.loads((root / SNAPSHOT).read_text())["git"]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return {}
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", "mar_bench", "experiments", "pyproject.toml")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


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

    if not torch.cuda.is_available():
        if device == "auto":
            return cpu_name()
        raise UserError(f"compute.device '{device}': torch finds no GPU here; set compute.device=cpu or auto")
    return torch.cuda.get_device_name(torch.device("cuda" if device == "auto" else device))


def _command() -> str | None:
    """The command as typed, None if the process was not started by the command line."""
    if submitted := os.environ.get(COMMAND_VARIABLE):
        return submitted
    script = Path(sys.argv[0] if sys.argv else "")
    ours = script.name == "mar-bench" or script == Path(mar_bench.__file__).parent / "__main__.py"
    return shlex.join(["mar-bench", *sys.argv[1:]]) if ours else None


def _slurm_job() -> dict:
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else os.environ["SLURM_JOB_ID"]
    return {"slurm": {"job": job, "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0))}}


def provenance(device: str, threads: int, seconds: float) -> dict:
    """A record's provenance; ``seconds`` is the wall time of the measuring stage."""
    return {
        "mar_bench": mar_bench.__version__,
        "git": git_state(),
        "command": _command(),
        **_slurm_job(),
        "versions": {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in LIBRARIES}},
        "platform": f"{platform.system()} {platform.machine()}",
        # a digest distinguishes hosts without publishing their names
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds": round(seconds, 2),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
