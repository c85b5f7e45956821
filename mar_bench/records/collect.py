"""Records of several machines in one folder: copied, joined where they are the same result, set aside where not.

Everything is read and decided before anything is written, and every write is atomic: a collection that was killed is
simply done again."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mar_bench.records.comparable import disagreement, largest_difference
from mar_bench.records.record import CONFLICTS, RECORDED, Record, disagreeing, parse_record, set_aside, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

LOCK = ".collect.lock"  # in the folder of records
PLACES = ("results/records", "records")  # in a checkout, in a folder of results
HERE = "here"  # the source of what is among the records already
DIGITS = 12  # of a file's SHA-256, in the names of files set aside

NEW, REPLICATION, INSTEAD, CHOICE, SAME, LEFT, ASIDE = (
    "new", "replication", "instead of a failure", "another choice", "same", "left out", "set aside",
)  # fmt: skip
WORDS = {  # what became of a file; one of them, several
    NEW: ("new", "new"),
    REPLICATION: ("replication", "replications"),
    INSTEAD: ("result instead of a failure", "results instead of failures"),
    CHOICE: ("told how its cell was chosen", "told how their cells were chosen"),
    SAME: ("the same", "the same"),
    LEFT: ("failure left out", "failures left out"),
    ASIDE: ("set aside", "set aside"),
}


@dataclass(frozen=True)
class Found:
    """A record's file as it was read; ``source`` is a short name of where it came from."""

    path: Path
    content: bytes
    record: Record
    source: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:DIGITS]


@dataclass
class Collection:
    """What is to be done to a folder of records.

    ``writes``: id -> the bytes of a file that is copied, or a record that was made of several;
    ``aside``: id -> all files that are to lie among the conflicts by their places, where some are still to be copied;
    ``outcomes``: what became of each file (of an id that is set aside, once), its id and where it was found;
    ``notes``: what else a user must know."""

    folder: Path
    here: dict[str, Found]
    writes: dict[str, bytes | Record] = field(default_factory=dict)
    aside: dict[str, dict[Path, Found]] = field(default_factory=dict)
    outcomes: list[tuple[str, str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """``12 new, 3 replications, 1 set aside``."""
        counts = Counter(outcome for outcome, _, _ in self.outcomes)
        return ", ".join(f"{counts[key]} {words[counts[key] > 1]}" for key, words in WORDS.items() if counts[key])

    def changes(self) -> list[str]:
        """A line for each file that is not simply the same."""
        return [f"{outcome}: {name} ({path})" for outcome, name, path in self.outcomes if outcome != SAME]

    def conflicts(self) -> list[str]:
        """A line for each id that is set aside: why, the files and their values, and the way out."""
        return [_conflict(self.folder, name, files) for name, files in self.aside.items()]


def collect(folders: list[Path], records: Path, dry_run: bool = False) -> Collection:
    """Bring the records of ``folders`` into ``records``; with ``dry_run`` only say what that would do.

    Raises UserError, before anything is written, for a folder without records and for a record that is broken."""
    incoming = [found for folder in folders for found in records_in(folder, records)]
    if records.exists() and not records.is_dir():
        raise UserError(f"{records}: a file, not a folder of records")
    with nullcontext() if dry_run else locks.held(records / LOCK):
        plan = planned(records, incoming)
        plan.notes = [
            f"{place}: not taken, as their files disagree there: {', '.join(names)}"
            for place in map(place_of, folders)
            if (names := set_aside(place)) and place.resolve() != records.resolve()
        ]
        if not dry_run:
            carry_out(plan)
    return plan


# --- reading --------------------------------------------------------------------------------------------


def records_in(folder: Path, destination: Path) -> list[Found]:
    """The records of a folder of them, of one that has such a folder, or of a folder of runs.

    Raises UserError where there are none, where they are those of ``destination``, and for a file that is broken."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
    place = place_of(folder)
    itself = place.resolve() == destination.resolve()
    files = {} if itself else {path: path.stem for path in sorted(place.glob("*.json"))}
    if not files:
        runs = (path for task in RECORDED for path in sorted(folder.glob(f"{task}/*/record.json")))
        files = {path: path.parent.name for path in runs}
    if not files and itself:
        raise UserError(f"{place}: is the folder of records itself; name another one, or another --records")
    if not files:
        wanted = f"<eval_id>.json, {', '.join(PLACES)} and, of runs, {RECORDED[0]}/<eval_id>/record.json"
        raise UserError(f"{folder}: no records in it (looked for {wanted})")
    source = _source(place)
    return [_read(path, name, source) for path, name in files.items()]


def place_of(folder: Path) -> Path:
    """Where in a folder the records lie, if they do not lie among runs."""
    return next((folder / name for name in PLACES if (folder / name).is_dir()), folder)


def _source(folder: Path) -> str:
    """``cluster-a`` of ``/data/cluster a/results/records``."""
    names = [part for part in folder.resolve().parts if part not in ("results", "records", "runs")]
    return re.sub("[^A-Za-z0-9_]+", "-", names[-1]).strip("-") or "other"


def _read(path: Path, name: str, source: str) -> Found:
    """A file that must hold the record ``name``, and finite numbers only, as others are no result."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: broken record ({error.strerror}); restore it or move it elsewhere") from None
    record = parse_record(path, content)
    if record.id != name:
        raise UserError(f"{path}: holds record {record.id}, not {name}; rename it or move it elsewhere")
    try:
        _canonical(asdict(record))
    except ValueError:
        raise UserError(f"{path}: broken record (a number is not finite); measure again or move it elsewhere") from None
    return Found(path, content, record, source)


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


# --- deciding -------------------------------------------------------------------------------------------


def planned(folder: Path, incoming: Iterable[Found]) -> Collection:
    """What is to become of the ``incoming`` records and of those that are set aside. Writes nothing."""
    here = {path.stem: _read(path, path.stem, HERE) for path in sorted(folder.glob("*.json"))}
    plan = Collection(folder, here)
    given: dict[str, list[Found]] = {}
    for found in incoming:
        given.setdefault(found.record.id, []).append(found)
    for name in sorted({*given, *set_aside(folder)}):
        _decide(plan, name, given.get(name, []))
    return plan


def _decide(plan: Collection, name: str, given: list[Found]) -> None:
    """Join the records of one id, or set them aside."""
    here = plan.here.get(name)
    before = [_read(path, name, path.stem) for path in disagreeing(plan.folder, name)]
    kept, content, outcomes = here.record if here else None, None, []
    for found in given if not before else ():
        if kept is not None and kept.status == found.record.status == "done" and disagreement(kept, found.record):
            break
        outcome, joined = _joined(kept, found.record)
        content = found.content if joined is found.record else content if joined is kept else joined
        kept = joined
        outcomes.append((outcome, name, found.path))
    else:
        if not before:
            plan.outcomes += outcomes
            if content is not None:
                plan.writes[name] = content
            return
    results = [found for found in given if found.record.status == "done"]
    plan.outcomes += [(LEFT, name, found.path) for found in given if found.record.status == "failed"]
    plan.outcomes.append((ASIDE, name, plan.folder / CONFLICTS / name))
    files = {found.path: found for found in before}
    for found in [*([here] if here else ()), *results]:  # each content once, whatever its name
        if found.digest not in {other.digest for other in files.values()}:
            files[plan.folder / CONFLICTS / name / f"{found.source}-{found.digest}.json"] = found
    plan.aside[name] = files


def _joined(kept: Record | None, other: Record) -> tuple[str, Record]:
    """What becomes of ``other``, and what stays; two results agree."""
    if kept is None:
        return NEW, other
    if kept.status == "failed" and other.status == "done":
        return INSTEAD, other
    if other.status == "failed":
        same = _measurement(kept) == _measurement(other) and kept.error == other.error
        earlier = kept.status == "failed" and not same and _age(other.provenance) < _age(kept.provenance)
        return SAME if same else LEFT, other if earlier else kept
    joined = _of_both(kept, other)
    if joined == kept:
        return SAME, kept
    return REPLICATION if len(joined.replications) > len(kept.replications) else CHOICE, joined


def _of_both(one: Record, other: Record) -> Record:
    """The earlier of two results that agree, which lists all the others, each once, and every choice of its cell."""
    first, second = sorted((one, other), key=lambda record: _age(record.provenance, record.metrics))
    every = [*first.replications, *second.replications, _measurement(second)]
    others = {_canonical([item["provenance"], item["metrics"]]): item for item in every}
    others.pop(_canonical([first.provenance, first.metrics]), None)
    replications = [
        {
            "provenance": item["provenance"],
            "metrics": item["metrics"],
            "largest_difference": largest_difference(first.metrics, item["metrics"])[1],
        }
        for item in sorted(others.values(), key=lambda item: _age(item["provenance"], item["metrics"]))
    ]
    return replace(first, replications=replications, selection={**second.selection, **first.selection})


def _measurement(record: Record) -> dict[str, Any]:
    return {"provenance": record.provenance, "metrics": record.metrics}


def _age(*measurement: dict[str, Any]) -> tuple[bool, str, str]:
    """Sorts the earliest first, then what does not say when it was, and is the same in whatever order they come."""
    finished = measurement[0].get("finished")
    return finished is None, str(finished), _canonical(measurement)


# --- writing --------------------------------------------------------------------------------------------


def carry_out(plan: Collection) -> None:
    """Write what was decided. What disagrees lies among the conflicts before it leaves the records."""
    for name, files in plan.aside.items():
        for path, found in files.items():
            if path != found.path:
                atomic_write(path, found.content)
        if name in plan.here:
            _unchanged(plan, name)
            plan.here[name].path.unlink()
    for name, content in plan.writes.items():
        path = _unchanged(plan, name)
        if isinstance(content, bytes):
            atomic_write(path, content)
        else:
            write_record(plan.folder, content)


def _unchanged(plan: Collection, name: str) -> Path:
    """The file of an id, as it was read: a run may publish meanwhile, and its record must not be lost."""
    path, before = plan.folder / f"{name}.json", plan.here.get(name)
    now = path.read_bytes() if path.is_file() else None
    if now != (before.content if before else None):
        raise UserError(f"{path}: was written while its folder was collected into; run the same command again")
    return path


# --- saying ---------------------------------------------------------------------------------------------


def _conflict(folder: Path, name: str, files: dict[Path, Found]) -> str:
    """One line on an id that is set aside."""
    results = sorted(
        ((path, found.record) for path, found in files.items() if found.record.status == "done"),
        key=lambda pair: _age(pair[1].provenance, pair[1].metrics),
    )
    some = next(iter(files.values())).record
    text = f"set aside: {name} ({about(some)}): "
    home = folder / f"{name}.json"
    for (path, record), (other_path, other) in _pairs(results):
        if why := disagreement(record, other):
            values = [
                f"{'none' if value is None else f'{value:.10g}'} in {at}"
                for value, at in zip(why.values, (path, other_path))
            ]
            where = f"{why.metric} {', '.join(values)}" if why.metric else f"{path}, {other_path}"
            others = "the other" if len(files) == 2 else "the others"
            return (
                f"{text}{where}: {why.reason}; keep one: move it to {home} and delete {others}, there and where it "
                "came from"
            )
    return f"{text}nothing disagrees any more in {', '.join(map(str, files))}; move one to {home}, delete what is left"


def _pairs(items: list) -> Iterator[tuple[Any, Any]]:
    return ((one, other) for i, one in enumerate(items) for other in items[i + 1 :])


def about(record: Record) -> str:
    """Which run a record is of, as far as a spec says: ``generation, mnist5k, kl, masked, diffusion, seeds 0.1``."""
    spec = record.spec

    def kind(*path: str) -> str | None:
        block: Any = spec
        for key in path:
            block = block.get(key) if isinstance(block, dict) else None
        return block if isinstance(block, str) else None

    words = [kind("data", "name") or kind("data", "kind"), kind("tokenizer", "kind")]
    if record.task in ("generation", "speed"):
        model = kind("model", "kind")
        words += [model if model != "ar" else None, kind("model", "backbone", "kind"), kind("model", "head", "kind")]
    found = [record.task, *(word for word in words if word)]
    if record.task == "generation":
        seeds = [(spec.get(block) or {}).get("seed") for block in ("train", "sampling")]
        found.append(f"seeds {'.'.join('?' if seed is None else str(seed) for seed in seeds)}")
    return ", ".join(found)
