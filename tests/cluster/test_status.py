"""status and logs, for made-up states of jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from mar_bench.cluster import logs
from mar_bench.cluster.ledger import find_rows
from mar_bench.cluster.logs import logs_of, print_logs
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.cluster.status import Line, advice, look, text
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import GUIDED, SHARDS, UNGUIDED, Lab, runs_of

(RUN,) = runs_of(task="generation")
TRAIN = RUN.ids["train_id"]


def line_of(lab: Lab, row: str = GUIDED) -> Line:
    (found,) = [x for x in look(lab.places, []).lines if x.task == "generation" and x.row.split(" ")[0] == row]
    return found


@pytest.fixture
def training(lab: Lab) -> Lab:
    """A submitted row that has come to its training."""
    lab.submit([RUN])
    lab.finish("tokenizer", "latents", "extractor")
    return lab


@pytest.fixture
def sampling(lab: Lab) -> Lab:
    """A submitted row that has come to its three shards of samples."""
    lab.submit([RUN], SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("generation", "PENDING", reason="Dependency")
    return lab


# --- advice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("launch failed requeued held", "scontrol release"),
        ("JobHeldUser", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "sinfo -R"),
        ("QOSMaxJobsPerUserLimit", "limit"),
        ("InvalidQOS", "profile"),
        ("PartitionTimeLimit", "profile"),
        ("CANCELLED", "submit"),
    ],
)
def test_advice(reason, word):
    assert word in advice(reason)
    assert [advice(state) for state in ("", "RUNNING", "NEXT", "COMPLETING", "Priority", "Dependency")] == [""] * 6


# --- a line for each state ------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["Priority", "DependencyNeverSatisfied"])
def test_a_pending_job(reason, training: Lab):
    training.say("train", "PENDING", reason=reason)
    line = line_of(training)
    assert (line.stage, line.state, line.live) == ("train", f"PENDING ({reason})", True)
    assert line.advice == advice(reason) and line.job == training.job("train").slurm_id


@pytest.mark.parametrize("state", ["FAILED", "OUT_OF_MEMORY"])
def test_a_job_that_ended_badly(state, training: Lab):
    job = training.say("train", state, nodes="n2")
    training.log(job, "start\nslurmstepd: error: *** KILLED ***\nthe last words\n")
    line = line_of(training)
    assert (line.stage, line.state, line.node, line.live) == ("train", state, "n2", False)
    assert line.error == "slurmstepd: error: *** KILLED ***" and line.advice == advice(state)
    assert line.log.endswith(f"/logs/{job.slurm_id}_0_log.err") and (training.places.runs / line.log).is_file()


@pytest.mark.parametrize(
    ("state", "shown", "error"),
    [
        ("CANCELLED", "CANCELLED", ""),
        ("PREEMPTED", "PREEMPTED", ""),
        ("COMPLETED", "FAILED", "its job has ended without it"),
    ],
)
def test_a_job_that_ended_without_its_stage(state, shown, error, training: Lab):
    training.say("train", state)
    line = line_of(training)
    assert (line.state, line.live, line.error, line.advice) == (shown, False, error, advice(shown))


def test_a_job_that_slurm_does_not_know_and_a_slurm_that_does_not_answer(training: Lab):
    training.squeue.away = True
    assert line_of(training).state == "UNKNOWN" and line_of(training).advice == advice("UNKNOWN")
    training.squeue.away = False
    training.squeue.jobs.clear()
    assert (line_of(training).state, line_of(training).live) == ("LOST", False)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, ("RUNNING", None, None, None, "")),
        ({"stage": TRAIN, "step": 50, "total": 200, "rate": 2.0, "unit": 16}, ("RUNNING", 50, 32, 75, "")),
        ({"stage": "another stage", "step": 5, "total": 6}, ("NEXT", None, None, None, "")),
        ({"stage": TRAIN, "waiting": "another process"}, ("WAITING", None, None, None, "another process")),
        ({"stage": TRAIN, "updated": -725}, ("RUNNING", None, None, None, "no update for 12 min")),
        ({"job": "99", "step": 5, "failed": {TRAIN: "no"}, "updated": 0}, ("RUNNING", None, None, None, "")),
        ({"stage": "another stage", "failed": {TRAIN: "not finite"}}, ("FAILED", None, None, None, "not finite")),
    ],
)
def test_a_running_job(notes, expected, training: Lab):
    if notes.get("updated", 0) < 0:  # seconds ago
        notes = {**notes, "updated": time.time() + notes["updated"]}
    training.note(training.say("train", "RUNNING", nodes="n1"), **notes)
    line = line_of(training)
    assert (line.state, line.step, line.images_per_second, line.seconds_left, line.error) == expected
    assert line.node == "n1" and line.live == (line.state != "FAILED") and bool(line.advice) == (not line.live)


def test_a_requeued_job(training: Lab):
    training.note(training.say("train", "PENDING", reason="BeginTime"), stage=TRAIN, history=[{"event": "stopped"}])
    assert line_of(training).error == "requeued" and line_of(training).live


def test_a_cancelled_row_beside_one_that_goes_on(lab: Lab):
    submission = lab.submit(runs_of("mar/diff/*", "generation"))
    lab.finish("tokenizer", "latents", "extractor")
    lab.say("train", "RUNNING")
    submission.cancel([RUN.ids["sample_id"], RUN.id])
    assert line_of(lab, UNGUIDED).state == "RUNNING"
    assert (line_of(lab).state, line_of(lab).live) == ("cancelled", False)


def test_a_failed_record_without_a_job(training: Lab):
    """It failed in run, or another submission has done the stages before it."""
    training.finish("train", "sample")
    training.fail(RUN, "ValueError: broken\nTraceback")
    path = training.ledger[-1].folder / "submission.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "jobs": [{**job, "stages": []} for job in content["jobs"]]}))
    line = line_of(training)
    assert (line.state, line.error, line.live) == ("FAILED", "ValueError: broken", False) and line.advice


def test_the_newest_submission_of_a_row_is_shown(training: Lab):
    training.say("train", "FAILED")
    training.submit([RUN], retry=True)
    line = line_of(training)
    assert line.state == "PENDING (Priority)" and line.job == training.job("train").slurm_id


def test_shards(sampling: Lab):
    sampling.say("sample", "COMPLETED", shard=0)
    running = sampling.say("sample", "RUNNING", shard=2)
    sampling.note(running, stage=RUN.ids["sample_id"], step=1, total=4, rate=1.0)
    line = line_of(sampling)
    assert (line.stage, line.state, line.job, line.step) == ("sample 1/3", "RUNNING", running.slurm_id, 1)
    for shard in (1, 2):
        sampling.say("sample", "COMPLETED", shard=shard)
    line = line_of(sampling)
    assert line.state == "PENDING (Dependency)" and line.job == sampling.job("generation").slurm_id
    failed = sampling.say("sample", "OUT_OF_MEMORY", shard=1, nodes="n2")
    sampling.say("generation", "CANCELLED")
    line = line_of(sampling)
    assert line.state == "FAILED" and f"job {failed.slurm_id} OUT_OF_MEMORY on n2" in line.error and not line.live


@pytest.mark.parametrize(
    ("main", "notes", "state"),
    [
        ("alive", None, "PENDING"),
        ("alive", {"pid": "alive", "stage": TRAIN}, "RUNNING"),
        ("alive", {"pid": "dead", "stage": TRAIN}, "FAILED"),
        ("alive", {"pid": "dead", "event": "stopped", "stage": TRAIN}, "INTERRUPTED"),
        ("dead", None, "INTERRUPTED"),
    ],
)
def test_a_job_on_this_machine(main, notes, state, lab: Lab):
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    pids = {"alive": os.getpid(), "dead": process.pid}
    lab.submit([RUN], kind="processes", process=pids[main])
    lab.finish("tokenizer", "latents", "extractor")
    if notes is not None:
        lab.note(lab.job("train"), **{**notes, "pid": pids[notes["pid"]]})
    calls = len(lab.squeue.calls)
    line = line_of(lab)
    assert line.state == state and line.live == (state in ("PENDING", "RUNNING")) and len(lab.squeue.calls) == calls


# --- views ----------------------------------------------------------------------------------------------


def test_the_view_as_text(lab: Lab):
    lab.submit(runs_of("mar/*"), SlurmProfile(pack=True))
    lab.note(lab.say("train", "RUNNING"), stage="0", step=1)
    lab.log(lab.say("tokenizer", "OUT_OF_MEMORY"), "torch.OutOfMemoryError: no\n")
    shown = text(look(lab.places, []))
    lines = shown.splitlines()
    assert lines[0].split() == ["row", "stage", "job", "state", "node", "step", "images/s", "left", "log"]
    assert GUIDED in shown and "table" in [line.split()[0] for line in lines]
    assert shown.count("torch.OutOfMemoryError: no; raise memory_gb") == 1
    assert f"logs in {lab.ledger[-1].folder / 'logs'}" in shown and lines[-1].startswith("table1: 10 records; ")


def test_a_finished_row_is_only_counted(training: Lab):
    training.finish("train", "sample", "generation")
    training.say_all("COMPLETED")
    assert text(look(training.places, [])) == "table1: 1 records; 1 done" and not look(training.places, []).live


def test_a_table_whose_job_died_is_shown(training: Lab):
    training.say_all("COMPLETED")
    assert look(training.places, []).tables == []
    training.squeue.say(job := training.ledger[-1].last, "TIMEOUT")
    training.log(job, "slurmstepd: error: DUE TO TIME LIMIT\n")
    (line,) = look(training.places, []).tables
    assert (line.state, line.error) == ("TIMEOUT", "slurmstepd: error: DUE TO TIME LIMIT")


def test_submissions_that_need_the_user_are_noted(training: Lab):
    training.submit([RUN], retry=True, waiting=3)
    assert look(training.places, []).notes == []
    training.say_all("COMPLETED")
    assert "3 evaluations" in look(training.places, []).notes[0]
    (training.ledger[-1].folder / "sent.jsonl").unlink()
    assert "cut short" in look(training.places, []).notes[0]


def test_what_was_never_submitted_is_an_error(lab: Lab):
    with pytest.raises(UserError, match="nothing has been submitted in .*--runs"):
        look(lab.places, [])
    lab.submit([RUN])
    with pytest.raises(UserError, match="did you mean 'table1'?"):
        look(lab.places, ["tabel1"])


# --- rows by name, and their logs -----------------------------------------------------------------------


def test_rows_by_experiment_row_and_id(lab: Lab):
    lab.submit(runs_of("mar/diff/*"))

    def found(name: str) -> set[str]:
        return {row.id for row in find_rows(lab.ledger, name)}

    assert found("table1") == {run.id for run in runs_of("mar/diff/*")}
    assert RUN.id in found(f"table1/{GUIDED}") and found(f"table1/{GUIDED}") < found("table1")
    assert found(RUN.id) == {RUN.id} and RUN.id in found(TRAIN) and len(found(TRAIN)) == 4
    assert found(str(lab.job("train").slurm_id)) == found(TRAIN)
    for name in ("table2", f"table1/{GUIDED}x", "", "/"):
        with pytest.raises(UserError, match="nothing submitted is called"):
            find_rows(lab.ledger, name)


def test_logs_of_a_row_are_those_of_all_jobs_on_its_way(sampling: Lab, capsys):
    name = f"table1/{GUIDED}"
    assert not print_logs(sampling.places, name, 1)
    train, shard = sampling.job("train"), sampling.job("sample", 1)
    sampling.log(train, "a\n", "out")
    sampling.log(train, "b\n")
    sampling.log(train, "of the second process\n", "err", task=1)
    sampling.log(train, "", "out", task=1)
    sampling.log(shard, "c\nd\n")
    sampling.log(sampling.ledger[-1].last, "of another job\n")
    assert [(title, path.read_text()) for title, path in logs_of(sampling.places, name)] == [
        *[(f"job {train.slurm_id}: train mar/diff seed 0", t) for t in ("a\n", "b\n", "of the second process\n")],
        (f"job {shard.slurm_id}: sample {GUIDED} seed 0", "c\nd\n"),
    ]
    assert print_logs(sampling.places, name, 1)
    shown = capsys.readouterr().out
    assert "(last 1 of 2 lines)\nd\n" in shown and "\nc\n" not in shown


def test_logs_are_followed_until_the_row_has_ended(training: Lab, monkeypatch, capsys):
    job = training.say("train", "RUNNING")
    path = training.log(job, "before\n")
    writes = iter(("one\n", "two\n"))

    def sleep(seconds: float) -> None:
        with path.open("a") as file:
            file.write(line := next(writes))
        if line == "two\n":
            training.say("train", "FAILED")

    monkeypatch.setattr(logs.time, "sleep", sleep)
    print_logs(training.places, RUN.id, 9, follow=True)
    assert capsys.readouterr().out.endswith("\nbefore\none\ntwo\n")
