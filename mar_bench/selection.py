"""Cells chosen by a sweep: the paper gives each cell at its best guidance and temperature and does not say which.

The points of a row are sampled on a seed that no table reports, so that the choice is not made on the numbers that
are shown. Until all of them are measured, the row's own cell is not known."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config import Experiment, Sweep
from mar_bench.ids import CHOICE_SEED, generation_run, with_seeds
from mar_bench.parse import as_tree
from mar_bench.records import Record, metric_name


def with_choices(experiment: Experiment, records: dict[str, Record]) -> Experiment:
    """The experiment with every row at its chosen point, as far as records of all its points are there."""
    rows, choices = dict(experiment.rows), {}
    for row, sweep in experiment.sweeps.items():
        if (choice := _choice(row, sweep, records)) is not None:
            best = next(i for i, point in enumerate(choice["points"]) if point["values"] == choice["chosen"])
            rows[row], choices[row] = sweep.points[best][1], choice
    return replace(experiment, rows=rows, choices=choices)


def _choice(row: str, sweep: Sweep, records: dict[str, Record]) -> dict | None:
    """What was measured at each point and which is the best, the first among equals; None while a point is missing."""
    points = []
    for values, spec in sweep.points:
        run = generation_run(row, with_seeds(spec, spec.train.seed, CHOICE_SEED))
        record = records.get(run.id)
        if record is None or record.status != "done":
            return None
        value = record.metrics.get(metric_name(sweep.metric, as_tree(spec)["metrics"]["extractor"]))
        if value is None:
            return None
        points.append({"values": values, "value": value, "eval_id": run.id})
    best = (min if sweep.minimise else max)(points, key=lambda point: point["value"])
    return {
        "metric": sweep.metric,
        "minimise": sweep.minimise,
        "sampling_seed": CHOICE_SEED,
        "chosen": best["values"],
        "points": points,
    }
