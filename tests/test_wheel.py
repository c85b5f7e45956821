"""The wheel has all that the program needs outside a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The content of a wheel built from this checkout's sdist, as an installer would put it into an environment."""
    folder = tmp_path_factory.mktemp("wheel")

    def build(*words: str, cwd: Path) -> None:
        done = subprocess.run([sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr

    build("hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    build("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", ".", sdist.name, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_commands_work_outside_the_checkout(unpacked, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}

    def call(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "mar_bench", *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    where = subprocess.run(
        [sys.executable, "-c", "import mar_bench; print(mar_bench.__file__)"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(unpacked))
    assert "learning_curves" in call("list") and "trainings" in call("plan", "table1", "--scale", "paper")
    assert "FD-1k" in call("table", "table1", "--scale", "tiny")
    assert "no records at scale tiny in records" in call("report", "--scale", "tiny", code=2)
    assert "as known" in call("doctor") and not list(tmp_path.iterdir())
    assert {"report/templates/page.js", "metrics/classifiers", "testing.py", "clusters/local.yaml"} <= {
        path.relative_to(unpacked / "mar_bench").as_posix() for path in (unpacked / "mar_bench").rglob("*")
    }
