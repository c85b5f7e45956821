"""Our code against arrays computed with the official implementation (LTH14/mar; see data/README.md): the largest
difference of each quantity, its unit, and the largest allowed.

    python -m tests.parity.agreements        writes the table into docs/faithful.md

The tests assert what the table shows."""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.baseline import MAR
from mar_bench.config.spec import (
    Continuous,
    DiffusionHead,
    ImageFolderData,
    LDMKLTokenizer,
    MaskedBackbone,
    SamplingSpec,
)
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import BACKBONES, HEADS
from mar_bench.models.diffusion import DiffusionTables
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.models.orders import gather
from mar_bench.models.pretrained.convert import convert
from mar_bench.models.pretrained.names import our_name
from mar_bench.models.sampler import generate
from mar_bench.models.tokenizers.base import tokens_to_grid
from mar_bench.models.tokenizers.pretrained import KLAutoencoder16
from mar_bench.utils.files import atomic_write
from mar_bench.utils.noise import NoiseSource

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).with_name("data")
MODELS = ("mar_kl16", "mar_kl8_patch2")
SHOWN = {"mar_kl16": "MAR on KL-16", "mar_kl8_patch2": "MAR on KL-8, 2x2 grouped"}
SAMPLED = (
    "sample_cfg1_linear_t1_k8",
    "sample_cfg3_linear_t0.95_k8",
    "sample_cfg2_constant_t1_k8",
    "sample_cfg3_linear_t1_k64",
)
OF_STD, RELATIVE, ABSOLUTE = "of its std", "relative", "absolute"


@dataclass(frozen=True)
class Agreement:
    """The largest difference found in a quantity and the largest allowed."""

    quantity: str
    model: str
    found: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.found <= self.limit  # false for NaN too


# --- the small official models --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Official:
    """A small official model: its arrays, and our generator with its weights, loaded through convert.

    Official generation runs through an order from its end; ``order`` is ours, known tokens and targets ascending."""

    name: str
    config: dict
    arrays: dict[str, np.ndarray]
    official_names: list[str]
    manifest: dict
    model: ARGenerator
    order: torch.Tensor
    num_known: int

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


def official(name: str) -> Official:
    """Load one of MODELS; convert and ``load_state_dict`` are strict, so every tensor is accounted for."""
    config = json.loads((DATA / f"{name}.json").read_text())["config"]
    arrays = dict(np.load(DATA / f"{name}.npz"))
    weights = load_file(DATA / f"{name}.safetensors")
    length, dim = arrays["tokens"].shape[1:]
    space = Continuous(dim, (int(length**0.5),) * 2)
    backbone = MaskedBackbone(
        dim=config["encoder_embed_dim"],
        encoder_depth=config["encoder_depth"],
        decoder_depth=config["decoder_depth"],
        num_heads=config["encoder_num_heads"],
        num_class_tokens=config["buffer_size"],
    )
    head = DiffusionHead(
        depth=config["diffloss_d"], width=config["diffloss_w"], draws_per_token=config["diffusion_batch_mul"]
    )
    parts = BACKBONES["masked"](backbone, space, config["class_num"]), HEADS["diffusion"](head, space, backbone.dim)
    model = ARGenerator("random", *parts, space, label_dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        file, ours = Path(folder) / "checkpoint-last.pth", Path(folder) / "ours.safetensors"
        torch.save({"model": {}, "model_ema": weights, "args": argparse.Namespace(model="mar_large")}, file)
        manifest = convert("mar", file, ours)
        model.load_state_dict(load_file(ours), strict=True)
    order, num_known = torch.from_numpy(arrays["orders"]).flip(1), int((arrays["mask"][0] == 0).sum())
    order = torch.cat([order[:, :num_known].sort(1).values, order[:, num_known:].sort(1).values], dim=1)
    return Official(name, config, arrays, list(weights), manifest, model.eval(), order, num_known)


def of_std(quantity: str, model: str, found: torch.Tensor, expected: torch.Tensor, limit: float) -> Agreement:
    assert found.shape == expected.shape
    return Agreement(quantity, model, ((found - expected).abs().max() / expected.std()).item(), limit, OF_STD)


@torch.inference_mode()
def forward_passes(one: Official) -> Iterator[Agreement]:
    tokens, labels = one.tensor("tokens"), one.tensor("labels")
    known, targets = one.order[:, : one.num_known], one.order[:, one.num_known :]
    assert (gather(one.tensor("mask"), targets) == 1).all()
    encoded = one.model.backbone.encode(gather(tokens, known), labels, known)
    yield of_std("encoder output", one.name, encoded, one.tensor("encoder_out"), 1e-4)
    z = one.model.backbone(gather(tokens, one.order), labels, one.order, one.num_known)
    yield of_std("condition z", one.name, z, gather(one.tensor("z"), targets), 1e-4)
    net = one.model.head.net(*(one.tensor(name) for name in ("net_x", "net_t", "net_c")))
    yield of_std("denoising MLP", one.name, net, one.tensor("net_out"), 1e-4)


def training(one: Official) -> Iterator[Agreement]:
    """The loss and the gradient norm of every parameter; a norm below 1e-3 may be off by at most 1e-6."""
    (batch, length, dim), draws = one.tensor("tokens").shape, one.config["diffusion_batch_mul"]
    drawn = {
        "t": one.tensor("train_t").view(draws, batch, length).permute(1, 2, 0),
        "eps": one.tensor("train_noise").view(draws, batch, length, dim).permute(1, 2, 0, 3),
    }
    one.model.zero_grad()
    loss = one.model.loss_given(one.tensor("tokens"), one.tensor("labels"), one.order, one.num_known, drawn).mean()
    expected = one.arrays["loss"].item()
    yield Agreement("training loss", one.name, abs(loss.item() / expected - 1), 1e-5, RELATIVE)
    loss.backward()
    parameters, worst = dict(one.model.named_parameters()), 0.0
    for name, norm in zip(sorted(one.official_names), one.arrays["grad_norms"]):
        grad = parameters[our_name(name)].grad
        off = abs((0.0 if grad is None else grad.norm().item()) - max(norm, 0.0))
        near_zero = norm < 1e-3
        worst = max(worst, off / norm if not near_zero else 0.0 if off <= 1e-6 else math.inf)
    yield Agreement(f"gradient norms, {len(parameters)} parameters", one.name, worst, 1e-3, RELATIVE)


class OfficialNoise(NoiseSource):
    """The noise of the arrays: one RandomState per AR step for the whole batch, tokens of an image ascending."""

    def __init__(self, official_orders: torch.Tensor, factor: float = 1.0):
        super().__init__(0, range(len(official_orders)))
        self.order, self.known, self.factor = official_orders.flip(1), 0, factor

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        assert purpose == "order"
        return self.order.argsort(1) / shape[0]

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        rows, n, dim = shape
        batch = len(self.order)
        drawn = np.random.RandomState(1000 + step).standard_normal((rows, batch * n, dim)).astype(np.float32)
        ascending = torch.from_numpy(drawn).view(rows, batch, n, dim).permute(1, 2, 0, 3)
        rank = self.order[:, self.known : self.known + n].argsort(1).argsort(1)
        self.known += n
        return gather(ascending, rank).permute(0, 2, 1, 3) * self.factor


def tokens_of(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, L, C patch^2), channels slowest within a token: an independent patchify."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // patch, patch, width // patch, patch)
    return torch.einsum("nchpwq->nhwcpq", cells).reshape(batch, (height // patch) * (width // patch), -1)


SETTING = re.compile(r"sample_cfg(.+)_(.+)_t(.+)_k(\d+)")  # a name in SAMPLED


def settings(one: Official, setting: str) -> SamplingSpec:
    scale, schedule, temperature, steps = SETTING.fullmatch(setting).groups()
    return SamplingSpec(
        num_ar_steps=int(steps),
        num_diffusion_steps=int(one.config["num_sampling_steps"]),
        guidance_scale=float(scale),
        guidance_schedule=schedule,
        temperature=float(temperature),
    )


def sampled(one: Official, setting: str) -> Agreement:
    found = generate(one.model, one.tensor("labels"), settings(one, setting), OfficialNoise(one.tensor("orders")))
    expected = tokens_of(one.tensor(setting), one.config["patch_size"])
    scale, schedule, temperature, steps = SETTING.fullmatch(setting).groups()
    what = f"samples: guidance {scale} {schedule}, temperature {temperature}, {steps} AR steps"
    return of_std(what, one.name, found, expected, 2e-3)


# --- the baseline of the benchmarks, written from the paper --------------------------------------------


def baseline(one: Official) -> MAR:
    """The transcription of the published algorithm with the weights of an official model."""
    config, (length, dim) = one.config, one.arrays["tokens"].shape[1:]
    names = "encoder_embed_dim", "encoder_depth", "encoder_num_heads", "diffloss_d", "diffloss_w"
    model = MAR(length, dim, *(config[name] for name in names), config["class_num"], config["buffer_size"])
    model.load_state_dict(load_file(DATA / f"{one.name}.safetensors"), strict=True)
    return model.eval()


@functools.cache
def baseline_sampled(one: Official, setting: str, clamp: float | None = None) -> torch.Tensor:
    scale, schedule, temperature, steps = SETTING.fullmatch(setting).groups()

    def noise(step: int, count: int) -> torch.Tensor:
        shape = int(one.config["num_sampling_steps"]) + 1, count, one.arrays["tokens"].shape[2]
        return torch.from_numpy(np.random.RandomState(1000 + step).standard_normal(shape).astype(np.float32))

    steps = int(steps), int(one.config["num_sampling_steps"])
    guidance = float(scale), schedule, float(temperature)
    return baseline(one).sample(one.tensor("labels"), one.tensor("orders"), noise, *steps, *guidance, clamp)


def baseline_agreements(one: Official) -> Iterator[Agreement]:
    """The baseline against the arrays of the official code."""
    model, tokens, labels, mask = baseline(one), *(one.tensor(name) for name in ("tokens", "labels", "mask"))
    with torch.inference_mode():
        z = model.condition(tokens, mask, model.class_emb(labels))
        yield of_std("baseline's condition z", one.name, z, one.tensor("z"), 1e-4)
        loss = model.loss(tokens, labels, mask, one.tensor("train_t"), one.tensor("train_noise")).item()
    yield Agreement("baseline's loss", one.name, abs(loss / one.arrays["loss"].item() - 1), 1e-5, RELATIVE)
    for setting in SAMPLED:
        expected = tokens_of(one.tensor(setting), one.config["patch_size"])
        yield of_std("baseline's samples", one.name, baseline_sampled(one, setting), expected, 2e-3)


def tame(one: Official, noise_factor: float = 1.0, **changed: float) -> Agreement:
    """Samples of ours and of the baseline with x0 clamped in both, so that they are of unit size.

    ``noise_factor`` and ``changed`` settings are of ours alone: an error of 1 % in either must be seen."""
    setting, clamp = "sample_cfg3_linear_t0.95_k8", 4.0
    noise = OfficialNoise(one.tensor("orders"), noise_factor)
    found = generate(one.model, one.tensor("labels"), replace(settings(one, setting), clamp_x0=clamp, **changed), noise)
    expected = baseline_sampled(one, setting, clamp)
    assert 0.5 < expected.std() < 2
    return of_std("samples of unit size, against the baseline", one.name, found, expected, 1e-4)


# --- tables, tokenizer, sizes ---------------------------------------------------------------------------


def diffusion_tables() -> Iterator[Agreement]:
    arrays, full = np.load(DATA / "diffusion.npz"), DiffusionTables.make(1000)
    names = ("betas", "alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped")
    off = max(np.abs(getattr(full, name).numpy() - arrays[name]).max() for name in names)
    yield Agreement("cosine schedule, 1000 steps", "diffusion", float(off), 1e-9, ABSOLUTE)
    for num_steps in (5, 10, 25, 50, 100, 250):
        tables = DiffusionTables.make(1000, num_steps)
        assert [*tables.timesteps] == arrays[f"respaced_{num_steps}_timesteps"].tolist()
        off = max(
            np.abs(getattr(tables, name).numpy() - arrays[f"respaced_{num_steps}_{name}"]).max()
            for name in ("betas", "posterior_log_variance_clipped")
        )
        yield Agreement(f"respaced to {num_steps} steps", "diffusion", float(off), 1e-9, ABSOLUTE)


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """The weights that the arrays of KL-16 were computed with, a function of the name."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        draw *= 0.5 if shape[0] == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    else:
        draw = (1 if name.endswith("weight") else 0) + 0.1 * draw
    return torch.from_numpy(draw.astype(np.float32))


def kl16_names() -> dict[str, list[int]]:
    return json.loads((DATA / "kl16_vae_state_shapes.json").read_text())


def kl16_file(folder: Path) -> tuple[dict, Path]:
    """Convert a file in the layout of kl16.ckpt: the manifest and the converted file."""
    torch.save({"model": {name: filled(name, shape) for name, shape in kl16_names().items()}}, folder / "kl16.ckpt")
    return convert("kl16", folder / "kl16.ckpt", folder / "kl16.safetensors"), folder / "kl16.safetensors"


@torch.inference_mode()
def kl16(weights: Path) -> Iterator[Agreement]:
    arrays = {name: torch.from_numpy(array) for name, array in np.load(DATA / "kl16_vae.npz").items()}
    tokenizer = KLAutoencoder16(LDMKLTokenizer(weights=str(weights)), ImageFolderData(image_size=64))
    found = {k: tokens_to_grid(v / tokenizer.scale, (4, 4)) for k, v in tokenizer.stored(arrays["image"]).items()}
    mean, log_variance = arrays["moments"].chunk(2, dim=1)
    latents = arrays["decode_input"]
    decoded = tokenizer.decode(latents.flatten(2).transpose(1, 2) * tokenizer.scale)
    pairs = {
        "latent mean": (found["mean"], mean),
        "latent std": (found["std"], (0.5 * log_variance).exp()),
        "decoded image": (decoded, arrays["decoded"].clamp(-1, 1)),
        "decoded image, not clipped": (tokenizer.net.decode(latents).sample, arrays["decoded"]),
    }
    for what, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape
        yield Agreement(what, "KL-16", (ours - theirs).abs().max().item(), 1e-4, ABSOLUTE)


SIZES = {  # dim, depth of encoder and of decoder, attention heads, head depth, head width, parameters
    "base": (768, 12, 12, 6, 1024, 207_924_768),
    "large": (1024, 16, 16, 8, 1280, 478_326_304),
    "huge": (1280, 20, 16, 12, 1536, 942_403_104),
}
HEAD_SIZES = {256: "1.527", 512: "5.412", 1024: "20.26", 1536: "44.55"}  # width: million parameters, as published


def published(size: str) -> ARGenerator:
    """A published model on the meta device: names and shapes without memory."""
    dim, depth, heads, head_depth, width, _ = SIZES[size]
    space = Continuous(16, (16, 16))
    backbone = MaskedBackbone(dim=dim, encoder_depth=depth, decoder_depth=depth, num_heads=heads)
    head = DiffusionHead(depth=head_depth, width=width)
    with torch.device("meta"):
        parts = BACKBONES["masked"](backbone, space, 1000), HEADS["diffusion"](head, space, dim)
        return ARGenerator("random", *parts, space, label_dropout=0.1)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def denoising_mlp(width: int) -> nn.Module:
    with torch.device("meta"):
        return AdaLNMLP(input_dim=16, output_dim=32, condition_dim=1024, width=width, depth=3)


# --- the table ------------------------------------------------------------------------------------------


def measured() -> Iterator[Agreement]:
    """Every agreement."""
    for name in MODELS:
        one = official(name)
        yield from forward_passes(one)
        yield from training(one)
        yield from (sampled(one, setting) for setting in SAMPLED)
        yield from baseline_agreements(one)
        yield tame(one)
    yield from diffusion_tables()
    with tempfile.TemporaryDirectory() as folder:
        yield from kl16(kl16_file(Path(folder))[1])


def table() -> str:
    """A row per quantity with the worst of the models compared; sizes must be equal."""
    groups: dict[tuple, list[Agreement]] = {}
    for item in measured():
        quantity = re.sub(r"respaced to \d+ steps", "respaced to 5 ... 250 steps", item.quantity)
        quantity = re.sub(r", \d+ parameters", ", every parameter", quantity)
        groups.setdefault((quantity, item.unit, item.limit), []).append(item)
    lines = ["| quantity | compared on | largest difference | allowed |", "|:--|:--|--:|--:|"]
    for (quantity, unit, limit), items in groups.items():
        worst = max(items, key=lambda item: item.found)
        assert worst.holds, worst
        models = ", ".join(dict.fromkeys(SHOWN.get(item.model, item.model) for item in items))
        off = f"{worst.found:.0e}" if worst.found else "0"
        lines.append(f"| {quantity} | {models} | {off} {unit} | {limit:.0e} |")
    for size, (*_, expected) in SIZES.items():
        assert parameters(published(size)) == expected, size
        lines.append(f"| parameters, names and shapes | MAR-{size[0].upper()} | {expected:,}, one to one | equal |")
    found = {width: parameters(denoising_mlp(width)) for width in HEAD_SIZES}
    counts = ", ".join(f"{count:,}" for count in found.values())
    lines.append(f"| parameters of the head | widths {', '.join(map(str, found))} | {counts} | as published |")
    return "\n".join(lines)


BEGIN, END = "<!-- written by python -m tests.parity.agreements -->", "<!-- end of what it wrote -->"


def main() -> None:
    torch.set_num_threads(1)
    page = ROOT / "docs/faithful.md"
    before, _, rest = page.read_text().partition(BEGIN)
    atomic_write(page, f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
