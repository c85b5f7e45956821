"""The ledger, and the commands submit and cancel with stand-ins for Slurm's programs."""

from __future__ import annotations

import errno
import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from submitit.core.utils import DelayedSubmission

from mar_bench.cluster import send
from mar_bench.cluster import submit as submitting
from mar_bench.cluster.ledger import FOLDER, Request, Submission, read_ledger, read_submission
from mar_bench.utils import locks
from mar_bench.utils.errors import DiskError, UserError
from tests.made_up_cluster import GUIDED, PROFILE, SHARDS, UNGUIDED, FakeSlurm, Lab, runs_of


def test_a_submission_is_read_as_it_was_written(lab: Lab):
    stages = lab.plan(runs_of(), SHARDS).stages
    written = lab.submit(runs_of(), SHARDS)
    written.cancel(["a stage"])
    assert read_ledger(lab.places.runs) == [written] and written.last.slurm_id
    assert written.plan() == (SHARDS, stages)


ROW = ("table1", "--scale", "smoke", "--only", GUIDED)


def changed(folder: Path, **changes: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "pack": False, "sample_shards": 3, **changes}))
    return str(path)


@pytest.fixture
def profile(tmp_path) -> str:
    return changed(tmp_path)


def test_experiment_files_are_copied_with_their_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine.yml", "base/mine.yml", "scale/little.yaml", "other.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    words = ("~/mine.yml", "table1", "data.root=$NO_SUCH/x.yml", "train.steps=3")
    request = Request("me", words, False, "little", None, None, None, "/runs", "/records", "/reports")
    copied = submitting.with_copies(request, folder := tmp_path / "copies")
    assert copied.words == (str(folder / "mine.yml"), *words[1:])
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.y*ml")) == [
        "base/mine.yml", "mine.yml", "scale/little.yaml",
    ]  # fmt: skip


def submissions(folder: Path) -> list[Path]:
    return sorted((folder / "runs" / FOLDER).glob("*"))


def test_a_dry_run_needs_no_slurm_and_writes_nothing(call, no_programs, tmp_path):
    code, said, error = call("submit", *ROW, "--cluster", "gpu", "--dry-run")
    assert code == 0 and not error and not list(tmp_path.iterdir())
    assert "0 done" in said and "#SBATCH --signal=USR2@" in said and "GPU hours" in said


def test_without_slurm_submit_is_refused_and_leaves_nothing(call, no_programs, tmp_path):
    code, _, error = call("submit", *ROW, "--cluster", changed(tmp_path))
    assert code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1 and "PATH" in error
    assert not submissions(tmp_path)


def test_a_submission_from_end_to_end(call, fake_slurm: FakeSlurm, tmp_path):
    cluster = changed(tmp_path, job={"partition": "main"})
    code, said, error = call("submit", *ROW, "--cluster", cluster)
    assert code == 0, error
    assert "sent 11 jobs, 1001 to 1009" in said and fake_slurm.calls == 9
    (folder,) = submissions(tmp_path)
    submission = read_submission(folder)
    jobs = {job.slurm_id: job for job in submission.jobs.values()}
    assert set(jobs) == {job[0] for job in fake_slurm.queue}
    assert {job[1] for job in fake_slurm.queue} == {submission.name}
    assert submission.request.command == f"mar-bench submit {' '.join(ROW)} --cluster {cluster}"
    assert all((folder / "logs" / f"{slurm_id}_submitted.pkl").is_file() for slurm_id in jobs)

    array = next(i.partition("_")[0] for i, job in jobs.items() if job.shard == (0, 3))
    for n, script in enumerate(fake_slurm.scripts(), 1001):
        assert "#SBATCH --partition=main" in script and str(folder / "logs") in script
        after = re.search(r"--dependency='?(.*?)'?$", script, re.M)
        ids = re.findall(r"\d{4}(?:_\d)?", after[1]) if after else []
        assert all(int(i.partition("_")[0]) < n for i in ids), "a job waits for one that is not sent yet"
    assert submission.last.slurm_id == str(n) and after[1].startswith("afterany:") and array in ids
    assert not any(i.startswith(f"{array}_") for i in ids), "a whole array is one id"

    code, said, _ = call("submit", *ROW, "--cluster", cluster)
    assert code == 0 and "nothing to send" in said and fake_slurm.calls == 9 and submissions(tmp_path) == [folder]
    code, said, _ = call("submit", *ROW[:-1], "mar/diff/*", "--cluster", cluster)
    assert code == 0 and "in jobs that were sent before" in said
    newest = read_ledger(tmp_path / "runs")[-1]
    train = next(job.slurm_id for job in jobs.values() if job.kind == "train")
    assert f"@{train}" in {need for job in newest.jobs.values() for need in job.needs}
    assert {row.row for row in newest.rows if row.task == "generation"} == {GUIDED, UNGUIDED}


def test_a_refusal_takes_back_what_was_sent(call, fake_slurm: FakeSlurm, tmp_path, profile):
    fake_slurm.refuse(3)
    code, _, error = call("submit", *ROW, "--cluster", profile)
    assert code == 2 and "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: sbatch refuses: ") and "Invalid partition name" in error
    assert fake_slurm.calls == 3 and not fake_slurm.queue and not submissions(tmp_path)
    assert ["--name table1." in line for line in fake_slurm.cancelled] == [True]
    fake_slurm.refuse(0)
    assert call("submit", *ROW, "--cluster", profile)[0] == 0 and len(submissions(tmp_path)) == 1


@pytest.mark.parametrize("runs", ["fifty%", "a\\b"])
def test_a_run_root_that_slurm_cannot_log_to_is_refused(runs, call, fake_slurm: FakeSlurm, tmp_path, profile):
    code, _, error = call("submit", *ROW, "--cluster", profile, "--runs", str(tmp_path / runs), "--dry-run")
    assert code == 2 and re.fullmatch(r"error: --runs '.*': Slurm writes no logs to a path with %, .*\n", error)


def test_variables_of_sbatch_are_named_as_ignored(call, fake_slurm: FakeSlurm, profile, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    assert "SBATCH_PARTITION in the environment: ignored" in call("submit", *ROW, "--cluster", profile)[2]


def of_copytree(*words) -> None:
    raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])


def of_a_write(*words) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "name", "full"), [
    (submitting, "take_snapshot", of_copytree),
    (Submission, "write", of_a_write),
    (DelayedSubmission, "dump", of_a_write),
])  # fmt: skip
def test_a_full_disk_takes_back_the_submission(owner, name, full, call, fake_slurm, tmp_path, profile, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        code, _, error = call("submit", *ROW, "--cluster", profile)
    place = rf"{tmp_path}/runs/{FOLDER}/\S+"
    assert code == 2 and re.fullmatch(rf"error: {place}: cannot be written \(.*No space left.*\).*\n", error)
    assert not fake_slurm.queue and not submissions(tmp_path)


def test_speed_is_left_out_on_request(call, fake_slurm: FakeSlurm, tmp_path, profile):
    assert call("submit", *ROW, "--cluster", profile, "--no-speed")[0] == 0
    (submission,) = read_ledger(tmp_path / "runs")
    assert {row.task for row in submission.rows} == {"generation", "reconstruction"} and not submission.request.speed


def test_only_the_command_makes_the_run_root(lab: Lab):
    submission = lab.submit(runs_of(), waiting=2)
    shutil.rmtree(lab.places.runs)
    with pytest.raises(DiskError, match="submit.lock: cannot be written"):
        submitting.submit(submission.request, PROFILE, follows=True)
    with pytest.raises(DiskError):
        send.cancel_rows(lab.places, "table1")
    assert not lab.places.runs.exists()


def test_an_interrupt_takes_back_what_was_sent(call, fake_slurm: FakeSlurm, tmp_path, profile, monkeypatch):
    count = iter(range(10))
    real = send.send

    def interrupted(*args):
        if next(count) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(send, "send", interrupted)
    assert call("submit", *ROW, "--cluster", profile)[0] == 130
    assert not fake_slurm.queue and not submissions(tmp_path) and len(fake_slurm.cancelled) == 1


def test_the_next_submit_takes_back_an_incomplete_submission(call, fake_slurm: FakeSlurm, tmp_path, profile):
    call("submit", *ROW, "--cluster", profile)
    (cut,) = submissions(tmp_path)
    content = json.loads((cut / "submission.json").read_text())
    content["jobs"]["9"]["slurm_id"] = None
    (cut / "submission.json").write_text(json.dumps(content))
    name = read_submission(cut).name
    call("submit", *ROW, "--cluster", profile, "--dry-run")
    assert cut.exists() and not fake_slurm.cancelled, "a dry run takes nothing back"
    code, said, error = call("submit", *ROW, "--cluster", profile)
    assert code == 0 and cut.name in error and "sent 11 jobs" in said
    assert [line.split()[-2:] for line in fake_slurm.cancelled] == [["--name", name]]
    (submission,) = read_ledger(tmp_path / "runs")
    assert not cut.exists() and {job[1] for job in fake_slurm.queue} == {submission.name}


def test_a_submission_that_waits_for_another_says_so_once(lab: Lab, monkeypatch, capsys):
    first, naps = ExitStack(), iter(range(3))
    first.enter_context(send.submit_lock(lab.places))
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: first.close() if next(naps) == 2 else None)
    with send.submit_lock(lab.places):
        assert next(naps, None) is None, "it waited for the first"
    assert capsys.readouterr().err == "waiting for another submission in this run root\n"


def test_failures_and_cancelled_rows_are_sent_again(call, fake_slurm: FakeSlurm, profile):
    call("submit", *ROW, "--cluster", profile)
    fake_slurm.say_all("FAILED")
    code, said, _ = call("submit", *ROW, "--cluster", profile)
    assert code == 0 and "nothing to send" in said and "--retry failed" in said and "job 10" in said
    assert "sent 11 jobs" in call("submit", *ROW, "--cluster", profile, "--retry", "failed")[1]
    code, said, _ = call("cancel", f"table1/{GUIDED}")
    assert code == 0 and " 11 jobs that no other row needs" in said
    assert "sent 11 jobs" in call("submit", *ROW, "--cluster", profile, "--retry", "failed")[1]
    code, _, error = call("cancel", "table1/mar/diff/guide")
    assert code == 2 and f"did you mean 'table1/{GUIDED}'?" in error


def test_a_profile_names_the_run_root_and_the_device(call, fake_slurm: FakeSlurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster = changed(tmp_path, runs=str(tmp_path / "elsewhere"), device="Example GPU")
    call("submit", *ROW, "--cluster", cluster)
    assert read_ledger(tmp_path / "runs") and not (tmp_path / "elsewhere").exists(), "MAR_BENCH_RUNS takes precedence"
    monkeypatch.delenv("MAR_BENCH_RUNS")
    assert call("submit", *ROW, "--cluster", cluster)[0] == 0
    (submission,) = read_ledger(tmp_path / "elsewhere")
    (speed,) = [row.id for row in submission.rows if row.task == "speed"]
    assert speed not in {run.id for run in runs_of(task="speed")}
    assert "table1" in call("status", "--cluster", cluster)[1]


def test_users_experiment_files_are_copied(call, fake_slurm: FakeSlurm, tmp_path, profile):
    mine = tmp_path / "mine" / "own.yaml"
    mine.parent.mkdir()
    text = (Path(__file__).parents[2] / "experiments/table1.yaml").read_text()
    mine.write_text(text.replace("id: table1", "id: own"))
    code, _, error = call("submit", str(mine), *ROW[1:], "train.steps=3", "--cluster", profile)
    assert code == 0, error
    (submission,) = read_ledger(tmp_path / "runs")
    mine.unlink()
    (copy, override) = submission.request.words
    assert Path(copy) == submission.folder / "experiments/own.yaml" and "own" in Path(copy).read_text()
    assert override == "train.steps=3" and submission.name.startswith("own.")


def test_the_last_job_sends_what_can_be_chosen_and_writes_the_tables(lab: Lab, monkeypatch, capsys):
    asked = []

    def submit(request, profile, follows):
        asked.append((request.records, profile, follows))
        raise UserError("no Slurm")

    monkeypatch.setattr(submitting, "submit", submit)
    submission = lab.submit(runs_of(), waiting=2)
    submitting.conclude(submission)
    said = capsys.readouterr().err
    assert asked == [(str(lab.places.records), PROFILE, True)] and "no Slurm; to send" in said and "no table" in said
    submission.cancel(["table"])
    submitting.conclude(submission)
    assert len(asked) == 1, "a cancelled submission sends no more"
    assert json.loads((submission.folder / "cancelled.json").read_text()) == ["table"]
