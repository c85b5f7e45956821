"""Several processes are one: the same losses, gradients, weights and images as a process alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mar_bench.pipeline.distributed import World, world_of
from mar_bench.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SPLIT_OVER_TWO = Path(__file__).parents[1] / "two_processes.py"


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start_together(words: list[str], size: int = 2, **environ: str) -> list[subprocess.Popen]:
    """As torchrun does: the same command ``size`` times, told apart by the environment."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size)}
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **meeting, **environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *words], env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, **pipes)
        for r in range(size)
    ]


def ended(processes: list[subprocess.Popen], seconds: int = 240) -> list[tuple[int, str, str]]:
    """Exit codes, output and errors; whoever fails takes the others along, as torchrun sees to."""
    deadline = time.monotonic() + seconds
    while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
        if any(p.poll() for p in processes):
            time.sleep(2)
            break
        time.sleep(0.05)
    for p in processes:
        p.kill()
    return [(p.returncode, out, err) for p in processes for out, err in [p.communicate()]]


# --- rank discovery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(3, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}, World(2, 4, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, World()),  # a batch script, not a step
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_STEP_NUM_TASKS": "4"}, World(1, 2, 1)),
    ],
)
def test_the_environment_says_who_this_is(environ, expected):
    assert world_of(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "not in full: RANK=0, WORLD_SIZE=2, LOCAL_RANK="),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK=2 is not below WORLD_SIZE=2"),
    ],
)
def test_half_an_environment_is_an_error(environ, message):
    with pytest.raises(UserError, match=message):
        world_of(environ)


def test_slots_are_split_evenly_or_not_at_all():
    shares = [World(rank, 4).share(range(32)) for rank in range(4)]
    assert [i for share in shares for i in share] == list(range(32)) and {len(s) for s in shares} == {8}
    with pytest.raises(UserError, match="train.batch_size 30 cannot be split over 4 processes evenly"):
        World(0, 4).share(range(30))


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["mar/diff/guided", "raster_causal/ce/guided"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(row, tmp_path):
    """On the same global batch, without dropout; the second with micro-batches, which split theirs unevenly."""
    for size, words in ((1, []), (2, []), (2, ["compute.micro_batch=3"])):
        results = ended(
            start_together([str(SPLIT_OVER_TWO), row, str(tmp_path / f"{size}-{len(words)}"), *words], size)
        )
        assert [code for code, _, _ in results] == [0] * size, results[0][2] + results[-1][2]
    alone, two, micro = (load_file(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert alone.keys() == two.keys() == micro.keys() and len(alone) > 10
    for name, expected in alone.items():
        for found in (two[name], micro[name]):
            assert (found - expected).abs().max() <= 1e-5 * max(1e-3, expected.abs().max()), name


# --- a whole run ----------------------------------------------------------------------------------------


def run_words(tmp_path: Path, *more: str) -> list[str]:
    folders = ["--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    return ["-m", "mar_bench", "run", "table1", "--scale", "smoke", "--only", "mar/diff/unguided", *folders, *more]


def record_of(folder: Path) -> dict:
    records = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    return next(r for r in records if r["task"] == "generation")


@pytest.mark.smoke
def test_a_run_of_two_processes_measures_what_one_does(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    words = run_words(alone)
    subprocess.run([sys.executable, *words, "--jobs", "1"], check=True, capture_output=True, cwd=ROOT)
    results = ended(start_together(run_words(two)))
    assert [code for code, _, _ in results] == [0, 0], results[0][2] + results[1][2]
    assert "jobs done in" in results[0][1] and results[1][1] == "", "the first process reports, alone"
    one, both = record_of(alone), record_of(two)
    assert both["ids"] == one["ids"] and both["training"]["processes"] == 2
    assert both["training"]["loss_train"] == pytest.approx(one["training"]["loss_train"], rel=1e-3)
    logs = [next((f / "runs" / "train").glob("*/metrics.jsonl")).read_text().splitlines() for f in (alone, two)]
    for line, other in zip(*logs, strict=True):
        for name, near in (("loss", 1e-5 if '"step": 0' in line else 1e-3), ("grad_norm", 1e-2)):
            assert json.loads(other)[name] == pytest.approx(json.loads(line)[name], rel=near)
    files = [
        sorted(p.name for p in (f / "runs" / "sample" / one["ids"]["sample_id"]).glob("tokens-*")) for f in (alone, two)
    ]
    assert files[0] == files[1] and len(files[0]) == 4
    again = ended(start_together(run_words(two)))
    assert [code for code, _, _ in again] == [0, 0] and "nothing to do" in again[0][1]


@pytest.mark.smoke
def test_a_stop_of_one_process_stops_both_at_the_same_step(tmp_path):
    processes = start_together(run_words(tmp_path, "train.steps=100000"))
    folder = tmp_path / "runs" / "train"
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes, 60)
    assert [code for code, _, _ in results] == [130, 130], results
    newest = max(folder.glob("*/checkpoint-*.pt"))
    assert torch.load(newest, weights_only=True)["step"] > 40


@pytest.mark.smoke
def test_a_failure_ends_the_run_and_is_recorded(tmp_path):
    results = ended(start_together(run_words(tmp_path, "train.lr=1e30", "train.max_skipped_steps=2")))
    assert all(results), results
    assert 1 in [code for code, _, _ in results]
    failed = record_of(tmp_path)
    assert failed["status"] == "failed" and "not finite" in failed["error"]


def test_a_batch_that_cannot_be_split_is_a_user_error(tmp_path):
    """Before any work."""
    results = ended(start_together(run_words(tmp_path, "train.batch_size=7")))
    assert [code for code, _, _ in results] == [2, 2]
    assert "train.batch_size 7 cannot be split over 2 processes evenly" in results[0][2]
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.smoke
def test_a_stop_while_the_first_process_works_alone_records_no_failure(tmp_path):
    words = run_words(tmp_path, "parts.tokenizer.continuous.steps=100000")
    processes = start_together(words)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/tokenizer/*/checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGINT)
    results = ended(processes, 60)
    assert results[0][0] == 130 and results[1][0] != 1, results
    assert not list(tmp_path.glob("records/*"))
