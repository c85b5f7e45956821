"""Training losses and the distances of snapshots, in a terminal or as a picture."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import plotext
from matplotlib import rc_context
from matplotlib.figure import Figure

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import RunSpec
from mar_bench.records.record import Records, of_cells
from mar_bench.report.figures.panels import METADATA, STYLE, save
from mar_bench.report.frames import metric_value
from mar_bench.utils.console import console_table, printable

Points = list[tuple[int, float]]  # training step and value
FORMATS = tuple(METADATA)
HEIGHT = 20  # lines of a drawing
MOST_COLUMNS = 110
MARKERS = "ox+*#@%&"


def snapshots(spec: RunSpec, records: Records) -> Points:
    """The mean distance over all seeds of the images drawn after each kept step of a training, where it is measured."""
    found = []
    for step in (*(spec.train.snapshots if spec.train.annealing is None else ()), spec.train.steps):
        snapshot = None if step == spec.train.steps else step
        cell = generation_run("", replace(spec, sampling=replace(spec.sampling, snapshot=snapshot))).cell_id
        done = [r for r in of_cells(records, {cell}) if r.task == "generation" and r.status == "done"]
        values = [value for record in done if not math.isnan(value := metric_value(record, "fd"))]
        if values:
            found.append((step, sum(values) / len(values)))
    return found


def drawn(title: str, curves: dict[str, Points]) -> str:
    """Curves over the logarithm of the step, for a terminal as wide as this one."""
    plotext.clear_figure()
    plotext.theme("clear")
    width = min(MOST_COLUMNS, shutil.get_terminal_size((80, 24)).columns)
    plotext.plotsize(width, HEIGHT)
    plotext.title(printable(title))
    for marker, (name, points) in zip(itertools.cycle(MARKERS), curves.items()):
        steps, values = zip(*points)
        plotext.plot(steps, values, label=printable(name), marker=marker)
    plotext.xscale("log")
    ticks = sorted({step for points in curves.values() for step in (points[0][0], points[-1][0])})
    plotext.xticks(ticks, [f"{tick:,}" for tick in ticks])
    return plotext.uncolorize(plotext.build())


def listed(curves: dict[str, Points]) -> str:
    """The last value of each curve."""
    return console_table(
        ["", "step", "value"], [[name, f"{points[-1][0]:,}", f"{points[-1][1]:.4g}"] for name, points in curves.items()]
    )


def picture(panels: dict[str, dict[str, Points]], path: Path) -> Path:
    """Write one panel for each title to a png, pdf or svg file."""
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
        for ax, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            for name, points in curves.items():
                ax.plot(*zip(*points), label=name, linewidth=1.2, marker="" if len(points) > 8 else "o")
            ax.set(title=title, xlabel="training step", xscale="log")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1)
        return save(figure, path, bbox_inches="tight")
