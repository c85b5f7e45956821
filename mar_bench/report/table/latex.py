r"""The main table in LaTeX, for \usepackage{booktabs}."""

from __future__ import annotations

import math
from itertools import groupby

from mar_bench.records.paper import PublishedRow
from mar_bench.report.format import is_lower_better, metric_number, scale_title
from mar_bench.report.table.data import Measured
from mar_bench.report.table.grid import Cell, Column, Grid, grid
from mar_bench.report.table.quoted import TITLES, quoted_text

QUOTED = "Quoted from the paper, not measured here"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "±": r"$\pm$",
    "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "≤": r"$\leq$",
    "≥": r"$\geq$",
    '"': "''", "\n": " ", "[": "{[}", "*": "{*}",  # the last two are arguments of a line's end
}  # fmt: skip


def tex(table: Measured, sentences: list[str]) -> str:
    """A whole table environment; ``sentences`` follow title and scale in its caption.

    The best of our numbers of a metric column are bold."""
    experiment, found = table.experiment, grid(table)
    titles = ". ".join([experiment.title, *_sentence(scale_title(experiment))])
    best = _best(table, found)
    body = []
    for line in found.lines:
        cells = [_cell(cell, i in best and _shown(table, found.columns[i], cell) == best[i]) for i, cell in
                 enumerate(line.cells)]  # fmt: skip
        body.append([*(escape(line.labels.get(name, "")) for name in found.names), *cells])
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(' '.join([f'{titles}.', *sentences]))}}}",
        rf"\label{{tab:{experiment.id}-{experiment.scale}}}",
        rf"\begin{{tabular}}{{{'l' * len(found.names)}{'r' * len(found.columns)}}}",
        r"\toprule",
        *_heading(found),
        r"\midrule",
        *map(_row, body),
        *_quoted(table, found),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Any text as LaTeX prints it."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _sentence(words: str) -> list[str]:
    return [words[:1].upper() + words[1:]] if words else []


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell, bold: bool) -> str:
    ours = rf"\textbf{{{escape(cell.ours)}}}" if bold else escape(cell.ours)
    return ours if cell.published is None else f"{ours} ({escape(cell.published)})"


def _shown(table: Measured, column: Column, cell: Cell) -> str:
    """The mean as it is printed: what looks equal is equal."""
    return metric_number(table.experiment, column.metric, cell.value)


def _best(table: Measured, found: Grid) -> dict[int, str]:
    """Place -> the best mean as it is printed; none where fewer than two rows have a number."""
    best = {}
    for i, column in enumerate(found.columns):
        cells = [line.cells[i] for line in found.lines if not math.isnan(line.cells[i].value)]
        if not column.once and len(cells) > 1:
            choose = min if is_lower_better(column.metric) else max
            best[i] = _shown(table, column, choose(cells, key=lambda cell: cell.value))
    return best


def _heading(found: Grid) -> list[str]:
    """The columns' titles, above them the bundles that several of them share."""
    titles = [escape(f"{c.title} (paper)" if c.published else c.title) for c in found.columns]
    lines = [_row([*map(escape, found.names), *titles])]
    groups = [(words, len(list(group))) for words, group in groupby(found.columns, key=lambda c: c.words)]
    if not any(words for words, _ in groups):
        return lines
    above, rules, place = [""] * len(found.names), [], len(found.names) + 1
    for words, width in groups:
        if words:
            above.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(words)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        else:
            above += [""] * width
        place += width
    return [_row(above), " ".join(rules), *lines]


def _quoted(table: Measured, found: Grid) -> list[str]:
    """Published rows of other systems, told apart from what was measured."""
    rows = table.experiment.quoted
    if not rows:
        return []
    width, labels = len(found.names) + len(found.columns), max(len(found.names), 1)
    lines = [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{QUOTED}}}}} \\"]
    for row in rows:
        cells = [escape(quoted_text(row, "/".join(column.column), column.metric)) for column in found.columns]
        label = row.label if any(cells) else f"{row.label}{_of_no_column(row)}"
        lines.append(_row([escape(label), *[""] * (labels - 1), *cells]))
    return lines


def _of_no_column(row: PublishedRow) -> str:
    """`` (FID > 100)``: what the paper says of a row as a whole, where no column of ours has such numbers."""
    words = [f"{TITLES[metric]} {text}" for metric in TITLES if (text := quoted_text(row, "", metric))]
    return f" ({', '.join(words)})" if words else ""
