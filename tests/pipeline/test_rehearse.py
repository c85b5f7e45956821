"""The rehearsal on a shallow Table 1 at paper scale with the true tokenizers, and its failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mar_bench.config.experiment import load_experiment
from mar_bench.models.build import count_parameters
from mar_bench.pipeline import fit, rehearse
from mar_bench.pipeline.flops import on_meta
from mar_bench.pipeline.rehearse import Rehearsal, check_room, count, pictures, trainings
from mar_bench.report.rehearsal import markdown, title_of
from mar_bench.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAPER = load_experiment("table1", "paper").rows
SHALLOW = [
    "parts.backbone.masked.encoder_depth=1", "parts.backbone.masked.decoder_depth=1", "parts.backbone.causal.depth=2",
    "parts.backbone.masked.dim=64", "parts.backbone.causal.dim=64", "parts.head.diffusion.width=32",
]  # fmt: skip
COUNTED = Rehearsal(
    ["mar/diff/unguided", "mar/diff/guided"], {"total": 4_000, "head": 20, "backbone": 3_980}, 50,
    {"step": 1e15, "decode": 1e12}, {"mar/diff/unguided": 9e12}, {"training": 560.0, "sampling": 9.5},
)  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mar_bench", "rehearse", *words]


def run(*words: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*words), capture_output=True, text=True, env=environ, timeout=400)


@pytest.mark.smoke
def test_a_shallow_table_1_rehearses(tmp_path):
    words = ["table1", *SHALLOW, "--runs", str(tmp_path / "runs"), "--reports", str(tmp_path), "--save"]
    result = run(*words, "--only", "mar/diff/*")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "paper/table1-rehearsal.json").read_text())["found"]
    assert [item["rows"] for item in found] == [COUNTED.rows]
    for item in found:
        assert item["resumed_equal"] is True and item["error"] is None
        assert item["steps"] == 3 and len(item["losses"]) == 3 and np.isfinite(item["losses"]).all()
        assert item["tokenizer_parameters"] == 66_456_019, "the true tokenizer"
        assert item["peak_bytes"] > 5e8 and item["checkpoint_bytes"] > 15 * item["parameters"]["total"]
    assert not list((tmp_path / "runs").iterdir()), "temporary files are left behind"
    text = (tmp_path / "paper/table1-rehearsal.md").read_text()
    assert text == result.stdout and "same bits" in text and str(tmp_path) not in text


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(number, tmp_path):
    words = ["table1", *SHALLOW, "--only", "mar/ce/*", "--runs", str(tmp_path)]
    process = subprocess.Popen(command(*words), env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("rehearsal-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert not list(tmp_path.iterdir())


# --- what is counted ------------------------------------------------------------------------------------


def test_table_1_is_six_trainings_of_mar_l():
    found = trainings(PAPER)
    assert len(found) == 6 and sorted(map(len, found)) == [2, 2, 2, 2, 4, 4]
    (item,) = count({"mar/diff/guided": PAPER["mar/diff/guided"]}, "H100")
    assert item.parameters == {"total": 426_357_792, "backbone": 406_095_872, "head": 20_261_920}
    assert item.tokenizer_parameters == 66_456_019
    assert item.image_flops["mar/diff/guided"] > 25 * item.flops["decode"]


def test_published_weights_are_not_rehearsed():
    spec = PAPER["mar/diff/guided"]
    taken = replace(spec, train=replace(spec.train, published="mar_large"))
    assert trainings({"a": spec, "b": taken}) == [["a"]]


def test_the_report_shows_failures_and_omits_trials_that_were_not_run():
    assert title_of(["a/b/c", "a/b/d", "e/f"]) == "a/b, e"
    origin = {"device": "here", "threads": 2, "versions": {"torch": "2"}}

    def report(*found: Rehearsal) -> str:
        content = {"found": [asdict(item) for item in found], "gpu": "H100", "images": "some", "provenance": origin}
        return markdown("t", content)

    counted = report(COUNTED)
    assert "What was tried" not in counted and "4,000" in counted and "560 GPU hours" in counted
    tried = replace(COUNTED, steps=3, images_a_step=2, losses=[1.0, 2.0, 3.0], resumed_equal=False)
    text = report(tried, replace(COUNTED, error="boom\ntraceback"))
    assert "FAILED: other bits" in text and "FAILED: boom" in text and "traceback" not in text


def test_the_committed_rehearsal_covers_all_trainings_and_succeeded():
    stored = ROOT / "reports" / "paper" / "table1-rehearsal"
    content = json.loads(stored.with_suffix(".json").read_text())
    found = content["found"]
    assert [item["rows"] for item in found] == trainings(PAPER)
    for item in found:
        assert item["parameters"] == count_parameters(on_meta(PAPER[item["rows"][0]])), "its size has changed since"
        assert item["resumed_equal"] and item["steps"] == 3 and item["parameters"]["total"] > 4e8
    assert stored.with_suffix(".md").read_text() == markdown("table1: rehearsal at paper scale", content)


# --- parts and failures ---------------------------------------------------------------------------------


def test_pictures_come_from_any_folder_or_from_scikit_learn(tmp_path):
    found = pictures(None, 5, 64, 3)
    assert found.shape == (5, 3, 64, 64) and found.dtype == np.uint8
    assert len({image.tobytes() for image in found}) >= 4 and found.std() > 20, "photographs"
    with pytest.raises(UserError, match="no image in it"):
        pictures(tmp_path, 2, 64, 3)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="not a valid image"):
        pictures(tmp_path, 2, 64, 3)


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
    found = rehearse.try_training(spec, None, tmp_path, 2, 1)
    assert found["resumed_equal"] is (fault == "none") and len(found["losses"]) == 3


def test_memory_and_disk_are_checked_first(tmp_path, monkeypatch):
    huge = replace(COUNTED, parameters={"total": 10**12})
    with pytest.raises(UserError, match=r"1000000M parameters need about 20002 GB of memory, \d+ GB are free"):
        check_room(huge, tmp_path)
    monkeypatch.setattr(rehearse, "_free_memory", lambda: 10**15)
    with pytest.raises(UserError, match=r"GB of disk, \d+ GB are free; .* with --runs"):
        check_room(huge, tmp_path)
    check_room(COUNTED, tmp_path)


def test_a_failure_in_the_child_process_is_part_of_the_result(tmp_path):
    answer = rehearse.rehearse(COUNTED, "no spec", None, tmp_path, 2, 1)
    assert "AttributeError" in answer.error and answer.resumed_equal is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1", "--gpu", "H10"], "--gpu H10: did you mean 'H100'"),
        (["table1", "--images", "nowhere"], "--images nowhere: no such folder"),
        (["table1", "--images", "experiments"], "experiments: no image in it"),
    ],
)
def test_mistakes_are_one_line(words, message):
    result = run(*words)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
