"""Metrics as functions of features and logits: Frechet distance, inception-style score, KID, precision and recall,
copies of training images, and what one set of images says of its own chance.

Where torch-fidelity has the formula, it is torch-fidelity's; the Frechet distance takes another way to the same value.
Only the 2015 Inception network's Frechet distance is called FID (records.metric_name sees to that)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_part

from mar_bench.utils.noise import SHARED, philox

SEED = 2020  # of IS's shuffle and KID's subsets, torch-fidelity's own
KERNEL = "(x.y / dim + 1)^3"  # of KID
ROWS = 4096  # features that are worked on together
PAIRS = 2**26  # distances of a block, a quarter of a gigabyte in float32; a few copies are alive at a time

Statistics = dict[str, np.ndarray]  # mu (F,), sigma (F, F), count ()


# --- Frechet distance -----------------------------------------------------------------------------------


@dataclass
class Moments:
    """Sums from which mean and covariance of a stream of features follow, in float64.

    Sums are of features less ``shift`` (F,), any point near the mean: without it their squares would cancel. Moments
    about one shift can be added and subtracted."""

    shift: np.ndarray
    count: int = 0
    total: np.ndarray | float = 0.0  # (F,)
    products: np.ndarray | float = 0.0  # (F, F)

    @classmethod
    def near(cls, features: torch.Tensor) -> Moments:
        """Empty ones, about the mean of some features (n, F)."""
        return cls(features.double().mean(0).numpy())

    def add(self, features: torch.Tensor) -> Moments:
        """Features (n, F) of any float type."""
        for rows in features.split(ROWS):
            values = rows.double().numpy() - self.shift
            self.count += len(values)
            self.total = self.total + values.sum(0)
            self.products = self.products + values.T @ values
        return self

    def without(self, part: Moments) -> Moments:
        """Those of all other features than ``part``'s."""
        count, total = self.count - part.count, self.total - part.total
        return Moments(self.shift, count, total, self.products - part.products)

    def statistics(self) -> Statistics:
        """Mean ``mu`` (F,), unbiased covariance ``sigma`` (F, F), and how many images they are of."""
        mean = self.total / self.count
        sigma = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return {"mu": self.shift + mean, "sigma": sigma, "count": np.array(self.count)}


def statistics(features: torch.Tensor) -> Statistics:
    """Of features (N, F), N > 1, in float64."""
    return Moments.near(features[:ROWS]).add(features).statistics()


def is_singular(found: Statistics) -> bool:
    """Whether there are too few images for a covariance of full rank: then a distance is biased more than usual."""
    return int(found["count"]) <= len(found["mu"])


def frechet_distance(generated: Statistics, reference: Statistics) -> float:
    """Frechet distance of two Gaussians given by their statistics (Heusel et al. 2017, equation 6)."""
    return FrechetDistance(reference)(generated)


class FrechetDistance:
    """The distance to one reference, whose root is taken once.

    tr (S R)^(1/2) is the trace of (R^(1/2) S R^(1/2))^(1/2), which is symmetric: eigenvalues of symmetric matrices are
    real, and found several times as fast as the root of the product."""

    def __init__(self, reference: Statistics):
        self.mu, self.sigma = (np.asarray(reference[k], dtype=np.float64) for k in ("mu", "sigma"))
        values, vectors = np.linalg.eigh(self.sigma)
        self.root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def __call__(self, generated: Statistics) -> float:
        mu, sigma = (np.asarray(generated[k], dtype=np.float64) for k in ("mu", "sigma"))
        assert mu.shape == self.mu.shape
        product = self.root @ sigma @ self.root
        trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
        shift = mu - self.mu
        return float(shift @ shift + np.trace(sigma) + np.trace(self.sigma) - 2 * trace_of_root)


# --- scores ---------------------------------------------------------------------------------------------


class Value(NamedTuple):
    """A metric and its standard deviation over the parts (splits, subsets) that it is the mean of."""

    mean: float
    sd: float


def shuffled(count: int) -> torch.Tensor:
    """The order (N,) in which torch-fidelity puts images before it splits them for IS."""
    return torch.from_numpy(np.random.RandomState(SEED).permutation(count))


def inception_style_score(logits: torch.Tensor, splits: int, shuffle: bool = True) -> Value:
    """exp of the mean KL between p(class | image) and its mean over the images of a split.

    ``logits`` (N, classes) stand in the order of the images' global index and are shuffled first, as class order biases
    it: so the score depends on neither files nor shards. ``shuffle=False`` is for those that are shuffled already."""
    logits = logits.double()
    logits = (logits - logits.amax(1, keepdim=True)).clamp(min=-700)  # a probability of 0 would make it 0 * inf
    found = isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=SEED)
    return Value(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def kernel_distance(generated: torch.Tensor, reference: torch.Tensor, subsets: int, subset_size: int) -> Value:
    """KID, the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018), averaged over random subsets."""
    found = kid_features_to_metric(
        generated, reference, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=SEED, verbose=False
    )
    return Value(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])


def precision_recall(*, generated: torch.Tensor, reference: torch.Tensor, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of features (N, F) and (M, F).

    Precision: share of generated features inside a ball around a real one that reaches to its k-th neighbour among
    the real ones. Recall: the same with the parts exchanged. By keyword only: libraries differ in the order."""
    rows = max(1, min(10_000, PAIRS // max(len(generated), len(reference))))
    return calculate_precision_recall_part(generated, reference, neighbours, rows)


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each of the uint8 images, (N,)."""
    mse = (images.float() - reference.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=1e-10))


# --- nearest neighbours ---------------------------------------------------------------------------------


def nearest(queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (N, k), nearest first, and indices (N, k) in ``bank`` (M, F) of the neighbours of queries (N, F).

    The k are found by products of matrices, about the bank's mean and in float64 so that near copies do not cancel;
    their distances are then taken directly: that of a copy is 0."""
    centre = bank.double().mean(0)
    others = bank.double() - centre
    squares = others.square().sum(1)
    distances, indices = [], []
    for rows in queries.split(max(1, PAIRS // 2 // len(bank))):
        asked = rows.double() - centre
        found = (squares - 2 * asked @ others.T).topk(k, dim=1, largest=False).indices
        exact = torch.stack([(asked - others[column]).norm(dim=1) for column in found.T], dim=1)
        exact, order = exact.sort(dim=1, stable=True)
        distances.append(exact)
        indices.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def spacing(bank: torch.Tensor) -> torch.Tensor:
    """Distance (M,) of each feature of ``bank`` (M, F) to the nearest one that differs; 0 where there is none.

    Images that occur twice, which are the first to be memorised, would else be at no distance from themselves."""
    different, which = torch.unique(bank, dim=0, return_inverse=True)
    if len(different) < 2:
        return torch.zeros(len(bank), dtype=torch.float64)
    return nearest(different, different, 2)[0][:, 1][which]


def copied(queries: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """bool (N,): whether a feature lies as near to a training image as that one's nearest other training image.

    How many new images of the same distribution do depends on the dimension (half of them, or less in many): held-out
    images tell. A generator that copies has nearly all [ours]."""
    distances, indices = nearest(queries, training)
    return distances[:, 0] <= spacing(training)[indices[:, 0]]


# --- chance ---------------------------------------------------------------------------------------------


def jackknife_groups(count: int, groups: int, labels: torch.Tensor | None) -> torch.Tensor:
    """Group (N,) of each image, at random, of equal size but for one; where labels are known, equal in each class too,
    as images with prescribed classes vary within classes alone."""
    order = torch.from_numpy(philox(0, "jackknife", SHARED, 0).permutation(count))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    out = torch.empty(count, dtype=torch.long)
    out[order] = torch.arange(count) % groups
    return out


def standard_error(values: Sequence[float]) -> float:
    """Of a metric, from its G values with each group left out: sqrt((G - 1) / G * sum of squared deviations).

    This delete-a-group jackknife draws no image twice, as an ordinary bootstrap does, which biases a Frechet distance
    upwards."""
    values = np.asarray(values, dtype=np.float64)
    return float(np.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum()))
