"""Data sets: the split, the views, the crop, and folders of users' images."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar_bench.data import (
    ArrayImages,
    FolderImages,
    apply_view,
    batches,
    centre_crop,
    load_data,
    to_uint8,
    to_unit,
    views,
)
from mar_bench.errors import UserError
from mar_bench.spec import DigitsData, ImageFolderData, MnistData

BUILT_IN = {"digits": (DigitsData(), 1797), "mnist5k": (MnistData(), 5000)}


@pytest.fixture(scope="module", params=BUILT_IN)
def built_in(request):
    spec, count = BUILT_IN[request.param]
    return spec, count, load_data(spec)


def pictures(part: ArrayImages) -> Counter:
    return Counter(p.tobytes() for p in part.pixels)


# --- built-in data sets ---------------------------------------------------------------------------------


def test_images_are_as_the_spec_says(built_in):
    spec, count, data = built_in
    assert (len(data.train), len(data.heldout)) == (count - spec.heldout, spec.heldout)
    images = data.train.get([3, 0, 3])
    assert images.dtype == torch.uint8 and images.shape == (3, 1, spec.image_size, spec.image_size)
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert (data.train.pixels.min(), data.train.pixels.max()) == (0, 255)
    assert data.train.labels.dtype == torch.int64 and set(data.train.labels.tolist()) == set(range(10))


def test_a_batch_is_a_copy(built_in):
    _, _, data = built_in
    data.train.get(range(2)).fill_(9)
    assert data.train.pixels[:2].max() == 255


def test_held_out_images_are_balanced_and_in_none_of_the_training(built_in):
    spec, count, data = built_in
    assert torch.equal(data.heldout.labels.bincount(), torch.full((10,), spec.heldout // 10))
    train, heldout = pictures(data.train), pictures(data.heldout)
    assert len(train | heldout) > count - 5 and not train & heldout


def test_the_split_is_pinned(built_in):
    """A picture that moves to the other part makes every record of the data set wrong."""
    spec, _, data = built_in
    found = hashlib.sha256(data.heldout.pixels.tobytes() + data.heldout.labels.numpy().tobytes()).hexdigest()[:12]
    assert found == {"digits": "e04d97a243a5", "mnist5k": "d2fbabbf4a67"}[spec.kind]


def test_the_split_is_the_same_every_time_and_fewer_held_out_are_some_of_the_same():
    one, other, fewer = (load_data(DigitsData(heldout=n)) for n in (300, 300, 150))
    assert np.array_equal(one.train.pixels, other.train.pixels) and torch.equal(one.train.labels, other.train.labels)
    assert pictures(fewer.heldout) <= pictures(one.heldout) and pictures(one.train) <= pictures(fewer.train)


def test_mnist_is_padded_to_32_pixels(built_in):
    spec, _, data = built_in
    pixels = data.train.pixels
    assert spec.kind != "mnist5k" or not (pixels[..., :2, :].any() or pixels[..., -2:].any())


@pytest.mark.parametrize("heldout", [7, 13, 299])
def test_any_number_is_held_out_as_evenly_as_can_be(heldout):
    counts = load_data(DigitsData(heldout=heldout)).heldout.labels.bincount(minlength=10)
    assert counts.sum() == heldout and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("heldout", [1796, 1797, 5000])
def test_something_is_left_to_train_on(heldout):
    with pytest.raises(UserError, match="data.heldout"):
        load_data(DigitsData(heldout=heldout))


def test_images_grow_by_whole_pixels():
    small, large = load_data(DigitsData(image_size=8)).train, load_data(DigitsData(image_size=24)).train
    assert np.array_equal(large.pixels, small.pixels.repeat(3, axis=2).repeat(3, axis=3))
    with pytest.raises(UserError, match="data.image_size 20 must be 16 or another multiple of 8"):
        load_data(DigitsData(image_size=20))


# --- pixels and views -----------------------------------------------------------------------------------


def test_every_grey_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(levels)
    assert (unit[0], unit[-1]) == (-1, 1)
    assert torch.equal(to_uint8(unit), levels)


def test_what_lies_outside_is_clipped_and_the_rest_rounded():
    values = torch.tensor([-3.0, -1.01, 1.01, 7.0, 0.0038, 0.0040])
    assert to_uint8(values).tolist() == [0, 0, 255, 255, 128, 128]
    assert to_uint8(torch.tensor([1 / 127.5 - 1 - 0.0035, 1 / 127.5 - 1 + 0.0035])).tolist() == [1, 1]


def test_views_begin_with_the_image_itself():
    assert views(DigitsData()) == [(0, 0, False)]
    assert views(ImageFolderData()) == [(0, 0, False), (0, 0, True)]
    nine = views(MnistData())
    assert len(nine) == len(set(nine)) == 9 and nine[0] == (0, 0, False)
    assert {(abs(dx) + abs(dy)) for dx, dy, _ in nine[1:5]} == {1}
    both = views(MnistData(flip=True, shift=2))
    assert len(both) == len(set(both)) == 50 and not any(flip for _, _, flip in both[:25])


def slow_view(images: torch.Tensor, dx: int, dy: int, flip: bool) -> torch.Tensor:
    """Pixel by pixel: dx to the right, dy down, of the mirrored image."""
    height, width = images.shape[-2:]
    out = torch.empty_like(images)
    for y in range(height):
        for x in range(width):
            from_y, from_x = min(max(y - dy, 0), height - 1), min(max(x - dx, 0), width - 1)
            out[..., y, x] = images[..., from_y, width - 1 - from_x if flip else from_x]
    return out


def test_views_against_a_slow_loop():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    for view in views(MnistData(flip=True, shift=2)) + [(9, -9, True)]:
        before = images.clone()
        assert torch.equal(apply_view(images, view), slow_view(images, *view)), view
        assert torch.equal(images, before)


def test_batches_are_consecutive_and_cover_all():
    assert [list(b) for b in batches(5, 2)] == [[0, 1], [2, 3], [4]]
    assert batches(0) == [] and [len(b) for b in batches(501)] == [250, 250, 1]


# --- folders --------------------------------------------------------------------------------------------


SIZES = ((64, 64), (65, 64), (64, 200), (1000, 70), (129, 128), (127, 300), (63, 65), (9, 9), (1, 1), (3, 99), (400, 5))


@pytest.mark.parametrize("size", SIZES)
def test_crops_have_their_size(size):
    """Of images larger and smaller, long and thin."""
    pixels = np.asarray(centre_crop(Image.new("L", size, 7), 64))
    assert pixels.shape == (64, 64) and (pixels == 7).all()


def test_an_image_of_the_right_size_is_left_alone():
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), 64)), pixels)


def test_the_crop_is_of_the_centre():
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = np.arange(64).reshape(8, 8)
    for image in (pixels, pixels.T):
        middle = np.asarray(centre_crop(Image.fromarray(image), 8))
        assert np.array_equal(middle, np.arange(64).reshape(8, 8) if image is pixels else np.arange(64).reshape(8, 8).T)


def test_a_large_image_is_halved_by_averaging():
    """ADM's first step: twice as large is a box filter and nothing else."""
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (16, 16), dtype=np.uint8)
    means = pixels.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(np.asarray(centre_crop(Image.fromarray(pixels), 8)) - means).max() <= 1


def made_up_folder(root: Path, classes=("ape", "bee"), parts=("train", "val"), count: int = 3) -> Path:
    for part in parts:
        for c, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9 + i, 8), (100 * c, 10 * i, 5)).save(root / part / name / f"{i}.png")
    return root


def folder_spec(folder: Path, **changes) -> ImageFolderData:
    return ImageFolderData(**{"root": str(folder), "image_size": 8, "num_classes": 2, **changes})


def test_a_folder_a_class(tmp_path):
    data = load_data(folder_spec(made_up_folder(tmp_path)))
    assert (len(data.train), len(data.heldout)) == (6, 6)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.train.labels.dtype == torch.int64
    images = data.train.get([5, 1])
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.uint8
    assert images[:, :, 0, 0].tolist() == [[100, 20, 5], [0, 10, 5]]
    grey = load_data(folder_spec(tmp_path, channels=1)).train.get(np.array([0]))
    assert grey.shape == (1, 1, 8, 8)


def test_other_files_are_passed_over(tmp_path):
    made_up_folder(tmp_path)
    (tmp_path / "train/ape/notes.txt").write_text("x")
    (tmp_path / "train/ape/._0.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/README").write_text("x")
    assert len(load_data(folder_spec(tmp_path)).train) == 6


def corrupt(png: Path) -> None:
    content = bytearray(png.read_bytes())
    content[len(content) // 2] ^= 0xFF
    png.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"not an image"),
        lambda p: p.write_bytes(p.read_bytes()[:50]),
        corrupt,
    ],
    ids=["empty", "text", "truncated", "flipped bits"],
)
def test_a_broken_image_is_named(spoil, tmp_path):
    made_up_folder(tmp_path)
    spoil(tmp_path / "train/bee/1.png")
    data = load_data(folder_spec(tmp_path))
    with pytest.raises(UserError, match=r"train/bee/1\.png: not readable as an image .*; remove or replace it"):
        data.train.get([4])


def test_an_image_that_is_too_large_to_open_is_named(tmp_path, monkeypatch):
    data = load_data(folder_spec(made_up_folder(tmp_path)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"0\.png: not readable as an image"):
        data.train.get([0])


def no_val(root: Path) -> None:
    (root / "val").rename(root / "validation")


def empty_class(root: Path) -> None:
    for file in (root / "train/bee").iterdir():
        file.rename(file.with_suffix(".gif"))


def other_class(root: Path) -> None:
    (root / "val/bee").rename(root / "val/wasp")


@pytest.mark.parametrize(
    ("spoil", "changes", "hints"),
    [
        (lambda root: None, {"root": None}, ("data.root is not set",)),
        (lambda root: None, {"root": "/nowhere"}, ("/nowhere/train", "found 0 class folders")),
        (lambda root: None, {"num_classes": 3}, ("found 2 class folders", "data.num_classes is 3", "train/<class>")),
        (no_val, {}, ("val", "found 0 class folders")),
        (empty_class, {}, ("train/bee", "no image", ".png")),
        (other_class, {}, ("'bee'", "one of them only")),
    ],
)
def test_a_folder_that_is_not_one_of_images(spoil, changes, hints, tmp_path):
    spoil(made_up_folder(tmp_path))
    with pytest.raises(UserError) as caught:
        load_data(folder_spec(tmp_path, **changes))
    for hint in hints:
        assert hint in str(caught.value)


def test_images_are_read_when_asked_for(tmp_path):
    data = load_data(folder_spec(made_up_folder(tmp_path)))
    assert isinstance(data.train, FolderImages)
    (tmp_path / "train/ape/0.png").unlink()
    assert data.train.get([1]).shape == (1, 3, 8, 8)
