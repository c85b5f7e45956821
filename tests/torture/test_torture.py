"""The quick part of ``python -m tests.torture``."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.smoke
def test_nothing_goes_wrong():
    words = [sys.executable, "-m", "tests.torture", "--quick", "--jobs", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
