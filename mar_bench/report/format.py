"""How numbers, metrics and rows are written in tables, figures and sentences."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import FileReference
from mar_bench.records.metrics import METRICS
from mar_bench.utils.console import printable

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
ADM = FileReference().name
NOT_CHOSEN = "not chosen yet"  # a row whose sweep is not finished
_FORMULA = re.compile(r"[=@\uFF1D\uFF0B\uFF20\uFF0D]|[+-](?!\d+(\.\d+)?$)")  # its start, also in full width


def number(value: float | None, like: float | None = None, signed: bool = False) -> str:
    """Two decimals, one from 100 on, none from 1,000 on, two digits below 0.1; a size below 1e-8 is 0.

    ``like`` sets the decimals, so that mean and std match."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value if like is None else like)
    if size < 1e-8:
        value = size = 0.0
    small = 0 < size < 0.1
    decimals = 1 - math.floor(math.log10(size)) if small else 0 if size >= 1000 else 1 if size >= 100 else 2
    return f"{value:{'+' * signed},.{decimals}f}"


def plus_minus(value: float | None, sd: float | None) -> str:
    """``5.41 ± 0.12``, both with the decimals of the larger."""
    if sd is None or value is None:
        return number(value)
    like = max(abs(value), sd)
    return f"{number(value, like)} ± {number(sd, like)}"


def percent(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:+.1f} %"


def count_of(parameters: float | None) -> str:
    """Parameters in two or three digits: ``943M``, ``1.5M``, ``2B``, ``50k``."""
    if parameters is None or math.isnan(parameters):
        return MISSING
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if (scaled := parameters / size) >= 1:
            return f"{f'{scaled:.1f}'.removesuffix('.0') if scaled < 10 else f'{scaled:.0f}'}{letter}"
    return f"{parameters:.0f}"


class Block(str):
    """Markdown that is laid out already; ``render`` makes every other text inert and one line."""


def inline(text: object) -> str:
    """A text as one line of Markdown without HTML, links and control characters."""
    line = re.sub("<(?=[A-Za-z/!?])", "&lt;", printable(" ".join(str(text).split("\n"))))
    return re.sub(r"\](?=[(:])", r"]\\", line)


def markdown_table(heading: list[str], lines: list[list[str]]) -> Block:
    """A GitHub table; text is printed as it is."""
    escaped = [[re.sub(r"(\\?)\|", _pipe, inline(cell)) for cell in line] for line in [heading, *lines]]
    return Block(tabulate(escaped[1:], escaped[0], tablefmt="github", disable_numparse=True))


def _pipe(found: re.Match[str]) -> str:
    return rf"{found[1]}&#124;" if found[1] else r"\|"  # a backslash before it would escape that of the pipe


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV; texts that a spreadsheet would run as a formula begin with a quote."""

    def inert(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return f"'{printable(value)}" if _FORMULA.match(value) else printable(value)

    frame = frame.apply(lambda column: column if column.dtype.kind == "f" else column.map(inert)).rename(columns=inert)
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def paper_name(metric: str) -> str:
    """The paper's name of a metric, such as ``FID``."""
    return METRICS[metric].title({"kind": "inception"}, None) if metric in METRICS else metric


def paper_number(metric: str, value: float | None) -> str:
    """A published value with as many decimals as the paper gives."""
    spec = METRICS.get(metric)
    if value is None or (spec and spec.is_count):
        return count_of(value)
    return f"{value:g}" if spec is None or spec.paper_decimals is None else f"{value:.{spec.paper_decimals}f}"


def number_or_bound(numbers: dict[str, float], metric: str, factor: float = 1.0) -> str:
    """A published number times ``factor``, or a bound as in ``> 100``."""
    if metric not in numbers and f"{metric}_above" in numbers:
        return f"> {numbers[f'{metric}_above']:g}"
    return paper_number(metric, factor * numbers[metric] if metric in numbers else None)


def published_text(experiment: Experiment, row: str, metric: str) -> str:
    """The paper's number for a row in the unit of tables, or a bound as in ``> 100``."""
    factor, _ = METRICS[metric].scaling(not extractors(experiment))
    return number_or_bound(experiment.paper.get(row, {}), metric, factor)


def published_value(experiment: Experiment, row: str, metric: str) -> float | None:
    """The paper's number for the line of the table that the row is in, or for the row; None if it gives none."""
    columns = column_axes(experiment)
    line = "/".join(bundle for axis, bundle in experiment.bundles(row).items() if axis not in columns)
    found = (experiment.paper.get(key, {}).get(metric) for key in (line, row))
    return next((value for value in found if value is not None), None)


def in_paper(experiment: Experiment, metric: str) -> bool:
    """Whether the paper gives this number, or a bound on it, for any row."""
    return any(numbers.keys() & {metric, f"{metric}_above"} for numbers in experiment.paper.values())


def metric_title(experiment: Experiment, metric: str, named: bool = True, images: int | None = 0) -> str:
    """``FD-1k mnist5k``, ``FID-5k``; without the extractor's name unless ``named`` (see ``MetricSpec.title``).

    ``images`` replaces the number of the rows' samples; None leaves it out."""
    titles = []
    for spec in experiment.rows.values():
        count = spec.sampling.num_images if images == 0 else images
        if METRICS[metric].paired and count is not None:
            count = min(count, spec.metrics.reference_images)
        titles.append(METRICS[metric].title(vars(spec.metrics.extractor), count, named))
    return " / ".join(dict.fromkeys(titles))


def against(experiment: Experiment, metric: str) -> str:
    """``vs training``: the real images of a reconstruction distance; other references than ADM's by their names."""
    references = [spec.metrics.reference for spec in experiment.rows.values()]
    names = [getattr(reference, "name", ADM) for reference in references]  # ADM's statistics are of training images
    known = ["training" if name == ADM else name for name in names]
    return f"vs {'held-out' if metric == 'rfd:heldout' else ' / '.join(dict.fromkeys(known))}"


def with_unit(experiment: Experiment, name: str, metric: str) -> str:
    """A column's name: ``KID x 1000``, ``copied %``, ``FD-1k``."""
    return f"{name} {METRICS[metric].scaling(not extractors(experiment))[1]}".rstrip()


def column_title(experiment: Experiment, metric: str) -> str:
    """``KID x 1000``, ``held-out FD-1k``: a metric without the extractor's name."""
    return with_unit(experiment, metric_title(experiment, metric, named=False), metric)


def in_units(experiment: Experiment, metric: str, value: float | None) -> float | None:
    """A number as tables show it."""
    return None if value is None else value * METRICS[metric].scaling(not extractors(experiment))[0]


def metric_number(experiment: Experiment, metric: str, value: float | None, sd: float | None = None) -> str:
    """A metric as tables show it, in its unit, with ± if there is one: ``5.41 ± 0.12``."""
    if METRICS[metric].is_count:
        return count_of(value)
    return plus_minus(in_units(experiment, metric, value), in_units(experiment, metric, sd))


def extractors(experiment: Experiment) -> list[str]:
    """The names of the rows' extractors other than the 2015 Inception network."""
    blocks = [spec.metrics.extractor for spec in experiment.rows.values()]
    return list(dict.fromkeys(block.name for block in blocks if block.kind != "inception"))


def scale_title(experiment: Experiment) -> str:
    """The scale, any overrides and, unless it is the paper's, that its numbers do not compare with the paper's."""
    words = [f"{experiment.scale} scale"]
    if experiment.overrides:
        words.append(f"with {' '.join(experiment.overrides)}")
    if experiment.scale != "paper" or extractors(experiment):
        words.append("not comparable with the paper's FID")
    return ", ".join(words)


def axis_labels(experiment: Experiment, bundles: dict[str, str]) -> dict[str, str]:
    """The labels that tables print for bundles of axes: label name -> value."""
    return {k: str(v) for axis, bundle in bundles.items() for k, v in experiment.labels[axis][bundle].items()}


def words(experiment: Experiment, bundles: dict[str, str]) -> str:
    """The labels of bundles in one line; a value without letters is preceded by its name: ``AR, tokens per step 1``."""
    labels = axis_labels(experiment, bundles).items()
    return ", ".join(v if any(c.isalpha() for c in v) else f"{k} {v}" for k, v in labels)


def row_words(experiment: Experiment, row: str, axes: Iterable[str] | None = None) -> str:
    """A row's labels on ``axes`` (None: on all) in one line."""
    bundles = experiment.bundles(row)
    return words(experiment, bundles if axes is None else {axis: bundles[axis] for axis in axes})


def column_words(experiment: Experiment, column: tuple[str, ...]) -> str:
    """``without CFG``; empty if the layout has no columns."""
    return words(experiment, dict(zip(column_axes(experiment), column)))


def label_of(experiment: Experiment, row: str, name: str | None) -> str:
    """A row's value of the label ``name``, empty if it has none."""
    return axis_labels(experiment, experiment.bundles(row)).get(name, "") if name else ""


def row_axes(experiment: Experiment) -> list[str]:
    """The axes that run down the table: those of layout.rows, then any that the layout does not place."""
    rows, columns = experiment.layout.get("rows", []), column_axes(experiment)
    return [*rows, *(a for a in experiment.labels if a not in rows and a not in columns)]


def column_axes(experiment: Experiment) -> list[str]:
    return list(experiment.layout.get("columns", []))


def lines_and_columns(experiment: Experiment) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The bundles of each line and of each column of the table, outer axis first."""
    labels = experiment.labels
    lines, columns = (itertools.product(*(labels[a] for a in of(experiment))) for of in (row_axes, column_axes))
    return list(lines), list(columns)


def row_at(experiment: Experiment, line: tuple[str, ...], column: tuple[str, ...]) -> str:
    """The row of the experiment at a line and column of its table."""
    bundles = dict(zip([*row_axes(experiment), *column_axes(experiment)], [*line, *column]))
    return "/".join(bundles[axis] for axis in experiment.labels)
