"""Records of an experiment as one tidy data frame.

A row is a line of an experiment's table (a bundle on each axis); its records are those with the row's ids, on any seeds
and devices."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.experiment_file import LEADING, TRAILING
from mar_bench.config.ids import (
    CHOICE_SEED,
    IdCheck,
    choosing_run,
    generation_run,
    likelihood_run,
    reconstruction_run,
    speed_run,
    with_seeds,
)
from mar_bench.records.metrics import GENERATION_METRICS, LIKELIHOOD_METRICS, METRICS, REAL_METRICS, metric_name
from mar_bench.records.record import Record, RecordFolder, Records, of_cells, records_dir
from mar_bench.report.format import published_value
from mar_bench.report.show_record import weaknesses
from mar_bench.report.stats import Spread, spread

Selection = dict[str, dict[str, list[Record]]]  # row -> task -> records
Timed = tuple[str, int, tuple[tuple[str, bool], ...]]  # a device, threads, and other settings of a speed record
Runs = dict[tuple[int, int], Record]  # (training seed, sampling seed) -> record


def frame(experiment: Experiment | str, records: Records | None = None, scale: str = "tiny") -> pd.DataFrame:
    """One line per row, metric and record; a record is one training seed x sampling seed, or one speed setting.

    ``experiment`` is loaded at ``scale`` if it is an id; ``records`` are read from the default folder if None. Columns:

    - experiment, scale, row, and per axis the row's bundle
    - task: generation, reconstruction (the row's tokenizer alone), likelihood or speed
    - setting: device, threads, dtype and batch size of a speed record, else empty; only equal settings compare
    - metric, key: our name (``fd:heldout``) and the record's (``fd_mnist5k_heldout``). A generation record also
      has loss_train, loss_heldout, images_seen, training_seconds, parameters and head_parameters; a reconstruction
      has rfd, rfd:heldout, psnr, latent_noise and the metrics of held-out real images (``fd:real``); a likelihood has
      nll and nll_train; a speed record has seconds_per_image and more
    - train_seed, sampling_seed
    - value, se: in the record's units, NaN if absent; se is the jackknife standard error within the run
    - num_images: how many images were measured
    - paper: the published value of the row, NaN if there is none
    - status (done or failed), error, warnings (as in ``singular, 3 repeated images``), record (its id)

    Raises UserError for an unknown experiment or a broken record."""
    experiment, records = loaded(experiment, records, scale)
    return frame_of(experiment, select(experiment, records))


def loaded(experiment: Experiment | str, records: Records | None, scale: str) -> tuple[Experiment, Records]:
    """The experiment, loaded at ``scale`` if it is an id, and the records, read from the default folder if None."""
    records = RecordFolder(records_dir(), IdCheck()) if records is None else records
    if isinstance(experiment, str):
        experiment = with_choices(load_experiment(experiment, scale), records)
    return experiment, records


def frame_of(experiment: Experiment, selection: Selection) -> pd.DataFrame:
    """``frame`` of records that are already selected."""
    lines = []
    for row, tasks in selection.items():
        paper = cache(lambda metric, row=row: _number(published_value(experiment, row, metric)))
        place = [experiment.id, experiment.scale, row, *experiment.bundles(row).values()]
        for record in itertools.chain(*tasks.values()):
            of_record = [*place, record.task, _setting(record.protocol) if record.task == "speed" else ""]
            weak = ", ".join(weaknesses(record.protocol))
            for metric, (key, value, se) in _numbers(record).items():
                numbers = [*record.seeds, value, se, _images(record, metric), paper(metric)]
                lines.append([*of_record, metric, key, *numbers, record.status, record.error, weak, record.id])
    return pd.DataFrame(lines, columns=[*LEADING, *experiment.labels, *TRAILING])


def _numbers(record: Record) -> dict[str, tuple[str, float, float]]:
    """Metric -> its key in the record, value and standard error."""
    names: dict[str, str] = {}  # of images
    others = dict(record.metrics)
    if record.task == "generation":
        names = {m: m for m in GENERATION_METRICS if is_shown(m, record.spec["metrics"]["extractor"])}
        others = {name: record.training.get(name) for name in ("loss_train", "loss_heldout")}
        steps, batch = record.training.get("steps"), record.spec["train"].get("batch_size")
        others |= {"training_seconds": record.training.get("seconds"), "images_seen": steps and batch and steps * batch}
        others |= {"parameters": record.parameters.get("total"), "head_parameters": record.parameters.get("head")}
    elif record.task == "reconstruction":
        names = {"rfd": "fd", "rfd:heldout": "fd:heldout", **{metric: metric for metric in REAL_METRICS}}
        others = {name: record.metrics.get(name) for name in ("psnr", "latent_noise")}
    elif record.task == "likelihood":
        names, others = {metric: metric for metric in LIKELIHOOD_METRICS}, {}
    found = {name: (_key(record, m), metric_value(record, m), standard_error(record, m)) for name, m in names.items()}
    return found | {name: (name, _number(number), math.nan) for name, number in others.items()}


def _images(record: Record, metric: str) -> float:
    """How many images a number was measured on; NaN if it is not recorded."""
    if record.task == "likelihood":
        return _number(record.protocol.get("scored", {}).get("train" if metric == "nll_train" else "heldout"))
    return _number(record.protocol.get("num_generated"))


def _setting(protocol: dict[str, Any]) -> str:
    """``NVIDIA A100, 1 thread, float32, batch 64``."""
    threads, batch = protocol.get("threads"), protocol.get("batch_size")
    words = [threads and f"{threads} thread{'s' * (threads != 1)}", protocol.get("dtype"), batch and f"batch {batch}"]
    words += [f"{name}={str(value).lower()}" for name, value in (protocol.get("kernels") or {}).items()]
    return ", ".join(filter(None, (protocol.get("device"), *words)))


def spreads(frame: pd.DataFrame) -> dict[tuple[str, str], Spread]:
    """(row, metric) -> mean and ± over the row's runs, for every number of generated images and every likelihood."""
    of_runs = frame["task"].isin(["generation", "likelihood"])
    done = frame[of_runs & (frame["status"] == "done")].dropna(subset="value")
    found: dict[tuple[str, str], Spread] = {}
    for (row, metric), group in done.groupby(["row", "metric"], sort=False):
        pairs = list(zip(group["train_seed"], group["sampling_seed"]))
        found[str(row), str(metric)] = spread(dict(zip(pairs, group["value"])), dict(zip(pairs, group["se"])))
    return found


def values(frame: pd.DataFrame, metric: str, setting: str | None = None) -> dict[str, float]:
    """Row -> its first value of something that does not depend on seeds: ``rfd``, ``parameters``, or
    ``seconds_per_image`` in one ``setting``. Rows without a number are left out."""
    chosen = frame[(frame["metric"] == metric) & (frame["status"] == "done")].dropna(subset="value")
    if setting is not None:
        chosen = chosen[chosen["setting"] == setting]
    first = chosen.drop_duplicates("row")
    return dict(zip(first["row"], first["value"]))


def main_setting(frame: pd.DataFrame) -> str | None:
    """The setting in which most rows were timed, in a tie the first by name; None without speed records."""
    timed = frame[(frame["metric"] == "seconds_per_image") & (frame["status"] == "done")]
    return min(timed["setting"].mode(), default=None)


def metric_value(record: Record, metric: str) -> float:
    """The value of ``metric`` (as in ``fd:heldout``); NaN if the record has none or the metric is meaningless here."""
    shown = is_shown(metric, record.spec["metrics"]["extractor"])
    return _number(record.metrics.get(_key(record, metric)) if shown else None)


def standard_error(record: Record, metric: str) -> float:
    """The metric's delete-a-group jackknife standard error over the record's own images; NaN if absent."""
    return _number(record.uncertainty.get(_key(record, metric), {}).get("standard_error"))


def is_shown(metric: str, extractor: Mapping[str, Any]) -> bool:
    """Whether ``metric`` is meaningful with this extractor."""
    return extractor["kind"] != "inception" or METRICS[metric].with_inception


def runs_with(records: Iterable[Record], metric: str) -> Runs:
    """The done records that have a number for ``metric``, by seeds."""
    return {r.seeds: r for r in records if r.status == "done" and not math.isnan(metric_value(r, metric))}


def _key(record: Record, metric: str) -> str:
    return metric_name(metric, record.spec["metrics"]["extractor"])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def select(experiment: Experiment, records: Records) -> Selection:
    """The records of every row by task, ordered by seeds, then by id; a list is empty if there are none.

    Leaves out generation records on the seed reserved for choosing, and records of a row whose sweep point is not
    chosen yet, except failed sweep points. Tables share rows by id, and another table may have measured some of them on
    more seeds: if the experiment declares its seeds, records on other seeds count only if all rows with results have
    them."""
    cells = {}
    for row, spec in experiment.rows.items():
        # the cell id of a speed run is the same for every device
        runs = [generation_run(row, spec), reconstruction_run(row, spec), speed_run(row, spec, "any")]
        runs += [likelihood_run(row, spec)] * experiment.shows_likelihood
        cells[row] = {"likelihood": "", **{run.task: run.cell_id for run in runs}}
    wanted = {i for row, of_row in cells.items() if not experiment.is_open(row) for i in of_row.values()}
    by_cell: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(of_cells(records, wanted), key=lambda r: (*r.seeds, r.id)):
        if record.task != "generation" or record.seeds[1] != CHOICE_SEED:
            by_cell[record.task, record.ids["cell_id"]].append(record)
    _look_up_others(experiment, by_cell, records)
    found = {}
    for row, of_row in cells.items():
        found[row] = {task: list(by_cell[task, cell_id]) for task, cell_id in of_row.items()}
        if experiment.is_open(row):  # its spec is that of an arbitrary sweep point
            found[row] = {task: [] for task in of_row} | {"generation": _failed_points(experiment, row, records)}
    if not experiment.seeds:
        return found
    done = [{r.seeds for r in tasks["generation"] if r.status == "done"} for tasks in found.values()]
    common = set.intersection(*filter(None, done)) if any(done) else set()
    for row, tasks in found.items():
        if not experiment.is_open(row):  # failed sweep points are on the seed of choices
            spec, declared = experiment.rows[row], experiment.seeds
            training, sampling = declared.get("training"), declared.get("sampling")
            pairs = set(itertools.product(training or [spec.train.seed], sampling or [spec.sampling.seed]))
            tasks["generation"] = [record for record in tasks["generation"] if record.seeds in pairs | common]
            trained = {training_seed for training_seed, _ in pairs | common}
            tasks["likelihood"] = [record for record in tasks["likelihood"] if record.seeds[0] in trained]
    return found


def _look_up_others(experiment: Experiment, by_cell: Mapping[tuple[str, str], list[Record]], records: Records) -> None:
    """Read the records that rows would have on the seeds and devices of other rows, if they are not among their cell's.

    ``records`` raises UserError for one with a wrong cell, which would be missing in silence."""
    pairs, settings = set[tuple[int, int]](), set[Timed]()
    for (task, _), of_cell in by_cell.items():
        pairs |= {r.seeds for r in of_cell if task == "generation"}
        settings |= _timed_in(of_cell)
    for row, spec in experiment.rows.items():
        if experiment.is_open(row):
            continue
        runs = [reconstruction_run(row, spec)]
        known = {r.seeds for r in by_cell.get(("generation", generation_run(row, spec).cell_id), ())}
        for pair in {(spec.train.seed, spec.sampling.seed), *pairs} - known:
            runs.append(generation_run(row, with_seeds(spec, *pair)))
        if experiment.shows_likelihood:
            trained = {spec.train.seed, *(training_seed for training_seed, _ in pairs)}
            runs += [likelihood_run(row, with_seeds(spec, training_seed, 0)) for training_seed in trained]
        timed = _timed_in(by_cell.get(("speed", speed_run(row, spec, "any").cell_id), ()))
        for device, threads, kernels in settings - timed:
            compute = replace(spec.compute, threads=threads, **dict(kernels))  # type: ignore[arg-type]
            runs.append(speed_run(row, replace(spec, compute=compute), device))
        for run in runs:
            records.get(run.id)


def _timed_in(records: Iterable[Record]) -> set[Timed]:
    """The device, the number of threads and ``ComputeSpec.kernels`` of the speed records among ``records``."""
    abouts = [r.protocol for r in records if r.task == "speed" and {"device", "threads"} <= r.protocol.keys()]
    return {(about["device"], about["threads"], tuple((about.get("kernels") or {}).items())) for about in abouts}


def _failed_points(experiment: Experiment, row: str, records: Records) -> list[Record]:
    """Failed records of the sweep points among which the row's is chosen; they keep the row open until run again."""
    points = experiment.sweeps[row].points if row in experiment.sweeps else []
    runs = [choosing_run(row, spec) for _, spec in points]
    found = [records[run.id] for run in runs if run.id in records]
    return [record for record in found if record.status == "failed"]
