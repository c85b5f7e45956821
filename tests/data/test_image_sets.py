"""What is handed in to be measured: folders of PNG files, npz files, built-in data; and what is refused."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from mar_bench.config.spec import DigitsData, MnistData
from mar_bench.data import image_sets as module
from mar_bench.data.datasets import BATCH, load_data, silent
from mar_bench.data.image_sets import (
    Digest,
    ImageSet,
    class_balance,
    cropped_folder,
    open_data,
    open_folder,
    open_images,
    open_npz,
)
from mar_bench.data.images import read_image
from mar_bench.utils.errors import UserError

PHOTOS = load_sample_images().images  # two of 427x640


def tiles(count: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Different pieces (N, H, W, 3) of a photograph."""
    step = 400 // count
    return np.stack([PHOTOS[i % 2][i * step :, i * step :][:height, :width] for i in range(count)])


def save(folder: Path, names: list[str], pixels: np.ndarray | None = None) -> Path:
    """PNG files, image i under names[i]; a name may hold a folder."""
    for name, image in zip(names, tiles(len(names)) if pixels is None else pixels):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name, "PNG")
    return folder


def everything(images: ImageSet) -> np.ndarray:
    """(N, H, W, C), as it would be saved."""
    return torch.cat(list(images.batches(silent))).permute(0, 2, 3, 1).numpy()


def digest_of(images: ImageSet) -> Digest:
    digest = Digest()
    for batch in images.batches(silent):
        digest.update(batch)
    return digest


def refusal(function, *arguments, **options) -> str:
    """The message of the UserError: one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def says(message: str, *words) -> bool:
    return all(str(word) in message for word in words)


# --- folders --------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pixels_in_the_order_of_the_numbers(tmp_path):
    pixels = tiles(12)
    images = open_folder(save(tmp_path, [f"sample_{i}.png" for i in range(12)], pixels))  # 10 stands before 2 by name
    assert np.array_equal(everything(images), pixels)
    assert (images.kind, images.count, images.size, images.channels) == ("folder", 12, (20, 24), 3)
    assert (images.name, images.index, images.labels) == (str(tmp_path), "numbers in file names", None)
    assert not images.reference and not images.notes
    assert np.array_equal(everything(images), pixels), "a second reading gives the same"


def test_grey_images_have_one_channel(tmp_path):
    pixels = tiles(3)[..., 0]
    images = open_folder(save(tmp_path, ["0.png", "1.png", "2.png"], pixels))
    assert images.channels == 1 and np.array_equal(everything(images), pixels[..., None])


def test_batches_are_small_and_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 20 * 24 * 3 + 1)
    images, told = open_folder(save(tmp_path, [f"{i}.png" for i in range(10)])), []
    found = list(images.batches(lambda done, total: told.append((done, total))))
    assert [len(batch) for batch in found] == [4, 4, 2] and told == [(0, 10), (4, 10), (8, 10)]
    assert all(b.dtype == torch.uint8 and b.is_contiguous() for b in found)


def test_progress_can_stop_the_reading(tmp_path):
    def stop(done: int, total: int) -> None:
        raise InterruptedError

    np.savez(tmp_path / "x.npz", tiles(3))
    for images in (open_folder(save(tmp_path / "a", ["0.png", "1.png"])), open_npz(tmp_path / "x.npz")):
        with pytest.raises(InterruptedError):
            next(images.batches(stop))


def test_the_order_of_the_listing_makes_no_difference(tmp_path, monkeypatch):
    pixels = tiles(9)
    save(tmp_path / "flat", [f"{i + 1:03}.png" for i in range(9)], pixels)
    save(tmp_path / "classes", [f"{c}/{i}.png" for c in "abc" for i in range(3)], pixels)
    save(tmp_path / "words", [f"{c}.png" for c in "abcdefghi"], pixels)
    listdir = os.listdir
    for shuffled in (lambda p: listdir(p)[::-1], lambda p: sorted(listdir(p), key=lambda n: zlib.crc32(n.encode()))):
        monkeypatch.setattr(os, "listdir", shuffled)
        for name in ("flat", "classes", "words"):
            for indexed in (True, False):
                assert np.array_equal(everything(open_folder(tmp_path / name, indexed)), pixels)


def test_names_without_numbers_are_ordered_by_name(tmp_path):
    images = open_folder(save(tmp_path, ["b/x.png", "a/z.png", "a/y.png"], tiles(3)))
    assert images.index == "file names" and images.labels is None
    assert np.array_equal(everything(images), tiles(3)[[2, 1, 0]])


def test_unindexed_ignores_numbers(tmp_path):
    images = open_folder(save(tmp_path, ["10.png", "9.png", "x.png"], tiles(3)), indexed=False)
    assert images.index == "file names" and np.array_equal(everything(images), tiles(3))


def test_numbers_across_folders_are_one_index(tmp_path):
    names = ["b/0.png", "a/img1.png", "b/img2.png", "a/0003.png"]
    images = open_folder(save(tmp_path, names))
    assert np.array_equal(everything(images), tiles(4)) and images.labels is None


def test_folders_that_repeat_numbers_are_classes(tmp_path):
    pixels = tiles(5)
    images = open_folder(save(tmp_path, ["cat/9.png", "cat/10.png", "dog/9.png", "dog/11.png", "dog/100.png"], pixels))
    (tmp_path / "bird").mkdir()  # holds no image, so is no class
    assert np.array_equal(everything(images), pixels) and images.index == "numbers in file names"
    assert images.labels.dtype == np.int64 and images.labels.tolist() == [0, 0, 1, 1, 1]


def test_the_same_number_twice_in_a_class(tmp_path):
    save(tmp_path, ["a/1.png", "b/1.png", "b/2.png", "b/002.png"])
    assert says(refusal(open_folder, tmp_path), "b/002.png", "b/2.png", "same number", "--unindexed")


def test_the_same_number_twice(tmp_path):
    save(tmp_path, ["1.png", "0001.png", "2.png"])
    assert says(refusal(open_folder, tmp_path), " 0001.png", " 1.png", "same number")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 3), "image 2 is missing of 0..3"),
        ((1, 2, 5), "images 3, 4 are missing of 1..5"),
        ((2, 3), "images 0, 1 are missing of 0..3"),
        ((0, 10), "images 1, 2, 3, 4, 5, ... are missing of 0..10"),
        ((4, 10**12), f"images 0, 1, 2, 3, 5, ... are missing of 0..{10**12}"),
    ],
)
def test_gaps_in_the_numbers(tmp_path, numbers, message):
    save(tmp_path, [f"{n}.png" for n in numbers])
    assert says(refusal(open_folder, tmp_path), tmp_path, message, "--unindexed")


def test_a_name_without_a_number_among_others(tmp_path):
    save(tmp_path, ["0.png", "1.png", "grid.png"])
    assert says(refusal(open_folder, tmp_path), "grid.png has none", "0.png", "--unindexed")


def test_what_is_no_image_is_ignored(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "stats.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("BMW 7")
    (tmp_path / "7").write_bytes(b"")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "log.txt").write_text("")
    (tmp_path / ".cache").mkdir()
    for hidden in (".2.png", "._1.png", ".cache/9.png"):
        (tmp_path / hidden).write_bytes(b"resource fork")
    np.savez(tmp_path / "8.npz", tiles(2))
    assert open_folder(tmp_path).count == 2


def test_png_is_known_by_content(tmp_path):
    images = open_folder(save(tmp_path, ["0", "1.bmp", "2.sample"]))
    assert np.array_equal(everything(images), tiles(3))


@pytest.mark.parametrize(
    ("name", "kind"), [("2.jpg", "JPEG"), ("2.webp", "WEBP"), ("2.jpeg", "PNG"), ("2.avif", "PNG")]
)
def test_lossy_by_ending(tmp_path, name, kind):
    save(tmp_path, ["0.png", "1.png"])
    Image.fromarray(tiles(1)[0]).save(tmp_path / name, kind)
    assert says(refusal(open_folder, tmp_path), tmp_path / name, "lossy", "PNG")


@pytest.mark.parametrize("name", ["2.png", "2"])
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("WEBP", {"lossless": True})])
def test_lossy_by_content(tmp_path, name, kind, options):
    save(tmp_path, ["0.png", "1.png"])
    Image.fromarray(tiles(1)[0]).save(tmp_path / name, kind, **options)
    assert says(refusal(open_folder, tmp_path), tmp_path / name, f"{kind} is lossy", "PNG")


@pytest.mark.parametrize(("name", "kind"), [("2.bmp", "BMP"), ("2.tif", "TIFF"), ("2.gif", "GIF"), ("2.png", "BMP")])
def test_other_formats(tmp_path, name, kind):
    save(tmp_path, ["0.png", "1.png"])
    Image.fromarray(tiles(1)[0]).save(tmp_path / name, kind)
    assert says(refusal(open_folder, tmp_path), tmp_path / name, kind, "convert the images to PNG")


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1", "I;16"])
def test_other_modes(tmp_path, mode):
    save(tmp_path, ["0.png", "1.png"])
    image = Image.fromarray(tiles(1)[0])
    image = Image.fromarray(np.full((20, 24), 300, np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "2.png")
    assert says(refusal(open_folder, tmp_path), tmp_path / "2.png", f"mode {mode};")


def png(depth: int, colour: int, row: bytes, height: int) -> bytes:
    """A PNG file written by hand: what Pillow cannot save."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width = 8 * len(row) // depth // {0: 1, 2: 3}[colour]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_16_bit_rgb_is_not_cut_to_8(tmp_path):
    content = png(16, 2, bytes(range(48)), 4)
    assert Image.open(io.BytesIO(content)).mode == "RGB", "Pillow does not tell"
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "2.png").write_bytes(content)
    assert says(refusal(open_folder, tmp_path), tmp_path / "2.png", "mode 16-bit RGB", "8-bit")


def test_greys_of_4_bits_are_exact(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(4, 0, b"\x0f\x12", 2))
    assert everything(open_folder(tmp_path))[0, 0, :, 0].tolist() == [0, 255, 17, 34]


def test_transparent_and_animated_images(tmp_path):
    first, second = (Image.fromarray(tile) for tile in tiles(2))
    for name, options in (("transparent", {"transparency": (1, 2, 3)}), ("animated", {"append_images": [second]})):
        save(tmp_path / name, ["0.png", "1.png"])
        first.save(tmp_path / name / "2.png", save_all="append_images" in options, **options)
        assert says(refusal(open_folder, tmp_path / name), "2.png", f"mode {name} RGB")


def test_nothing_is_resized_or_converted(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    Image.fromarray(tiles(1, 20, 25)[0]).save(tmp_path / "2.png")
    assert says(refusal(open_folder, tmp_path), "0.png is 24x20 RGB", "2.png is 25x20 RGB", "nothing is resized")
    Image.fromarray(tiles(1)[0, ..., 0]).save(tmp_path / "2.png")
    assert says(refusal(open_folder, tmp_path), "0.png is 24x20 RGB", "2.png is 24x20 L")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"hello"])
def test_a_broken_header_is_named_at_once(tmp_path, content):
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "2.png").write_bytes(content)
    assert says(refusal(open_folder, tmp_path), tmp_path / "2.png", "not readable as an image")


def test_a_png_without_ending_that_is_broken_is_no_bystander(tmp_path):
    save(tmp_path, ["0", "1"])
    (tmp_path / "2").write_bytes((tmp_path / "1").read_bytes()[:20])
    assert says(refusal(open_folder, tmp_path), tmp_path / "2", "not readable")


def test_damage_is_named_when_it_is_read(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    whole = (tmp_path / "1.png").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for spoiled in (whole[: len(whole) // 2], whole[:-20], bytes(flipped)):
        (tmp_path / "1.png").write_bytes(spoiled)
        assert says(refusal(everything, open_folder(tmp_path)), tmp_path / "1.png", "not readable")


def test_files_that_change_after_opening(tmp_path):
    images = open_folder(save(tmp_path, ["0.png", "1.png"]))
    Image.fromarray(tiles(1, 9, 9)[0]).save(tmp_path / "1.png")
    assert says(refusal(everything, images), tmp_path / "1.png", "changed")
    (tmp_path / "1.png").unlink()
    assert says(refusal(everything, images), tmp_path / "1.png", "No such file")


def test_what_is_not_a_file(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    os.mkfifo(tmp_path / "control")  # ignored, and not opened: that would never end
    assert open_folder(tmp_path).count == 2
    os.mkfifo(tmp_path / "2.png")
    assert says(refusal(open_folder, tmp_path), tmp_path / "2.png", "not a file")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to("gone")
    assert says(refusal(open_folder, tmp_path), tmp_path / "2.png", "not a file")


def test_folders_that_are_none_or_empty_or_too_deep(tmp_path):
    assert says(refusal(open_folder, tmp_path / "no"), tmp_path / "no", "no such folder")
    assert says(refusal(open_folder, tmp_path), tmp_path, "no image")
    save(tmp_path, ["only.png"])
    assert says(refusal(open_folder, tmp_path), tmp_path, "only one image, only.png", "at least two")
    assert says(refusal(open_folder, tmp_path / "only.png"), "a file, not a folder")
    save(tmp_path, ["a/0.png", "a/1.png"])
    assert says(refusal(open_folder, tmp_path), "only.png", "a/0.png", "move")
    (tmp_path / "only.png").unlink()
    save(tmp_path, ["a/b/0.png"])
    assert says(refusal(open_folder, tmp_path), tmp_path / "a" / "b", "two folders down")


# --- photographs ----------------------------------------------------------------------------------------


def test_photographs_are_cropped_as_adm_does(tmp_path):
    names = ["a/flower.jpg", "a/temple.png", "b/small.webp"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, pixels in zip(names, (PHOTOS[1], PHOTOS[0], PHOTOS[0][:40, :50])):
        Image.fromarray(pixels).save(tmp_path / name)
    images = cropped_folder(tmp_path, 64)
    expected = np.stack([read_image(tmp_path / name, 64, 3) for name in names])
    assert np.array_equal(torch.cat(list(images.batches(silent))).numpy(), expected)
    assert (images.kind, images.size, images.channels, images.index) == ("folder", (64, 64), 3, "file names")
    assert images.name == f"{tmp_path} cropped to 64x64"
    assert images.notes == ("1 of 3 images are smaller than 64 and were enlarged",)
    grey = cropped_folder(tmp_path, 32, channels=1)
    assert next(grey.batches(silent)).shape == (3, 1, 32, 32) and grey.notes == ()


def test_photographs_that_cannot_be_read_are_named(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:-100])
    assert says(refusal(everything, cropped_folder(tmp_path, 8)), tmp_path / "1.png", "truncated")
    (tmp_path / "1.png").write_bytes(b"")
    assert says(refusal(cropped_folder, tmp_path, 8), tmp_path / "1.png", "cannot identify")
    Image.new("RGB", (5000, 2)).save(tmp_path / "1.png")
    assert says(refusal(everything, cropped_folder(tmp_path, 8)), tmp_path / "1.png", "strip of 5000 x 2")
    assert says(refusal(cropped_folder, tmp_path, 0), tmp_path, "size")


# --- npz files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_read_in_blocks(tmp_path, write, channels, monkeypatch):
    pixels = tiles(11)[..., :channels]
    write(tmp_path / "x.npz", pixels, np.arange(11, dtype=np.int16))
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 20 * 24 * channels)
    images = open_npz(tmp_path / "x.npz")
    assert (images.kind, images.count, images.size, images.channels) == ("npz", 11, (20, 24), channels)
    assert images.index == "position" and not images.reference
    assert images.labels.dtype == np.int64 and images.labels.tolist() == list(range(11))
    assert [len(b) for b in images.batches(silent)] == [4, 4, 3]
    assert np.array_equal(everything(images), pixels) and np.array_equal(everything(images), pixels)
    next(images.batches(silent)).fill_(0)  # a batch may be written to


def test_png_files_and_npz_files_hold_the_same_pixels(tmp_path):
    pixels = tiles(7)
    np.savez(tmp_path / "plain.npz", pixels)
    np.savez_compressed(tmp_path / "packed.npz", arr_0=pixels)
    folder = save(tmp_path / "png", [f"{i:05}.png" for i in range(7)], pixels)
    sets = [open_npz(tmp_path / "plain.npz"), open_npz(tmp_path / "packed.npz"), open_folder(folder)]
    assert len({digest_of(images).sha256 for images in sets}) == 1


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_npz_is_never_in_memory_as_a_whole(tmp_path, write):
    write(tmp_path / "x.npz", np.zeros((5000, 64, 64, 3), np.uint8))  # 61 MB
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in open_npz(tmp_path / "x.npz").batches(silent))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 5000 and peak < 6 * BATCH * 64 * 64 * 3 < 20e6


def test_a_reference_is_told(tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=tiles(3), mu=np.zeros(2), sigma=np.eye(2))
    assert open_npz(tmp_path / "batch.npz").reference
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert says(refusal(open_npz, tmp_path / "statistics.npz"), "statistics only", "swapped?")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": tiles(2), "x": np.zeros(2)}, ("no arr_0", "keys: images, x")),
        ({}, ("no arr_0", "keys: none")),
        ({"arr_0": tiles(2) / np.float32(255)}, ("float32", "uint8 needed: round(clip(255 x))")),
        ({"arr_0": tiles(2).astype(np.int64)}, ("int64", "uint8 needed")),
        ({"arr_0": tiles(2).transpose(0, 3, 1, 2)}, ("(2, 3, 20, 24)", "transpose(0, 2, 3, 1)")),
        ({"arr_0": tiles(2)[..., 0]}, ("(2, 20, 24)", "(N, H, W, C) needed")),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, ("(N, H, W, C) needed, C 1 or 3",)),
        ({"arr_0": np.zeros((2, 0, 4, 3), np.uint8)}, ("(N, H, W, C) needed",)),
        ({"arr_0": tiles(1)}, ("at least two",)),
        ({"arr_0": np.asfortranarray(tiles(2))}, ("Fortran", "ascontiguousarray")),
        ({"arr_0": np.array([None, "x"], dtype=object)}, ("arr_0", "never loaded")),
        ({"arr_0": tiles(2), "arr_1": np.array([1, None])}, ("arr_1 is object", "integers")),
        ({"arr_0": tiles(2), "arr_1": np.zeros(3, int)}, ("3 labels in arr_1 of 2 images",)),
        ({"arr_0": tiles(2), "arr_1": np.zeros(2)}, ("arr_1 is float64 (2,)", "integers")),
        ({"arr_0": tiles(2), "arr_1": np.eye(2, dtype=int)}, ("arr_1 is int64 (2, 2)", "integers")),
    ],
)
def test_what_an_npz_must_hold(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    assert says(refusal(open_npz, tmp_path / "x.npz"), tmp_path / "x.npz", *words)


def test_what_is_no_npz(tmp_path):
    path = tmp_path / "x.npz"
    assert says(refusal(open_npz, path), path, "No such file")
    np.savez(path, tiles(9))
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert says(refusal(open_npz, path), path, "not readable as an npz")
    assert says(refusal(open_npz, tmp_path), "not readable as an npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"no numpy header")
    assert says(refusal(open_npz, path), path, "magic")


@pytest.mark.parametrize("rows", [3, 5])
def test_data_that_do_not_fit_the_shape(tmp_path, rows):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (4, 20, 24, 3)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", content.getvalue() + tiles(rows).tobytes())
    assert says(refusal(open_npz, tmp_path / "x.npz"), "more or fewer bytes")


def test_a_header_too_long_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 20, 24, 3)}".ljust(20_000)
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert says(refusal(open_npz, tmp_path / "x.npz"), "not readable as an npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_in_an_npz_is_named_before_the_last_batch(tmp_path, write, monkeypatch):
    path = tmp_path / "x.npz"
    write(path, tiles(12))
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 20 * 24 * 3)
    spoiled = bytearray(path.read_bytes())
    spoiled[len(spoiled) // 2] ^= 4
    path.write_bytes(spoiled)
    seen = []

    def read() -> None:
        for batch in open_npz(path).batches(silent):
            seen.append(batch)

    assert says(refusal(read), path, "not readable as an npz") and len(seen) < 3


def test_an_npz_that_changes_after_opening(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, tiles(4))
    images = open_npz(path)
    np.savez(path, tiles(5))
    assert says(refusal(everything, images), path, "changed")
    path.write_bytes(path.read_bytes()[:3000])
    assert says(refusal(everything, images), path, "not readable as an npz")


# --- built-in data and names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "part"),
    [
        ("digits", DigitsData(), "train"),
        ("digits:heldout", DigitsData(), "heldout"),
        ("mnist5k:heldout", MnistData(), "heldout"),
        ("mnist5k:train", MnistData(), "train"),
    ],
)
def test_built_in_data(name, spec, part):
    images, expected = open_images(name), getattr(load_data(spec), part)
    assert (images.name, images.kind, images.index) == (f"{spec.kind}:{part}", "data", "position")
    assert (images.count, images.size, images.channels) == (len(expected), (spec.image_size,) * 2, 1)
    assert images.labels.dtype == np.int64 and np.array_equal(images.labels, expected.labels)
    assert np.array_equal(torch.cat(list(images.batches(silent))).numpy(), expected.pixels)
    assert max(len(batch) for batch in images.batches(silent)) <= BATCH


def test_names_of_data_sets():
    assert says(refusal(open_data, "mnist"), "did you mean 'mnist5k'?")
    assert says(refusal(open_data, "digits:helt"), "no part 'helt'", "did you mean 'heldout'?")


def test_the_kind_is_told_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "samples", ["0.png", "x.png"])
    np.savez(tmp_path / "drawn.npz", tiles(2))
    shutil.copytree(tmp_path / "samples", tmp_path / "folder.npz")
    assert says(refusal(open_images, "samples"), "has none")
    assert open_images("samples", indexed=False).name == "samples"
    assert open_images("drawn.npz").kind == "npz" and open_images("folder.npz", indexed=False).kind == "folder"
    assert says(refusal(open_images, "samples/0.png"), "samples/0.png", "neither a folder")
    assert says(refusal(open_images, "gone.npz"), "gone.npz", "No such file")
    assert says(refusal(open_images, "sample"), "did you mean 'samples'?")
    assert says(refusal(open_images, str(tmp_path / "sampls")), f"did you mean '{tmp_path / 'samples'}'?")
    assert says(refusal(open_images, "minst5k:heldout"), "did you mean 'mnist5k:heldout'?")
    assert says(refusal(open_images, "digits:test"), "no part 'test'", "train")
    for nothing in ("", "imagenet256", "no/such/thing"):
        assert says(refusal(open_images, nothing), "no such folder", "data sets: digits, mnist5k")


# --- what a set is --------------------------------------------------------------------------------------


def digest(images: torch.Tensor, size: int) -> Digest:
    found = Digest()
    for batch in images.split(size):
        found.update(batch)
    return found


def test_a_digest_is_of_pixels_and_their_order_and_shape():
    images = torch.from_numpy(tiles(7)).permute(0, 3, 1, 2)
    whole = digest(images, 7)
    assert whole.sha256 == digest(images, 2).sha256 == digest(images.contiguous(), 3).sha256
    assert (whole.count, whole.duplicates) == (7, 0)
    others = [images.flip(0), images.transpose(2, 3), images.reshape(7, 3, 24, 20), images[:6], images + 1]
    assert len({digest(other, 4).sha256 for other in [*others, images]}) == 6


def test_a_digest_is_pinned():
    assert digest(torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2), 1).sha256.startswith("d39aff58de34")


def test_copies_are_counted():
    images = torch.from_numpy(tiles(4)).permute(0, 3, 1, 2)
    assert digest(images[[0, 1, 0, 2, 3, 1, 0]], 3).duplicates == 3


def test_a_digest_is_of_one_shape():
    found = digest(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 2)
    with pytest.raises(AssertionError):
        found.update(torch.zeros(2, 1, 2, 8, dtype=torch.uint8))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_class_balance_is_over_classes_that_occur(kind):
    assert class_balance(kind([5, 0, 5, 5, 9, 9])) == {"classes": 3, "least": 1, "most": 3}
