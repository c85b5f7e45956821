"""The training images nearest to generated ones in feature space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mar_bench.config.ids import Run
from mar_bench.data.datasets import load_data, silent
from mar_bench.metrics.functions import nearest, spacing
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import load_features
from mar_bench.pipeline.eval_images import finished, own_extractor, source_of_run
from mar_bench.pipeline.stages import HELDOUT, REFERENCE, SEEN
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Neighbours:
    """Generated images of a row and their nearest training images.

    ``closeness`` (N,) is an image's distance to its nearest training image divided by the distance from that one to
    its nearest other training image (its spacing); an image with at most 1 counts as copied. ``real`` is the same for
    held-out images. ``shown`` are indices of generated images, ``samples`` uint8 (n, C, H, W) these images, ``found``
    uint8 (n, k, C, H, W) their neighbours, nearest first, and ``distances`` (n, k) in units of the spacing."""

    closeness: np.ndarray
    real: np.ndarray
    shown: list[int]
    samples: np.ndarray
    found: np.ndarray
    distances: np.ndarray


def neighbours(run: Run, places: Places, count: int, k: int) -> Neighbours:
    """The ``count`` images closest to a training image and the first ``count`` others, each with ``k`` neighbours.

    Raises UserError if the row is not sampled, or its reference lacks the features of all training images."""
    source = source_of_run(run, places)
    folder = finished(places, "extractor", run.ids["extractor_id"], run.row)
    reference, heldout = (read_reference(folder / name) for name in (REFERENCE, HELDOUT))
    training = reference.features
    if training is None or reference.about["kind"] != "training" or not reference.complete:
        about = reference.about
        raise UserError(
            f"{run.row}: neighbours need the features of all training images, but its reference '{about['name']}' "
            f"has {about['num_features']}; set metrics.reference.kind=training and a larger metrics.reference_images"
        )
    kept = places.folder("generation", run.id) / SEEN
    images = load_features(kept) if kept.is_file() else source.features(own_extractor(run, places), silent)
    spaces = spacing(training)

    def closeness(features: torch.Tensor) -> torch.Tensor:
        distances, indices = nearest(features, training)
        return distances[:, 0] / spaces[indices[:, 0]].clamp(min=1e-12)

    assert heldout.features is not None
    generated, real = closeness(images.features), closeness(heldout.features)
    order = generated.argsort(stable=True)[:count].tolist()
    shown = order + [i for i in range(len(generated)) if i not in order][:count]
    distances, indices = nearest(images.features[shown], training, k)
    found = load_data(run.spec.data).train.get(indices.flatten().tolist())
    samples: dict[int, torch.Tensor] = {}
    begin = 0
    for batch in source.batches(silent):
        samples |= {i: batch[i - begin] for i in shown if begin <= i < begin + len(batch)}
        begin += len(batch)
    return Neighbours(
        generated.numpy(),
        real.numpy(),
        shown,
        torch.stack([samples[i] for i in shown]).numpy(),
        found.unflatten(0, indices.shape).numpy(),
        (distances / spaces[indices[:, :1]].clamp(min=1e-12)).numpy(),
    )
