"""What is sent and what is left, in made-up states of jobs; the command itself with programs of Slurm's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from mar_bench.cluster import ledger
from mar_bench.cluster import submit as submitting
from mar_bench.cluster.ledger import FOLDER, read_ledger, read_submission
from mar_bench.cluster.plan import followed, make_plan
from mar_bench.cluster.profile import SlurmProfile
from mar_bench.cluster.submit import cancel, settle, states_of
from mar_bench.pipeline.run_local import Outcome
from mar_bench.records.record import read_records
from mar_bench.utils.errors import UserError
from tests.made_up_cluster import EXPERIMENT, GUIDED, PROFILE, FakeSlurm, Lab, runs_of

pytest_plugins = ["tests.cluster_fixtures"]
UNGUIDED = "mar/diff/unguided"
SHARDS = SlurmProfile(pack=False, sample_shards=3)
ENDED_BADLY = ("FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "LOST")


def kinds(plan) -> set[str]:
    return {stage.kind for job in plan.graph for stage in job.stages}


# --- plans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [PROFILE, SHARDS, SlurmProfile(pack=True)])
def test_nothing_is_new_the_second_time(profile, lab: Lab):
    first = lab.plan(runs_of(), profile)
    assert first.sends and not first.elsewhere and not first.failed
    lab.submit(runs_of(), profile)
    again = lab.plan(runs_of(), profile)
    assert not again.sends and set(again.elsewhere) == {stage.id for stage in first.stages}


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_a_training_under_way_is_shared(state, lab: Lab):
    lab.submit(runs_of(GUIDED))
    entry = lab.say("train", state)
    plan = lab.plan(runs_of(UNGUIDED))
    assert kinds(plan) == {"sample", "generation", "speed"}
    assert {f"@{entry.slurm_id}"} <= {need for job in plan.graph for need in job.needs}
    assert f"@{entry.slurm_id}" in plan.graph[-1].follows


def test_where_slurm_is_silent_nothing_is_sent_twice(lab: Lab):
    lab.submit(runs_of())
    lab.squeue.away = True
    assert not lab.plan(runs_of()).sends and not lab.plan(runs_of(), retry=True).sends


def test_what_is_done_is_neither_sent_nor_waited_for(lab: Lab):
    lab.submit(runs_of())
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("train", "COMPLETED")
    plan = lab.plan(runs_of(UNGUIDED, "generation"))
    assert kinds(plan) == {"sample", "generation"} and not plan.elsewhere
    lab.finish("sample", "generation")
    assert lab.plan(runs_of(task="generation")).done == 1 and not lab.plan(runs_of(task="generation")).sends


@pytest.mark.parametrize("state", ENDED_BADLY)
def test_what_has_failed_is_left_with_all_behind_it_until_it_is_asked_for(state, lab: Lab):
    lab.submit(runs_of())
    entry = lab.say("train", state, nodes="n3")
    for kind in ("sample", "generation", "speed"):
        lab.say(kind, "CANCELLED")  # as Slurm does with what can never start
    plan = lab.plan(runs_of())
    train = runs_of()[0].ids["train_id"]
    assert list(plan.failed) == [train] and not plan.sends
    assert {entry.slurm_id, state, "on", "n3;"} <= set(plan.failed[train].split())
    assert {stage.id for stage in entry.stages} == {train} and len(plan.behind) == 3
    assert kinds(lab.plan(runs_of(), retry=True)) == {"train", "sample", "generation", "speed"}


def test_a_failure_says_what_the_job_itself_has_said(lab: Lab):
    submission = lab.submit(runs_of())
    entry, train = lab.say("train", "FAILED"), runs_of()[0].ids["train_id"]
    notes = submission.folder / "jobs" / f"{entry.key}.json"
    notes.parent.mkdir()
    notes.write_text(json.dumps({"job": entry.slurm_id, "failed": {train: "loss is not finite"}}))
    assert lab.plan(runs_of()).failed == {train: "loss is not finite"}
    notes.write_text(json.dumps({"job": "another", "failed": {train: "loss is not finite"}}))
    assert "loss" not in lab.plan(runs_of()).failed[train]


def test_a_row_beside_what_has_failed_is_sent(lab: Lab):
    lab.submit(runs_of(GUIDED))
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("train", "COMPLETED")
    lab.say("sample", "FAILED")
    lab.say("generation", "CANCELLED")
    plan = lab.plan(runs_of("mar/diff/*", "generation"))
    assert {job.stages[0].run.row for job in plan.graph if job.stages} == {UNGUIDED}
    assert kinds(plan) == {"sample", "generation"} and len(plan.behind) == 1


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED"])
def test_what_was_cancelled_is_free(state, lab: Lab):
    lab.submit(runs_of())
    for kind in ("train", "sample", "generation", "speed"):
        lab.say(kind, state)
    plan = lab.plan(runs_of())
    assert not plan.failed and kinds(plan) == {"train", "sample", "generation", "speed"}
    assert set(plan.elsewhere) == {runs_of()[0].ids[f"{k}_id"] for k in ("tokenizer", "latents", "extractor")} | {
        run.id for run in runs_of(task="reconstruction")
    }


def test_a_failed_shard_makes_its_row_failed(lab: Lab):
    lab.submit(runs_of(task="generation"), SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    shard = lab.say("sample", "OUT_OF_MEMORY", shard=1)
    lab.say("sample", "COMPLETED", shard=0)
    lab.say("sample", "COMPLETED", shard=2)
    lab.say("generation", "CANCELLED")
    plan = lab.plan(runs_of(task="generation"), SHARDS)
    assert not plan.sends and f"job {shard.slurm_id} OUT_OF_MEMORY" in plan.failed[runs_of()[0].ids["sample_id"]]
    again = lab.plan(runs_of(task="generation"), SHARDS, retry=True)
    assert [job.shard for job in again.graph if job.shard] == [(0, 3), (1, 3), (2, 3)]


def test_a_cancelled_shard_leaves_its_row_free(lab: Lab):
    lab.submit(runs_of(task="generation"), SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    for shard in range(3):
        lab.say("sample", "CANCELLED", shard=shard)
    lab.say("generation", "CANCELLED")
    assert kinds(lab.plan(runs_of(task="generation"), SHARDS)) == {"sample", "generation"}


def test_a_failed_record_of_run_is_left_too(lab: Lab):
    run = runs_of(task="generation")[0]
    lab.fail(run, "ValueError: broken\nTraceback")
    records = read_records(lab.places.records)
    plan = lab.plan(runs_of(), records=records)
    assert plan.failed == {run.id: "ValueError: broken"} and "generation" not in kinds(plan)
    assert "speed" in kinds(plan), "what is measured beside it has not failed"
    assert "generation" in kinds(lab.plan(runs_of(), records=records, retry=True))
    lab.submit(runs_of(), retry=True)
    assert not lab.plan(runs_of(), records=records).failed, "it is under way again"


def test_the_newest_submission_of_a_stage_counts(lab: Lab):
    lab.submit(runs_of())
    for entry in lab.ledger[0].jobs.values():
        lab.squeue.say(entry, "FAILED")
    lab.submit(runs_of(), retry=True)
    assert not lab.plan(runs_of()).failed and not lab.plan(runs_of()).sends
    lab.say("train", "FAILED")
    assert list(lab.plan(runs_of()).failed) == [runs_of()[0].ids["train_id"]]


def test_a_job_of_a_cluster_that_began_anew_is_not_waited_for(lab: Lab):
    lab.submit(runs_of())
    for slurm_id, fields in lab.squeue.jobs.items():
        lab.squeue.jobs[slurm_id] = (fields[0], "somebody.else", *fields[2:])
    assert {state.state for state in states_of(lab.ledger).values()} == {"LOST"}
    assert lab.plan(runs_of(), retry=True).sends and not lab.plan(runs_of(), retry=True).elsewhere


# --- cancelling -----------------------------------------------------------------------------------------


def test_cancelling_a_row_keeps_what_another_needs(lab: Lab, monkeypatch):
    gone: list[str] = []
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: gone.extend(ids))
    lab.submit(runs_of("mar/diff/*", "generation"))
    guided, unguided = ({run.id for run in runs_of(row, "generation")} for row in (GUIDED, UNGUIDED))
    ids, kept = cancel(lab.ledger, lab.rows(guided))
    assert ids == gone and {"train mar/diff seed 0", "tokenizer kl"} <= set(kept)
    cancelled = {s.title for e in lab.ledger[0].jobs.values() if e.slurm_id in ids for s in e.stages}
    assert cancelled == {f"{kind} {GUIDED} seed 0" for kind in ("sample", "generation")}
    for slurm_id in ids:
        lab.squeue.jobs[slurm_id] = (*lab.squeue.jobs[slurm_id][:2], "CANCELLED", "", "None", "0:00")
    lab.ledger = read_ledger(lab.places.runs)
    assert kinds(lab.plan(runs_of(GUIDED, "generation"))) == {"sample", "generation"}, "it is sent again when asked for"
    ids, kept = cancel(lab.ledger, lab.rows(unguided))
    assert not kept and set(gone) == set(lab.squeue.jobs), "nothing is left for the training and for the table"
    assert not lab.plan(runs_of("mar/diff/*", "generation")).failed


def test_a_job_that_two_rows_share_goes_on_for_the_other(lab: Lab, monkeypatch):
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: pytest.fail("it is needed"))
    submission = lab.submit(runs_of("mar/diff/*", "generation"), SlurmProfile(pack=True))
    (run,) = runs_of(GUIDED, "generation")
    ids, kept = cancel(lab.ledger, lab.rows({run.id}))
    assert ids == [] and "train mar/diff seed 0" in kept
    (name,) = (row.name for row in submission.rows if row.id == run.id)
    assert submission.unwanted() == {run.id, run.ids["sample_id"], name}, "what the job is to leave out"


def test_an_experiment_is_cancelled_for_itself_alone(lab: Lab, monkeypatch):
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: None)
    runs = runs_of(GUIDED, "generation")
    lab.submit(runs)
    lab.submit(runs, experiment="other")
    ids, kept = cancel(lab.ledger, [row for row in lab.rows({runs[0].id}) if row.experiment == "other"])
    last = lab.ledger[1].jobs[lab.ledger[1].last]
    assert ids == [last.slurm_id] and "train mar/diff seed 0" in kept, "its table, and nothing that the first one needs"
    ids, _ = cancel(lab.ledger, [row for row in lab.rows({runs[0].id}) if row.experiment == "table1"])
    assert set(ids) >= {entry.slurm_id for entry in lab.ledger[0].jobs.values()}


def test_the_end_of_a_submission_sends_nothing_that_was_cancelled(lab: Lab, monkeypatch):
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: None)
    runs = runs_of(GUIDED, "generation")
    lab.submit(runs)
    cancel(lab.ledger, lab.rows({runs[0].id}))
    for entry in lab.ledger[0].jobs.values():
        lab.squeue.say(entry, "CANCELLED")
    assert lab.plan(runs).sends
    assert not make_plan(runs, lab.places, {}, PROFILE, lab.ledger, False, follows=True).sends


def test_rows_of_a_table_to_come_are_followed_until_they_are_cancelled(lab: Lab, monkeypatch):
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: None)
    lab.submit(runs_of("mar/diff/*", "generation"))
    names = {row.name for row in lab.ledger[0].rows}
    assert followed(lab.ledger) == names
    (guided,) = runs_of(GUIDED, "generation")
    cancel(lab.ledger, lab.rows({guided.id}))
    assert followed(lab.ledger) == {name for name in names if not name.endswith(guided.id)}
    lab.submit([guided])
    assert followed(lab.ledger) == names, "sent again beside the submission in which it was cancelled"


def test_a_table_waits_for_rows_that_others_make(lab: Lab):
    (guided,), both = runs_of(GUIDED, "generation"), runs_of("mar/diff/*", "generation")
    first = lab.submit([guided])
    second = lab.submit(both)
    measure = next(e for e in first.jobs.values() if any(s.id == guided.id for s in e.stages))
    assert f"@{measure.slurm_id}" in second.jobs[second.last].follows
    assert settle(second) == [] and not failed_records(lab), "what is under way is not written off"


def test_what_is_done_is_not_cancelled(lab: Lab, monkeypatch):
    monkeypatch.setattr(submitting, "cancel_jobs", lambda ids: None)
    submission = lab.submit(runs_of(task="generation"))
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "COMPLETED")
    assert cancel(lab.ledger, lab.rows({run.id for run in runs_of()})) == ([], [])


# --- the end of a submission ----------------------------------------------------------------------------


def failed_records(lab: Lab) -> dict[str, str]:
    return {i: record.error for i, record in read_records(lab.places.records).items() if record.status == "failed"}


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "FAILED"])
def test_a_killed_job_leaves_failed_records_with_slurm_s_word(state, lab: Lab):
    submission = lab.submit(runs_of())
    entry = lab.say("train", state, nodes="n2")
    lab.finish("tokenizer", "latents", "extractor")
    for kind in ("sample", "generation", "speed"):
        lab.say(kind, "CANCELLED")
    titles = settle(submission)
    found = failed_records(lab)
    assert set(found) == {run.id for run in runs_of() if run.task in ("generation", "speed")}
    assert len(titles) == len(found) == 2
    for error in found.values():
        assert error.startswith(f"job {entry.slurm_id} {state} on n2; its log: ")
    assert settle(submission) == [], "once is enough"


def test_cancelled_jobs_leave_no_records(lab: Lab):
    submission = lab.submit(runs_of())
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "CANCELLED")
    assert settle(submission) == [] and not failed_records(lab)


def test_stages_that_the_user_cancelled_leave_no_records_whatever_their_jobs_say(lab: Lab):
    submission = lab.submit(runs_of())
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "FAILED")
    submission.cancel(stage.id for entry in submission.jobs.values() for stage in entry.stages)
    assert settle(submission) == [] and not failed_records(lab)


def test_a_result_is_never_replaced(lab: Lab):
    from mar_bench.records.record import write_record
    from tests.made_up import generation

    submission = lab.submit(runs_of(task="generation"))
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "FAILED")
    write_record(lab.places.records, generation(EXPERIMENT, GUIDED, 0, 0, 5.0))
    assert settle(submission) == [] and not failed_records(lab)


@pytest.mark.parametrize(
    ("when", "error"), [("2000-01-01T00:00:00+00:00", "new"), ("9999-01-01T00:00:00+00:00", "old")]
)
def test_an_older_failure_is_replaced_and_one_of_now_is_not(when, error, lab: Lab):
    run = runs_of(task="generation")[0]
    lab.fail(run, "old")
    path = lab.places.records / f"{run.id}.json"
    tree = json.loads(path.read_text())
    tree["provenance"]["finished"] = when
    path.write_text(json.dumps(tree))
    submission = lab.submit([run], retry=True)
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "FAILED")
    settle(submission)
    assert (failed_records(lab)[run.id] == "old") == (error == "old")


def test_a_failed_shard_leaves_a_failed_record(lab: Lab):
    submission = lab.submit(runs_of(task="generation"), SHARDS)
    lab.finish("tokenizer", "latents", "extractor", "train")
    lab.say("sample", "TIMEOUT", shard=2)
    lab.say("generation", "CANCELLED")
    assert len(settle(submission)) == 1
    assert "TIMEOUT" in failed_records(lab)[runs_of(task="generation")[0].id]


def test_a_record_behind_another_submission_s_failure_says_so(lab: Lab):
    lab.submit(runs_of(GUIDED, "generation"))
    submission = lab.submit(runs_of(UNGUIDED, "generation"))
    lab.squeue.say(lab.job("train", of=0), "FAILED")
    for kind in ("sample", "generation"):
        lab.say(kind, "CANCELLED")
    lab.finish("tokenizer", "latents", "extractor")
    assert len(settle(submission)) == 1
    error = failed_records(lab)[runs_of(UNGUIDED, "generation")[0].id]
    assert "train mar/diff" in error and "another submission" in error


def test_the_last_job_judges_none_of_its_own_stages(lab: Lab):
    submission = lab.submit(runs_of(), SlurmProfile(pack=True))
    lab.finish("tokenizer", "latents", "extractor", "train", "sample", "generation")
    for entry in submission.jobs.values():
        lab.squeue.say(entry, "FAILED")
    assert settle(submission) == []


# --- the ledger -----------------------------------------------------------------------------------------


def test_a_submission_is_read_as_it_was_written(lab: Lab):
    stages = lab.plan(runs_of(), SHARDS).stages
    written = lab.submit(runs_of(), SHARDS)
    written.cancel(["a stage"])
    assert read_ledger(lab.places.runs) == [written]
    assert list(written.planned().values()) == stages


def test_names_of_submissions_are_their_own(lab: Lab):
    lab.submit(runs_of(GUIDED))
    lab.submit(runs_of(UNGUIDED))
    names = [{entry.name for entry in submission.jobs.values()} for submission in lab.ledger]
    assert [len(n) for n in names] == [1, 1] and not names[0] & names[1]


def test_submissions_are_read_in_the_order_in_which_they_were_sent(lab: Lab, monkeypatch):
    for word in ("ffffff", "000000"):
        monkeypatch.setattr(ledger.secrets, "token_hex", lambda n, word=word: word)
        lab.submit(runs_of(), retry=True, command=word)
        for entry in lab.ledger[-1].jobs.values():
            lab.squeue.say(entry, "FAILED")
    assert [submission.command for submission in read_ledger(lab.places.runs)] == ["ffffff", "000000"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"jobs": []}', '{"jobs": [{"key": "0"}], "rows": []}'])
def test_a_folder_that_is_no_submission_is_named(text, lab: Lab):
    folder = lab.submit(runs_of()).folder
    (folder / "submission.json").write_text(text)
    with pytest.raises(UserError, match="not a submission") as caught:
        read_submission(folder)
    assert str(folder) in str(caught.value)


def test_half_a_line_of_ids_is_as_if_it_was_not_there(lab: Lab):
    submission = lab.submit(runs_of())
    with (submission.folder / "sent.jsonl").open("a") as file:
        file.write('["0", "9')
    assert read_submission(submission.folder).jobs == submission.jobs


# --- the command ----------------------------------------------------------------------------------------

ROW = ("table1", "--scale", "smoke", "--only", GUIDED)


def profile(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "pack": False, "sample_shards": 3, **changes}))
    return str(path)


def submissions(folder: Path) -> list[Path]:
    return sorted((folder / "runs" / FOLDER).glob("*"))


def sent_ids(folder: Path) -> dict[str, str]:
    return dict(json.loads(line) for line in (folder / "sent.jsonl").read_text().splitlines())


@pytest.mark.parametrize("cluster", ["gpu", "local", "processes", "debug"])
def test_a_dry_run_needs_no_slurm_and_writes_nothing(cluster, call, no_programs, tmp_path):
    code, said, error = call("submit", *ROW, "--cluster", cluster, "--dry-run")
    assert code == 0 and not error and not list(tmp_path.iterdir())
    assert "0 done" in said and ("#SBATCH --signal=USR2@" in said) == (cluster in ("gpu", "local"))


@pytest.mark.parametrize(
    "only",
    [
        GUIDED,
        "mar/*/guided",
    ],
)
def test_without_slurm_submit_says_so_in_a_line_and_leaves_nothing(only, call, no_programs, tmp_path):
    code, _, error = call("submit", *ROW[:-1], only, "--cluster", profile(tmp_path, pack=True, sample_shards=1))
    assert code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1 and "PATH" in error
    assert not submissions(tmp_path)


def test_a_submission_from_end_to_end(call, fake_slurm: FakeSlurm, tmp_path):
    cluster = profile(tmp_path, job={"partition": "main"})
    code, said, error = call("submit", *ROW, "--cluster", cluster)
    assert code == 0, error
    assert re.search(r"sent 11 jobs with 9 calls of sbatch, 1001 to 1009", said)
    (folder,) = submissions(tmp_path)
    submission = read_submission(folder)
    assert sent_ids(folder) == {key: entry.slurm_id for key, entry in submission.jobs.items()}
    assert set(sent_ids(folder).values()) == {job[0] for job in fake_slurm.queue}
    assert {job[1] for job in fake_slurm.queue} == {entry.name for entry in submission.jobs.values()}
    assert submission.command == f"mar-bench submit {' '.join(ROW)} --cluster {cluster}"
    for entry in submission.jobs.values():
        assert (folder / "logs" / f"{entry.slurm_id}_submitted.pkl").is_file()

    title = {entry.slurm_id: f"{entry.kind} {entry.shard or ''}" for entry in submission.jobs.values()}
    array = next(i.partition("_")[0] for i, t in title.items() if "(0, 3)" in t)
    for n, script in enumerate(fake_slurm.scripts(), 1001):
        assert "#SBATCH --partition=main" in script and str(folder / "logs") in script
        after = re.search(r"--dependency='?(.*?)'?$", script, re.M)
        ids = re.findall(r"\d{4}(?:_\d)?", after[1]) if after else []
        assert all(int(i.partition("_")[0]) < n for i in ids), "what it waits for is sent"
    assert title[str(n)].startswith("table") and after[1].startswith("afterany:") and array in ids
    assert not any(i.startswith(f"{array}_") for i in ids), "an array that is meant whole is one id"

    calls = fake_slurm.calls
    code, said, _ = call("submit", *ROW, "--cluster", cluster)
    assert code == 0 and "nothing to send" in said and fake_slurm.calls == calls and submissions(tmp_path) == [folder]
    code, said, _ = call("submit", *ROW[:-1], "mar/diff/*", "--cluster", cluster)
    assert code == 0 and "under way in jobs that were sent before" in said
    (newest,) = [read_submission(path) for path in submissions(tmp_path) if path != folder]
    train = next(e.slurm_id for e in submission.jobs.values() if e.kind == "train")
    assert {f"@{train}"} <= {need for entry in newest.jobs.values() for need in entry.needs}


def test_a_refusal_leaves_nothing_and_takes_back_what_was_sent(call, fake_slurm: FakeSlurm, tmp_path):
    fake_slurm.refuse(3)
    code, _, error = call("submit", *ROW, "--cluster", profile(tmp_path))
    last = error.splitlines()[-1]
    assert code == 2 and "Traceback" not in error
    assert last.startswith("error: sbatch refuses: ") and "Invalid partition name specified" in last
    assert fake_slurm.calls == 3 and not fake_slurm.queue and not submissions(tmp_path)
    (cancelled,) = fake_slurm.cancelled
    assert "--name table1." in cancelled
    fake_slurm.refuse(0)
    assert call("submit", *ROW, "--cluster", profile(tmp_path))[0] == 0 and len(submissions(tmp_path)) == 1


def test_a_submission_that_was_cut_short_is_taken_back_by_the_next(call, fake_slurm: FakeSlurm, tmp_path):
    call("submit", *ROW, "--cluster", profile(tmp_path))
    (cut,) = submissions(tmp_path)
    lines = (cut / "sent.jsonl").read_text().splitlines(keepends=True)
    (cut / "sent.jsonl").write_text("".join(lines[:4]))
    name = read_submission(cut).jobs["0"].name
    code, said, error = call("submit", *ROW, "--cluster", profile(tmp_path))
    assert code == 0 and "taking back" in error and cut.name in error and "sent 11 jobs" in said
    assert [line.split()[-2:] for line in fake_slurm.cancelled] == [["--name", name]]
    assert len(submissions(tmp_path)) == 1 and not cut.exists()
    assert {job[1] for job in fake_slurm.queue} == {read_submission(submissions(tmp_path)[0]).jobs["0"].name}


def test_a_dry_run_takes_nothing_back(call, fake_slurm: FakeSlurm, tmp_path):
    call("submit", *ROW, "--cluster", profile(tmp_path))
    (cut,) = submissions(tmp_path)
    (cut / "sent.jsonl").unlink()
    code, said, _ = call("submit", *ROW, "--cluster", profile(tmp_path), "--dry-run")
    assert code == 0 and cut.exists() and not fake_slurm.cancelled and fake_slurm.calls == 9


def test_an_interrupt_takes_back_what_was_sent(call, fake_slurm: FakeSlurm, tmp_path, monkeypatch):
    send, count = submitting.send, iter(range(10))

    def interrupted(*args):
        if next(count) == 2:
            raise KeyboardInterrupt
        return send(*args)

    monkeypatch.setattr(submitting, "send", interrupted)
    assert call("submit", *ROW, "--cluster", profile(tmp_path))[0] == 130
    assert not fake_slurm.queue and not submissions(tmp_path) and len(fake_slurm.cancelled) == 1


def test_a_failure_is_sent_again_only_when_asked_for(call, fake_slurm: FakeSlurm, tmp_path):
    cluster = profile(tmp_path)
    call("submit", *ROW, "--cluster", cluster)
    queue = fake_slurm.folder / "queue"
    queue.write_text(queue.read_text().replace("PENDING", "FAILED"))
    code, said, _ = call("submit", *ROW, "--cluster", cluster)
    assert code == 0 and "nothing to send" in said and "--retry failed sends them again (the first: job 10" in said
    code, said, _ = call("submit", *ROW, "--cluster", cluster, "--retry", "failed")
    assert code == 0 and "sent 11 jobs" in said
    code, _, error = call("submit", *ROW, "--cluster", cluster, "--retry", "faild")
    assert code == 2 and "did you mean 'failed'?" in error


def test_cancel_ends_a_row_and_submit_sends_it_again(call, fake_slurm: FakeSlurm, tmp_path):
    cluster = profile(tmp_path)
    call("submit", *ROW, "--cluster", cluster)
    code, said, _ = call("cancel", f"table1/{GUIDED}")
    assert code == 0 and "; 11 jobs ended" in said
    queue = fake_slurm.folder / "queue"
    queue.write_text(queue.read_text().replace("PENDING", "CANCELLED"))
    assert "sent 11 jobs" in call("submit", *ROW, "--cluster", cluster)[1]
    code, _, error = call("cancel", "table1/mar/diff/guide")
    assert code == 2 and f"did you mean 'table1/{GUIDED}'?" in error


def test_a_profile_says_where_runs_are_and_whose_speed_it_is(call, fake_slurm: FakeSlurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster = profile(tmp_path, runs=str(tmp_path / "elsewhere"), device="Example GPU")
    call("submit", *ROW, "--cluster", cluster)
    assert read_ledger(tmp_path / "runs") and not (tmp_path / "elsewhere").exists(), "an option counts for more"
    monkeypatch.delenv("MAR_BENCH_RUNS")
    assert call("submit", *ROW, "--cluster", cluster)[0] == 0
    (submission,) = read_ledger(tmp_path / "elsewhere")
    (speed,) = [row.id for row in submission.rows if row.task == "speed"]
    assert speed not in {run.id for run in runs_of(task="speed")}
    assert "table1" in call("status", "--cluster", cluster)[1]


@pytest.mark.parametrize(("kind", "changes", "parallel"), [("processes", {"parallel": 7}, 7), ("debug", {}, 1)])
def test_how_many_processes_work_here(kind, changes, parallel, call, no_programs, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"kind": kind, **changes}))
    seen = []

    def run_here(submission, graph, profile, number, last, say):
        seen.append((profile.kind, number))
        return Outcome()

    monkeypatch.setattr("mar_bench.cluster.local.run_here", run_here)
    assert call("submit", *ROW, "--cluster", str(tmp_path / "mine.yaml"))[0] == 0
    assert seen == [(kind, parallel)]


def test_submit_asks_for_a_cluster_and_for_an_experiment(call, no_programs):
    code, _, error = call("submit", "table1")
    assert code == 2 and "--cluster" in error
    code, _, error = call("submit", "--cluster", "debug")
    assert code == 2 and "needs an experiment" in error
