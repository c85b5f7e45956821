"""What Slurm's own programs say, taken apart; what is asked of them; what a job passes on to those it sends."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from mar_bench.cluster import slurm
from mar_bench.cluster.slurm import (
    LIVE,
    LOST,
    SILENT,
    JobState,
    cancel_jobs,
    cancel_named,
    complaint,
    job_states,
    outside_a_job,
    requeue_job,
)
from mar_bench.utils.errors import UserError

SQUEUE = """\
7|table1.abc|RUNNING|n1|None|1:02
8_0|table1.abc|COMPLETED|n2|None|0:10
8_1|table1.abc|PENDING||Dependency|0:00
8_10|table1.abc|PENDING||ReqNodeNotAvail, UnavailableNodes:n[1-2]|0:00
9|table1.abc|PENDING||launch failed requeued held|0:00
10|somebody|RUNNING|n3|None|9:00
"""
SACCT = """\
10|table1.abc|COMPLETED|n3|00:01:00
11|table1.abc|CANCELLED by 0|None assigned|00:00:00
12_1|table1.abc|OUT_OF_MEMORY|n[1-2]|01:00:00
12_2|somebody|FAILED|n1|00:00:01
"""


@pytest.fixture
def answers(monkeypatch) -> dict[str, str | None]:
    """What squeue and sacct say; None: they fail."""
    said: dict[str, str | None] = {"squeue": SQUEUE, "sacct": SACCT}
    said["asked"] = []

    def run(words: list[str]) -> str:
        said["asked"].append(words)
        if said[words[0]] is None:
            raise UserError(f"{words[0]}: error: no answer")
        return said[words[0]]

    monkeypatch.setattr(slurm, "_run", run)
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=lambda seconds: None))
    return said


def states(*ids: str) -> dict[str, JobState]:
    return job_states(dict.fromkeys(ids, "table1.abc"))


# --- states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ("7", JobState("RUNNING", "n1", "", "1:02")),
        ("8_0", JobState("COMPLETED", "n2", "", "0:10")),
        ("8_1", JobState("PENDING", "", "Dependency", "0:00")),
        ("8_10", JobState("PENDING", "", "ReqNodeNotAvail, UnavailableNodes:n[1-2]", "0:00")),
        ("9", JobState("PENDING", "", "launch failed requeued held", "0:00")),
        ("10", JobState("COMPLETED", "n3", "", "00:01:00")),  # squeue's has another name
        ("11", JobState("CANCELLED", "", "", "00:00:00")),
        ("12_1", JobState("OUT_OF_MEMORY", "n[1-2]", "", "01:00:00")),
        ("12_2", JobState(LOST)),  # of another name
        ("13", JobState(LOST)),
    ],
)
def test_the_state_of_a_job(job, state, answers):
    assert states(job) == {job: state}
    assert states("7", job, "99")[job] == state


def test_nothing_is_asked_of_no_jobs_and_not_twice_of_those_in_the_queue(answers):
    assert states() == {} and answers["asked"] == []
    states("7", "8_1")
    assert [words[0] for words in answers["asked"]] == ["squeue"]


def test_squeue_is_asked_for_elements_of_arrays_and_for_jobs_that_have_just_ended(answers):
    states("7")
    (words,) = answers["asked"]
    assert {"-r", "-h"} <= set(words) and words[words.index("-t") + 1] == "all"
    assert words[words.index("-u") + 1] == str(os.getuid())


def test_sacct_is_asked_once_for_each_array(answers):
    states("12_1", "12_2", "12_3", "13", "7")
    words = answers["asked"][-1]
    assert words[0] == "sacct" and words[words.index("-j") + 1] == "12,13"
    assert {"-X", "-n", "-P"} <= set(words)


def test_elements_that_never_started_are_found(answers):
    answers["sacct"] = "40_[0-1,3%2]|table1.abc|CANCELLED by 0|None assigned|00:00:00\n"
    named = {f"40_{i}": "table1.abc" for i in range(4)}
    assert [s.state for s in slurm.job_states(named).values()] == ["CANCELLED", "CANCELLED", LOST, "CANCELLED"]


def test_what_slurm_has_forgotten_is_lost_and_what_it_does_not_say_unknown(answers):
    answers["sacct"] = None  # as on a site without accounting
    assert {i: s.state for i, s in states("7", "13").items()} == {"7": "RUNNING", "13": LOST}
    answers["sacct"], answers["squeue"] = SACCT, None
    assert {i: s.state for i, s in states("7", "11").items()} == {"7": SILENT, "11": "CANCELLED"}
    answers["sacct"] = None
    assert {s.state for s in states("7", "11", "13").values()} == {SILENT}


def test_a_question_that_slurm_drops_is_asked_again(answers, monkeypatch):
    run = slurm._run

    def dropping(words: list[str]) -> str:
        answer = run(words)
        if len(answers["asked"]) == 1:
            raise UserError("squeue: error: slow down")
        return answer

    monkeypatch.setattr(slurm, "_run", dropping)
    assert states("7")["7"].state == "RUNNING"


def test_a_job_of_another_name_is_lost_also_in_the_queue(answers):
    answers["sacct"] = ""
    assert states("10")["10"] == JobState(LOST)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", SILENT])
def test_what_may_still_come(state):
    assert JobState(state).live


@pytest.mark.parametrize(
    "state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", LOST]
)
def test_what_has_ended(state):
    assert not JobState(state).live and state not in LIVE


# --- programs -------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        cancel_jobs(["7"])
    return str(caught.value)


def test_a_program_that_fails_is_one_line(path, monkeypatch):
    assert refusal().startswith("scancel: not found") and "PATH" in refusal()
    program(path, "scancel", "echo 'scancel: error: Invalid job id 7' >&2; exit 1")
    assert refusal() == "scancel: error: Invalid job id 7"
    program(path, "scancel", "exit 3")
    assert refusal() == "scancel failed with exit code 3"
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    program(path, "scancel", "while :; do :; done")
    assert refusal() == "scancel: no answer within 0.2 seconds"


def test_many_jobs_are_cancelled_in_several_calls(answers):
    answers["scancel"] = ""
    cancel_jobs([str(i) for i in range(450)])
    assert [len(words) - 1 for words in answers["asked"]] == [200, 200, 50]
    cancel_jobs([])
    assert len(answers["asked"]) == 3


def test_jobs_are_cancelled_by_name_as_one_s_own(answers):
    answers["scancel"] = ""
    cancel_named("table1.abc")
    assert answers["asked"] == [["scancel", "-u", str(os.getuid()), "--name", "table1.abc"]]


def test_a_job_is_queued_again_by_its_id(answers):
    answers["scontrol"] = ""
    requeue_job("12_3")
    assert answers["asked"] == [["scontrol", "requeue", "12_3"]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("Traceback\n  no word of Slurm", ""),
        ("sbatch: error: invalid partition\nsbatch: error: Batch job   submission failed: Invalid partition name",
         "sbatch: error: Batch job submission failed: Invalid partition name"),
        ("sbatch: warning: can't honor\nsbatch: error: no\nsbatch: info: bye", "sbatch: error: no"),
        ("squeue: Unable to contact", "squeue: Unable to contact"),
        ("slurm_load_jobs error\nsqueue: error: away\n", "squeue: error: away"),
        ("slurm_requeue error: Job is pending execution", "slurm_requeue error: Job is pending execution"),
        ("scontrol: error: x", "scontrol: error: x"),
    ],
)  # fmt: skip
def test_complaint(text, line):
    assert complaint(text) == line


# --- inside a job ---------------------------------------------------------------------------------------


def test_jobs_sent_from_a_job_know_nothing_of_it(monkeypatch):
    inside = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "RANK": "1", "SUBMITIT_EXECUTOR": "slurm", "SRUN_DEBUG": "3"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me", "MAR_BENCH_RUNS": "/runs"}
    for name, value in (inside | kept).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with outside_a_job():
        assert not inside.keys() & os.environ.keys() and kept.items() <= os.environ.items()
    assert dict(os.environ) == before


def test_outside_a_job_nothing_is_taken_away(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with outside_a_job():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
