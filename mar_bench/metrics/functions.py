"""Metrics as functions of features and logits, and their uncertainty estimated from a single sample set.

The formulas are torch-fidelity's; the Frechet distance, precision and recall are computed in a faster, equivalent way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mar_bench.utils.noise import SHARED, philox

SEED = 2020  # torch-fidelity's default, for the shuffle of IS and the subsets of KID
KERNEL = "(x.y / dim + 1)^3"  # of KID
ROWS = 4096  # features per block of the moments
PAIRS = 2**26  # distances per block: 256 MiB in float32, with a few copies alive at a time

Statistics = dict[str, np.ndarray]  # mu (F,), sigma (F, F), count ()


@dataclass
class Moments:
    """Float64 sums that give the mean and covariance of a stream of features.

    The sums are over features minus ``shift`` (F,), a point near the mean, to avoid cancellation. Moments about the
    same shift can be subtracted."""

    shift: np.ndarray
    count: int = 0
    total: np.ndarray | float = 0.0  # (F,)
    products: np.ndarray | float = 0.0  # (F, F)

    @classmethod
    def near(cls, features: torch.Tensor) -> Moments:
        """Empty moments about the mean of some features (n, F)."""
        return cls(features.double().mean(0).numpy())

    def add(self, features: torch.Tensor) -> Moments:
        """Add features (n, F) of any float type."""
        for rows in features.split(ROWS):
            values = rows.double().numpy() - self.shift
            self.count += len(values)
            self.total = self.total + values.sum(0)
            self.products = self.products + values.T @ values
        return self

    def without(self, part: Moments) -> Moments:
        """The moments of all features except those in ``part``."""
        count, total = self.count - part.count, self.total - part.total
        return Moments(self.shift, count, total, self.products - part.products)

    def statistics(self) -> Statistics:
        """Mean ``mu`` (F,), unbiased covariance ``sigma`` (F, F) and the number of images ``count``."""
        mean = self.total / self.count
        sigma = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return {"mu": self.shift + mean, "sigma": sigma, "count": np.array(self.count)}


def statistics(features: torch.Tensor) -> Statistics:
    """Mean, covariance and count of features (N, F), N > 1, in float64."""
    return Moments.near(features[:ROWS]).add(features).statistics()


def is_singular(found: Statistics) -> bool:
    """Whether there are too few images for a full-rank covariance; this biases distances further."""
    return int(found["count"]) <= len(found["mu"])


def frechet_distance(generated: Statistics, reference: Statistics) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, equation 6)."""
    return FrechetDistance(reference)(generated)


class FrechetDistance:
    """The Frechet distance to one reference, whose matrix square root is computed once.

    tr (S R)^(1/2) equals tr (R^(1/2) S R^(1/2))^(1/2). The latter matrix is symmetric, so its eigenvalues are real and
    several times faster to compute than the square root of S R."""

    def __init__(self, reference: Statistics):
        self.mu, self.sigma = (np.asarray(reference[k], dtype=np.float64) for k in ("mu", "sigma"))
        values, vectors = np.linalg.eigh(self.sigma)
        # directions in which features vary by more than 1e-4 of the largest std: above the rounding of float32
        self.rank = int((values > max(0.0, 1e-8 * values[-1])).sum())
        self.root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def __call__(self, generated: Statistics) -> float:
        mu, sigma = (np.asarray(generated[k], dtype=np.float64) for k in ("mu", "sigma"))
        assert mu.shape == self.mu.shape
        product = self.root @ sigma @ self.root
        trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
        shift = mu - self.mu
        return float(shift @ shift + np.trace(sigma) + np.trace(self.sigma) - 2 * trace_of_root)


def shuffled(count: int) -> torch.Tensor:
    """The permutation (N,) that torch-fidelity applies to images, sorted by index, before splitting them for IS: class
    order would bias the score."""
    return torch.from_numpy(np.random.RandomState(SEED).permutation(count))


def inception_style_score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | image) from p(class): mean and std over splits (Salimans et al. 2016).

    ``logits`` (N, classes) are ``shuffled`` already."""
    from torch_fidelity.metric_isc import isc_features_to_metric  # takes a second, and not every process measures

    logits = logits.double()
    logits = (logits - logits.amax(1, keepdim=True)).clamp(min=-700)  # avoids 0 * inf
    mean, sd = isc_features_to_metric(logits, splits=splits, shuffle=False).values()
    return mean, sd


def kernel_distance(
    generated: torch.Tensor, reference: torch.Tensor, subsets: int, subset_size: int
) -> tuple[float, float]:
    """KID, the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018): mean and std over random subsets."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    settings = {"kid_subsets": subsets, "kid_subset_size": subset_size, "rng_seed": SEED, "verbose": False}
    mean, sd = kid_features_to_metric(generated, reference, **settings).values()
    return mean, sd


class PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of features (N, F) against real ones (M, F).

    Precision is the share of generated features within the distance of some real feature to its k-th nearest real
    neighbour; recall swaps the roles. These distances of the real features, the costliest part, are found once."""

    def __init__(self, real: torch.Tensor, neighbours: int):
        self.real, self.neighbours = real, neighbours
        self.radii = _radii(real, neighbours)  # (M,)

    def __call__(self, generated: torch.Tensor) -> tuple[float, float]:
        radii = _radii(generated, self.neighbours)
        return _share_within(generated, self.real, self.radii), _share_within(self.real, generated, radii)


def _radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """The distances (N,) of features (N, F) to their k-th nearest others."""
    parts = features.split(max(1, PAIRS // len(features)))
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in parts])


def _share_within(features: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> float:
    """The share of features (N, F) within the radius (M,) of some centre (M, F)."""
    parts = features.split(max(1, PAIRS // len(centres)))
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in parts]).float().mean().item()


class LatentNoise:
    """The noise that an encoder adds to its latents, from the moments of batches of images."""

    def __init__(self) -> None:
        self.count, self.sums = 0, torch.zeros(())

    def update(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Moments (B, L, D) of the posteriors of B images."""
        mean, variance = mean.flatten(0, 1).double().cpu(), std.flatten(0, 1).double().cpu().square()
        self.sums = self.sums + torch.stack([mean.sum(0), mean.square().sum(0), variance.sum(0)])
        self.count += len(mean)

    def value(self) -> float:
        """Standard deviation of the posterior over that of a sampled latent, as root mean square over channels: its
        square is the share of a token's variance that is noise. 0 without a posterior."""
        if not self.count:
            return 0.0
        mean, square, noise = self.sums / self.count
        return (noise / (square - mean.square() + noise)).mean().sqrt().item()


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio (N,) in dB of uint8 images (N, C, H, W)."""
    mse = (images.float() - reference.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=1e-10))


def nearest(queries: torch.Tensor, bank: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (N, k), nearest first, and indices (N, k) into ``bank`` (M, F) of the neighbours of queries (N, F).

    Matrix products in float64 about the bank's mean find the k neighbours; their distances are then computed directly,
    so that an exact copy has distance 0."""
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
    """Distance (M,) from each feature of ``bank`` (M, F) to the nearest different one; 0 if there is none.

    Duplicates are skipped: they are memorised first, and would otherwise have spacing 0."""
    different, which = torch.unique(bank, dim=0, return_inverse=True)
    if len(different) < 2:
        return torch.zeros(len(bank), dtype=torch.float64)
    return nearest(different, different, 2)[0][:, 1][which]


def copied(queries: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """bool (N,): whether a feature is at least as close to a training image as that image's nearest other one [ours].

    For new images of the same distribution the share is at most about one half, depending on the dimension; held-out
    images measure it. For a generator that copies, it is close to one."""
    distances, indices = nearest(queries, training)
    return distances[:, 0] <= spacing(training)[indices[:, 0]]


def jackknife_groups(count: int, groups: int, labels: torch.Tensor | None) -> torch.Tensor:
    """Random group (N,) of each image; group sizes differ by at most one.

    With labels this also holds within each class, since the classes are fixed and do not vary between sample sets."""
    order = torch.from_numpy(philox(0, "jackknife", SHARED, 0).permutation(count))
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    out = torch.empty(count, dtype=torch.long)
    out[order] = torch.arange(count) % groups
    return out


def standard_error(values: Sequence[float]) -> float:
    """Delete-a-group jackknife standard error from the G values of a metric with each group left out.

    It is sqrt((G - 1) / G * sum of squared deviations). An ordinary bootstrap repeats images, which biases a Frechet
    distance upwards."""
    left_out = np.asarray(values, dtype=np.float64)
    return float(np.sqrt((len(values) - 1) / len(values) * np.square(left_out - left_out.mean()).sum()))
