"""The rehearsal: a shallow Table 1 at paper scale, with the tokenizers' true architecture, and its mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mar_bench.config.experiment import load_experiment
from mar_bench.models.build import count_parameters
from mar_bench.pipeline import rehearse, train
from mar_bench.pipeline.flops import on_meta
from mar_bench.pipeline.rehearse import Rehearsal, check_room, count, digest, pictures, trainings
from mar_bench.report.rehearsal import GPUS, TRAINING_SHARE, gpu_hours, title_of
from mar_bench.report.rehearsal import markdown as rendered
from mar_bench.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAPER = load_experiment("table1", "paper").rows
SHALLOW = [
    "parts.backbone.masked.encoder_depth=1", "parts.backbone.masked.decoder_depth=1", "parts.backbone.causal.depth=2",
    "parts.backbone.masked.dim=64", "parts.backbone.causal.dim=64", "parts.head.diffusion.width=32",
]  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mar_bench", "rehearse", *words]


def run(*words: str, **more) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*words), capture_output=True, text=True, env=environ, timeout=400, **more)


@pytest.mark.smoke
def test_a_shallow_table_1_rehearses(tmp_path):
    """One training of each backbone, each with the other head."""
    words = ["table1", *SHALLOW, "--runs", str(tmp_path / "runs"), "--reports", str(tmp_path), "--save"]
    result = run(*words, "--only", "raster_causal/ce/guided")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "paper" / "table1-rehearsal.json").read_text())["found"]
    assert [item["rows"] for item in found] == [["raster_causal/ce/guided"]]
    masked = run(*words, "--only", "mar/diff/*")
    assert masked.returncode == 0, masked.stdout + masked.stderr
    found += json.loads((tmp_path / "paper" / "table1-rehearsal.json").read_text())["found"]
    assert found[-1]["rows"] == ["mar/diff/unguided", "mar/diff/guided"]
    for item in found:
        assert item["resumed_equal"] is True and item["error"] is None
        assert item["steps"] == 3 and len(item["losses"]) == 3 and np.isfinite(item["losses"]).all()
        assert item["tokenizer_parameters"] in (66_456_019, 69_593_371), "the true tokenizer"
        assert item["peak_bytes"] > 5e8 and item["checkpoint_bytes"] > 15 * item["parameters"]["total"]
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"
    text = (tmp_path / "paper" / "table1-rehearsal.md").read_text()
    assert text == masked.stdout and "same bits" in text and str(tmp_path) not in text


@pytest.mark.smoke
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(number, tmp_path):
    words = ["table1", *SHALLOW, "--only", "mar/ce/*", "--runs", str(tmp_path)]
    process = subprocess.Popen(command(*words), env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("rehearsal-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert not list(tmp_path.iterdir())


def test_what_a_killed_rehearsal_left_is_removed_by_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {name: tmp_path / f"{rehearse._mine()}{name}-x" for name in (dead.pid, os.getpid())}
    other = tmp_path / f"rehearsal-0000000-{dead.pid}-x"  # of another machine, where that number may live
    for folder in (*names.values(), other):
        folder.mkdir()
    rehearse._sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {names[os.getpid()], other}


# --- what is counted ------------------------------------------------------------------------------------


def test_table_1_is_six_trainings_of_mar_l():
    found = trainings(PAPER)
    assert len(found) == 6 and sorted(map(len, found.values())) == [2, 2, 2, 2, 4, 4]
    (item,) = count({"mar/diff/guided": PAPER["mar/diff/guided"]})
    assert item.parameters == {"total": 426_357_792, "backbone": 406_095_872, "head": 20_261_920}
    assert item.tokenizer_parameters == 66_456_019
    assert item.image_flops["mar/diff/guided"] > 25 * item.flops["decode"]


def test_published_weights_are_not_rehearsed():
    spec = PAPER["mar/diff/guided"]
    taken = replace(spec, train=replace(spec.train, published="mar_large"))
    assert trainings({"a": spec, "b": taken}) == trainings({"a": spec})


def item_of(**changes) -> dict:
    rows = ["mar/diff/unguided", "mar/diff/guided"]
    flops, images = {"step": 1e15, "decode": 1e12}, dict.fromkeys(rows, 9e12)
    made = Rehearsal(rows, {"total": 4_000, "head": 20, "backbone": 3_980}, 50, flops, images)
    return replace(made, **changes).__dict__


def test_gpu_hours_by_hand():
    hours = gpu_hours([item_of()], PAPER, "A100")
    assert hours["training"][0] == pytest.approx(1e15 * 250_000 / (312e12 * TRAINING_SHARE) / 3600)
    assert hours["sampling"][0] == pytest.approx(2 * 50_000 * 1e13 / (312e12 * 0.30) / 3600)


def test_the_shares_are_what_the_authors_times_come_to():
    """MAR-L, 400 epochs in 1 day 11 hours on 16 H100; 0.288 s an image at 64 steps on one A100 with guidance."""
    (item,) = count({row: PAPER[row] for row in ("mar/diff/guided",)})
    used = item.flops["step"] * 250_000 / (16 * 35 * 3600) / (GPUS["H100"] * 1e12)
    assert used == pytest.approx(TRAINING_SHARE, abs=0.01)
    sampled = (item.image_flops["mar/diff/guided"] + item.flops["decode"]) / 0.288 / (GPUS["A100"] * 1e12)
    assert sampled == pytest.approx(0.30, abs=0.015)


def test_the_report_says_what_failed_and_what_was_not_tried():
    assert title_of(["a/b/c", "a/b/d", "e/f"]) == "a/b, e"
    origin = {"device": "here", "threads": 2, "versions": {"torch": "2"}}

    def markdown(*found: dict) -> str:
        return rendered("t", {"found": list(found), "gpu": "H100", "images": "some", "provenance": origin}, PAPER)

    counted = markdown(item_of())
    assert "What was tried" not in counted and "4,000" in counted
    went = {"steps": 3, "images_a_step": 2, "losses": [1.0, 2.0, 3.0], "resumed_equal": False}
    text = markdown(item_of(**went), item_of(error="boom\ntraceback"))
    assert "FAILED: other bits" in text and "FAILED: boom" in text and "traceback" not in text


def test_the_committed_rehearsal_is_of_all_trainings_at_mar_l_and_went_well():
    stored = ROOT / "reports" / "paper" / "table1-rehearsal"
    content = json.loads(stored.with_suffix(".json").read_text())
    found = content["found"]
    assert [item["rows"] for item in found] == list(trainings(PAPER).values())
    for item in found:
        assert item["parameters"] == count_parameters(on_meta(PAPER[item["rows"][0]])), "its size has changed since"
        assert item["resumed_equal"] and item["steps"] == 3 and item["parameters"]["total"] > 4e8
    assert stored.with_suffix(".md").read_text() == rendered("table1: rehearsal at paper scale", content, PAPER)


# --- what it works with ---------------------------------------------------------------------------------


def test_pictures_come_from_any_folder_or_from_scikit_learn(tmp_path):
    found = pictures(None, 5, 64, 3)
    assert found.shape == (5, 3, 64, 64) and found.dtype == np.uint8
    assert len({image.tobytes() for image in found}) >= 4 and found.std() > 20, "photographs"
    with pytest.raises(UserError, match="no image in it"):
        pictures(tmp_path, 2, 64, 3)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="an image cannot be read"):
        pictures(tmp_path, 2, 64, 3)


def test_a_digest_sees_every_bit():
    module = nn.Linear(3, 3)
    before = digest(module)
    assert digest(module) == before
    module.bias.data[1] = torch.nextafter(module.bias.data[1], torch.tensor(9.0))
    assert digest(module) != before


@pytest.mark.parametrize("row", ["mar/diff/guided", "raster_causal/ce/guided"])
@pytest.mark.parametrize("fault", ["none", "starts anew", "loses the average"])
def test_a_resume_that_is_none_is_found_out(fault, row, tmp_path, monkeypatch):
    resume = train._resume

    def forgets(*args):
        state = resume(*args)
        if state is not None:
            state["ema"] = {name: torch.zeros_like(v) for name, v in state["ema"].items()}
        return state

    if fault != "none":
        monkeypatch.setattr(train, "_resume", forgets if "average" in fault else lambda *args: None)
    spec = load_experiment("table1", "smoke").rows[row]
    found = rehearse._rehearse(spec, None, tmp_path, 2, 1)
    assert found["resumed_equal"] is (fault == "none") and len(found["losses"]) == 3
    assert not list(tmp_path.glob("checkpoint-*")), "it is large"


def test_memory_and_disk_are_checked_first(tmp_path, monkeypatch):
    huge = Rehearsal(["mar/diff/guided"], {"total": 10**12}, 0, {}, {})
    with pytest.raises(UserError, match=r"1000000M parameters need about 20002 GB of memory and \d+ GB are free"):
        check_room(huge, tmp_path)
    monkeypatch.setattr(rehearse, "_free_memory", lambda: 10**15)
    with pytest.raises(UserError, match=r"GB of disk and \d+ GB are free in .*; choose another place with --runs"):
        check_room(huge, tmp_path)
    check_room(replace(huge, parameters={"total": 1}), tmp_path)
    assert shutil.disk_usage(tmp_path).free > 0


def test_a_process_that_dies_is_a_failure_that_is_told(tmp_path, monkeypatch):
    found = Rehearsal(["mar/diff/guided"], {"total": 1}, 0, {}, {})
    answer = rehearse.rehearse(found, "no spec", None, tmp_path, 2, 1)
    assert "AttributeError" in answer.error and answer.resumed_equal is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2x"], "no experiment 'table2x'"),
        (["table1", "--gpu", "H10"], "--gpu H10: did you mean 'H100'"),
        (["table1", "--images", "nowhere"], "--images nowhere: no such folder"),
        (["table1", "--images", "experiments"], "experiments: no image in it"),
        (["table1", "--only", "x*"], "--only 'x*' matches no row"),
        (["table1", "--scale", "papr"], "no scale overlay 'papr'"),
    ],
)
def test_mistakes_are_one_line(words, message):
    result = run(*words)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
