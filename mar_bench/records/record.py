"""Records: one immutable JSON file per measurement, written atomically and checked whenever it is written or read.

A record has its spec, ids and provenance, but no reference to the tables that show it. Whether its ids follow from its
spec is checked in ``config.ids``."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from mar_bench.records.check import check
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, path_variable, reading

SCHEMA_VERSION = 1
RECORDED = ("generation", "reconstruction", "likelihood", "speed")  # the tasks whose records runs publish
PREVIEW = "preview.npy"  # beside a generation record: its first images, decoded
OWN = "record.json"  # a record beside the output it describes, before it is published
CONFLICTS = "conflicts"  # in a folder of records: <id>/*.json, records of one id that disagree; no table sees them
HINT = "restore it from version control, or delete it"
HINT_OWN = "delete its folder, and the same run makes it again"
MOST_BYTES = 2**22  # of a record; runs write about 7 KB
_CELL = re.compile(rb'"cell_id"\s*:\s*"([^"\\]*)"')


@dataclass(frozen=True)
class Record:
    """The measurements of a run, or the error it failed with."""

    task: str
    status: str  # done | failed
    ids: dict[str, str]
    spec: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)  # by ``metric_name``; numbers only
    protocol: dict[str, Any] = field(default_factory=dict)  # extractor and its sha256, sample counts, reference
    parameters: dict[str, int] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    # metric -> standard_error (the jackknife's), sd_splits, sd_subsets: estimated from this set of images alone
    uncertainty: dict[str, dict[str, Any]] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)  # metric -> how the cell was chosen by it
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        return self.ids["eval_id"]

    @property
    def seeds(self) -> tuple[int, int]:
        """The training seed and the sampling seed."""
        train, sampling = ((self.spec.get(block) or {}).get("seed") or 0 for block in ("train", "sampling"))
        return train, sampling


Records = Mapping[str, Record]  # by id; a RecordFolder reads only those that are needed


def records_dir(records: str | None = None) -> Path:
    """``records``, else ``$MAR_BENCH_RECORDS``, else ``results/records`` in a checkout, else ``records``."""
    named = records or path_variable("MAR_BENCH_RECORDS")
    return Path(named or ("results/records" if Path("results/records").is_dir() else "records"))


def write_record(folder: Path, record: Record) -> Path:
    """Write ``folder/<eval_id>.json``. A failure never overwrites a result; an id that is set aside gets no record."""
    path = folder / f"{record.id}.json"
    done_before = record.status == "failed" and path.is_file() and read_record(path, record.id).status == "done"
    if not done_before and not conflicting_files(folder, record.id):
        atomic_write(path, to_json(record))
    return path


def to_json(record: Record) -> str:
    """A record as JSON text. Raises UserError, naming the field, for a record that could not be read again."""
    content = asdict(record)
    with reading(f"record {record.id}", "record", "it is not written"):
        check(content)
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_record(path: Path, record_id: str | None = None) -> Record:
    """Read a record. Raises UserError if this version cannot read the file, or if it is not that of ``record_id``."""
    return parse_record(path, read_bytes(path), record_id)


def read_bytes(path: Path) -> bytes:
    """The content of a record's file. Raises UserError for one of a size that no record has."""
    with reading(path, "record", _hint(path)):
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a file")
        if about.st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MB")
        return path.read_bytes()


def parse_record(path: Path, text: bytes, record_id: str | None = None) -> Record:
    """The record in a file's bytes. Raises UserError, naming the file, as ``read_record`` does."""
    with reading(path, "record", _hint(path)):
        content = json.loads(text.decode(), object_pairs_hook=_block)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            newer = f"schema_version is above {SCHEMA_VERSION}, which this mar_bench reads; update mar_bench"
            raise UserError(f"{path}: {newer}")
        check(content)
    known = {f.name for f in fields(Record)}
    record = Record(**{k: v for k, v in content.items() if k in known})
    if record_id not in (None, record.id):
        way = _hint(path) if path.name == OWN else f"rename it to {record.id}.json or move it elsewhere"
        raise UserError(f"{path}: holds record {record.id}; {way}")
    return record


def _hint(path: Path) -> str:
    return HINT_OWN if path.name == OWN else HINT


def _block(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, its keys shared between records. Raises ValueError for a repeated key."""
    block = {sys.intern(key): value for key, value in pairs}
    if len(block) != len(pairs):
        repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {repeated!r:.100} is there twice")
    return block


def conflicting_files(folder: Path, record_id: str) -> list[Path]:
    """The files of an id that is set aside; empty for any other id."""
    return sorted((folder / CONFLICTS / record_id).glob("*.json"))


def conflicting_ids(folder: Path) -> list[str]:
    """The ids that are set aside because their records disagree, until the user decides which one to keep."""
    return sorted({path.parent.name for path in (folder / CONFLICTS).glob("*/*.json")})


def read_records(folder: Path) -> dict[str, Record]:
    """All records of a folder by id; an absent folder holds none.

    Raises UserError for a file that is broken or not named after its record, so that no copy counts twice."""
    return dict(RecordFolder(folder))


def of_cells(records: Records, cells: Collection[str]) -> list[Record]:
    """The records whose cell is one of ``cells``."""
    if isinstance(records, RecordFolder):
        return records.of_cells(cells)
    return [record for record in records.values() if record.ids.get("cell_id") in cells]


class RecordFolder(Mapping[str, Record]):
    """The records of a folder by id, each read when it is first needed; an absent folder holds none.

    A file that is needed and broken, or not named after its record, raises UserError. So may ``check``, for a record
    that is looked up by an id or a cell of this version (``config.ids.IdCheck``)."""

    def __init__(self, folder: Path, check: Callable[[Path, Record], object] = lambda path, record: None):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: a file, not a folder of records")
        self.folder, self._check = folder, check
        names = os.listdir(folder) if folder.exists() else []
        self._names = dict.fromkeys(sorted(name[:-5] for name in names if name.endswith(".json")))
        self._records: dict[str, Record] = {}
        self._checked: set[str] = set()

    def __getitem__(self, record_id: str) -> Record:
        record = self._read(record_id)
        if record_id not in self._checked:
            self._check(self._path(record_id), record)
            self._checked.add(record_id)
        return record

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _path(self, record_id: str) -> Path:
        return self.folder / f"{record_id}.json"

    def _read(self, record_id: str) -> Record:
        if record_id not in self._names:
            raise KeyError(record_id)
        if record_id not in self._records:
            self._records[record_id] = read_record(self._path(record_id), record_id)
        return self._records[record_id]

    @cached_property
    def _cells(self) -> dict[str | None, list[str]]:
        """The records of each cell, by a look at the bytes of every file; None: files that it cannot tell."""
        cells: dict[str | None, list[str]] = {}
        for name in self._names:
            found = _CELL.findall(read_bytes(self._path(name)))
            cells.setdefault(found[0].decode(errors="replace") if len(found) == 1 else None, []).append(name)
        return cells

    def of_cells(self, cells: Collection[str]) -> list[Record]:
        """The records of these cells; no others are read."""
        names = [name for cell in cells for name in self._cells.get(cell, ())]
        names += [name for name in self._cells.get(None, ()) if self._read(name).ids.get("cell_id") in cells]
        return [self[name] for name in names]
