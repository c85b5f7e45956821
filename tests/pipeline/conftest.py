"""All of Table 1 at smoke scale, run once for all tests and all processes of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mar_bench.utils import locks


@pytest.fixture(scope="session")
def table1(tmp_path_factory) -> Path:
    """A folder with runs and records, only to be read, and what the command printed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "table1"
    with locks.held(folder.with_suffix(".lock")):
        if not (folder / "output.txt").is_file():
            places = ["--runs", str(folder / "runs"), "--records", str(folder / "records")]
            words = [sys.executable, "-m", "mar_bench", "run", "table1", "--scale", "smoke", "--jobs", "2", *places]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "output.txt").write_text(done.stdout + done.stderr)
    return folder
