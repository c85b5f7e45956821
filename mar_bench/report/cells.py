"""Records -> tidy frames: one line per generation record, per floor, per speed measurement.

A cell is a row of an experiment (a bundle on each axis); its records are those with the cell's id, whatever
their seeds and devices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import mean, stdev
from typing import Any

import pandas as pd

from mar_bench.config import Experiment
from mar_bench.ids import TASKS, generation_run, reconstruction_run, speed_run
from mar_bench.records import Record, metric_name
from mar_bench.spec import RunSpec

# role (a column's name) -> metric (what records.metric_name turns into the record's own key)
ROLES = {"fd": "fd", "fd_heldout": "fd:heldout", "is": "is", "accuracy": "accuracy"}
FLOOR_ROLES = {"fd": "fd", "fd_heldout": "fd:heldout", "fd_real": "fd:real"}
SPEED_METRICS = (
    "seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75", "latency_batch1",
    "share_backbone", "share_head", "share_decode", "peak_memory_mb",
)  # fmt: skip
SPEED_PROTOCOL = ("device", "threads", "dtype", "batch_size", "repeats")

Selection = dict[str, dict[str, list[Record]]]  # row -> task -> records


def roles(experiment: Experiment) -> dict[str, str]:
    """The metrics of a table by role: the usual ones and those that only its layout names."""
    extra = {m.replace(":", "_"): m for m in experiment.layout.get("metrics", [])}
    return {**ROLES, **extra}


def extractor_block(spec: RunSpec) -> dict[str, str]:
    """What ``records.metric_name`` needs to know of a spec."""
    return {"kind": spec.metrics.extractor.kind, "name": spec.metrics.extractor.name}


def select(experiment: Experiment, records: dict[str, Record]) -> Selection:
    """The records of every row by task, ordered by seeds, then by id; an empty list where there are none."""
    by_cell: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records.values(), key=lambda r: (*seeds(r), r.id)):
        by_cell[record.task, record.ids.get("cell_id", "")].append(record)
    chosen = {}
    for row, spec in experiment.rows.items():
        # a speed cell holds every device, so the device given here does not matter
        runs = (generation_run(row, spec), reconstruction_run(row, spec), speed_run(row, spec, "any"))
        chosen[row] = {run.task: by_cell[run.task, run.cell_id] for run in runs}
    return chosen


def seeds(record: Record) -> tuple[int, int]:
    """The training seed and the sampling seed of a record."""
    return record.spec.get("train", {}).get("seed", 0), record.spec.get("sampling", {}).get("seed", 0)


def collect(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per generation record, failed ones too.

    Columns: row, one per axis (bundle names), train_seed, sampling_seed, status, error, id, the metrics by
    role (fd, fd_heldout, is, accuracy), loss_train, loss_heldout, num_generated; NaN where absent."""
    names = roles(experiment)
    columns = ["row", *experiment.labels, "train_seed", "sampling_seed", "status", "error", "id"]
    columns += [*names, "loss_train", "loss_heldout", "num_generated"]
    lines = []
    for row, tasks in select(experiment, records).items():
        for record in tasks["generation"]:
            train_seed, sampling_seed = seeds(record)
            lines.append(
                {
                    "row": row,
                    **experiment.bundles(row),
                    "train_seed": train_seed,
                    "sampling_seed": sampling_seed,
                    "status": record.status,
                    "error": record.error,
                    "id": record.id,
                    **_metrics(record, names),
                    "loss_train": _number(record.training.get("loss_train")),
                    "loss_heldout": _number(record.training.get("loss_heldout")),
                    "num_generated": _number(record.protocol.get("num_generated")),
                }
            )
    return pd.DataFrame(lines, columns=columns)


def floors(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per row whose tokenizer was measured alone: row, distances, psnr, num_images, id."""
    lines = []
    for row, tasks in select(experiment, records).items():
        for record in tasks["reconstruction"]:
            if record.status == "done":
                line = {
                    "row": row,
                    **_metrics(record, FLOOR_ROLES),
                    "psnr": _number(record.metrics.get("psnr")),
                }
                lines.append({**line, "num_images": record.protocol.get("num_generated"), "id": record.id})
    return pd.DataFrame(lines, columns=["row", *FLOOR_ROLES, "psnr", "num_images", "id"])


def speeds(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per row and setting (device, threads, dtype, batch); only numbers of one setting compare.

    Columns: row, setting, device, threads, dtype, batch_size, repeats, the metrics of a speed record, id."""
    lines = []
    for row, tasks in select(experiment, records).items():
        for record in tasks["speed"]:
            if record.status == "done":
                protocol = {k: record.protocol.get(k) for k in SPEED_PROTOCOL}
                numbers = {k: _number(record.metrics.get(k)) for k in SPEED_METRICS}
                lines.append({"row": row, "setting": _setting(protocol), **protocol, **numbers, "id": record.id})
    return pd.DataFrame(lines, columns=["row", "setting", *SPEED_PROTOCOL, *SPEED_METRICS, "id"])


def _setting(protocol: dict[str, Any]) -> str:
    threads = protocol["threads"]
    words = [
        protocol["device"],
        threads and f"{threads} thread{'s' if threads != 1 else ''}",
        protocol["dtype"],
        protocol["batch_size"] and f"batch {protocol['batch_size']}",
    ]
    return ", ".join(str(w) for w in words if w)


def _metrics(record: Record, names: dict[str, str]) -> dict[str, float]:
    extractor = record.spec["metrics"]["extractor"]
    return {role: _number(record.metrics.get(metric_name(metric, extractor))) for role, metric in names.items()}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- means over seeds -----------------------------------------------------------------------------------

SeedValues = Mapping[tuple[int, int], float]  # (training seed, sampling seed) -> value


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a cell's metric, and what the latter is over.

    ``over`` is "training", "sampling" or None (one run: no ``sd``); ``n`` is how many values ``sd`` is of;
    ``complete`` says whether every training has every sampling seed."""

    mean: float
    sd: float | None
    n: int
    over: str | None
    train_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    complete: bool = True

    @property
    def design(self) -> tuple:
        """Equal for cells whose ``sd`` means the same."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in ("mean", "sd"))


def per_training_seed(values: SeedValues) -> dict[int, float]:
    """The mean over the sampling seeds of each training seed."""
    groups: dict[int, list[float]] = defaultdict(list)
    for (train_seed, _), value in sorted(values.items()):
        groups[train_seed].append(value)
    return {seed: mean(group) for seed, group in groups.items()}


def spread(values: SeedValues) -> Spread:
    """Sampling seeds are averaged inside each training seed first, so that repeated sampling of one training
    does not pass for repeated training. The ``sd`` (ddof 1) is over training seeds where there are several,
    else over sampling seeds where there are several, else None. NaN values are left out."""
    kept = {seed: value for seed, value in values.items() if not math.isnan(value)}
    by_training = per_training_seed(kept)
    train_seeds = tuple(by_training)
    sampling_seeds = tuple(sorted({s for _, s in kept}))
    if not kept:
        return Spread(math.nan, None, 0, None, (), ())
    if len(by_training) > 1:
        numbers, over = list(by_training.values()), "training"
    elif len(kept) > 1:
        numbers, over = list(kept.values()), "sampling"
    else:
        numbers, over = list(kept.values()), None
    sd = stdev(numbers) if over else None
    complete = len(kept) == len(train_seeds) * len(sampling_seeds)
    return Spread(mean(numbers), sd, len(numbers), over, train_seeds, sampling_seeds, complete)


def seed_values(cells: pd.DataFrame, row: str, role: str = "fd") -> dict[tuple[int, int], float]:
    """A cell's values of a metric by (training seed, sampling seed); failed and absent ones left out."""
    chosen = cells[(cells["row"] == row) & (cells["status"] == "done")]
    numbers = {
        (int(t), int(s)): float(v) for t, s, v in zip(chosen["train_seed"], chosen["sampling_seed"], chosen[role])
    }
    return {seed: value for seed, value in numbers.items() if not math.isnan(value)}


def floor_of(floor_frame: pd.DataFrame, row: str, role: str = "fd") -> float:
    """A row's floor, NaN where it was not measured."""
    found = floor_frame.loc[floor_frame["row"] == row, role]
    return float(found.iloc[0]) if len(found) else math.nan


assert set(TASKS) == {"generation", "reconstruction", "speed"}  # select() names each of them
