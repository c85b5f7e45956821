"""Records: one immutable JSON file per measurement, written atomically.

A record has its spec, ids and provenance, but no reference to the tables that show it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, path_variable, reading

SCHEMA_VERSION = 1
RECORDED = ("generation", "reconstruction", "speed")  # the tasks whose records runs publish
PREVIEW = "preview.npy"  # beside a generation record: its first images, decoded
CONFLICTS = "conflicts"  # in a folder of records: <id>/*.json, records of one id that disagree; no table sees them
BLOCKS = ("ids", "spec", "metrics", "protocol", "parameters", "training", "uncertainty", "selection", "provenance")
HINT = "restore it from version control, or delete it"


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


def records_dir(records: str | None = None) -> Path:
    """``records``, else ``$MAR_BENCH_RECORDS``, else ``results/records`` in a checkout, else ``records``."""
    named = records or path_variable("MAR_BENCH_RECORDS")
    return Path(named or ("results/records" if Path("results/records").is_dir() else "records"))


def write_record(folder: Path, record: Record) -> Path:
    """Write ``folder/<eval_id>.json``. A failure never overwrites a result; an id that is set aside gets no record."""
    path = folder / f"{record.id}.json"
    done_before = record.status == "failed" and path.is_file() and read_record(path).status == "done"
    if not done_before and not conflicting_files(folder, record.id):
        atomic_write(path, to_json(record))
    return path


def to_json(record: Record) -> str:
    """A record as JSON text. Raises ValueError for a number that is not finite."""
    return json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_record(path: Path) -> Record:
    """Read a record. Raises UserError if this version cannot read the file."""
    with reading(path, "record", HINT):
        return parse_record(path, path.read_bytes())


def parse_record(path: Path, text: bytes) -> Record:
    """The record in a file's bytes. Raises UserError, naming the file, as ``read_record`` does."""
    with reading(path, "record", HINT):
        content = json.loads(text.decode())
        _check(content)
    if content.get("schema_version", 0) > SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version is above {SCHEMA_VERSION}, which this mar_bench reads; update mar_bench"
        )
    known = {f.name for f in fields(Record)}
    return Record(**{k: v for k, v in content.items() if k in known})


def _check(content: Any) -> None:
    """Raises ValueError for content that the rest of the code cannot use."""
    if not (isinstance(content, dict) and {"task", "status", "ids", "spec"} <= set(content)):
        raise ValueError("task, status, ids and spec are needed")
    for name in BLOCKS:
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"{name} must be a block")
    ids, metrics = content["ids"], content.get("metrics", {})
    if not ("eval_id" in ids and all(isinstance(i, str) for i in ids.values())):
        raise ValueError("ids must be texts, with an eval_id")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in metrics.values()):
        raise ValueError("metrics must be numbers")
    if metrics and not ((content["spec"].get("metrics") or {}).get("extractor") or {}).keys() >= {"kind", "name"}:
        raise ValueError("spec.metrics.extractor needs kind and name")
    if content["status"] not in ("done", "failed") or not isinstance(content.get("schema_version", 0), int):
        raise ValueError(f"status '{content['status']}' is neither done nor failed, or schema_version is not a number")


def conflicting_files(folder: Path, record_id: str) -> list[Path]:
    """The files of an id that is set aside; empty for any other id."""
    return sorted((folder / CONFLICTS / record_id).glob("*.json"))


def conflicting_ids(folder: Path) -> list[str]:
    """The ids that are set aside because their records disagree, until the user decides which one to keep."""
    return sorted({path.parent.name for path in (folder / CONFLICTS).glob("*/*.json")})


def read_records(folder: Path) -> dict[str, Record]:
    """All records of a folder by id; an absent folder holds none.

    Raises UserError for a file that is broken or not named after its record, so that no copy counts twice."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, not a folder of records")
    records = {}
    for path in sorted(folder.glob("*.json")):
        record = records[path.stem] = read_record(path)
        if path.stem != record.id:
            raise UserError(f"{path}: holds record {record.id}; rename it to {record.id}.json or move it elsewhere")
    return records
