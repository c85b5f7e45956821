"""Specs -> modules, and generators -> how they are sampled: the only place that lists the concrete classes.

To add one: a module with the class, a dataclass in config/spec_model.py or spec_data.py, and a line here."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from mar_bench.config.spec import ARModel, Continuous, RunSpec, SamplingSpec
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.backbones.causal import CausalDecoder
from mar_bench.models.backbones.masked import MaskedEncoderDecoder
from mar_bench.models.dit import DiT, generate_images
from mar_bench.models.heads.cross_entropy import CrossEntropy
from mar_bench.models.heads.diffusion import Diffusion
from mar_bench.models.heads.energy import Energy
from mar_bench.models.heads.flow import Flow
from mar_bench.models.heads.gmm import GaussianMixture
from mar_bench.models.heads.mse import MSE
from mar_bench.models.sampler import Clock
from mar_bench.models.sampler import generate as generate_in_order
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.models.tokenizers.grouped import Grouped
from mar_bench.models.tokenizers.kl import KLAutoencoder
from mar_bench.models.tokenizers.pixel import Pixels
from mar_bench.models.tokenizers.pretrained import ConsistencyDecoder, KLAutoencoder16, VQAutoencoder16
from mar_bench.models.tokenizers.vq import VQAutoencoder
from mar_bench.utils.noise import NoiseSource, seeded

TOKENIZERS = {
    "kl": KLAutoencoder,
    "vq": VQAutoencoder,
    "ldm_kl": KLAutoencoder16,
    "ldm_vq": VQAutoencoder16,
    "sd_kl": KLAutoencoder16,
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
    """The tokenizer before training, or with its published weights; grouped where the spec says so."""
    with seeded(getattr(spec.tokenizer, "seed", 0), "tokenizer-init"):
        tokenizer = TOKENIZERS[spec.tokenizer.kind](spec.tokenizer, spec.data)
    return tokenizer if spec.tokenizer.group == 1 else Grouped(tokenizer, spec.tokenizer.group)


def build_generator(spec: RunSpec) -> Generator:
    """The generator with initial weights from the training seed; shapes only under ``torch.device("meta")``."""
    model = spec.model
    with seeded(spec.train.seed, "init"):
        if not isinstance(model, ARModel):
            assert isinstance(spec.space, Continuous)
            return DiT(model, spec.space, spec.data.num_classes, spec.train.label_dropout)
        backbone = BACKBONES[model.backbone.kind](model.backbone, spec.space, spec.data.num_classes)
        head = HEADS[model.head.kind](model.head, spec.space, model.backbone.dim)
        return ARGenerator(model.order, backbone, head, spec.space, spec.train.label_dropout)


def generate(
    model: Generator, labels: Tensor, sampling: SamplingSpec, noise: NoiseSource, clock: Clock = contextlib.nullcontext
) -> Tensor:
    """Draw tokens (B, L[, D]) for labels (B,), on the labels' device.

    ``clock`` times the parts "backbone" and, of an autoregressive generator, "head"."""
    if isinstance(model, DiT):
        return generate_images(model, labels, sampling, noise, clock)
    assert isinstance(model, ARGenerator)
    return generate_in_order(model, labels, sampling, noise, clock)


def count_parameters(model: Generator) -> dict[str, int]:
    """Number of parameters in total and by part; DiT has no head."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    total, head = count(model), count(model.head) if isinstance(model, ARGenerator) else 0
    return {"total": total, "backbone": total - head, "head": head}


def pick_device(name: str) -> torch.device:
    """The device of a spec; ``auto`` is CUDA where there is a GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
