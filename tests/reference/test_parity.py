"""Our core beside arrays that the official implementation computed (LTH14/mar; see the folder's README)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mar_bench.build import BACKBONES, HEADS
from mar_bench.diffusion import DiffusionTables
from mar_bench.heads.diffusion import DenoisingMLP
from mar_bench.model import ARGenerator
from mar_bench.noise import NoiseSource
from mar_bench.official import our_name
from mar_bench.orders import gather
from mar_bench.sampler import generate
from mar_bench.spec import Continuous, DiffusionHead, MaskedBackbone, SamplingSpec

FOLDER = Path(__file__).parents[3] / "shared" / "parity"
ABSENT = "shared/parity, the official arrays, is not beside this repository"
needs_arrays = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)
SAMPLED = {
    "sample_cfg1_linear_t1_k8",
    "sample_cfg3_linear_t0.95_k8",
    "sample_cfg2_constant_t1_k8",
    "sample_cfg3_linear_t1_k64",
}


@dataclass(frozen=True)
class Official:
    """A small official model: its arrays, and our generator with its weights.

    The official order is generated from its end; ``order`` is ours, known tokens and targets ascending."""

    config: dict
    arrays: dict[str, np.ndarray]
    weights: dict[str, torch.Tensor]
    model: ARGenerator
    order: torch.Tensor
    num_known: int

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture(scope="module", params=["mar_kl16", "mar_kl8_patch2"])
def official(request) -> Official:
    if not FOLDER.is_dir():
        pytest.skip(ABSENT)
    config = json.loads((FOLDER / f"{request.param}.json").read_text())["config"]
    arrays = dict(np.load(FOLDER / f"{request.param}.npz"))
    weights = load_file(FOLDER / f"{request.param}.safetensors")
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
    model = ARGenerator(
        "random",
        BACKBONES["masked"](backbone, space, config["class_num"]),
        HEADS["diffusion"](head, space, backbone.dim),
        space,
        label_dropout=0.1,
    )
    model.load_state_dict({our_name(name): tensor for name, tensor in weights.items()}, strict=True)
    order, num_known = torch.from_numpy(arrays["orders"]).flip(1), int((arrays["mask"][0] == 0).sum())
    order = torch.cat([order[:, :num_known].sort(1).values, order[:, num_known:].sort(1).values], dim=1)
    return Official(config, arrays, weights, model.eval(), order, num_known)


def assert_within_share_of_std(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.std()


@torch.inference_mode()
def test_encoder_output_and_z(official):
    tokens, labels = official.tensor("tokens"), official.tensor("labels")
    known, targets = official.order[:, : official.num_known], official.order[:, official.num_known :]
    assert (gather(official.tensor("mask"), targets) == 1).all()
    encoded = official.model.backbone.encode(gather(tokens, known), labels, known)
    assert_within_share_of_std(encoded, official.tensor("encoder_out"), 1e-4)
    z = official.model.backbone(gather(tokens, official.order), labels, official.order, official.num_known)
    assert_within_share_of_std(z, gather(official.tensor("z"), targets), 1e-4)


@torch.inference_mode()
def test_denoising_mlp(official):
    found = official.model.head.net(*(official.tensor(name) for name in ("net_x", "net_t", "net_c")))
    assert_within_share_of_std(found, official.tensor("net_out"), 1e-4)


def test_training_loss_and_every_gradient_norm(official):
    (batch, length, dim), draws = official.tensor("tokens").shape, official.config["diffusion_batch_mul"]
    drawn = {
        "t": official.tensor("train_t").view(draws, batch, length).permute(1, 2, 0),
        "eps": official.tensor("train_noise").view(draws, batch, length, dim).permute(1, 2, 0, 3),
    }
    official.model.zero_grad()
    loss = official.model.loss_given(
        official.tensor("tokens"), official.tensor("labels"), official.order, official.num_known, drawn
    ).mean()
    assert loss.item() == pytest.approx(official.arrays["loss"].item(), rel=1e-5)
    loss.backward()
    parameters = dict(official.model.named_parameters())
    for name, norm in zip(sorted(official.weights), official.arrays["grad_norms"]):
        grad = parameters[our_name(name)].grad
        found = 0.0 if grad is None else grad.norm().item()
        assert found == pytest.approx(max(norm, 0.0), rel=1e-3, abs=1e-6), name


class OfficialNoise(NoiseSource):
    """The arrays' noise: one RandomState an AR step, over the whole batch, each image's tokens ascending."""

    def __init__(self, official_orders: torch.Tensor):
        super().__init__(0, range(len(official_orders)))
        self.order, self.known = official_orders.flip(1), 0

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
        return gather(ascending, rank).permute(0, 2, 1, 3)


def tokens_of(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, L, C patch^2), a token's channels slowest."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // patch, patch, width // patch, patch)
    return torch.einsum("nchpwq->nhwcpq", cells).reshape(batch, (height // patch) * (width // patch), -1)


def test_latents_become_tokens(official):
    found = tokens_of(official.tensor("latents"), official.config["patch_size"])
    assert torch.equal(found, official.tensor("tokens"))


@pytest.mark.parametrize("setting", sorted(SAMPLED))
def test_sampled_latents(official, setting):
    scale, schedule, temperature, steps = re.fullmatch(r"sample_cfg(.+)_(.+)_t(.+)_k(\d+)", setting).groups()
    sampling = SamplingSpec(
        num_ar_steps=int(steps),
        num_diffusion_steps=int(official.config["num_sampling_steps"]),
        guidance_scale=float(scale),
        guidance_schedule=schedule,
        temperature=float(temperature),
    )
    noise = OfficialNoise(official.tensor("orders"))
    found = generate(official.model, official.tensor("labels"), sampling, noise)
    expected = tokens_of(official.tensor(setting), official.config["patch_size"])
    assert_within_share_of_std(found, expected, 2e-3)


def test_every_sampled_setting_is_compared(official):
    assert {name for name in official.arrays if name.startswith("sample_")} == SAMPLED


@needs_arrays
def test_diffusion_tables():
    arrays, tables = np.load(FOLDER / "diffusion.npz"), DiffusionTables.make(1000)
    for name in ("betas", "alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped"):
        np.testing.assert_allclose(getattr(tables, name).numpy(), arrays[name], rtol=0, atol=1e-9)
    for num_steps in (5, 10, 25, 50, 100, 250):
        tables = DiffusionTables.make(1000, num_steps)
        assert tables.timesteps.tolist() == arrays[f"respaced_{num_steps}_timesteps"].tolist()
        for name in ("betas", "posterior_log_variance_clipped"):
            found, expected = getattr(tables, name).numpy(), arrays[f"respaced_{num_steps}_{name}"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


# --- the published sizes ---------------------------------------------------------------------------------

SIZES = {  # dim, depth of encoder and of decoder, attention heads, head depth, head width, parameters
    "base": (768, 12, 12, 6, 1024, 207_924_768),
    "large": (1024, 16, 16, 8, 1280, 478_326_304),
    "huge": (1280, 20, 16, 12, 1536, 942_403_104),
}
HEAD_SIZES = [(256, "1.527"), (512, "5.412"), (1024, "20.26"), (1536, "44.55")]  # width, million parameters


def published(size: str) -> ARGenerator:
    """A published model on the meta device: names and shapes without memory."""
    dim, depth, heads, head_depth, width, _ = SIZES[size]
    space = Continuous(16, (16, 16))
    backbone = MaskedBackbone(dim=dim, encoder_depth=depth, decoder_depth=depth, num_heads=heads)
    head = DiffusionHead(depth=head_depth, width=width)
    with torch.device("meta"):
        parts = BACKBONES["masked"](backbone, space, 1000), HEADS["diffusion"](head, space, dim)
        return ARGenerator("random", *parts, space, label_dropout=0.1)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    assert sum(p.numel() for p in published(size).parameters()) == SIZES[size][-1]


@needs_arrays
@pytest.mark.parametrize("size", SIZES)
def test_checkpoints_map_one_to_one(size):
    shapes = json.loads((FOLDER / f"mar_{size}_state_shapes.json").read_text())
    ours = {name: list(tensor.shape) for name, tensor in published(size).state_dict().items()}
    assert len({our_name(name) for name in shapes}) == len(shapes)
    assert {our_name(name): shape for name, shape in shapes.items()} == ours


@pytest.mark.parametrize(("width", "millions"), HEAD_SIZES)
def test_denoising_mlp_sizes(width, millions):
    with torch.device("meta"):
        net = DenoisingMLP(token_dim=16, condition_dim=1024, width=width, depth=3)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert f"{count:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize(
    "name",
    [
        "",
        "class_emb",
        "encoder_blocks.0.attn.weight",
        "diffloss.net.time_embed.mlp.1.bias",
        "model.mask_token",
        "mask_token.weight",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(KeyError):
        our_name(name)
