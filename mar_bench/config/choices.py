"""Choose a sweep point for each cell: the paper reports the best guidance and temperature without naming them.

Sweep points are sampled with a seed that no table reports, so the choice does not bias the reported numbers. Until all
points are measured, the row is open: it is planned and counted, but not run."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import choosing_run
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.records.metrics import metric_name
from mar_bench.records.record import Record, Records


def with_choices(experiment: Experiment, records: Records) -> Experiment:
    """The experiment with each row at its best sweep point, if all of the row's points have records.

    The first of equal points wins; ``choices`` has the format of ``Record.selection``."""
    rows, choices = dict(experiment.rows), {}
    for row, sweep in experiment.sweeps.items():
        tried = [(values, choosing_run(row, spec).id) for values, spec in sweep.points]
        values = [_value(records.get(eval_id), sweep.metric) for _, eval_id in tried]
        measured = [value for value in values if value is not None]
        if len(measured) < len(values):
            continue
        best = measured.index(min(measured) if sweep.minimise else max(measured))
        points = [{"values": point, "value": v, "eval_id": eval_id} for (point, eval_id), v in zip(tried, measured)]
        choice = {"metric": sweep.metric, "minimise": sweep.minimise, "sampling_seed": CHOICE_SEED}
        rows[row] = sweep.points[best][1]
        choices[row] = choice | {"chosen": points[best]["values"], "points": points}
    return replace(experiment, rows=rows, choices=choices)


def _value(record: Record | None, metric: str) -> float | None:
    if record is None or record.status != "done":
        return None
    return record.metrics.get(metric_name(metric, record.spec["metrics"]["extractor"]))
