"""Data sets: the split, the views, the crop, and folders of users' images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar_bench.config.spec import DigitsData, ImageFolderData, MnistData
from mar_bench.data.datasets import ArrayImages, apply_view, batches, load_data, to_uint8, to_unit, views
from mar_bench.data.images import centre_crop, read_image
from mar_bench.utils.errors import UserError
from tests.measuring import png, refusal, says

BUILT_IN = {"digits": (DigitsData(), 1797), "mnist5k": (MnistData(), 5000)}


@pytest.fixture(scope="module", params=BUILT_IN)
def built_in(request):
    spec, count = BUILT_IN[request.param]
    return spec, count, load_data(spec)


def pictures(part: ArrayImages) -> Counter:
    return Counter(p.tobytes() for p in part.pixels)


def test_held_out_images_are_balanced_and_disjoint_from_training(built_in):
    spec, count, data = built_in
    assert (len(data.train), len(data.heldout)) == (count - spec.heldout, spec.heldout)
    assert data.train.get([3, 0]).shape == (2, 1, spec.image_size, spec.image_size)
    assert (data.train.pixels.min(), data.train.pixels.max()) == (0, 255)
    assert torch.equal(data.heldout.labels.bincount(), torch.full((10,), spec.heldout // 10))
    train, heldout = pictures(data.train), pictures(data.heldout)
    assert len(train | heldout) > count - 5 and not train & heldout


def test_the_split_is_pinned(built_in):
    """A picture that moves to the other part makes every record of the data set wrong."""
    spec, _, data = built_in
    found = hashlib.sha256(data.heldout.pixels.tobytes() + data.heldout.labels.numpy().tobytes()).hexdigest()[:12]
    assert found == {"digits": "e04d97a243a5", "mnist5k": "d2fbabbf4a67"}[spec.kind]


def test_fewer_held_out_images_are_some_of_the_same_and_balanced_as_well_as_possible():
    whole = pictures(load_data(DigitsData()).heldout)
    for count in (7, 299):
        heldout = load_data(DigitsData(heldout=count)).heldout
        counts = heldout.labels.bincount(minlength=10)
        assert pictures(heldout) <= whole and counts.sum() == count and counts.max() - counts.min() <= 1


def test_images_grow_by_whole_pixels():
    small, large = load_data(DigitsData(image_size=8)).train, load_data(DigitsData(image_size=24)).train
    assert np.array_equal(large.pixels, small.pixels.repeat(3, axis=2).repeat(3, axis=3))
    with pytest.raises(UserError, match="data.image_size 20 must be a multiple of 8"):
        load_data(DigitsData(image_size=20))


def test_every_grey_level_comes_back_and_others_are_clipped_and_rounded():
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_unit(levels)[[0, -1]].tolist() == [-1, 1] and torch.equal(to_uint8(to_unit(levels)), levels)
    values = torch.tensor([-3.0, -1.01, 1.01, 7.0, 0.0038, 0.0040, 1 / 127.5 - 1 - 0.0035, 1 / 127.5 - 1 + 0.0035])
    assert to_uint8(values).tolist() == [0, 0, 255, 255, 128, 128, 1, 1]


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


@pytest.mark.parametrize("size", [(65, 64), (1000, 70), (127, 300), (63, 65), (1, 1), (3, 99)])
def test_crops_have_their_size(size):
    """Of images larger and smaller, long and thin."""
    pixels = np.asarray(centre_crop(Image.new("L", size, 7), 64))
    assert pixels.shape == (64, 64) and (pixels == 7).all()


def test_the_crop_is_of_the_centre():
    pixels, middle = np.zeros((8, 24), dtype=np.uint8), np.arange(64, dtype=np.uint8).reshape(8, 8)
    pixels[:, 8:16] = middle
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels), 8)), middle)
    assert np.array_equal(np.asarray(centre_crop(Image.fromarray(pixels.T), 8)), middle.T)


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
    made_up_folder(tmp_path)
    (tmp_path / "train/.cache").mkdir()
    for name in ("train/ape/notes.txt", "train/ape/._0.png", "train/README"):  # ignored
        (tmp_path / name).write_bytes(b"x")
    data = load_data(folder_spec(tmp_path))
    assert (len(data.train), len(data.heldout)) == (6, 6)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.train.labels.dtype == torch.int64
    images = data.train.get([5, 1])
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.uint8
    assert images[:, :, 0, 0].tolist() == [[100, 20, 5], [0, 10, 5]]
    grey = load_data(folder_spec(tmp_path, channels=1)).train.get(np.array([0]))
    assert grey.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("move", "changes", "hints"),
    [
        (None, {"root": None}, ("data.root is not set",)),
        (None, {"root": "/nowhere"}, ("/nowhere/train", "found 0 class folders")),
        (None, {"num_classes": 3}, ("found 2 class folders", "data.num_classes is 3", "train/<class>/<image>")),
        (("train/bee/*.png", ".txt"), {}, ("train/bee", "no image")),
        (("val/bee", ".other"), {}, ("'bee'", "one of them only")),
    ],
)
def test_a_folder_that_is_not_one_of_images(move, changes, hints, tmp_path):
    made_up_folder(tmp_path)
    for path in list(tmp_path.glob(move[0])) if move else ():
        path.rename(path.with_suffix(move[1]))
    assert says(refusal(load_data, folder_spec(tmp_path, **changes)), *hints)


OTHERS = {"a.tif": "TIFF", "b.TIFF": "TIFF", "c.gif": "GIF", "d.ppm": "PPM", "e.jfif": "JPEG", "f.jpe": "JPEG",
          "g": "PNG", "h.dat": "JPEG", "i.JPG": "JPEG", "j.avif": "AVIF", "k.jp2": "JPEG2000"}  # fmt: skip


def test_images_count_under_any_name_and_the_rest_is_named(tmp_path):
    folder = made_up_folder(tmp_path) / "train/bee"
    for name, form in OTHERS.items():
        Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / name, form)
    for name in (".DS_Store", "Thumbs.db", "README", "labels.csv"):
        (folder / name).write_bytes(b"P5 is no image")
    (tmp_path / "train/notes.txt").touch()
    train = load_data(folder_spec(tmp_path)).train
    assert train.names[3:] == [f"bee/{name}" for name in sorted([*OTHERS, "0.png", "1.png", "2.png"])]
    found = train.get([train.names.index(f"bee/{name}") for name in OTHERS])
    assert (found.int() - 9).abs().max() <= 2, "lossy formats"
    assert train.counts == (
        f"{tmp_path}/train: 17 images of 22 files, left out: notes.txt, bee/.DS_Store, bee/README, bee/Thumbs.db, "
        "bee/labels.csv"
    )


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("train/ape/more/9.png", ("ape/more", "move")),
        ("train/9.png", ("9.png", "no class")),
        ("train/ape/9.heic", ("9.heic", "not read")),
    ],
)
def test_images_that_would_be_left_out_are_refused(name, hints, tmp_path):
    path = made_up_folder(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((tmp_path / "val/ape/0.png").read_bytes())
    assert says(refusal(load_data, folder_spec(tmp_path)), *hints)


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (np.full((4, 4), 0.5, np.float32), "x.tif"),
        (np.full((4, 4), 2**30, np.int32), "x.tif"),
        (np.full((4, 4), 2**15, np.uint16), "x.tif"),
        (np.full((4, 4), 2**15, np.uint16), "x.pgm"),
        (np.full((4, 4), 0.5, np.float32), "x.pfm"),
    ],
)
def test_greys_of_unknown_range_are_refused(pixels, name, tmp_path):
    Image.fromarray(pixels).save(tmp_path / name)
    assert says(refusal(read_image, tmp_path / name, 4, 3), name, "8 bits")


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp", "x.tif"])
def test_animations_and_several_pages_are_refused(name, tmp_path):
    one, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    one.save(tmp_path / name, save_all=True, append_images=[other])
    assert says(refusal(read_image, tmp_path / name, 4, 3), name, "animated")
    one.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[other])  # of phones, not animated
    assert read_image(tmp_path / "x.jpg", 4, 3)[0].min() > 250


def upper_half(mode: str, colour, other, **options) -> tuple[Image.Image, dict]:
    image = Image.new(mode, (4, 4), colour)
    image.paste(other, (0, 0, 4, 2))
    return image, options


@pytest.mark.parametrize(
    ("made", "above", "below"),
    [
        (upper_half("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), [255] * 3, [255, 0, 0]),
        (upper_half("RGBA", (255, 0, 0, 255), (0, 0, 0, 128)), [127] * 3, [255, 0, 0]),
        (upper_half("RGB", (255, 0, 0), (1, 2, 3), transparency=(1, 2, 3)), [255] * 3, [255, 0, 0]),
        (upper_half("L", 7, 200, transparency=200), [255] * 3, [7] * 3),
        (upper_half("P", 7, 1, transparency=1), [255] * 3, [0] * 3),
    ],
)
def test_transparency_is_mixed_with_white(made, above, below, tmp_path):
    image, options = made
    if image.mode == "P":
        image.putpalette([9] * 6 + [0] * 18)
    image.save(tmp_path / "x.png", **options)
    pixels = read_image(tmp_path / "x.png", 4, 3)
    assert pixels[:, 0, 0].tolist() == above and pixels[:, 3, 0].tolist() == below
    assert read_image(tmp_path / "x.png", 4, 1)[0, 0, 0] == above[0]


def test_no_colour_bleeds_out_of_what_is_transparent(tmp_path):
    """Composited before it is made smaller: between red and transparent black lies pink, nothing darker."""
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, 21:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png", 8, 3)[0] == 255).all()


def test_of_sixteen_bits_of_colour_the_high_byte_is_kept_and_grey_is_refused(tmp_path):
    line = b"\0" + np.array([0x12FF, 0x8000, 0xFF01] * 2, dtype=">u2").tobytes()
    (tmp_path / "x.png").write_bytes(png(2, 2, 16, 2, line * 2))
    assert read_image(tmp_path / "x.png", 2, 3)[:, 1, 1].tolist() == [0x12, 0x80, 0xFF]
    (tmp_path / "x.png").write_bytes(png(2, 2, 16, 0, line[:5] * 2))
    assert says(refusal(read_image, tmp_path / "x.png", 2, 3), "x.png", "16-bit")


def test_other_modes_and_formats_become_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "a gif.png", format="GIF", transparency=0)
    Image.new("RGB", (4, 4), "white").save(tmp_path / "lossless.webp", lossless=True)
    for path in tmp_path.iterdir():
        assert (read_image(path, 4, 3) == 255).all() and (read_image(path, 4, 1) == 255).all(), path


def test_an_orientation_is_not_applied(tmp_path):
    """As in ADM and the official code, whose statistics and latents are compared with."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert (read_image(tmp_path / "x.png", 8, 3)[:, :4] == 255).all()


def cut(path: Path) -> None:
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-900])


BAD = {
    "a-empty.png": lambda p: p.write_bytes(b""),
    "b-cut.png": cut,
    "c-cut.jpg": cut,
    "d-text.jpg": lambda p: p.write_text("<html>404</html>"),
    "e-bomb.png": lambda p: p.write_bytes(png(30_000, 30_000, 8, 2, b"")),
    "f-strip.png": lambda p: Image.new("L", (1, 1200)).save(p),
    "g-loop.png": lambda p: p.symlink_to(p.name),
    "h-broken.png": lambda p: p.symlink_to("nowhere.png"),
    "j-pipe.png": lambda p: os.mkfifo(p),
    "k-script.png": lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "l-locked.png": lambda p: p.write_bytes(b"only its owner may read it"),
}


def test_bad_files_of_a_batch_are_all_named(tmp_path, monkeypatch):
    folder = made_up_folder(tmp_path) / "train/ape"
    for name, spoil in BAD.items():
        spoil(folder / name)
    really = Image.open

    def opened(path, **options):
        if path.name == "l-locked.png":  # the tests may run as root, who may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, **options)

    monkeypatch.setattr(Image, "open", opened)
    images = load_data(folder_spec(tmp_path)).train
    message = refusal(images.get, range(len(images)))
    assert says(message, *(folder / name for name in BAD), "decompression bomb", "Permission denied", "1 x 1200")
    assert message.count("not a valid image") == len(BAD)
    assert images.get([0, 1, 2]).shape == (3, 3, 8, 8)
