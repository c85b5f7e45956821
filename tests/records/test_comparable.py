"""Which records' numbers may be compared, metric by metric."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.comparable import CONDITIONS, differences, instrument_differences
from mar_bench.records.metrics import GENERATION_METRICS, METRICS, REAL_METRICS
from mar_bench.records.record import Record
from tests.made_up import as_before, generation, reconstruction

ROW = "mar/diff/guided"
EVERY = frozenset(GENERATION_METRICS)
REFERENCE = {"fd", "kid", "mind", "precision", "recall", "copied"}


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


def test_every_condition_is_described():
    assert {name for metric in METRICS.values() for name in metric.conditions} == CONDITIONS.keys()


def test_rows_and_seeds_measured_alike_are_comparable(table1, record):
    other = generation(table1, "raster_causal/ce/unguided", 2, 1, 7.0)
    assert other.protocol["samples"]["sha256"] != record.protocol["samples"]["sha256"]
    assert not any(differences(record, other, metric) for metric in METRICS)


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
        ("reference.num_features", 9, REFERENCE - {"fd", "kid", "mind"},
         "neighbours among 3000 against 9 reference images"),
        ("num_reference", 9, {"fd"}, "4000 against 9 reference images"),
        ("heldout.sha256", "9" * 64, {"fd:heldout"}, "other held-out images (sha256 bbbbbbbb against 99999999)"),
        ("num_heldout", 9, {"fd:heldout"}, "1000 against 9 held-out images"),
        ("settings.is_splits", 9, {"is"}, "IS over 5 against 9 splits"),
        ("settings.kid_subsets", 9, {"kid"}, "KID over 100 against 9 subsets"),
        ("settings.kid_subset_size", 9, {"kid"}, "KID over subsets of 500 against 9 images"),
        ("settings.kid_kernel", "rbf", {"kid"}, "KID with kernel polynomial, degree 3 against rbf"),
        ("settings.mind_images", 9, {"mind"}, "MIND of 1000 against 9 images"),
        ("settings.mind_projections", 9, {"mind"}, "MIND over 1000 against 9 projections"),
        ("settings.neighbours", 9, {"precision", "recall"}, "the radius of 3 against 9 neighbours"),
    ],
)  # fmt: skip
def test_a_condition_applies_to_the_metrics_that_depend_on_it(record, path, value, metrics, reason):
    other = changed(record, path, value)
    assert {m: differences(record, other, m) for m in EVERY} == {m: [reason] * (m in metrics) for m in EVERY}


@pytest.mark.parametrize(
    "path",
    ["settings.is_seed", "settings.kid_seed", "settings.mind_seed",
     "settings.jackknife_groups", "samples.sha256", "samples.duplicates",
     "singular", "reference.kind", "reference.name", "extractor.name", "extractor.id"],
)  # fmt: skip
def test_seeds_names_and_findings_are_no_conditions(record, path):
    assert not any(differences(record, changed(record, path, 17), metric) for metric in METRICS)


def test_a_sha256_that_only_one_record_has_is_a_difference(record):
    other = changed(record, "reference.sha256", None)
    assert differences(record, other, "fd") == ["another reference (sha256 aaaaaaaa against unknown)"]


def test_a_value_that_only_one_record_has_is_a_difference(record):
    old = as_before(record)
    found = {metric: differences(record, old, metric) for metric in ("fd", "is", "accuracy")}
    images = "image_size, channels, conversion"
    assert found == {
        "fd": [f"recorded for one of them only: reference, {images}"],
        "is": [f"recorded for one of them only: is_splits, {images}"],
        "accuracy": [f"recorded for one of them only: {images}"],
    }
    assert all(differences(old, record, metric) == reasons for metric, reasons in found.items())


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
def test_samples_and_reconstructions_need_only_the_same_instrument(table1, record, path, value, counts):
    floor = changed(reconstruction(table1, ROW), path, value)
    assert bool(instrument_differences(record, floor, "fd")) == counts


def test_metrics_of_real_images_do_not_depend_on_the_generated_ones(table1):
    one = reconstruction(table1, ROW)
    assert differences(one, changed(one, "samples.conversion", "floor"), "kid:real") == []
    for metric in REAL_METRICS:
        reasons = differences(one, changed(one, "heldout.sha256", "0" * 64), metric)
        assert reasons == ["other held-out images (sha256 bbbbbbbb against 00000000)"]


def test_psnr_has_no_extractor(table1):
    one = reconstruction(table1, ROW)
    assert differences(one, changed(one, "extractor.sha256", "0" * 64), "psnr") == []
    assert differences(one, changed(one, "samples.size", [8, 8]), "psnr") == ["images of 32x32 against 8x8"]
