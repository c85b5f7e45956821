"""The only place that maps spec kinds to classes. A new part: one file, one dataclass, one line here."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.backbones.causal import CausalDecoder
from mar_bench.backbones.masked import MaskedEncoderDecoder
from mar_bench.heads.cross_entropy import CrossEntropy
from mar_bench.heads.diffusion import Diffusion
from mar_bench.heads.energy import Energy
from mar_bench.heads.flow import Flow
from mar_bench.heads.gmm import GaussianMixture
from mar_bench.heads.mse import MSE
from mar_bench.model import ARGenerator
from mar_bench.noise import seeded
from mar_bench.spec import RunSpec
from mar_bench.tokenizers.base import Tokenizer
from mar_bench.tokenizers.grouped import Grouped
from mar_bench.tokenizers.kl import KLAutoencoder
from mar_bench.tokenizers.pixel import Pixels
from mar_bench.tokenizers.published import ConsistencyDecoder, KLAutoencoder8, KLAutoencoder16, VQAutoencoder16
from mar_bench.tokenizers.vq import VQAutoencoder

TOKENIZERS = {
    "kl": KLAutoencoder,
    "vq": VQAutoencoder,
    "ldm_kl": KLAutoencoder16,
    "ldm_vq": VQAutoencoder16,
    "sd_kl": KLAutoencoder8,
    "consistency": ConsistencyDecoder,
    "pixel": Pixels,
}
BACKBONES = {"masked": MaskedEncoderDecoder, "causal": CausalDecoder}
HEADS = {
    "cross_entropy": CrossEntropy,
    "diffusion": Diffusion,
    "gmm": GaussianMixture,
    "mse": MSE,
    "flow": Flow,
    "energy": Energy,
}


def build_tokenizer(spec: RunSpec) -> Tokenizer:
    """The tokenizer as it is before training, or with its published weights; in a wrapper where it is grouped."""
    with seeded(getattr(spec.tokenizer, "seed", 0), "tokenizer-init"):
        tokenizer = TOKENIZERS[spec.tokenizer.kind](spec.tokenizer, spec.data)
    return tokenizer if spec.tokenizer.group == 1 else Grouped(tokenizer, spec.tokenizer.group)


def build_generator(spec: RunSpec) -> ARGenerator:
    """The generator with fresh weights drawn from the training seed; on the meta device, shapes only."""
    model = spec.model
    with seeded(spec.train.seed, "init"):
        backbone = BACKBONES[model.backbone.kind](model.backbone, spec.space, spec.data.num_classes)
        head = HEADS[model.head.kind](model.head, spec.space, model.backbone.dim)
        return ARGenerator(model.order, backbone, head, spec.space, spec.train.label_dropout)


def count_parameters(model: ARGenerator) -> dict[str, int]:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    return {"total": count(model), "backbone": count(model.backbone), "head": count(model.head)}


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
