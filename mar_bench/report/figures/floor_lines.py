"""The dashed lines of tokenizers alone in figures of speed against distance."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.report.format import axis_labels
from mar_bench.report.frame import floor_of

NEUTRAL = "0.35"
DASHES = (0, (4, 2))


def floor_lines(
    ax: Axes, experiment: Experiment, points: pd.DataFrame, floor_frame: pd.DataFrame, colours: dict[str, str]
) -> None:
    """A dashed line for each tokenizer, in the colour of its rows where these have one colour.

    Several without a colour are told apart by names at their right ends, where their rows have one in common."""
    rows: dict[str, list[str]] = {}
    hues: dict[str, set[str]] = {}
    values: dict[str, float] = {}
    for point in points.to_dict("records"):
        row, floor = point["row"], floor_of(floor_frame, point["row"])
        if not math.isnan(floor):
            tokenizer = reconstruction_run(row, experiment.rows[row]).cell_id
            rows.setdefault(tokenizer, []).append(row)
            hues.setdefault(tokenizer, set()).add(point["hue"])
            values[tokenizer] = floor
    for tokenizer, floor in values.items():
        colour = colours[next(iter(hues[tokenizer]))] if len(hues[tokenizer]) == 1 else NEUTRAL
        ax.axhline(floor, color=colour, linestyle=DASHES, linewidth=1, zorder=1)
    plain = sorted((t for t in values if len(hues[t]) > 1), key=values.__getitem__)
    for i, (tokenizer, name) in enumerate(zip(plain, names_of(experiment, [rows[t] for t in plain]))):
        apart = "center" if len(plain) > 2 else ("top", "bottom")[i]  # two may be close together
        ax.annotate(
            name,
            (1, values[tokenizer]),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            ha="left",
            va=apart,
            fontsize=7,
            color=NEUTRAL,
        )
    ax.set_ylim(bottom=0)  # so that heights compare as distances do


def names_of(experiment: Experiment, lines: list[list[str]]) -> list[str]:
    """The value of a label that all rows of a line share and no two lines do, of one called tokenizer before others;
    none at all where there is no such label, or but one line."""
    if len(lines) < 2:
        return []
    labels = [[axis_labels(experiment, row, experiment.labels) for row in rows] for rows in lines]
    names = dict.fromkeys(name for of_line in labels for of_row in of_line for name in of_row)
    for name in sorted(names, key=lambda n: n != "tokenizer"):
        values = [_shared(of_row.get(name, "") for of_row in of_line) for of_line in labels]
        if all(values) and len(set(values)) == len(values):
            return values
    return []


def _shared(values: Iterable[str]) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else ""
