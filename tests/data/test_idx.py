"""Data in MNIST's file format: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run
from mar_bench.config.parse import as_tree, parse
from mar_bench.config.spec import IdxData, RunSpec
from mar_bench.data.datasets import load_data
from mar_bench.data.idx import MOST_IMAGES, read_idx
from mar_bench.pipeline.request import preflight
from tests.measuring import refusal, says

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = STANDARD = [
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
]


def packed(array: np.ndarray) -> bytes:
    """An array in the format, whose header is big-endian."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def pixels(count: int) -> np.ndarray:
    return np.arange(count * 28 * 28).reshape(count, 28, 28) % 251


def written(root: Path, names: list[str] = STANDARD, first: int = 0) -> Path:
    """Six training and four test images of two classes, the labels beginning at ``first``."""
    root.mkdir(exist_ok=True)
    for name, count in zip(names, (6, 6, 4, 4), strict=True):
        content = packed(pixels(count) if "images" in name else np.arange(count) % 2 + first)
        (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return root


def spec(root: Path, **changes) -> IdxData:
    return IdxData(**{"root": str(root), "num_classes": 2, **changes})


def test_images_are_padded_and_split_as_published(tmp_path):
    data = load_data(spec(written(tmp_path)))
    assert (len(data.train), len(data.heldout)) == (6, 4) and data.train.labels.tolist() == [0, 1] * 3
    image = data.train.get([5])[0, 0].numpy()
    assert np.array_equal(image[2:30, 2:30], pixels(6)[5]) and image.sum() == pixels(6)[5].sum()
    fewer = load_data(spec(tmp_path, heldout=2, image_size=64)).heldout
    assert sorted(fewer.labels.tolist()) == [0, 1] and fewer.get([0]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("form", ["{}.gz", "{}"])
def test_names_of_unpackers_and_gzip_by_content(form, tmp_path):
    """Some unpackers write train-images.idx3-ubyte; a .gz may have been unpacked without being renamed."""
    written(tmp_path, [form.format(name.replace("-idx", ".idx")) for name in STANDARD])
    one = tmp_path / form.format(LABELS.replace("-idx", ".idx"))
    one.write_bytes(packed(np.arange(6) % 2) if form.endswith(".gz") else gzip.compress(one.read_bytes()))
    assert load_data(spec(tmp_path)).train.labels.tolist() == [0, 1] * 3


def test_emnist_is_turned_upright_and_its_name_chooses_the_split(tmp_path):
    for split, first in (("letters", 1), ("digits", 0)):
        names = [f"emnist-{split}-{name.replace('t10k', 'test')}.gz" for name in STANDARD]
        written(tmp_path, names, first)
        train, test = read_idx(spec(tmp_path, name=f"emnist-{split}"))
        assert np.array_equal(train.pixels[3, 2:30, 2:30], pixels(6)[3].T)
        assert train.labels.tolist() == [0, 1] * 3 and test.labels.tolist() == [0, 1] * 2
    message = refusal(read_idx, spec(tmp_path))
    assert says(message, tmp_path / IMAGES, "data.name to emnist-digits or emnist-letters")
    assert says(
        refusal(read_idx, spec(tmp_path, name="emnist-byclass")), "emnist-byclass-train-images", "emnist-digits"
    )


def of(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "spoil", "changes", "hints"),
    [
        (IMAGES, of(lambda b: b[:-1]), {}, ("header says 4704 bytes, it has only 4703",)),
        (IMAGES, of(lambda b: b + b"x"), {}, ("4704 bytes, it has more",)),
        (IMAGES, of(lambda b: b[:9]), {}, ("cut within its header",)),
        (IMAGES, of(lambda b: b""), {}, ("begins with nothing, not 00000803",)),
        (IMAGES, of(lambda b: b"<htm" + b), {}, ("begins with 3c68746d", "copy or fetch")),
        (TEST_LABELS, of(lambda b: packed(pixels(4))), {}, ("begins with 00000803, not 00000801",)),
        (IMAGES, of(lambda b: gzip.compress(b)[:-20]), {}, ("cut or damaged gzip",)),
        (IMAGES, of(lambda b: gzip.compress(b)[:99] + b"xyz" + gzip.compress(b)[102:]), {}, ("gzip",)),
        (IMAGES, of(lambda b: b[:4] + (MOST_IMAGES + 1).to_bytes(4, "big") + b[8:]), {}, ("header says 2097153 x 28",)),
        (IMAGES, of(lambda b: packed(np.zeros((0, 28, 28)))), {}, ("header says 0 x 28",)),
        (IMAGES, of(lambda b: packed(np.zeros((6, 32, 32)))), {}, ("32 x 32 pixels, not 28 x 28",)),
        (LABELS, of(lambda b: packed(np.arange(5))), {}, ("5 labels for the 6 images of train-images",)),
        (TEST_LABELS, of(lambda b: packed(np.array([0, 1, 2, 0]))), {}, ("label 2", "data.num_classes 2")),
        (TEST_LABELS, of(lambda b: packed(np.zeros(4))), {}, ("no image of class 1",)),
        (LABELS, lambda _: None, {"num_classes": 3}, ("no image of class 2",)),
        (TEST_LABELS, Path.unlink, {}, ("no such file", "data.root must hold the four files")),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_file(name, spoil, changes, hints, tmp_path):
    spoil(written(tmp_path) / name)
    assert says(refusal(read_idx, spec(tmp_path, **changes)), tmp_path / name, *hints)


def test_without_a_folder_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MAR_BENCH_WEIGHTS", str(tmp_path))
    assert says(refusal(read_idx, IdxData()), tmp_path / "fashion-mnist", "data.root", "mar-bench fetch fashion-mnist")
    (tmp_path / "fashion-mnist").mkdir()
    assert says(refusal(read_idx, IdxData()), tmp_path / "fashion-mnist" / IMAGES, "no such file")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_commands_refuse_bad_files_before_any_work(command, tmp_path):
    root, runs = written(tmp_path / "data"), tmp_path / "runs"
    (root / LABELS).write_bytes(packed(np.arange(5)))
    words = [command, "table1", "--scale", "fashion", f"data.root={root}", "--runs", runs, "--records", runs]
    result = CliRunner().invoke(app, [*map(str, words), "data.num_classes=2"])
    assert says(str(result.exception), root / LABELS, "5 labels for the 6 images") and not runs.exists()


@pytest.mark.parametrize("setting", ["train.batch_size=7", "train.images=7", "metrics.kid_subset_size=5"])
def test_settings_that_need_more_images_are_refused_before_any_work(setting, tmp_path):
    sizes = {"train.batch_size": 4, "tokenizer.batch_size": 4, "metrics.is_splits": 2, "metrics.kid_subset_size": 4}
    changed = {**sizes, **dict([setting.split("=")])}
    row = load_experiment("table1", "fashion").rows["mar/diff/unguided"]
    tree = as_tree(replace(row, data=spec(written(tmp_path))))
    for key, value in changed.items():
        block, name = key.split(".")
        tree[block][name] = int(value)
    tree["metrics"]["extractor"]["batch_size"] = 4
    key, value = setting.split("=")
    assert says(refusal(preflight, [generation_run("r", parse(RunSpec, tree))]), f"{key} {value} is more than the")
