"""Records of an experiment as one tidy data frame.

A row is a line of an experiment's table (a bundle on each axis); its records are those with the row's ids, on any seeds
and devices."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import CHOICE_SEED, choosing_run, generation_run, reconstruction_run, speed_run
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, REAL_METRICS, metric_name
from mar_bench.records.record import Record, read_records, records_dir
from mar_bench.report.format import published_value
from mar_bench.report.spread import SeedValues, Spread, spread

SPEED_METRICS = (
    "seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75", "latency_batch1",
    "share_backbone", "share_head", "share_decode", "peak_memory_mb",
)  # fmt: skip

Selection = dict[str, dict[str, list[Record]]]  # row -> task -> records
Runs = dict[tuple[int, int], Record]  # (training seed, sampling seed) -> record


# --- the frame ------------------------------------------------------------------------------------------


def frame(experiment: Experiment | str, records: dict[str, Record] | None = None, scale: str = "tiny") -> pd.DataFrame:
    """One line per row, metric and record (a record is one training seed x sampling seed, or one speed setting).

    ``experiment`` is loaded at ``scale`` if it is an id; ``records`` are read from the default folder if None.
    Columns:

    - experiment, scale, row, and one column per axis with the row's bundle on it
    - task: generation, reconstruction (the row's tokenizer alone) or speed
    - setting: device, threads, dtype and batch size of a speed record, else empty; only equal settings compare
    - metric, key: our name, and the record's own (``fd:heldout``, ``fd_mnist5k_heldout``). Beside the usual metrics:
      loss_train, loss_heldout, parameters, head_parameters of a generation record; rfd, rfd:heldout, psnr and the
      held-out real images (``fd:real``) of a reconstruction; seconds_per_image and the like of a speed record
    - train_seed, sampling_seed
    - value, se: NaN if absent; se is the jackknife standard error within the run. Units are those of the records.
    - num_images: how many images were measured
    - paper: the published value of the same row, NaN if there is none
    - status, error, warnings: done or failed; warnings are such as ``singular`` or ``3 repeated images``
    - record: its id

    Raises UserError for an unknown experiment or a broken record."""
    records = read_records(records_dir()) if records is None else records
    if isinstance(experiment, str):
        experiment = with_choices(load_experiment(experiment, scale), records)
    return frame_of(experiment, select(experiment, records))


def frame_of(experiment: Experiment, selection: Selection) -> pd.DataFrame:
    """``frame`` of records that are already selected."""
    axes = list(experiment.labels)
    columns = ["experiment", "scale", "row", *axes, "task", "setting", "metric", "key", "train_seed", "sampling_seed"]
    columns += ["value", "se", "num_images", "paper", "status", "error", "warnings", "record"]
    lines = []
    for row, tasks in selection.items():
        for record in itertools.chain(*tasks.values()):
            train_seed, sampling_seed = seeds(record)
            common = {
                "experiment": experiment.id,
                "scale": experiment.scale,
                "row": row,
                **experiment.bundles(row),
                "task": record.task,
                "setting": _setting(record.protocol) if record.task == "speed" else "",
                "train_seed": train_seed,
                "sampling_seed": sampling_seed,
                "num_images": number_or_nan(record.protocol.get("num_generated")),
                "status": record.status,
                "error": record.error,
                "warnings": ", ".join(_warnings(record)),
                "record": record.id,
            }
            for metric, key, value, se in _numbers(record):
                paper = number_or_nan(published_value(experiment, row, metric))
                lines.append({**common, "metric": metric, "key": key, "value": value, "se": se, "paper": paper})
    return pd.DataFrame(lines, columns=columns)


def _numbers(record: Record) -> Iterator[tuple[str, str, float, float]]:
    """Metric, the record's own name of it, value and standard error."""
    if record.task == "generation":
        for metric in GENERATION_METRICS:
            if is_shown(metric, record.spec["metrics"]["extractor"]):
                yield metric, _key(record, metric), metric_value(record, metric), standard_error(record, metric)
        counts = {"parameters": record.parameters.get("total"), "head_parameters": record.parameters.get("head")}
        losses = {name: record.training.get(name) for name in ("loss_train", "loss_heldout")}
        for name, value in (counts | losses).items():
            yield name, name, number_or_nan(value), math.nan
    elif record.task == "reconstruction":
        for metric in ("fd", "fd:heldout", *REAL_METRICS):
            name = metric if metric in REAL_METRICS else f"r{metric}"
            yield name, _key(record, metric), metric_value(record, metric), standard_error(record, metric)
        yield "psnr", "psnr", number_or_nan(record.metrics.get("psnr")), math.nan
    else:
        for name in SPEED_METRICS:
            yield name, name, number_or_nan(record.metrics.get(name)), math.nan


def _setting(protocol: dict[str, Any]) -> str:
    """``NVIDIA A100, 1 thread, float32, batch 64``."""
    threads, batch = protocol.get("threads"), protocol.get("batch_size")
    words = [
        protocol.get("device"),
        threads and f"{threads} thread{'s' if threads != 1 else ''}",
        protocol.get("dtype"),
        batch and f"batch {batch}",
    ]
    return ", ".join(str(word) for word in words if word)


def _warnings(record: Record) -> Iterator[str]:
    protocol = record.protocol
    if protocol.get("singular"):
        yield "singular"
    if repeated := (protocol.get("samples") or {}).get("duplicates"):
        yield f"{repeated} repeated images"
    if protocol.get("label_mode", "balanced") != "balanced":
        yield f"labels {protocol['label_mode']}"


# --- reading the frame ----------------------------------------------------------------------------------


def spreads(frame: pd.DataFrame) -> dict[tuple[str, str], Spread]:
    """(row, metric) -> mean and ± of the generated images, for all that have a number."""
    done = frame[(frame["task"] == "generation") & (frame["status"] == "done")].dropna(subset="value")
    found: dict[tuple[str, str], Spread] = {}
    for (row, metric), group in done.groupby(["row", "metric"], sort=False):
        pairs = list(zip(group["train_seed"], group["sampling_seed"]))
        found[str(row), str(metric)] = spread(dict(zip(pairs, group["value"])), dict(zip(pairs, group["se"])))
    return found


def seed_values(frame: pd.DataFrame, row: str, metric: str, column: str = "value") -> SeedValues:
    """A row's values of a metric (or their ``se``) by (training seed, sampling seed); absent ones are left out."""
    chosen = frame[(frame["row"] == row) & (frame["metric"] == metric) & (frame["status"] == "done")].dropna(
        subset=column
    )
    pairs = zip(chosen["train_seed"], chosen["sampling_seed"])
    return {(int(t), int(s)): float(value) for (t, s), value in zip(pairs, chosen[column])}


def values(frame: pd.DataFrame, metric: str, setting: str | None = None) -> dict[str, float]:
    """Row -> its first value of something that does not depend on seeds: ``rfd``, ``parameters``, or
    ``seconds_per_image`` in one ``setting``. Rows without a number are left out."""
    chosen = frame[(frame["metric"] == metric) & (frame["status"] == "done")].dropna(subset="value")
    if setting is not None:
        chosen = chosen[chosen["setting"] == setting]
    first = chosen.drop_duplicates("row")
    return dict(zip(first["row"], first["value"]))


def main_setting(frame: pd.DataFrame) -> str | None:
    """The setting in which most rows were timed, the first by name among equals; None without speed records."""
    timed = frame[(frame["metric"] == "seconds_per_image") & (frame["status"] == "done")]
    counts = Counter(timed["setting"])
    return min((setting for setting, n in counts.items() if n == max(counts.values())), default=None)


# --- one record -----------------------------------------------------------------------------------------


def seeds(record: Record) -> tuple[int, int]:
    """The training seed and the sampling seed of a record."""
    return record.spec.get("train", {}).get("seed", 0), record.spec.get("sampling", {}).get("seed", 0)


def metric_value(record: Record, metric: str) -> float:
    """The value of ``metric`` (as in ``fd:heldout``); NaN if the record has none or it means nothing here."""
    if not is_shown(metric, record.spec["metrics"]["extractor"]):
        return math.nan
    return number_or_nan(record.metrics.get(_key(record, metric)))


def standard_error(record: Record, metric: str) -> float:
    """The metric's delete-a-group jackknife standard error over the record's own images; NaN if absent."""
    return number_or_nan(record.uncertainty.get(_key(record, metric), {}).get("standard_error"))


def is_shown(metric: str, extractor: Mapping[str, Any]) -> bool:
    """Whether ``metric`` is meaningful with this extractor."""
    return extractor["kind"] != "inception" or METRICS[metric].with_inception


def runs_with(records: Iterable[Record], metric: str) -> Runs:
    """The done records that have a number for ``metric``, by seeds."""
    return {seeds(r): r for r in records if r.status == "done" and not math.isnan(metric_value(r, metric))}


def _key(record: Record, metric: str) -> str:
    return metric_name(metric, record.spec["metrics"]["extractor"])


def number_or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


# --- which records belong to a row ----------------------------------------------------------------------


def select(experiment: Experiment, records: dict[str, Record]) -> Selection:
    """The records of every row by task, ordered by seeds, then by id; empty lists where there are none.

    Generation records on the seed of choices belong to no table, and neither do records of a row whose sweep point is
    not chosen yet, except failed sweep points. Rows are shared between tables by their ids, and another table may have
    measured some of them on more seeds: if the experiment declares its seeds, records on other seeds count only if all
    rows have them (see ``left_out``)."""
    found = _found(experiment, records)
    outside = {record.id for record in _outside(experiment, found)}
    for tasks in found.values():
        tasks["generation"] = [record for record in tasks["generation"] if record.id not in outside]
    return found


def left_out(experiment: Experiment, records: dict[str, Record]) -> int:
    """The number of generation records on undeclared seeds that not all rows have."""
    return len({record.id for record in _outside(experiment, _found(experiment, records))})


def _found(experiment: Experiment, records: dict[str, Record]) -> Selection:
    """The records of every row on any seeds."""
    by_cell: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records.values(), key=lambda r: (*seeds(r), r.id)):
        if record.task != "generation" or seeds(record)[1] != CHOICE_SEED:
            by_cell[record.task, record.ids.get("cell_id", "")].append(record)
    found = {}
    for row, spec in experiment.rows.items():
        # the cell id of a speed run is the same for every device
        runs = (generation_run(row, spec), reconstruction_run(row, spec), speed_run(row, spec, "any"))
        found[row] = {run.task: list(by_cell[run.task, run.cell_id]) for run in runs}
        if experiment.is_open(row):  # its spec is that of an arbitrary sweep point
            found[row] = {task: [] for task in found[row]} | {"generation": _failed_points(experiment, row, records)}
    return found


def _failed_points(experiment: Experiment, row: str, records: dict[str, Record]) -> list[Record]:
    """Failed records of the sweep points among which the row's is chosen; they keep the row open until run again."""
    sweep = experiment.sweeps.get(row)
    points = [choosing_run(row, spec) for _, spec in sweep.points] if sweep else []
    for search in experiment.searches:
        points += [choosing_run(search.judge, spec) for _, spec in search.points if row in search.rows]
    found = (records.get(run.id) for run in points)
    return [record for record in found if record is not None and record.status == "failed"]


def _outside(experiment: Experiment, found: Selection) -> list[Record]:
    """Records on undeclared seeds that some row with results lacks."""
    if not experiment.seeds:
        return []
    by_row = {row: tasks["generation"] for row, tasks in found.items()}
    done = [pairs for records in by_row.values() if (pairs := {seeds(r) for r in records if r.status == "done"})]
    common = set.intersection(*done) if done else set()
    outside: list[Record] = []
    for row, records in by_row.items():
        if experiment.is_open(row):  # failed sweep points, on the seed of choices
            continue
        spec = experiment.rows[row]
        training = experiment.seeds.get("training") or [spec.train.seed]
        sampling = experiment.seeds.get("sampling") or [spec.sampling.seed]
        declared = set(itertools.product(training, sampling))
        outside += [record for record in records if seeds(record) not in declared | common]
    return outside
