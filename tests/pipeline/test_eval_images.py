"""The commands eval, reference, compare, verify, neighbours and show RECORD, as a user types them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import nn
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.metrics import features
from mar_bench.records.record import Record, read_record, read_records, write_record
from mar_bench.utils.errors import UserError

ROW = "table1/mar/diff/guided"
TILE = 64
pytestmark = pytest.mark.smoke


class Colours(nn.Module):
    """Stands for a large network: mean colours of a 4x4 grid (B, 48) and ten logits."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1) * self.scale
        return found, 5 * found[:, :10]


class Point:
    """An entry point."""

    value = "tests:made_up"

    def __init__(self, net: nn.Module):
        self.net = net

    def load(self):
        return lambda weights: self.net


@pytest.fixture(autouse=True)
def installed(monkeypatch, tmp_path):
    """Extractors of other packages, and no cached weights."""
    points = {"colours": Point(Colours()), "louder": Point(Colours(3.0)), "broken": Point(NotFinite())}
    monkeypatch.setattr(features, "plugins", lambda: points)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)


class NotFinite(Colours):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, logits = super().forward(images)
        return torch.where(found > 0.2, torch.nan, found), logits


def call(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def mistake(*words: str) -> str:
    """The one-line message of a UserError."""
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def scores(samples, reference, *words, extractor: str | None = "colours") -> dict:
    """The record that eval --json prints."""
    chosen = [] if extractor is None else ["--extractor", extractor]
    against = [] if reference is None else ["--reference", reference]
    (record,) = json.loads(call("eval", samples, *against, *chosen, "--json", *words))
    return record


# --- real photographs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiles() -> tuple[np.ndarray, np.ndarray]:
    """Tiles of two photographs, uint8 (60, 64, 64, 3) each."""
    found = []
    for photo in load_sample_images().images:
        rows, columns = photo.shape[0] // TILE, photo.shape[1] // TILE
        cut = photo[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
        found.append(np.ascontiguousarray(cut.reshape(-1, TILE, TILE, 3)))
    return found[0], found[1]


def write(folder: Path, images: np.ndarray, name: str = "{:05d}.png", order=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(images)) if order is None else order:
        path = folder / name.format(i)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images[i]).save(path)
    return folder


@pytest.fixture
def photos(tmp_path, tiles) -> tuple[Path, Path]:
    """Samples and reference as folders."""
    return write(tmp_path / "samples", tiles[0]), write(tmp_path / "real", tiles[1])


def test_eval_prints_scores_and_protocol_of_a_folder(photos):
    text = call("eval", *photos[:1], "--reference", photos[1], "--extractor", "colours")
    for words in ("60 images, 64x64 RGB", "FD-60 colours", "IS-60 colours", "KID", "precision", "recall", "copied"):
        assert words in text, words
    assert "labels unknown" in text and "numbers in file names" in text and "note: 60 images" in text


def test_scores_do_not_depend_on_files_or_shards(tmp_path, photos, tiles):
    expected = scores(*photos)
    backwards = write(tmp_path / "backwards", tiles[0], "img-{}.png", order=range(59, -1, -1))
    sharded = tmp_path / "sharded"
    for shard in range(3):
        write(sharded / f"rank{shard}", tiles[0], order=range(shard, 60, 3))
    np.savez_compressed(tmp_path / "small.npz", arr_0=tiles[0])
    for same in (backwards, sharded, tmp_path / "small.npz"):
        found = scores(same, photos[1])
        assert found["metrics"] == expected["metrics"] and found["uncertainty"] == expected["uncertainty"], same
        assert found["protocol"]["samples"]["sha256"] == expected["protocol"]["samples"]["sha256"]


def test_labels_of_an_npz_are_recorded_and_change_the_id_only(tmp_path, photos, tiles):
    plain = scores(*photos)
    np.savez(tmp_path / "uneven.npz", arr_0=tiles[0], arr_1=np.arange(60) // 50)
    labelled = scores(tmp_path / "uneven.npz", photos[1])
    balance = {"classes": 2, "least": 10, "most": 50}
    assert (labelled["protocol"]["label_mode"], labelled["protocol"]["class_balance"]) == ("unbalanced", balance)
    assert labelled["ids"] != plain["ids"] and labelled["metrics"] == plain["metrics"]


def test_a_built_reference_gives_the_scores_of_its_folder(tmp_path, photos):
    target = tmp_path / "real.npz"
    assert "60 images, 60 features of colours" in call(
        "reference", "build", photos[1], target, "--extractor", "colours"
    )
    one, other = scores(photos[0], photos[1]), scores(photos[0], target)
    assert one["metrics"] == other["metrics"]
    assert one["protocol"]["reference"]["sha256"] == other["protocol"]["reference"]["sha256"]


def test_reference_build_crops_photographs(tmp_path, photos):
    (tmp_path / "camera").mkdir()
    for i, photo in enumerate(load_sample_images().images):
        for j in range(3):
            Image.fromarray(photo[40 * j :]).save(tmp_path / f"camera/{i}{j}.jpg")
    call("reference", "build", "camera", "camera.npz", "--extractor", "colours", "--size", "64")
    assert scores(photos[0], "camera.npz")["protocol"]["reference"]["num_images"] == 6
    assert "lossy" in mistake("reference", "build", "camera", "other.npz", "--extractor", "colours")
    assert not Path("other.npz").exists()


def test_kept_features_are_scored_without_the_images(tmp_path, photos):
    call("reference", "build", photos[1], "real.npz", "--extractor", "colours")
    expected = scores(photos[0], "real.npz", "--keep-features", "kept.safetensors")
    shutil.rmtree(photos[0])
    again = scores("kept.safetensors", "real.npz", extractor=None)
    assert again["metrics"] == expected["metrics"] and again["ids"] == expected["ids"]
    fewer = scores("kept.safetensors", "real.npz", "metrics.kid_subset_size=10", extractor=None)
    assert fewer["metrics"]["kid_colours"] != expected["metrics"]["kid_colours"] and fewer["ids"] != expected["ids"]
    assert "mar-bench reference build" in mistake("eval", "kept.safetensors", "--reference", photos[1])
    for target in ("kept.npz", "."):
        assert ".safetensors" in mistake("eval", photos[1], "--reference", "real.npz", "--keep-features", target)


def test_one_extractor_may_fail_alone(photos):
    words = ("eval", photos[0], "--reference", photos[1])
    assert "weights-inception-2015-12-05-6726825d.pth" in mistake(*words)
    result = CliRunner().invoke(app, [*map(str, words), "--extractor", "inception", "--extractor", "colours"])
    assert "FD-60 colours" in result.stdout
    message = str(result.exception)
    assert "--inception-weights" in message and "weights" in message and "\n" not in message


def test_reference_build_overwrites_references_only(tmp_path, photos, tiles):
    np.savez("mine.npz", arr_0=tiles[0])
    before = Path("mine.npz").read_bytes()
    assert "mine.npz" in mistake("reference", "build", "mine.npz", "mine.npz", "--extractor", "colours")
    assert Path("mine.npz").read_bytes() == before
    for _ in range(2):
        call("reference", "build", photos[1], "built.npz", "--extractor", "colours")


def test_settings_are_lowered_unless_given(photos):
    assert scores(*photos)["protocol"]["settings"]["is_splits"] == 1
    assert scores(*photos, "metrics.is_splits=3")["protocol"]["settings"]["is_splits"] == 3
    message = mistake("eval", photos[0], "--reference", photos[1], "--extractor", "colours", "metrics=3")
    assert "metrics.is_splits=5" in message


def test_bad_input_is_refused(tmp_path, photos, tiles):
    samples, real = photos
    chosen = ("--extractor", "colours")
    call("reference", "build", real, "real.npz", "--extractor", "louder")
    np.savez("keyless.npz", images=tiles[0])
    np.savez("statistics.npz", mu=np.zeros(48), sigma=np.eye(48))
    np.savez("adm.npz", arr_0=tiles[0], mu=np.zeros(48), sigma=np.eye(48))
    jpeg, gap = write(tmp_path / "jpeg", tiles[0], "{}.jpg"), write(tmp_path / "gap", tiles[0], order=(0, 1, 3))
    small = write(tmp_path / "small", tiles[0][:, ::2, ::2])
    for words, hints in (
        ((samples, "--reference", "real.npz", *chosen), ("real.npz", "louder", "colours")),
        ((jpeg, "--reference", real, *chosen), ("0.jpg", "lossy")),
        ((gap, "--reference", real, *chosen), ("gap", "2", "--unindexed")),
        ((tmp_path / "gone", "--reference", real, *chosen), ("gone",)),
        (("keyless.npz", "--reference", real, *chosen), ("keyless.npz", "arr_0")),
        (("statistics.npz", "--reference", real, *chosen), ("statistics.npz", "swapped")),
        (("adm.npz", "--reference", real, *chosen), ("adm.npz", "swapped")),
        ((samples, "--reference", samples, *chosen), ("nothing to compare",)),
        ((small, "--reference", real, *chosen), ("32x32", "64x64")),
        ((samples, *chosen), ("--reference",)),
        ((samples, "--reference", real, "--extractor", "colour"), ("did you mean 'colours'",)),
        ((samples, "--reference", real, "--extractor", "broken"), ("broken", "not finite")),
        ((samples, "--reference", real, *chosen, "metrics.is_split=3"), ("is_split", "metrics.is_splits")),
        ((samples, "--reference", real, *chosen, "metrics.is_splits=0"), ("metrics.is_splits: 0",)),
        ((samples, "--reference", real, *chosen, "metrics.kid_subset_size=61"), ("metrics.kid_subset_size 61", "60")),
        ((samples, "--reference", real, *chosen, "train.steps=3"), ("train",)),
    ):
        message = mistake("eval", *words)
        assert all(hint in message for hint in hints), message


# --- records of a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> list[str]:
    """Options of a finished smoke run of two rows."""
    folder = tmp_path_factory.mktemp("measured")
    places = ["--runs", str(folder / "runs"), "--records", str(folder / "records")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        only = ("--only", "mar/diff/*", "--scale", "smoke", "--jobs", "1", "train.steps=20")
        call("run", "table1", *only, *places)
    return places


def record_of(run: list[str], task: str, guidance: float = 3.0) -> Record:
    records = read_records(Path(run[3])).values()
    rows = [r for r in records if r.task == task]
    return next(r for r in rows if task != "generation" or r.spec["sampling"]["guidance_scale"] == guidance)


def copied(run: list[str], folder: Path) -> list[str]:
    """A copy that a test may damage."""
    for source in (run[1], run[3]):
        shutil.copytree(source, folder / Path(source).name)
    return places_in(folder)


def places_in(folder: Path) -> list[str]:
    return ["--runs", str(folder / "runs"), "--records", str(folder / "records")]


def test_eval_of_a_row_gives_the_numbers_of_its_record(run, tmp_path):
    recorded = record_of(run, "generation")
    found = scores(ROW, None, "--scale", "smoke", "train.steps=20", *run, extractor=None)
    assert found["metrics"] == recorded.metrics and found["uncertainty"] == recorded.uncertainty
    assert found["protocol"]["samples"]["sha256"] == recorded.protocol["samples"]["sha256"]
    saved = scores(ROW, None, "--scale", "smoke", "train.steps=20", "--save", *copied(run, tmp_path), extractor=None)
    assert "not kept" not in call("verify", saved["ids"]["eval_id"], *places_in(tmp_path))
    other = scores(ROW, None, "--scale", "smoke", "train.steps=20", *run)
    assert "fd_colours" in other["metrics"] and "fd_colours_heldout" in other["metrics"]


def test_verify_reproduces_numbers_and_images(run):
    for task in ("generation", "reconstruction"):
        text = call("verify", record_of(run, task).id, *run)
        assert "equal" in text and "DIFFERENT" not in text
    text = call("verify", record_of(run, "generation").id, "--resample", "60", *run)
    assert "tokens of 100 images" in text and "first 50 images" in text and "DIFF" not in text and "all 200" not in text
    assert "all 200 images" in call("verify", record_of(run, "generation").id, "--resample", "200", *run)


def test_verify_reports_what_has_changed(run, tmp_path):
    places = copied(run, tmp_path)
    record = record_of(places, "generation")
    changed = replace(record, metrics={**record.metrics, "fd_digits": record.metrics["fd_digits"] * 1.0001})
    file = write_record(tmp_path / "elsewhere", changed)
    lines = call("verify", file, *places, code=1).splitlines()
    assert [line for line in lines if "DIFFERENT" in line][0].startswith("fd_digits")
    protocol = {**record.protocol, "num_generated": 50_000, "settings": {**record.protocol["settings"], "is_splits": 9}}
    fewer = {k: v for k, v in record.metrics.items() if k != "is_digits"}
    file = write_record(tmp_path / "other", replace(record, metrics=fewer, protocol=protocol))
    text = call("verify", file, *places, code=1)
    assert [line.split()[0] for line in text.splitlines() if "DIFFERENT" in line] == [
        "is_digits", "num_generated", "settings.is_splits",
    ]  # fmt: skip
    sample = tmp_path / "runs/sample" / record.ids["sample_id"] / "tokens-000000.safetensors"
    tokens = load_file(sample)["tokens"]
    tokens[3, 0, 0] += 1e-6
    save_file({"tokens": tokens}, sample)
    text = call("verify", record.id, "--resample", "1", *places, code=1)
    assert "49 equal" in text and text.count("DIFFERENT") == 1


def test_verify_refuses_missing_and_damaged_files(run, tmp_path):
    places = copied(run, tmp_path)
    record, timed = record_of(places, "generation"), record_of(places, "speed")
    assert "speed record" in mistake("verify", timed.id, *places)
    assert "no record" in mistake("verify", "0" * 12, *places)
    assert "no record" in mistake("verify", "none.json", *places)
    later = {**asdict(record), "spec": {**record.spec, "later": {}}}
    Path("later.json").write_text(json.dumps(later))
    assert "later" in mistake("verify", "later.json", *places)
    Path("older.json").write_text(json.dumps({**asdict(record), "protocol": {}}))
    assert "protocol is incomplete" in mistake("verify", "older.json", *places)
    assert record.id in call("show", "older.json")
    Path("partial.json").write_text(json.dumps({**asdict(record), "protocol": {**record.protocol, "samples": {}}}))
    assert "damaged" in mistake("verify", "partial.json", *places)
    weights = tmp_path / "runs/train" / record.ids["train_id"] / "ema.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert "damaged" in mistake("verify", record.id, "--resample", "1", *places)
    heldout = tmp_path / "runs/extractor" / record.ids["extractor_id"] / "heldout.npz"
    heldout.rename(tmp_path / "heldout.npz")
    assert "its extractor" in mistake("verify", record.id, *places)
    (tmp_path / "heldout.npz").rename(heldout)
    shutil.rmtree(tmp_path / "runs/train" / record.ids["train_id"])
    assert "its train" in mistake("verify", record.id, "--resample", "1", *places)
    shutil.rmtree(tmp_path / "runs/generation" / record.id)
    assert record.id in mistake("verify", record.id, *places)


def test_verify_needs_only_statistics_for_distances(run, tmp_path):
    places = copied(run, tmp_path)
    words = ("--scale", "smoke", "--only", "mar/diff/guided", "train.steps=20", "metrics.keep_features=false")
    record = record_of(places, "generation")
    shutil.rmtree(tmp_path / "runs/generation" / record.id)
    call("run", "table1", *words, "--jobs", "1", *places)
    text = call("verify", record.id, *places)
    assert "only statistics were kept" in text and "DIFFERENT" not in text
    lines = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line}
    assert lines["fd_digits"] == lines["fd_digits_heldout"] == "equal" and lines["is_digits"] == "kept"


def test_verify_of_a_saved_evaluation(photos):
    places = ("--runs", "runs", "--records", "records")
    record = scores(*photos, "--save", *places)
    stored = read_record(Path(f"records/{record['ids']['eval_id']}.json"))
    assert stored.metrics == record["metrics"] and stored.task == "evaluation"
    assert "DIFFERENT" not in call("verify", stored.id, *places)
    assert str(photos[0].parent) not in json.dumps(record), "no paths"


def test_show_prints_what_repeats_a_record(run):
    record = record_of(run, "generation")
    text = call("show", record.id, *run)
    git = record.provenance["git"]
    expected = ["± jackknife", "FD-200 digits", "seeds", "threads", record.protocol["samples"]["sha256"], "spec:"]
    for words in [
        *expected,
        *([git["commit"]] if git else []),
        record.provenance["versions"]["torch"],
        "guidance_scale",
    ]:
        assert words in text, words
    assert "to reproduce it" in call("show", Path(run[3]) / f"{record.id}.json")


def test_compare_rows_and_records(run, tmp_path):
    places = copied(run, tmp_path)
    one, other = record_of(places, "generation"), record_of(places, "generation", guidance=1.0)
    text = call("compare", one.id, other.id, *places[2:])
    assert "fd_digits" in text and "not comparable" not in text
    protocol = {**other.protocol, "num_generated": 100}
    file = write_record(tmp_path / "elsewhere", replace(other, protocol=protocol))
    assert "not comparable: 200 against 100 generated images" in call("compare", one.id, file, *places[2:])
    text = call("compare", ROW, "table1/mar/diff/unguided", "train.steps=20", "--scale", "smoke", *places[2:])
    assert "fd_digits" in text and "The same records" in text
    twin = write_record(tmp_path / "elsewhere", replace(one, ids={**one.ids, "eval_id": "0" * 12}))
    assert "not comparable: the same images on both sides" in call("compare", one.id, twin, *places[2:])
    assert "no row" in mistake("compare", "table1/mar/diff/guide", one.id, "--scale", "smoke", *places[2:])
    assert "no records" in mistake("compare", ROW, one.id, "--scale", "smoke", *places[2:])  # of other steps
    assert "neither" in mistake("compare", "table1", one.id, *places[2:])


def test_neighbours_are_drawn_and_counted(run, tmp_path):
    words = ("--scale", "smoke", "train.steps=20", "--count", "3", "--reports", tmp_path, *run[:2])
    text = call("neighbours", ROW, *words)
    page = tmp_path / "smoke/table1-neighbours-mar-diff-guided.png"
    assert np.asarray(Image.open(page).convert("L")).std() > 10
    share = record_of(run, "generation").metrics["copied_digits"]
    assert f"{share:.1%} of 200 generated images" in text
    assert "a row is needed" in mistake("neighbours", "table1", *words)
