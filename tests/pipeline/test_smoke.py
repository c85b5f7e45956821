"""Table 1 at smoke scale from YAML to table, with real processes: run, stop, kill, repeat."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run
from mar_bench.pipeline.run_local import PRELOADED
from mar_bench.pipeline.store import MARKER, is_sound
from mar_bench.records.record import Record, read_records
from tests.torture import workshop

pytestmark = pytest.mark.smoke
BEFORE_TRAINING = ("tokenizer", "latents", "extractor", "reconstruction")
ONE_ROW = ("--only", "mar/ce/unguided", "train.steps=400")  # long enough to be stopped on its way


def command(folder: Path, verb: str, *words: str) -> list[str]:
    places = {"run": ("--runs", "--records"), "plan": ("--runs", "--records"), "sample": ("--runs", "--reports")}
    folders = {"--runs": folder / "runs", "--records": folder / "records", "--reports": folder / "reports"}
    missing = [name for name in places.get(verb, ("--records", "--reports")) if name not in words]
    options = [w for name in missing for w in (name, str(folders[name]))]
    return [verb, "table1", "--scale", "smoke", *options, *words]


def start(folder: Path, *words: str) -> Any:
    """A run as a process group of its own, forked from a server that has imported torch."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    return workshop.start(folder, command(folder, "run", *words), context=multiprocessing.get_context("forkserver"))


def call(folder: Path, verb: str, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, command(folder, verb, *words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def prepare(table1: Path, folder: Path, *kinds: str) -> None:
    """Copy finished stages, so that a test only does the others."""
    for kind in kinds:
        shutil.copytree(table1 / "runs" / kind, folder / "runs" / kind)


def measured(folder: Path) -> dict[str, Record]:
    """Records by id, without those of speed."""
    return {i: r for i, r in read_records(folder / "records").items() if r.task != "speed"}


def numbers(folder: Path) -> dict[str, dict[str, float]]:
    return {i: {**r.metrics, "loss": r.training.get("loss_heldout", 0.0)} for i, r in measured(folder).items()}


def wait_for_training(folder: Path, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not any((folder / "runs/train").glob("*")):
        assert alive() and time.monotonic() < deadline, "it never got there"
        time.sleep(0.02)


def assert_nothing_half_written(folder: Path) -> None:
    for stage in (folder / "runs").glob("*/*"):
        if (stage / MARKER).is_file():
            assert is_sound(stage)
    assert not list((folder / "records").glob(".*"))
    read_records(folder / "records")


@pytest.fixture(scope="module")
def finished(table1, tmp_path_factory) -> Path:
    """All of Table 1 by two processes, to which tests may add reports."""
    folder = tmp_path_factory.mktemp("smoke") / "copy"
    shutil.copytree(table1, folder)
    return folder


def test_all_records_are_there_and_finite(finished):
    text = (finished / "output.txt").read_text()
    assert "61 jobs on 2 processes" in text and "left" not in text.splitlines()[-1]
    records = list(read_records(finished / "records").values())
    assert {r.status for r in records} == {"done"}
    assert Counter(r.task for r in records) == {"generation": 16, "reconstruction": 2, "speed": 16}
    for record in records:
        assert record.metrics and all(np.isfinite(list(record.metrics.values())))
        assert record.provenance["versions"]["torch"] and record.provenance["device"]
        assert record.spec["data"]["kind"] == "digits" and not any("fid" in name for name in record.metrics)
    generation = [r for r in records if r.task == "generation"]
    assert {len(r.protocol["extractor"]["sha256"]) for r in generation} == {64}
    assert {r.protocol["num_generated"] for r in generation} == {200}
    assert len({r.ids["train_id"] for r in generation}) == 6


def test_published_weights_give_the_images_that_they_gave(finished, tmp_path):
    """A training's weights under another name, as a converted check-point would come."""
    row = "mar/diff/guided"
    trained = measured(finished)[generation_run(row, load_experiment("table1", "smoke").rows[row]).id]
    prepare(finished, tmp_path, "tokenizer", "extractor")
    weights = finished / "runs/train" / trained.ids["train_id"] / "ema.safetensors"
    call(tmp_path, "run", "--only", row, "train.published=ours", f"train.weights={weights}")
    (taken,) = [r for r in measured(tmp_path).values() if r.task == "generation"]
    assert taken.id != trained.id and taken.metrics == trained.metrics and taken.training["published"] == "ours"
    assert not (tmp_path / "runs/latents").exists()
    assert len(taken.protocol["tokenizer"]["sha256"]) == 64 and str(weights) not in json.dumps(taken.protocol)


def test_a_second_run_does_nothing_and_at_once(finished):
    begin = time.perf_counter()
    assert "nothing to do" in call(finished, "run")
    assert time.perf_counter() - begin < 5
    plan = json.loads(call(finished, "plan", "--json"))
    assert (plan["done"], plan["missing"], plan["failed"], plan["jobs"]) == (16, 0, 0, 0)


def test_table_plot_and_samples(finished):
    text = call(finished, "table", "--save")
    for cell in ("(19.58)", "(1.98)", "(290.3)", "DiffLoss", "reconstruction"):
        assert cell in text
    assert "–" not in text.split("\n\n")[1], "no cell is missing"
    assert (finished / "reports/smoke/table1.md").read_text() in text
    lines = (finished / "reports/smoke/table1.csv").read_text().splitlines()
    assert len(lines) == 1 + 16 * 9
    call(finished, "plot")
    call(finished, "sample")
    for name in ("table1.png", "table1.pdf", "table1.svg", "table1-samples.png"):
        assert (finished / "reports/smoke" / name).stat().st_size > 5000
    assert np.asarray(Image.open(finished / "reports/smoke/table1-samples.png").convert("L")).std() > 10


def test_one_process_gives_the_same_bits(finished, tmp_path):
    call(tmp_path, "run", "--jobs", "1", "--only", "mar/ce/*guided")
    mine = numbers(tmp_path)
    assert len(mine) == 3
    assert mine == {i: values for i, values in numbers(finished).items() if i in mine}


def test_records_are_published_again_where_they_are_missing(finished, tmp_path):
    text = call(finished, "run", "--records", str(tmp_path))
    assert "nothing to do" in text and len(list(tmp_path.glob("*.json"))) == 34


def test_reuse_records_skips_what_others_measured(finished, tmp_path):
    text = call(tmp_path, "run", "--reuse-records", "--records", str(finished / "records"))
    assert "nothing to do: all 34 runs" in text and not (tmp_path / "runs").exists()
    plan = json.loads(call(tmp_path, "plan", "--json", "--records", str(finished / "records")))
    assert (plan["done"], plan["recorded_only"], plan["jobs"]) == (16, 16, 61)


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepare(finished, folder, *BEFORE_TRAINING)
    call(folder, "run", *ONE_ROW)
    return folder


def assert_goes_on(folder: Path, uninterrupted: Path) -> None:
    """Stopped in its training, the same command gives the same bits."""
    assert_nothing_half_written(folder)
    assert not [r for r in measured(folder).values() if r.task == "generation"]
    assert list((folder / "runs/train").glob("*/checkpoint-*.pt")), "it was stopped in its training"
    call(folder, "run", *ONE_ROW)
    assert numbers(folder) == numbers(uninterrupted)


def test_after_ctrl_c_the_same_command_goes_on_with_the_same_bits(finished, uninterrupted, tmp_path):
    """A Python of its own, whose workers and their server get the signal too, as from a terminal."""
    prepare(finished, tmp_path, *BEFORE_TRAINING)
    words = [sys.executable, "-m", "mar_bench", *command(tmp_path, "run", *ONE_ROW)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, start_new_session=True, **pipes)
    wait_for_training(tmp_path, lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "resumes from here" in text and "Traceback" not in text
    assert_goes_on(tmp_path, uninterrupted)


@pytest.mark.parametrize(("number", "kill"), [("SIGTERM", os.kill), ("SIGTERM", os.killpg), ("SIGKILL", os.kill)])
def test_stopped_the_same_command_goes_on_with_the_same_bits(number, kill, finished, uninterrupted, tmp_path):
    """``kill``: the command alone, or its workers too, as a service manager does."""
    prepare(finished, tmp_path, *BEFORE_TRAINING)
    process = start(tmp_path, *ONE_ROW)
    wait_for_training(tmp_path, process.is_alive)
    kill(process.pid, signal.Signals[number])
    process.join(60)
    text = (tmp_path / "output.txt").read_text()
    if number == "SIGKILL":
        # its workers notice, save and end by themselves
        wait_for_end = time.monotonic() + 20
        while any_worker_of(tmp_path) and time.monotonic() < wait_for_end:
            time.sleep(0.1)
        assert not any_worker_of(tmp_path)
    else:
        assert process.exitcode == 130 and "resumes from here" in text and "Traceback" not in text
    assert_goes_on(tmp_path, uninterrupted)


def any_worker_of(folder: Path) -> bool:
    """Whether a process holds a lock file below ``folder`` open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(folder) in os.readlink(link):
                return True
        except OSError:
            continue
    return False


def test_a_killed_worker_is_a_failure_with_a_record(finished, tmp_path):
    prepare(finished, tmp_path, *BEFORE_TRAINING)
    process = start(tmp_path, "--jobs", "1", *ONE_ROW)
    wait_for_training(tmp_path, process.is_alive)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    process.join(120)
    assert process.exitcode == 1 and "the worker process died (SIGKILL" in (tmp_path / "output.txt").read_text()
    failed = [r for r in measured(tmp_path).values() if r.status == "failed"]
    assert [r.task for r in failed] == ["generation"] and "SIGKILL" in failed[0].error
    assert "FAILED" in call(tmp_path, "table", "train.steps=400")
    assert json.loads(call(tmp_path, "plan", "--json", *ONE_ROW))["failed"] == 1
    assert call(tmp_path, "run", "--quiet", *ONE_ROW) == ""
    assert {r.status for r in measured(tmp_path).values()} == {"done"}


def test_a_failed_training_fails_its_rows_and_no_others(finished, tmp_path):
    prepare(finished, tmp_path, *BEFORE_TRAINING)
    text = call(tmp_path, "run", "--only", "raster_causal/*/unguided", "train.lr=10", "train.weight_decay=1000", code=1)
    assert "not finite" in text
    records = measured(tmp_path).values()
    assert {r.status for r in records if r.task == "reconstruction"} == {"done"}
    failed = [r for r in records if r.task == "generation"]
    assert failed and {r.status for r in failed} == {"failed"}
    assert all("lower the learning rate" in r.error for r in failed)
