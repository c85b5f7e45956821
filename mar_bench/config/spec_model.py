"""What YAML can say about the generator: backbones, heads and whole-image models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mar_bench.config.parse import Count, Fraction, Positive, Share, TwoOrMore
from mar_bench.config.spec_data import Continuous, Discrete


@dataclass(frozen=True)
class TruncatedNormalMasking:
    """Share of unknown tokens in a training batch, as in the official code: one draw for the whole batch."""

    kind: Literal["truncated_normal"] = "truncated_normal"
    low: Share = 0.7
    high: Share = 1.0
    mean: float = 1.0
    std: Positive = 0.25


@dataclass(frozen=True)
class UniformMasking:
    """Share of unknown tokens drawn evenly from [low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: Share = 0.0
    high: Share = 1.0


MaskingSpec = TruncatedNormalMasking | UniformMasking


@dataclass(frozen=True)
class MaskedBackbone:
    """MAE-style encoder and decoder: bidirectional attention among the known tokens (paper, section 3.4)."""

    attention: ClassVar[str] = "bidirectional"
    kind: Literal["masked"] = "masked"
    dim: Count = 1024
    encoder_depth: Count = 16
    decoder_depth: Count = 16
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    num_class_tokens: Count = 64  # copies of the class embedding in front of the sequence
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: Fraction = 0.1  # of attention and of projections [code]
    init_std: Positive = 0.02  # of embeddings
    masking: MaskingSpec = field(default_factory=TruncatedNormalMasking)


@dataclass(frozen=True)
class CausalBackbone:
    """GPT-style decoder: causal attention along the order, teacher forcing on every token, kv-cache."""

    attention: ClassVar[str] = "causal"
    kind: Literal["causal"] = "causal"
    dim: Count = 1024
    depth: Count = 32  # encoder and decoder depth together, so that parameters match the masked backbone
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    num_class_tokens: Count = 64
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: Fraction = 0.1
    init_std: Positive = 0.02


BackboneSpec = MaskedBackbone | CausalBackbone


@dataclass(frozen=True)
class CrossEntropyHead:
    """A linear classifier over the codes."""

    space: ClassVar[type] = Discrete
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["cross_entropy"] = "cross_entropy"


@dataclass(frozen=True)
class DiffusionHead:
    """Diffusion loss: a small denoising MLP conditioned on z (paper, section 3.2 and appendix A)."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = True
    kind: Literal["diffusion"] = "diffusion"
    depth: Count = 3
    width: Count = 1024
    num_train_timesteps: Count = 1000
    draws_per_token: Count = 4  # timesteps drawn for each token in a training step


@dataclass(frozen=True)
class GaussianMixtureHead:
    """A mixture of diagonal Gaussians a token, trained by its likelihood (GIVT)."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["gmm"] = "gmm"
    num_components: Count = 16


@dataclass(frozen=True)
class MSEHead:
    """The token itself, by squared error (paper, appendix D.3): what a loss without a distribution comes to."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    clamps: ClassVar[bool] = False
    kind: Literal["mse"] = "mse"


@dataclass(frozen=True)
class FlowHead:
    """Flow matching: the denoising MLP predicts a velocity, and a few steps of its ODE draw a token."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["flow"] = "flow"
    depth: Count = 3
    width: Count = 1024
    draws_per_token: Count = 4


@dataclass(frozen=True)
class EnergyHead:
    """An MLP turns noise into a token in one step, trained by the energy score (EAR, 2505.07812)."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["energy"] = "energy"
    depth: Count = 3
    width: Count = 1024
    noise_dim: Count = 64
    samples_per_token: TwoOrMore = 2  # of the model in a training step, at least two: the score compares them


HeadSpec = CrossEntropyHead | DiffusionHead | GaussianMixtureHead | MSEHead | FlowHead | EnergyHead


@dataclass(frozen=True)
class ARModel:
    """The single core: an order, a backbone and a head."""

    assumed: ClassVar[bool] = True  # where a block of the spec names no kind
    kind: Literal["ar"] = "ar"
    order: Literal["raster", "random"] = "random"
    backbone: BackboneSpec = field(default_factory=MaskedBackbone)
    head: HeadSpec = field(default_factory=DiffusionHead)


@dataclass(frozen=True)
class DiTModel:
    """The rival: a diffusion transformer over all latents of an image at once (DiT, 2212.09748). Defaults: XL/2."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = True
    kind: Literal["dit"] = "dit"
    patch_size: Count = 2  # latents square that make a token of the transformer
    dim: Count = 1152
    depth: Count = 28
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    num_train_timesteps: Count = 1000
    beta_schedule: Literal["linear", "cosine"] = "linear"


ModelSpec = ARModel | DiTModel


def drawing_part(model: ModelSpec) -> HeadSpec | DiTModel:
    """What draws tokens: the head of an autoregressive model, or the whole of one that denoises an image at once."""
    return model.head if isinstance(model, ARModel) else model


def is_causal(model: ModelSpec) -> bool:
    """Whether attention looks back along the order alone, so that generation keeps keys and values."""
    return isinstance(model, ARModel) and model.backbone.attention == "causal"
