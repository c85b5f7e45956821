"""The acceptance test of an extractor, before anything is measured with it.

A network that learned nothing, or sees nothing of these images, gives a small distance between any two sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mar_bench.config.spec import ClassifierExtractor, ExtractorSpec
from mar_bench.data.datasets import ArrayImages, DataSet, FolderImages
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.functions import statistics
from mar_bench.metrics.score import Measure
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import SHARED, philox

IMAGES = 1000  # held-out images that are classified and shuffled, at most
# Distance of held-out images over that of the same images shuffled: trained networks are below 0.03, but few images
# are farther away (the distance is biased upwards)
LARGEST_SHARE = 0.5


def accept(spec: ExtractorSpec, space: FeatureSpace, measure: Measure, data: DataSet) -> dict[str, Any]:
    """The figures of the test, for records. Raises UserError with the reason if the extractor fails it.

    A trained classifier must know the classes of held-out images. These must be at most half as far from the reference
    as the same images with their pixels shuffled, without being equal to it; nor may they be the training images.
    ``Measure`` has checked that features vary, and that the images differ if the reference are the training images."""
    assert measure.heldout is not None
    some = _evenly(data.heldout)
    images = data.heldout.get(some)
    found: dict[str, Any] = {"images": len(some), "rank": measure.distance.rank}
    if measure.reference.about["kind"] != "training" and torch.equal(images, data.train.get(_evenly(data.train))):
        raise UserError("the held-out images are the training images: hold out others")
    if isinstance(spec, ClassifierExtractor):
        _, logits = space.extract(images)
        assert logits is not None
        found["accuracy"] = (logits.argmax(-1) == data.heldout.labels[some]).double().mean().item()
        words = f"it classifies {found['accuracy']:.1%} of {len(some)} held-out images correctly, less than "
        words += f"metrics.extractor.min_accuracy {spec.min_accuracy}; train it longer, or set a lower one"
        _need(found["accuracy"] >= spec.min_accuracy, spec, words)
    shuffle = philox(0, "shuffled", SHARED, 0).permutation(images[0, 0].numel())
    shuffled = images.flatten(2)[..., shuffle].view_as(images)
    near, far = map(measure.distance, (measure.heldout.statistics, statistics(space.extract(shuffled)[0])))
    rounding = 1e-9 * np.trace(measure.reference.statistics["sigma"])
    words = f"held-out images are {near:.4g} from the reference, with their pixels shuffled {far:.4g}; the first must "
    words += f"be above 0 and at most {LARGEST_SHARE} of the second; use another extractor or reference"
    _need(rounding < near <= LARGEST_SHARE * far, spec, words)
    return {**found, "distance": near, "distance_shuffled": far}


def _evenly(part: ArrayImages | FolderImages) -> np.ndarray:
    """Indices of up to IMAGES images of all classes: files are sorted by class."""
    return np.linspace(0, len(part) - 1, min(IMAGES, len(part))).astype(int)


def _need(holds: bool, spec: ExtractorSpec, why: str) -> None:
    if not holds:
        raise UserError(f"extractor '{spec.name}' is not fit to measure: {why}")
