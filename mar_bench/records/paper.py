"""The numbers that the paper prints, one CSV file per table: ``table,row,label,column,metric,value,source``.

``column`` is ``unguided`` or ``guided``, or empty for numbers of a whole row. Cells blank in the paper have no line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import reading, shipped

COLUMNS = ("table", "row", "label", "column", "metric", "value", "source")
NUMBER = re.compile(r"\d+(\.\d+)?(e\d+)?")
SMALL_SCALE = "small_scale"  # a file of another kind: what others have measured at small scale


@dataclass(frozen=True)
class Finding:
    """A line of small_scale.csv; ``value`` is as printed there, ``seen`` says where the number was read."""

    claim: str
    source: str
    table: str
    setting: str
    metric: str
    system: str
    value: str
    seen: str


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table; ``source`` names every place where its numbers come from."""

    table: str
    row: str
    label: str
    numbers: dict[str, dict[str, float]]  # column ("" of the row itself) -> metric -> value
    source: str


def paper_dir() -> Path:
    """``$MAR_BENCH_PAPER``, else ``results/paper`` of the checkout, else the copy inside the package."""
    return shipped("results/paper", "paper", "MAR_BENCH_PAPER")


def published(table: str) -> dict[str, PublishedRow]:
    """The rows of a published table by their keys, in the order of the file.

    Raises UserError for a table that does not exist, and with file and line number for an invalid line."""
    files = {path.stem: path for path in sorted(paper_dir().glob("*.csv")) if path.stem != SMALL_SCALE}
    if table not in files:
        raise UserError(f"no published table '{table}' in {paper_dir()}: {did_you_mean(table, files)}")
    rows: dict[str, PublishedRow] = {}
    with reading(files[table], "published table", f"its first line is {','.join(COLUMNS)}"):
        for where, cells in _lines(files[table], COLUMNS):
            _add(rows, table, cells, where)
    return rows


def findings(claims: Collection[str]) -> list[Finding]:
    """What others have measured at small scale about these claims (``orders``), in the order of the file.

    Raises UserError for a claim that the file lacks, and with the line number for an invalid line."""
    path, columns = paper_dir() / f"{SMALL_SCALE}.csv", tuple(field.name for field in fields(Finding))
    found = []
    with reading(path, "file of published findings", f"its first line is {','.join(columns)}"):
        for where, cells in _lines(path, columns):
            if not all(cells) or not NUMBER.fullmatch(cells[columns.index("value")]):
                raise ValueError(f"{where}: no cell may be empty, and value must be a number")
            found.append(Finding(*cells))
    known = {finding.claim for finding in found}
    for claim in claims:
        if claim not in known:
            raise UserError(f"no claim '{claim}' in {path}: {did_you_mean(claim, known)}")
    return [finding for finding in found if finding.claim in claims]


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line of a CSV file. Raises ValueError if a line lacks a cell."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for entry in reader:
            where = f"line {reader.line_num}"
            if None in entry or None in entry.values() or not set(columns) <= entry.keys():
                raise ValueError(f"{where}: expected a cell for each column; put texts with commas in double quotes")
            yield where, [entry[name].strip() for name in columns]


def _add(rows: dict[str, PublishedRow], table: str, cells: list[str], where: str) -> None:
    """Add a line to the rows. Raises ValueError if it is incomplete or contradicts an earlier line."""
    name, key, label, column, metric, text, source = cells
    if name != table or not all((key, label, metric, source)):
        raise ValueError(f"{where}: only column may be empty, and table must be '{table}'")
    row = rows.setdefault(key, PublishedRow(table, key, label, {}, source))
    numbers = row.numbers.setdefault(column, {})
    if label != row.label or metric in numbers:
        raise ValueError(f"{where}: row '{key}' has another label or another {metric} above")
    if not NUMBER.fullmatch(text):
        raise ValueError(f"{where}: value '{text}' is not a finite number; leave blanks of the paper out")
    numbers[metric] = float(text)
    if source not in row.source.split("; "):
        rows[key] = replace(row, source=f"{row.source}; {source}")


def lookup(reference: str) -> dict[str, dict[str, float]]:
    """The numbers of a row by column, as in ``table2/vq16``, or those of one column with the key "", as in
    ``table2/vq16/unguided``.

    Raises UserError if there is no such table, row or column."""
    table, _, name = reference.partition("/")
    known = {key: row.numbers for key, row in published(table).items()}
    for key, row in published(table).items():
        known |= {f"{key}/{column}": {"": numbers} for column, numbers in row.numbers.items() if column}
    if name not in known:
        raise UserError(f"published numbers '{reference}': no '{name}' in {table}, {did_you_mean(name, known)}")
    return known[name]
