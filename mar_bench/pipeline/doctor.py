"""Whether this machine can run the suite: versions, device, folders, Slurm, public files, metrics of known value."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mar_bench import __version__
from mar_bench.config.plugins import installed
from mar_bench.metrics import features
from mar_bench.metrics.functions import frechet_distance, kernel_distance
from mar_bench.models.pretrained.fetch import listing
from mar_bench.pipeline.store import Places
from mar_bench.records.provenance import cores, device_name
from mar_bench.records.record import conflicting_ids
from mar_bench.utils.errors import UserError

ENOUGH = 5e9  # bytes of disk: the small scales with all their checkpoints
CLOSE = 1e-5  # relative, of a metric to its known value


class Finding(NamedTuple):
    """One line: ``state`` is ok, note (some work is not possible) or error (nothing is)."""

    state: str
    what: str
    told: str


def findings(places: Places, weights: Path) -> Iterator[Finding]:
    versions = f"mar_bench {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    yield Finding("ok", "versions", versions)
    gpu = torch.cuda.is_available()
    size = f", {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB" if gpu else f", {cores()} cores"
    limits = "" if gpu else "; no GPU: the scales smoke, tiny, desk and fashion run, the others can be planned"
    yield Finding("ok" if gpu else "note", "device", f"{device_name()}{size}{limits}")
    yield _folders(places)
    free = shutil.disk_usage(_existing(places.runs)).free
    few = f"; the small scales want {ENOUGH / 1e9:.0f} GB: name another disk with --runs" * (free <= ENOUGH)
    yield Finding("note" if few else "ok", "disk", f"{free / 1e9:,.1f} GB free for {places.runs}{few}")
    conflicts = conflicting_ids(places.records)
    count = len(list(places.records.glob("*.json")))
    aside = f"; {len(conflicts)} ids are set aside, see conflicts/ there" * bool(conflicts)
    yield Finding("note" if conflicts else "ok", "records", f"{count:,} in {places.records}{aside}")
    slurm = shutil.which("sbatch")
    yield Finding("ok" if slurm else "note", "Slurm", slurm or "sbatch is not found: run works here, submit does not")
    files = listing(weights)
    here = [row[0] for row in files if row[-1] == "yes"]
    told = f"{len(here)} of {len(files)} public files in {weights}"
    yield Finding("ok" if here else "note", "weights", f"{told}; the scales gpu and paper need them: mar-bench fetch")
    scorers = ["inception", "efficientnet_lite0", *features.plugins()]
    told = f"{', '.join(installed()) or 'none'}; extractors of eval: {', '.join(scorers)}"
    yield Finding("ok", "plugins", told)
    yield from _metrics()


def _folders(places: Places) -> Finding:
    existing = places.runs.exists(), places.records.exists()
    if not all(existing):
        return Finding("ok", "folders", f"{places.runs} and {places.records} are made by the first run")
    try:
        places.check_writable()
    except UserError as error:
        return Finding("error", "folders", str(error))
    return Finding("ok", "folders", f"{places.runs} and {places.records} can be written to")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _metrics() -> Iterator[Finding]:
    """Distances whose values are known: of two Gaussians, and of two sets by the definition of the kernel."""
    one = {"mu": np.zeros(3), "sigma": np.diag([1.0, 4.0, 9.0])}
    two = {"mu": np.array([1.0, 2.0, 2.0]), "sigma": np.diag([4.0, 4.0, 1.0])}
    known = 9 + 1 + 0 + 4  # squared distance of the means, then of the standard deviations
    yield _compared("FID of two Gaussians", frechet_distance(one, two), known)
    x = torch.arange(8.0).reshape(4, 2)
    y = x.square() / 8 + 1
    (xx, yy, xy), pairs = [((a @ b.T) / 2 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))], 4 * 3
    known = ((xx.sum() - xx.trace() + yy.sum() - yy.trace()) / pairs - 2 * xy.mean()).item()
    yield _compared("KID of two sets", kernel_distance(x, y, 1, 4)[0], known)


def _compared(what: str, found: float, known: float) -> Finding:
    if abs(found - known) <= CLOSE * abs(known):
        return Finding("ok", what, f"{found:.6g}, as known")
    return Finding("error", what, f"{found:.6g} instead of {known:.6g}: reinstall torch, numpy and scipy")
