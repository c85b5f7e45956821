"""Map specs to modules and generators to their samplers: the only place that lists the concrete classes.

To add one: a module with the class, a dataclass in config/spec_model.py or spec_data.py, and a line here."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from mar_bench.config.plugins import class_of
from mar_bench.config.spec import ARModel, Continuous, RunSpec, SamplingSpec, TokenizerSpec
from mar_bench.models import dit, sampler
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.backbones import causal, masked
from mar_bench.models.finite import finite, watched
from mar_bench.models.heads import denoising, energy, gmm, linear
from mar_bench.models.schedules import random_share
from mar_bench.models.tokenizers import grouped, pretrained, trained
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.noise import NoiseSource, seeded

TOKENIZERS = {
    "kl": trained.KLAutoencoder,
    "vq": trained.VQAutoencoder,
    "ldm_kl": pretrained.KLAutoencoder16,
    "ldm_vq": pretrained.VQAutoencoder16,
    "sd_kl": pretrained.KLAutoencoder16,
    "consistency": pretrained.ConsistencyDecoder,
    "pixel": grouped.Pixels,
}
BACKBONES = {"masked": masked.MaskedEncoderDecoder, "causal": causal.CausalDecoder}
HEADS = {
    "cross_entropy": linear.CrossEntropy,
    "diffusion": denoising.Diffusion,
    "gmm": gmm.GaussianMixture,
    "mse": linear.MSE,
    "flow": denoising.Flow,
    "energy": energy.Energy,
}


def tokenizer_class(spec: TokenizerSpec) -> type[Tokenizer]:
    return class_of("tokenizers", spec, TOKENIZERS)


def build_tokenizer(spec: RunSpec) -> Tokenizer:
    """The tokenizer before training, or with its published weights; grouped if the spec says so."""
    with seeded(getattr(spec.tokenizer, "seed", 0), "tokenizer-init"):
        tokenizer = tokenizer_class(spec.tokenizer)(spec.tokenizer, spec.data)
    return tokenizer if spec.tokenizer.group == 1 else grouped.Grouped(tokenizer, spec.tokenizer.group)


def build_generator(spec: RunSpec) -> Generator:
    """The generator with initial weights from the training seed; shapes only under ``torch.device("meta")``."""
    model, train = spec.model, spec.train
    with seeded(train.seed, "init"):
        if not isinstance(model, ARModel):
            assert isinstance(spec.space, Continuous)
            return dit.DiT(model, spec.space, spec.data.num_classes, train.label_dropout)
        backbone = BACKBONES[model.backbone.kind](model.backbone, spec.space, spec.data.num_classes)
        head = class_of("heads", model.head, HEADS)(model.head, spec.space, model.backbone.dim)
        share = partial(random_share, train.annealing, total_steps=train.steps)
        return ARGenerator(model.order, backbone, head, spec.space, train.label_dropout, model.order_seed, share)


def generate(
    model: Generator, labels: Tensor, sampling: SamplingSpec, noise: NoiseSource, clock: sampler.Clock = nullcontext
) -> Tensor:
    """Draw tokens (B, L[, D]) for labels (B,), on their device. ``clock`` times "backbone", "noise" and any "head".

    Raises UserError if a token, or a value that decides on one, is not finite."""
    settings = f"sampling.guidance_scale ({sampling.guidance_scale:g}) and temperature ({sampling.temperature:g})"
    hint = f"train longer or choose less extreme values of {settings}"
    if sampling.num_diffusion_steps is not None and sampling.clamp_x0 is None:
        hint += ", or set sampling.clamp_x0 (4 for tokens of unit std)"
    device, low = labels.device.type, sampling.precision == "bf16"
    low = low and torch.amp.is_autocast_available(device)  # meta has none
    with (
        watched(f"images {noise.indices[0]} to {noise.indices[-1]}", hint),
        torch.autocast(device, torch.bfloat16) if low else nullcontext(),
    ):
        if isinstance(model, dit.DiT):
            tokens = dit.generate_images(model, labels, sampling, noise, clock)
        else:
            assert isinstance(model, ARGenerator)
            tokens = sampler.generate(model, labels, sampling, noise, clock)
        return finite(tokens, "tokens") if tokens.is_floating_point() else tokens


def count_parameters(model: Generator) -> dict[str, int]:
    """Number of parameters in total and by part; DiT has no head."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total, head = sum(sizes.values()), sum(n for name, n in sizes.items() if name.startswith("head."))
    return {"total": total, "backbone": total - head, "head": head}


def pick_device(name: str) -> torch.device:
    """The device of a spec; ``auto`` is CUDA if there is a GPU, else the CPU."""
    # what is called float32 shall not be TF32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
