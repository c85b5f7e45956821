"""Choose a sweep point for each cell: the paper reports the best guidance and temperature without naming them.

Sweep points are sampled with a seed that no table reports, so the choice does not bias the reported numbers. Until all
points are measured, the row is open: it is planned and counted, but not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import choosing_run, reconstruction_run
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.config.sweeps import Sweep
from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record, Records


def with_choices(experiment: Experiment, records: Records) -> Experiment:
    """The experiment with each row at its best sweep point, if all of the row's points have records.

    The first of equal points wins; ``choices`` has the format of ``Record.selection``."""
    rows, choices = dict(experiment.rows), {}
    for sweep in (*experiment.searches, *experiment.sweeps.values()):
        points = _searched(sweep, records) if sweep in experiment.searches else _swept(sweep, records)
        values = [point["value"] for point in points]
        if not values or None in values:  # a measurement is missing
            continue
        best = values.index(min(values) if sweep.minimise else max(values))
        choice = {"metric": sweep.metric, "minimise": sweep.minimise, "sampling_seed": CHOICE_SEED}
        choice |= {"chosen": points[best]["values"], "points": points}
        for row, specs in sweep.rows.items():
            rows[row], choices[row] = specs[best], choice
    return replace(experiment, rows=rows, choices=choices)


def _swept(sweep: Sweep, records: Records) -> list[dict[str, Any]]:
    """The points with their values of the sweep's metric, None for a missing one."""
    tried = [(values, choosing_run(sweep.judge, spec).id) for values, spec in sweep.points]
    return [{"values": values, "value": _value(records.get(i), sweep.metric), "eval_id": i} for values, i in tried]


def _searched(search: Sweep, records: Records) -> list[dict[str, Any]]:
    """The settings with their scores; [] while a measurement is missing.

    The score is the distance of reconstructed held-out images plus the held-out loss of the short training, each
    relative to the best setting: a good tokenizer preserves the image and its latents are easy to model."""
    points = []
    for values, spec in search.points:
        tried, alone = choosing_run(search.judge, spec), reconstruction_run(search.judge, spec)
        distance, record = _value(records.get(alone.id), "fd"), records.get(tried.id)
        loss = record.training.get("loss_heldout") if record and record.status == "done" else None
        if distance is None or loss is None:
            return []
        points.append({"values": values, "reconstruction": distance, "loss": loss, "eval_id": tried.id})
    best = {key: min(point[key] for point in points) for key in ("reconstruction", "loss")}
    return [{**point, "value": sum(point[key] / best[key] for key in best)} for point in points]


def _value(record: Record | None, metric: str) -> float | None:
    if record is None or record.status != "done":
        return None
    return record.metrics.get(metric_name(metric, record.spec["metrics"]["extractor"]))
