"""Errors of files that cannot be written or read."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mar_bench.utils.errors import DiskError, UserError
from mar_bench.utils.files import atomic_write, expanded, path_variable, reading, replacing, with_folder


def of_torch(path: Path) -> None:
    torch.save(torch.zeros(50_000), path)


def of_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(50_000))


def of_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(50_000)}, path)


@pytest.mark.parametrize("write", [of_torch, of_numpy, of_safetensors, lambda path: path.write_bytes(bytes(200_000))])
def test_a_file_that_the_disk_does_not_take_keeps_its_old_content(write, tmp_path: Path):
    path = tmp_path / "weights"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as on a full disk: the first part is written
    try:
        with pytest.raises(DiskError, match=r"/weights: cannot be written \(File too large\)"), replacing(path) as new:
            write(new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path):
    with pytest.raises(DiskError, match="gone/file: cannot be written .No such file or directory"):
        atomic_write(tmp_path / "gone/file", "")
    (folder := tmp_path / "goes").mkdir()
    with pytest.raises(DiskError, match="goes/file: cannot be written"), replacing(folder / "file") as temporary:
        shutil.rmtree(folder)
        temporary.exists()
    assert not list(tmp_path.iterdir())
    atomic_write(with_folder(tmp_path / "reports/tiny/table.md"), "")


def test_an_error_of_the_content_stays_what_it_is(tmp_path: Path):
    for error in (KeyError("x"), OSError("reset by peer"), FileNotFoundError(2, "no such input")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "file"):
            raise error
        assert caught.value is error and not list(tmp_path.iterdir())


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
