"""Which records' numbers may be compared, metric by metric."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.experiment_checks import METRICS
from mar_bench.records.comparable import (
    ALL,
    OF_MADE_IMAGES,
    OF_REAL_IMAGES,
    OTHER_IMAGES,
    SAME_IMAGES,
    SAME_MACHINE,
    differences,
    disagreement,
    instrument_differences,
    largest_difference,
    tolerance_of,
)
from mar_bench.records.record import Record
from tests.made_up import as_before, generation, reconstruction, speed

ROW = "mar/diff/guided"
EVERY = frozenset(METRICS)
REFERENCE = {"fd", "kid", "precision", "recall", "copied"}


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


@pytest.fixture
def record(table1) -> Record:
    return generation(table1, ROW, 0, 0, 5.0)


def changed(record: Record, path: str, value) -> Record:
    """The record with another value at ``samples.size`` of its protocol; without it where the value is None."""
    protocol = json.loads(json.dumps(record.protocol))
    *blocks, key = path.split(".")
    block = protocol
    for name in blocks:
        block = block[name]
    block[key] = value
    if value is None:
        del block[key]
    return replace(record, protocol=protocol)


def test_every_metric_of_a_record_is_known():
    assert set(METRICS) <= OF_MADE_IMAGES and {f"{m}:real" for m in REFERENCE} == OF_REAL_IMAGES
    assert len(ALL) == len(OF_MADE_IMAGES) + len(OF_REAL_IMAGES)


def test_an_unknown_metric_is_the_programmer_s_error(record):
    with pytest.raises(ValueError, match="no metric 'fid'"):
        differences(record, record, "fid")


def test_rows_and_seeds_that_were_measured_alike_compare(table1, record):
    other = generation(table1, "raster_causal/ce/unguided", 2, 1, 7.0)
    assert other.protocol["samples"]["sha256"] != record.protocol["samples"]["sha256"]
    assert not any(differences(record, other, metric) for metric in ALL)


@pytest.mark.parametrize(
    ("path", "value", "metrics", "reason"),
    [
        ("extractor.sha256", "1234abcd" * 8, EVERY, "another feature extractor (sha256 ffffffff against 1234abcd)"),
        ("dtype", "float16", EVERY, "features in float32 against float16"),
        ("num_generated", 5000, EVERY, "1000 against 5000 generated images"),
        ("label_mode", "unknown", EVERY, "labels balanced against unknown"),
        ("samples.size", [64, 64], EVERY, "images of 32x32 against 64x64"),
        ("samples.channels", 3, EVERY, "1 against 3 channels"),
        ("samples.conversion", "floor", EVERY, "converted by round(255 x), clipped against floor"),
        ("reference.sha256", "9" * 64, REFERENCE, "another reference (sha256 aaaaaaaa against 99999999)"),
        ("reference.num_features", 9, REFERENCE - {"fd", "kid"}, "neighbours among 3000 against 9 reference images"),
        ("num_reference", 9, {"fd"}, "4000 against 9 reference images"),
        ("heldout.sha256", "9" * 64, {"fd:heldout"}, "other held-out images (sha256 bbbbbbbb against 99999999)"),
        ("num_heldout", 9, {"fd:heldout"}, "1000 against 9 held-out images"),
        ("settings.is_splits", 9, {"is"}, "IS over 5 against 9 splits"),
        ("settings.kid_subsets", 9, {"kid"}, "KID over 100 subsets of 500 against 9 subsets of 500"),
        ("settings.kid_subset_size", 9, {"kid"}, "KID over 100 subsets of 500 against 100 subsets of 9"),
        ("settings.kid_kernel", "rbf", {"kid"}, "KID over 100 subsets of 500 (kernel polynomial, degree 3) against "
                                                "100 subsets of 500 (kernel rbf)"),
        ("settings.neighbours", 9, {"precision", "recall"}, "the radius of 3 against 9 neighbours"),
    ],
)  # fmt: skip
def test_a_condition_counts_for_the_metrics_that_depend_on_it(record, path, value, metrics, reason):
    other = changed(record, path, value)
    assert {m: differences(record, other, m) for m in METRICS} == {m: [reason] * (m in metrics) for m in METRICS}


@pytest.mark.parametrize(
    "path",
    ["settings.is_seed", "settings.kid_seed", "settings.jackknife_groups", "samples.sha256", "samples.duplicates",
     "singular", "reference.kind", "reference.name", "extractor.name", "extractor.id"],
)  # fmt: skip
def test_chance_names_and_findings_keep_nothing_from_being_compared(record, path):
    assert not any(differences(record, changed(record, path, 17), metric) for metric in ALL)


def test_without_a_sha256_names_decide_and_are_told(record):
    one, other = (changed(record, "extractor.sha256", None) for _ in range(2))
    assert differences(one, other, "is") == []
    other = changed(other, "extractor.name", "inception")
    assert differences(one, other, "is") == ["another feature extractor (mnist5k against inception)"]


def test_a_content_that_only_one_of_two_records_knows_is_not_taken_for_the_same(record):
    other = changed(record, "reference.sha256", None)
    assert differences(record, other, "fd") == ["another reference (sha256 aaaaaaaa against unknown)"]


def test_different_names_are_told_where_the_content_differs(record):
    other = changed(changed(record, "extractor.sha256", "9" * 64), "extractor.name", "inception")
    assert differences(record, other, "fd") == ["another feature extractor (mnist5k against inception)"]


def test_all_reasons_are_given_the_first_record_s_value_first(record):
    other = changed(changed(record, "num_generated", 500), "label_mode", "unknown")
    assert differences(other, record, "is") == ["500 against 1000 generated images", "labels unknown against balanced"]


def test_what_one_of_two_records_does_not_say_counts_against_them(record):
    old = as_before(record)
    found = {metric: differences(record, old, metric) for metric in ("fd", "is", "accuracy")}
    images = "image size, channels, conversion to bytes"
    assert found == {
        "fd": [f"recorded for one of them only: reference, {images}"],
        "is": [f"recorded for one of them only: number of IS splits, {images}"],
        "accuracy": [f"recorded for one of them only: {images}"],
    }
    assert all(differences(old, record, metric) == reasons for metric, reasons in found.items())


def test_what_neither_says_does_not(table1, record):
    old, other = as_before(record), as_before(generation(table1, "mar/ce/guided", 1, 0, 5.0))
    assert not any(differences(old, other, metric) for metric in ALL)
    assert differences(changed(old, "num_generated", 9), other, "fd") == ["9 against 1000 generated images"]


def test_a_record_equals_itself_read_from_json(record):
    protocol = {**record.protocol, "samples": {**record.protocol["samples"], "size": (32, 32)}}
    read = Record(**json.loads(json.dumps(asdict(record))))
    assert differences(replace(record, protocol=protocol), read, "fd") == []


@pytest.mark.parametrize(
    ("path", "value", "counts"),
    [
        ("num_generated", 300, False), ("label_mode", "unknown", False), ("samples.size", [16, 16], False),
        ("extractor.sha256", "0" * 64, True), ("reference.sha256", "0" * 64, True), ("num_reference", 17, True),
    ],
)  # fmt: skip
def test_samples_and_reconstructions_need_the_same_instrument_alone(table1, record, path, value, counts):
    floor = changed(reconstruction(table1, ROW), path, value)
    assert bool(instrument_differences(record, floor, "fd")) == counts


def test_real_images_do_not_depend_on_how_others_were_made(table1):
    one = reconstruction(table1, ROW)
    assert differences(one, changed(one, "samples.conversion", "floor"), "kid:real") == []
    for metric in OF_REAL_IMAGES:
        reasons = differences(one, changed(one, "heldout.sha256", "0" * 64), metric)
        assert reasons == ["other held-out images (sha256 bbbbbbbb against 00000000)"]


def test_psnr_has_no_extractor(table1):
    one = reconstruction(table1, ROW)
    assert differences(one, changed(one, "extractor.sha256", "0" * 64), "psnr") == []
    assert differences(one, changed(one, "samples.size", [8, 8]), "psnr") == ["images of 32x32 against 8x8"]


# --- two measurements of one id -------------------------------------------------------------------------

MACHINE = {
    "host": "01234567", "device": "Example CPU", "platform": "Linux x86_64", "cores": 2, "threads": 1,
    "versions": {"torch": "2.5.0"}, "git": {"commit": "0123456789", "dirty": False}, "finished": "2026-01-01",
}  # fmt: skip


def with_value(record: Record, metric: str, value: float) -> Record:
    return replace(record, metrics={**record.metrics, metric: value})


def other_images(record: Record) -> Record:
    return changed(record, "samples.sha256", "0" * 64)


def test_the_same_machine_measures_the_same_digits(record):
    one = replace(record, provenance=MACHINE)
    later = replace(record, provenance={**MACHINE, "finished": "2026-01-02", "seconds": 3.0, "command": "another"})
    assert tolerance_of(one, later, "fd") is SAME_MACHINE and disagreement(one, later) is None
    found = disagreement(one, with_value(later, "fd_mnist5k", 5.0 + 1e-12))
    assert found.metric == "fd_mnist5k" and found.values == (5.0, 5.0 + 1e-12) and "same machine" in found.reason
    assert disagreement(one, with_value(other_images(later), "fd_mnist5k", 5.1)), "other images are no excuse"


@pytest.mark.parametrize(
    "change",
    [{"host": "7"}, {"device": "GPU"}, {"cores": 4}, {"threads": 2}, {"versions": {"torch": "2.6.0"}}, {"cores": None},
     {"git": {"commit": "9"}}, {"git": {}}, {"git": {"commit": "0123456789", "dirty": True}}],
)  # fmt: skip
def test_whatever_may_round_otherwise_is_another_machine(record, change):
    one, other = (replace(record, provenance={**MACHINE, **c}) for c in ({}, change))
    assert tolerance_of(one, other, "fd") is SAME_IMAGES
    if None in change.values() or change.get("git") in ({}, {"commit": "0123456789", "dirty": True}):
        assert tolerance_of(other, other, "fd") is SAME_IMAGES, (
            "what is not known, or in no repository, is not the same"
        )


def test_splitting_the_work_otherwise_is_another_machine_too(record):
    one = replace(record, provenance=MACHINE)
    for compute in ({"micro_batch": 8}, {"compile": True}, {"device": "cuda"}):
        other = replace(one, spec={**one.spec, "compute": {**one.spec["compute"], **compute}})
        assert tolerance_of(one, other, "fd") is SAME_IMAGES
    assert tolerance_of(other, other, "fd") is SAME_IMAGES, "on a GPU sums have no fixed order"
    assert tolerance_of(one, replace(one, training={"processes": 2}), "fd") is SAME_IMAGES
    often = replace(one, spec={**one.spec, "compute": {**one.spec["compute"], "checkpoint_every": 7}})
    assert tolerance_of(one, often, "fd") is SAME_MACHINE


def test_real_images_are_the_same_whatever_was_drawn(record):
    assert tolerance_of(record, other_images(record), "fd") is OTHER_IMAGES
    assert tolerance_of(record, other_images(record), "fd:real") is SAME_IMAGES
    assert tolerance_of(as_before(record), as_before(record), "fd") is OTHER_IMAGES, "nobody knows which they were"


@pytest.mark.parametrize(
    ("metric", "images", "near", "far"),
    [
        # fd 5 ± 0.1, is 8.5 ± 0.17, kid 0.005 with 0.0005 over subsets of half the images, shares without an error
        ("fd_mnist5k", True, 0.0014, 0.002), ("is_mnist5k", True, 0.0023, 0.004),
        ("kid_mnist5k", True, 4.9e-6, 6e-6), ("accuracy_mnist5k", True, 0.002, 0.003),
        ("copied_mnist5k", True, 0.002, 0.003), ("fd_mnist5k", False, 0.56, 0.6), ("is_mnist5k", False, 0.96, 1.0),
        ("kid_mnist5k", False, 0.0019, 0.0021), ("accuracy_mnist5k", False, 0.02, 0.021),
    ],
)  # fmt: skip
def test_what_chance_and_rounding_explain(record, metric, images, near, far):
    record = replace(record, uncertainty={**record.uncertainty, "kid_mnist5k": {"sd_subsets": 0.0005}})
    value = record.metrics[metric]
    other = record if images else other_images(record)
    for sign in (1, -1):
        assert disagreement(record, with_value(other, metric, value + sign * near)) is None
        found = disagreement(record, with_value(other, metric, value + sign * far))
        assert found.metric == metric and found.values == (value, value + sign * far)
        assert ("same images" in found.reason) == images


def test_of_few_images_two_may_fall_on_the_other_side(record):
    few = changed(record, "num_generated", 100)
    assert disagreement(few, with_value(few, "accuracy_mnist5k", record.metrics["accuracy_mnist5k"] + 0.02)) is None
    assert disagreement(few, with_value(few, "accuracy_mnist5k", record.metrics["accuracy_mnist5k"] + 0.03))


def test_the_metric_that_is_furthest_off_is_named(record):
    other = with_value(with_value(record, "is_mnist5k", 8.6), "fd_mnist5k", 7.0)
    assert disagreement(record, other).metric == "fd_mnist5k"


def test_results_that_were_measured_otherwise_disagree(record):
    for path, value, reason in (
        ("extractor.sha256", "1234abcd" * 8, "another feature extractor (sha256 ffffffff against 1234abcd)"),
        ("num_generated", 17, "1000 against 17 generated images"),
    ):
        found = disagreement(record, changed(record, path, value))
        assert (found.reason, found.metric, found.values) == (reason, "fd_mnist5k", (5.0, 5.0))
    fewer = replace(record, metrics={k: v for k, v in record.metrics.items() if k != "kid_mnist5k"})
    for one, other, values in ((record, fewer, (0.005, None)), (fewer, record, (None, 0.005))):
        found = disagreement(one, other)
        assert (found.reason, found.metric) == ("only one of them has this metric", "kid_mnist5k")
        assert found.values == values
    assert disagreement(record, replace(record, task="reconstruction")).metric is None


def test_speeds_agree_whatever_the_seconds_if_they_were_measured_alike(table1):
    one, other = speed(table1, ROW), speed(table1, ROW, factor=3.0)
    assert disagreement(one, other) is None
    found = disagreement(one, replace(other, protocol={**other.protocol, "repeats": 2, "kv_cache": True}))
    assert found.reason == "repeats 5 against 2; kv_cache None against True" and found.metric == "seconds_per_image"


def test_reconstructions_compare_all_that_they_have(table1):
    one = reconstruction(table1, ROW)
    assert disagreement(one, one) is None
    assert disagreement(one, with_value(one, "psnr", 18.01)).metric == "psnr"
    assert disagreement(one, with_value(other_images(one), "psnr", 18.3)) is None
    assert disagreement(one, with_value(other_images(one), "copied_mnist5k_real", 0.02)).metric == "copied_mnist5k_real"


def test_the_largest_difference_is_relative():
    assert largest_difference({"a": 2.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 0.0, "d": 7.0}) == ("a", 0.5)
    assert largest_difference({"a": -1e-9}, {"a": 1e-9}) == ("a", 2.0)
    assert largest_difference({}, {"a": 1.0}) == (None, 0.0)
