"""Whether a number agrees with the paper's, by ``tolerance`` in records/metrics.py: the paper gives no error bars."""

from __future__ import annotations

import math
from typing import NamedTuple

from mar_bench.config.experiment import Experiment
from mar_bench.records.metrics import METRICS, PAPER_SAMPLES

MATCH, CLOSE, DIFFERS, NOT_COMPARABLE = "match", "close", "differs", "not comparable"
ROUNDING = 1e-9  # 0.80 - 0.78 counts as 0.02


class Agreement(NamedTuple):
    """``difference`` is ours minus published, NaN if the two are not comparable or the paper gives a bound."""

    published: float = math.nan
    difference: float = math.nan
    verdict: str = ""  # empty if a number is missing or the metric has no tolerance


def agreement(experiment: Experiment, row: str, metric: str, ours: float) -> Agreement:
    """Compare ``ours`` with the paper's value; a published bound (``fd_above``) matches any value above it."""
    numbers = experiment.paper.get(row, {})
    published, bound = numbers.get(metric, math.nan), numbers.get(f"{metric}_above", math.nan)
    if math.isnan(published) and math.isnan(bound):
        return Agreement()
    if not is_comparable(experiment, row):
        return Agreement(published, verdict=NOT_COMPARABLE)
    if not math.isnan(published):
        return Agreement(published, ours - published, verdict(metric, ours, published))
    return Agreement(verdict="" if math.isnan(ours) else MATCH if ours > bound else DIFFERS)


def verdict(metric: str, ours: float, published: float) -> str:
    """``match``, ``close`` or ``differs``; empty if the metric has no tolerance or a number is missing."""
    tolerance, difference = METRICS[metric].tolerance, abs(ours - published) - ROUNDING
    if tolerance is None or math.isnan(difference):
        return ""
    if difference <= max(tolerance.absolute, tolerance.share * abs(published)):
        return MATCH
    return CLOSE if difference <= tolerance.close * abs(published) else DIFFERS


def is_comparable(experiment: Experiment, row: str) -> bool:
    """Whether the row is measured as in the paper: same scale, network and number of images."""
    spec = experiment.rows.get(row)
    if spec is None or experiment.scale != "paper":
        return False
    return spec.metrics.extractor.kind == "inception" and spec.sampling.num_images == PAPER_SAMPLES
