"""Several processes are one: the same losses, gradients, weights and images as a process alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mar_bench.cli import app, experiments, main
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import Run, generation_run
from mar_bench.pipeline.distributed import World, join, world_of
from mar_bench.pipeline.execute import execute
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.run_local import PRELOADED, end
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from tests.pipeline.test_train import ROWS, assert_close, go_on, spec_of, step_of

ROW = "mar/diff/unguided"
OFF = ("model.backbone.dropout=0", "train.batch_size=16")
SPLITS = {"whole": (), "micro": ("compute.micro_batch=3",)}  # the second splits each process's share unevenly
CASES = {f"{row.replace('/', '-')}-{name}": (row, *OFF, *words) for row in ROWS for name, words in SPLITS.items()}


def start_two(folder: Path, work: Callable[..., None], *arguments: Any) -> list[Any]:
    """The same work twice, told apart by the environment as torchrun tells them; ``folder`` is for what they print.

    Forked from a server that has imported torch, as the workers of ``run`` are."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1]), "WORLD_SIZE": "2"}
    multiprocessing.set_forkserver_preload(PRELOADED)
    context, processes = multiprocessing.get_context("forkserver"), []
    for rank in "01":
        environment = {**os.environ, **meeting, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(context.Process(target=_rank, args=(environment, folder, work, *arguments), name=rank))
        processes[-1].start()
    return processes


def _rank(environment: dict[str, str], folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(folder / f"{name}{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    work(*arguments)


def mar_bench(*words: str) -> None:
    sys.argv = ["mar-bench", *words]
    main()


def ended(processes: list[Any], folder: Path, seconds: int = 240) -> list[tuple[int, str, str]]:
    """Exit codes, output and errors; whoever fails takes the other along, as torchrun sees to."""
    deadline = time.monotonic() + seconds
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        if any(p.exitcode for p in processes):
            time.sleep(2)
            break
        time.sleep(0.05)
    for p in processes:
        end(p, 0)
    return [(p.exitcode, *((folder / f"{n}{p.name}.txt").read_text() for n in ("out", "err"))) for p in processes]


# --- rank discovery -----------------------------------------------------------------------------------------


def test_the_environment_says_who_this_is():
    assert world_of({}) == World()
    ranks = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert world_of(ranks) == world_of({**ranks, "SLURM_STEP_NUM_TASKS": "4"}) == World(3, 8, 1)
    tasks = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
    assert world_of({**tasks, "SLURM_STEP_NUM_TASKS": "4"}) == World(2, 4, 0)
    assert world_of({**tasks, "SLURM_NTASKS": "4"}) == World(), "a batch script, not a step"
    for wrong in ({"LOCAL_RANK": ""}, {"WORLD_SIZE": "two"}, {"RANK": "8"}):
        with pytest.raises(UserError, match="RANK=. WORLD_SIZE=.* LOCAL_RANK=.?: .*use torchrun or srun"):
            world_of(ranks | wrong)


def test_processes_that_cannot_meet_say_where(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "abc")
    with pytest.raises(UserError, match="MASTER_ADDR=127.0.0.1 MASTER_PORT=abc: the processes cannot meet"):
        join(World(0, 2, 0))


def test_slots_are_split_evenly_or_not_at_all(tmp_path, monkeypatch):
    shares = [World(rank, 4).share(range(32)) for rank in range(4)]
    assert [i for share in shares for i in share] == list(range(32)) and {len(s) for s in shares} == {8}
    monkeypatch.setattr(experiments, "_world", lambda: World(0, 4))
    done = CliRunner().invoke(app, run_words(tmp_path, tmp_path, "train.batch_size=30"))
    assert "train.batch_size 30 cannot be split over 4 processes evenly" in str(done.exception)
    assert not list(tmp_path.iterdir()), "before any work"


# --- two processes --------------------------------------------------------------------------------------


def run_words(runs: Path, records: Path, *overrides: str) -> list[str]:
    folders = ["--runs", str(runs), "--records", str(records)]
    return ["run", "table1", "--scale", "smoke", "--only", ROW, *folders, *overrides]


def run_of(*overrides: str) -> Run:
    return generation_run(ROW, load_experiment("table1", "smoke", overrides).rows[ROW])


def record_in(folder: Path) -> dict:
    (record,) = [r for p in folder.glob("*.json") if (r := json.loads(p.read_text()))["task"] == "generation"]
    return record


def wait_for_checkpoint(places: Places, kind: str, stage_id: str) -> Path:
    deadline = time.monotonic() + 120
    while not list(places.folder(kind, stage_id).glob("checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return places.folder(kind, stage_id)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Places:
    """A run of one process; later runs in the same place use its tokenizer, extractor and latents."""
    folder = tmp_path_factory.mktemp("alone")
    places = Places(folder / "runs", folder / "records")
    places.check_writable()
    for job in jobs_for([run_of()], places):
        execute(job, places, go_on)
    return places


def save_steps(folder: Path) -> None:
    """The loss and all gradients of a step of every case, by the first process."""
    join(here := world_of())
    for name, words in CASES.items():
        found = step_of(spec_of(*words), here)
        if here.first:
            save_file(found, folder / name)


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    results = ended(start_two(tmp_path, save_steps, tmp_path), tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    for name, (row, *_) in CASES.items():
        assert_close(load_file(tmp_path / name), step_of(spec_of(row, *OFF)), 1e-5)


@pytest.mark.smoke
def test_a_run_of_two_processes_measures_what_one_does(alone, tmp_path):
    results = ended(start_two(tmp_path, mar_bench, *run_words(tmp_path / "runs", tmp_path / "records")), tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert "jobs done in" in results[0][1] and results[1][1] == "", "the first process reports, alone"
    one, both = record_in(alone.records), record_in(tmp_path / "records")
    assert both["ids"] == one["ids"] and both["training"]["processes"] == 2
    assert both["training"]["loss_train"] == pytest.approx(one["training"]["loss_train"], rel=1e-3)
    ids, folders = one["ids"], (alone.runs, tmp_path / "runs")
    logs = [(folder / "train" / ids["train_id"] / "metrics.jsonl").read_text().splitlines() for folder in folders]
    for line, other in zip(*logs, strict=True):
        for name, near in (("loss", 1e-5 if '"step": 0' in line else 1e-3), ("grad_norm", 1e-2)):
            assert json.loads(other)[name] == pytest.approx(json.loads(line)[name], rel=near)
    files = [sorted(p.name for p in (f / "sample" / ids["sample_id"]).glob("tokens-*")) for f in folders]
    assert files[0] == files[1] and len(files[0]) == 4


@pytest.mark.smoke
def test_a_stop_of_one_process_stops_both_at_the_same_step(alone, tmp_path):
    processes = start_two(tmp_path, mar_bench, *run_words(alone.runs, tmp_path / "records", "train.steps=100000"))
    folder = wait_for_checkpoint(alone, "train", run_of("train.steps=100000").ids["train_id"])
    os.kill(processes[1].pid, signal.SIGTERM)
    results = ended(processes, tmp_path, 60)
    assert [code for code, _, _ in results] == [130, 130], results
    assert torch.load(max(folder.glob("checkpoint-*.pt")), weights_only=True)["step"] > 40


@pytest.mark.smoke
def test_a_failure_ends_the_run_and_is_recorded(alone, tmp_path):
    wild = "train.lr=10", "train.weight_decay=1000", "train.max_skipped_steps=2"
    words = run_words(alone.runs, tmp_path / "records", *wild)
    results = ended(start_two(tmp_path, mar_bench, *words), tmp_path)
    assert all(results), results
    assert 1 in [code for code, _, _ in results]
    failed = record_in(tmp_path / "records")
    assert failed["status"] == "failed" and "not finite" in failed["error"]


@pytest.mark.smoke
def test_a_stop_while_the_first_process_works_alone_records_no_failure(alone, tmp_path):
    many = "parts.tokenizer.continuous.steps=100000"
    processes = start_two(tmp_path, mar_bench, *run_words(alone.runs, tmp_path / "records", many))
    wait_for_checkpoint(alone, "tokenizer", run_of(many).ids["tokenizer_id"])
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
    results = ended(processes, tmp_path, 60)
    assert results[0][0] == 130 and results[1][0] != 1, results
    assert not list(tmp_path.glob("records/*"))
