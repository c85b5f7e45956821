"""Scores of a set of images: torch-fidelity's numbers, their chance, how they were measured, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from mar_bench.config.spec import MetricsSpec
from mar_bench.metrics import score as module
from mar_bench.metrics.features import Images
from mar_bench.metrics.functions import copied, frechet_distance, precision_recall, standard_error, statistics
from mar_bench.metrics.references import Reference, build_reference
from mar_bench.metrics.score import (
    PREVIEW_IMAGES,
    FeatureSet,
    Measure,
    extract_features,
    largest_settings,
    load_features,
)
from tests.measuring import Averages, classifier, digits, noise, refusal, says, space_of

SPACE = Averages()
SETTINGS = MetricsSpec(is_splits=4, kid_subsets=20, kid_subset_size=50, neighbours=3, jackknife_groups=10)
ALL = {f"{m}_averages" for m in ("fd", "is", "kid", "precision", "recall", "copied")}


def pictures(count: int, seed: int = 0, dark: float = 1.0) -> torch.Tensor:
    """Images whose quarters differ: (count, 3, 8, 8)."""
    coarse = noise(count, seed, 3, 2, 2).float() * dark
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).byte()


DRAWN, REAL = pictures(120, seed=1, dark=0.8), pictures(150)
LABELS = torch.arange(120) % 5


def reference(images: torch.Tensor = REAL, most: int = 1000, space=SPACE, kind: str = "training") -> Reference:
    return build_reference(images.split(40), len(images), space, most, kind, f"{kind}:test")


def seen(images: torch.Tensor = DRAWN, labels: torch.Tensor | None = LABELS, space=SPACE, size: int = 40) -> FeatureSet:
    return extract_features(images.split(size), space, labels)


# --- parity with torch-fidelity -------------------------------------------------------------------------


def test_all_numbers_are_torch_fidelitys(tmp_path):
    """Samples of two classes against all ten: precise, and far from complete."""
    net = classifier()
    for parameter in net.parameters():
        parameter.data *= 3  # so that features and logits are of the order of 1
    drawn, real = digits(0, 1)[:230], digits(*range(10))[:250]
    with torch.no_grad():  # torch-fidelity takes means in float32, which only near 0 are exact to 1e-6
        net.features.bias -= net(torch.cat([drawn, real]))[0].mean(0)
    space = space_of(net, tmp_path)
    settings = {"isc_splits": 4, "kid_subsets": 12, "kid_subset_size": 60, "prc_neighborhood": 3}
    options = {"batch_size": space.batch_size, "cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True}
    asked = {"isc": True, "fid": True, "kid": True, "prc": True, "rng_seed": 2020, **settings, **options}
    asked |= {"input1": Images(drawn), "input2": Images(real), "feature_extractor": space.extractor.get_name()}
    assert set(asked) <= set(DEFAULTS), "torch-fidelity ignores what it does not know"
    expected = torch_fidelity.calculate_metrics(**asked)

    real, drawn = build_reference([real], 250, space, 250, "", ""), extract_features([drawn], space)
    found = Measure(replace(SETTINGS, kid_subsets=12, kid_subset_size=60), real)(drawn)
    metrics, doubt = found.metrics, found.uncertainty
    assert metrics["fd_test"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    exact = (fid_features_to_statistics(x.features.double()) for x in (drawn, real))
    assert metrics["fd_test"] == pytest.approx(fid_statistics_to_metric(*exact, False)[KEY_METRIC_FID], rel=1e-6)
    assert metrics["precision_test"] == pytest.approx(expected["precision"], rel=1e-6)
    assert metrics["recall_test"] == pytest.approx(expected["recall"], rel=1e-6)
    assert metrics["is_test"] == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert doubt["is_test"]["sd_splits"] == pytest.approx(expected["inception_score_std"], rel=1e-9)
    assert metrics["kid_test"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert doubt["kid_test"]["sd_subsets"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)
    assert metrics["precision_test"] > metrics["recall_test"] + 0.1 > 0.2, "exchanged, they would not pass"


# --- one pass -------------------------------------------------------------------------------------------


def test_a_stream_is_taken_once_and_a_batch_at_a_time():
    alive: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for batch in DRAWN.split(50):
            alive.append(len(space.batches))
            yield batch

    space = Averages()
    found = extract_features(stream(), space, LABELS, kind="run")
    assert alive == [0, 1, 2] and space.batches == [50, 50, 20], "each is seen before the next is made"
    assert torch.equal(found.features, SPACE.extract(DRAWN)[0]) and torch.equal(found.logits, SPACE.extract(DRAWN)[1])
    assert torch.equal(found.preview, DRAWN[:PREVIEW_IMAGES]) and found.labels is LABELS
    assert found.extractor == space.about
    about = {k: v for k, v in found.about.items() if k not in ("sha256", "set_sha256", "first_batch")}
    assert about == {"num_images": 120, "size": [8, 8], "channels": 3, "duplicates": 0, "kind": "run"}
    assert found.about["first_batch"] == {"images": 50, "sha256": seen(DRAWN[:50], None).about["sha256"]}


def test_how_images_are_batched_makes_no_difference():
    measure = Measure(SETTINGS, reference())
    one, other = seen(size=1), seen(size=120)
    assert one.about["sha256"] == other.about["sha256"] != seen(DRAWN.flip(0)).about["sha256"]
    first, second = measure(one), measure(other)
    assert first.metrics == pytest.approx(second.metrics, rel=1e-9)
    assert torch.equal(one.preview, other.preview)


def test_copies_among_the_samples_are_counted():
    twice = torch.cat([DRAWN[:50], DRAWN[:5], DRAWN[:1]])
    assert seen(twice, None).about["duplicates"] == 6


# --- metrics and their chance ---------------------------------------------------------------------------


def test_metrics_are_those_of_the_features():
    found, real = seen(), reference()
    scores = Measure(SETTINGS, real)(found)
    assert set(scores.metrics) == ALL
    assert scores.metrics["fd_averages"] == pytest.approx(
        frechet_distance(statistics(found.features), statistics(real.features)), rel=1e-9
    )
    assert scores.metrics["copied_averages"] == copied(found.features, real.features).double().mean().item()
    precision, recall = precision_recall(generated=found.features, reference=real.features, neighbours=3)
    assert (scores.metrics["precision_averages"], scores.metrics["recall_averages"]) == (precision, recall)
    assert precision != recall and precision > 0


def test_every_metric_has_its_uncertainty_and_no_other():
    scores = Measure(SETTINGS, reference(), heldout=reference(pictures(60, seed=3), kind="heldout"))(seen())
    assert set(scores.metrics) == ALL | {"fd_averages_heldout"} and set(scores.uncertainty) == set(scores.metrics)
    for name, doubt in scores.uncertainty.items():
        if name == "kid_averages":
            assert set(doubt) == {"sd_subsets"}
            continue
        assert doubt["method"] == "jackknife, 10 groups" and np.isfinite(doubt["standard_error"])
        assert set(doubt) - {"sd_splits"} == {"standard_error", "method"} and ("sd_splits" in doubt) == ("is_" in name)
    assert scores.uncertainty["fd_averages"]["standard_error"] > 0


@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_standard_error_leaves_each_group_out_once(labels):
    found, real, settings = seen(labels=labels), reference(), replace(SETTINGS, jackknife_groups=6)
    groups = module.jackknife_groups(120, 6, labels)
    rest = [found.features[groups != g] for g in range(6)]
    expected = standard_error([frechet_distance(statistics(r), statistics(real.features)) for r in rest])
    recalls = [precision_recall(generated=r, reference=real.features, neighbours=3)[1] for r in rest]
    doubt = Measure(settings, real)(found).uncertainty
    assert doubt["fd_averages"]["standard_error"] == pytest.approx(expected, rel=1e-6)
    assert doubt["recall_averages"]["standard_error"] == pytest.approx(standard_error(recalls), rel=1e-9)


def test_of_many_images_recall_is_not_measured_again(monkeypatch):
    monkeypatch.setattr(module, "RECALL_IMAGES", 120)
    assert "recall_averages" in Measure(SETTINGS, reference())(seen()).uncertainty
    monkeypatch.setattr(module, "RECALL_IMAGES", 119)
    calls, original = [], module.precision_recall
    monkeypatch.setattr(module, "precision_recall", lambda **k: calls.append(k) or original(**k))
    scores = Measure(SETTINGS, reference())(seen())
    assert "recall_averages" not in scores.uncertainty and scores.metrics["recall_averages"] > 0 and len(calls) == 1
    assert "fd_averages" in scores.uncertainty


def test_without_logits_there_is_no_score_and_without_features_a_distance_alone():
    plain = Averages(name="plain", scores=False)
    settings = replace(SETTINGS, is_splits=10_000)
    scores = Measure(settings, reference(space=plain))(seen(space=plain))
    assert set(scores.metrics) == {n.replace("averages", "plain") for n in ALL - {"is_averages"}}
    real = reference()
    bare = Reference(real.statistics, None, {**real.about, "num_features": 0, "num_images": None}, real.extractor)
    scores = Measure(SETTINGS, bare)(seen())
    assert set(scores.metrics) == set(scores.uncertainty) == {"fd_averages", "is_averages"}
    assert "copied_averages" not in Measure(SETTINGS, reference(most=149))(seen()).metrics


def test_only_a_classifier_of_the_data_says_whether_classes_are_right():
    ours = Averages("classifier", "ours")
    found = seen(labels=SPACE.extract(DRAWN)[1].argmax(1), space=ours)
    found.labels[:30] = 99
    scores = Measure(SETTINGS, reference(space=ours))(found)
    assert scores.metrics["accuracy_ours"] == 0.75 and scores.uncertainty["accuracy_ours"]["standard_error"] < 0.1
    assert "accuracy_ours" not in Measure(SETTINGS, reference(space=ours))(seen(labels=None, space=ours)).metrics


def test_inception_alone_gives_a_fid():
    inception = Averages("inception", "inception")
    scores = Measure(SETTINGS, reference(space=inception), reference(pictures(60, 3), space=inception))
    found = scores(seen(space=inception))
    assert set(found.metrics) == {"fid", "fid_heldout", "is", "kid", "precision", "recall", "copied"}


def test_held_out_images_are_scored_as_samples_would_be():
    heldout, real = reference(pictures(60, seed=3), kind="heldout"), reference()
    found = Measure(SETTINGS, real, heldout).real()
    as_samples = Measure(SETTINGS, real)(seen(pictures(60, seed=3), None)).metrics
    assert set(found) == {f"{name}_real" for name in ALL - {"is_averages"}}
    assert {k.removesuffix("_real"): v for k, v in found.items()} == pytest.approx(
        {k: v for k, v in as_samples.items() if k != "is_averages"}, rel=1e-9
    )
    few = Measure(SETTINGS, real, reference(pictures(20, seed=3))).real()
    assert np.isfinite(few["kid_averages_real"]), "of smaller subsets"
    assert set(Measure(SETTINGS, reference(most=100), heldout).real()) == set(found) - {"copied_averages_real"}


def test_the_held_out_distance_is_against_the_held_out_images():
    heldout = reference(pictures(60, seed=3, dark=0.3), kind="heldout")
    scores = Measure(SETTINGS, reference(), heldout)(seen())
    expected = frechet_distance(statistics(seen().features), heldout.statistics)
    assert scores.metrics["fd_averages_heldout"] == pytest.approx(expected, rel=1e-9)
    assert scores.metrics["fd_averages"] != pytest.approx(expected, rel=0.1)


# --- protocol -------------------------------------------------------------------------------------------


def test_the_protocol_says_how_it_was_measured():
    heldout, found, real = reference(pictures(60, seed=3), kind="heldout"), seen(), reference(most=100)
    protocol = Measure(SETTINGS, real, heldout)(found).protocol
    assert protocol == {
        "extractor": SPACE.about, "reference": real.about, "heldout": heldout.about, "samples": found.about,
        "num_generated": 120, "num_reference": 150, "num_heldout": 60,
        "label_mode": "balanced", "class_balance": {"classes": 5, "least": 24, "most": 24}, "dtype": "float32",
        "settings": {
            "is_splits": 4, "is_seed": 2020, "kid_subsets": 20, "kid_subset_size": 50, "kid_seed": 2020,
            "kid_kernel": "(x.y / dim + 1)^3", "neighbours": 3, "jackknife_groups": 10,
        },
        "singular": False,
    }  # fmt: skip
    assert protocol["samples"]["sha256"] != protocol["reference"]["sha256"] != protocol["heldout"]["sha256"]
    assert {"heldout", "num_heldout"}.isdisjoint(Measure(SETTINGS, real)(found).protocol)


@pytest.mark.parametrize(
    ("labels", "mode", "balance"),
    [
        (LABELS, "balanced", (5, 24, 24)),
        (torch.arange(120) % 7, "balanced", (7, 17, 18)),
        ((torch.arange(120) % 7).clamp(max=5), "unbalanced", (6, 17, 34)),
        (torch.zeros(120, dtype=torch.long), "balanced", (1, 120, 120)),
        (None, "unknown", None),
    ],
)
def test_the_protocol_says_whether_classes_are_equally_frequent(labels, mode, balance):
    protocol = Measure(SETTINGS, reference())(seen(labels=labels)).protocol
    assert protocol["label_mode"] == mode
    assert protocol.get("class_balance") == (balance and dict(zip(("classes", "least", "most"), balance)))


def test_as_few_images_as_features_are_told_on_either_side():
    few = MetricsSpec(is_splits=2, kid_subsets=2, kid_subset_size=2, neighbours=1, jackknife_groups=2)

    def singular(drawn: int, real: int) -> bool:
        return Measure(few, reference(pictures(real, 7)))(seen(DRAWN[:drawn], None)).protocol["singular"]

    assert [singular(4, 50), singular(5, 50), singular(50, 4), singular(50, 5)] == [True, False, True, False]


# --- what does not fit ----------------------------------------------------------------------------------


def test_images_of_another_size_or_mode_are_not_compared():
    measure = Measure(SETTINGS, reference())
    message = refusal(measure, seen(noise(120, channels=3, height=8, width=10)))
    assert says(message, "8x10 pixels", "'training:test' 8x8", "nothing is resized")
    assert says(refusal(measure, seen(noise(120, height=8, width=8))), "1 channels", "'training:test' 3")
    real = reference()
    unknown = replace(real, about={**real.about, "size": None, "channels": None})
    assert Measure(SETTINGS, unknown)(seen(noise(120, height=9, width=8))).metrics


def test_a_reference_of_another_extractor_is_not_compared():
    other = Averages(name="other")
    message = refusal(Measure(SETTINGS, reference(space=other)), seen())
    assert says(message, "'other'", "'averages'", "take the same")
    narrow = replace(seen(), features=seen().features[:, :3])
    assert says(refusal(Measure(SETTINGS, reference()), narrow), "4 features", ", 3)")


def test_the_reference_itself_is_no_set_of_samples():
    assert says(refusal(Measure(SETTINGS, reference()), seen(REAL, None)), "'training:test'", "nothing to compare")
    real = reference()
    from_file = replace(real, about={**real.about, "sha256": "f" * 64, "images_sha256": real.about["sha256"]})
    assert says(refusal(Measure(SETTINGS, from_file), seen(REAL, None)), "nothing to compare")


@pytest.mark.parametrize(
    ("key", "most"), [("is_splits", 108), ("jackknife_groups", 120), ("kid_subset_size", 90), ("neighbours", 89)]
)
def test_a_setting_too_large_for_the_images_is_named_and_the_largest_works(key, most):
    """120 images, 108 without a group, against 90."""
    real = reference(most=90)
    message = refusal(Measure(replace(SETTINGS, **{key: most + 1}), real), seen())
    assert says(message, f"metrics.{key} {most + 1}", "120 images against 90", f"at most {most} here")
    scores = Measure(replace(SETTINGS, **{key: most}), real)(seen())
    assert all(np.isfinite(v) for v in scores.metrics.values())
    numbers = [v for doubt in scores.uncertainty.values() for v in doubt.values() if not isinstance(v, str)]
    assert np.isfinite(numbers).all()


@pytest.mark.parametrize("count", [3, 4, 5, 11, 12, 30])
def test_the_largest_settings_give_finite_numbers(count):
    """As few images as there may be: each metric is taken without the largest group too."""
    settings = replace(SETTINGS, jackknife_groups=min(10, count))
    settings = replace(settings, **largest_settings(settings, count, 150) | {"jackknife_groups": min(10, count)})
    scores = Measure(settings, reference())(seen(DRAWN[:count], None))
    numbers = [v for doubt in scores.uncertainty.values() for v in doubt.values() if not isinstance(v, str)]
    assert np.isfinite([*scores.metrics.values(), *numbers]).all()


@pytest.mark.parametrize(("count", "groups"), [(2, 2), (3, 2), (2, 10)])
def test_two_images_are_too_few_for_a_jackknife(count, groups):
    settings = MetricsSpec(is_splits=1, kid_subsets=1, kid_subset_size=2, neighbours=1, jackknife_groups=groups)
    assert says(refusal(Measure(settings, reference()), seen(DRAWN[:count], None)), f"{count} images are too few")


# --- kept features --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "scores"), [(LABELS, True), (None, True), (LABELS, False)])
def test_what_was_seen_is_loaded_as_it_was_saved(labels, scores, tmp_path):
    space = Averages(scores=scores)
    before = seen(labels=labels, space=space)
    before.save(tmp_path / "new" / "x.safetensors")
    after = load_features(tmp_path / "new" / "x.safetensors")
    assert torch.equal(before.features, after.features)
    for one, other in ((before.logits, after.logits), (before.labels, after.labels)):
        assert other is None if one is None else torch.equal(one, other)
    assert (before.about, before.extractor) == (after.about, after.extractor) and len(after.preview) == 0
    measure = Measure(SETTINGS, reference(space=space))
    assert measure(before) == measure(after)


def test_what_is_no_file_of_kept_features_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    assert says(refusal(load_features, path), path, "no features as mar-bench keeps them")
    seen().save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello there", whole[:-1], whole[:100]):
        path.write_bytes(content)
        assert says(refusal(load_features, path), path, "no features as mar-bench keeps them")
    for tensors, notes in (
        ({"features": torch.zeros(2, 2)}, None),
        ({"features": torch.zeros(2, 2)}, {"about": "{}"}),
        ({"features": torch.zeros(2, 2)}, {"about": "{", "extractor": "{}"}),
        ({"logits": torch.zeros(2, 2)}, {"about": "{}", "extractor": "{}"}),
    ):
        module.save_file(tensors, path, notes)
        assert says(refusal(load_features, path), path, "no features as mar-bench keeps them")
