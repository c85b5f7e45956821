"""Cells chosen by a sweep: the paper gives each cell at its best guidance and temperature and does not say which.

The points of a row are sampled on a seed that no table reports, so that the choice is not made on the numbers that
are shown. Until all of them are measured, the row's own cell is not known."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import choosing_run, reconstruction_run
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.config.sweeps import Search, Sweep
from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record


def with_choices(experiment: Experiment, records: dict[str, Record]) -> Experiment:
    """The experiment with every row at its chosen point, as far as records of all its points are there."""
    rows, choices = dict(experiment.rows), {}
    for search in experiment.searches:
        if (choice := _tokenizer(search, records)) is not None:
            for row in search.rows:
                rows[row], choices[row] = search.rows[row][_place(choice)], choice
    for row, sweep in experiment.sweeps.items():
        if (choice := _choice(row, sweep, records)) is not None:
            rows[row], choices[row] = sweep.points[_place(choice)][1], choice
    return replace(experiment, rows=rows, choices=choices)


def _place(choice: dict) -> int:
    return next(i for i, point in enumerate(choice["points"]) if point["values"] == choice["chosen"])


def _tokenizer(search: Search, records: dict[str, Record]) -> dict | None:
    """Each setting's distance of reconstructed held-out images and held-out loss of the short training, both as
    multiples of the best setting's, added up: a tokenizer has to keep the image and to be learnable."""
    points = []
    for values, spec in search.points:
        tried, alone = choosing_run(search.judge, spec), reconstruction_run(search.judge, spec)
        found = [_measured(records, run.id) for run in (tried, alone)]
        if None in found:
            return None
        distance, loss = _value(found[1], "fd"), found[0].training.get("loss_heldout")
        if distance is None or loss is None:
            return None
        points.append({"values": values, "reconstruction": distance, "loss": loss, "eval_id": tried.id})
    best = {key: min(point[key] for point in points) for key in ("reconstruction", "loss")}
    for point in points:
        point["value"] = sum(point[key] / best[key] for key in best)
    chosen = min(points, key=lambda point: point["value"])
    return _told("reconstruction + loss", True, chosen, points)


def _choice(row: str, sweep: Sweep, records: dict[str, Record]) -> dict | None:
    """What was measured at each point and which is the best, the first among equals; None while a point is missing."""
    points = []
    for values, spec in sweep.points:
        run = choosing_run(row, spec)
        if (record := _measured(records, run.id)) is None or (value := _value(record, sweep.metric)) is None:
            return None
        points.append({"values": values, "value": value, "eval_id": run.id})
    best = (min if sweep.minimise else max)(points, key=lambda point: point["value"])
    return _told(sweep.metric, sweep.minimise, best, points)


def _measured(records: dict[str, Record], run_id: str) -> Record | None:
    record = records.get(run_id)
    return record if record is not None and record.status == "done" else None


def _value(record: Record, metric: str) -> float | None:
    return record.metrics.get(metric_name(metric, record.spec["metrics"]["extractor"]))


def _told(metric: str, minimise: bool, chosen: dict, points: list[dict]) -> dict:
    """The choice as a record keeps it."""
    return {
        "metric": metric,
        "minimise": minimise,
        "sampling_seed": CHOICE_SEED,
        "chosen": chosen["values"],
        "points": points,
    }
