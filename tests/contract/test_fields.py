"""No dead flags: every field of a spec changes the output of the stage that it belongs to.

The fields are found by walking RunSpec. A new one needs a line in ALTERNATIVES: a value other than the small
one, under which something must come out differently. Fields marked ``unhashed`` must not change an id."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mar_bench.config.ids import generation_run, likelihood_run, speed_run
from mar_bench.config.spec import (
    ARModel,
    CausalBackbone,
    ClassifierExtractor,
    ComputeSpec,
    ConsistencyTokenizer,
    Continuous,
    CrossEntropyHead,
    DiffusionHead,
    DigitsData,
    DiTModel,
    EfficientNetExtractor,
    EnergyHead,
    FileReference,
    FlowHead,
    GaussianMixtureHead,
    IdxData,
    ImageFolderData,
    InceptionExtractor,
    KLTokenizer,
    LatentsSpec,
    LDMKLTokenizer,
    LDMVQTokenizer,
    LikelihoodSpec,
    MaskedBackbone,
    MetricsSpec,
    MnistData,
    PixelTokenizer,
    PluginExtractor,
    RunSpec,
    SamplingSpec,
    SDKLTokenizer,
    SpeedSpec,
    TrainingReference,
    TrainSpec,
    TruncatedNormalMasking,
    UniformMasking,
    VQTokenizer,
    drawing_part,
    latent_space,
)
from mar_bench.config.stages import TASKS
from mar_bench.data import datasets
from mar_bench.data.datasets import load_data, views
from mar_bench.models.build import build_generator, build_tokenizer
from mar_bench.models.tokenizers import pretrained as published
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline import train
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.speed import measure_speed
from mar_bench.pipeline.store import Places, mark_done
from mar_bench.utils.errors import UserError
from tests.data.test_idx import written
from tests.tiny import shrunk

_AUTOENCODER = {"stride": 8, "width": 24, "steps": 4, "batch_size": 5, "lr": 1e-3, "seed": 1}
_TRANSFORMER = {
    "dim": 48, "num_heads": 2, "mlp_ratio": 2.0, "num_class_tokens": 3, "activation": "relu", "dropout": 0.5,
    "init_std": 0.3,
}  # fmt: skip
ALTERNATIVES = {
    ImageFolderData: {
        "name": "others", "image_size": 32, "channels": 1, "num_classes": 3, "flip": False, "shift": 1,
    },
    IdxData: {
        "name": "mnist", "image_size": 64, "channels": 3, "num_classes": 11, "heldout": 2, "flip": True, "shift": 1
    },
    MnistData: {
        "image_size": 64, "channels": 3, "num_classes": 11, "heldout": 20, "flip": True, "shift": 0
    },
    DigitsData: {
        "image_size": 32, "channels": 3, "num_classes": 11, "heldout": 20, "flip": True, "shift": 1
    },
    KLTokenizer: {**_AUTOENCODER, "latent_dim": 4, "kl_weight": 0.5, "group": 2},
    VQTokenizer: {
        **_AUTOENCODER, "vocab_size": 13, "code_dim": 4, "commitment_weight": 2.0, "codebook_decay": 0.5,
        "output": "latents", "group": 2,
    },
    LDMKLTokenizer: {"name": "kl-f8", "stride": 8, "latent_dim": 4, "scale": 0.18215, "group": 2},
    LDMVQTokenizer: {
        "name": "vq-f8", "stride": 8, "vocab_size": 256, "code_dim": 4, "output": "codes", "scale": 2.0, "group": 2
    },
    SDKLTokenizer: {"name": "sd-vae", "scale": 0.2, "group": 1},
    ConsistencyTokenizer: {"name": "other", "scale": 0.2, "decode_seed": 1, "group": 1},
    PixelTokenizer: {"group": 2},
    LatentsSpec: {"dtype": "fp16"},
    ARModel: {"order": "raster", "order_seed": 1},
    DiTModel: {
        "patch_size": 1, "dim": 48, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "num_train_timesteps": 60,
        "beta_schedule": "cosine",
    },
    MaskedBackbone: {**_TRANSFORMER, "encoder_depth": 2, "decoder_depth": 2},
    CausalBackbone: {**_TRANSFORMER, "depth": 1},
    TruncatedNormalMasking: {"low": 0.1, "high": 0.75, "mean": 0.0, "std": 0.05},
    UniformMasking: {"low": 0.8, "high": 0.2},
    DiffusionHead: {"depth": 3, "width": 24, "num_train_timesteps": 60, "draws_per_token": 3},
    GaussianMixtureHead: {"num_components": 2},
    FlowHead: {"depth": 3, "width": 24, "draws_per_token": 3},
    EnergyHead: {"depth": 3, "width": 24, "noise_dim": 5, "samples_per_token": 3},
    TrainSpec: {
        "steps": 4, "batch_size": 5, "lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 2,
        "weight_decay": 0.5, "betas": (0.5, 0.9), "grad_clip": 1e-3, "ema_decay": 0.1, "label_dropout": 0.9,
        "precision": "bf16", "seed": 1, "ema_warmup": True, "snapshots": (2,), "published": "mar_large",
        "annealing": (0.3, 0.6), "images": 20,
    },
    SamplingSpec: {
        "num_images": 7, "batch_size": 3, "weights": "raw", "order": "raster", "num_ar_steps": 4,
        "num_diffusion_steps": 5, "guidance_scale": 3.0, "guidance_schedule": "constant", "precision": "bf16",
        "temperature": 0.5,
        "clamp_x0": 0.1, "seed": 1, "sampler": "ddim", "guided_channels": 2, "choice_temperature": 100.0,
        "snapshot": 1, "ar_schedule": "linear", "last_diffusion_steps": 2, "guidance_interval": (0.2, 0.8),
    },
    MetricsSpec: {
        "reference_images": 40, "is_splits": 3, "kid_subsets": 7, "kid_subset_size": 3, "neighbours": 2,
        "jackknife_groups": 3,
    },
    FileReference: {"name": "other"},
    EfficientNetExtractor: {"name": "other"},
    PluginExtractor: {"name": "other"},
    ClassifierExtractor: {
        "name": "other", "feature_dim": 5, "width": 24, "steps": 4, "batch_size": 5, "lr": 1e-3, "seed": 1
    },
    InceptionExtractor: {"name": "other"},
    SpeedSpec: {"batch_size": 5, "repeats": 2},
    LikelihoodSpec: {"images": 9, "orders": 3, "positions": 2, "timesteps": 4, "skipped_timesteps": 1},
}  # fmt: skip

SMALL_RUN = RunSpec(
    data=DigitsData(heldout=1700),
    tokenizer=shrunk(KLTokenizer),
    model=ARModel(backbone=shrunk(MaskedBackbone), head=shrunk(DiffusionHead)),
    train=TrainSpec(steps=3, batch_size=4, lr=1e-2, warmup_steps=1, ema_decay=0.5, snapshots=(1,)),
    sampling=SamplingSpec(num_images=6, batch_size=4, num_ar_steps=3, num_diffusion_steps=4, guidance_scale=2.0),
    metrics=MetricsSpec(
        extractor=shrunk(ClassifierExtractor),
        reference=TrainingReference(),
        is_splits=2,
        kid_subsets=5,
        kid_subset_size=4,
        jackknife_groups=4,
    ),
    speed=SpeedSpec(batch_size=3, repeats=1),
    likelihood=LikelihoodSpec(images=8, orders=1, timesteps=5),
    compute=ComputeSpec(device="cpu"),
)
PINNED_BASES = {
    ImageFolderData: ImageFolderData(image_size=16, num_classes=2),
    IdxData: IdxData(num_classes=2),
    MnistData: MnistData(heldout=10),
    LDMKLTokenizer: LDMKLTokenizer(),
    LDMVQTokenizer: LDMVQTokenizer(output="latents", scale=1.0),
    SDKLTokenizer: SDKLTokenizer(),
    ConsistencyTokenizer: ConsistencyTokenizer(),
    PixelTokenizer: PixelTokenizer(),
}
NAMES = {"name", "published"}  # they stand for content in ids


# --- walking the spec ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A field of the class that may stand at ``path`` of a RunSpec."""

    path: tuple[str, ...]
    cls: type
    name: str
    unhashed: bool
    view: bool = False

    def __str__(self) -> str:
        return f"{self.cls.__name__}.{self.name}"


def leaves(cls: type, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        blocks = [t for t in typing.get_args(hints[f.name]) or (hints[f.name],) if is_dataclass(t)]
        for block in blocks:
            yield from leaves(block, (*path, f.name))
        if not blocks and f.name != "kind":
            yield Leaf(path, cls, f.name, f.metadata.get("unhashed", False), f.metadata.get("view", False))


LEAVES = list(leaves(RunSpec))


def block_at(spec, path: tuple[str, ...]):
    for name in path:
        spec = getattr(spec, name)
    return spec


def with_block(spec, path: tuple[str, ...], block):
    if not path:
        return block
    return replace(spec, **{path[0]: with_block(getattr(spec, path[0]), path[1:], block)})


def base_of(leaf: Leaf) -> RunSpec:
    """The small run with a block of the leaf's class in its place, and the tokens that the block needs."""
    spec = SMALL_RUN
    if type(block_at(spec, leaf.path)) is not leaf.cls:
        spec = with_block(spec, leaf.path, PINNED_BASES.get(leaf.cls) or shrunk(leaf.cls))
    if (leaf.cls, leaf.name) == (VQTokenizer, "group"):
        spec = with_block(spec, leaf.path, replace(spec.tokenizer, output="latents"))  # codes are not grouped
    if leaf.name == "guided_channels":
        spec = replace(spec, model=shrunk(DiTModel))
    if leaf.name == "order_seed":
        spec = replace(spec, model=replace(spec.model, order="permuted"))
    if leaf.name == "choice_temperature":
        ordered = replace(spec.sampling, order="confidence", choice_temperature=0.0)
        spec = replace(spec, tokenizer=shrunk(VQTokenizer), sampling=ordered)
        spec = replace(spec, model=replace(spec.model, head=CrossEntropyHead()))
    space = drawing_part(spec.model).space
    if not isinstance(spec.space, space) and leaf.path[0] == "model":
        fitting = KLTokenizer if space is Continuous else VQTokenizer
        spec = replace(spec, tokenizer=shrunk(fitting))
    return spec


def changed(leaf: Leaf, spec: RunSpec, value) -> RunSpec:
    return with_block(spec, leaf.path, replace(block_at(spec, leaf.path), **{leaf.name: value}))


# --- what came out ---------------------------------------------------------------------------------------


def content(path: Path):
    """Weights, tokens, statistics or metrics; logs and summaries are left out, as they repeat the spec."""
    if path.suffix in (".safetensors", ".npz"):
        arrays = load_file(path) if path.suffix == ".safetensors" else np.load(path)
        return {name: (tuple(array.shape), np.asarray(array).tobytes()) for name, array in arrays.items()}
    if path.name != "record.json":
        return None
    record = json.loads(path.read_text())
    return record["metrics"], record["uncertainty"]


class Workshop:
    """Stages executed where their ids say, each once: what a field does not determine is made but once."""

    NEEDS = {
        "tokenizer": (), "latents": ("tokenizer",), "train": ("latents",), "sample": ("train",),
        "extractor": (), "generation": ("tokenizer", "extractor", "sample"), "likelihood": ("train",),
    }  # fmt: skip

    def __init__(self, folder: Path):
        self.places = Places(folder / "runs", folder / "records")
        self.places.check_writable()
        self.done: dict[Path, dict] = {}

    def output(self, stage: str, spec: RunSpec) -> dict:
        """Names and contents of the files that a stage writes."""
        for before in self.NEEDS[stage]:
            self.output(before, spec)
        run = (likelihood_run if stage == "likelihood" else generation_run)("row", spec)
        folder = self.places.folder(stage, run.ids["eval_id" if stage in TASKS else f"{stage}_id"])
        if folder not in self.done:
            folder.mkdir(parents=True)
            STAGES[stage](run, self.places, folder, lambda *_: None)
            # not checkpoints: they hold the seconds so far
            written = (path for path in sorted(folder.iterdir()) if path.suffix != ".pt")
            self.done[folder] = {path.name: content(path) for path in written}
            mark_done(folder, 1.0)
        return self.done[folder]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Iterator[Workshop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOSS_IMAGES", 20)
        yield Workshop(tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            pixels = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)
            Image.fromarray(pixels).save(root / split / name / "one.png")
    return written(root)  # with files in MNIST's format beside the folders


@pytest.fixture(scope="module", autouse=True)
def mnist_is_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_read_csv", functools.cache(datasets._read_csv))
        yield


def data_output(spec: RunSpec, root: Path) -> tuple:
    """The images, their views and the shapes of what is built for them."""
    data = replace(spec.data, root=str(root)) if hasattr(spec.data, "root") else spec.data
    spec = replace(spec, data=data)
    with torch.device("meta"):
        parts = build_tokenizer(spec), build_generator(spec)
    shapes = [{k: v.shape for k, v in part.state_dict().items()} for part in parts]
    try:
        loaded = load_data(data)
        images = len(loaded.train), len(loaded.heldout), loaded.train.get(range(2)).tolist()
    except UserError as error:
        images = str(error)
    return spec.space, shapes, views(data), images


class StandIn(nn.Module):
    """In place of diffusers' autoencoders: keeps its configuration, encodes to ones of the size that is asked for,
    decodes to its input and the seeds of its generators."""

    def __init__(self, **config):
        super().__init__()
        self.config = {"latent_channels": 4, **config}
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        codes = torch.zeros(config.get("num_vq_embeddings", 1), config.get("vq_embed_dim", 1))
        self.quantize = lambda latents: (latents, None, (None, None, torch.zeros(latents[0, 0].numel())))
        self.quantize.embedding = nn.Embedding.from_pretrained(codes)

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        ones = torch.ones(1, self.config["latent_channels"], *self.grid)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=ones, std=ones), latents=ones)

    def decode(self, latents: torch.Tensor, generator=(), force_not_quantize: bool = False) -> SimpleNamespace:
        seeds = torch.tensor([g.initial_seed() % 1000 for g in generator]) / 1000
        return SimpleNamespace(sample=torch.cat([latents.flatten(), seeds]))


def published_tokenizer_output(spec: RunSpec) -> tuple:
    """Of an image of 32 pixels."""
    kinds = ("AutoencoderKL", "VQModel", "ConsistencyDecoderVAE")
    spec = replace(spec, data=replace(spec.data, image_size=32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_diffusers", lambda: SimpleNamespace(**dict.fromkeys(kinds, StandIn)))
        tokenizer = build_tokenizer(spec)
    net = getattr(tokenizer, "inner", tokenizer).net
    net.grid = latent_space(spec.tokenizer, spec.data).grid
    stored = tokenizer.stored(torch.zeros(1, 3, 32, 32))
    tokens = Tokenizer.encode(tokenizer, torch.zeros(1, 3, 32, 32))
    decoded = tokenizer.decode(tokens)
    return spec.space, net.config, {k: v.tolist() for k, v in stored.items()}, decoded.tolist()


def speed_output(spec: RunSpec) -> list[int]:
    """The batches that are decoded while the clock runs."""
    batches: list[int] = []
    tokenizer = SimpleNamespace(decode=lambda tokens, noise: batches.append(len(tokens)) or tokens)
    model = build_generator(spec).eval()
    measure_speed(spec, model, tokenizer, torch.device("cpu"), lambda *_: None)
    return batches


def output(leaf: Leaf, spec: RunSpec, workshop: Workshop, image_folder: Path):
    """What shows the effect of a field."""
    block, part = leaf.path[0], block_at(spec, leaf.path)
    if leaf.name in NAMES:
        return generation_run("row", spec).ids
    if block == "data":
        return data_output(spec, image_folder)
    if block == "latents" or (leaf.view and (part.trained or part.kind == "pixel")):
        return workshop.output("latents", spec)
    if block == "tokenizer" and not part.trained:
        return published_tokenizer_output(spec)
    if block == "speed":
        return speed_output(spec)
    stages = {"tokenizer": "tokenizer", "model": "train", "train": "train", "sampling": "sample"}
    stages["likelihood"] = "likelihood"
    if block == "metrics":
        return workshop.output("generation" if len(leaf.path) == 1 else "extractor", spec)
    return workshop.output(stages[block], spec)


# --- tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if not leaf.unhashed], ids=str)
def test_a_field_changes_what_comes_out(leaf, workshop, image_folder):
    if leaf.name not in ALTERNATIVES.get(leaf.cls, {}):
        pytest.fail(
            f"{leaf} has no alternative value: add one to ALTERNATIVES in {Path(__file__).name} under which "
            "something comes out differently, or declare the field unhashed(...) if nothing may"
        )
    base = base_of(leaf)
    other = changed(leaf, base, ALTERNATIVES[leaf.cls][leaf.name])
    assert other != base, f"the alternative value of {leaf} is the value it has"
    before, after = (output(leaf, spec, workshop, image_folder) for spec in (base, other))
    assert before != after, f"{leaf} is a dead flag"


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_a_field_is_in_an_id_unless_it_is_unhashed(leaf):
    base = base_of(leaf)
    now = getattr(block_at(base, leaf.path), leaf.name)
    value = ALTERNATIVES.get(leaf.cls, {}).get(leaf.name, "other" if isinstance(now, str | None) else 7)
    other = changed(leaf, base, value)
    if leaf.unhashed:
        assert generation_run("row", base).ids == generation_run("row", other).ids
    else:
        before, after = (
            (generation_run("row", s).ids, speed_run("row", s, "cpu").id, likelihood_run("row", s).id)
            for s in (base, other)
        )
        assert before != after


def test_a_stage_repeats_itself(workshop, tmp_path):
    """Otherwise any field would seem to change what comes out."""
    again = Workshop(tmp_path)
    for stage in ("tokenizer", "train", "sample", "generation"):
        assert workshop.output(stage, SMALL_RUN) == again.output(stage, SMALL_RUN)


def test_every_alternative_belongs_to_a_field():
    assert {f"{cls.__name__}.{name}" for cls, values in ALTERNATIVES.items() for name in values} <= {
        str(leaf) for leaf in LEAVES
    }
