"""Rank discovery and process-group setup for jobs started by torchrun or srun."""

from __future__ import annotations

import atexit
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mar_bench.utils.errors import UserError, shortened

PATIENCE = timedelta(days=2)  # ranks wait while rank 0 measures; the launcher ends the job if a rank dies
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")  # SLURM_NTASKS is also set in batch scripts


@dataclass(frozen=True)
class World:
    """The rank of this process among ``size``; ``local_rank`` is its rank on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: range) -> range:
        """This rank's consecutive share of ``items``. Raises UserError if they cannot be split evenly."""
        if len(items) % self.size:
            raise UserError(f"train.batch_size {len(items)} cannot be split over {self.size} processes evenly")
        each = len(items) // self.size
        return items[self.rank * each : (self.rank + 1) * each]

    def agreed(self, value: Any) -> Any:
        """Rank 0's value on every rank, whatever the others pass; acts as a barrier."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.mean(flag) > 0

    def mean(self, value: float) -> float:
        """The mean over ranks."""
        total = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.item() / self.size

    def wait(self) -> None:
        self.agreed(None)


ALONE = World()


def world_of(environ: Mapping[str, str] = os.environ) -> World:
    """The World set up by torchrun or by an srun step with several tasks; otherwise a single process.

    Raises UserError if the variables are incomplete or inconsistent."""
    names = TORCHRUN if "WORLD_SIZE" in environ else SLURM
    if names[1] not in environ:
        return ALONE
    found = {name: environ.get(name, "") for name in names}
    if not all(value.isdecimal() for value in found.values()) or int(found[names[0]]) >= int(found[names[1]]):
        words = " ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(f"{words}: incomplete or inconsistent for a multi-process job; use torchrun or srun")
    return World(*map(int, found.values()))


def join(world: World) -> None:
    """Initialise the process group, with one GPU per rank if there are any. Raises UserError if that fails."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = _meeting_point(os.environ)
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=PATIENCE)
    except (ValueError, TypeError, RuntimeError) as error:  # no port, a port in use, an unknown host
        words = " ".join(f"{name}={os.environ.get(name, '')}" for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = shortened(str(error), 200)
        raise UserError(f"{words}: the processes cannot meet ({reason}); use torchrun, or unset both in srun") from None
    atexit.register(dist.destroy_process_group)


def _meeting_point(environ: Mapping[str, str]) -> tuple[str, str]:
    """Address and port of a step's first task; the port depends on job and step, so steps do not collide."""
    nodes = environ.get("SLURM_STEP_NODELIST", "localhost")
    if "[" in nodes or "," in nodes:
        words = ["scontrol", "show", "hostnames", nodes]
        nodes = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    job, step = (int(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return nodes.split()[0], str(20_000 + (37 * job + step) % 20_000)
