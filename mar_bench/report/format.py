"""How numbers, metrics and rows are written. With the 2015 Inception features alone, a distance is an FID."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

from tabulate import tabulate

from mar_bench.config.experiment import Experiment
from mar_bench.config.spec import RunSpec
from mar_bench.records.metrics import metric_name
from mar_bench.report.frame import extractor_block

MISSING, FAILED = "–", "FAILED"
NOT_CHOSEN = "not chosen yet"  # of a row whose sweep is not done
PAPER_SAMPLES = 50_000
PAPER_NAMES = {"fd": "FID", "is": "IS"}  # with the 2015 Inception features, as in the paper
OUR_NAMES = {"fd": "FD", "is": "IS"}  # with any other extractor, whose name follows
NAMES = {"kid": "KID", "precision": "Precision", "recall": "Recall"}  # with every extractor
BIASED = ("fd", "is")  # by the number of images, which therefore stands in their names
LOWER_IS_BETTER = ("fd", "kid", "copied")  # of all others a higher value is the better one
UNITS = {"kid": (1000, "x 1000"), "copied": (100, "%")}  # by which tables show a number; KID with Inception alone


def number(value: float | None, like: float | None = None) -> str:
    """Two decimals, one from 100 on, two digits below 0.1; ``like`` lends its decimals: mean and sd match."""
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value if like is None else like)
    if size >= 100:
        return f"{value:.1f}"
    if size >= 0.1 or size == 0:
        return f"{value:.2f}"
    return f"{value:.{1 - math.floor(math.log10(size))}f}"


def signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def plus_minus(value: float | None, sd: float | None) -> str:
    """Both with the decimals of the mean, or of the deviation where that is the larger one."""
    if sd is None:
        return number(value)
    like = max(abs(value), sd)
    return f"{number(value, like)} ± {number(sd, like)}"


def paper_number(metric: str, value: float | None) -> str:
    """A published value with as many decimals as the paper gives."""
    if value is None:
        return MISSING
    if metric in ("fd", "rfd", "precision", "recall"):
        return f"{value:.2f}"
    return f"{value:.1f}" if metric == "is" else f"{value:g}"


def published_text(experiment: Experiment, row: str, metric: str) -> str | None:
    """The paper's number of a row as a table shows it, ``> 100`` where it gives a bound; None for a column that the
    paper has not."""
    if not in_paper(experiment, metric):
        return None
    numbers = experiment.paper.get(row, {})
    if metric not in numbers and f"{metric}_above" in numbers:
        return f"> {numbers[f'{metric}_above']:g}"
    return paper_number(metric, in_units(experiment, metric, numbers.get(metric)))


def in_paper(experiment: Experiment, metric: str) -> bool:
    """Whether the paper gives this number, or a bound of it, for any row."""
    return any(metric in numbers or f"{metric}_above" in numbers for numbers in experiment.paper.values())


def is_lower_better(metric: str) -> bool:
    return metric.partition(":")[0] in LOWER_IS_BETTER


def count_of(parameters: float | None) -> str:
    """Parameters in two or three digits: ``943M``, ``1.5M``, ``2B``, ``50k``."""
    if parameters is None or math.isnan(parameters):
        return MISSING
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            scaled = parameters / size
            return f"{f'{scaled:.1f}'.removesuffix('.0') if scaled < 10 else f'{scaled:.0f}'}{letter}"
    return f"{parameters:.0f}"


def percent(value: float | None, signed: bool = True) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:+.1f} %" if signed else f"{value:g} %"


def thousands(count: int) -> str:
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def seed_count(trainings: int, samplings: int) -> str:
    """How many training seeds are common; of one, over how many samplings the interval is: ``1 (5 samplings)``."""
    return f"1 ({samplings} samplings)" if trainings == 1 and samplings > 1 else str(trainings)


def metric_key(experiment: Experiment, metric: str) -> str:
    """The record's own name of a metric; several joined by a slash where the rows' extractors differ."""
    return "/".join(_unique(metric_name(metric, extractor_block(s)) for s in experiment.rows.values()))


def metric_title(experiment: Experiment, metric: str) -> str:
    """A metric as texts write it: ``FD-1k mnist5k``, ``held-out FD-1k mnist5k``, ``IS``, ``FID-5k``.

    Distances and scores of other than 50,000 images say of how many, since they depend on it."""
    specs = experiment.rows.values()
    return " / ".join(_unique(_title(spec, metric, spec.sampling.num_images) for spec in specs))


def metric_short(experiment: Experiment, metric: str) -> str:
    """The same without the extractor's name: ``FD-1k``, ``held-out FD-1k``, ``FID-5k``."""
    specs = experiment.rows.values()
    return " / ".join(_unique(_title(spec, metric, spec.sampling.num_images, named=False) for spec in specs))


def metric_of(experiment: Experiment, metric: str, images: int | None, named: bool = False) -> str:
    """A metric of other images than the rows' samples, of ``images`` of them; None: it is not said how many."""
    return " / ".join(_unique(_title(spec, metric, images, named) for spec in experiment.rows.values()))


def with_unit(experiment: Experiment, name: str, metric: str) -> str:
    """A column's name: ``KID x 1000``, ``copied %``, ``FD-1k``."""
    return f"{name} {_unit(experiment, metric)[1]}".rstrip()


def unit_in_brackets(experiment: Experiment, metric: str) -> str:
    """What follows a number in a sentence: `` (x 1000)``; empty where it is shown as it is."""
    return f" ({unit})" if (unit := _unit(experiment, metric)[1]) else ""


def in_units(experiment: Experiment, metric: str, value: float | None) -> float | None:
    """A number as tables show it."""
    return None if value is None else value * _unit(experiment, metric)[0]


def metric_number(experiment: Experiment, metric: str, value: float | None, sd: float | None = None) -> str:
    """A metric as tables show it, in its unit, with its deviation where there is one: ``5.41 ± 0.12``.

    KID with other features than Inception's may be of any size and sign: ``-2.80e4 ± 1.20e2``."""
    if metric.partition(":")[0] == "kid" and extractors(experiment):
        known = [v for v in (value, sd) if v is not None and not math.isnan(v)]
        return " ± ".join(map(_powers, known)) if known else MISSING
    return plus_minus(in_units(experiment, metric, value), in_units(experiment, metric, sd))


def _powers(value: float) -> str:
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}" if value else "0"


def _unit(experiment: Experiment, metric: str) -> tuple[int, str]:
    base = metric.partition(":")[0]
    if base == "kid" and extractors(experiment):  # how large it is depends on the features: thousands are for Inception
        return 1, ""
    return UNITS.get(base, (1, ""))


def extractors(experiment: Experiment) -> list[str]:
    """The names of the rows' extractors that are not the 2015 Inception network."""
    blocks = [spec.metrics.extractor for spec in experiment.rows.values()]
    return _unique(block.name for block in blocks if block.kind != "inception")


def _title(spec: RunSpec, metric: str, images: int | None, named: bool = True) -> str:
    base, _, suffix = metric.partition(":")
    prefix = {"": "", "heldout": "held-out "}.get(suffix, f"{suffix} ")
    extractor = spec.metrics.extractor
    inception = extractor.kind == "inception"
    name = {**NAMES, **(PAPER_NAMES if inception else OUR_NAMES)}.get(base, base)
    samples = f"-{thousands(images)}" if base in BIASED and images not in (None, PAPER_SAMPLES) else ""
    return f"{prefix}{name}{samples}{f' {extractor.name}' if named and not inception else ''}"


def scale_title(experiment: Experiment) -> str:
    """The scale and, where it is so, that its numbers are not comparable with the paper's."""
    if experiment.scale == "paper" and not extractors(experiment):
        return "paper scale"
    return f"{experiment.scale} scale, not comparable with the paper's FID"


def describe(labels: dict[str, str]) -> str:
    """Labels in one line; a value without letters takes its name along: ``AR, raster, tokens per step 1``."""
    return ", ".join(v if any(c.isalpha() for c in v) else f"{k} {v}" for k, v in labels.items())


def axis_labels(experiment: Experiment, row: str, axes: Iterable[str]) -> dict[str, str]:
    """What the table prints for a row's bundles on ``axes``: label name -> value."""
    bundles = experiment.bundles(row)
    return {k: str(v) for axis in axes for k, v in experiment.labels[axis][bundles[axis]].items()}


def row_axes(experiment: Experiment) -> list[str]:
    """The axes that run down the table: those of layout.rows and any that the layout does not place."""
    rows, columns = experiment.layout.get("rows", []), column_axes(experiment)
    return [*rows, *(a for a in experiment.labels if a not in rows and a not in columns)]


def column_axes(experiment: Experiment) -> list[str]:
    return list(experiment.layout.get("columns", []))


def lines_and_columns(experiment: Experiment) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """The table's grid: bundles of each line and of each column, outer axis first."""
    labels = experiment.labels
    lines = list(itertools.product(*(labels[a] for a in row_axes(experiment))))
    return lines, list(itertools.product(*(labels[a] for a in column_axes(experiment))))


def row_at(experiment: Experiment, line: tuple[str, ...], column: tuple[str, ...]) -> str:
    """The row of the experiment at a place of the table's grid."""
    bundles = dict(zip([*row_axes(experiment), *column_axes(experiment)], [*line, *column]))
    return "/".join(bundles[axis] for axis in experiment.labels)


def line_key(experiment: Experiment, row: str) -> str:
    """What ``paper`` calls the line of a row: its bundles on the axes that are no columns, in the axes' order."""
    columns = column_axes(experiment)
    return "/".join(bundle for axis, bundle in experiment.bundles(row).items() if axis not in columns)


def column_words(experiment: Experiment, column: tuple[str, ...]) -> str:
    """``without CFG``; empty where the table's rows are not spread over columns."""
    axes = column_axes(experiment)
    return describe({k: str(v) for axis, b in zip(axes, column) for k, v in experiment.labels[axis][b].items()})


def listed(words: list[str]) -> str:
    """``FID, IS and parameters``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def by_axes(experiment: Experiment, value_of: Callable[[RunSpec], str]) -> str:
    """A knob's value in all rows, said with as few axes as determine it: ``25 (diff), none (ce)``.

    A value that never changes stands alone."""
    axes = list(experiment.labels)
    for size in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, size):
            groups: dict[str, set[str]] = {}
            for row, spec in experiment.rows.items():
                bundles = experiment.bundles(row)
                groups.setdefault("/".join(bundles[a] for a in chosen), set()).add(value_of(spec))
            if all(len(values) == 1 for values in groups.values()):
                return _grouped({name: values.pop() for name, values in groups.items()})
    raise AssertionError("all axes together determine a row")


def _grouped(values: dict[str, str]) -> str:
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{value} ({', '.join(group)})" for value, group in names.items())


def markdown_table(heading: list[str], lines: list[list[str]]) -> str:
    """A GitHub table; texts are printed as they are."""
    escaped = [[" ".join(cell.split("\n")).replace("|", "\\|") for cell in line] for line in [heading, *lines]]
    return tabulate(escaped[1:], escaped[0], tablefmt="github", disable_numparse=True)


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
