"""Errors of files that cannot be written or read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import expanded, path_variable, reading, replacing


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left", "x")])
def test_a_file_that_cannot_be_written_keeps_its_old_content(error, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"), replacing(path):
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_reason_of_an_error_without_number_is_told(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(whole := tmp_path / "whole.png")
    (path := tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(UserError, match="cut.png: not a valid image .*truncated"), reading(path, "image"):
        Image.open(path).load()


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/$me")
    given = ("~", "~/a b", "$SCRATCH/x", "${SCRATCH}/x", "./~", "a#b", "x$", "10$%")
    assert [expanded(path, "--runs") for path in given] == [
        "/home/me", "/home/me/a b", "/scratch/$me/x", "/scratch/$me/x", "./~", "a#b", "x$", "10$%",
    ]  # fmt: skip
    monkeypatch.setenv("MAR_BENCH_RUNS", "~/runs")
    assert path_variable("MAR_BENCH_RUNS") == "/home/me/runs" and path_variable("MAR_BENCH_NOTHING") is None


@pytest.mark.parametrize(
    ("path", "hint"),
    [("$NO_SUCH/x", "the variable NO_SUCH, which is not set"), ("${NO_SUCH-a}", "NO_SUCH-a"), ("", "empty"),
     (" ", "empty"), ("a" * 5000, "too long"),
     ("a\0b", "control characters"), ("a\nb", "control characters"), ("~no-such-user/x", "a user")],
)  # fmt: skip
def test_paths_that_cannot_be_are_refused_by_name(path, hint):
    with pytest.raises(UserError) as caught:
        expanded(path, "--runs")
    assert str(caught.value).startswith("--runs: '") and hint in str(caught.value) and "\n" not in str(caught.value)
