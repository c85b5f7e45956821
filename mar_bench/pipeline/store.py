"""Run and record folders: their files, when a stage counts as finished, and how records are published."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mar_bench.config.ids import Run
from mar_bench.config.parse import as_tree
from mar_bench.config.stages import STAGES
from mar_bench.records.provenance import provenance
from mar_bench.records.record import PREVIEW, Record, Records, read_record, records_dir, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import DiskError, UserError
from mar_bench.utils.files import atomic_write, path_variable, sha256_of, writing

if TYPE_CHECKING:
    import numpy as np

MARKER = "stage.json"
SUMMARY, LOG = "summary.json", "metrics.jsonl"
FITTED, EXTRACTOR = "tokenizer.safetensors", "extractor.safetensors"
REFERENCE, HELDOUT = "reference.npz", "heldout.npz"
STATISTICS, SEEN = "statistics.npz", "seen.safetensors"  # of scored images; features and logits if they are kept
CHECKPOINTS = ("checkpoint*.pt", ".damaged-checkpoint*.pt", ".checkpoint*")
DAMAGED = "damaged"  # in the run root: stages that were set aside

_checked: set[tuple[Path, str]] = set()  # stages whose files this process has compared, by folder and marker


@dataclass(frozen=True)
class Places:
    """``runs`` holds checkpoints, latents, samples and logs (large, ignored by git), ``records`` the results."""

    runs: Path
    records: Path

    def folder(self, kind: str, stage_id: str) -> Path:
        return self.runs / kind / stage_id

    def stage(self, kind: str, run: Run) -> Path:
        """The folder of a stage that a run needs."""
        return self.folder(kind, run.ids[STAGES[kind].id_key])

    def make_folder(self, kind: str, stage_id: str) -> Path:
        """A stage's folder, made if it is missing. Raises DiskError if the run root is gone."""
        with writing(folder := self.folder(kind, stage_id)):
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Raises DiskError in place of any error in the block if the run root is gone: files that are missing then are
        not the stage's fault."""
        try:
            yield
        except Exception:
            if (self.runs / "locks").is_dir():
                raise
            gone = f"{self.runs}: cannot be found any more"
            raise DiskError(f"{gone}; finished work is safe: mount the disk again, then repeat the command") from None

    def finished(self, kind: str, stage_id: str, owner: str, run: Run | None = None) -> Path:
        """The folder of a finished stage. Raises UserError if it is missing, incomplete or damaged; for a ``run``, also
        if a stage that it was made from has another result now."""
        folder = self.folder(kind, stage_id)
        fault = self.fault(folder, run) if run else fault_in(folder)
        why = f"is damaged ({fault})" if fault else "is missing or incomplete"
        if fault or not is_sound(folder):
            raise UserError(
                f"{owner}: its {kind} ({stage_id}) {why} in {self.runs}; make it with mar-bench run, or name another "
                "folder with --runs"
            )
        return folder

    def intact(self, kind: str, run: Run) -> bool:
        """Whether a stage is complete, its files are as they were written, and so is what they were made from.

        A stage that is complete but not intact is moved to ``runs/damaged``, so that it will be made again."""
        folder = self.stage(kind, run)
        if not is_sound(folder):
            return False
        if self.fault(folder, run) is None:
            _drop_checkpoints(folder)  # left by a process that was killed after it had marked the stage
            return True
        with locks.held(self.runs / "locks" / f"{folder.name}.lock"):
            if is_sound(folder) and (why := self.fault(folder, run)):  # no other process has made it again meanwhile
                aside = self.runs / DAMAGED / f"{kind}-{folder.name}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
                print(f"{folder}: {why}; moved to {aside} and made again", file=sys.stderr, flush=True)
        return False

    def inputs(self, kind: str, run: Run) -> dict[str, str]:
        """Digests of the stages that a stage is made from, directly or not, by their kind."""
        found: dict[str, str] = {}
        for need in STAGES[kind].needs:
            if (marker := read_marker(self.stage(need, run))) and (digest := content_digest(marker)):
                found |= {**marker.get("inputs", {}), need: digest}
        return found

    def fault(self, folder: Path, run: Run) -> str | None:
        """``fault_in``, or the stage that was made again with another result after this one was made from it.

        Latents do not count: a finished training stands on its own, if its tokenizer is the one that decodes."""
        if fault := fault_in(folder):
            return fault
        for kind, digest in (read_marker(folder) or {}).get("inputs", {}).items():
            now = None if kind == "latents" else read_marker(self.stage(kind, run))
            if now and content_digest(now) not in (None, digest):
                return f"its {kind} has been made again since, with another result"
        return None

    def check_writable(self) -> None:
        """Create both folders. Raises UserError if one cannot be written to.

        Only a command does, before its work. Nothing else makes ``runs``, ``records`` or ``runs/locks``, without which
        no stage starts: if their disk is unmounted, work stops instead of going on in the folder underneath."""
        places = ("--runs", self.runs), ("--runs", self.runs / "locks"), ("--records", self.records)
        for option, folder in places:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UserError(f"{option} {folder}: cannot be written to ({error.strerror}); choose another") from None


def default_places(runs: str | None, records: str | None) -> Places:
    """Options, else environment variables, else ./runs, and results/records in a checkout or ./records elsewhere."""
    return Places(Path(runs or path_variable("MAR_BENCH_RUNS") or "runs"), records_dir(records))


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The content of a stage's marker; None if there is no valid one.

    ``files``: size and sha256 of each file; ``inputs``: see ``Places.inputs``. The marker holds the name of its stage
    and its own SHA-256. Earlier versions listed sizes only."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        files, digest = marker["files"], marker.get("sha256")
        if digest is None:
            return marker if files and all(type(size) is int for size in files.values()) else None
        whole = marker["stage"] == _stage_name(folder) and digest == _digest({**marker, "sha256": None})
        return marker if whole else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def is_sound(folder: Path) -> bool:
    """Whether a stage is complete: it has a valid marker, and the files listed there have their recorded sizes.

    Cheap, for plans; whoever loads the files looks at their content too (``fault_in``)."""
    marker = read_marker(folder)
    try:
        return marker is not None and all((folder / f).stat().st_size == _size(v) for f, v in marker["files"].items())
    except OSError:
        return False


def fault_in(folder: Path) -> str | None:
    """The first file of a complete stage that is not as it was written; None if there is none, or no valid marker.

    Reads every file, but only once in a process."""
    if (marker := read_marker(folder)) is None:
        return None
    if (folder, marker.get("sha256", "")) in _checked:
        return None
    for name, about in marker["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != _size(about):
            return f"{name} is missing or has another size"
        if isinstance(about, dict) and sha256_of(path) != about["sha256"]:
            return f"{name} has another SHA-256 than when it was written"
    if "sha256" not in marker:  # of an earlier version: from now on its content counts
        with suppress(OSError):
            _write_marker(folder, list(marker["files"]), marker.get("seconds", 0.0), {})
    _checked.add((folder, (read_marker(folder) or {}).get("sha256", "")))
    return None


def content_digest(marker: dict[str, Any]) -> str | None:
    """Identifies what a stage hands to other stages: its files without logs; None for an earlier version's marker."""
    files = {name: about for name, about in marker["files"].items() if name not in (LOG, SUMMARY)}
    return _digest(files) if "sha256" in marker else None


def mark_done(folder: Path, seconds: float, inputs: dict[str, str] | None = None) -> None:
    """Write the marker, last of all files: its presence means the stage is complete. Then delete checkpoints."""
    listed = {p for p in folder.rglob("*") if p.is_file() and p.name != MARKER and not p.name.startswith(".")}
    names = [str(path.relative_to(folder)) for path in sorted(listed.difference(_checkpoints_in(folder)))]
    _write_marker(folder, names, seconds, inputs or {})
    _drop_checkpoints(folder)


def _checkpoints_in(folder: Path) -> list[Path]:
    return [path for pattern in CHECKPOINTS for path in folder.glob(pattern)]


def _drop_checkpoints(folder: Path) -> None:
    for path in _checkpoints_in(folder):
        path.unlink(missing_ok=True)


def _write_marker(folder: Path, names: list[str], seconds: float, inputs: dict[str, str]) -> None:
    files = {name: {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    marker = {"stage": _stage_name(folder), "files": files, "inputs": inputs, "seconds": round(seconds, 2)}
    marker["sha256"] = _digest({**marker, "sha256": None})
    atomic_write(folder / MARKER, json.dumps(marker, indent=1) + "\n")


def _stage_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _size(about: Any) -> int:
    return about["size"] if isinstance(about, dict) else about


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_file(kind: str, snapshot: int | None) -> str:
    """The name of a training's file of ``ema`` or ``raw`` weights: at its end, or of the EMA after a step."""
    return f"{kind}.safetensors" if snapshot is None else f"{kind}-{snapshot}.safetensors"


def status(run: Run, places: Places, records: Records) -> str:
    """``done``, ``failed`` or ``missing``; a published record counts as done."""
    recorded = records[run.id].status if run.id in records else "missing"
    return "done" if is_sound(places.folder(run.task, run.id)) else recorded


def previews(runs: dict[str, Run], places: Places) -> dict[str, np.ndarray]:
    """Decoded images uint8 (N, C, H, W) of the rows whose output is in ``places.runs``."""
    import numpy as np

    folders = {row: places.folder(run.task, run.id) for row, run in runs.items()}
    sound = {row: folder for row, folder in folders.items() if is_sound(folder) and not fault_in(folder)}
    return {row: np.load(folder / PREVIEW) for row, folder in sound.items()}


def publish(runs: list[Run], places: Places) -> None:
    """Copy finished records from ``runs`` to ``records`` unless they are there already.

    A cell chosen by a sweep may already have been measured for another table; its record then gains the choice."""
    for run in runs:
        target = places.records / f"{run.id}.json"
        published = target.is_file() and read_record(target, run.id).status == "done"
        if not published and places.intact(run.task, run):
            write_record(places.records, read_record(places.folder(run.task, run.id) / "record.json", run.id))
        if run.choice and target.is_file():
            record = read_record(target, run.id)
            metric = run.choice["metric"]  # two tables may choose one cell in two ways
            if record.selection.get(metric) != run.choice:
                write_record(places.records, replace(record, selection={**record.selection, metric: run.choice}))


def new_record(run: Run, seconds: float, status: str = "done", **content: Any) -> Record:
    """A record of a run on this machine; ``content``: the other fields of Record."""
    about = provenance(run.spec.compute.device, run.spec.compute.threads, seconds)
    return Record(run.task, status, run.ids, as_tree(run.spec), provenance=about, **content)


def record_failure(run: Run, places: Places, error: str, seconds: float) -> None:
    """Publish a record with status "failed"; it never replaces a result."""
    write_record(places.records, new_record(run, seconds, "failed", error=error))
