"""Records -> tidy frames: one line per generation record, per floor, per speed measurement.

A cell is a row of an experiment (a bundle on each axis); its records are those with the cell's id, whatever
their seeds and devices."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from statistics import mean, stdev, variance
from typing import Any

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import CHOICE_SEED, TASKS, choosing_run, generation_run, reconstruction_run, speed_run
from mar_bench.config.spec import RunSpec
from mar_bench.records.metrics import GENERATION_METRICS, metric_name
from mar_bench.records.record import Record

# role (a column's name) -> metric (what records.metric_name turns into the record's own key)
ROLES = {metric.replace(":", "_"): metric for metric in GENERATION_METRICS}
REAL_ROLES = {f"{base}_real": f"{base}:real" for base in ("fd", "kid", "precision", "recall", "copied")}
FLOOR_ROLES = {"fd": "fd", "fd_heldout": "fd:heldout", **REAL_ROLES}
# not shown for the 2015 network: it does not know the data's classes, its reference need not be the training images
NOT_BY_INCEPTION = ("accuracy", "copied")
SPEED_METRICS = (
    "seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75", "latency_batch1",
    "share_backbone", "share_head", "share_decode", "peak_memory_mb",
)  # fmt: skip
SPEED_PROTOCOL = ("device", "threads", "dtype", "batch_size", "repeats")

Selection = dict[str, dict[str, list[Record]]]  # row -> task -> records
Runs = dict[tuple[int, int], Record]  # (training seed, sampling seed) -> record


def roles(experiment: Experiment) -> dict[str, str]:
    """The metrics of a table by role: the usual ones and those that only its layout names."""
    extra = {m.replace(":", "_"): m for m in experiment.layout.get("metrics", [])}
    return {**ROLES, **extra}


def extractor_block(spec: RunSpec) -> dict[str, str]:
    """What ``records.metric_name`` needs to know of a spec."""
    return {"kind": spec.metrics.extractor.kind, "name": spec.metrics.extractor.name}


def select(experiment: Experiment, records: dict[str, Record]) -> Selection:
    """The records of every row by task, ordered by seeds, then by id; an empty list where there are none.

    Generation records on the seed of choices are of no table, nor are any of a row whose point is not chosen yet, but
    for the points of it that failed. Rows
    are shared between tables by their ids, and others may have measured some of them on more seeds: where an experiment
    declares its seeds, records on others count if all of its rows have them (see ``left_out``)."""
    found = _found(experiment, records)
    outside = {record.id for record in _outside(experiment, found)}
    for tasks in found.values():
        tasks["generation"] = [record for record in tasks["generation"] if record.id not in outside]
    return found


def left_out(experiment: Experiment, records: dict[str, Record]) -> int:
    """How many generation records are on seeds that the experiment does not declare and not all of its rows have."""
    return len({record.id for record in _outside(experiment, _found(experiment, records))})


def _found(experiment: Experiment, records: dict[str, Record]) -> Selection:
    """The records of every row, whatever seeds the experiment declares."""
    by_cell: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records.values(), key=lambda r: (*seeds(r), r.id)):
        if record.task != "generation" or seeds(record)[1] != CHOICE_SEED:
            by_cell[record.task, record.ids.get("cell_id", "")].append(record)
    found = {}
    for row, spec in experiment.rows.items():
        # a speed cell holds every device, so the device given here does not matter
        runs = (generation_run(row, spec), reconstruction_run(row, spec), speed_run(row, spec, "any"))
        found[row] = {run.task: list(by_cell[run.task, run.cell_id]) for run in runs}
        if experiment.is_open(row):  # its spec is that of one point, which need not be the chosen one
            found[row] = {task: [] for task in found[row]} | {"generation": _failed_points(experiment, row, records)}
    return found


def _failed_points(experiment: Experiment, row: str, records: dict[str, Record]) -> list[Record]:
    """What keeps a row open until it is run again: the points, from among which its own is chosen, that failed."""
    sweep = experiment.sweeps.get(row)
    points = [choosing_run(row, spec) for _, spec in sweep.points] if sweep else []
    for search in experiment.searches:
        points += [choosing_run(search.judge, spec) for _, spec in search.points if row in search.rows]
    found = (records.get(run.id) for run in points)
    return [record for record in found if record is not None and record.status == "failed"]


def _outside(experiment: Experiment, found: Selection) -> list[Record]:
    """Records on undeclared seeds that some row lacks, of the rows that have any done."""
    if not experiment.seeds:
        return []
    by_row = {row: tasks["generation"] for row, tasks in found.items()}
    done = [pairs for records in by_row.values() if (pairs := {seeds(r) for r in records if r.status == "done"})]
    common = set.intersection(*done) if done else set()
    outside = []
    for row, records in by_row.items():
        if experiment.is_open(row):  # failed points, which are on the seed of choices
            continue
        spec = experiment.rows[row]
        training = experiment.seeds.get("training") or [spec.train.seed]
        sampling = experiment.seeds.get("sampling") or [spec.sampling.seed]
        declared = set(itertools.product(training, sampling))
        outside += [record for record in records if seeds(record) not in declared | common]
    return outside


def runs_with(records: Iterable[Record], metric: str) -> Runs:
    """The done ones that have a number of ``metric``."""
    return {seeds(r): r for r in records if r.status == "done" and not math.isnan(metric_value(r, metric))}


def seeds(record: Record) -> tuple[int, int]:
    """The training seed and the sampling seed of a record."""
    return record.spec.get("train", {}).get("seed", 0), record.spec.get("sampling", {}).get("seed", 0)


def collect(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per generation record, failed ones too.

    Columns: row, one per axis (bundle names), train_seed, sampling_seed, status, error, id, the metrics by role
    (the keys of ``roles``), each one's standard error within the run as ``<role>_se``, loss_train, loss_heldout,
    num_generated; NaN where absent."""
    names = roles(experiment)
    columns = ["row", *experiment.labels, "train_seed", "sampling_seed", "status", "error", "id"]
    columns += [*names, *map(se_of, names), "loss_train", "loss_heldout", "num_generated"]
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
                    **{role: metric_value(record, metric) for role, metric in names.items()},
                    **{se_of(role): standard_error(record, metric) for role, metric in names.items()},
                    "loss_train": _number(record.training.get("loss_train")),
                    "loss_heldout": _number(record.training.get("loss_heldout")),
                    "num_generated": _number(record.protocol.get("num_generated")),
                }
            )
    return pd.DataFrame(lines, columns=columns)


def floors(experiment: Experiment, records: dict[str, Record]) -> pd.DataFrame:
    """One line per row whose tokenizer was measured alone.

    Columns: row, its distances, the numbers of the real held-out images by themselves (the keys of REAL_ROLES),
    psnr, num_images (of each kind), id."""
    lines = []
    for row, tasks in select(experiment, records).items():
        for record in tasks["reconstruction"]:
            if record.status == "done":
                line = {role: metric_value(record, metric) for role, metric in FLOOR_ROLES.items()}
                line |= {"psnr": _number(record.metrics.get("psnr")), "id": record.id}
                lines.append({"row": row, **line, "num_images": record.protocol.get("num_generated")})
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


def main_setting(frame: pd.DataFrame) -> str | None:
    """The setting in which most rows were timed, the first by name among equals."""
    counts = frame["setting"].value_counts()
    return min((s for s, n in counts.items() if n == counts.max()), default=None)


def seconds_of(frame: pd.DataFrame, row: str, setting: str | None) -> float:
    """A row's seconds per image in a setting, NaN where it was not timed in it."""
    timed = frame.loc[(frame["row"] == row) & (frame["setting"] == setting), "seconds_per_image"]
    return float(timed.iloc[0]) if len(timed) else math.nan


def metric_value(record: Record, metric: str) -> float:
    """Of ``metric`` as in ``fd:heldout``; NaN where the record has none, or none to be shown."""
    if not is_shown(metric, record.spec["metrics"]["extractor"]):
        return math.nan
    return _number(record.metrics.get(_key(record, metric)))


def is_shown(metric: str, extractor: Mapping[str, Any]) -> bool:
    """Whether ``metric`` means something with this extractor."""
    return extractor["kind"] != "inception" or metric.partition(":")[0] not in NOT_BY_INCEPTION


def standard_error(record: Record, metric: str) -> float:
    """What the record's own images say of the metric's chance (delete-a-group jackknife); NaN where absent."""
    return _number(record.uncertainty.get(_key(record, metric), {}).get("standard_error"))


def _key(record: Record, metric: str) -> str:
    return metric_name(metric, record.spec["metrics"]["extractor"])


def se_of(role: str) -> str:
    """The column of a role's standard errors."""
    return f"{role}_se"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- means over seeds -----------------------------------------------------------------------------------

SeedValues = Mapping[tuple[int, int], float]  # (training seed, sampling seed) -> value


@dataclass(frozen=True)
class Spread:
    """Mean of a cell's metric, its deviation, and what the latter is over.

    ``over`` is "training" or "sampling" seeds: ``sd`` is the sample standard deviation of ``n`` values. It is "images"
    for one run (``n`` 1) whose images were resampled: ``sd`` is their standard error, and the chance of seeds is not in
    it. It is None for one run without: no ``sd``. ``complete`` says whether every training has every sampling seed.
    ``sd_sampling`` is the deviation over the samplings of a training, pooled over trainings; None without several."""

    mean: float
    sd: float | None
    n: int
    over: str | None
    train_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    complete: bool = True
    sd_sampling: float | None = None

    @property
    def sd_training(self) -> float | None:
        return self.sd if self.over == "training" else None

    @property
    def design(self) -> tuple:
        """Equal for cells whose ``sd`` means the same."""
        return tuple(getattr(self, f.name) for f in fields(self) if not f.name.startswith(("mean", "sd")))


def per_training_seed(values: SeedValues) -> dict[int, float]:
    """The mean over the sampling seeds of each training seed."""
    groups: dict[int, list[float]] = defaultdict(list)
    for (train_seed, _), value in sorted(values.items()):
        groups[train_seed].append(value)
    return {seed: mean(group) for seed, group in groups.items()}


def spread(values: SeedValues, errors: SeedValues | None = None) -> Spread:
    """Sampling seeds are averaged inside each training seed first, so that repeated sampling of one training
    does not pass for repeated training. The ``sd`` (ddof 1) is over training seeds where there are several,
    else over sampling seeds where there are several, else the run's standard error of ``errors``, else None.
    NaN values are left out."""
    kept = {seed: value for seed, value in values.items() if not math.isnan(value)}
    by_training = per_training_seed(kept)
    train_seeds = tuple(by_training)
    sampling_seeds = tuple(sorted({s for _, s in kept}))
    if not kept:
        return Spread(math.nan, None, 0, None, (), ())
    if len(kept) == 1:
        ((seed, value),) = kept.items()
        error = (errors or {}).get(seed, math.nan)
        sd, over = (None, None) if math.isnan(error) else (error, "images")
        return Spread(value, sd, 1, over, train_seeds, sampling_seeds)
    over = "training" if len(by_training) > 1 else "sampling"
    numbers = list((by_training if over == "training" else kept).values())
    complete = len(kept) == len(train_seeds) * len(sampling_seeds)
    sd_sampling = _pooled(kept)
    return Spread(mean(numbers), stdev(numbers), len(numbers), over, train_seeds, sampling_seeds, complete, sd_sampling)


def _pooled(values: SeedValues) -> float | None:
    """The standard deviation over the sampling seeds inside each training, from all trainings that have several."""
    groups = [[v for (t, _), v in values.items() if t == seed] for seed in per_training_seed(values)]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((len(group) - 1) * variance(group) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom) if freedom else None


def seed_values(cells: pd.DataFrame, row: str, role: str = "fd") -> dict[tuple[int, int], float]:
    """A cell's values of a metric, or of its ``se_of``, by (training seed, sampling seed); absent ones left out."""
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
