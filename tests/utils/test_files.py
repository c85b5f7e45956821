"""Errors of files that cannot be written or read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from safetensors import SafetensorError

from mar_bench.utils.errors import UserError
from mar_bench.utils.files import reading, replacing


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
