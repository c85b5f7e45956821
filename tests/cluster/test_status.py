"""What status, logs and cancel say of rows, in made-up states of their jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from mar_bench.cluster import status as cluster_status
from mar_bench.cluster.ledger import Entry
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.cluster.status import ADVICE, Line, advice, chosen, follow_logs, logs_of, look, text
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import GUIDED, Lab, runs_of

pytest_plugins = ["tests.cluster_fixtures"]

UNGUIDED = "mar/diff/unguided"
SHARDS = SlurmProfile(pack=False, sample_shards=3)
RUN = runs_of(task="generation")[0]
TRAIN = RUN.ids["train_id"]


def line_of(lab: Lab, task: str = "generation", row: str = GUIDED) -> Line:
    (found,) = [x for x in look(lab.places, []).lines if x.task == task and x.row.split(" ")[0] == row]
    return found


def told(lab: Lab, entry: Entry, of: int = -1, **what: object) -> None:
    """What a job says of itself."""
    path = lab.ledger[of].folder / "jobs" / f"{entry.key}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"job": entry.slurm_id, "updated": time.time(), **what}))


def logged(lab: Lab, entry: Entry, text: str, ending: str = "err", task: int = 0) -> None:
    path = lab.ledger[-1].folder / "logs" / f"{entry.slurm_id}_{task}_log.{ending}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.fixture
def training(lab: Lab) -> Lab:
    """A row, submitted and as far as its training."""
    lab.submit(runs_of(task="generation"))
    lab.finish("tokenizer", "latents", "extractor")
    return lab


# --- a line for each state ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("Priority", ""),
        ("Resources", ""),
        ("Dependency", ""),
        ("BeginTime", ""),
        ("DependencyNeverSatisfied", "mar-bench cancel, then submit with --retry failed"),
        ("launch failed requeued held", "scontrol release"),
        ("job requeued in held state", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "sinfo -R"),
        ("PartitionTimeLimit", "more time"),
        ("PartitionNodeLimit", "more nodes"),
        ("PartitionDown", "sinfo"),
        ("BadConstraints", "change the profile"),
        ("QOSMaxJobsPerUserLimit", "limit of the qos"),
        ("AssocGrpGRES", "limit of the account"),
        ("InvalidAccount", "set account in the profile"),
        ("InvalidQOS", "set qos in the profile"),
    ],
)
def test_a_job_that_waits(reason, hint, training: Lab):
    entry = training.say("train", "PENDING", reason=reason)
    line = line_of(training)
    assert (line.stage, line.job, line.state, line.live) == ("train", entry.slurm_id, f"PENDING ({reason})", True)
    assert hint in line.advice and bool(line.advice) == bool(hint) and not line.error


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin"])
def test_a_held_job_says_how_it_is_let_go(reason, training: Lab):
    training.say("train", "PENDING", reason=reason)
    assert "scontrol release" in line_of(training).advice


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("FAILED", "mar-bench logs says why; then submit with --retry failed"),
        ("OUT_OF_MEMORY", "raise memory_gb"),
        ("TIMEOUT", "raise time"),
        ("NODE_FAIL", "its node has died"),
        ("BOOT_FAIL", "did not start"),
        ("DEADLINE", "deadline"),
    ],
)
def test_a_job_that_has_ended_badly(state, hint, training: Lab):
    entry = training.say("train", state, nodes="n2")
    logged(training, entry, "start\nslurmstepd: error: *** KILLED ***\nthe last words\n")
    line = line_of(training)
    assert (line.stage, line.state, line.node, line.live) == ("train", state, "n2", False)
    assert line.error == "slurmstepd: error: *** KILLED ***" and hint in line.advice and "--retry failed" in line.advice
    assert line.log.endswith(f"/logs/{entry.slurm_id}_0_log.err") and (training.places.runs / line.log).is_file()


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED"])
def test_a_job_that_was_taken_away(state, training: Lab):
    training.say("train", state)
    line = line_of(training)
    assert (line.state, line.live, line.error, line.advice) == (state, False, "", "submit sends it again")


def test_a_job_that_slurm_does_not_know(training: Lab):
    training.squeue.forget(training.job("train"))
    line = line_of(training)
    assert (line.state, line.live) == ("LOST", False) and "SLURM_CONF" in line.advice


def test_a_slurm_that_does_not_answer(training: Lab):
    training.squeue.away = True
    line = line_of(training)
    assert line.state == "UNKNOWN" and "Slurm does not answer" in line.advice and not line.error


def test_a_training_says_how_far_it_is(training: Lab):
    entry = training.say("train", "RUNNING", nodes="n1")
    told(training, entry, stage=TRAIN, step=50, total=200, rate=2.0, unit=16)
    line = line_of(training)
    assert (line.state, line.node, line.step, line.total, line.live) == ("RUNNING", "n1", 50, 200, True)
    assert (line.images_per_second, line.seconds_left) == (32, 75)
    assert "50/200" in text(look(training.places, [])) and "1 min 15 s" in text(look(training.places, []))


@pytest.mark.parametrize(
    "about", [{}, {"stage": TRAIN, "step": None}, {"stage": TRAIN, "step": 0, "total": 9, "rate": None}]
)
def test_a_training_that_has_said_little(about, training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, **about)
    line = line_of(training)
    assert line.state == "RUNNING" and line.seconds_left is None and not line.error


def test_notes_of_an_earlier_job_do_not_count(training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, job="99", stage=TRAIN, step=50, total=200, failed={TRAIN: "broken"}, updated=0)
    line = line_of(training)
    assert line.state == "RUNNING" and line.step is None and not line.error


def test_a_stage_that_its_job_has_not_come_to(training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, stage="another stage", step=5, total=6)
    line = line_of(training)
    assert (line.state, line.step, line.live) == ("NEXT", None, True)


def test_a_stage_that_waits_for_another_process(training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, stage=TRAIN, waiting="another process does it")
    line = line_of(training)
    assert (line.state, line.error, line.live) == ("WAITING", "another process does it", True)


def test_a_job_that_has_fallen_silent(training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, stage=TRAIN, step=5, total=6, updated=time.time() - 725)
    assert line_of(training).error == "no word for 12 min" and line_of(training).live


def test_a_job_that_was_queued_again(training: Lab):
    entry = training.say("train", "PENDING", reason="BeginTime")
    told(training, entry, stage=TRAIN, history=[{"event": "stopped"}])
    assert line_of(training).error == "queued again" and line_of(training).live


def test_a_stage_that_failed_inside_a_job_that_goes_on(training: Lab):
    entry = training.say("train", "RUNNING")
    told(training, entry, stage="another stage", failed={TRAIN: "loss is not finite"})
    line = line_of(training)
    assert (line.state, line.error, line.live) == ("FAILED", "loss is not finite", False)
    assert "--retry failed" in line.advice


def test_a_job_that_ended_well_without_its_stage(training: Lab):
    training.say("train", "COMPLETED")
    line = line_of(training)
    assert (line.state, line.error, line.live) == ("FAILED", "its job has ended without it", False)


def test_a_row_that_is_done_or_was_never_sent(training: Lab):
    training.finish("train", "sample", "generation")
    assert line_of(training).state == "done" and not line_of(training).advice


def test_a_row_that_the_user_cancelled(training: Lab):
    submission = training.ledger[-1]
    submission.cancel(stage.id for entry in submission.jobs.values() for stage in entry.stages)
    for entry in submission.jobs.values():
        training.squeue.say(entry, "CANCELLED")
    line = line_of(training)
    assert (line.state, line.live, line.advice) == ("cancelled", False, "submit sends it again")


def test_a_cancelled_row_is_so_although_another_trains_on(lab: Lab):
    lab.submit(runs_of("mar/diff/*", "generation"))
    lab.finish("tokenizer", "latents", "extractor")
    lab.say("train", "RUNNING")
    lab.ledger[-1].cancel([RUN.ids["sample_id"], RUN.id])
    assert line_of(lab, row=UNGUIDED).state == "RUNNING"
    assert (line_of(lab).state, line_of(lab).live) == ("cancelled", False)


def test_a_failed_record_whose_job_is_gone(training: Lab):
    """It failed in run, or another submission has done what is behind it."""
    training.finish("train", "sample")
    training.ledger[-1].cancel([RUN.id])
    training.fail(RUN, "ValueError: broken\nTraceback")
    assert line_of(training).state == "cancelled"
    (training.ledger[-1].folder / "cancelled.json").unlink()
    content = json.loads((training.ledger[-1].folder / "submission.json").read_text())
    content["jobs"] = [{**job, "stages": []} for job in content["jobs"]]
    (training.ledger[-1].folder / "submission.json").write_text(json.dumps(content))
    line = line_of(training)
    assert (line.state, line.error, line.live) == ("FAILED", "ValueError: broken", False)
    assert "--retry failed" in line.advice


def test_a_row_whose_latents_are_gone_is_at_its_next_stage(lab: Lab):
    lab.finish("tokenizer", "extractor", "train")
    lab.submit(runs_of(task="generation"))
    lab.say("sample", "RUNNING")
    assert (line_of(lab).stage, line_of(lab).state) == ("sample", "RUNNING")


def test_the_newest_submission_of_a_row_is_shown(training: Lab):
    training.say("train", "FAILED")
    training.submit(runs_of(task="generation"), retry=True)
    line = line_of(training)
    assert line.state == "PENDING (Priority)" and line.job == training.job("train").slurm_id


# --- shards ---------------------------------------------------------------------------------------------


@pytest.fixture
def sampling(lab: Lab) -> Lab:
    lab.submit(runs_of(task="generation"), SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("generation", "PENDING", reason="Dependency")
    return lab


def test_samples_say_how_many_of_their_shards_are_done(sampling: Lab):
    sampling.say("sample", "COMPLETED", shard=0)
    entry = sampling.say("sample", "RUNNING", shard=2)
    told(sampling, entry, stage=RUN.ids["sample_id"], step=1, total=4, rate=1.0)
    line = line_of(sampling)
    assert (line.stage, line.state, line.job, line.step) == ("sample 1/3", "RUNNING", entry.slurm_id, 1)


def test_a_failed_shard_is_its_row_s_failure(sampling: Lab):
    entry = sampling.say("sample", "OUT_OF_MEMORY", shard=1, nodes="n2")
    for shard in (0, 2):
        sampling.say("sample", "COMPLETED", shard=shard)
    sampling.say("generation", "CANCELLED")
    line = line_of(sampling)
    assert line.state == "FAILED" and f"job {entry.slurm_id} OUT_OF_MEMORY on n2" in line.error
    assert "--retry failed" in line.advice and not line.live


def test_when_all_shards_are_drawn_the_rest_is_shown(sampling: Lab):
    for shard in range(3):
        sampling.say("sample", "COMPLETED", shard=shard)
    line = line_of(sampling)
    assert line.state == "PENDING (Dependency)" and line.job == sampling.job("generation").slurm_id


# --- without Slurm --------------------------------------------------------------------------------------


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("main", "job", "state"),
    [
        ("alive", None, "PENDING"),
        ("alive", {"pid": "alive", "stage": TRAIN}, "RUNNING"),
        ("alive", {"pid": "dead", "stage": TRAIN}, "FAILED"),
        ("alive", {"pid": "dead", "event": "end"}, "FAILED"),
        ("alive", {"pid": "dead", "event": "stopped", "stage": TRAIN}, "INTERRUPTED"),
        ("dead", None, "INTERRUPTED"),
        ("dead", {"pid": "dead", "stage": TRAIN}, "INTERRUPTED"),
    ],
)
def test_a_process_here(main, job, state, lab: Lab, dead):
    pids = {"alive": os.getpid(), "dead": dead}
    lab.submit(runs_of(task="generation"), kind="processes", options={"process": pids[main]})
    lab.finish("tokenizer", "latents", "extractor")
    if job is not None:
        told(lab, lab.job("train"), **{**job, "pid": pids[job["pid"]]})
    line = line_of(lab)
    assert line.state == state and line.live == (state in ("PENDING", "RUNNING"))
    assert ("the same submit goes on" in line.advice) == (state == "INTERRUPTED")
    assert not lab.squeue.calls


# --- advice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "RUNNING", "NEXT", "WAITING", "PENDING", "COMPLETING", "Priority", "Dependency"])
def test_there_is_no_advice_where_nothing_is_to_be_done(state):
    assert advice(state) == ""


@pytest.mark.parametrize("word", ADVICE)
def test_every_advice_can_be_given(word):
    assert advice(word) == ADVICE[word] and "\n" not in ADVICE[word]


# --- views ----------------------------------------------------------------------------------------------


def test_the_view_as_text(lab: Lab):
    lab.submit(runs_of("mar/*"), SlurmProfile(pack=True))
    shown = text(look(lab.places, [])).splitlines()
    assert shown[0].split() == ["row", "stage", "job", "state", "node", "step", "images/s", "left", "log"]
    rows = "\n".join(shown)
    assert "mar/diff/guided" in rows and "PENDING (Priority)" in rows and "and 1 more" in rows, "speed in one line"
    assert shown[-1] == "table1: 10 records; 10 PENDING" and "table" in [line.split()[0] for line in shown]


def test_what_is_done_is_counted_alone(training: Lab):
    training.finish("train", "sample", "generation")
    for entry in training.ledger[-1].jobs.values():
        training.squeue.say(entry, "COMPLETED")
    assert text(look(training.places, [])) == "table1: 1 records; 1 done"
    assert not look(training.places, []).live


def test_the_text_says_each_trouble_once_with_what_to_do(lab: Lab):
    lab.submit(runs_of("mar/*", "generation"))
    lab.say("tokenizer", "OUT_OF_MEMORY")
    logged(lab, lab.job("tokenizer"), "torch.OutOfMemoryError: no\n")
    shown = text(look(lab.places, []))
    assert shown.count("torch.OutOfMemoryError: no; raise memory_gb") == 1
    assert f"logs in {lab.ledger[-1].folder / 'logs'}" in shown


def test_a_view_as_plain_containers(training: Lab):
    view = look(training.places, ["table1"])
    tree = json.loads(json.dumps(view.tree()))
    assert tree["rows"][0]["id"] == RUN.id and tree["rows"][0]["live"] and tree["tables"][0]["row"] == "table"
    assert view.live


def test_a_table_whose_job_died_is_shown_until_it_is_submitted_again(training: Lab):
    entry = training.ledger[-1].jobs[training.ledger[-1].last]
    for job in training.ledger[-1].jobs.values():
        training.squeue.say(job, "COMPLETED")
    assert look(training.places, []).tables == []
    training.squeue.say(entry, "TIMEOUT")
    logged(training, entry, "slurmstepd: error: DUE TO TIME LIMIT\n")
    (line,) = look(training.places, []).tables
    assert (line.state, line.error) == ("TIMEOUT", "slurmstepd: error: DUE TO TIME LIMIT")


def test_what_was_never_submitted_is_a_mistake(lab: Lab):
    with pytest.raises(UserError, match="nothing has been submitted in .*--runs"):
        look(lab.places, [])
    lab.submit(runs_of())
    with pytest.raises(UserError, match="did you mean 'table1'?"):
        look(lab.places, ["tabel1"])


# --- rows by name, and their logs -----------------------------------------------------------------------


def test_rows_by_experiment_row_and_id(lab: Lab):
    lab.submit(runs_of("mar/diff/*"))
    everything = {run.id for run in runs_of("mar/diff/*")}

    def found(name: str) -> set[str]:
        return {row.id for row in chosen(lab.ledger, name)}

    assert found("table1") == everything
    assert found(f"table1/{GUIDED}") == {row.id for row in chosen(lab.ledger, "table1") if row.row == GUIDED}
    assert RUN.id in found(f"table1/{GUIDED}") and found(f"table1/{GUIDED}") < everything
    assert found(RUN.id) == {RUN.id} and RUN.id in found(TRAIN) and len(found(TRAIN)) == 4
    shared = lab.job("train").slurm_id
    assert found(shared) == found(TRAIN)
    for name in ("table2", f"table1/{GUIDED}x", "", "/"):
        with pytest.raises(UserError, match="nothing submitted is called"):
            chosen(lab.ledger, name)
    with pytest.raises(UserError, match=f"did you mean 'table1/{GUIDED}'"):
        chosen(lab.ledger, f"table1/{GUIDED}x")


def test_logs_of_a_row_are_those_of_all_jobs_on_its_way(sampling: Lab):
    assert logs_of(sampling.places, f"table1/{GUIDED}") == []
    train, shard, table = (
        sampling.job("train"),
        sampling.job("sample", 1),
        sampling.ledger[-1].jobs[sampling.ledger[-1].last],
    )
    logged(sampling, train, "a\n", "out")
    logged(sampling, train, "b\n")
    logged(sampling, train, "of the second process\n", "err", task=1)
    logged(sampling, train, "", "out", task=1)
    logged(sampling, shard, "c\n")
    logged(sampling, table, "d\n")
    found = {
        title: [path.read_text() for path in paths] for title, paths in logs_of(sampling.places, f"table1/{GUIDED}")
    }
    assert found == {
        f"job {train.slurm_id}: train mar/diff seed 0": ["a\n", "b\n", "of the second process\n"],
        f"job {shard.slurm_id}: sample {GUIDED} seed 0": ["c\n"],
    }


def test_logs_are_followed_until_the_row_is_at_rest(training: Lab, monkeypatch, capsys):
    entry = training.say("train", "RUNNING")
    logged(training, entry, "before\n")
    found = logs_of(training.places, RUN.id)
    writes = iter(("one\n", "two\n"))

    def sleep(seconds: float) -> None:
        with found[0][1][0].open("a") as file:
            file.write(next(writes))
        if "two" in found[0][1][0].read_text():
            training.say("train", "FAILED")

    monkeypatch.setattr(cluster_status.time, "sleep", sleep)
    follow_logs(training.places, RUN.id, found)
    assert capsys.readouterr().out == "one\ntwo\n"
