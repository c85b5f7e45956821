"""The copy of the code that queued jobs run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from submitit import LocalExecutor

import mar_bench
from mar_bench.cluster import snapshot
from mar_bench.cluster.snapshot import START, take_snapshot
from mar_bench.records.provenance import SNAPSHOT, git_state


def python(folder: Path, code: str) -> str:
    """What code prints with a copy first on the path."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_a_copy_has_all_that_a_job_reads(taken):
    package = Path(mar_bench.__file__).parent
    ours = {path.relative_to(package.parent) for path in package.rglob("*.py")}
    assert ours <= {path.relative_to(taken) for path in taken.rglob("*.py")}
    assert (taken / "experiments/table1.yaml").is_file() and list((taken / "results/paper").iterdir())
    assert not list(taken.rglob("__pycache__")) and (taken.stat().st_mode & 0o755) == 0o755
    code = "from mar_bench.config.yaml_layers import experiment_files as f; print(f()['table1'])"
    assert python(taken, code) == str(taken / "experiments/table1.yaml")


def test_only_changed_code_is_copied_again(taken, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(taken, checkout)
    (checkout / SNAPSHOT).unlink()
    code = "from pathlib import Path; from mar_bench.cluster.snapshot import take_snapshot as take; "
    code += f"print(take(Path({str(tmp_path)!r})))"
    first = python(checkout, code)
    assert python(checkout, code) == first
    for name in ("experiments/table1.yaml", "mar_bench/cluster/slurm.py"):
        with (checkout / name).open("a") as file:
            file.write("\n# changed\n")
        second = Path(python(checkout, code))
        assert str(second) != first and (second / name).read_text().endswith("# changed\n")
        assert not (Path(first) / name).read_text().endswith("# changed\n")
    assert len(list((tmp_path / "code").iterdir())) == 3, "no temporary folder is left"


def test_a_copy_records_its_commit(taken, tmp_path, monkeypatch):
    assert json.loads((taken / SNAPSHOT).read_text())["git"] == git_state()
    monkeypatch.setattr(snapshot, "git_state", lambda: {"commit": "abc", "dirty": True})
    other = take_snapshot(tmp_path)
    assert other.name != taken.name
    code = "from mar_bench.records.provenance import git_state; print(git_state())"
    assert python(other, code) == "{'commit': 'abc', 'dirty': True}"


def test_a_job_runs_the_copy_although_it_starts_beside_another_package(taken, tmp_path, monkeypatch):
    other = tmp_path / "mar_bench"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    executor = LocalExecutor(tmp_path / "logs", python=f"{sys.executable} -u {taken / START}")
    job = executor.submit(eval, "(__import__('mar_bench').__file__, __import__('sys').path[0])")
    assert job.result() == (str(taken / "mar_bench/__init__.py"), str(taken))


def test_a_copy_that_fails_or_comes_second_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    def late(source, target):  # another submission has just made the same copy
        shutil.copytree(source, target)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(snapshot.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(tmp_path)
    assert not list((tmp_path / "code").iterdir())
    monkeypatch.setattr(snapshot.os, "rename", late)
    taken = take_snapshot(tmp_path)
    assert list((tmp_path / "code").iterdir()) == [taken] and (taken / START).is_file()
