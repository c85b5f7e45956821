"""Features, images and extractors for the tests of metrics, and checks of error messages."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mar_bench.config.spec import ClassifierExtractor, DigitsData
from mar_bench.data.datasets import load_data
from mar_bench.metrics.features import Classifier, FeatureSpace
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import philox, seeded

CPU = torch.device("cpu")
DIGITS = DigitsData()
SMALL = ClassifierExtractor(name="test", feature_dim=6, width=4)


def normal(count: int, dim: int = 16, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated normal features (count, dim), float32."""
    rng = philox(seed, "test-features", 0, 0)
    mix = rng.standard_normal((dim, dim)) * scale
    return torch.from_numpy((rng.standard_normal((count, dim)) @ mix + shift).astype(np.float32))


def noise(count: int, seed: int = 0, channels: int = 1, height: int = 16, width: int = 16) -> torch.Tensor:
    """Random uint8 images (count, channels, height, width)."""
    rng = philox(seed, "test-images", 0, 0)
    return torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def digits(*classes: int) -> torch.Tensor:
    """The training images of some classes of digits, in order."""
    train = load_data(DIGITS).train
    return train.get(torch.isin(train.labels, torch.tensor(classes)).nonzero()[:, 0])


def classifier(seed: int = 0) -> Classifier:
    """A classifier of digits with random weights."""
    with seeded(seed, "test-classifier"):
        return Classifier(SMALL, DIGITS).eval()


def space_of(net: Classifier, folder: Path) -> FeatureSpace:
    save_file(net.state_dict(), folder / "extractor.safetensors")
    return FeatureSpace(SMALL, DIGITS, folder / "extractor.safetensors", CPU)


class Averages:
    """Stands for a FeatureSpace: means of the quarters of an image (B, 4), and with ``scores`` logits (B, 3)."""

    def __init__(self, kind: str = "plugin", name: str = "averages", scores: bool = True):
        self.sha256, self.scores = f"{kind}-{name}".ljust(64, "0"), scores
        self.about = {"kind": kind, "name": name, "sha256": self.sha256, "layers": ["features", "logits"][: 1 + scores]}
        self.batches: list[int] = []  # the sizes of the batches it was given

    def extract(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.batches.append(len(images))
        features = F.adaptive_avg_pool2d(images.double().mean(1), 2).flatten(1).float()
        return features, features[:, :3] / 8 if self.scores else None


def refusal(function, *arguments, **options) -> str:
    """The one-line message of the UserError."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file that Pillow cannot save: colour 0 is grey, 2 is RGB; ``more`` are extra chunks."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def says(message: str, *words) -> bool:
    return all(str(word) in message for word in words)
