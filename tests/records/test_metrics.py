"""The table of metrics: their keys in records and their names in texts."""

from __future__ import annotations

import pytest

from mar_bench.records.metrics import (
    GENERATION_METRICS,
    LIKELIHOOD_METRICS,
    METRICS,
    REAL_METRICS,
    metric_name,
    metrics_by_key,
)

INCEPTION = {"kind": "inception", "name": "inception"}
OURS = {"kind": "classifier", "name": "mnist5k"}


@pytest.mark.parametrize(
    ("metric", "extractor", "key", "title"),
    [
        ("fd", INCEPTION, "fid", "FID-1k"),
        ("fd:heldout", INCEPTION, "fid_heldout", "held-out FID-1k"),
        ("is", INCEPTION, "is", "IS-1k"),
        ("fd", OURS, "fd_mnist5k", "FD-1k mnist5k"),
        ("fd:heldout", OURS, "fd_mnist5k_heldout", "held-out FD-1k mnist5k"),
        ("fd:real", OURS, "fd_mnist5k_real", "real held-out FD mnist5k"),
        ("precision", OURS, "precision_mnist5k", "Precision mnist5k"),
        ("nll", OURS, "nll", "held-out NLL"),
        ("nll_train", INCEPTION, "nll_train", "training NLL"),
        ("fd", {"kind": "classifier", "name": "inception"}, "fd_inception", "FD-1k inception"),
    ],
)
def test_only_the_inception_network_gives_an_fid(metric, extractor, key, title):
    assert metric_name(metric, extractor) == key
    assert metrics_by_key(extractor)[key] is METRICS[metric]
    assert METRICS[metric].title(extractor, 1000) == title


def test_the_paper_s_number_of_images_is_not_named():
    assert METRICS["fd"].title(INCEPTION, 50_000) == METRICS["fd"].title(INCEPTION, None) == "FID"
    assert METRICS["fd"].title(OURS, 1797, named=False) == "FD-1797"


def test_kid_is_scaled_for_inception_features_only():
    assert METRICS["kid"].scaling(inception=True) == (1000, "x 1000")
    assert METRICS["kid"].scaling(inception=False) == (1, "")
    assert METRICS["copied"].scaling(inception=False) == (100, "%")


def test_keys_are_unique():
    for extractor in (INCEPTION, OURS):
        assert len(metrics_by_key(extractor)) == len((*GENERATION_METRICS, *REAL_METRICS, *LIKELIHOOD_METRICS)) + 1
