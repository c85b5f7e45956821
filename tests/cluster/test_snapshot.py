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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def taken(runs) -> Path:
    return take_snapshot(runs)


def python(folder: Path, code: str) -> str:
    """What code prints beside a copy."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd="/").stdout.strip()


def test_the_same_code_is_copied_once(runs, taken):
    assert take_snapshot(runs) == taken and taken.is_absolute()
    assert [path.name for path in (runs / "code").iterdir()] == [taken.name]


def test_a_copy_has_all_that_a_job_reads(taken):
    package = Path(mar_bench.__file__).parent
    ours = {path.relative_to(package.parent) for path in package.rglob("*.py")}
    assert ours <= {path.relative_to(taken) for path in taken.rglob("*.py")}
    assert (taken / "experiments/table1.yaml").is_file() and list((taken / "results/paper").iterdir())
    assert not list(taken.rglob("__pycache__")) and (taken.stat().st_mode & 0o755) == 0o755
    code = "from mar_bench.config.experiment import experiment_files as f; print(f()['table1'])"
    assert python(taken, code) == str(taken / "experiments/table1.yaml")


@pytest.mark.parametrize("name", ["experiments/table1.yaml", "mar_bench/cluster/slurm.py"])
def test_a_changed_file_makes_another_copy(name, taken, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(taken, checkout)
    (checkout / SNAPSHOT).unlink()
    code = "from pathlib import Path; from mar_bench.cluster.snapshot import take_snapshot as take; "
    code += f"print(take(Path({str(tmp_path)!r})))"
    first = python(checkout, code)
    assert python(checkout, code) == first
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    second = Path(python(checkout, code))
    assert str(second) != first and (second / name).read_text().endswith("# changed\n")
    assert not (Path(first) / name).read_text().endswith("# changed\n")
    assert len(list((tmp_path / "code").iterdir())) == 2, "nothing half written is left"


def test_another_commit_is_another_copy(taken, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "git_state", lambda: {"commit": "abc", "dirty": False})
    other = take_snapshot(tmp_path)
    assert other.name != taken.name and json.loads((other / SNAPSHOT).read_text())["git"]["commit"] == "abc"


def test_records_of_a_copy_name_the_commit_it_was_taken_from(taken, tmp_path):
    assert json.loads((taken / SNAPSHOT).read_text())["git"] == git_state()
    shutil.copytree(taken, tmp_path / "copy")
    (tmp_path / "copy" / SNAPSHOT).write_text('{"git": {"commit": "abc", "dirty": true}}')
    code = "from mar_bench.records.provenance import git_state; print(git_state())"
    assert python(tmp_path / "copy", code) == "{'commit': 'abc', 'dirty': True}"


def test_a_job_runs_the_copy_although_it_starts_beside_another_package(taken, tmp_path, monkeypatch):
    other = tmp_path / "mar_bench"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    executor = LocalExecutor(tmp_path / "logs", python=f"{sys.executable} -u {taken / START}")
    job = executor.submit(eval, "(__import__('mar_bench').__file__, __import__('sys').path[0])")
    assert job.result() == (str(taken / "mar_bench/__init__.py"), str(taken))


def test_a_copy_that_another_submission_has_just_made_is_taken(tmp_path, monkeypatch):
    rename = snapshot.os.rename

    def late(source, target):
        shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(snapshot.os, "rename", late)
    taken = take_snapshot(tmp_path)
    assert [path for path in (tmp_path / "code").iterdir()] == [taken] and (taken / START).is_file()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(tmp_path)
    assert not list((tmp_path / "code").iterdir())
