"""Settings of the generator in YAML: backbones, heads and whole-image models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from mar_bench.config.parse import Few, Fraction, OneOf, Seed, Share, Width, between, extensible
from mar_bench.config.plugins import order_names
from mar_bench.config.spec_data import Continuous, Discrete


@dataclass(frozen=True)
class TruncatedNormalMasking:
    """Share of unknown tokens in a training batch, as in the official code: one draw per global batch."""

    kind: Literal["truncated_normal"] = "truncated_normal"
    low: Share = 0.7
    high: Share = 1.0
    mean: Annotated[float, between(-10, 10)] = 1.0
    std: Annotated[float, between(0.001, 100)] = 0.25


@dataclass(frozen=True)
class UniformMasking:
    """Share of unknown tokens, uniform on [low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: Share = 0.0
    high: Share = 1.0


MaskingSpec = TruncatedNormalMasking | UniformMasking


@dataclass(frozen=True)
class Transformer:
    """A transformer over a class and tokens."""

    kind: str = ""
    dim: Width = 1024
    num_heads: Few = 16
    mlp_ratio: Annotated[float, between(0.01, 100)] = 4.0
    num_class_tokens: Few = 64  # copies of the class embedding in front of the sequence
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: Fraction = 0.1  # of attention and of projections [code]
    init_std: Annotated[float, between(1e-6, 10)] = 0.02  # of embeddings


@dataclass(frozen=True)
class MaskedBackbone(Transformer):
    """MAE-style encoder and decoder: bidirectional attention among the known tokens (paper, section 3.4)."""

    attention: ClassVar[str] = "bidirectional"
    kind: Literal["masked"] = "masked"
    encoder_depth: Few = 16
    decoder_depth: Few = 16
    masking: MaskingSpec = field(default_factory=TruncatedNormalMasking)


@dataclass(frozen=True)
class CausalBackbone(Transformer):
    """GPT-style decoder: causal attention along the order, teacher forcing on every token, kv-cache."""

    attention: ClassVar[str] = "causal"
    kind: Literal["causal"] = "causal"
    depth: Few = 32  # encoder and decoder depth together, so that parameters match the masked backbone


BackboneSpec = MaskedBackbone | CausalBackbone


class DrawsTokens:
    """Properties, for checks, of the part that draws tokens."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False  # it takes denoising steps
    draws: ClassVar[bool] = True  # seed and temperature matter
    diffuses: ClassVar[bool] = False  # Gaussian diffusion: ``sampler`` and ``clamp_x0`` apply
    likelihood: ClassVar[Literal["", "exact", "bound"]] = ""  # what it gives of log p(token | z)


@dataclass(frozen=True)
class CrossEntropyHead(DrawsTokens):
    """A linear classifier over the codes."""

    space: ClassVar[type] = Discrete
    likelihood: ClassVar[Literal["", "exact", "bound"]] = "exact"
    kind: Literal["cross_entropy"] = "cross_entropy"


@dataclass(frozen=True)
class DiffusionHead(DrawsTokens):
    """Diffusion loss: a small denoising MLP conditioned on z (paper, section 3.2 and appendix A)."""

    denoises: ClassVar[bool] = True
    diffuses: ClassVar[bool] = True
    likelihood: ClassVar[Literal["", "exact", "bound"]] = "bound"
    kind: Literal["diffusion"] = "diffusion"
    depth: Few = 3
    width: Width = 1024
    num_train_timesteps: Width = 1000
    draws_per_token: Few = 4  # timesteps drawn for each token in a training step


@dataclass(frozen=True)
class GaussianMixtureHead(DrawsTokens):
    """A mixture of diagonal Gaussians per token, trained by maximum likelihood (GIVT, 2312.02116)."""

    likelihood: ClassVar[Literal["", "exact", "bound"]] = "exact"
    kind: Literal["gmm"] = "gmm"
    num_components: Few = 16


@dataclass(frozen=True)
class MSEHead(DrawsTokens):
    """Regression of the token by squared error (paper, appendix D.3): a loss without a distribution."""

    draws: ClassVar[bool] = False
    kind: Literal["mse"] = "mse"


@dataclass(frozen=True)
class FlowHead(DrawsTokens):
    """Flow matching: the denoising MLP predicts a velocity, and a few steps of its ODE draw a token."""

    denoises: ClassVar[bool] = True
    kind: Literal["flow"] = "flow"
    depth: Few = 3
    width: Width = 1024
    draws_per_token: Few = 4


@dataclass(frozen=True)
class EnergyHead(DrawsTokens):
    """An MLP turns noise into a token in one step, trained by the energy score (EAR, 2505.07812)."""

    kind: Literal["energy"] = "energy"
    depth: Few = 3
    width: Width = 1024
    noise_dim: Width = 64
    # drawn per token in a training step; the score compares at least two
    samples_per_token: Annotated[int, between(2, 1000)] = 2


HeadSpec = CrossEntropyHead | DiffusionHead | GaussianMixtureHead | MSEHead | FlowHead | EnergyHead
extensible(HeadSpec, "heads")


@dataclass(frozen=True)
class ARModel:
    """An autoregressive model: an order, a backbone and a head."""

    assumed: ClassVar[bool] = True  # the default for a block without a kind
    kind: Literal["ar"] = "ar"
    order: Annotated[str, OneOf("order", ("raster", "permuted", "random"), order_names)] = "random"
    order_seed: Seed = 0  # of permuted: chooses the one permutation of all images
    backbone: BackboneSpec = field(default_factory=MaskedBackbone)
    head: HeadSpec = field(default_factory=DiffusionHead)


@dataclass(frozen=True)
class DiTModel(DrawsTokens):
    """The baseline: a diffusion transformer over all latents of an image at once (DiT, 2212.09748). Defaults: XL/2."""

    denoises: ClassVar[bool] = True
    diffuses: ClassVar[bool] = True
    kind: Literal["dit"] = "dit"
    patch_size: Few = 2  # patch_size x patch_size latents make a token of the transformer
    dim: Width = 1152
    depth: Few = 28
    num_heads: Few = 16
    mlp_ratio: Annotated[float, between(0.01, 100)] = 4.0
    num_train_timesteps: Width = 1000
    beta_schedule: Literal["linear", "cosine"] = "linear"


ModelSpec = ARModel | DiTModel


def drawing_part(model: ModelSpec) -> HeadSpec | DiTModel:
    """The part that draws tokens: the head of an autoregressive model, or a whole-image model itself."""
    return model.head if isinstance(model, ARModel) else model


def is_causal(model: ModelSpec) -> bool:
    """Whether attention is causal along the order, so that generation caches keys and values."""
    return isinstance(model, ARModel) and model.backbone.attention == "causal"
