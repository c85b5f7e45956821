"""Deprecated: wide frames for the figures, until they read ``frames.frame``."""

from __future__ import annotations

import math

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import GENERATION_METRICS as METRICS
from mar_bench.records.record import Record
from mar_bench.report.frames import (  # noqa: F401
    REAL_METRICS,
    SPEED_METRICS,
    Runs,
    Selection,
    _setting,
    is_shown,
    left_out,
    metric_value,
    number_or_nan,
    runs_with,
    seeds,
    select,
    standard_error,
)
from mar_bench.report.spread import SeedValues, Spread, spread  # noqa: F401

ROLES = {metric.replace(":", "_"): metric for metric in METRICS}
REAL_ROLES = {f"{base}_real": f"{base}:real" for base in ("fd", "kid", "precision", "recall", "copied")}
FLOOR_ROLES = {"fd": "fd", "fd_heldout": "fd:heldout", **REAL_ROLES}


def collect(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    columns = [
        "row",
        *experiment.labels,
        "train_seed",
        "sampling_seed",
        "status",
        "error",
        "id",
        "num_generated",
        *ROLES,
        *map(se_of, ROLES),
    ]
    lines = []
    for row, tasks in select(experiment, records).items():
        for record in tasks["generation"]:
            train_seed, sampling_seed = seeds(record)
            line = {"row": row, **experiment.bundles(row), "train_seed": train_seed, "sampling_seed": sampling_seed}
            line |= {"error": record.error, "id": record.id}
            line |= {"num_generated": number_or_nan(record.protocol.get("num_generated"))}
            line |= {"status": record.status, **{role: metric_value(record, metric) for role, metric in ROLES.items()}}
            lines.append(line | {se_of(role): standard_error(record, metric) for role, metric in ROLES.items()})
    return pd.DataFrame(lines, columns=columns)


def floors(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    lines = [
        {"row": row, "num_images": record.protocol.get("num_generated")}
        | {role: metric_value(record, metric) for role, metric in FLOOR_ROLES.items()}
        for row, tasks in select(experiment, records).items()
        for record in tasks["reconstruction"]
        if record.status == "done"
    ]
    return pd.DataFrame(lines, columns=["row", "num_images", *FLOOR_ROLES])


def speeds(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    lines = [
        {"row": row, "setting": _setting(record.protocol)}
        | {name: number_or_nan(record.metrics.get(name)) for name in SPEED_METRICS}
        for row, tasks in select(experiment, records).items()
        for record in tasks["speed"]
        if record.status == "done"
    ]
    return pd.DataFrame(lines, columns=["row", "setting", *SPEED_METRICS])


def se_of(role: str) -> str:
    return f"{role}_se"


def seed_values(cells: pd.DataFrame, row: str, role: str = "fd") -> dict[tuple[int, int], float]:
    chosen = cells[(cells["row"] == row) & (cells["status"] == "done")]
    numbers = {
        (int(t), int(s)): float(v) for t, s, v in zip(chosen["train_seed"], chosen["sampling_seed"], chosen[role])
    }
    return {seed: value for seed, value in numbers.items() if not math.isnan(value)}


def floor_of(floor_frame: pd.DataFrame, row: str, role: str = "fd") -> float:
    found = floor_frame.loc[floor_frame["row"] == row, role]
    return float(found.iloc[0]) if len(found) else math.nan


def roles(experiment: Experiment) -> dict[str, str]:
    return ROLES


def seconds_of(frame: pd.DataFrame, row: str, setting: str | None) -> float:
    timed = frame.loc[(frame["row"] == row) & (frame["setting"] == setting), "seconds_per_image"]
    return float(timed.iloc[0]) if len(timed) else math.nan


def main_setting(frame: pd.DataFrame) -> str | None:
    counts = frame["setting"].value_counts()
    return min((s for s, n in counts.items() if n == counts.max()), default=None)
