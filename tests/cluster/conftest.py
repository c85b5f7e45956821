"""Fixtures: a lab with made-up job states, and the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from mar_bench.cluster import slurm, submit
from mar_bench.records.provenance import git_state
from tests.made_up_cluster import FakeSlurm, Lab, Squeue


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.setattr(slurm, "ask", squeue := Squeue())
    return Lab(tmp_path, squeue)


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> FakeSlurm:
    """Slurm's programs, and nothing else, on the PATH."""
    git_state()  # cached: the tests that follow need it with git on the PATH
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder))
    return fake


@pytest.fixture
def no_programs(tmp_path, monkeypatch) -> None:
    git_state()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """``mar-bench`` in this process: exit code and both streams."""
    from mar_bench.cli import main

    monkeypatch.setattr(submit, "take_snapshot", lambda folder: None)
    monkeypatch.setattr(slurm, "RETRY_SECONDS", 0)
    for name in ("runs", "records", "reports"):
        monkeypatch.setenv(f"MAR_BENCH_{name.upper()}", str(tmp_path / name))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mar-bench", *words])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run
