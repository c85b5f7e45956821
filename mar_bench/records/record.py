"""Records: one immutable JSON of measurements each, written whole or not at all.

A record knows its spec, ids and provenance; it does not know which tables will show it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

SCHEMA_VERSION = 1
RECORDED = ("generation", "reconstruction", "speed")  # the tasks that runs publish records of
PREVIEW = "preview.npy"  # beside a generation record: its first images, decoded
CONFLICTS = "conflicts"  # in a folder of records: <id>/*.json, records of one id that disagree; no table sees them


@dataclass(frozen=True)
class Record:
    """What a run measured.

    ``metrics`` holds numbers only, named ``<metric>_<extractor>`` where an extractor is involved;
    ``protocol`` says how they were measured (extractor and its sha256, sample counts, reference);
    ``uncertainty`` holds, by the same names, what one set of images says of its own chance: ``standard_error`` of
    the jackknife, ``sd_splits``, ``sd_subsets``;
    ``replications`` are later measurements of the same id that agree: the ``provenance`` and ``metrics`` of each, and
    ``largest_difference``, relative, of its metrics from those here."""

    task: str
    status: str  # done | failed
    ids: dict[str, str]
    spec: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    uncertainty: dict[str, dict[str, Any]] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)  # metric -> how the cell was chosen by it
    provenance: dict[str, Any] = field(default_factory=dict)
    replications: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        return self.ids["eval_id"]


def records_dir(records: str | None = None) -> Path:
    """``records``, else ``$MAR_BENCH_RECORDS``, else ``results/records`` in a checkout, else ``records``."""
    named = records or os.environ.get("MAR_BENCH_RECORDS")
    return Path(named or ("results/records" if Path("results/records").is_dir() else "records"))


def write_record(folder: Path, record: Record) -> Path:
    """``folder/<eval_id>.json``. A failure never overwrites a result, and an id that is set aside gets no record."""
    path = folder / f"{record.id}.json"
    if disagreeing(folder, record.id):
        return path
    if record.status == "failed" and path.is_file() and read_record(path).status == "done":
        return path
    atomic_write(path, json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return path


def read_record(path: Path) -> Record:
    """Raises UserError where the file is not a record this version reads."""
    try:
        return parse_record(path, path.read_bytes())
    except OSError as error:
        raise _broken(path, error) from None


def parse_record(path: Path, text: bytes) -> Record:
    """The record in a file's bytes; errors name the file and are those of ``read_record``."""
    try:
        content = json.loads(text.decode())
    except ValueError as error:
        raise _broken(path, error) from None
    known = {f.name for f in fields(Record)}
    if not _looks_like_one(content):
        raise UserError(f"{path}: not a record (task, status, ids.eval_id and spec are needed); move it elsewhere")
    version = content.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {version} is newer than this mar_bench reads ({SCHEMA_VERSION}); update mar_bench"
        )
    return Record(**{k: v for k, v in content.items() if k in known})


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: broken record ({error}); delete it or restore it from version control")


def _looks_like_one(content: Any) -> bool:
    if not (isinstance(content, dict) and {"task", "status", "ids", "spec"} <= set(content)):
        return False
    blocks = ("ids", "spec", "metrics", "protocol", "parameters", "training", "uncertainty", "selection", "provenance")
    if not all(isinstance(content.get(name, {}), dict) for name in blocks):
        return False
    if not _are_replications(content.get("replications", [])):
        return False
    ids, spec, metrics = content["ids"], content["spec"], content.get("metrics", {})
    texts = "eval_id" in ids and all(isinstance(i, str) for i in ids.values())
    numbers = _are_numbers(metrics)
    seeds = all(isinstance((spec.get(b) or {}).get("seed", 0), int) for b in ("train", "sampling"))
    extractor = not metrics or ((spec.get("metrics") or {}).get("extractor") or {}).keys() >= {"kind", "name"}
    return texts and numbers and seeds and extractor and content["status"] in ("done", "failed")


def _are_numbers(metrics: dict[str, Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in metrics.values())


def _are_replications(content: Any) -> bool:
    def is_one(item: Any) -> bool:
        blocks = isinstance(item, dict) and all(isinstance(item.get(k), dict) for k in ("provenance", "metrics"))
        return blocks and _are_numbers(item["metrics"])

    return isinstance(content, list) and all(map(is_one, content))


def disagreeing(folder: Path, record_id: str) -> list[Path]:
    """The files of an id that is set aside in a folder of records; none of any other id."""
    return sorted((folder / CONFLICTS / record_id).glob("*.json"))


def set_aside(folder: Path) -> list[str]:
    """The ids whose records disagree and are kept beside the others until somebody settles which one holds."""
    return sorted({path.parent.name for path in (folder / CONFLICTS).glob("*/*.json")})


def read_records(folder: Path) -> dict[str, Record]:
    """All records of a folder by id; an absent folder holds none.

    Raises UserError for a file that is broken or does not bear its record's id, so that no copy counts twice."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, not a folder of records")
    records = {path: read_record(path) for path in sorted(folder.glob("*.json"))}
    for path, record in records.items():
        if path.stem != record.id:
            raise UserError(f"{path}: holds record {record.id}; rename it to {record.id}.json or move it elsewhere")
    return {record.id: record for record in records.values()}


def metric_name(metric: str, extractor: dict[str, Any]) -> str:
    """The name of a metric in a record: ``fd`` -> ``fid`` for the 2015 Inception network, ``fd_<name>`` else.

    ``extractor`` is the ``metrics.extractor`` block of a resolved spec; a suffix as in ``fd:heldout`` (the
    distance to the held-out images) goes to the end."""
    base, _, suffix = metric.partition(":")
    name = {"fd": "fid"}.get(base, base) if extractor["kind"] == "inception" else f"{base}_{extractor['name']}"
    return f"{name}_{suffix}" if suffix else name
