"""The graph of a submission without Slurm, as processes of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mar_bench.cluster.ledger import read_ledger
from mar_bench.records.provenance import git_state
from tests.slurm.lab import measured

pytestmark = pytest.mark.smoke
ROW = ("table1", "--scale", "smoke", "--only", "mar/diff/guided")
PROCESSES = "{kind: processes, pack: false, sample_shards: 2, parallel: 2}"


def call(folder: Path, *words: str, code: int = 0) -> str:
    """What ``mar-bench`` prints, with runs, records and reports in a folder."""
    places = {f"MAR_BENCH_{name.upper()}": str(folder / name) for name in ("runs", "records", "reports")}
    # TMPDIR: do not wait for other work on this machine to measure speed
    environment = {**os.environ, **places, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mar_bench", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def records(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The row by ``run``."""
    folder = tmp_path_factory.mktemp("alone")
    call(folder, "run", *ROW, "--jobs", "1")
    return folder


def started(folder: Path, alone: Path, *kinds: str) -> Path:
    """A folder in which some stages of the row are done."""
    for kind in kinds:
        shutil.copytree(alone / "runs" / kind, folder / "runs" / kind)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory, alone) -> Path:
    """The row by processes from its samples on, in two shards."""
    kinds = ("tokenizer", "latents", "extractor", "train", "reconstruction", "speed")
    folder = started(tmp_path_factory.mktemp("processes"), alone, *kinds)
    (folder / "mine.yaml").write_text(PROCESSES)
    call(folder, "submit", *ROW, "--cluster", str(folder / "mine.yaml"))
    return folder


def test_processes_give_the_records_of_run_to_the_last_digit(here, alone):
    found, expected = records(here), records(alone)
    assert found.keys() == expected.keys() and len(found) == 3
    assert measured(found) == measured(expected) and len(measured(found)) == 2
    assert {record["status"] for record in found.values()} == {"done"}
    (submission,) = read_ledger(here / "runs")
    (record,) = [record for record in found.values() if record["task"] == "generation"]
    assert record["provenance"]["command"] == submission.request.command
    assert record["provenance"]["git"] == git_state()
    assert "DiffLoss" in (here / "reports/smoke/table1.md").read_text()


def test_every_shard_and_every_stage_was_a_process(here):
    (submission,) = read_ledger(here / "runs")
    notes = {key: submission.status(job) for key, job in submission.jobs.items()}
    assert len({note["pid"] for note in notes.values()}) == len(notes) == 4
    for key, job in submission.jobs.items():
        done = [event["stage"] for event in notes[key]["history"] if event["event"] == "done"]
        assert done == [stage.id for stage in job.stages] and notes[key]["event"] == "end"
    assert [job.shard for job in submission.jobs.values() if job.shard] == [(0, 2), (1, 2)]
    assert "nothing to send" in call(here, "submit", *ROW, "--cluster", str(here / "mine.yaml"))
    assert len(read_ledger(here / "runs")) == 1
    assert "1 records; 1 done" in call(here, "status")
    assert "done sample mar/diff/guided" in call(here, "logs", "table1/mar/diff/guided")


def test_a_failure_is_reported_and_what_needs_it_is_not_run(tmp_path, alone):
    started(tmp_path, alone, "tokenizer", "latents", "extractor")
    words = ("submit", *ROW, "train.lr=1e30", "train.max_skipped_steps=2")
    (tmp_path / "mine.yaml").write_text("{kind: processes, parallel: 2}")
    said = call(tmp_path, *words, "--cluster", str(tmp_path / "mine.yaml"), code=1)
    assert "FAILED train mar/diff seed 0" in said and "mar-bench status" in said
    found = {record["task"]: record for record in records(tmp_path).values()}
    assert found["generation"]["status"] == "failed" and "not finite" in found["generation"]["error"]
    assert found["reconstruction"]["status"] == "done", "the last job runs however the others ended"
    assert "FAILED" in (tmp_path / "reports/smoke/table1.md").read_text()
    (line,) = [line for line in json.loads(call(tmp_path, "status", "--json"))["rows"] if line["task"] == "generation"]
    assert (line["stage"], line["state"], line["live"]) == ("train", "FAILED", False) and "not finite" in line["error"]
