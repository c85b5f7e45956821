"""Choose a sweep point for each cell: the paper reports the best guidance and temperature without naming them.

Sweep points are sampled with a seed that no table reports, so the choice does not bias the reported numbers. Until all
points are measured, the row itself is open: planned and counted, but not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import choosing_run, reconstruction_run
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.config.sweeps import Search, Sweep
from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record

Points = list[dict[str, Any]]


def with_choices(experiment: Experiment, records: dict[str, Record]) -> Experiment:
    """The experiment with each row at its best sweep point, if all of the row's points have records."""
    rows, choices = dict(experiment.rows), {}
    for search in experiment.searches:
        if points := _search_points(search, records):
            choice = _choice("reconstruction + loss", True, points)
            for row, specs in search.rows.items():
                rows[row], choices[row] = specs[_index(choice)], choice
    for row, sweep in experiment.sweeps.items():
        if points := _sweep_points(row, sweep, records):
            choice = _choice(sweep.metric, sweep.minimise, points)
            rows[row], choices[row] = sweep.points[_index(choice)][1], choice
    return replace(experiment, rows=rows, choices=choices)


def _search_points(search: Search, records: dict[str, Record]) -> Points:
    """The settings with their scores; [] while a measurement is missing.

    The score is the distance of reconstructed held-out images plus the held-out loss of the short training, each
    relative to the best setting: a good tokenizer preserves the image and its latents are easy to model."""
    points: Points = []
    for values, spec in search.points:
        tried, alone = choosing_run(search.judge, spec), reconstruction_run(search.judge, spec)
        distance = _value(records.get(alone.id), "fd")
        record = records.get(tried.id)
        loss = record.training.get("loss_heldout") if record and record.status == "done" else None
        if distance is None or loss is None:
            return []
        points.append({"values": values, "reconstruction": distance, "loss": loss, "eval_id": tried.id})
    best = {key: min(point[key] for point in points) for key in ("reconstruction", "loss")}
    return [{**point, "value": sum(point[key] / best[key] for key in best)} for point in points]


def _sweep_points(row: str, sweep: Sweep, records: dict[str, Record]) -> Points:
    """The points with their values of the sweep's metric; [] while one is missing."""
    tried = [(values, choosing_run(row, spec).id) for values, spec in sweep.points]
    points = [{"values": values, "value": _value(records.get(i), sweep.metric), "eval_id": i} for values, i in tried]
    return [] if any(point["value"] is None for point in points) else points


def _value(record: Record | None, metric: str) -> float | None:
    if record is None or record.status != "done":
        return None
    return record.metrics.get(metric_name(metric, record.spec["metrics"]["extractor"]))


def _choice(metric: str, minimise: bool, points: Points) -> dict[str, Any]:
    """The best point (the first of equals), in the format of ``Record.selection``."""
    best = (min if minimise else max)(points, key=lambda point: point["value"])
    common = {"metric": metric, "minimise": minimise, "sampling_seed": CHOICE_SEED}
    return {**common, "chosen": best["values"], "points": points}


def _index(choice: dict[str, Any]) -> int:
    return [point["values"] for point in choice["points"]].index(choice["chosen"])
