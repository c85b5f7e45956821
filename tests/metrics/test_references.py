"""References: what is kept of real images, in memory and in files, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mar_bench.data.datasets import silent
from mar_bench.data.image_sets import Digest
from mar_bench.data.npz import OTHER, REFERENCE, kind_of
from mar_bench.metrics.references import Reference, build_reference, load_reference, read_reference
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import sha256_of
from tests.measuring import Averages, noise, refusal, says

SPACE, INCEPTION = Averages(), Averages("inception", "inception")  # both have 4 features
IMAGES = noise(30, channels=3, height=8, width=10)
FEATURES = SPACE.extract(IMAGES)[0]
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # of ADM's files


def built(size: int = 7, most: int = 100, space: Averages = SPACE) -> Reference:
    return build_reference(IMAGES.split(size), len(IMAGES), space, most, "training", "noise:train")


def load(path: Path, space: Averages = SPACE, most: int = 100) -> Reference:
    return load_reference(path, "mine", space, most, silent)


def digest(images: torch.Tensor, kind: str = "sha256") -> str:
    found = Digest()
    found.update(images)
    return found.about[kind]


def same_statistics(found: Reference, features: torch.Tensor = FEATURES) -> bool:
    values = features.double().numpy()
    mu, sigma, count = (found.statistics[k] for k in ("mu", "sigma", "count"))
    return np.allclose(mu, values.mean(0)) and np.allclose(sigma, np.cov(values, rowvar=False)) and count == len(values)


def test_a_reference_identifies_its_images():
    found = built()
    assert same_statistics(found) and torch.equal(found.features, FEATURES) and found.complete
    assert found.extractor == SPACE.about
    assert found.about == {
        "kind": "training", "name": "noise:train", "sha256": digest(IMAGES),
        "set_sha256": digest(IMAGES, "set_sha256"), "num_images": 30, "num_features": 30,
        "size": [8, 10], "channels": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "most", "kept"), [(1, 12, 12), (7, 29, 29), (30, 31, 30)])
def test_features_are_a_random_subset_and_statistics_of_all_images(size, most, kept):
    found = built(size, most)
    assert same_statistics(found) and len(found.features) == found.about["num_features"] == kept
    assert found.complete == (kept == 30) and found.about["num_images"] == 30
    assert found.about["sha256"] == digest(IMAGES) and torch.equal(found.features, built(most=most).features)
    places = [int((row == FEATURES).all(1).nonzero()) for row in found.features]
    assert places == sorted(set(places)), "in order, each once"
    assert most != 12 or max(places) > 15, "not just the first"


@pytest.mark.parametrize("most", [12, 100, 0])
def test_a_saved_reference_is_read_unchanged(most, tmp_path):
    reference, path = built(most=most or 100), tmp_path / "x.npz"
    if not most:
        reference = Reference(reference.statistics, None, {**reference.about, "num_features": 0}, SPACE.about)
    reference.save(path)
    found = read_reference(path)
    assert (found.about, found.extractor, found.complete) == (reference.about, SPACE.about, most == 100)
    assert torch.equal(found.features, reference.features) if most else found.features is None
    assert all(np.array_equal(found.statistics[k], reference.statistics[k]) for k in ("mu", "sigma", "count"))
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"] and kind_of(path) == REFERENCE
    assert load(path).about == {**reference.about, "name": "mine", "file_sha256": sha256_of(path)}
    other = Averages(name="other")
    assert says(refusal(load, path, other), path, "'averages'", SPACE.sha256[:8], "'other'", other.sha256[:8])


def arrays_of(reference: Reference) -> dict[str, np.ndarray]:
    meta = {"about": reference.about, "extractor": reference.extractor}
    return {**reference.statistics, "features": reference.features.numpy(), "meta": np.array(json.dumps(meta))}


def meta_without(block: str, key: str) -> np.ndarray:
    meta = json.loads(str(arrays_of(built())["meta"]))
    del meta[block][key]
    return np.array(json.dumps(meta))


NAN4 = np.array([0, 1, np.nan, 2])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mu": None}, "mu"),
        ({"sigma": np.eye(3)}, "sigma (F, F)"),
        ({"mu": np.array(["a", "b", "c", "d"])}, "mu (F,)"),
        ({"mu": NAN4}, "not finite"),
        ({"features": FEATURES.numpy() * np.float32("nan")}, "finite floats"),
        ({"features": FEATURES.numpy()[:20]}, "(20, 4)"),
        ({"features": FEATURES.numpy().astype(int)}, "int64"),
        ({"features": FEATURES.numpy().astype(np.float16)}, "float16 (30, 4), expected finite floats of 32 bits"),
        ({"count": np.array([1, 2])}, "count"),
        ({"meta": np.array("{")}, "reference"),
        ({"meta": meta_without("about", "num_images")}, "num_images"),
        ({"meta": meta_without("extractor", "sha256")}, "sha256"),
    ],
)
def test_a_malformed_reference_is_refused(changes, word, tmp_path):
    arrays = arrays_of(built()) | changes
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if v is not None})
    for read in (read_reference, load):
        assert says(refusal(read, tmp_path / "x.npz"), tmp_path / "x.npz", word)


@pytest.mark.parametrize("read", [read_reference, load])
def test_other_files_are_refused(read, tmp_path):
    path = tmp_path / "x.npz"
    assert says(refusal(read, path), path, "no such")
    for content in (b"", b"hello"):
        path.write_bytes(content)
        assert says(refusal(read, path), path, "not a valid npz")
    with path.open("wb") as file:
        np.save(file, np.eye(3))
    assert says(refusal(read, path), path, "not a valid npz")
    np.savez(path)
    assert says(refusal(read, path), path) and kind_of(path) == OTHER


def test_damage_anywhere_in_a_file_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays_of(built()))
    whole = path.read_bytes()
    refused, places = 0, range(0, len(whole), 97)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = read_reference(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
        else:  # dates and other bytes without a checksum
            assert torch.equal(found.features, FEATURES) and same_statistics(found)
    assert refused > len(places) / 2


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickled_arrays_are_never_loaded(tmp_path):
    path, bomb = tmp_path / "x.npz", np.array([Bomb()], dtype=object)
    for name in ("mu", "other"):
        np.savez(path, **{**arrays_of(built()), name: bomb})
        for read in (read_reference, load):
            assert says(refusal(read, path), path, "not a valid npz")
    np.savez(path, arr_0=bomb, mu=np.zeros(4), sigma=np.eye(4))
    assert says(refusal(load, path, INCEPTION), path, "object")


def adm(path: Path, *keys: str) -> Path:
    """A file in ADM's format, with statistics that are not those of its images."""
    arrays = {
        "arr_0": IMAGES.permute(0, 2, 3, 1).numpy(),
        "mu": np.arange(4, dtype=np.float32),
        "sigma": np.diag(np.arange(1, 5)).astype(np.float32),
        "mu_s": np.zeros(3),
        "sigma_s": np.eye(3),
    }
    np.savez(path, **{key: arrays[key] for key in keys})
    return path


@pytest.mark.parametrize(("most", "keys"), [(12, ("arr_0", *STATISTICS)), (100, ("arr_0", *STATISTICS)), (100, ())])
def test_inception_uses_the_statistics_of_the_file_and_features_of_its_images(most, keys, tmp_path):
    path = adm(tmp_path / "x.npz", *keys, *({"mu", "sigma"} - {*keys}))
    found = load(path, INCEPTION, most)
    assert found.statistics["mu"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.statistics["sigma"], np.diag([1.0, 2, 3, 4]))
    assert found.statistics["mu"].dtype == found.statistics["sigma"].dtype == np.float64
    assert not found.complete, "the statistics are of more images than the file holds"
    assert torch.equal(found.features, built(most=most).features) if keys else found.features is None
    images = {"set_sha256": digest(IMAGES, "set_sha256"), "num_features": min(most, 30), "size": [8, 10], "channels": 3}
    assert found.about == {
        "kind": "file", "name": "mine", "sha256": sha256_of(path), "statistics": "of the file", "num_images": None,
        **(images if keys else {"num_features": 0, "size": None, "channels": None}),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("space", "keys"), [(SPACE, ("arr_0", *STATISTICS)), (INCEPTION, ("arr_0",)), (INCEPTION, ("arr_0", "mu"))]
)
def test_images_are_used_without_statistics_of_the_extractor(space, keys, tmp_path):
    path = adm(tmp_path / "x.npz", *keys)
    found = load(path, space)
    assert same_statistics(found) and torch.equal(found.features, FEATURES) and found.complete
    assert found.extractor == space.about and "statistics" not in found.about
    assert found.about["num_images"] == 30 and found.about["sha256"] == sha256_of(path)


@pytest.mark.parametrize(
    ("space", "arrays", "words"),
    [
        (SPACE, {"mu": np.zeros(4), "sigma": np.eye(4)}, ("'averages'", "mu, sigma", "reference build")),
        (INCEPTION, {"mu_s": np.zeros(4), "sigma_s": np.eye(4)}, ("'inception'", "mu_s, sigma_s")),
        (INCEPTION, {}, ("nothing",)),
        (INCEPTION, {"mu": NAN4, "sigma": np.eye(4)}, ("mu",)),
        (INCEPTION, {"mu": np.zeros(4), "sigma": np.eye(5)}, ("mu",)),
        (SPACE, {"arr_0": np.zeros((3, 8, 8, 3), np.float32)}, ("uint8",)),
    ],
)
def test_a_file_without_what_is_needed_is_refused(space, arrays, words, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    assert says(refusal(load, tmp_path / "x.npz", space), tmp_path / "x.npz", *words)
