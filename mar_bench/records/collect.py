"""Copy the records of other machines into one folder; results of one id that disagree are set aside.

Everything is read and decided before anything is written, and every write is atomic: after a kill, collect again."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mar_bench.records.record import (
    CONFLICTS,
    RECORDED,
    Record,
    conflicting_files,
    conflicting_ids,
    parse_record,
    to_json,
)
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, reading

LOCK = ".collect.lock"  # in the folder of records
PLACES = ("results/records", "records")  # in a checkout, in a folder of results
TOLERANCE = 1e-4  # relative: metrics of the same images differ by less between machines

NEW, UPDATED, SAME, LEFT_OUT, SET_ASIDE = "new", "updated", "unchanged", "failed, left out", "set aside"


@dataclass(frozen=True)
class Found:
    """A record's file as it was read."""

    path: Path
    content: bytes
    record: Record


@dataclass
class Collection:
    """What collecting does to a folder of records.

    ``here``: what the folder held; ``writes``: id -> the new bytes of its file; ``aside``: id -> the files that must
    lie among the conflicts, by their path there; ``outcomes``: what became of each file (outcome, id, path), and once
    of each id set aside; ``notes``: what else the user must know."""

    folder: Path
    here: dict[str, Found]
    writes: dict[str, bytes] = field(default_factory=dict)
    aside: dict[str, dict[Path, Found]] = field(default_factory=dict)
    outcomes: list[tuple[str, str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """``12 new, 3 unchanged, 1 set aside``."""
        counts = Counter(outcome for outcome, _, _ in self.outcomes)
        return ", ".join(f"{counts[key]} {key}" for key in (NEW, UPDATED, SAME, LEFT_OUT, SET_ASIDE) if counts[key])

    def changes(self) -> list[str]:
        """A line for each file that does not leave everything as it is."""
        return [f"{outcome}: {name} ({path})" for outcome, name, path in self.outcomes if outcome != SAME]

    def conflicts(self) -> list[str]:
        """A line for each id that is set aside: the files, their first difference and the way out."""
        return [_conflict_line(self.folder / f"{name}.json", files) for name, files in self.aside.items()]


def collect(folders: list[Path], records: Path, dry_run: bool = False) -> Collection:
    """Bring the records of ``folders`` into ``records``; with ``dry_run`` only report what that would do.

    Raises UserError, before anything is written, for a folder without records and for a broken record."""
    incoming = [found for folder in folders for found in _records_in(folder, records)]
    if records.is_file():
        raise UserError(f"{records}: not a folder")
    with nullcontext() if dry_run else locks.held(records / LOCK):
        here = {path.stem: _read(path, path.stem) for path in sorted(records.glob("*.json"))}
        plan = Collection(records, here)
        for name in sorted({*(found.record.id for found in incoming), *conflicting_ids(records)}):
            _decide(plan, name, [found for found in incoming if found.record.id == name])
        for place in map(_place_of, folders):
            if (names := conflicting_ids(place)) and place.resolve() != records.resolve():
                plan.notes.append(f"{place}: not taken, as their files disagree there: {', '.join(names)}")
        if not dry_run:
            _carry_out(plan)
    return plan


# --- reading --------------------------------------------------------------------------------------------


def _records_in(folder: Path, destination: Path) -> list[Found]:
    """The records of a folder of records, of one that contains such a folder, or of a folder of runs.

    Raises UserError where there are none, where they are those of ``destination``, and for a broken file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    place = _place_of(folder)
    is_destination = place.resolve() == destination.resolve()
    files = {} if is_destination else {path: path.stem for path in sorted(place.glob("*.json"))}
    if not files:
        runs = (path for task in RECORDED for path in sorted(folder.glob(f"{task}/*/record.json")))
        files = {path: path.parent.name for path in runs}
    if not files:
        reason = "no records in it, neither <eval_id>.json nor generation/<eval_id>/record.json"
        itself = "is the folder of records itself; name another one, or another --records"
        raise UserError(f"{place}: {itself if is_destination else reason}")
    return [_read(path, name) for path, name in files.items()]


def _place_of(folder: Path) -> Path:
    """The folder of records inside ``folder``, or ``folder`` itself."""
    return next((folder / name for name in PLACES if (folder / name).is_dir()), folder)


def _read(path: Path, name: str) -> Found:
    """Read a file that must hold the record ``name`` and finite numbers only."""
    with reading(path, "record", "restore it or move it elsewhere"):
        content = path.read_bytes()
        record = parse_record(path, content)
        to_json(record)  # raises ValueError for a number that is not finite
        if record.id != name:
            raise ValueError(f"it holds record {record.id}")
    return Found(path, content, record)


# --- deciding -------------------------------------------------------------------------------------------


def _decide(plan: Collection, name: str, given: list[Found]) -> None:
    """Merge the records of one id, or set all of its results aside."""
    here = plan.here.get(name)
    before = {path: _read(path, name) for path in conflicting_files(plan.folder, name)}
    results = [found for found in [here, *given] if found and found.record.status == "done"]
    if before or any(difference(results[0].record, other.record) for other in results[1:]):
        plan.outcomes.append((SET_ASIDE, name, plan.folder / CONFLICTS / name))
        files = plan.aside[name] = dict(before)
        known = {found.content for found in files.values()}
        for found in [here, *results] if here else results:
            if found.content not in known:  # each content once, whatever its file is called
                known.add(found.content)
                digest = hashlib.sha256(found.content).hexdigest()[:12]
                host = found.record.provenance.get("host", "unknown")
                files[plan.folder / CONFLICTS / name / f"{host}-{digest}.json"] = found
        return
    kept = here.record if here else None
    content = old = here.content if here else None
    for found in given:
        merged = found.record if kept is None else _merged(kept, found.record)
        outcome = NEW if kept is None else SAME if merged == kept else UPDATED
        if found.record.status == "failed" and merged.status == "done":
            outcome = LEFT_OUT
        if merged != kept:
            content = found.content if merged == found.record else to_json(merged).encode()
        kept = merged
        plan.outcomes.append((outcome, name, found.path))
    if content is not None and content != old:
        plan.writes[name] = content


def difference(one: Record, other: Record) -> str | None:
    """Why two results of one id are not the same, ``fd_mnist5k 5 against 6.5``; None where they are.

    Metrics are equal to TOLERANCE. Seconds never repeat, so of speed records only the protocol is compared."""
    is_speed = one.task == "speed"
    compared: list[dict[str, Any]] = [record.protocol if is_speed else record.metrics for record in (one, other)]
    for key in dict.fromkeys([*compared[0], *compared[1]]):
        first, second = (values.get(key) for values in compared)
        if first == second:
            continue
        if is_speed or first is None or second is None or not math.isclose(first, second, rel_tol=TOLERANCE):
            return f"{key} {first} against {second}"
    return None


def _merged(kept: Record, other: Record) -> Record:
    """A result instead of a failure; of two equal results the earlier, with the selections of both."""
    if "failed" in (kept.status, other.status):
        return other if kept.status == "failed" and other.status == "done" else kept
    first, second = sorted((kept, other), key=lambda record: str(record.provenance.get("finished") or "unknown"))
    return replace(first, selection={**second.selection, **first.selection})


# --- writing --------------------------------------------------------------------------------------------


def _carry_out(plan: Collection) -> None:
    """Write what was decided; a record lies among the conflicts before it leaves its own place."""
    for name, files in plan.aside.items():
        for path, found in files.items():
            if path != found.path:
                atomic_write(path, found.content)
        if name in plan.here:
            _unchanged(plan, name).unlink()
    for name, content in plan.writes.items():
        atomic_write(_unchanged(plan, name), content)


def _unchanged(plan: Collection, name: str) -> Path:
    """The path of an id, whose file must still be as it was read: a run may have published meanwhile."""
    path, before = plan.folder / f"{name}.json", plan.here.get(name)
    if (path.read_bytes() if path.is_file() else None) != (before and before.content):
        raise UserError(f"{path}: was written while its folder was collected into; run the same command again")
    return path


def _conflict_line(home: Path, files: dict[Path, Found]) -> str:
    paths, records = list(files), [found.record for found in files.values()]
    reasons = (difference(records[0], other) for other in records[1:])
    reason = next(filter(None, reasons), "no difference is left")
    return (
        f"set aside: {home.stem} ({records[0].task}): {reason}, in {', '.join(map(str, paths))}; move one to {home} "
        "and delete the others, there and where they came from"
    )
