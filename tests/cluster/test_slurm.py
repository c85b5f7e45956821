"""Parsing the output of Slurm's programs, what they are asked, and what a job passes on to jobs it sends."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mar_bench.cluster import slurm
from mar_bench.cluster.slurm import LOST, SILENT, JobState, ask, job_states, send
from mar_bench.utils.errors import UserError

SQUEUE = """\
7|table1.abc|RUNNING|n1|None
8_0|table1.abc|COMPLETED|n2|None
8_10|table1.abc|PENDING||ReqNodeNotAvail, UnavailableNodes:n[1-2]
10|somebody|RUNNING|n3|None
"""
SACCT = """\
10|table1.abc|COMPLETED|n3
11|table1.abc|CANCELLED by 0|None assigned
12_1|table1.abc|OUT_OF_MEMORY|n[1-2]
12_2|somebody|FAILED|n1
40_[0-1,3%2]|table1.abc|CANCELLED by 0|None assigned
"""


class Answers(dict):
    """What programs answer, an error for None; ``asked`` lists the calls."""

    def __call__(self, words: list[str]) -> str:
        self.asked.append(words)
        if self[words[0]] is None:
            raise UserError(f"{words[0]}: error: no answer")
        return self[words[0]]


@pytest.fixture
def answers(monkeypatch) -> Answers:
    found = Answers(squeue=SQUEUE, sacct=SACCT, scancel="")
    found.asked = []
    monkeypatch.setattr(slurm, "ask", found)
    return found


def states(*ids: str) -> dict[str, JobState]:
    return job_states(dict.fromkeys(ids, "table1.abc"))


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ("7", JobState("RUNNING", "n1", "")),
        ("8_0", JobState("COMPLETED", "n2", "")),
        ("8_10", JobState("PENDING", "", "ReqNodeNotAvail, UnavailableNodes:n[1-2]")),
        ("10", JobState("COMPLETED", "n3")),  # squeue's job has another name
        ("11", JobState("CANCELLED")),
        ("12_1", JobState("OUT_OF_MEMORY", "n[1-2]")),
        ("12_2", JobState(LOST)),  # has another name
        ("13", JobState(LOST)),
        ("40_0", JobState("CANCELLED")),  # elements that never started
        ("40_2", JobState(LOST)),
        ("40_3", JobState("CANCELLED")),
    ],
)
def test_the_state_of_a_job(job, state, answers):
    assert states(job) == {job: state} and states("7", job, "99")[job] == state
    assert state.live == (state.state in ("RUNNING", "PENDING"))


def test_a_forgotten_job_is_lost_and_an_unanswered_question_unknown(answers):
    answers["sacct"] = None  # as on a site without accounting
    assert {i: s.state for i, s in states("7", "13").items()} == {"7": "RUNNING", "13": LOST}
    answers["sacct"], answers["squeue"] = SACCT, None
    assert {i: s.state for i, s in states("7", "11").items()} == {"7": SILENT, "11": "CANCELLED"}
    assert JobState(SILENT).live
    answers["sacct"] = None
    assert {s.state for s in states("7", "11", "13").values()} == {SILENT}


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        ask(["scancel", "7"])
    return str(caught.value)


def test_a_program_is_tried_twice_and_its_failure_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(path := tmp_path))
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0)
    assert refusal().startswith("scancel: not found")
    program(path, "scancel", f"[ -e {path}/again ] && echo yes || {{ echo > {path}/again; exit 1; }}")
    assert ask(["scancel", "7"]) == "yes\n"
    program(path, "scancel", "echo 'scancel: error: Invalid  job id 7\nscancel: info: bye' >&2; exit 1")
    assert refusal() == "scancel: error: Invalid job id 7"
    program(path, "scancel", "exit 3")
    assert refusal() == "scancel failed with exit code 3"
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    program(path, "scancel", "while :; do :; done")
    assert refusal() == "scancel: no answer within 0.2 seconds"


class Executor:
    """In place of submitit's: keeps the environment in which sbatch would be called."""

    def submit(self, work):
        self.seen = dict(os.environ)
        return SimpleNamespace(job_id="9")


@pytest.mark.parametrize("inside", [True, False])
def test_no_variable_overrides_the_profile_or_filters_an_answer(inside, tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        program(tmp_path, name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "squeue", "export")
    hidden = {"SBATCH_ACCOUNT": "me", "SALLOC_QOS": "low", "SRUN_DEBUG": "3", "SQUEUE_PARTITION": "prio", "RANK": "1"}
    hidden |= {"SLURM_NTASKS": "4", "SLURMD_NODENAME": "n1", "PMIX_RANK": "0", "PMI_FD": "9", "SUBMITIT_EXECUTOR": "x"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "one", "MAR_BENCH_RUNS": "/runs"}
    (hidden if inside else kept)["CUDA_VISIBLE_DEVICES"] = "1"  # Slurm has set it, or the user
    hidden |= {"SLURM_JOB_ID": "7"} if inside else {}
    for name, value in {**hidden, **kept}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert send(executor := Executor(), [print]) == ["9"] and dict(os.environ) == before
    assert not hidden.keys() & executor.seen.keys() and kept.items() <= executor.seen.items()
    asked = {line.removeprefix("export ").partition("=")[0] for line in ask(["squeue"]).splitlines()}
    assert not hidden.keys() & asked and kept.keys() <= asked and dict(os.environ) == before
