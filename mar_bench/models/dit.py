"""The DiT baseline: a diffusion transformer that denoises all latents of an image at once, and its sampling.

Peebles and Xie, Scalable Diffusion Models with Transformers (2212.09748), cited below as DiT; choices that the paper
leaves open follow its published code. Tokens are single latents here; the network joins patch_size x patch_size."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import Continuous, DiTModel, SamplingSpec, num_tokens
from mar_bench.models.ar import Generator
from mar_bench.models.backbones.layers import Attention, mlp
from mar_bench.models.diffusion import DETERMINISTIC, sample, tables_on, training_loss
from mar_bench.models.heads.base import guided
from mar_bench.models.heads.layers import FREQUENCIES, angles, initialise, modulated, timestep_embedding
from mar_bench.models.sampler import Clock
from mar_bench.utils.ahead import Ahead, placed
from mar_bench.utils.noise import NoiseSource


def grid_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed sinusoidal embedding (rows x columns, dim) of a grid: columns in the first half, rows in the second."""
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    waves = (angles(axis, dim // 4) for axis in (column, row))
    return torch.cat([part for wave in waves for part in (wave.sin(), wave.cos())], dim=1).float()


class Block(nn.Module):
    """Transformer block with AdaLN-Zero (DiT, section 3.2): shifts, scales and gates come from the condition."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = mlp(dim, int(dim * mlp_ratio), nn.GELU(approximate="tanh"))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, n, E), activated condition c (B, E) -> (B, n, E)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulated(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulated(self.norm2(x), shift2, scale2))


class DiT(Generator):
    """Denoises all tokens of an image together; ``generate_images`` samples it."""

    space: Continuous

    def __init__(self, spec: DiTModel, space: Continuous, num_classes: int, label_dropout: float):
        super().__init__()
        self.spec, self.space, self.length = spec, space, num_tokens(space)
        self.num_classes, self.label_dropout = num_classes, label_dropout
        dim, patch = spec.dim, spec.patch_size
        rows, columns = (side // patch for side in space.grid)
        self.input = nn.Linear(patch**2 * space.dim, dim)
        # frozen, but a parameter as in the published code, whose parameter counts include it
        self.positions = nn.Parameter(grid_positions(rows, columns, dim), requires_grad=False)
        self.time_mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_embedding = nn.Embedding(num_classes + 1, dim)  # the last row stands for "no class"
        self.blocks = nn.ModuleList(Block(dim, spec.num_heads, spec.mlp_ratio) for _ in range(spec.depth))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, patch**2 * 2 * space.dim)
        initialise(self, zero_start=True)

    def patches(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, n, p p D): n patches of p x p tokens, both row by row."""
        p, (rows, columns) = self.spec.patch_size, self.space.grid
        split = tokens.unflatten(1, (rows // p, p, columns // p, p))  # (B, h / p, p, w / p, p, D)
        return split.transpose(2, 3).flatten(3).flatten(1, 2)

    def unpatched(self, x: Tensor) -> Tensor:
        """(B, n, p p C) -> (B, L, C): the inverse of ``patches``."""
        p, (rows, columns) = self.spec.patch_size, self.space.grid
        split = x.unflatten(2, (p, p, -1)).unflatten(1, (rows // p, columns // p))  # (B, h / p, w / p, p, p, C)
        return split.transpose(2, 3).flatten(1, 4)

    def predict(self, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """Noisy tokens (B, L, D), timesteps (B,) or (1,), labels (B,), -1 for "no class" -> (B, L, 2 D): noise and raw
        variance."""
        time = self.time_mlp(timestep_embedding(timestep))
        c = F.silu(time + self.label_embedding(torch.where(labels < 0, self.num_classes, labels)))
        x = self.input(self.patches(x)) + self.positions
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        return self.unpatched(self.output(modulated(self.final_norm(x), shift, scale)))

    def draw(self, noise: NoiseSource, step: int) -> dict[str, Tensor]:
        """Label dropout, one timestep per image, and the diffusion noise."""
        return {
            "drop": noise.uniform("label", step, ()) < self.label_dropout,
            "t": noise.integers("timestep", step, self.spec.num_train_timesteps, ()),
            "eps": noise.normal("diffusion", step, (self.length, self.space.dim)),
        }

    def loss_given(self, tokens: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The hybrid loss (B, L) with every random choice given: t (B,), eps (B, L, D)."""
        loss = training_loss(
            tables_on(t.device, self.spec.num_train_timesteps, schedule=self.spec.beta_schedule),
            lambda xt, _: self.predict(xt.view_as(tokens), t, labels).float().flatten(0, 1),
            tokens.flatten(0, 1),
            t.repeat_interleave(self.length),
            eps.flatten(0, 1),
        )
        return loss.view(tokens.shape[:2])


@torch.inference_mode()
def generate_images(
    model: DiT, labels: Tensor, sampling: SamplingSpec, noise: NoiseSource, clock: Clock = contextlib.nullcontext
) -> Tensor:
    """Draw tokens (B, L, D) for labels (B,), on the labels' device, in ``num_diffusion_steps`` denoising steps.

    ``ddpm`` adds noise in each step, multiplied by ``temperature`` (1 in DiT's paper); other samplers add none. Under
    guidance, whose scale is the same in every step, the batch is doubled and the second half has no class (label -1).
    Channels of a token beyond ``guided_channels`` keep the conditional prediction: the published code guides three of
    four (DiT, appendix A). ``clock`` times the network as "backbone", and "noise"."""
    shape, device = (labels.shape[0], model.length, model.space.dim), labels.device
    scale, channels = sampling.guidance_scale, sampling.guided_channels or model.space.dim
    all_labels = labels if scale == 1 else torch.cat([labels, torch.full_like(labels, -1)])

    def denoise(xt: Tensor, timestep: float) -> Tensor:
        x = xt.view(shape)
        with clock("backbone"):
            x = x if scale == 1 else x.repeat(2, 1, 1)
            predicted = model.predict(x, torch.full((1,), timestep, device=device), all_labels).float()
        if scale != 1:
            conditional, unconditional = predicted.chunk(2)
            predicted = guided(conditional, unconditional, scale, channels)
        return predicted.flatten(0, 1)

    num_steps, clamp = sampling.num_diffusion_steps, sampling.clamp_x0
    assert num_steps is not None

    ready = Ahead(lambda step: noise.normal("sample", step, shape[1:]), num_steps + 1, device)

    def row(step: int) -> Tensor:
        with clock("noise"):
            return placed(ready(step), device).flatten(0, 1)

    rows = map(row, range(num_steps + 1))  # all rows of a batch of large images together would take gigabytes
    tables = tables_on(device, model.spec.num_train_timesteps, num_steps, model.spec.beta_schedule)
    if sampling.sampler in DETERMINISTIC:
        return DETERMINISTIC[sampling.sampler](tables, denoise, next(rows), clamp).view(shape)
    return sample(tables, denoise, rows, sampling.temperature, clamp).view(shape)
