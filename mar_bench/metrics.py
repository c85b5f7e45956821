"""Metrics through torch-fidelity's building blocks, on whichever feature extractor the spec names.

Only the 2015 Inception network's Frechet distance is called FID (records.metric_name sees to that)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from mar_bench.errors import UserError
from mar_bench.records import sha256_of
from mar_bench.spec import ClassifierExtractor, DataSpec, ExtractorSpec, InceptionExtractor

FEATURES, LOGITS = "features", "logits"


class Classifier(nn.Module):
    """A small convolutional classifier: uint8 images -> features (B, F) and logits (B, classes)."""

    def __init__(self, spec: ClassifierExtractor, data: DataSpec):
        super().__init__()
        width = spec.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(data.channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        side = (data.image_size + 7) // 8
        self.features = nn.Linear(4 * width * side * side, spec.feature_dim)
        self.classify = nn.Linear(spec.feature_dim, data.num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(self.convolutions(images.float() / 127.5 - 1).flatten(1))
        return features, self.classify(F.relu(features))


def classifier_for_fidelity(spec: ClassifierExtractor, data: DataSpec, weights: dict[str, torch.Tensor]) -> type:
    """torch-fidelity's view of a trained classifier; its class is what the registry wants."""

    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.net = Classifier(spec, data)
            self.net.load_state_dict(weights)

        @staticmethod
        def get_provided_features_list():
            return FEATURES, LOGITS

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return LOGITS if metric == "isc" else FEATURES

        def forward(self, images):
            outputs = dict(zip((FEATURES, LOGITS), self.net(images)))
            return tuple(outputs[name] for name in self.features_list)

    return Extractor


class Images(Dataset):
    """uint8 images (N, C, H, W) as torch-fidelity wants them: one bare CHW tensor an item."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


class FeatureSpace:
    """An extractor ready to use: uint8 images -> features and logits, and the metrics on them."""

    def __init__(self, spec: ExtractorSpec, data: DataSpec, weights: Path, device: torch.device):
        """``weights``: the classifier's safetensors file, or Inception's published weights file."""
        self.spec, self.cuda = spec, device.type == "cuda"
        self.sha256 = sha256_of(weights)
        if isinstance(spec, InceptionExtractor):
            self.layers = ("2048", "logits_unbiased")
            self.extractor = create_feature_extractor(
                "inception-v3-compat", list(self.layers), cuda=self.cuda, feature_extractor_weights_path=str(weights)
            )
        else:
            from safetensors.torch import load_file

            self.layers = (FEATURES, LOGITS)
            name = f"{spec.name}-{self.sha256[:12]}"
            if name not in FEATURE_EXTRACTORS_REGISTRY:
                register_feature_extractor(name, classifier_for_fidelity(spec, data, load_file(weights)))
            self.extractor = create_feature_extractor(name, list(self.layers), cuda=self.cuda, verbose=False)

    def extract(self, images: torch.Tensor, batch_size: int = 250) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, F) and logits (N, classes) of uint8 images (N, C, H, W), in their order."""
        if isinstance(self.spec, InceptionExtractor) and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        out = get_featuresdict_from_dataset(
            Images(images), self.extractor, batch_size, cuda=self.cuda, save_cpu_ram=True, verbose=False
        )
        return out[self.layers[0]], out[self.layers[1]]


def inception_weights(spec: InceptionExtractor) -> Path:
    """Raises UserError where the file is not given: it is never downloaded unasked."""
    if spec.weights is None or not Path(spec.weights).is_file():
        raise UserError(
            "FID needs the 2015 Inception weights: set metrics.extractor.weights to "
            f"weights-inception-2015-12-05-6726825d.pth (found {spec.weights or 'none'})"
        )
    return Path(spec.weights)


def statistics(features: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean ``mu`` (F,) and covariance ``sigma`` (F, F) in float64, and how many images they are of."""
    values = features.double().numpy()
    return {"mu": values.mean(0), "sigma": np.atleast_2d(np.cov(values, rowvar=False)), "count": np.array(len(values))}


def frechet_distance(generated: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """Frechet distance of two Gaussians given by their statistics (Heusel et al. 2017, equation 6)."""
    return fid_statistics_to_metric(generated, reference, verbose=False)[KEY_METRIC_FID]


def inception_style_score(logits: torch.Tensor, splits: int) -> float:
    """exp of the mean KL between p(class | image) and its mean; shuffled first, as class order biases it."""
    return isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)[KEY_METRIC_ISC_MEAN]


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose class the extractor's classifier agrees with."""
    return (logits.argmax(-1) == labels).float().mean().item()


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each of the uint8 images, (N,)."""
    mse = (images.float() - reference.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=1e-10))
