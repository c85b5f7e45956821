"""MIND, the Monge Inception Distance (Berthet et al., arXiv 2605.06797): a sliced Wasserstein distance of features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mar_bench.metrics.functions import ROWS, SEED, jackknife_groups
from mar_bench.utils.noise import SHARED, philox

PROJECTIONS = 1000  # as in the paper
VALUES = 2**21  # projected features per block: 16 MiB in float64, with about ten copies alive at a time


def mind(
    generated: torch.Tensor, reference: torch.Tensor, groups: int = 0, labels: torch.Tensor | None = None
) -> tuple[float, list[float]]:
    """MIND of features (N, F) and (M, F), and its values with each jackknife group of the samples left out.

    It is 3 F times the mean, over random unit directions u, of the squared 2-Wasserstein distance of the features
    projected on u, which is the mean squared difference of the sorted projections; no root is taken. Between N(a, I)
    and N(b, I) it is 3 |a - b|^2, between N(0, s^2 I) and N(0, t^2 I) 3 F (s - t)^2. Both sides have min(N, M) images,
    of the larger side a random subset. Projections are float64, so that the number of threads changes the value by less
    than a relative 1e-12.

    The bias decreases with the number of images, so a group left out also takes away as many of the reference: the
    same ones for every group, since the reference is not what varies. ``labels`` (N,) balance the groups."""
    rng, count, dim = philox(SEED, "mind", SHARED, 0), min(len(generated), len(reference)), generated.shape[1]
    directions = F.normalize(torch.from_numpy(rng.standard_normal((PROJECTIONS, dim))), dim=1)
    chosen = [torch.from_numpy(rng.permutation(len(side))[:count]) for side in (generated, reference)]
    labels = None if labels is None else labels[chosen[0]]
    group = jackknife_groups(count, groups, labels).numpy() if groups else np.zeros(count)
    sums = np.zeros(1 + groups)
    for some in directions.split(max(1, VALUES // count)):
        ours, theirs = _project(generated, chosen[0], some), _project(reference, chosen[1], some)
        whose, which = (values.argsort(axis=1) for values in (ours, theirs))
        ours, theirs = (np.take_along_axis(v, order, axis=1) for v, order in ((ours, whose), (theirs, which)))
        sums[0] += np.square(ours - theirs).mean(1).sum()
        whose = group[whose]
        shorter: dict[int, np.ndarray] = {}  # number of images -> the reference's values
        for g in range(groups):
            rest = ours[whose != g].reshape(len(some), -1)
            size = rest.shape[1]
            if size not in shorter:
                shorter[size] = theirs[which < size].reshape(len(some), size)
            sums[1 + g] += np.square(rest - shorter[size]).mean(1).sum()
    value, *without = (3 * dim * sums / PROJECTIONS).tolist()
    return value, without


def _project(features: torch.Tensor, chosen: torch.Tensor, directions: torch.Tensor) -> np.ndarray:
    """Projections (P, n), in float64, of the chosen (n,) features (N, F) on directions (P, F)."""
    return torch.cat([directions @ features[rows].double().T for rows in chosen.split(ROWS)], dim=1).numpy()
