"""The numbers that the paper prints, one CSV file a table: ``table,row,label,column,metric,value,source``.

``column`` is ``unguided`` or ``guided``, and empty for what belongs to the row as a whole. A blank of the paper is
a line that is not there.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import shipped

COLUMNS = ("table", "row", "label", "column", "metric", "value", "source")


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table; ``source`` names every place that its numbers come from."""

    table: str
    row: str
    label: str
    numbers: dict[str, dict[str, float]]  # column ("" of the row itself) -> metric -> value
    source: str


def paper_dir() -> Path:
    """``$MAR_BENCH_PAPER``, else ``results/paper`` of the checkout, else the copy inside the package."""
    return shipped("results/paper", "paper", "MAR_BENCH_PAPER")


def paper_files() -> dict[str, Path]:
    """The files of the published tables by the tables' names."""
    return {path.stem: path for path in sorted(paper_dir().glob("*.csv"))}


def published(table: str) -> dict[str, PublishedRow]:
    """The rows of a published table by their keys, in the order of the file.

    Raises UserError for a table that is not there, and with file and line for a line that cannot be meant."""
    files = paper_files()
    if not files:
        raise UserError(f"no published tables in {paper_dir()}: set MAR_BENCH_PAPER to a folder with <table>.csv")
    if table not in files:
        raise UserError(f"no published table '{table}' in {paper_dir()}: {did_you_mean(table, files)}")
    rows: dict[str, PublishedRow] = {}
    seen: dict[tuple[str, str], int] = {}  # cell and metric -> line
    for line, entry in _entries(files[table]):
        where = f"{files[table]}:{line}"
        if entry["table"] != table:
            raise UserError(
                f"{where}: table '{entry['table']}': write '{table}', or move the line to that table's file"
            )
        key, column, metric, source = (entry[name] for name in ("row", "column", "metric", "source"))
        row = rows.setdefault(key, PublishedRow(table, key, entry["label"], {}, source))
        if entry["label"] != row.label:
            raise UserError(
                f"{where}: row '{key}' is labelled '{entry['label']}' here and '{row.label}' above: keep one"
            )
        first = seen.setdefault((_cell(key, column), metric), line)
        if first != line:
            raise UserError(f"{where}: {metric} of '{_cell(key, column)}' stands in line {first} already: remove one")
        row.numbers.setdefault(column, {})[metric] = _number(entry["value"], where)
        if source not in row.source.split("; "):
            rows[key] = replace(row, source=f"{row.source}; {source}")
    return rows


def cells(table: str) -> dict[str, dict[str, float]]:
    """The numbers of a published table by ``row/column``, or ``row`` for those of the row itself.

    Raises UserError as ``published`` does."""
    out: dict[str, dict[str, float]] = {}
    for row in published(table).values():
        for column, metrics in row.numbers.items():
            out.setdefault(_cell(row.row, column), {}).update(metrics)
    return out


def lookup(reference: str) -> dict[str, float]:
    """The numbers of one cell, as in ``table2/vq16/unguided`` or, of a row itself, ``table3/w1024``.

    Raises UserError where there is no such table, row or cell."""
    table, _, cell = reference.partition("/")
    numbers = cells(table)
    if cell in numbers:
        return numbers[cell]
    rows = published(table)
    above, _, column = cell.rpartition("/")
    if row := rows.get(cell) or rows.get(above):
        hint = did_you_mean(cell, [_cell(row.row, known) for known in row.numbers])
    else:
        is_column = any(column in row.numbers for row in rows.values())
        hint = did_you_mean(above if is_column else cell, rows)
    raise UserError(f"published numbers '{reference}': no '{cell}' in {table}, {hint}")


def _cell(row: str, column: str) -> str:
    return f"{row}/{column}" if column else row


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: value '{text}': expected a number as in 3.50; a blank of the paper is left out")
    return value


def _entries(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a file with their numbers.

    Raises UserError where it cannot be read, and for cells that are missing, too many or empty."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable as UTF-8: {error}") from None
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        header = reader.fieldnames or []
        if missing := [name for name in COLUMNS if name not in header]:
            raise UserError(f"{file}:1: no column {', '.join(missing)}: the first line is {','.join(COLUMNS)}")
        for entry in reader:
            where = f"{file}:{reader.line_num}"
            if None in entry or None in entry.values():
                raise UserError(f"{where}: expected {len(header)} cells: put a text with commas in double quotes")
            entry = {name: entry[name].strip() for name in COLUMNS}
            if empty := [name for name in COLUMNS if not entry[name] and name != "column"]:
                raise UserError(f"{where}: {empty[0]} is empty: fill it in; only column may be empty")
            yield reader.line_num, entry
    except csv.Error as error:
        raise UserError(
            f"{file}:{reader.line_num + 1}: not readable as CSV: {error}; check the double quotes"
        ) from None
