"""Experiments through submit on a private cluster of four nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from mar_bench.records.provenance import git_state
from tests.slurm.conftest import Cluster
from tests.slurm.lab import TABLE1, Lab, measured

ROW = [*TABLE1, "--only", "mar/diff/guided"]
# what a site's modules and a user's shell may set: nothing of it counts
HOSTILE = {"SBATCH_PARTITION": "nowhere", "SBATCH_EXPORT": "NONE", "SBATCH_TIMELIMIT": "1", "SQUEUE_PARTITION": "prio"}
HOSTILE |= {"SRUN_NTASKS": "3", "SLURM_NTASKS": "7", "SLURM_MEM_PER_NODE": "1", "SLURM_CPU_BIND": "mask_cpu:0x3"}
HOSTILE |= {"SLURM_EXPORT_ENV": "NONE", "PMI_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
ROWS = [*TABLE1, "--only", "mar/diff/*"]  # two rows that share a training


@pytest.fixture
def lab(slurm: Cluster, tmp_path: Path) -> Lab:
    return Lab(slurm, tmp_path)


@pytest.fixture(scope="module")
def table1(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A row at smoke scale, submitted as one job per stage and shard, and done."""
    lab = Lab(slurm, tmp_path_factory.mktemp("table1") / "it's; & more", HOSTILE)
    lab.submit(*ROW, cluster=lab.profile(pack=False, sample_shards=3))
    Lab(slurm, lab.folder / "alone")("run", *ROW)  # beside the jobs
    lab.wait(400)
    return lab


def started(lab: Lab, table1: Lab) -> Lab:
    """A user whose stages before the training are done."""
    for kind in ("tokenizer", "latents", "extractor", "reconstruction", "speed"):
        shutil.copytree(table1.folder / "runs" / kind, lab.folder / "runs" / kind)
    return lab


def submission(lab: Lab) -> dict:
    return json.loads(next((lab.folder / "runs").glob("submissions/*/submission.json")).read_text())


def test_a_row_on_four_nodes_equals_the_same_on_one_machine(table1: Lab):
    ours = table1.records()
    assert {r["status"] for r in ours.values()} == {"done"}
    theirs = Lab(table1.cluster, table1.folder / "alone").records()
    assert ours.keys() == theirs.keys() and measured(ours) == measured(theirs)  # to the last digit
    drawn = Counter(e["stage"] for e in table1.history() if e["event"] == "done")
    samples = {r["ids"]["sample_id"] for r in ours.values() if r["task"] == "generation"}
    assert [drawn[i] for i in samples] == [4], "three shards, and the stage that joins them"
    nodes = table1.cluster.run("sacct", "-n", "-X", "-P", "-o", "NodeList", "--name", submission(table1)["name"])
    assert len(set(nodes.split())) > 1


def test_a_record_names_its_job_and_code_and_the_last_job_writes_the_table(table1: Lab):
    provenance = next(iter(table1.records().values()))["provenance"]
    assert provenance["command"].startswith("mar-bench submit table1")
    assert provenance["slurm"]["job"] and provenance["slurm"]["restarts"] == 0
    assert provenance["git"] == git_state()
    text = (table1.folder / "reports/smoke/table1.md").read_text()
    assert "DiffLoss" in text and "FAILED" not in text


def test_finished_work_is_not_sent_again(table1: Lab):
    assert "nothing to send" in table1.submit(*ROW)
    assert " done" in table1("status") and "done tokenizer" in table1("logs", "table1/mar/diff/guided")


def test_failed_and_killed_stages_are_in_record_table_and_status_and_other_rows_finish(lab: Lab, table1: Lab):
    started(lab, table1)
    changes = {"good": {"train": {"lr": 2e-3}}, "wild": {"train": {"lr": 10, "weight_decay": 1000}}}
    changes["killed"] = {"train": {"lr": 1e-3}, "compute": {"step_pause": 1.0}}
    words = [str(lab.experiment("bad", changes)), "--scale", "smoke", "train.max_skipped_steps=2"]
    lab.submit(*words)
    job = lab.until(lambda: (x := lab.lines()["killed"])["stage"] == "train" and x["step"] and x, 200)["job"]
    os.kill(lab.process(job), signal.SIGKILL)  # as the OOM killer does
    lab.wait(300)
    lines = lab.lines()
    assert lines["good"]["state"] == "done"
    assert lines["wild"]["state"] == "FAILED" and "not finite" in lines["wild"]["error"] and lines["wild"]["advice"]
    assert lines["killed"]["state"].startswith(("FAILED", "NODE_FAIL")) and "Killed" in lab("logs", job)
    errors = [r["error"] for r in lab.records().values() if r["status"] == "failed" and r["task"] == "generation"]
    assert len(errors) == 2 and any("not finite" in e for e in errors) and any(job in e for e in errors)
    assert "FAILED" in (lab.folder / "reports/smoke/bad+train.max_skipped_steps=2.md").read_text()
    assert "--retry failed" in lab.submit(*words)
    held = lab.profile(job={"sbatch": {"hold": ""}})
    assert "sent" in lab.submit(*words, "--retry", "failed", "--only", "wild", cluster=held)
    assert lab.lines()["wild"]["live"]
    lab("cancel", "bad")


@pytest.mark.parametrize(("job", "why"), [({"memory_gb": 9000}, "config"), ({"partition": "none"}, "partition")])
def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(job, why, lab: Lab):
    said = lab.submit(*TABLE1, cluster=lab.profile(job=job), code=2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: sbatch refuses") and why in last and "Traceback" not in said
    assert not list((lab.folder / "runs").glob("submissions/*"))


def test_a_queued_training_is_shared(slurm: Cluster, lab: Lab):
    held = lab.profile(job={"sbatch": {"hold": ""}})
    lab.submit(*ROW, cluster=held)
    before = len(slurm.squeue())
    assert "in jobs that were sent before" in lab.submit(*ROWS, cluster=held)
    lines = lab.lines()
    assert lines["mar/diff/guided"]["job"].split("_")[0] == lines["mar/diff/unguided"]["job"].split("_")[0]
    lab("cancel", "table1/mar/diff/guided")
    assert lab.lines()["mar/diff/unguided"]["live"]
    lab("cancel", "table1")
    assert len(slurm.squeue()) < before and not lab.lines()["mar/diff/unguided"]["live"]


def test_two_nodes_with_two_processes_each_train_as_one_process_does(slurm: Cluster, lab: Lab, table1: Lab):
    alone = started(Lab(slurm, lab.folder / "alone"), table1)
    started(lab, table1)
    words = [*ROW, "train.steps=20", "compute.log_every=1", "train.label_dropout=0.1"]
    train = {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2}
    lab.submit(*words, cluster=lab.profile(stages={"train": train}))
    alone("run", *words)  # beside the jobs
    lab.wait(300)
    ours, theirs = (_losses(each.folder / "runs") for each in (lab, alone))
    assert len(ours) == 20 and ours == pytest.approx(theirs, rel=1e-5)
    record = next(r for r in lab.records().values() if r["task"] == "generation")
    assert record["training"]["processes"] == 4 and record["status"] == "done"


def _losses(runs: Path) -> list[float]:
    (path,) = runs.glob("train/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]
