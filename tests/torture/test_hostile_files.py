"""Every hostile file is refused in one line that names it, in little memory and time, and runs nothing."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from mar_bench.data.datasets import silent
from mar_bench.data.image_sets import open_images
from mar_bench.metrics.references import load_reference
from mar_bench.models.pretrained.convert import convert
from tests.measuring import Averages, refusal, says
from tests.torture.hostile_files import TOUCHED, hostile_files

SECONDS, MIB = 5, 400  # of the largest, on a busy core


def attempt(path: Path, verb: str) -> None:
    """What a command does with the file."""
    if verb == "eval":
        list(open_images(str(path)).batches(silent))
    elif verb == "reference":
        load_reference(path, path.name, Averages("inception", "inception"), 100, silent)
    else:
        convert(verb.removeprefix("convert "), path, path.with_name("out.safetensors"))


def memory() -> float:
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_hostile_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, before = 0, memory()
    for name, path, verb in hostile_files(tmp_path):
        begin, left = time.monotonic(), {*tmp_path.iterdir()}
        message = refusal(attempt, path, verb)
        assert says(message, path) and message.isprintable() and len(message) < 600, (name, message)
        assert "False" not in message, "torch suggests to load without protection"
        assert time.monotonic() - begin < SECONDS and memory() - before < MIB, name
        assert {*tmp_path.iterdir()} == left and not Path(TOUCHED).exists(), name
        path.unlink()
        count += 1
    assert count >= 40
