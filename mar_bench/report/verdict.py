"""Whether a number of ours agrees with the paper's, by one rule for each metric.

The paper has no error bars, so the rule is a convention: an FID within 3 % (or 0.05, where that is more) of the
published one is a match, within 10 % it is close; IS by the same shares; precision and recall within 0.02."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mar_bench.config.experiment import Experiment
from mar_bench.report.format import PAPER_SAMPLES

MATCH, CLOSE, DIFFERS, NOT_COMPARABLE = "match", "close", "differs", "not comparable"
ROUNDING = 1e-9  # so that 0.80 - 0.78 is 0.02
WHY_NONE = (
    "No verdict against the paper's numbers: those are of 50,000 images of ImageNet at paper scale, by the 2015 "
    "Inception network."
)


@dataclass(frozen=True)
class Rule:
    """A difference up to ``share`` of the published value or up to ``absolute`` matches; up to ``close`` is close."""

    share: float = 0.0
    absolute: float = 0.0
    close: float = 0.0


RULES = {
    "fd": Rule(share=0.03, absolute=0.05, close=0.10),
    "is": Rule(share=0.03, close=0.10),
    "precision": Rule(absolute=0.02),
    "recall": Rule(absolute=0.02),
}


def verdict(metric: str, ours: float, published: float) -> str | None:
    """``match``, ``close`` or ``differs``; None for a metric that has no rule and where a number is missing."""
    rule = RULES.get(metric)
    if rule is None or math.isnan(ours) or math.isnan(published):
        return None
    difference = abs(ours - published) - ROUNDING
    if difference <= max(rule.absolute, rule.share * abs(published)):
        return MATCH
    return CLOSE if difference <= rule.close * abs(published) else DIFFERS


def is_comparable(experiment: Experiment, row: str) -> bool:
    """Whether the row's numbers are measured as the paper's: its scale, its network, its number of images."""
    spec = experiment.rows.get(row)
    if spec is None or experiment.scale != "paper":
        return False
    return spec.metrics.extractor.kind == "inception" and spec.sampling.num_images == PAPER_SAMPLES
