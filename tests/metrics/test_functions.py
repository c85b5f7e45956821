"""Metrics against direct implementations of their formulas in float64, without blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch_fidelity.metric_prc import calculate_precision_recall_part

from mar_bench.metrics import functions
from mar_bench.metrics.functions import (
    FrechetDistance,
    Moments,
    frechet_distance,
    jackknife_groups,
    nearest,
    statistics,
)
from mar_bench.utils.noise import philox
from tests.measuring import normal


def close_to_numpy(found: dict[str, np.ndarray], features: torch.Tensor, rel: float = 1e-9) -> bool:
    values = features.double().numpy()
    sigma = np.cov(values, rowvar=False)
    error = np.abs(found["sigma"] - sigma).max() / np.trace(sigma)
    return int(found["count"]) == len(values) and error < rel and np.allclose(found["mu"], values.mean(0), rtol=rel)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e6])
def test_moments_are_exact_in_blocks_and_far_from_the_origin(shift, monkeypatch):
    monkeypatch.setattr(functions, "ROWS", 64)
    features = normal(500, dim=5) + shift
    total, part = Moments.near(features[:10]), Moments.near(features[:10])
    for block in features.split(170):
        total.add(block)
    part.add(features[100:180])
    for same in (features, features.double(), features.half() if shift == 0 else features):
        assert statistics(same)["mu"].dtype == np.float64 and close_to_numpy(statistics(same), same)
    assert close_to_numpy(total.statistics(), features)
    assert close_to_numpy(total.without(part).statistics(), torch.cat([features[:100], features[180:]]))
    assert close_to_numpy(total.statistics(), features), "taking a part away changes nothing"


def frechet_by_sqrtm(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), and the trace of S1 + S2, to which it is rounded."""
    a, b = one.double().numpy(), other.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)), np.trace(s1 + s2)


@pytest.mark.parametrize(("counts", "shift"), [((300, 400), 0.0), ((2000, 50), 0.7), ((17, 40), 0.7)])
def test_frechet_distance_matches_the_matrix_square_root(counts, shift):
    one, other = normal(counts[0]), normal(counts[1], seed=1, scale=1.3, shift=shift)
    expected, trace = frechet_by_sqrtm(one, other)
    assert expected > 1 and not functions.is_singular(statistics(one))
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected, abs=1e-6 * trace)
    assert frechet_distance(statistics(other), statistics(one)) == pytest.approx(expected, abs=1e-6 * trace)


def test_singular_covariances_have_a_distance():
    """One Gaussian within a plane: tr (S1 S2)^(1/2) is that of the plane's part."""
    assert [functions.is_singular(statistics(normal(count))) for count in (15, 16, 17)] == [True, True, False]
    flat, full = normal(200, dim=4), normal(300, dim=4, seed=1)
    flat[:, 2:] = 0
    a, b = (np.cov(x.double().numpy(), rowvar=False) for x in (flat, full))
    root = scipy.linalg.sqrtm(a[:2, :2] @ b[:2, :2]).real
    shift = flat.double().mean(0) - full.double().mean(0)
    expected = float(shift.square().sum()) + np.trace(a) + np.trace(b) - 2 * np.trace(root)
    assert frechet_distance(statistics(flat), statistics(full)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(full), statistics(flat)) == pytest.approx(expected, rel=1e-6)


def sure(labels: torch.Tensor, classes: int = 5, how: float = 50.0) -> torch.Tensor:
    """Logits that leave no doubt."""
    return how * F.one_hot(labels, classes).float()


def score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    return functions.inception_style_score(logits[functions.shuffled(len(logits))], splits)


def test_the_score_is_the_exponential_of_the_mean_divergence():
    logits = normal(60, dim=5).double()
    p = logits.softmax(1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
    assert score(logits.float(), 1) == pytest.approx((divergence.exp().item(), 0), rel=1e-9)
    assert score(torch.zeros(200, 5), 2) == pytest.approx((1, 0))
    assert score(sure(torch.arange(200) % 5), 1) == pytest.approx((5, 0))


def test_the_order_of_images_does_not_matter():
    labels = torch.arange(1000) % 5
    logits = sure(labels) / 20 + normal(1000, dim=5)
    mixed, by_class = score(logits, 5), score(logits[labels.argsort(stable=True)], 5)
    assert 0 < abs(mixed[0] - by_class[0]) < min(mixed[1], by_class[1])
    assert score(sure(labels.sort().values), 5)[0] > 4.5, "not 1, as without a shuffle"


@pytest.mark.parametrize("how", [50.0, 1e30])
def test_extreme_logits_have_a_finite_score(how):
    """A class that never occurs has probability 0 everywhere: 0 * log(0 / 0)."""
    mean, sd = score(sure(torch.arange(300) % 3, how=how), 2)
    assert mean == pytest.approx(3, rel=0.02) and math.isfinite(sd)


def unbiased_mmd(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of all pairs but an image and itself, under the kernel (x.y / dim + 1)^3."""
    x, y = one.double().numpy(), other.double().numpy()
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


def test_one_subset_of_all_images_is_the_unbiased_mmd():
    one, other = normal(120), normal(120, seed=1, scale=1.2, shift=0.3)
    expected = unbiased_mmd(one, other)
    found = functions.kernel_distance(one.double(), other.double(), subsets=1, subset_size=120)
    assert expected > 1 and found == pytest.approx((expected, 0), rel=1e-9)
    assert functions.kernel_distance(one, other, subsets=1, subset_size=120)[0] == pytest.approx(expected, rel=1e-4)


def share_inside(queries: torch.Tensor, centres: torch.Tensor, neighbours: int) -> float:
    """Share of queries inside a ball around one of the centres that reaches to its k-th neighbour among them."""
    q, c = queries.double().numpy(), centres.double().numpy()
    radii = np.sort(np.linalg.norm(c[:, None] - c[None], axis=-1), axis=1)[:, neighbours]  # the first is itself
    return (np.linalg.norm(q[:, None] - c[None], axis=-1) <= radii).any(1).mean()


@pytest.mark.parametrize(("neighbours", "pairs"), [(1, None), (3, 130 * 17), (3, 130 * 4)])
def test_precision_and_recall_are_shares_inside_balls(neighbours, pairs, monkeypatch):
    if pairs:
        monkeypatch.setattr(functions, "PAIRS", pairs)
    reference, drawn = normal(220, dim=4).split([130, 90])
    generated = 0.6 * drawn + 0.8
    expected = share_inside(generated, reference, neighbours), share_inside(reference, generated, neighbours)
    assert 0 < expected[1] < expected[0] - 0.05 and expected[0] < 1
    found = functions.PrecisionRecall(reference, neighbours)(generated)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found == calculate_precision_recall_part(generated, reference, neighbours)


def test_latent_noise_is_the_share_of_the_encoders_own_deviation():
    """Latents of deviation 4 and 1, with noise of deviation 3 and 0."""
    found = functions.LatentNoise()
    assert found.value() == 0
    mean = torch.randn(4000, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 1.0]) + 7
    for batch in mean.split(300):
        found.update(batch, torch.tensor([3.0, 0.0]).expand_as(batch))
    assert found.value() == pytest.approx(math.sqrt((9 / 25 + 0) / 2), rel=0.02)


def test_psnr_of_known_noise():
    """20 log10(255 / rmse), an image at a time."""
    reference = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    images = reference.clone()
    images[1] += 10
    images[2, ..., :4] -= 20
    expected = [20 * math.log10(255 / 10), 20 * math.log10(255 / math.sqrt(200))]
    found = functions.psnr(images, reference)
    assert found[1:].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[0] > 140 and math.isfinite(found[0])


def distances_between(queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    return (queries.double()[:, None] - bank.double()[None]).norm(dim=-1)


@pytest.mark.parametrize("pairs", [2**27, 900])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_nearest_is_what_comparing_all_pairs_gives(pairs, shift, monkeypatch):
    monkeypatch.setattr(functions, "PAIRS", pairs)
    queries, bank = normal(70, seed=1) + shift, normal(90) + shift
    expected = distances_between(queries, bank).sort(dim=1, stable=True)
    distances, indices = nearest(queries, bank, 4)
    assert torch.equal(indices, expected.indices[:, :4])
    assert torch.allclose(distances, expected.values[:, :4], rtol=1e-9)
    assert torch.equal(nearest(queries, bank)[1], indices[:, :1])


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_copy_is_at_distance_zero_and_a_near_copy_is_found(shift):
    bank = normal(200, dim=64) + shift
    chosen = torch.tensor([3, 199, 77])
    distances, indices = nearest(bank[chosen], bank)
    assert indices[:, 0].equal(chosen) and distances[:, 0].tolist() == [0, 0, 0]
    near = bank[chosen].clone()
    near[:, 5] = torch.nextafter(near[:, 5], torch.tensor(torch.inf))  # the next number that float32 has
    twins = torch.cat([bank, near[:1]])
    distances, indices = nearest(near, twins)
    assert indices[:, 0].tolist() == [200, 199, 77] and distances[0] == 0
    step = (near - bank[chosen])[1:, 5].double()
    assert step.gt(0).all() and torch.allclose(distances[1:, 0], step, rtol=1e-6)


def test_neighbours_too_close_for_matrix_products_are_ordered():
    """Squares of 10^13 are rounded to more than the differences of 10^-3."""
    bank = 1e6 * normal(40, dim=16).double()
    near = bank[:1] + torch.eye(16)[:1] * torch.tensor([[3e-3], [1e-3], [2e-3]])
    distances, indices = nearest(bank[:1], torch.cat([near, bank]), 4)
    assert indices.tolist() == [[3, 1, 2, 0]]
    assert torch.allclose(distances, torch.tensor([[0, 1e-3, 2e-3, 3e-3]], dtype=torch.double), atol=1e-6)


def test_spacing_is_the_distance_to_another_one():
    bank = normal(60)
    bank[[10, 20, 30]] = bank[5].clone()  # four equal ones
    bank[41] = bank[40].clone()
    others = distances_between(bank, bank)
    others[others < 1e-6] = torch.inf  # itself and its equals
    expected = others.min(1).values
    assert torch.allclose(functions.spacing(bank), expected, rtol=1e-9, atol=0)


def test_copied_compares_with_the_spacing_of_the_training_images():
    training, fresh = normal(150, dim=4), normal(100, dim=4, seed=5)
    found = functions.copied(fresh, training)
    distances = distances_between(fresh, training)
    others = distances_between(training, training)
    others.fill_diagonal_(torch.inf)
    expected = distances.min(1).values <= others.min(1).values[distances.argmin(1)]
    assert torch.equal(found, expected) and 0 < expected.sum() < 100
    assert functions.copied(training[:20], training).all() and functions.copied(training[:20] + 1e-4, training).all()
    assert not functions.copied(training[:20] + 100, training).any()
    doubled = torch.cat([training, training[:20]])
    assert functions.copied(training[:20] + 1e-4, doubled).all() and torch.equal(
        functions.spacing(doubled)[:150], functions.spacing(training)
    )
    assert torch.equal(functions.spacing(training[:1].expand(3, -1)), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("count", "groups"), [(226, 10), (7, 7)])
def test_groups_are_random_and_of_equal_size_in_all_and_in_each_class(count, groups):
    labels = torch.cat([torch.arange(200) % 7, torch.full((25,), 3), torch.tensor([40])])[-count:]
    for known in (None, labels):
        found = jackknife_groups(count, groups, known)
        everything = torch.ones_like(labels, dtype=torch.bool)
        for members in (everything, *(labels == c for c in labels.unique() if known is not None)):
            sizes = found[members].bincount(minlength=groups)
            assert len(sizes) == groups and sizes.max() - sizes.min() <= 1
        assert torch.equal(found, jackknife_groups(count, groups, known))
        assert count < 10 or not torch.equal(found[labels == 0], torch.arange(int((labels == 0).sum())) % groups)


@pytest.mark.parametrize("size", [1, 5])
def test_the_standard_error_of_a_mean_is_the_known_one(size):
    """s / sqrt(n) of the groups' means, which are the values themselves where each group is one of them."""
    values = normal(40, dim=1)[:, 0].double()
    groups = jackknife_groups(40, 40 // size, None)
    without = [values[groups != g].mean().item() for g in range(40 // size)]
    means = torch.stack([values[groups == g].mean() for g in range(40 // size)])
    assert functions.standard_error(without) == pytest.approx((means.std() / math.sqrt(len(means))).item(), rel=1e-9)


def test_the_standard_error_of_a_distance_is_the_spread_of_redrawn_sets():
    """On average within a factor of the spread; 300 sets of 200 images."""
    rng = philox(0, "test-jackknife", 0, 0)
    distance = FrechetDistance(statistics(normal(1000, dim=4)))
    groups = jackknife_groups(200, 10, None)
    values, errors = [], []
    for _ in range(300):
        drawn = torch.from_numpy(rng.standard_normal((200, 4)) * [1, 1.5, 2, 3])
        total, parts = Moments.near(drawn).add(drawn), [Moments.near(drawn).add(drawn[groups == g]) for g in range(10)]
        values.append(distance(total.statistics()))
        errors.append(functions.standard_error([distance(total.without(part).statistics()) for part in parts]))
    assert 1 / 1.3 < np.mean(errors) / np.std(values, ddof=1) < 1.3
