"""Sets of images to score: folders of PNG files, npz files and built-in data; and what is refused."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar_bench.data import image_sets as module
from mar_bench.data.datasets import BATCH, packaged, silent
from mar_bench.data.image_sets import (
    Digest,
    ImageSet,
    class_balance,
    cropped_folder,
    open_folder,
    open_images,
    open_npz,
)
from mar_bench.data.images import read_image
from mar_bench.data.npz import FOLDER, IMAGES, OTHER, REFERENCE, STATISTICS, kind_of
from mar_bench.pipeline.rehearse import PHOTOGRAPHS
from tests.measuring import png, refusal, says

PHOTOS = [np.asarray(Image.open(packaged("sklearn", f"datasets/images/{name}"))) for name in PHOTOGRAPHS]  # of 427x640


def tiles(count: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Different pieces (N, H, W, 3) of a photograph."""
    step = 400 // count
    return np.stack([PHOTOS[i % 2][i * step :, i * step :][:height, :width] for i in range(count)])


def save(folder: Path, names: list[str], pixels: np.ndarray | None = None) -> Path:
    """PNG files, image i under names[i], which may include a folder."""
    for name, image in zip(names, tiles(len(names)) if pixels is None else pixels):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name, "PNG")
    return folder


def everything(images: ImageSet) -> np.ndarray:
    """(N, H, W, C), as it would be saved."""
    return torch.cat(list(images.batches(silent))).permute(0, 2, 3, 1).numpy()


def test_a_png_file_counts_under_any_name(tmp_path):
    pixels = tiles(4)
    (save(tmp_path, ["0.png", "1", "2.dat", "3.png"], pixels) / "notes.txt").write_text("no image")
    assert np.array_equal(everything(open_folder(tmp_path)), pixels)


def test_a_folder_gives_its_pixels_in_the_order_of_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 5 * 20 * 24 * 3 + 1)
    pixels, calls = tiles(12), []
    images = open_folder(save(tmp_path, [f"sample_{i}.png" for i in range(12)], pixels))  # by name 10 precedes 2
    found = list(images.batches(lambda done, total: calls.append((done, total))))
    assert [len(batch) for batch in found] == [5, 5, 2] and calls == [(0, 12), (5, 12), (10, 12)]
    assert all(b.dtype == torch.uint8 and b.is_contiguous() for b in found)
    assert np.array_equal(torch.cat(found).permute(0, 2, 3, 1), pixels)
    assert (images.kind, images.count, images.size, images.channels) == ("folder", 12, (20, 24), 3)
    assert (images.name, images.index, images.labels) == (str(tmp_path), "numbers in file names", None)
    assert np.array_equal(everything(images), pixels), "a second reading gives the same"


def test_the_order_of_the_directory_listing_makes_no_difference(tmp_path, monkeypatch):
    pixels, scandir = tiles(9), os.scandir

    @contextmanager
    def shuffled(path):
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: zlib.crc32(entry.name.encode()))

    save(tmp_path, [f"{c}/{i}.png" for c in "abc" for i in range(3)], pixels)
    monkeypatch.setattr(os, "scandir", shuffled)
    assert all(np.array_equal(everything(open_folder(tmp_path, indexed)), pixels) for indexed in (True, False))


@pytest.mark.parametrize(
    ("names", "indexed", "order", "labels", "index"),
    [
        (["b/x.png", "a/z.png", "a/y.png"], True, [2, 1, 0], None, "file names"),
        (["10.png", "9.png", "x.png"], False, [0, 1, 2], None, "file names"),
        (["b/0.png", "a/img1.png", "b/img2.png", "a/0003.png"], True, [0, 1, 2, 3], None, "numbers in file names"),
        (["a/9.png", "a/10.png", "b/9.png", "b/8.png"], True, [0, 1, 3, 2], [0, 0, 1, 1], "numbers in file names"),
    ],
    ids=["without numbers", "unindexed", "shards", "classes"],
)
def test_order_and_labels_of_a_folder(names, indexed, order, labels, index, tmp_path):
    (tmp_path / "empty").mkdir()
    images = open_folder(save(tmp_path, names), indexed)
    assert np.array_equal(everything(images), tiles(len(names))[order]) and images.index == index
    assert images.labels is None if labels is None else images.labels.tolist() == labels


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.png", "b/1.png", "b/2.png", "b/002.png"], ("b/002.png", "b/2.png", "same number")),
        (["0.png", "1.png", "grid.png"], ("grid.png", "0.png", "number")),
        (["0.png", "1.png", "3.png"], ("1 of the images 0..3", "the first is 2")),
        (["4.png", f"{10**12}.png"], (f"0..{10**12}", "the first is 0")),
    ],
)
def test_duplicates_and_gaps_in_the_numbers_are_refused(names, words, tmp_path):
    save(tmp_path, names)
    assert says(refusal(open_folder, tmp_path), tmp_path, *words, "--unindexed")


def test_other_files_are_left_out_and_named(tmp_path, capsys):
    save(tmp_path, ["0.png", "1.PNG"])
    for name in ("stats.json", "notes.txt", "7", "logs/log.txt", ".2.png", "._1.png", ".cache/9.png", "8.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not an image")
    os.mkfifo(tmp_path / "control")
    assert open_folder(tmp_path).count == 2
    names = ".2.png, ._1.png, .cache/, 7, 8.npz, control, notes.txt, stats.json, logs/log.txt"
    assert capsys.readouterr().err == f"note: {tmp_path}: 2 images of 11 files, left out: {names}\n"


def test_a_reference_of_several_formats_has_all_images_or_none(tmp_path):
    """40 of 80 were left out, which changes a distance."""
    names = [f"{i}.{end}" for end in ("png", "tif", "ppm", "gif") for i in range(3)]
    for name, pixels in zip(names, tiles(12)):
        Image.fromarray(pixels).save(tmp_path / name)
    assert cropped_folder(tmp_path, 16).count == 12
    assert says(refusal(open_folder, tmp_path, indexed=False), "0.gif", "GIF, not PNG")
    (tmp_path / "x.heic").touch()
    assert says(refusal(cropped_folder, tmp_path, 16), tmp_path / "x.heic", "not read")


def test_floats_cast_to_bytes_are_refused(tmp_path):
    pixels = (tiles(3) / 255).round().astype(np.uint8)
    np.savez(tmp_path / "x.npz", pixels)
    save(tmp_path / "folder", ["0.png", "1.png", "2.png"], pixels)
    for path in (tmp_path / "x.npz", tmp_path / "folder"):
        assert says(refusal(open_images, str(path)), path, "0 or 1", "255")
    pixels[2, 0, 0, 0] = 2
    np.savez(tmp_path / "x.npz", pixels)
    assert np.array_equal(everything(open_images(str(tmp_path / "x.npz"))), pixels)


@pytest.mark.parametrize(
    ("name", "mode", "kind", "options", "word"),
    [
        ("2.jpg", "RGB", "JPEG", {}, "JPEG, not PNG"),
        ("2.tif", "RGB", "TIFF", {}, "TIFF, not PNG"),
        ("2.png", "RGB", "WEBP", {"lossless": True}, "WEBP, not PNG"),
        ("2.png", "RGB", "PNG", {"transparency": (1, 2, 3)}, "transparent"),
        ("2.png", "RGB", "PNG", {"save_all": True, "append_images": [Image.new("RGB", (24, 20))]}, "animated"),
        ("2.png", "RGBA", "PNG", {}, "mode RGBA;"),
        ("2.png", "P", "PNG", {}, "mode P;"),
        ("2.png", "I;16", "PNG", {}, "16-bit, mode I;16;"),
    ],
)
def test_images_that_would_have_to_be_converted_are_refused(name, mode, kind, options, word, tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    Image.new(mode, (24, 20)).save(tmp_path / name, kind, **options)
    assert says(refusal(open_folder, tmp_path), tmp_path / name, word)


def test_16_bit_rgb_is_refused_and_4_bit_grey_is_exact(tmp_path):
    content = png(8, 4, 16, 2, (b"\0" + bytes(range(48))) * 4)
    assert Image.open(io.BytesIO(content)).mode == "RGB", "Pillow does not tell"
    save(tmp_path / "deep", ["0.png", "1.png"])
    (tmp_path / "deep/2.png").write_bytes(content)
    assert says(refusal(open_folder, tmp_path / "deep"), "2.png", "16-bit;")
    (tmp_path / "grey").mkdir()
    for i in range(2):
        (tmp_path / f"grey/{i}.png").write_bytes(png(4, 2, 4, 0, b"\0\x0f\x12" * 2))
    assert everything(open_folder(tmp_path / "grey"))[0, 0, :, 0].tolist() == [0, 255, 17, 34]


def test_damaged_files_are_named_at_once_or_when_they_are_read(tmp_path):
    save(tmp_path, ["0.png", "1.png"])
    path = tmp_path / "1.png"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for content in (b"", b"hello"):
        path.write_bytes(content)
        assert says(refusal(open_folder, tmp_path), path, "not a valid image")
    for content in (whole[: len(whole) // 2], whole[:-20], bytes(flipped)):
        path.write_bytes(content)
        assert says(refusal(everything, open_folder(tmp_path)), path, "not a valid image")
    path.write_bytes(whole)
    images = open_folder(tmp_path)
    Image.fromarray(tiles(1, 9, 9)[0]).save(path)
    assert says(refusal(open_folder, tmp_path), "0.png is 24x20 RGB and 1.png is 9x9 RGB")
    assert says(refusal(everything, images), path, "changed")
    path.unlink()
    assert says(refusal(everything, images), path, "no such file")
    for make in (os.mkfifo, lambda p: p.symlink_to("gone")):
        make(path)
        assert says(refusal(open_folder, tmp_path), path, "not a file")
        path.unlink()


def test_missing_empty_and_nested_folders_are_refused(tmp_path):
    assert says(refusal(open_folder, tmp_path / "no"), tmp_path / "no", "no such folder")
    assert says(refusal(open_folder, tmp_path), tmp_path, "0 images")
    save(tmp_path, ["only.png"])
    assert says(refusal(open_folder, tmp_path), tmp_path, "1 image of 1 file", "at least two")
    assert says(refusal(open_folder, tmp_path / "only.png"), "a file, not a folder")
    save(tmp_path, ["a/b/0.png"])
    assert says(refusal(open_folder, tmp_path), tmp_path / "a/b", "move")
    shutil.move(tmp_path / "a/b/0.png", tmp_path / "a/0.png")
    (tmp_path / "a/b").rmdir()
    assert says(refusal(open_folder, tmp_path), "only.png", "a/0.png", "move")


def test_photographs_are_cropped_as_adm_does(tmp_path):
    names = ["a/flower.jpg", "a/temple.png", "b/small.webp"]
    for name, pixels in zip(names, (PHOTOS[1], PHOTOS[0], PHOTOS[0][:40, :50])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    images = cropped_folder(tmp_path, 64)
    expected = np.stack([read_image(tmp_path / name, 64, 3) for name in names])
    assert np.array_equal(torch.cat(list(images.batches(silent))).numpy(), expected)
    assert (images.kind, images.size, images.channels, images.index) == ("folder", (64, 64), 3, "file names")
    assert images.name == f"{tmp_path} cropped to 64x64"
    (tmp_path / names[0]).write_bytes((tmp_path / names[0]).read_bytes()[:-1000])
    assert says(refusal(everything, images), tmp_path / names[0])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_read_in_blocks(tmp_path, write, channels, monkeypatch):
    pixels = tiles(11)[..., :channels]
    write(tmp_path / "x.npz", pixels, np.arange(11, dtype=np.int16))
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 20 * 24 * channels)
    images = open_npz(tmp_path / "x.npz")
    assert (images.kind, images.count, images.size, images.channels) == ("npz", 11, (20, 24), channels)
    assert images.index == "position"
    assert images.labels.dtype == np.int64 and images.labels.tolist() == list(range(11))
    assert [len(b) for b in images.batches(silent)] == [4, 4, 3]
    assert np.array_equal(everything(images), pixels) and np.array_equal(everything(images), pixels)
    next(images.batches(silent)).fill_(0)  # a batch may be written to


def test_an_npz_is_never_loaded_as_a_whole(tmp_path):
    np.savez(tmp_path / "x.npz", np.full((3000, 64, 64, 3), 7, np.uint8))  # 37 MB
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in open_npz(tmp_path / "x.npz").batches(silent))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3000 and peak < 6 * BATCH * 64 * 64 * 3 < 20e6


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": tiles(2), "x": np.zeros(2)}, ("no arr_0", "images, x")),
        ({"mu": np.zeros(2), "sigma": np.eye(2)}, ("no arr_0", "mu, sigma")),
        ({"arr_0": tiles(2) / np.float32(255)}, ("float32", "uint8")),
        ({"arr_0": tiles(2).transpose(0, 3, 1, 2)}, ("(2, 3, 20, 24)", "(N, H, W, C)")),
        ({"arr_0": np.zeros((2, 0, 4, 3), np.uint8)}, ("(N, H, W, C)",)),
        ({"arr_0": np.zeros((), np.uint8)}, ("(N, H, W, C)",)),
        ({"arr_0": tiles(1)}, ("two or more",)),
        ({"arr_0": np.asfortranarray(tiles(2))}, ("Fortran", "C order")),
        ({"arr_0": np.array([None, "x"], dtype=object)}, ("arr_0 holds Python objects",)),
        ({"arr_0": tiles(2), "arr_1": np.array([1, None])}, ("arr_1 holds Python objects",)),
        ({"arr_0": tiles(2), "arr_1": np.zeros(3, int)}, ("arr_1", "int64 (3,)", "labels (2,)")),
        ({"arr_0": tiles(2), "arr_1": np.zeros(2)}, ("arr_1", "float64 (2,)", "integer")),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    assert says(refusal(open_npz, tmp_path / "x.npz"), tmp_path / "x.npz", *words)


def member(shape: tuple[int, ...], content: bytes) -> bytes:
    """An npy file of uint8."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (member((4, 20, 24, 3), tiles(3).tobytes()), "4320 bytes, which is not uint8 (4, 20, 24, 3)"),
        (member((4, 20, 24, 3), tiles(5).tobytes()), "7200 bytes"),
        (b"no numpy header", "magic"),
    ],
)
def test_malformed_arrays_are_refused(content, word, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", content)
    assert says(refusal(lambda: everything(open_npz(tmp_path / "x.npz"))), "x.npz", word)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_npz_files_are_refused(tmp_path, write, monkeypatch):
    path = tmp_path / "x.npz"
    assert says(refusal(open_npz, path), path, "no such file")
    write(path, tiles(12))
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert says(refusal(open_npz, path), path, "not a valid npz")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 4
    path.write_bytes(damaged)
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * 20 * 24 * 3)
    seen = []

    def read() -> None:
        for batch in open_npz(path).batches(silent):
            seen.append(batch)

    assert says(refusal(read), path, "not a valid npz") and len(seen) < 3, "before the last batch"
    path.write_bytes(whole)
    images = open_npz(path)
    write(path, tiles(5))
    assert says(refusal(everything, images), path, "changed")


@pytest.mark.parametrize("name", ["x.npz", "X.NPZ", "x", "x.png"])
@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (("arr_0", "arr_1"), IMAGES),
        (("arr_0", "mu", "sigma"), STATISTICS),
        (("mu", "sigma", "mu_s", "sigma_s"), STATISTICS),
        (("mu", "sigma", "count", "meta"), REFERENCE),
        (("images",), OTHER),
        ((), OTHER),
    ],
)
def test_the_content_of_a_file_decides_what_it_is(keys, kind, name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **dict.fromkeys(keys, np.zeros(2)))
    assert kind_of(tmp_path / name) == kind and kind_of(tmp_path) == FOLDER


def test_a_name_is_a_folder_or_an_npz(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "samples", ["0.png", "x.png"])
    np.savez(tmp_path / "drawn.npz", tiles(2))
    np.savez(tmp_path / "reference.npz", arr_0=tiles(3), mu=np.zeros(2), sigma=np.eye(2))
    shutil.copytree(tmp_path / "samples", tmp_path / "folder.npz")
    assert says(refusal(open_images, "samples"), "x.png")
    assert open_images("samples", indexed=False).name == "samples"
    assert open_images("drawn.npz").kind == "npz" and open_images("folder.npz", indexed=False).kind == "folder"
    assert says(refusal(open_images, "reference.npz"), "reference.npz", "swapped")
    for nothing in ("samples/0.png", "", "no/such/thing"):
        assert says(refusal(open_images, nothing), f"'{nothing}'", "folder of PNG files")


def digest(images: torch.Tensor, size: int = 3) -> Digest:
    found = Digest()
    for batch in images.split(size):
        found.update(batch)
    return found


def test_a_digest_depends_on_pixels_order_and_shape_only(tmp_path):
    images = torch.from_numpy(tiles(7)).permute(0, 3, 1, 2)
    whole = digest(images, 7)
    assert whole.sha256 == digest(images, 2).sha256 == digest(images.contiguous(), 3).sha256
    assert (whole.count, whole.duplicates) == (7, 0)
    others = [images.flip(0), images.transpose(2, 3), images.reshape(7, 3, 24, 20), images[:6], images + 1]
    assert len({digest(other).sha256 for other in [*others, images]}) == 6
    one, same, other = (digest(x).about["set_sha256"] for x in (images, images.flip(0), images[:6]))
    assert one == same != other
    assert digest(images[[0, 1, 0, 2, 3, 1, 0]]).duplicates == 3
    pinned = digest(torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2))
    assert pinned.sha256.startswith("d39aff58de34")
    with pytest.raises(AssertionError):
        pinned.update(torch.zeros(2, 3, 1, 4, dtype=torch.uint8))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_class_balance_counts_classes_that_occur(kind):
    assert class_balance(kind([5, 0, 5, 5, 9, 9])) == {"classes": 3, "least": 1, "most": 3}
