"""status and logs, for made-up states of jobs."""

from __future__ import annotations

import pytest

from mar_bench.cluster import status
from mar_bench.cluster.ledger import find_rows
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.status import Line, logs_of, look, print_logs, text
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import GUIDED, SHARDS, Lab, runs_of

(RUN,) = runs_of(task="generation")
TRAIN = RUN.ids["train_id"]


def line_of(lab: Lab, row: str = GUIDED) -> Line:
    (found,) = [x for x in look(lab.places, []) if x.task == "generation" and x.row.split(" ")[0] == row]
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


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Priority", ""),
        ("DependencyNeverSatisfied", "mar-bench cancel"),
        ("launch failed requeued held", "scontrol release"),
        ("JobHeldUser", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "sinfo -R"),
        ("QOSMaxJobsPerUserLimit", "limit"),
        ("InvalidQOS", "profile"),
        ("PartitionTimeLimit", "profile"),
    ],
)
def test_a_pending_job(reason, advice, training: Lab):
    job = training.say("train", "PENDING", reason=reason)
    line = line_of(training)
    assert (line.stage, line.state, line.live, line.job) == ("train", f"PENDING ({reason})", True, job.slurm_id)
    assert advice in line.advice and bool(line.advice) == bool(advice)


@pytest.mark.parametrize(
    ("state", "shown", "error", "advice"),
    [
        ("FAILED", "FAILED", "", "mar-bench logs"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY", "", "memory_gb"),
        ("CANCELLED", "CANCELLED", "", "sends it again"),
        ("PREEMPTED", "PREEMPTED", "", "sends it again"),
        ("COMPLETED", "FAILED", "its job has ended without it", "mar-bench logs"),
    ],
)
def test_a_job_that_ended_without_its_stage(state, shown, error, advice, training: Lab):
    training.say("train", state, nodes="n2")
    line = line_of(training)
    assert (line.stage, line.state, line.node, line.live, line.error) == ("train", shown, "n2", False, error)
    assert advice in line.advice


def test_a_job_that_slurm_does_not_know_and_a_slurm_that_does_not_answer(training: Lab):
    training.squeue.away = True
    assert line_of(training).state == "UNKNOWN" and "does not answer" in line_of(training).advice
    training.squeue.away = False
    training.squeue.jobs.clear()
    assert (line_of(training).state, line_of(training).live) == ("LOST", False)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, ("RUNNING", None, None, None, "")),
        (
            {"stage": TRAIN, "step": 50, "total": 200, "images_per_second": 32, "seconds_left": 75},
            ("RUNNING", 50, 32, 75, ""),
        ),
        ({"stage": "another stage", "step": 5, "total": 6}, ("NEXT", None, None, None, "")),
        ({"stage": TRAIN, "waiting": "another process"}, ("WAITING", None, None, None, "another process")),
        ({"job": "99", "step": 5, "failed": {TRAIN: "no"}}, ("RUNNING", None, None, None, "")),
        ({"stage": "another stage", "failed": {TRAIN: "not finite"}}, ("FAILED", None, None, None, "not finite")),
    ],
)
def test_a_running_job(notes, expected, training: Lab):
    training.note(training.say("train", "RUNNING", nodes="n1"), **notes)
    line = line_of(training)
    assert (line.state, line.step, line.images_per_second, line.seconds_left, line.error) == expected
    assert line.node == "n1" and line.live == (line.state != "FAILED") and bool(line.advice) == (not line.live)


def test_shards(sampling: Lab):
    sampling.say("sample", "COMPLETED", shard=0)
    running = sampling.say("sample", "RUNNING", shard=2)
    sampling.note(running, stage=RUN.ids["sample_id"], step=1, total=4, images_per_second=1.0, seconds_left=3)
    line = line_of(sampling)
    assert (line.stage, line.state, line.job, line.step) == ("sample 1/3", "RUNNING", running.slurm_id, 1)
    for shard in (1, 2):
        sampling.say("sample", "COMPLETED", shard=shard)
    line = line_of(sampling)
    assert line.state == "PENDING (Dependency)" and line.job == sampling.job("generation").slurm_id
    failed = sampling.say("sample", "OUT_OF_MEMORY", shard=1, nodes="n2")
    sampling.say("generation", "CANCELLED")
    line = line_of(sampling)
    assert line.state == "FAILED" and f"job {failed.slurm_id} OUT_OF_MEMORY n2" in line.error and not line.live


def test_the_view_as_text(lab: Lab):
    lab.submit(runs_of("mar/*"), Profile(pack=True))
    lab.note(lab.say("train", "RUNNING"), stage="0", step=1)
    lab.say("tokenizer", "OUT_OF_MEMORY")
    shown = text(look(lab.places, []))
    lines = shown.splitlines()
    assert lines[0].split() == ["row", "stage", "job", "state", "node", "step", "images/s", "left"]
    assert f"table1/{GUIDED}" in shown and "table1/table" in [line.split()[0] for line in lines]
    assert shown.count("raise memory_gb") == 1 and lines[-1].startswith("10 records; ")


def test_a_table_whose_job_died_is_shown(training: Lab):
    training.say_all("COMPLETED")
    assert len(look(training.places, [])) == 1
    training.squeue.say(training.ledger[-1].last, "TIMEOUT")
    _, line = look(training.places, [f"table1/{GUIDED}"])
    assert (line.task, line.state) == ("table", "TIMEOUT") and "raise time" in line.advice


def test_evaluations_that_wait_for_their_sweep_points_are_shown(lab: Lab):
    lab.submit([RUN], waiting=2)
    lab.say_all("COMPLETED")
    (line,) = [line for line in look(lab.places, []) if line.task == "table"]
    assert str(line.error).startswith("2 evaluations wait for their sweep points; to send them: mar-bench submit")


def test_what_was_never_submitted_is_an_error(lab: Lab):
    with pytest.raises(UserError, match="nothing has been submitted in .*--runs"):
        look(lab.places, [])
    lab.submit([RUN])
    with pytest.raises(UserError, match="did you mean 'table1'?"):
        look(lab.places, ["tabel1"])


def test_rows_by_experiment_row_and_id(lab: Lab):
    lab.submit(runs_of("mar/diff/*"))

    def found(name: str) -> set[str]:
        return {row.id for row in find_rows(lab.ledger, name)}

    assert found("table1") == {run.id for run in runs_of("mar/diff/*")}
    assert RUN.id in found(f"table1/{GUIDED}") and found(f"table1/{GUIDED}") < found("table1")
    assert found(RUN.id) == {RUN.id} and RUN.id in found(TRAIN) and len(found(TRAIN)) == 4
    assert found(str(lab.job("train").slurm_id)) == found(TRAIN)
    for name in ("table2", f"table1/{GUIDED}x", "", "/"):
        with pytest.raises(UserError, match="no submission has"):
            find_rows(lab.ledger, name)


def test_logs_of_a_row_are_those_of_all_jobs_on_its_way(sampling: Lab, capsys):
    name = f"table1/{GUIDED}"
    assert not print_logs(sampling.places, name, lines=1)
    train, shard = sampling.job("train"), sampling.job("sample", 1)
    sampling.log(train, "b\n")
    sampling.log(train, "a\n", "out")
    sampling.log(train, "of the second process\n", "err", task=1)
    sampling.log(train, "", "out", task=1)
    sampling.log(shard, "c\nd\n")
    sampling.log(sampling.ledger[-1].last, "of another job\n")
    assert [(title, path.read_text()) for title, path in logs_of(sampling.places, name)] == [
        *[(f"job {train.slurm_id}: train mar/diff seed 0", t) for t in ("b\n", "a\n", "of the second process\n")],
        (f"job {shard.slurm_id}: sample {GUIDED} seed 0 2/3", "c\nd\n"),
    ]
    assert print_logs(sampling.places, name, lines=1)
    shown = capsys.readouterr().out
    assert shown.endswith("_log.err\nd\n") and "\nc\n" not in shown


def test_logs_are_followed_until_the_row_has_ended(training: Lab, monkeypatch, capsys):
    job = training.say("train", "RUNNING")
    path = training.log(job, "before\n")
    writes = iter(("one\n", "two\n"))

    def sleep(seconds: float) -> None:
        with path.open("a") as file:
            file.write(line := next(writes))
        if line == "two\n":
            training.say("train", "FAILED")

    monkeypatch.setattr(status.time, "sleep", sleep)
    print_logs(training.places, RUN.id, follow=True)
    assert capsys.readouterr().out.endswith("\nbefore\none\ntwo\n")
