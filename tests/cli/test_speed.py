"""The command ``speed``: what it measures, and what it says of mistakes."""

from __future__ import annotations

import csv

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.pipeline import benchmark
from mar_bench.utils.errors import UserError

ROW = "table1/mar/diff/guided"
SMALL = ["--scale", "smoke", "--repeats", "2", "compute.threads=1"]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    monkeypatch.setattr(benchmark, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(benchmark, "COPIED", {"cpu": 2**16})


def measured(tmp_path, *words: str) -> tuple[str, list[dict[str, str]]]:
    result = CliRunner().invoke(app, ["speed", *words, *SMALL, "--csv", str(tmp_path / "speed.csv")])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout, list(csv.DictReader((tmp_path / "speed.csv").open()))


def test_sampling_is_timed_for_every_batch_and_number_of_steps(tmp_path):
    text, lines = measured(tmp_path, ROW, "--batch", "1,3", "--diffusion-steps", "2,6")
    assert [line["infer_batch_size"] for line in lines] == ["1", "3", "1", "3"]
    assert f"{ROW} diffusion=6" in text and "launches a denoising step" in text
    for line in lines:
        shares = [float(value) for name, value in line.items() if name.startswith("share_") and name[6:] != "of_limit"]
        assert len(shares) == 5 and sum(shares) == pytest.approx(1, abs=1e-3) and min(shares[:4]) > 0
        seconds = float(line["infer_step_time"]) / 1e3
        assert float(line["infer_samples_per_sec"]) == pytest.approx(int(line["infer_batch_size"]) / seconds, rel=0.01)
        assert float(line["step_time_q25"]) <= float(line["infer_step_time"]) <= float(line["step_time_q75"])
    assert float(lines[2]["infer_gmacs"]) > float(lines[0]["infer_gmacs"])
    assert len({line["launches_per_denoising_step"] for line in lines}) == 1


@pytest.mark.parametrize("row", [ROW, "table1/raster_causal/ce/guided", "fig6/dit_d"])
def test_training_steps_are_timed_and_leave_nothing(tmp_path, row):
    text, lines = measured(tmp_path, row, "--train", "--batch", "2")
    assert [line["train_batch_size"] for line in lines] == ["2"] and float(lines[0]["train_step_time"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["speed.csv"]


def test_a_batch_that_does_not_fit_does_not_end_the_others(tmp_path, monkeypatch):
    whole = benchmark._sampling

    def fits(spec, size, *more):
        if size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(spec, size, *more)

    monkeypatch.setattr(benchmark, "_sampling", fits)
    text, lines = measured(tmp_path, ROW, "--batch", "4,2")
    assert [line["error"] for line in lines] == ["out of memory", ""] and "out of memory" in text
    text, lines = measured(tmp_path, ROW, "--batch", "999999999,2")
    assert "needs about" in lines[0]["error"] and lines[1]["error"] == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mar-ll"], "did you mean 'mar-l'"),
        (["table1"], "expected EXPERIMENT/ROW"),
        ([ROW, "--batch", "0"], "--batch 0: expected positive whole numbers"),
        ([ROW, "--ar-steps", "99"], "num_ar_steps"),
        ([ROW, "--diffusion-steps", "8,x"], "--diffusion-steps 8,x"),
        (["table1/mar/ce/guided", "--diffusion-steps", "8"], "'cross_entropy' has no sampling.num_diffusion_steps"),
        (["fig6/dit_d", "--ar-steps", "4"], "'dit' has no sampling.num_ar_steps"),
        (["fig6/ar_ce", "--ar-steps", "4"], "causal attention draws one token per step"),
        ([ROW, "--csv", "."], "--csv .: a folder"),
        ([ROW, "--csv", "/proc/1/x.csv"], "--csv /proc/1/x.csv: it cannot be written"),
        ([ROW, "--train", "--diffusion-steps", "4"], "--diffusion-steps 4: a training step has none"),
    ],
)
def test_mistakes_are_told_before_any_work(tmp_path, words, told):
    words = words if "--csv" in words else [*words, "--csv", str(tmp_path / "speed.csv")]
    result = CliRunner().invoke(app, ["speed", *words, "--scale", "smoke"])
    assert isinstance(result.exception, UserError) and told in str(result.exception)
    assert not list(tmp_path.iterdir())
