"""What is sent, cancelled and written off, for made-up states of jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mar_bench.cluster import send
from mar_bench.cluster.pending import Plan
from mar_bench.cluster.profile import Profile
from mar_bench.cluster.send import cancel
from mar_bench.cluster.submit import settle
from mar_bench.records.record import write_record
from tests.made_up import generation
from tests.made_up_cluster import EXPERIMENT, GUIDED, PROFILE, SHARDS, UNGUIDED, Lab, runs_of

PACKED = Profile(pack=True)
ROW = runs_of()
(RUN,) = runs_of(task="generation")
BEHIND = ("sample", "generation", "speed")


def kinds(plan: Plan) -> set[str]:
    return {stage.kind for job in plan.graph for stage in job.stages}


@pytest.mark.parametrize("profile", [PROFILE, SHARDS, PACKED])
def test_a_second_plan_sends_nothing(profile, lab: Lab):
    first = lab.plan(ROW, profile)
    assert first.new and not first.elsewhere and not first.failed
    lab.submit(ROW, profile)
    again = lab.plan(ROW, profile)
    assert not again.new and set(again.elsewhere) == {stage.id for stage in first.stages}
    lab.squeue.away = True
    assert not lab.plan(ROW, profile).new and not lab.plan(ROW, profile, retry=True).new, "Slurm does not answer"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "REQUEUED"])
def test_a_live_training_is_shared(state, lab: Lab):
    lab.submit(ROW)
    job = lab.say("train", state)
    plan = lab.plan(runs_of(UNGUIDED))
    assert kinds(plan) == {"sample", "generation", "speed"}
    assert f"@{job.slurm_id}" in {need for job in plan.graph for need in job.needs}
    assert f"@{job.slurm_id}" in plan.graph[-1].follows


def test_finished_stages_are_neither_sent_nor_waited_for(lab: Lab):
    lab.submit(ROW)
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("train", "COMPLETED")
    plan = lab.plan(runs_of(UNGUIDED, "generation"))
    assert kinds(plan) == {"sample", "generation"} and not plan.elsewhere
    lab.finish("sample", "generation")
    assert lab.plan([RUN]).done == 1 and not lab.plan([RUN]).new


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "LOST"])
def test_a_failed_stage_and_all_behind_it_need_retry(state, lab: Lab):
    submission = lab.submit(ROW)
    job = lab.say("train", state, nodes="n3")
    for kind in BEHIND:
        lab.say(kind, "CANCELLED")  # as Slurm does with jobs that can never start
    plan, train = lab.plan(ROW), RUN.ids["train_id"]
    assert list(plan.failed) == [train] and not plan.new
    assert {job.slurm_id, state, "n3;"} <= set(plan.failed[train].split())
    assert kinds(lab.plan(ROW, retry=True)) == {"train", *BEHIND}
    lab.note(job, failed={train: "loss is not finite"})
    assert lab.plan(ROW).failed == {train: "loss is not finite"}, "the job's own reason"
    lab.note(job, failed={train: "loss is not finite"}, job="of an earlier submission")
    assert "loss" not in lab.plan(ROW).failed[train]
    lab.submit(ROW, retry=True)
    assert not lab.plan(ROW).failed and not lab.plan(ROW).new and submission.id < lab.ledger[-1].id


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED"])
def test_cancelled_stages_are_sent_again(state, lab: Lab):
    lab.submit(ROW)
    for kind in ("train", *BEHIND):
        lab.say(kind, state)
    plan = lab.plan(ROW)
    assert not plan.failed and kinds(plan) == {"train", *BEHIND}
    assert set(plan.elsewhere) == {RUN.ids[f"{kind}_id"] for kind in ("tokenizer", "latents", "extractor")} | {
        run.id for run in runs_of(task="reconstruction")
    }


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "CANCELLED"])
def test_a_failed_shard_fails_its_row_and_a_cancelled_one_does_not(state, lab: Lab):
    submission = lab.submit([RUN], SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    for shard in (0, 2):
        lab.say("sample", "COMPLETED", shard=shard)
    shard = lab.say("sample", state, shard=1)
    lab.say("generation", "CANCELLED")
    plan = lab.plan([RUN], SHARDS, retry=state != "CANCELLED")
    assert [job.shard for job in plan.graph if job.shard] == [(0, 3), (1, 3), (2, 3)]
    if state != "CANCELLED":
        plan = lab.plan([RUN], SHARDS)
        assert not plan.new and f"job {shard.slurm_id} OUT_OF_MEMORY" in plan.failed[RUN.ids["sample_id"]]
    assert len(settle(submission)) == (state != "CANCELLED") == len(lab.failed_records())


def test_a_failed_record_needs_retry(lab: Lab):
    lab.fail(RUN, "ValueError: broken\nTraceback")
    plan = lab.plan(ROW)
    assert plan.failed == {RUN.id: "ValueError: broken"}
    assert "generation" not in kinds(plan) and "speed" in kinds(plan)
    assert "generation" in kinds(lab.plan(ROW, retry=True))
    lab.submit(ROW, retry=True)
    assert not lab.plan(ROW).failed, "it is live again"


@pytest.fixture
def gone(monkeypatch) -> list[str]:
    """Ids that scancel was given."""
    ids: list[str] = []
    monkeypatch.setattr(send, "ask", lambda words: ids.extend(words[1:]))
    return ids


def test_cancelling_a_row_keeps_what_another_needs(lab: Lab, gone):
    submission = lab.submit(runs_of("mar/diff/*", "generation"))
    (other,) = runs_of(UNGUIDED, "generation")
    count, ids = cancel(lab.ledger, lab.rows(RUN))
    assert ids == gone and count == 1
    cancelled = {s.title for job in submission.jobs.values() if job.slurm_id in ids for s in job.stages}
    assert cancelled == {f"{kind} {GUIDED} seed 0" for kind in ("sample", "generation")}
    for slurm_id in ids:
        lab.squeue.jobs[slurm_id][2] = "CANCELLED"
    assert kinds(lab.plan([RUN])) == {"sample", "generation"}, "it is sent again on request"
    assert not lab.plan([RUN], last=True).new, "but not by the last job of a submission"
    assert cancel(lab.ledger, lab.rows(RUN, other))[0] == 1, "the first row is cancelled already"
    assert set(gone) == set(lab.squeue.jobs), "nothing needs the training and the table now"
    assert not lab.plan(runs_of("mar/diff/*", "generation")).failed


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETED"])
def test_a_finished_record_is_not_counted_as_cancelled(state, lab: Lab, gone):
    lab.submit(runs_of("mar/diff/*", "generation"), PACKED)
    lab.finish("generation", run=RUN)
    lab.say_all(state)
    assert cancel(lab.ledger, lab.rows(*runs_of("mar/diff/*")))[0] == (1 if state == "RUNNING" else 0)


def test_a_job_that_two_rows_share_goes_on_for_the_other(lab: Lab, gone):
    submission = lab.submit(runs_of("mar/diff/*", "generation"), PACKED)
    assert cancel(lab.ledger, lab.rows(RUN)) == (1, [])
    assert submission.unwanted() == {RUN.id, RUN.ids["sample_id"], f"table1:{RUN.id}"}, "what the job will skip"


def test_an_experiment_is_cancelled_for_itself_alone(lab: Lab, gone):
    first, second = lab.submit([RUN]), lab.submit([RUN], experiment="other")
    measure = next(job for job in first.jobs.values() if any(stage.id == RUN.id for stage in job.stages))
    assert f"@{measure.slurm_id}" in second.last.follows
    assert settle(second) == [] and not lab.failed_records(), "a live job of another submission is not written off"
    found = cancel(lab.ledger, [row for row in lab.rows(RUN) if row.experiment == "other"])
    assert found == (0, [second.last.slurm_id]), "the record is made for table1"
    count, ids = cancel(lab.ledger, [row for row in lab.rows(RUN) if row.experiment == "table1"])
    assert count == 1 and set(ids) >= {job.slurm_id for job in first.jobs.values()}


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED"])
def test_a_killed_job_leaves_failed_records(state, lab: Lab):
    submission = lab.submit(ROW)
    job = lab.say("train", state, nodes="n2")
    lab.finish("tokenizer", "latents", "extractor")
    for kind in BEHIND:
        lab.say(kind, "CANCELLED")
    assert len(settle(submission)) == 2
    found = lab.failed_records()
    assert set(found) == {run.id for run in ROW if run.task in ("generation", "speed")}
    assert all(str(error).startswith(f"job {job.slurm_id} {state} n2; its logs: ") for error in found.values())
    assert settle(submission) == [], "once is enough"


@pytest.mark.parametrize("by_the_user", [True, False])
def test_cancelled_jobs_leave_no_records(by_the_user, lab: Lab):
    submission = lab.submit(ROW)
    if by_the_user:
        submission.cancel(stage.id for job in submission.jobs.values() for stage in job.stages)
    lab.say_all("FAILED" if by_the_user else "CANCELLED")
    assert settle(submission) == [] and not lab.failed_records()


def test_a_result_is_never_replaced(lab: Lab):
    submission = lab.submit([RUN])
    lab.say_all("FAILED")
    write_record(lab.places.records, generation(EXPERIMENT, GUIDED, 0, 0, 5.0))
    assert settle(submission) == [] and not lab.failed_records()


def test_a_failure_of_an_earlier_submission_is_replaced(lab: Lab):
    failed = generation(EXPERIMENT, GUIDED, 0, 0, None)
    write_record(lab.places.records, replace(failed, provenance={"finished": "2020-01-01T00:00:00+00:00"}))
    submission = lab.submit([RUN], retry=True)
    lab.finish("tokenizer", "latents", "extractor")
    job = lab.say("train", "OUT_OF_MEMORY")
    for kind in BEHIND[:2]:
        lab.say(kind, "CANCELLED")
    assert len(settle(submission)) == 1
    assert f"job {job.slurm_id} OUT_OF_MEMORY" in str(lab.failed_records()[RUN.id])
    assert settle(submission) == []


def test_a_record_behind_another_submission_s_failure_says_so(lab: Lab):
    (other,) = runs_of(UNGUIDED, "generation")
    lab.submit([RUN])
    submission = lab.submit([other])
    lab.say("train", "FAILED", of=0)
    for kind in ("sample", "generation"):
        lab.say(kind, "CANCELLED")
    lab.finish("tokenizer", "latents", "extractor")
    assert len(settle(submission)) == 1
    error = str(lab.failed_records()[other.id])
    assert f"job {lab.job('train', of=0).slurm_id} FAILED" in error


def test_the_last_job_does_not_judge_its_own_stages(lab: Lab):
    submission = lab.submit(ROW, PACKED)
    lab.finish("tokenizer", "latents", "extractor", "train", "sample", "generation")
    lab.say_all("FAILED")
    assert submission.last.stages and settle(submission) == []
