"""The numbers that the paper prints, one CSV file per table: ``table,row,label,column,metric,value,source``.

``column`` is ``unguided`` or ``guided``, or empty for numbers of a whole row. Cells blank in the paper have no line.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import reading, shipped

COLUMNS = ("table", "row", "label", "column", "metric", "value", "source")


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
    files = {path.stem: path for path in sorted(paper_dir().glob("*.csv"))}
    if table not in files:
        raise UserError(f"no published table '{table}' in {paper_dir()}: {did_you_mean(table, files)}")
    rows: dict[str, PublishedRow] = {}
    with (
        reading(files[table], "published table", f"its first line is {','.join(COLUMNS)}"),
        files[table].open(encoding="utf-8-sig", newline="") as file,
    ):
        reader = csv.DictReader(file, strict=True)
        for entry in reader:
            _add(rows, table, entry, f"line {reader.line_num}")
    return rows


def _add(rows: dict[str, PublishedRow], table: str, entry: dict[str, str], where: str) -> None:
    """Add a line to the rows. Raises ValueError if it is incomplete or contradicts an earlier line."""
    if None in entry or None in entry.values() or not set(COLUMNS) <= entry.keys():
        raise ValueError(f"{where}: expected a cell for each column; put texts with commas in double quotes")
    name, key, label, column, metric, text, source = (entry[name].strip() for name in COLUMNS)
    if name != table or not all((key, label, metric, source)):
        raise ValueError(f"{where}: only column may be empty, and table must be '{table}'")
    row = rows.setdefault(key, PublishedRow(table, key, label, {}, source))
    numbers = row.numbers.setdefault(column, {})
    if label != row.label or metric in numbers:
        raise ValueError(f"{where}: row '{key}' has another label or another {metric} above")
    if not re.fullmatch(r"\d+(\.\d+)?(e\d+)?", text):
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
