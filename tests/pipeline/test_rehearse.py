"""The rehearsal on a shallow Table 1 with the true tokenizers, and its failures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.pipeline import fit, rehearse
from mar_bench.pipeline.rehearse import check_room, count
from mar_bench.report.rehearsal import markdown, title_of
from mar_bench.utils.errors import UserError

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "mar_bench", "rehearse", "table1"]
COMMITTED = ROOT / "reports" / "paper" / "table1-rehearsal"
PAPER = load_experiment("table1", "paper").rows
SHALLOW = [
    "parts.backbone.masked.encoder_depth=1", "parts.backbone.masked.decoder_depth=1", "parts.backbone.causal.depth=2",
    "parts.backbone.masked.dim=64", "parts.backbone.causal.dim=64", "parts.head.diffusion.width=32",
    "data.image_size=64", "parts.few_steps=8",
]  # fmt: skip


@pytest.mark.smoke
def test_a_shallow_table_1_rehearses(tmp_path):
    words = [*SHALLOW, "--runs", str(tmp_path / "runs"), "--reports", str(tmp_path), "--save", "--only", "mar/diff/*"]
    result = CliRunner().invoke(app, ["rehearse", "table1", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "paper/table1-rehearsal.json").read_text())["found"]
    assert found["rows"] == ["mar/diff/unguided", "mar/diff/guided"]
    assert found["resumed_equal"] is True and found["error"] is None
    assert found["steps"] == 3 and len(found["losses"]) == 3 and np.isfinite(found["losses"]).all()
    assert found["tokenizer_parameters"] == 66_456_019, "the true tokenizer"
    assert found["peak_bytes"] > 5e8 and found["checkpoint_bytes"] > 15 * found["parameters"]["total"]
    assert not list(tmp_path.glob("runs/rehearsal-*")), "temporary files are left behind"
    text = (tmp_path / "paper/table1-rehearsal.md").read_text()
    assert text == result.stdout and "same bits" in text and str(tmp_path) not in text


@pytest.mark.smoke
def test_a_stop_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen([*COMMAND, *SHALLOW, "--only", "mar/ce/*", "--runs", str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("rehearsal-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)  # treated as Ctrl-C
    assert process.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]


def test_the_committed_rehearsal_covers_all_trainings_and_succeeded():
    content = json.loads(COMMITTED.with_suffix(".json").read_text())
    for item, now in zip(content["found"], count(PAPER, "H100"), strict=True):
        for key in ("rows", "parameters", "tokenizer_parameters", "flops", "image_flops", "gpu_hours"):
            assert item[key] == now[key], "the training has changed since"
        assert item["resumed_equal"] and item["steps"] == 3
    assert sorted(len(item["rows"]) for item in content["found"]) == [2, 2, 2, 2, 4, 4]
    assert COMMITTED.with_suffix(".md").read_text() == markdown("table1: rehearsal at paper scale", content)


def test_all_but_published_weights_are_counted():
    spec, own = PAPER["mar/diff/guided"], load_experiment("table1", "tiny").rows["mar/ce/guided"]
    published = replace(spec, train=replace(spec.train, published="mar_large"))
    assert [item["rows"] for item in count({"a": published, "b": own}, "H100")] == [["b"]]


def test_the_report_shows_failures_and_omits_trials_that_were_not_run():
    assert title_of(["a/b/c", "a/b/d", "e/f"]) == "a/b, e"
    content = json.loads(COMMITTED.with_suffix(".json").read_text())

    def report(**outcome) -> str:
        return markdown("t", {**content, "found": [{**content["found"][0], **outcome}]})

    assert "What was tried" not in report(steps=0, error=None)
    assert "FAILED: other bits" in report(resumed_equal=False)
    text = report(error="boom\ntraceback")
    assert "FAILED: boom" in text and "traceback" not in text


@pytest.mark.parametrize("fault", ["none", "restarts", "loses the average"])
def test_a_wrong_resume_is_detected(fault, tmp_path, monkeypatch):
    resume = fit._resume

    def forgets(*args):
        state = resume(*args)
        if state is not None:
            state["ema"] = {name: torch.zeros_like(v) for name, v in state["ema"].items()}
        return state

    if fault != "none":
        monkeypatch.setattr(fit, "_resume", forgets if "average" in fault else lambda *args: None)
    spec = load_experiment("table1", "smoke").rows["mar/diff/guided"]
    found = rehearse.try_training(spec, tmp_path)
    assert found["resumed_equal"] is (fault == "none") and len(found["losses"]) == 3


def test_memory_and_disk_are_checked_first(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a: 1000000M parameters need about 20002 GB of memory, \d+ GB are free"):
        check_room("a", 10**12, tmp_path)
    monkeypatch.setattr(rehearse, "MEMORY", tmp_path / "none")
    with pytest.raises(UserError, match=r"GB of disk, \d+ GB are free; .* with --runs"):
        check_room("a", 10**12, tmp_path)
    check_room("a", 4000, tmp_path)


@pytest.mark.slow
def test_failures_in_the_child_process_are_part_of_the_result(tmp_path):
    answer = rehearse.in_child("no spec", tmp_path, 1)
    assert "AttributeError" in answer["error"] and answer["peak_bytes"] > 0


def test_an_unknown_gpu_is_one_line():
    result = subprocess.run([*COMMAND, "--gpu", "H10"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "--gpu H10: did you mean 'H100'" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
