"""The only place that maps spec kinds to classes, and kinds of generators to how they generate.

A new part: one file, one dataclass, one line here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from mar_bench.config.spec import ARModel, RunSpec, SamplingSpec
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.backbones.causal import CausalDecoder
from mar_bench.models.backbones.masked import MaskedEncoderDecoder
from mar_bench.models.dit import DiT
from mar_bench.models.dit import generate as generate_at_once
from mar_bench.models.heads.cross_entropy import CrossEntropy
from mar_bench.models.heads.diffusion import Diffusion
from mar_bench.models.heads.energy import Energy
from mar_bench.models.heads.flow import Flow
from mar_bench.models.heads.gmm import GaussianMixture
from mar_bench.models.heads.mse import MSE
from mar_bench.models.sampler import generate as generate_in_order
from mar_bench.models.sampler import no_clock
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.models.tokenizers.grouped import Grouped
from mar_bench.models.tokenizers.kl import KLAutoencoder
from mar_bench.models.tokenizers.pixel import Pixels
from mar_bench.models.tokenizers.pretrained import ConsistencyDecoder, KLAutoencoder8, KLAutoencoder16, VQAutoencoder16
from mar_bench.models.tokenizers.vq import VQAutoencoder
from mar_bench.utils.noise import NoiseSource, seeded

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
GENERATE = {ARGenerator: generate_in_order, DiT: generate_at_once}


def build_tokenizer(spec: RunSpec) -> Tokenizer:
    """The tokenizer as it is before training, or with its published weights; in a wrapper where it is grouped."""
    with seeded(getattr(spec.tokenizer, "seed", 0), "tokenizer-init"):
        tokenizer = TOKENIZERS[spec.tokenizer.kind](spec.tokenizer, spec.data)
    return tokenizer if spec.tokenizer.group == 1 else Grouped(tokenizer, spec.tokenizer.group)


def build_generator(spec: RunSpec) -> Generator:
    """The generator with fresh weights drawn from the training seed; on the meta device, shapes only."""
    model = spec.model
    with seeded(spec.train.seed, "init"):
        if not isinstance(model, ARModel):
            return DiT(model, spec.space, spec.data.num_classes, spec.train.label_dropout)
        backbone = BACKBONES[model.backbone.kind](model.backbone, spec.space, spec.data.num_classes)
        head = HEADS[model.head.kind](model.head, spec.space, model.backbone.dim)
        return ARGenerator(model.order, backbone, head, spec.space, spec.train.label_dropout)


def generate(
    model: Generator,
    labels: torch.Tensor,
    sampling: SamplingSpec,
    noise: NoiseSource,
    clock: Callable[[str], contextlib.AbstractContextManager] = no_clock,
) -> torch.Tensor:
    """Draw tokens (B, L[, D]) for labels (B,), on the labels' device, as the kind of generator does it.

    ``clock(part)`` times "backbone" and, where there is one, "head"."""
    return GENERATE[type(model)](model, labels, sampling, noise, clock)


def count_parameters(model: Generator) -> dict[str, int]:
    """Numbers of parameters; one without a head is all backbone."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    total, head = count(model), count(model.head) if isinstance(model, ARGenerator) else 0
    return {"total": total, "backbone": total - head, "head": head}


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
