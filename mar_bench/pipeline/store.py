"""Run and record folders: their files, when a stage counts as finished, and how records are published."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mar_bench.config.ids import Run
from mar_bench.config.parse import as_tree
from mar_bench.records.provenance import provenance
from mar_bench.records.record import PREVIEW, Record, Records, read_record, records_dir, write_record
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

MARKER = "stage.json"
SUMMARY, FITTED, EXTRACTOR = "summary.json", "tokenizer.safetensors", "extractor.safetensors"
REFERENCE, HELDOUT = "reference.npz", "heldout.npz"
STATISTICS, SEEN = "statistics.npz", "seen.safetensors"  # of scored images; features and logits if they are kept
CHECKPOINTS = ("checkpoint*.pt", ".damaged-checkpoint*.pt")


@dataclass(frozen=True)
class Places:
    """``runs`` holds checkpoints, latents, samples and logs (large, ignored by git), ``records`` the results."""

    runs: Path
    records: Path

    def folder(self, kind: str, stage_id: str) -> Path:
        return self.runs / kind / stage_id

    def finished(self, kind: str, stage_id: str, owner: str) -> Path:
        """The folder of a finished stage. Raises UserError if it is missing or incomplete."""
        if not is_sound(folder := self.folder(kind, stage_id)):
            raise UserError(
                f"{owner}: its {kind} ({stage_id}) is missing or incomplete in {self.runs}; make it with "
                "mar-bench run, or name another folder with --runs"
            )
        return folder

    def check_writable(self) -> None:
        """Create both folders. Raises UserError if one cannot be written to."""
        for option, folder in (("--runs", self.runs), ("--records", self.records)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UserError(f"{option} {folder}: cannot be written to ({error.strerror}); choose another") from None


def default_places(runs: str | None, records: str | None) -> Places:
    """Options, else environment variables, else ./runs, and results/records in a checkout or ./records elsewhere."""
    return Places(Path(runs or os.environ.get("MAR_BENCH_RUNS") or "runs"), records_dir(records))


def is_sound(folder: Path) -> bool:
    """Whether a stage's marker exists and every file it lists still has its recorded size."""
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def mark_done(folder: Path, seconds: float) -> None:
    """Write the marker, last of all files: its presence means the stage is complete. Then delete checkpoints."""
    checkpoints = {path for pattern in CHECKPOINTS for path in folder.glob(pattern)}
    listed = {p for p in folder.rglob("*") if p.is_file() and p.name != MARKER and not p.name.startswith(".")}
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(listed - checkpoints)}
    atomic_write(folder / MARKER, json.dumps({"files": files, "seconds": round(seconds, 2)}, indent=1) + "\n")
    for path in checkpoints:
        path.unlink()


def status(run: Run, places: Places, records: Records) -> str:
    """``done``, ``failed`` or ``missing``; a published record counts as done."""
    recorded = records[run.id].status if run.id in records else "missing"
    return "done" if is_sound(places.folder(run.task, run.id)) else recorded


def previews(runs: dict[str, Run], places: Places) -> dict[str, np.ndarray]:
    """Decoded images uint8 (N, C, H, W) of the rows whose output is in ``places.runs``."""
    import numpy as np

    folders = {row: places.folder(run.task, run.id) for row, run in runs.items()}
    return {row: np.load(folder / PREVIEW) for row, folder in folders.items() if is_sound(folder)}


def publish(runs: list[Run], places: Places) -> None:
    """Copy finished records from ``runs`` to ``records`` unless they are there already.

    A cell chosen by a sweep may already have been measured for another table; its record then gains the choice."""
    for run in runs:
        source = places.folder(run.task, run.id) / "record.json"
        target = places.records / f"{run.id}.json"
        if is_sound(source.parent) and not (target.is_file() and read_record(target).status == "done"):
            write_record(places.records, read_record(source, run.id))
        if run.choice and target.is_file():
            record, metric = read_record(target), run.choice["metric"]  # two tables may choose one cell in two ways
            if record.selection.get(metric) != run.choice:
                write_record(places.records, replace(record, selection={**record.selection, metric: run.choice}))


def new_record(run: Run, seconds: float, status: str = "done", **content: Any) -> Record:
    """A record of a run on this machine; ``content``: the other fields of Record."""
    about = provenance(run.spec.compute.device, run.spec.compute.threads, seconds)
    return Record(run.task, status, run.ids, as_tree(run.spec), provenance=about, **content)


def record_failure(run: Run, places: Places, error: str, seconds: float) -> None:
    """Publish a record with status "failed"; it never replaces a result."""
    write_record(places.records, new_record(run, seconds, "failed", error=error))
