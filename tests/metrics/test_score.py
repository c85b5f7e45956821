"""Scores of a set of images: torch-fidelity's numbers, their uncertainty, the protocol, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from safetensors.torch import save_file
from torch.utils.data import Dataset
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_part

from mar_bench.config.spec import MetricsSpec
from mar_bench.metrics import functions
from mar_bench.metrics import score as module
from mar_bench.metrics.functions import copied, frechet_distance, standard_error, statistics
from mar_bench.metrics.references import Reference, build_reference
from mar_bench.metrics.score import FeatureSet, Measure, extract_features, largest_settings, load_features
from tests.measuring import Averages, classifier, digits, noise, refusal, says, space_of

SPACE = Averages()
SETTINGS = MetricsSpec(is_splits=4, kid_subsets=20, kid_subset_size=50, neighbours=3, jackknife_groups=10)
ALL = {f"{m}_averages" for m in ("fd", "is", "kid", "mind", "precision", "recall", "copied")}


def pictures(count: int, seed: int = 0, dark: float = 1.0) -> torch.Tensor:
    """Images (count, 3, 8, 8) whose quarters differ."""
    coarse = noise(count, seed, 3, 2, 2).float() * dark
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).byte()


DRAWN, REAL = pictures(120, seed=1, dark=0.8), pictures(150)
LABELS = torch.arange(120) % 5


def reference(images: torch.Tensor = REAL, most: int = 1000, space=SPACE, kind: str = "training") -> Reference:
    return build_reference(images.split(40), len(images), space, most, kind, f"{kind}:test")


def samples(
    images: torch.Tensor = DRAWN, labels: torch.Tensor | None = LABELS, space=SPACE, size: int = 40
) -> FeatureSet:
    return extract_features(images.split(size), space, labels)


def numbers(uncertainty: dict) -> list[float]:
    return [v for entry in uncertainty.values() for v in entry.values() if not isinstance(v, str)]


class Images(list, Dataset):
    """Images in torch-fidelity's format: one bare uint8 tensor (C, H, W) per item."""


def registered(net: torch.nn.Module, name: str) -> str:
    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.net = net

        get_provided_features_list = staticmethod(lambda: ("features", "logits"))
        get_default_feature_layer_for_metric = staticmethod(lambda name: "logits" if name == "isc" else "features")
        can_be_compiled = staticmethod(lambda: False)

        def forward(self, images):
            outputs = dict(zip(("features", "logits"), self.net(images)))
            return tuple(outputs[name] for name in self.features_list)

    torch_fidelity.register_feature_extractor(name, Extractor)
    return name


def test_all_numbers_equal_torch_fidelitys(tmp_path):
    """Samples of two classes against all ten: high precision, low recall."""
    net = classifier()
    for parameter in net.parameters():
        parameter.data *= 3  # features and logits of order 1
    drawn, real = digits(0, 1)[:230], digits(*range(10))[:250]
    with torch.no_grad():  # torch-fidelity computes means in float32, exact to 1e-6 only near 0
        net.features.bias -= net(torch.cat([drawn, real]))[0].mean(0)
    space = space_of(net, tmp_path)
    settings = {"isc_splits": 4, "kid_subsets": 12, "kid_subset_size": 60, "prc_neighborhood": 3}
    options = {"batch_size": space.batch_size, "cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
    asked = {"isc": True, "fid": True, "kid": True, "prc": True, "rng_seed": 2020, **settings, **options}
    asked |= {"input1": Images(drawn), "input2": Images(real), "feature_extractor": registered(space.net, "test")}
    assert set(asked) <= set(DEFAULTS), "torch-fidelity ignores unknown options"
    expected = torch_fidelity.calculate_metrics(**asked)

    real, drawn = build_reference([real], 250, space, 250, "", ""), extract_features([drawn], space)
    found = Measure(replace(SETTINGS, kid_subsets=12, kid_subset_size=60), real)(drawn)
    metrics, uncertainty = found.metrics, found.uncertainty
    assert metrics["fd_test"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    exact = (fid_features_to_statistics(x.features.double()) for x in (drawn, real))
    assert metrics["fd_test"] == pytest.approx(fid_statistics_to_metric(*exact, False)[KEY_METRIC_FID], rel=1e-6)
    assert metrics["precision_test"] == pytest.approx(expected["precision"], rel=1e-6)
    assert metrics["recall_test"] == pytest.approx(expected["recall"], rel=1e-6)
    assert metrics["is_test"] == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert uncertainty["is_test"]["sd_splits"] == pytest.approx(expected["inception_score_std"], rel=1e-9)
    assert metrics["kid_test"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    deviation = uncertainty["kid_test"]["sd_subsets"]
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)
    assert metrics["precision_test"] > metrics["recall_test"] + 0.1 > 0.2, "would fail if swapped"


def test_images_are_extracted_once_and_batch_by_batch():
    done: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for batch in DRAWN.split(50):
            done.append(len(space.batches))
            yield batch

    space = Averages()
    found = extract_features(stream(), space, LABELS, kind="run")
    assert done == [0, 1, 2] and space.batches == [50, 50, 20]
    assert torch.equal(found.features, SPACE.extract(DRAWN)[0]) and torch.equal(found.logits, SPACE.extract(DRAWN)[1])
    assert torch.equal(found.preview, DRAWN[: module.PREVIEW_IMAGES]) and found.labels is LABELS
    assert found.extractor == space.about
    about = {k: v for k, v in found.about.items() if k not in ("sha256", "set_sha256", "first_batch")}
    assert about == {"num_images": 120, "size": [8, 8], "channels": 3, "duplicates": 0, "kind": "run"}
    assert found.about["first_batch"] == {"images": 50, "sha256": samples(DRAWN[:50], None).about["sha256"]}
    assert samples(torch.cat([DRAWN[:50], DRAWN[:5], DRAWN[:1]]), None).about["duplicates"] == 6


def test_metrics_are_computed_from_the_features():
    found, real, heldout = samples(), reference(), reference(pictures(60, seed=3, dark=0.3), kind="heldout")
    metrics = Measure(SETTINGS, real, heldout)(found).metrics
    assert set(metrics) == ALL | {"fd_averages_heldout"}
    for name, other in (("fd_averages", real), ("fd_averages_heldout", heldout)):
        expected = frechet_distance(statistics(found.features), other.statistics)
        assert metrics[name] == pytest.approx(expected, rel=1e-9)
    assert metrics["copied_averages"] == copied(found.features, real.features).double().mean().item()
    precision, recall = calculate_precision_recall_part(found.features, real.features)
    assert (metrics["precision_averages"], metrics["recall_averages"]) == (precision, recall)
    assert precision != recall and precision > 0


@pytest.mark.parametrize("labels", [LABELS, None])
def test_every_metric_has_an_uncertainty_from_leaving_each_group_out_once(labels):
    found, real, settings = samples(labels=labels), reference(), replace(SETTINGS, jackknife_groups=6)
    scores = Measure(settings, real)(found)
    assert set(scores.uncertainty) == set(scores.metrics)
    for name, entry in scores.uncertainty.items():
        expected = {"kid_averages": {"sd_subsets"}}.get(name, {"standard_error", "method"})
        assert set(entry) == expected | ({"sd_splits"} if name == "is_averages" else set())
        assert np.isfinite(numbers({0: entry})).all()
    groups = functions.jackknife_groups(120, 6, labels)
    rest = [found.features[groups != g] for g in range(6)]
    expected = standard_error([frechet_distance(statistics(r), statistics(real.features)) for r in rest])
    recalls = [calculate_precision_recall_part(r, real.features)[1] for r in rest]
    assert scores.uncertainty["fd_averages"]["standard_error"] == pytest.approx(expected, rel=1e-6)
    assert scores.uncertainty["recall_averages"]["standard_error"] == pytest.approx(standard_error(recalls), rel=1e-9)


def test_many_images_have_no_standard_error_of_recall(monkeypatch):
    monkeypatch.setattr(module, "RECALL_IMAGES", 119)
    scores = Measure(SETTINGS, reference())(samples())
    assert "recall_averages" not in scores.uncertainty and scores.metrics["recall_averages"] > 0
    assert "fd_averages" in scores.uncertainty


def test_metrics_without_logits_or_without_features():
    plain = Averages(name="plain", scores=False)
    settings = replace(SETTINGS, is_splits=10_000)
    scores = Measure(settings, reference(space=plain))(samples(space=plain))
    assert set(scores.metrics) == {n.replace("averages", "plain") for n in ALL - {"is_averages"}}
    real = reference()
    bare = Reference(real.statistics, None, {**real.about, "num_features": 0, "num_images": None}, real.extractor)
    found = Measure(SETTINGS, bare)(samples())
    assert set(found.metrics) == {"fd_averages", "is_averages"}
    assert not any(name.startswith("mind") for name in found.protocol["settings"])
    assert "copied_averages" not in Measure(SETTINGS, reference(most=149))(samples()).metrics


def test_only_a_classifier_of_the_data_set_gives_accuracy():
    ours = Averages("classifier", "ours")
    found = samples(labels=SPACE.extract(DRAWN)[1].argmax(1), space=ours)
    found.labels[:30] = 99
    scores = Measure(SETTINGS, reference(space=ours))(found)
    assert scores.metrics["accuracy_ours"] == 0.75 and scores.uncertainty["accuracy_ours"]["standard_error"] < 0.1
    assert "accuracy_ours" not in Measure(SETTINGS, reference(space=ours))(samples(labels=None, space=ours)).metrics


def test_heldout_images_are_scored_as_samples_would_be():
    heldout, real = reference(pictures(60, seed=3), kind="heldout"), reference()
    found = Measure(SETTINGS, real, heldout).real()
    as_samples = Measure(SETTINGS, real)(samples(pictures(60, seed=3), None)).metrics
    assert set(found) == {f"{name}_real" for name in ALL - {"is_averages"}}
    assert found == pytest.approx({f"{k}_real": v for k, v in as_samples.items() if k != "is_averages"}, rel=1e-9)
    few = Measure(SETTINGS, real, reference(pictures(20, seed=3))).real()
    assert np.isfinite(few["kid_averages_real"]), "with smaller subsets"
    assert set(Measure(SETTINGS, reference(most=100), heldout).real()) == set(found) - {"copied_averages_real"}


def test_the_protocol_records_how_the_metrics_were_measured():
    heldout, found, real = reference(pictures(60, seed=3), kind="heldout"), samples(), reference(most=100)
    protocol = Measure(SETTINGS, real, heldout)(found).protocol
    assert protocol == {
        "extractor": SPACE.about, "reference": real.about, "heldout": heldout.about, "samples": found.about,
        "num_generated": 120, "num_reference": 150, "num_heldout": 60,
        "label_mode": "balanced", "class_balance": {"classes": 5, "least": 24, "most": 24}, "dtype": "float32",
        "settings": {
            "is_splits": 4, "is_seed": 2020, "kid_subsets": 20, "kid_subset_size": 50, "kid_seed": 2020,
            "kid_kernel": "(x.y / dim + 1)^3", "neighbours": 3, "jackknife_groups": 10,
            "mind_images": 100, "mind_projections": 1000, "mind_seed": 2020,
        },
        "singular": False,
        "overlaps": dict.fromkeys(
            ("samples in held-out images", "samples in reference", "held-out images in reference"), 0
        ),
    }  # fmt: skip
    assert {"heldout", "num_heldout"}.isdisjoint(Measure(SETTINGS, real)(found).protocol)


def test_the_protocol_records_the_balance_of_classes():
    for labels, *expected in (
        (torch.arange(120) % 7, "balanced", {"classes": 7, "least": 17, "most": 18}),
        ((torch.arange(120) % 7).clamp(max=5), "unbalanced", {"classes": 6, "least": 17, "most": 34}),
        (None, "unknown", None),
    ):
        protocol = Measure(SETTINGS, reference())(samples(labels=labels)).protocol
        assert [protocol["label_mode"], protocol.get("class_balance")] == expected


def test_images_that_do_not_match_the_reference_are_refused():
    measure, real = Measure(SETTINGS, reference()), reference()
    message = refusal(measure, samples(noise(120, channels=3, height=8, width=10)))
    assert says(message, "8x10x3", "'training:test'", "8x8x3")
    assert says(refusal(measure, samples(noise(120, height=8, width=8))), "8x8x1", "'training:test'", "8x8x3")
    assert says(refusal(measure, samples(REAL.flip(0), None)), "'training:test'", "nothing to compare")
    other = Averages(name="other")
    assert says(refusal(Measure(SETTINGS, reference(space=other)), samples()), "'other'", "'averages'")
    narrow = replace(samples(), features=samples().features[:, :3])
    assert says(refusal(measure, narrow), "4 features", ", 3)")
    unknown = replace(real, about={**real.about, "size": None, "channels": None})
    assert Measure(SETTINGS, unknown)(samples(noise(120, height=9, width=8))).metrics


@pytest.mark.parametrize(
    ("key", "most"), [("is_splits", 108), ("jackknife_groups", 120), ("kid_subset_size", 90), ("neighbours", 89)]
)
def test_the_largest_value_of_a_setting_works_and_a_larger_one_is_refused(key, most):
    """120 images, 108 without a group, against 90."""
    real = reference(most=90)
    message = refusal(Measure(replace(SETTINGS, **{key: most + 1}), real), samples())
    assert says(message, f"metrics.{key} {most + 1}", "120 images against 90", f"at most {most} here")
    scores = Measure(replace(SETTINGS, **{key: most}), real)(samples())
    assert np.isfinite([*scores.metrics.values(), *numbers(scores.uncertainty)]).all()


@pytest.mark.parametrize("count", [3, 12])
def test_the_largest_settings_give_finite_numbers(count):
    groups = min(10, count)
    settings = replace(SETTINGS, jackknife_groups=groups)
    settings = replace(settings, **largest_settings(settings, count, 150) | {"jackknife_groups": groups})
    scores = Measure(settings, reference())(samples(DRAWN[:count], None))
    assert np.isfinite([*scores.metrics.values(), *numbers(scores.uncertainty)]).all()


@pytest.mark.parametrize(("count", "groups"), [(3, 2), (2, 10)])
def test_too_few_images_for_a_jackknife_are_refused(count, groups):
    message = refusal(largest_settings, replace(SETTINGS, jackknife_groups=groups), count, 150)
    assert says(message, f"{count} images are too few")


@pytest.mark.parametrize(("labels", "scores"), [(None, True), (LABELS, False)])
def test_kept_features_give_the_same_scores(labels, scores, tmp_path):
    space = Averages(scores=scores)
    before = samples(labels=labels, space=space)
    before.save(tmp_path / "x.safetensors")
    after = load_features(tmp_path / "x.safetensors")
    assert (before.about, before.extractor) == (after.about, after.extractor) and len(after.preview) == 0
    measure = Measure(SETTINGS, reference(space=space))
    assert measure(before) == measure(after)


def test_damaged_files_of_features_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    assert says(refusal(load_features, path), path, "no such file")
    samples().save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:-1]):
        path.write_bytes(content)
        assert says(refusal(load_features, path), path, "kept features")
    good = {"about": '{"num_images": 2}', "extractor": "{}"}
    for tensors, notes in (
        ({"features": torch.zeros(2, 2)}, None),
        ({"features": torch.zeros(3, 2)}, good),
        ({"features": torch.full((2, 2), torch.nan)}, good),
        ({"logits": torch.zeros(2, 2)}, good),
    ):
        save_file(tensors, path, notes)
        assert says(refusal(load_features, path), path, "kept features")
