"""Metrics against their formulas, and extractors against the networks that they are made of."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from mar_bench.errors import UserError
from mar_bench.metrics import (
    Classifier,
    FeatureSpace,
    accuracy,
    frechet_distance,
    inception_style_score,
    inception_weights,
    psnr,
    statistics,
)
from mar_bench.noise import philox, seeded
from mar_bench.spec import ClassifierExtractor, DigitsData, InceptionExtractor

CPU = torch.device("cpu")
SPEC = ClassifierExtractor(name="test", feature_dim=6, width=4)


def features(count: int, dim: int = 16, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated normal features."""
    rng = philox(seed, "test-features", 0, 0)
    mix = rng.standard_normal((dim, dim)) * scale
    return torch.from_numpy((rng.standard_normal((count, dim)) @ mix + shift).astype(np.float32))


# --- distances ------------------------------------------------------------------------------------------


def frechet_by_sqrtm(one: torch.Tensor, other: torch.Tensor) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    a, b = one.double().numpy(), other.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


@pytest.mark.parametrize("counts", [(300, 400), (2000, 50)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_frechet_distance_is_that_of_two_gaussians(counts, shift):
    one, other = features(counts[0]), features(counts[1], seed=1, scale=1.3, shift=shift)
    expected = frechet_by_sqrtm(one, other)
    assert expected > 1
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(other), statistics(one)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_shifted_features_is_the_shift():
    one = features(500)
    assert frechet_distance(statistics(one), statistics(one + 2.0)) == pytest.approx(16 * 4.0, rel=1e-5)


@pytest.mark.parametrize("count", [500, 10])  # 10 images in 16 dimensions: a singular covariance
def test_a_set_is_at_no_distance_from_itself(count):
    one = statistics(features(count))
    assert abs(frechet_distance(one, one)) < 1e-5 * np.trace(one["sigma"])


def test_one_feature_is_enough():
    one, other = features(100, dim=1), features(200, dim=1, seed=1, shift=3.0)
    means, deviations = (torch.stack([f(x.double()) for x in (one, other)]) for f in (torch.mean, torch.std))
    expected = (means.diff() ** 2 + deviations.diff() ** 2).item()
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected, rel=1e-6)


def test_statistics_are_the_mean_and_the_covariance():
    values = features(50, dim=3)
    found = statistics(values)
    centred = values.double() - values.double().mean(0)
    assert {k: v.dtype for k, v in found.items() if k != "count"} == {"mu": np.float64, "sigma": np.float64}
    assert np.allclose(found["mu"], values.double().mean(0)) and int(found["count"]) == 50
    assert np.allclose(found["sigma"], (centred.T @ centred / 49).numpy())


# --- scores ---------------------------------------------------------------------------------------------


def sure(labels: torch.Tensor, classes: int = 5) -> torch.Tensor:
    """Logits that leave no doubt."""
    return 50.0 * torch.nn.functional.one_hot(labels, classes).float()


def test_the_score_lies_between_one_and_the_number_of_classes():
    labels = torch.arange(200) % 5
    assert inception_style_score(torch.zeros(200, 5), 2) == pytest.approx(1)
    assert inception_style_score(sure(labels * 0), 2) == pytest.approx(1)
    assert inception_style_score(sure(labels), 1) == pytest.approx(5)
    assert 1 < inception_style_score(features(200, dim=5), 4) < 5


def test_the_score_is_the_exponential_of_the_mean_divergence():
    logits = features(60, dim=5).double()
    p = logits.softmax(1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
    assert inception_style_score(logits.float(), 1) == pytest.approx(divergence.exp().item(), rel=1e-5)


def test_the_order_of_images_does_not_matter():
    logits = sure(torch.arange(500) % 5) / 20 + features(500, dim=5)
    by_class = logits[(torch.arange(500) % 5).argsort(stable=True)]
    assert inception_style_score(by_class, 1) == pytest.approx(inception_style_score(logits, 1), rel=1e-9)
    assert inception_style_score(by_class, 5) == pytest.approx(inception_style_score(logits, 5), rel=0.05)
    assert inception_style_score(sure(torch.arange(500) // 100), 5) > 4.5, "not 1, as without a shuffle"


def test_the_score_repeats():
    logits = features(300, dim=5)
    assert inception_style_score(logits, 3) == inception_style_score(logits, 3)


def test_accuracy_is_the_share_of_right_classes():
    labels = torch.tensor([0, 1, 2, 3])
    assert accuracy(sure(labels), labels) == 1 and accuracy(sure(labels), torch.tensor([0, 1, 3, 2])) == 0.5


def test_psnr_of_known_noise():
    """20 log10(255 / rmse), an image at a time."""
    reference = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    images = reference.clone()
    images[1] += 10
    images[2, ..., :4] -= 20
    expected = [20 * math.log10(255 / 10), 20 * math.log10(255 / math.sqrt(200))]
    found = psnr(images, reference)
    assert found[1:].tolist() == pytest.approx(expected, abs=1e-4)
    assert found[0] > 140 and math.isfinite(found[0])


# --- extractors -----------------------------------------------------------------------------------------


def classifier(seed: int = 0) -> Classifier:
    with seeded(seed, "test-classifier"):
        return Classifier(SPEC, DigitsData()).eval()


def space_of(net: Classifier, folder) -> FeatureSpace:
    save_file(net.state_dict(), folder / "extractor.safetensors")
    return FeatureSpace(SPEC, DigitsData(), folder / "extractor.safetensors", CPU)


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(philox(0, "test-images", 0, 0).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8))


@torch.inference_mode()
def test_an_extractor_is_the_classifier_called_directly(tmp_path):
    net, batch = classifier(), images(11)
    space = space_of(net, tmp_path)
    found_features, found_logits = space.extract(batch, batch_size=4)
    expected_features, expected_logits = net(batch)
    assert found_features.shape == (11, 6) and found_logits.shape == (11, 10)
    assert torch.allclose(found_features, expected_features, atol=1e-5)
    assert torch.allclose(found_logits, expected_logits, atol=1e-5)
    assert torch.equal(space.extract(batch, batch_size=4)[0], found_features)


def test_an_extractor_is_known_by_the_sha256_of_its_weights(tmp_path):
    space = space_of(classifier(), tmp_path)
    assert space.sha256 == hashlib.sha256((tmp_path / "extractor.safetensors").read_bytes()).hexdigest()
    assert f"test-{space.sha256[:12]}" in FEATURE_EXTRACTORS_REGISTRY


@torch.inference_mode()
def test_two_extractors_of_one_name_do_not_mix(tmp_path):
    """As when a classifier has been trained again in the same process."""
    one, batch = space_of(classifier(0), tmp_path), images(3)
    other = space_of(classifier(1), tmp_path)
    again = space_of(classifier(0), tmp_path)
    assert one.sha256 == again.sha256 != other.sha256
    assert torch.equal(one.extract(batch)[0], again.extract(batch)[0])
    assert not torch.allclose(one.extract(batch)[0], other.extract(batch)[0])


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (33, 3)])
def test_a_classifier_takes_images_of_any_size(size, channels):
    data = DigitsData(image_size=size, channels=channels, num_classes=7)
    found, logits = Classifier(SPEC, data)(torch.zeros(2, channels, size, size, dtype=torch.uint8))
    assert found.shape == (2, 6) and logits.shape == (2, 7)


def test_inception_weights_are_never_fetched_unasked(tmp_path):
    for weights in (None, "/nowhere/inception.pth"):
        with pytest.raises(UserError, match="set metrics.extractor.weights to weights-inception") as caught:
            inception_weights(InceptionExtractor(weights=weights))
        assert f"found {weights or 'none'}" in str(caught.value)
    file = tmp_path / "inception.pth"
    file.touch()
    assert inception_weights(InceptionExtractor(weights=str(file))) == file
