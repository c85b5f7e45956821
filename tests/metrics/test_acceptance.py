"""Which extractors are fit to measure, and which sets of images may be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run, stage_ids
from mar_bench.config.spec import ImageFolderData, MetricsSpec, PluginExtractor
from mar_bench.data.datasets import DataSet, load_data, silent
from mar_bench.metrics import features
from mar_bench.metrics.acceptance import accept
from mar_bench.metrics.references import Reference, build_reference, read_reference
from mar_bench.metrics.score import Measure, extract_features
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.store import Places
from mar_bench.report.show_record import weaknesses
from mar_bench.utils.errors import UserError
from tests.measuring import DIGITS, Averages, noise, refusal, says

DATA = load_data(DIGITS)
TRAIN, HELDOUT = (part.get(range(len(part))) for part in (DATA.train, DATA.heldout))
PLUGIN = PluginExtractor(name="averages")


class Network(Averages):
    """A plugin that computes ``features`` (B, 8) of images."""

    def __init__(self, features):
        super().__init__(scores=False)
        self.features = features

    def extract(self, images):
        return self.features(images.float()), None


def rows(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 3))[:, ::2] / 255


def reference(images: torch.Tensor, space: Averages, kind: str = "training") -> Reference:
    return build_reference(images.split(250), len(images), space, 2000, kind, f"digits:{kind}")


def judged(space: Averages, real: torch.Tensor = TRAIN, kind: str = "training", data: DataSet = DATA) -> dict:
    heldout = reference(data.heldout.get(range(len(data.heldout))), space, "heldout")
    return accept(PLUGIN, space, Measure(MetricsSpec(), reference(real, space, kind), heldout), data)


def test_an_extractor_that_tells_images_apart_is_accepted_with_its_figures():
    found = judged(Network(rows))
    assert (found["images"], found["rank"]) == (300, 8)
    assert 0 < found["distance"] < 0.1 * found["distance_shuffled"]


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (lambda x: torch.ones(len(x), 8), ("0 directions",)),
        (lambda x: rows(x)[:, :1].repeat(1, 8), ("1 directions",)),
        (lambda x: x.flatten(1).sort(1).values[:, ::32], ("pixels shuffled", "at most 0.5")),  # blind to structure
    ],
)
def test_an_extractor_that_tells_no_images_apart_is_refused(features, words):
    assert says(refusal(judged, Network(features)), "'averages' is not fit to measure", *words)


def test_a_reference_of_other_images_is_refused():
    for real in (255 - TRAIN, noise(500)):
        assert says(refusal(judged, Network(rows), real, "file"), "is not fit to measure", "pixels shuffled")


def prepared(folder: Path, *overrides: str, data: ImageFolderData | None = None, scale: str = "smoke") -> Path:
    """The folder of a run's extractor stage."""
    spec = load_experiment("table1", scale, overrides).rows["mar/diff/guided"]
    run = generation_run("row", replace(spec, data=data or spec.data))
    places = Places(folder / "runs", folder / "records")
    stage = places.folder("extractor", run.ids["extractor_id"])
    stage.mkdir(parents=True)
    STAGES["extractor"](run, places, stage, silent)
    return stage


def test_a_classifier_that_learned_nothing_is_refused(tmp_path):
    message = refusal(prepared, tmp_path, "metrics.extractor.lr=1e-9")
    assert says(message, "'digits' is not fit to measure", "10.0% of 300", "metrics.extractor.min_accuracy 0.8")
    assert not [*tmp_path.rglob("*.npz")]


def test_kept_classifiers_are_not_trained_again(tmp_path, monkeypatch):
    """They are those of the small scales: a changed spec, whose id has no file, would train its own on each machine."""
    specs = [load_experiment("table1", scale).rows["mar/diff/guided"] for scale in ("tiny", "desk", "fashion")]
    assert {stage_ids(spec)["extractor_id"] for spec in specs} == set(features.CLASSIFIERS)
    assert all(features.kept_classifier(extractor_id) for extractor_id in features.CLASSIFIERS)
    stage = prepared(tmp_path, scale="tiny")
    assert {file.name for file in stage.iterdir()} == {"reference.npz", "heldout.npz"}
    assert read_reference(stage / "reference.npz").extractor["sha256"] == features.CLASSIFIERS[stage.name]
    monkeypatch.setattr(features, "CLASSIFIERS", dict.fromkeys(features.CLASSIFIERS, "0" * 64))
    message = refusal(prepared, tmp_path / "damaged", scale="tiny")
    assert says(message, f"classifiers/{stage.name}.safetensors", "damaged", "install mar_bench again")


def test_the_classifier_of_smoke_scale_is_accepted_and_its_figures_are_kept(tmp_path):
    stage = prepared(tmp_path)
    real, heldout = (read_reference(stage / f"{name}.npz") for name in ("reference", "heldout"))
    figures = real.extractor["acceptance"]
    assert figures["accuracy"] > 0.9 and figures["rank"] == 16 and figures["images"] == 300
    assert figures["distance"] == Measure(MetricsSpec(), real).distance(heldout.statistics)
    images = replace(extract_features([TRAIN], Averages()), extractor=heldout.extractor)
    protocol = Measure(MetricsSpec(), real)._protocol(images)
    assert protocol["extractor"] == {**heldout.extractor, "acceptance": figures}


def image_folder(root: Path, train: torch.Tensor, val: torch.Tensor) -> ImageFolderData:
    for part, images in (("train", train), ("val", val)):
        for i, image in enumerate(images):
            path = root / part / "ab"[i % 2] / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    return ImageFolderData(root=str(root), image_size=16, channels=1, num_classes=2, flip=False)


ANY = ("metrics.extractor.min_accuracy=0", "metrics.extractor.steps=1", "metrics.extractor.batch_size=4")


def test_held_out_images_that_are_the_training_images_are_refused(tmp_path):
    data = image_folder(tmp_path / "data", TRAIN[:40], TRAIN[:40].flip(0))
    assert says(refusal(prepared, tmp_path, *ANY, data=data), "held-out images are the images of reference")
    found = load_data(data)
    for real in (TRAIN, noise(50)):
        same = DataSet(found.train, found.train)
        assert says(refusal(judged, Network(rows), real, "file", same), "held-out images are the training images")


def test_shared_images_are_counted_recorded_and_shown(tmp_path):
    data = image_folder(tmp_path / "data", TRAIN[:40], torch.cat([TRAIN[:9], HELDOUT[:31]]))
    stage = prepared(tmp_path, *ANY, data=data)
    real, heldout = (read_reference(stage / f"{name}.npz") for name in ("reference", "heldout"))
    copies = torch.cat([TRAIN[:5], TRAIN[:2], HELDOUT[:1], 255 - HELDOUT[:12]])
    seen = extract_features([copies], Averages(), torch.arange(20) % 2)
    protocol = Measure(MetricsSpec(), real, heldout)._protocol(seen)
    assert protocol["overlaps"] == {
        "samples in held-out images": 8, "samples in reference": 7, "held-out images in reference": 9
    }  # fmt: skip
    assert [*weaknesses(json.loads(json.dumps(protocol))).items()] == [
        ("2 repeated images", "some images are copies of another one"),
        ("8 samples in held-out images", "8 of the 20 samples are also in the held-out images, pixel by pixel"),
        ("7 samples in reference", "7 of the 20 samples are also in the reference, pixel by pixel"),
        ("9 held-out images in reference", "9 of the 40 held-out images are also in the reference, pixel by pixel"),
    ]


def test_overlaps_with_a_reference_of_an_older_version_are_unknown():
    space = Network(rows)
    real = replace(reference(TRAIN, space), digests=None)
    protocol = Measure(MetricsSpec(), real)._protocol(extract_features([HELDOUT], space))
    assert "overlaps" not in protocol and "acceptance" not in protocol["extractor"]
    with pytest.raises(UserError, match="nothing to compare"):
        Measure(MetricsSpec(), real)(extract_features([TRAIN], space))


def test_digests_are_kept_and_checked(tmp_path):
    real = reference(HELDOUT, Network(rows))
    real.save(tmp_path / "x.npz")
    found = read_reference(tmp_path / "x.npz").digests
    assert found.shape == (300, 16) and np.array_equal(found, real.digests)
    replace(real, digests=real.digests[:, :8]).save(tmp_path / "x.npz")
    assert says(refusal(read_reference, tmp_path / "x.npz"), "x.npz", "uint8 (300, 8)")
