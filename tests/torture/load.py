"""Thousands of plausible records and a full ledger of submissions, and what commands cost on them."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mar_bench.cluster.jobs import build_graph
from mar_bench.cluster.ledger import Request, new_submission
from mar_bench.cluster.pending import rows_of
from mar_bench.cluster.profile import Profile
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import Run, choosing_run, generation_run, plan_runs, reconstruction_run, speed_run, with_seeds
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import RunSpec
from mar_bench.config.yaml_layers import SCALES, experiment_files
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, metric_name

ROOT = Path(__file__).parents[2]
VALUES = {"fd": 20.0, "fd:heldout": 21.0, "is": 8.0, "kid": 900.0}  # shares: 0.5
FOREIGN = 10  # every tenth record belongs to no shipped experiment
UNLIKE = (  # every so many records: a text, and what replaces it
    (3, '"singular": false', '"singular": true'),
    (7, '"kid_kernel": "(x', '"kid_kernel": "(2 x'),
    (11, '"device": "Intel', '"device": "Another'),
    (50, '"status": "done"', '"status": "failed"'),
    (50, '"error": null', '"error": "ValueError: loss is not finite\\nTraceback"'),
)
COMMANDS = {
    "table table1": ["table", "table1"],
    "table --all": ["table", "--all"],
    "claims": ["claims"],
    "plan table1": ["plan", "table1"],
    "plan --all": ["plan", "--all"],
    "status": ["status"],
    "show table1": ["show", "table1"],
    "collect": ["collect", "{records}", "--records", "{empty}", "--dry-run"],
}


def make_records(folder: Path, count: int, scales: Sequence[str] = SCALES) -> None:
    """Write ``count`` valid records: cells of all shipped experiments on many seeds, and foreign ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in itertools.islice(_texts(scales), count):
        (folder / f"{name}.json").write_text(text)


def _texts(scales: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Id and text of endless records: sweep points, tokenizers and speeds first, then cells on ever more seeds."""
    rng, seen, templates = random.Random(0), set[str](), dict[int, str]()
    points, cells = _specs(scales)
    pairs = ((train, total - train) for total in itertools.count() for train in range(total + 1))
    once = itertools.chain(
        (choosing_run("", spec) for spec in points),
        (make(spec) for spec in {**points, **cells} for make in (_reconstruction, _speed)),
    )
    more = (generation_run("", with_seeds(spec, *pair)) for pair in pairs for spec in cells)
    for index, run in enumerate(itertools.chain(once, more)):
        if run.id in seen:
            continue
        seen.add(run.id)
        seeds = {"train": {"seed": "@train"}, "sampling": {"seed": "@sampling"}}
        key = (run.task, run.cell_id)
        if key not in templates:
            templates[key] = _template(run, seeds)
        ids = run.ids
        if index % FOREIGN == 0:
            ids = {name: f"{rng.getrandbits(48):012x}" for name in ids}
        text = templates[key].replace('"@ids"', json.dumps(ids, sort_keys=True))
        text = text.replace('"@train"', str(run.spec.train.seed)).replace('"@sampling"', str(run.spec.sampling.seed))
        for every, old, new in UNLIKE:
            text = text.replace(old, new) if index % every == 0 else text
        yield ids["eval_id"], text.replace('"@fd"', repr(rng.uniform(5, 50)))


def _reconstruction(spec: RunSpec) -> Run:
    return reconstruction_run("", spec)


def _speed(spec: RunSpec) -> Run:
    return speed_run("", spec, "Example CPU")


def _specs(scales: Sequence[str]) -> tuple[dict[RunSpec, None], dict[RunSpec, None]]:
    """The sweep points of all experiments, and every spec that a row can have."""
    points: dict[RunSpec, None] = {}
    cells: dict[RunSpec, None] = {}
    for scale, name in itertools.product(scales, experiment_files()):
        experiment = load_experiment(name, scale)
        cells |= dict.fromkeys(experiment.rows.values())
        for sweep in experiment.sweeps.values():
            points |= dict.fromkeys(spec for _, spec in sweep.points)
    return points, cells | points


@cache
def _committed(task: str) -> str:
    """The first committed record of a task, whose protocol and provenance the made-up ones have."""
    texts = (path.read_text() for path in sorted((ROOT / "results/records").glob("*.json")))
    return next(text for text in texts if json.loads(text)["task"] == task)


def _template(run: Run, seeds: dict) -> str:
    """A record's text, with marks in place of what differs between its seeds."""
    example = json.loads(_committed(run.task))
    spec = as_tree(run.spec)
    for block, marks in seeds.items():
        spec[block] |= marks
    record = {**example, "ids": "@ids", "spec": spec, "selection": {}}
    if record["training"]:
        record["training"]["steps"] = run.spec.sampling.snapshot or run.spec.train.steps
    if run.task == "speed":
        record["protocol"]["device"] = "Example CPU"
    else:
        extractor = spec["metrics"]["extractor"]
        names = [n for n in GENERATION_METRICS if METRICS[n].with_inception or extractor["kind"] != "inception"]
        values = {metric_name(name, extractor): VALUES.get(name, 0.5) for name in names}
        record["metrics"] = {**values, metric_name("fd", extractor): "@fd"}
        record["uncertainty"] = {key: {"standard_error": 0.02, "method": "jackknife, 10 groups"} for key in values}
        record["protocol"]["extractor"] |= {key: extractor[key] for key in ("kind", "name")}
    return json.dumps(record, indent=1, sort_keys=True)


def make_submissions(places: Places, count: int = 20, rows: int = 1000) -> None:
    """Write ``count`` submissions of ``rows`` records each, sent to a Slurm that does not answer."""
    every = (load_experiment(name, scale) for scale in reversed(SCALES) for name in experiment_files())
    experiments = (experiment for experiment in every if experiment.rows)  # some are of small scales only
    for number, experiment in enumerate(itertools.islice(experiments, count)):
        runs: list[Run] = []
        for seed in itertools.count():
            runs += plan_runs(experiment, seeds=[seed], sampling_seeds=list(range(10)))
            if len(runs) >= rows:
                break
        _submit(experiment, list({run.id: run for run in runs}.values())[:rows], places, 1000 * number)


def _submit(experiment: Experiment, runs: list[Run], places: Places, first: int) -> None:
    stages = jobs_for(runs, places)
    jobs = [
        replace(job, slurm_id=str(first + i)) for i, job in enumerate(build_graph(stages, Profile().pack, 1, {}), 1)
    ]
    command, folders = f"mar-bench submit {experiment.id}", (str(places.runs), str(places.records), "reports")
    request = Request(command, (experiment.id,), False, experiment.scale, None, None, None, *folders)
    submission = new_submission(experiment.id, request, jobs, rows_of({experiment.id: runs}, stages), 0)
    submission.folder.mkdir(parents=True)
    submission.sent([])


class Load(NamedTuple):
    """What a command takes; processor seconds do not depend on what else the machine does."""

    seconds: float
    processor_seconds: float
    megabytes: float  # at its peak


def measure_load(folder: Path) -> dict[str, Load]:
    """The load of each command with the records in ``folder``; a ledger of submissions lies beside it."""
    runs = folder.parent / f"{folder.name}-runs"
    if not runs.exists():
        make_submissions(Places(runs.absolute(), folder.absolute()))
    environment = {**os.environ, "MAR_BENCH_RUNS": str(runs), "MAR_BENCH_RECORDS": str(folder), "PATH": ""}  # no Slurm
    found = {}
    for name, words in COMMANDS.items():
        words = [word.format(records=folder, empty=runs / "no-records") for word in words]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "mar_bench", *words], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0, f"{name}: exit status {status}"
        found[name] = Load(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    return found


if __name__ == "__main__":  # python -m tests.torture.load FOLDER COUNT
    target = Path(sys.argv[1])
    if not target.exists():
        make_records(target, int(sys.argv[2]))
    for command, load in measure_load(target).items():
        print(
            f"{command:14} {load.seconds:6.1f} s, processor {load.processor_seconds:6.1f} s, {load.megabytes:6.0f} MB"
        )
