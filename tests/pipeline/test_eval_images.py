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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import nn
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run, reconstruction_run
from mar_bench.metrics import features
from mar_bench.pipeline.store import SEEN, mark_done
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
    return json.loads(call("eval", samples, *against, *chosen, "--json", *words))


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
    metrics = ("FD-60 colours", "IS-60 colours", "KID", "Precision", "Recall", "copied")
    for words in ("num_images 60, size [64, 64], channels 3", *metrics):
        assert words in text, words
    assert "labels unknown" in text and "numbers in file names" in text and "note: 60 images" in text


def test_a_built_reference_names_the_extractor(tmp_path, photos):
    call("reference", "build", photos[1], tmp_path / "real.npz", "--extractor", "colours")
    assert scores(photos[0], tmp_path / "real.npz", extractor=None)["metrics"] == scores(*photos)["metrics"]


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


@pytest.fixture
def run(table1) -> list[str]:
    return places_in(table1)


def places_in(folder: Path) -> list[str]:
    return ["--runs", str(folder / "runs"), "--records", str(folder / "records")]


def record_of(run: list[str], task: str, row: str = "mar/diff/guided") -> Record:
    spec = load_experiment("table1", "smoke").rows[row]
    chosen = generation_run(row, spec) if task == "generation" else reconstruction_run(row, spec)
    return read_records(Path(run[3]))[chosen.id]


@pytest.fixture
def copied(table1, tmp_path) -> list[str]:
    """What the row has, to be damaged."""
    record = read_records(table1 / "records")[record_of(places_in(table1), "generation").id]
    shutil.copytree(table1 / "records", tmp_path / "records")
    for kind in ("tokenizer", "train", "extractor", "sample"):
        stage = Path(kind, record.ids[f"{kind}_id"])
        shutil.copytree(table1 / "runs" / stage, tmp_path / "runs" / stage)
    shutil.copytree(table1 / "runs/generation" / record.id, tmp_path / "runs/generation" / record.id)
    return places_in(tmp_path)


def test_eval_of_a_row_gives_the_numbers_of_its_record(copied, tmp_path):
    recorded = record_of(copied, "generation")
    saved = scores(ROW, None, "--scale", "smoke", "--save", *copied, extractor=None)
    assert saved["metrics"] == recorded.metrics and saved["uncertainty"] == recorded.uncertainty
    assert saved["protocol"]["samples"]["sha256"] == recorded.protocol["samples"]["sha256"]
    assert "not kept" not in call("verify", saved["ids"]["eval_id"], *copied)
    other = scores(ROW, None, "--scale", "smoke", *copied)
    assert "fd_colours" in other["metrics"] and "fd_colours_heldout" in other["metrics"]


def test_verify_reproduces_numbers_and_images(run):
    for task in ("generation", "reconstruction"):
        text = call("verify", record_of(run, task).id, *run)
        assert "equal" in text and "DIFFERENT" not in text
    text = call("verify", record_of(run, "generation").id, "--resample", "60", *run)
    (tokens,) = (line.split() for line in text.splitlines() if "kept tokens" in line)
    assert tokens[-3:] == ["100", "100", "equal"]
    assert "first 50 images" in text and "DIFFERENT" not in text and "all 200" not in text
    assert "all 200 images" in call("verify", record_of(run, "generation").id, "--resample", "200", *run)


def test_verify_reports_what_has_changed(copied, tmp_path):
    record = record_of(copied, "generation")
    changed = replace(record, metrics={**record.metrics, "fd_digits": record.metrics["fd_digits"] * 1.0001})
    file = write_record(tmp_path, changed)
    assert different(call("verify", file, *copied, code=1)) == ["fd_digits"]
    protocol = {**record.protocol, "num_generated": 50_000, "settings": {**record.protocol["settings"], "is_splits": 9}}
    fewer = {k: v for k, v in record.metrics.items() if k != "is_digits"}
    file = write_record(tmp_path, replace(record, metrics=fewer, protocol=protocol))
    assert different(call("verify", file, *copied, code=1)) == ["num_generated", "settings.is_splits", "is_digits"]
    before = {k: v for k, v in record.protocol["settings"].items() if not k.startswith("mind_")}
    metrics, doubt = (
        {k: v for k, v in of.items() if k != "mind_digits"} for of in (record.metrics, record.uncertainty)
    )
    older = replace(record, metrics=metrics, uncertainty=doubt, protocol={**record.protocol, "settings": before})
    assert "older than MIND" in call("verify", write_record(tmp_path, older), *copied)
    sample = tmp_path / "runs/sample" / record.ids["sample_id"] / "tokens-000000.safetensors"
    tokens = load_file(sample)["tokens"]
    tokens[3, 0, 0] += 1e-6
    save_file({"tokens": tokens}, sample)
    text = call("verify", record.id, "--resample", "1", *copied, code=1)
    assert "49" in text and different(text) == ["images"]


def different(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if "DIFFERENT" in line]


def test_verify_refuses_missing_and_damaged_files(copied, run, tmp_path):
    record = record_of(copied, "generation")
    timed = next(r for r in read_records(Path(run[3])).values() if r.task == "speed")
    assert "speed record" in mistake("verify", timed.id, *copied)
    for unknown in ("0" * 12, "none.json"):
        assert "no record" in mistake("verify", unknown, *copied)
    for change, hint in (
        ({"spec": {**record.spec, "later": {}}}, "later"),
        ({"protocol": {}}, "protocol is incomplete"),
        ({"protocol": {**record.protocol, "samples": {}}}, "damaged"),
    ):
        Path("changed.json").write_text(json.dumps({**asdict(record), **change}))
        assert hint in mistake("verify", "changed.json", "--resample", "1", *copied)
    Path("older.json").write_text(json.dumps({**asdict(record), "protocol": {}}))
    assert record.id in call("show", "older.json")
    weights = tmp_path / "runs/train" / record.ids["train_id"] / "ema.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert "damaged" in mistake("verify", record.id, "--resample", "1", *copied)
    shutil.rmtree(weights.parent)
    assert "its train" in mistake("verify", record.id, "--resample", "1", *copied)
    (tmp_path / "runs/extractor" / record.ids["extractor_id"] / "heldout.npz").unlink()
    assert "its extractor" in mistake("verify", record.id, *copied)
    shutil.rmtree(tmp_path / "runs/generation" / record.id)
    assert record.id in mistake("verify", record.id, *copied)


def test_verify_needs_only_statistics_for_distances(copied, tmp_path):
    record = record_of(copied, "generation")
    folder = tmp_path / "runs/generation" / record.id
    (folder / SEEN).unlink()
    mark_done(folder, 1.0)
    text = call("verify", record.id, *copied)
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
    one, other = record_of(run, "generation"), record_of(run, "generation", "mar/diff/unguided")
    text = call("compare", one.id, other.id, *run[2:])
    assert "fd_digits" in text and "not comparable" not in text
    file = write_record(tmp_path, replace(other, protocol={**other.protocol, "num_generated": 100}))
    assert "not comparable: 200 against 100 generated images" in call("compare", one.id, file, *run[2:])
    text = call("compare", ROW, "table1/mar/diff/unguided", "--scale", "smoke", *run[2:])
    assert "fd_digits" in text and "The same records" in text
    twin = write_record(tmp_path, replace(one, ids={**one.ids, "eval_id": "0" * 12}))
    assert "not comparable: the same images on both sides" in call("compare", one.id, twin, *run[2:])
    assert "no row" in mistake("compare", "table1/mar/diff/guide", one.id, "--scale", "smoke", *run[2:])
    assert "no records" in mistake("compare", ROW, one.id, "--scale", "smoke", "train.steps=3", *run[2:])
    assert "neither" in mistake("compare", "table1", one.id, *run[2:])


@pytest.mark.parametrize("command", ["compare", "show", "verify"])
def test_a_file_named_after_another_record_is_refused(command, run, tmp_path):
    one, other = record_of(run, "generation"), record_of(run, "generation", "mar/diff/unguided")
    write_record(tmp_path, one).rename(tmp_path / f"{other.id}.json")
    words = [other.id, one.id] if command == "compare" else [other.id]
    assert f"holds record {one.id}" in mistake(command, *words, "--records", tmp_path)
    assert "holds record" in mistake("run", "table1", "--scale", "smoke", *run[:2], "--records", tmp_path)


def test_images_are_not_decoded_by_another_tokenizer_than_they_were_drawn_for(copied, tmp_path):
    folder = tmp_path / "runs/tokenizer" / record_of(copied, "generation").ids["tokenizer_id"]
    (file,) = folder.glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    mark_done(folder, 1.0)
    hint = "its tokenizer has been made again since, with another result"
    assert hint in mistake("eval", ROW, "--scale", "smoke", *copied)
    assert hint in mistake("neighbours", ROW, "--scale", "smoke", "--reports", tmp_path, *copied[:2])


def test_neighbours_do_not_trust_damaged_features(copied, tmp_path):
    record, words = record_of(copied, "generation"), ("--scale", "smoke", "--reports", tmp_path, *copied[:2])
    file = tmp_path / "runs/generation" / record.id / SEEN
    with safe_open(file, "pt") as kept:
        about, tensors = kept.metadata(), {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
    save_file({**tensors, "features": 0 * tensors["features"]}, file, about)
    assert f"{record.metrics['copied_digits']:.1%} of 200 generated images" in call("neighbours", ROW, *words)


def test_neighbours_are_drawn_and_counted(run, tmp_path):
    words = ("--scale", "smoke", "--count", "3", "--reports", tmp_path, *run[:2])
    text = call("neighbours", ROW, *words)
    page = tmp_path / "smoke/table1-neighbours-mar-diff-guided.png"
    assert np.asarray(Image.open(page).convert("L")).std() > 10
    share = record_of(run, "generation").metrics["copied_digits"]
    assert f"{share:.1%} of 200 generated images" in text
    assert "a row is needed" in mistake("neighbours", "table1", *words)
