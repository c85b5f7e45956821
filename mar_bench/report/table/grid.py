"""All measurements of one experiment, and its tables as data: columns and lines of cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, METRICS, ONCE_METRICS, PUBLISHED
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.frames import Records, frame_of, main_setting, metric_value, select, spreads, values
from mar_bench.report.paper_agreement import NOT_COMPARABLE, agreement
from mar_bench.report.render import Best
from mar_bench.report.stats import Spread

FAILED = "FAILED"
PARTLY = "†"  # some runs of the cell failed
# shown below the main table
FURTHER = (
    "rfd", "rfd:heldout", "latent_noise", "fd:heldout", "kid", "mind", "precision", "recall", "copied", "accuracy",
    *LIKELIHOOD_METRICS,
)  # fmt: skip


class Measured:
    """Attributes: experiment, selection (row -> task -> records), frame, spreads ((row, metric) -> Spread),
    speed_setting (the one setting whose seconds are shown), seconds (row -> seconds per image in it) and once (metric
    -> row -> a number that does not depend on seeds)."""

    def __init__(self, experiment: Experiment, records: Records):
        self.experiment, self.selection = experiment, select(experiment, records)
        self.frame = frame_of(experiment, self.selection)
        self.spreads = spreads(self.frame)
        self.speed_setting = main_setting(self.frame)
        self.seconds = values(self.frame, "seconds_per_image", self.speed_setting)
        self.once = {metric: values(self.frame, metric) for metric in ONCE_METRICS}

    @property
    def over_training(self) -> bool:
        """Whether the rows are steps of trainings, and orderings are judged along them."""
        return self.experiment.figure.get("kind") == "training"

    def spread(self, row: str, metric: str) -> Spread:
        """Mean and ± of a metric over the runs of a row; NaN without a number."""
        return self.spreads.get((row, metric), Spread())

    def measured(self) -> set[str]:
        """The metrics that have a number, of generated images or printed once per line."""
        return {metric for _, metric in self.spreads} | {metric for metric, numbers in self.once.items() if numbers}

    def reconstruction_distance(self) -> str:
        """``FD-1k``: the distance of the reconstructed images; their number may differ from that of the samples."""
        counts = {int(n) for n in self.frame.loc[self.frame["metric"] == "rfd", "num_images"].dropna()}
        return fmt.metric_title(self.experiment, "fd", named=False, images=counts.pop() if len(counts) == 1 else None)

    def statuses(self, row: str, task: str = "generation") -> set[str]:
        """The statuses of the row's records of a task."""
        return {record.status for record in self.selection.get(row, {}).get(task, [])}

    def status(self, row: str, task: str = "generation") -> str:
        """``done`` (at least one run), ``failed``, ``absent`` at this scale, ``not chosen yet`` or ``missing``."""
        if row in self.experiment.absent:
            return "absent"
        missing = fmt.NOT_CHOSEN if self.experiment.is_open(row) else "missing"
        return min(self.statuses(row, task), default=missing)  # done before failed

    def comparable(self, metric: str) -> bool:
        """Whether the best of the rows may be marked: likelihoods are of the same tokens or not compared at all."""
        scored = {record.ids["latents_id"] for _, record in self.done("likelihood")}
        return metric not in LIKELIHOOD_METRICS or len(scored) == 1

    def done(self, *tasks: str, metric: str | None = None) -> list[tuple[str, Record]]:
        """The rows' done records of the tasks; if ``metric`` is given, only those with a number for it."""
        found = [(row, r) for task in tasks for row, of_row in self.selection.items() for r in of_row[task]]
        done = [(row, r) for row, r in found if r.status == "done"]
        return [(row, r) for row, r in done if metric is None or not math.isnan(metric_value(r, metric))]


@dataclass(frozen=True)
class Column:
    """``group`` names the bundles of the column axes (``with CFG``), ``published`` whether cells show the paper's."""

    title: str
    group: str = ""
    published: bool = False
    metric: str = ""

    def __str__(self) -> str:
        """``FD-1k, without CFG (paper)``."""
        return ", ".join(filter(None, (self.title, self.group))) + " (paper)" * self.published


@dataclass(frozen=True)
class Grid:
    """Lines of labels and cells under ``labels`` and ``columns``."""

    labels: list[str]
    columns: list[Column]
    lines: list[list[str]]  # the labels, then the cells: ``5.41 ± 0.12 (19.58)``
    intro: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Consecutive columns of one group: its name and their number."""
        return [(group, len(columns)) for group, columns in self._grouped()]

    @property
    def groups_apart(self) -> list[tuple[str, int]]:
        """The same where the paper's numbers are columns of their own."""
        return [(group, len(columns) + sum(c.published for c in columns)) for group, columns in self._grouped()]

    def _grouped(self) -> list[tuple[str, list[Column]]]:
        return [(group, list(same)) for group, same in itertools.groupby(self.columns, lambda column: column.group)]

    def apart(self, line: list[str]) -> Iterator[tuple[Column, str, str]]:
        """Each column of a line with our number and the paper's, which is empty unless the column shows it."""
        for column, cell in zip(self.columns, line[len(self.labels) :]):
            ours, _, paper = cell.rpartition(" (") if column.published else (cell, "", "")
            yield column, type(cell)(ours), paper.removesuffix(")")

    def markdown(self) -> fmt.Block:
        heading = [*self.labels, *map(str, self.columns)]
        table = fmt.markdown_table(heading, self.lines)
        return fmt.Block(f"{fmt.inline(self.intro)}\n\n{table}") if self.intro else table


def main_grid(found: Measured) -> Grid:
    """The paper's table: first the numbers of whole lines, then the metrics of every column; absent rows too."""
    experiment, layout = found.experiment, found.experiment.layout
    lines, columns = fmt.lines_and_columns(experiment)
    shown = [(metric, columns) for metric in layout.get("beside", [])]
    shown += [(metric, [column]) for column in columns for metric in layout.get("metrics", ["fd"])]
    heading, by_column = [], []
    for metric, of in shown:
        group = "" if metric in layout.get("beside", []) else fmt.column_words(experiment, of[0])
        heading.append(Column(_title(found, metric), group, fmt.in_paper(experiment, metric), metric))
        rows = [[fmt.row_at(experiment, line, column) for column in of] for line in lines]
        cells = [_cell(found, of_line, metric, heading[-1].published) for of_line in rows]
        means = [math.nan if metric in ONCE_METRICS else found.spread(of_line[0], metric).mean for of_line in rows]
        known = [mean for mean in means if not math.isnan(mean)]
        best = (
            (min if METRICS[metric].lower_is_better else max)(known)
            if len(known) > 1 and found.comparable(metric)
            else None
        )
        by_column.append([Best(cell) if mean == best else cell for cell, mean in zip(cells, means)])
    labels = [fmt.axis_labels(experiment, dict(zip(fmt.row_axes(experiment), line))) for line in lines]
    names = list(dict.fromkeys(name for of_line in labels for name in of_line)) or [""]
    texts = [[of_line.get(name, "") for name in names] for of_line in labels]
    return Grid(names, heading, [[*line, *cells] for line, cells in zip(texts, zip(*by_column))])


def further_grid(found: Measured) -> Grid | None:
    """The measured metrics that the main table does not show; None if there are none."""
    experiment, layout = found.experiment, found.experiment.layout
    measured = found.measured()
    metrics = [m for m in FURTHER if m in measured - {*layout.get("metrics", ["fd"]), *layout.get("beside", [])}]
    columns = [Column(_title(found, metric), metric=metric) for metric in metrics]
    lines = [[row, *(_cell(found, [row], metric, False) for metric in metrics)] for row in experiment.rows]
    return Grid(["row"], columns, lines, "Further metrics of every row:") if metrics else None


def quoted_grid(experiment: Experiment) -> Grid | None:
    """Published rows of systems that the suite does not measure; None if there are none."""
    rows, own = experiment.quoted, ["/".join(column) for column in fmt.lines_and_columns(experiment)[1]]
    if not rows:
        return None
    keys = dict.fromkeys(["", *own, *(key for row in rows for key in row.numbers)])  # the row itself, columns, others
    columns, texts = [], []
    for key, metric in itertools.product(keys, [metric for metric in PUBLISHED if metric in METRICS]):
        of_column = [fmt.number_or_bound(row.numbers.get(key, {}), metric) for row in rows]
        if set(of_column) - {fmt.MISSING}:
            group = fmt.column_words(experiment, tuple(key.split("/"))) if key in own else key
            columns.append(Column(fmt.paper_name(metric), group))
            texts.append(of_column)
    sources = "; ".join(dict.fromkeys(row.source for row in rows if row.source))
    intro = f"Quoted from the paper{f' ({sources})' if sources else ''}, not measured here:"
    return Grid(["system"], columns, [[row.label, *cells] for row, cells in zip(rows, zip(*texts))], intro)


def literature_grid(experiment: Experiment) -> Grid | None:
    """What others have measured at small scale about the experiment's question; None if it asks for nothing."""
    columns = [Column(title) for title in ("system", "metric", "value", "source")]
    lines = [[f.setting, f.system, f.metric, f.value, f"{f.source}, {f.table}"] for f in experiment.literature]
    return Grid(["setting"], columns, lines) if lines else None


def agreement_grid(found: Measured) -> Grid | None:
    """Ours beside the paper's, number by number; None if nothing is comparable."""
    experiment, lines = found.experiment, []
    for row, metric in itertools.product(experiment.rows, GENERATION_METRICS):
        spread = found.spread(row, metric)
        published, difference, verdict = agreement(experiment, row, metric, spread.mean)
        if verdict in ("", NOT_COMPARABLE):
            continue
        change = fmt.number(difference, like=spread.mean, signed=True)
        if published and not math.isnan(difference):
            change += f" ({fmt.percent(100 * difference / published)})"
        paper = fmt.published_text(experiment, row, metric)
        ours = fmt.plus_minus(spread.mean, spread.sd)
        lines.append([row, _title(found, metric), ours, paper, change, verdict])
    columns = [Column(title) for title in ("ours", "published", "difference", "verdict")]
    return Grid(["row", "metric"], columns, lines) if lines else None


def _title(found: Measured, metric: str) -> str:
    if METRICS[metric].base == "rfd":
        return f"reconstruction {found.reconstruction_distance()}, {fmt.against(found.experiment, metric)}"
    return METRICS[metric].label if metric in ONCE_METRICS else fmt.column_title(found.experiment, metric)


def _cell(found: Measured, rows: list[str], metric: str, with_paper: bool) -> str:
    """The number of a row, or the one shared by all rows of a line, with the paper's in brackets."""
    experiment, row, spread = found.experiment, rows[0], found.spread(rows[0], metric)
    published = fmt.published_text(experiment, row, metric)
    if metric in ONCE_METRICS:
        is_speed, papers = metric == "seconds_per_image", [fmt.published_value(experiment, r, metric) for r in rows]
        numbers = found.seconds if is_speed else found.once[metric]
        ours = [numbers[r] for r in (rows[-1:] if is_speed else rows) if r in numbers]  # seconds: of the last column
        text = fmt.metric_number(experiment, metric, ours[0] if ours else None)
        published = fmt.paper_number(metric, next((value for value in papers if value is not None), None))
    elif row in experiment.absent:  # the first metric's column shows the reason
        first = metric == experiment.layout.get("metrics", ["fd"])[0]
        text = experiment.absent[row] if first else fmt.MISSING
    elif not spread.n:
        text = FAILED if found.status(row, METRICS[metric].task) == "failed" else fmt.MISSING
    else:
        text = fmt.metric_number(experiment, metric, spread.mean, spread.sd)
        text += f" {PARTLY}" * ("failed" in found.statuses(row, METRICS[metric].task))
    return f"{text} ({published})" if with_paper else text
