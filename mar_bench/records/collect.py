"""Copy the records of other machines into one folder and set aside results of one id that disagree.

All reads and decisions precede the first write, and every write is atomic: after a kill, collect again."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mar_bench.records import record as files
from mar_bench.records.record import Record, conflicting_files, conflicting_ids
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, with_folder

LOCK = ".collect.lock"  # in the folder of records
TOLERANCE = 1e-4  # relative: metrics of the same images differ by less between machines


class Found(NamedTuple):
    """A record's file as it was read."""

    path: Path
    content: bytes
    record: Record


@dataclass
class Collection:
    """The effect of collecting on a folder of records."""

    folder: Path
    here: dict[str, Found]  # previous content of the folder
    writes: dict[str, bytes] = field(default_factory=dict)  # id -> the new bytes of its file
    aside: dict[str, dict[Path, Found]] = field(default_factory=dict)  # id -> path among the conflicts -> its content
    outcomes: list[tuple[str, str, Path]] = field(default_factory=list)  # for each file and for each id set aside
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """``12 new, 3 unchanged, 1 set aside``."""
        counts = Counter(outcome for outcome, _, _ in self.outcomes)
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))

    def changes(self) -> list[str]:
        """A line for each file that changes something."""
        return [f"{outcome}: {name} ({path})" for outcome, name, path in self.outcomes if outcome != "unchanged"]

    def conflicts(self) -> list[str]:
        """A line for each id that is set aside: its files, their first difference and the fix."""
        lines = []
        for name, aside in self.aside.items():
            first, *others = (found.record for found in aside.values())
            reason = next(filter(None, (difference(first, other) for other in others)), "no difference is left")
            lines.append(
                f"set aside: {name} ({first.task}): {reason}, in {', '.join(map(str, aside))}; move one to "
                f"{self.folder / f'{name}.json'} and delete the others, both there and in their source folders"
            )
        return lines


def collect(
    folders: list[Path],
    records: Path,
    dry_run: bool = False,
    fault: Callable[[Path], str | None] = lambda folder: None,
) -> Collection:
    """Copy the records of ``folders`` into ``records``; with ``dry_run`` only report what that would do.

    ``fault(folder)`` is what is wrong with a stage among runs, if its record is not to be trusted. Raises UserError,
    before anything is written, for a folder without records, a broken record and a stage with a fault."""
    given: dict[str, list[Found]] = defaultdict(list)
    for found in (found for folder in folders for found in _records_in(folder, records, fault)):
        given[found.record.id].append(found)
    if records.is_file():
        raise UserError(f"{records}: not a folder")
    with nullcontext() if dry_run else locks.held(with_folder(records / LOCK)):
        plan = Collection(records, {path.stem: _read(path, path.stem) for path in sorted(records.glob("*.json"))})
        for name in sorted({*given, *conflicting_ids(records)}):
            _decide(plan, name, given[name])
        for folder in map(_records_folder, folders):
            if (names := conflicting_ids(folder)) and folder.resolve() != records.resolve():
                plan.notes.append(f"{folder}: not taken, as their files disagree there: {', '.join(names)}")
        if not dry_run:
            _carry_out(plan)
    return plan


def _records_folder(folder: Path) -> Path:
    """The folder of records inside a checkout or a folder of results, or ``folder`` itself."""
    return next((folder / name for name in ("results/records", "records") if (folder / name).is_dir()), folder)


def _records_in(folder: Path, destination: Path, fault: Callable[[Path], str | None]) -> list[Found]:
    """The records of a folder of records, of one that contains such a folder, or of a folder of runs."""
    place = _records_folder(folder)
    itself = place.resolve() == destination.resolve()
    paths = {} if itself else {path: path.stem for path in sorted(place.glob("*.json"))}
    for task in () if paths else files.RECORDED:
        for path in sorted(folder.glob(f"{task}/*/{files.OWN}")):
            if why := fault(path.parent):
                raise UserError(f"{path.parent}: {why}; {files.HINT_OWN}")
            paths[path] = path.parent.name
    if not paths:
        why = "no records in it" if place.is_dir() else "not a folder"
        raise UserError(f"{place}: {'is the folder of records itself; name another' if itself else why}")
    return [_read(path, name) for path, name in paths.items()]


def _read(path: Path, name: str) -> Found:
    """Read a file that must hold the record ``name``."""
    content = files.read_bytes(path)
    return Found(path, content, files.parse_record(path, content, name))


def _decide(plan: Collection, name: str, given: list[Found]) -> None:
    """Merge the records of one id, or set all of its results aside."""
    mine = [plan.here[name]] if name in plan.here else []
    before = {path: _read(path, name) for path in conflicting_files(plan.folder, name)}
    results = [found for found in [*mine, *given] if found.record.status == "done"]
    if before or any(difference(results[0].record, other.record) for other in results[1:]):
        folder, aside = plan.folder / files.CONFLICTS / name, plan.aside.setdefault(name, before)
        plan.outcomes.append(("set aside", name, folder))
        for found in [*mine, *results]:
            if found.content not in [other.content for other in aside.values()]:
                host = re.sub(r"\W", "-", found.record.provenance.get("host") or "unknown")[:40]
                aside[folder / f"{host}-{hashlib.sha256(found.content).hexdigest()[:12]}.json"] = found
        return
    kept = mine[0].record if mine else None
    for found in given:
        merged = found.record if kept is None else _merged(kept, found.record)
        outcome = "new" if kept is None else "unchanged" if merged == kept else "updated"
        if merged != kept:
            plan.writes[name] = found.content if merged == found.record else files.to_json(merged).encode()
        if found.record.status == "failed" and merged.status == "done":
            outcome = "failed, left out"
        plan.outcomes.append((outcome, name, found.path))
        kept = merged


def difference(one: Record, other: Record) -> str | None:
    """The first difference of two results of one id, as in ``fd_mnist5k 5 against 6.5``; None if they agree.

    Metrics are equal to TOLERANCE. Seconds never repeat, so of speed records only the protocol is compared."""
    speed = one.task == "speed"
    compared = [record.protocol if speed else record.metrics for record in (one, other)]
    for key in dict.fromkeys([*compared[0], *compared[1]]):
        first, second = (values.get(key) for values in compared)
        if first == second:
            continue
        if speed or first is None or second is None or not math.isclose(first, second, rel_tol=TOLERANCE):
            return f"{key} {first} against {second}"
    return None


def _merged(kept: Record, other: Record) -> Record:
    """A result rather than a failure; of two equal results the earlier, with the selections of both."""
    if "failed" in (kept.status, other.status):
        return other if kept.status == "failed" and other.status == "done" else kept
    first, second = sorted((kept, other), key=lambda record: str(record.provenance.get("finished") or "unknown"))
    return replace(first, selection={**second.selection, **first.selection})


def _carry_out(plan: Collection) -> None:
    """Write the decisions; a record is copied to the conflicts before its original is deleted."""
    for name, aside in plan.aside.items():
        for path, found in aside.items():
            if path != found.path:
                atomic_write(with_folder(path), found.content)
        if name in plan.here:
            _unchanged(plan, name).unlink()
    for name, content in plan.writes.items():
        atomic_write(_unchanged(plan, name), content)


def _unchanged(plan: Collection, name: str) -> Path:
    """The path of an id; raises if its file has changed since it was read: a run may have published meanwhile."""
    path, before = plan.folder / f"{name}.json", plan.here.get(name)
    if (path.read_bytes() if path.is_file() else None) != (before and before.content):
        raise UserError(f"{path}: changed while records were being collected; run the same command again")
    return path
