"""References: what is kept of real images, in memory and in files, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mar_bench.data.datasets import silent
from mar_bench.data.image_sets import Digest
from mar_bench.metrics.references import Reference, build_reference, load_reference, read_reference
from mar_bench.utils.files import sha256_of
from tests.measuring import Averages, noise, refusal, says

SPACE, INCEPTION = Averages(), Averages("inception", "inception")  # what the second one sees has 4 features too
IMAGES = noise(30, channels=3, height=8, width=10)
FEATURES = SPACE.extract(IMAGES)[0]


def built(size: int = 7, most: int = 100, space: Averages = SPACE) -> Reference:
    return build_reference(IMAGES.split(size), len(IMAGES), space, most, "training", "noise:train")


def load(path: Path, space: Averages = SPACE, most: int = 100) -> Reference:
    return load_reference(path, "mine", space, most, silent)


def digest(images: torch.Tensor, kind: str = "sha256") -> str:
    found = Digest()
    found.update(images)
    return getattr(found, kind)


def same_statistics(found: Reference, features: torch.Tensor = FEATURES) -> bool:
    values = features.double().numpy()
    mu, sigma, count = (found.statistics[k] for k in ("mu", "sigma", "count"))
    return np.allclose(mu, values.mean(0)) and np.allclose(sigma, np.cov(values, rowvar=False)) and count == len(values)


# --- building -------------------------------------------------------------------------------------------


def test_a_reference_knows_what_it_is_of():
    found = built()
    assert same_statistics(found) and torch.equal(found.features, FEATURES) and found.complete
    assert found.extractor == SPACE.about
    assert found.about == {
        "kind": "training", "name": "noise:train", "sha256": digest(IMAGES),
        "set_sha256": digest(IMAGES, "set_sha256"), "num_images": 30, "num_features": 30,
        "size": [8, 10], "channels": 3,
    }  # fmt: skip


@pytest.mark.parametrize("most", [10, 100])
def test_how_images_are_batched_makes_no_difference(most):
    one, other = built(size=1, most=most), built(size=30, most=most)
    assert one.about == other.about and torch.equal(one.features, other.features)
    assert np.allclose(one.statistics["sigma"], other.statistics["sigma"], rtol=1e-9)
    flipped = build_reference([IMAGES.flip(0)], 30, SPACE, most, "training", "noise:train")
    assert flipped.about["sha256"] != one.about["sha256"]


@pytest.mark.parametrize(("most", "kept"), [(1, 1), (12, 12), (29, 29), (30, 30), (31, 30)])
def test_features_are_of_a_random_part_and_statistics_of_all_images(most, kept):
    found = built(most=most)
    assert same_statistics(found) and len(found.features) == found.about["num_features"] == kept
    assert found.complete == (kept == 30) and found.about["num_images"] == 30
    places = [int((row == FEATURES).all(1).nonzero()) for row in found.features]
    assert places == sorted(set(places)), "in their order, each once"
    assert most != 12 or max(places) > 15, "not the first"


def test_a_reference_is_of_as_many_images_as_were_announced():
    for count in (29, 31):
        with pytest.raises((AssertionError, IndexError)):
            build_reference(IMAGES.split(7), count, SPACE, 10, "training", "noise")


# --- our own file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [12, 100])
def test_a_saved_reference_is_read_as_it_was(most, tmp_path):
    reference = built(most=most)
    reference.save(tmp_path / "new" / "x.npz")
    found = read_reference(tmp_path / "new" / "x.npz")
    assert (found.about, found.extractor, found.complete) == (reference.about, SPACE.about, most == 100)
    assert torch.equal(found.features, reference.features) and found.features.dtype == torch.float32
    assert all(np.array_equal(found.statistics[k], reference.statistics[k]) for k in ("mu", "sigma", "count"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.npz"], "no temporary file is left"


def test_a_reference_without_features_is_read_too(tmp_path):
    reference = built()
    Reference(reference.statistics, None, {**reference.about, "num_features": 0}, SPACE.about).save(tmp_path / "x.npz")
    found = read_reference(tmp_path / "x.npz")
    assert found.features is None and not found.complete and same_statistics(found)


def test_a_built_reference_is_loaded_under_its_new_name(tmp_path):
    built().save(tmp_path / "x.npz")
    found = load(tmp_path / "x.npz")
    assert found.about == {**built().about, "name": "mine", "file_sha256": sha256_of(tmp_path / "x.npz")}
    assert torch.equal(found.features, FEATURES) and same_statistics(found) and found.complete


def test_a_reference_of_another_extractor_is_refused(tmp_path):
    built().save(tmp_path / "x.npz")
    other = Averages(name="other")
    message = refusal(load, tmp_path / "x.npz", other)
    assert says(message, tmp_path / "x.npz", "'averages'", SPACE.sha256[:8], "'other'", other.sha256[:8])


def arrays_of(reference: Reference) -> dict[str, np.ndarray]:
    meta = {"about": reference.about, "extractor": reference.extractor}
    return {**reference.statistics, "features": reference.features.numpy(), "meta": np.array(json.dumps(meta))}


def without(block: str, key: str) -> np.ndarray:
    meta = json.loads(str(arrays_of(built())["meta"]))
    del meta[block][key]
    return np.array(json.dumps(meta))


NAN4 = np.array([0, 1, np.nan, 2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": None}, "mu (F,) and sigma (F, F)"),
        ({"sigma": None}, "mu (F,) and sigma (F, F)"),
        ({"sigma": np.eye(3)}, "mu (F,) and sigma (F, F)"),
        ({"mu": np.eye(4)}, "mu (F,) and sigma (F, F)"),
        ({"mu": np.array(1.0)}, "mu (F,) and sigma (F, F)"),
        ({"mu": np.array(["a", "b", "c", "d"])}, "mu (F,) and sigma (F, F)"),
        ({"mu": NAN4}, "not finite"),
        ({"sigma": np.diag([1, 1, 1, np.inf])}, "not finite"),
        ({"features": FEATURES.numpy() * np.float32("nan")}, "features that are not finite"),
        ({"features": FEATURES.numpy()[:, :3]}, "(30, 3)"),
        ({"features": FEATURES.numpy()[:20]}, "(20, 4)"),
        ({"features": FEATURES.numpy()[0]}, "(4,)"),
        ({"features": FEATURES.numpy().astype(int)}, "int64"),
        ({"features": np.array([None, 1])}, "not a whole npz"),
        ({"count": None}, "build it again"),
        ({"count": np.array([1, 2])}, "build it again"),
        ({"count": np.array("many")}, "build it again"),
        ({"meta": np.array("{")}, "build it again"),
        ({"meta": np.array("[]")}, "build it again"),
        ({"meta": np.array(json.dumps({"about": {}, "extractor": {}}))}, "build it again"),
        ({"meta": np.zeros(3)}, "build it again"),
        ({"meta": without("about", "size")}, "build it again"),
        ({"meta": without("about", "num_images")}, "build it again"),
        ({"meta": without("extractor", "sha256")}, "build it again"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused_in_one_line(changes, words, tmp_path):
    arrays = arrays_of(built()) | changes
    np.savez(tmp_path / "x.npz", **{k: v for k, v in arrays.items() if v is not None})
    for read in (read_reference, load):
        assert says(refusal(read, tmp_path / "x.npz"), tmp_path / "x.npz", words)


# --- files that are broken ------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_reference, load])
def test_what_is_no_npz_is_refused(read, tmp_path):
    path = tmp_path / "x.npz"
    assert says(refusal(read, path), path, "no such file")
    assert says(refusal(read, tmp_path), tmp_path, "not a whole npz")
    built().save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert says(refusal(read, path), path, "not a whole npz")
    with path.open("wb") as file:
        np.save(file, np.eye(3))
    assert says(refusal(read, path), path, "a single array")
    np.savez(path)
    assert says(refusal(read, path), path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_anywhere_in_a_file_is_one_line(write, tmp_path):
    path = tmp_path / "x.npz"
    write(path, **arrays_of(built()))
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = read_reference(path)
        except ValueError as error:
            assert type(error).__name__ == "UserError" and "\n" not in str(error) and str(path) in str(error)
            refused += 1
        else:  # what is not covered by a check-sum: dates and the like
            assert torch.equal(found.features, FEATURES) and same_statistics(found)
    assert refused > len(range(0, len(whole), 23)) / 2


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickled_arrays_are_never_loaded(tmp_path):
    path, bomb = tmp_path / "x.npz", np.array([Bomb()], dtype=object)
    for name in ("mu", "features", "meta", "other"):
        np.savez(path, **{**arrays_of(built()), name: bomb})
        for read in (read_reference, load):
            assert says(refusal(read, path), path, "not a whole npz")
    np.savez(path, arr_0=bomb, mu=np.zeros(4), sigma=np.eye(4))
    assert says(refusal(load, path, INCEPTION), path, "never loaded")


# --- ADM's files ----------------------------------------------------------------------------------------


def adm(path: Path, *keys: str, images: torch.Tensor = IMAGES) -> Path:
    """A file as ADM publishes, with statistics that are not those of its images."""
    arrays = {
        "arr_0": images.permute(0, 2, 3, 1).numpy(),
        "mu": np.arange(4, dtype=np.float32),
        "sigma": np.diag(np.arange(1, 5)).astype(np.float32),
        "mu_s": np.zeros(3),
        "sigma_s": np.eye(3),
    }
    np.savez(path, **{key: arrays[key] for key in keys})
    return path


STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


@pytest.mark.parametrize("most", [12, 100])
def test_inception_takes_the_statistics_of_the_file_and_features_of_its_images(most, tmp_path):
    path = adm(tmp_path / "x.npz", "arr_0", *STATISTICS)
    found = load(path, INCEPTION, most)
    assert found.statistics["mu"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.statistics["sigma"], np.diag([1.0, 2, 3, 4]))
    assert found.statistics["mu"].dtype == found.statistics["sigma"].dtype == np.float64
    assert torch.equal(found.features, built(most=most).features)
    assert not found.complete, "the statistics are of more images than are in the file"
    assert found.about == {
        "kind": "file", "name": "mine", "sha256": sha256_of(path), "set_sha256": digest(IMAGES, "set_sha256"),
        "statistics": "of the file", "num_images": None, "num_features": min(most, 30), "size": [8, 10], "channels": 3,
    }  # fmt: skip


def test_statistics_alone_do_for_inception(tmp_path):
    path = adm(tmp_path / "x.npz", "mu", "sigma")
    found = load(path, INCEPTION)
    assert found.features is None and not found.complete and found.statistics["mu"].tolist() == [0, 1, 2, 3]
    assert found.about == {
        "kind": "file", "name": "mine", "sha256": sha256_of(path), "statistics": "of the file",
        "num_images": None, "num_features": 0, "size": None, "channels": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("space", "keys"),
    [(SPACE, ("arr_0",)), (SPACE, ("arr_0", *STATISTICS)), (INCEPTION, ("arr_0",)), (INCEPTION, ("arr_0", "mu"))],
)
def test_images_are_taken_where_the_statistics_are_not_there_or_are_anothers(space, keys, tmp_path):
    path = adm(tmp_path / "x.npz", *keys)
    found = load(path, space)
    assert same_statistics(found) and torch.equal(found.features, FEATURES) and found.complete
    assert found.extractor == space.about and "statistics" not in found.about
    assert found.about["num_images"] == 30 and found.about["sha256"] == sha256_of(path)


@pytest.mark.parametrize(
    ("space", "keys", "words"),
    [
        (SPACE, ("mu", "sigma"), ("'averages'", "it holds mu, sigma alone", "reference build")),
        (INCEPTION, ("mu",), ("'inception'", "it holds mu alone")),
        (INCEPTION, ("mu_s", "sigma_s"), ("it holds mu_s, sigma_s alone",)),
        (INCEPTION, (), ("it holds nothing alone",)),
    ],
)
def test_a_file_that_does_not_do_says_what_it_holds(space, keys, words, tmp_path):
    path = adm(tmp_path / "x.npz", *keys)
    assert says(refusal(load, path, space), path, *words)


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize(
    ("mu", "sigma", "words"),
    [
        (NAN4, np.eye(4), "not finite"),
        (np.zeros(4), np.diag(NAN4), "not finite"),
        (np.zeros(4), np.eye(5), "mu (F,) and sigma (F, F)"),
        (np.zeros((4, 1)), np.eye(4), "mu (F,) and sigma (F, F)"),
    ],
)
def test_statistics_of_a_file_are_looked_at(mu, sigma, words, with_images, tmp_path):
    images = {"arr_0": IMAGES.permute(0, 2, 3, 1).numpy()} if with_images else {}
    np.savez(tmp_path / "x.npz", mu=mu, sigma=sigma, **images)
    assert says(refusal(load, tmp_path / "x.npz", INCEPTION), tmp_path / "x.npz", words)


def test_images_of_a_file_that_are_none_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 8, 8, 3), np.float32))
    assert says(refusal(load, tmp_path / "x.npz"), tmp_path / "x.npz", "uint8 needed")
