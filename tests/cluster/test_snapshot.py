"""The copy of the code that queued jobs run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from submitit import LocalExecutor

import mar_bench
from mar_bench.cluster.snapshot import START, take_snapshot
from mar_bench.records.provenance import SNAPSHOT, git_state


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> Path:
    take_snapshot(folder := tmp_path_factory.mktemp("submission") / "code")
    return folder


def python(folder: Path, code: str) -> str:
    """What code prints with a copy first on the path."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_a_copy_has_all_that_a_job_reads_and_its_commit(taken):
    package = Path(mar_bench.__file__).parent
    ours = {path.relative_to(package.parent) for path in package.rglob("*.py")}
    assert ours <= {path.relative_to(taken) for path in taken.rglob("*.py")}
    assert (taken / "experiments/table1.yaml").is_file() and list((taken / "results/paper").iterdir())
    assert not list(taken.rglob("__pycache__"))
    assert json.loads((taken / SNAPSHOT).read_text())["git"] == git_state()
    code = "from mar_bench.config.yaml_layers import experiment_files as f; print(f()['table1'])"
    assert python(taken, code) == str(taken / "experiments/table1.yaml")
    (taken / SNAPSHOT).write_text('{"git": {"commit": "abc"}}')
    assert python(taken, "from mar_bench.records.provenance import git_state as g; print(g())") == "{'commit': 'abc'}"


def test_a_job_runs_the_copy_although_it_starts_beside_another_package(taken, tmp_path, monkeypatch):
    other = tmp_path / "mar_bench"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    executor = LocalExecutor(tmp_path / "logs", python=f"{sys.executable} -u {taken / START}")
    job = executor.submit(eval, "(__import__('mar_bench').__file__, __import__('sys').path[0])")
    assert job.result() == (str(taken / "mar_bench/__init__.py"), str(taken))
