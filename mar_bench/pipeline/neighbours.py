"""Which training images generated ones resemble: the nearest in feature space, and how near that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mar_bench.config.ids import Run
from mar_bench.data.datasets import load_data
from mar_bench.metrics.functions import nearest, spacing
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import load_seen, one_pass
from mar_bench.models.build import pick_device
from mar_bench.pipeline.sample import decoded_samples
from mar_bench.pipeline.stages import HELDOUT, IMAGES, REFERENCE, SEEN, load_extractor, load_tokenizer
from mar_bench.pipeline.store import Places, is_sound
from mar_bench.utils.errors import UserError


@dataclass(frozen=True)
class Neighbours:
    """Of a row's generated images.

    ``closeness`` (N,) is an image's distance to its nearest training image over that one's distance to its nearest
    other training image: at most 1 counts as copied; ``real`` the same of the held-out images. ``shown`` are indices of
    generated images, ``samples`` uint8 (n, C, H, W) and ``found`` uint8 (n, k, C, H, W), the nearest first, with their
    ``distances`` (n, k) in units of that spacing."""

    closeness: np.ndarray
    real: np.ndarray
    shown: list[int]
    samples: np.ndarray
    found: np.ndarray
    distances: np.ndarray


def neighbours(run: Run, places: Places, count: int, k: int) -> Neighbours:
    """The ``count`` images that are closest to a training image, and as many that come first, each with ``k`` of them.

    Raises UserError where the row was not measured here, or its reference lacks the features of the training images."""
    folders = {kind: places.folder(kind, run.ids[f"{kind}_id"]) for kind in ("sample", "extractor")}
    for kind, folder in folders.items():
        if not is_sound(folder):
            raise UserError(f"{run.row}: its {kind} is not in {places.runs} ({folder.name}); mar-bench run makes it")
    reference, heldout = (read_reference(folders["extractor"] / name) for name in (REFERENCE, HELDOUT))
    if reference.about["kind"] != "training" or not reference.complete:
        about = reference.about
        raise UserError(
            f"{run.row}: neighbours need the features of all training images, and its reference '{about['name']}' "
            f"keeps {about['num_features']}; set metrics.reference.kind=training and a larger metrics.reference_images"
        )
    device = pick_device(run.spec.compute.device)
    tokenizer = load_tokenizer(run, places, device)

    def decoded() -> Iterator[torch.Tensor]:
        return decoded_samples(run.spec, tokenizer, folders["sample"], device)

    kept = places.folder("generation", run.id) / SEEN
    seen = load_seen(kept) if kept.is_file() else one_pass(decoded(), load_extractor(run, places, device))
    features = seen.features
    space = spacing(reference.features)
    closeness, real = (_closeness(some, reference.features, space) for some in (features, heldout.features))
    order = closeness.argsort(stable=True)[:count].tolist()
    shown = order + [i for i in range(len(features)) if i not in order][:count]
    distances, indices = nearest(features[shown], reference.features, k)
    train = load_data(run.spec.data, places.runs / IMAGES).train
    found = train.get(indices.flatten().tolist()).unflatten(0, indices.shape)
    return Neighbours(
        closeness.numpy(),
        real.numpy(),
        shown,
        _chosen(decoded(), shown).numpy(),
        found.numpy(),
        (distances / space[indices[:, :1]].clamp(min=1e-12)).numpy(),
    )


def _closeness(features: torch.Tensor, training: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    distances, indices = nearest(features, training)
    return distances[:, 0] / space[indices[:, 0]].clamp(min=1e-12)


def _chosen(batches: Iterable[torch.Tensor], shown: list[int]) -> torch.Tensor:
    """Images ``shown`` of a stream, in that order; a set of 50,000 would not fit into memory."""
    found, begin = {}, 0
    for batch in batches:
        found |= {i: batch[i - begin] for i in shown if begin <= i < begin + len(batch)}
        begin += len(batch)
    return torch.stack([found[i] for i in shown])
