"""Experiments through submit on a private cluster of four nodes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster
from tests.slurm.lab import TABLE1, Lab, measured


@pytest.fixture
def lab(slurm: Cluster, tmp_path: Path) -> Lab:
    return Lab(slurm, tmp_path)


@pytest.fixture(scope="module")
def table1(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Table 1 at smoke scale, submitted and done."""
    lab = Lab(slurm, tmp_path_factory.mktemp("table1"))
    lab.submit(*TABLE1)
    lab.wait(240)
    return lab


def test_a_table_on_four_nodes_equals_the_same_on_one_machine(table1: Lab):
    ours = table1.records()
    assert len(ours) == 34 and {r["status"] for r in ours.values()} == {"done"}
    elsewhere = table1.folder / "alone"
    table1("run", *TABLE1, "--runs", str(elsewhere), "--records", str(elsewhere / "records"))
    assert measured(ours) == measured(table1.records(elsewhere / "records"))  # to the last digit
    assert Counter(e["event"] for e in table1.history())["done"] == 61
    nodes = table1.cluster.run("sacct", "-n", "-X", "-P", "-o", "NodeList", "--name", _name(table1)).split()
    assert len(set(nodes)) > 1


def test_a_record_says_which_job_of_which_code_made_it(table1: Lab):
    provenance = next(iter(table1.records().values()))["provenance"]
    assert provenance["command"].startswith("mar-bench submit table1")
    assert provenance["slurm"]["job"] and provenance["slurm"]["restarts"] == 0
    submission = json.loads(next((table1.folder / "runs").glob("submissions/*/submission.json")).read_text())
    assert provenance["git"] == submission["git"]


def test_the_last_job_writes_the_table(table1: Lab):
    text = (table1.folder / "reports/smoke/table1.md").read_text()
    assert "DiffLoss" in text and "FAILED" not in text


def test_what_is_done_or_under_way_is_not_sent_again(table1: Lab):
    assert "nothing to send" in table1.submit(*TABLE1)
    assert "34 done" in table1("status")
    assert "done tokenizer" in table1("logs", "table1/mar/diff/guided")


def _name(lab: Lab) -> str:
    submission = json.loads(next((lab.folder / "runs").glob("submissions/*/submission.json")).read_text())
    return submission["jobs"][0]["name"]


# --- failures -------------------------------------------------------------------------------------------


def test_a_failed_stage_is_seen_in_record_table_and_status_and_other_rows_finish(lab: Lab):
    bad = lab.experiment("bad", {"good": 2e-3, "wild": 1e30})
    lab.submit(str(bad), "--scale", "smoke", "train.max_skipped_steps=2")
    lab.wait(120)
    lines = lab.lines()
    assert lines["good"]["state"] == "done"
    assert lines["wild"]["state"] == "FAILED" and "not finite" in lines["wild"]["error"] and lines["wild"]["advice"]
    failed = [r for r in lab.records().values() if r["status"] == "failed"]
    assert failed and all("not finite" in r["error"] for r in failed)
    assert "FAILED" in (lab.folder / "reports/smoke/bad.md").read_text()
    assert "--retry failed" in lab.submit(str(bad), "--scale", "smoke", "train.max_skipped_steps=2")
    assert "sent" in lab.submit(str(bad), "--scale", "smoke", "train.max_skipped_steps=2", "--retry", "failed")
    lab("cancel", "bad")


def test_a_job_that_is_killed_leaves_a_failed_record_with_what_slurm_says(lab: Lab):
    rows = ["--only", "mar/diff/unguided", "compute.step_pause=1"]
    lab.submit(*TABLE1, *rows)
    job = lab.until(lambda: (x := lab.lines()["mar/diff/unguided"])["stage"] == "train" and x["step"] and x, 60)["job"]
    os.kill(lab.process(job), signal.SIGKILL)  # as the OOM killer does
    lab.wait(60)
    line = lab.lines()["mar/diff/unguided"]
    assert line["state"].startswith(("FAILED", "NODE_FAIL")) and line["advice"] and "Killed" in line["error"]
    records = [r for r in lab.records().values() if r["task"] == "generation"]
    assert [r["status"] for r in records] == ["failed"] and job in records[0]["error"]
    assert "FAILED" in (lab.folder / "reports/smoke/table1.md").read_text()


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job, word",
    [
        ({"partition": "nowhere"}, "partition"),
        ({"gpus_per_node": 9}, "configuration"),
        ({"memory_gb": 9000}, "configuration"),
    ],
)
def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(lab: Lab, job: dict, word: str):
    said = lab.submit(*TABLE1, cluster=lab.profile(job=job), code=2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: sbatch refuses") and word in last
    assert not list((lab.folder / "runs").glob("submissions/*"))
    assert "Traceback" not in said


def test_without_a_controller_nothing_is_recorded_as_sent(lab: Lab):
    dead = lab.folder / "slurm.conf"
    text = Path(lab.environment["SLURM_CONF"]).read_text()
    dead.write_text("\n".join("SlurmctldPort=1" if x.startswith("SlurmctldPort") else x for x in text.splitlines()))
    here = Lab(lab.cluster, lab.folder)
    here.environment |= {"SLURM_CONF": str(dead)}
    said = here.submit(*TABLE1, code=2)
    assert said.strip().splitlines()[-1].startswith("error: sbatch refuses") and "Traceback" not in said
    assert not list((lab.folder / "runs").glob("submissions/*"))


# --- sharing, many rows ---------------------------------------------------------------------------------


def test_a_training_that_is_queued_is_shared_between_tables(slurm: Cluster, lab: Lab):
    held = lab.profile(job={"sbatch": {"hold": True}})
    lab.submit(*TABLE1, "--only", "mar/diff/guided", cluster=held)
    before = len(slurm.squeue())
    said = lab.submit(*TABLE1, "--only", "mar/diff/*", cluster=held)
    assert "under way in jobs that were sent before" in said
    lines = lab.lines()
    assert lines["mar/diff/guided"]["job"].split("_")[0] == lines["mar/diff/unguided"]["job"].split("_")[0]
    assert "nothing to send" in lab.submit(*TABLE1, "--only", "mar/diff/*", cluster=held)
    kept = lab("cancel", "table1/mar/diff/guided")
    assert "other rows need them" in kept and lab.lines()["mar/diff/unguided"]["live"]
    lab("cancel", "table1")
    assert len(slurm.squeue()) < before and not lab.lines()["mar/diff/unguided"]["live"]


def test_two_hundred_rows_are_sent_as_arrays_and_looked_at_in_seconds(slurm: Cluster, lab: Lab):
    many = lab.experiment("many", {f"r{i}": 1e-3 + i * 1e-6 for i in range(200)})
    held = lab.profile(job={"sbatch": {"hold": True}}, pack=False, sample_shards=2)
    begin = time.monotonic()
    said = lab.submit(str(many), "--scale", "smoke", cluster=held)
    submitting = time.monotonic() - begin
    begin = time.monotonic()
    assert len(lab.lines()) == 200
    looking = time.monotonic() - begin
    print(f"{said}submit {submitting:.1f} s, status {looking:.2f} s")
    lab("cancel", "many")
    assert not slurm.squeue("--name", _name(lab))
    assert submitting < 20 and looking < 2, (submitting, looking)


# --- several processes ----------------------------------------------------------------------------------


def test_two_nodes_with_two_processes_each_train_as_one_process_does(lab: Lab):
    words = ["table1", "--scale", "smoke", "--only", "mar/diff/guided"]
    words += ["train.steps=20", "compute.log_every=1", "train.label_dropout=0.1"]
    train = {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2}
    lab.submit(*words, cluster=lab.profile(pack=False, sample_shards=2, stages={"train": train}))
    lab.wait(120)
    alone = lab.folder / "alone"
    lab("run", *words, "--runs", str(alone), "--records", str(alone / "records"))
    ours, theirs = (_losses(folder) for folder in (lab.folder / "runs", alone))
    assert len(ours) == 20 and ours == pytest.approx(theirs, rel=1e-5)
    record = next(r for r in lab.records().values() if r["task"] == "generation")
    assert record["training"]["processes"] == 4 and record["status"] == "done"
    drawn = Counter(e["event"] for e in lab.history() if e["stage"] == record["ids"]["sample_id"])
    assert drawn["done"] == 3, "two shards, and the stage that finds their images"


def _losses(runs: Path) -> list[float]:
    (path,) = runs.glob("train/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]
