"""The whole-image rival: a diffusion transformer over all latents at once, and how it is sampled.

Peebles and Xie, Scalable Diffusion Models with Transformers (2212.09748), cited below as DiT; what its paper leaves
open follows its published code. Tokens are single latents here, and the network joins ``patch_size`` squared of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from mar_bench.config.spec import Continuous, DiTModel, SamplingSpec, num_tokens
from mar_bench.models.diffusion import DiffusionTables, sample, sample_ddim, training_loss
from mar_bench.utils.noise import NoiseSource

SINUSOIDS = 256  # of a timestep, half of them cosines


def angles(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Positions (N,) -> (N, count) at frequencies that fall geometrically from 1 towards 1/10000."""
    steps = torch.arange(count, device=positions.device, dtype=positions.dtype)
    return positions[:, None] * torch.exp(-math.log(10_000) / count * steps)


def grid_positions(rows: int, columns: int, dim: int) -> torch.Tensor:
    """Fixed embedding (rows x columns, dim) of a grid: the first half tells the column, the second the row."""
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    waves = (angles(axis, dim // 4) for axis in (column, row))
    return torch.cat([part for wave in waves for part in (wave.sin(), wave.cos())], dim=1).float()


class Attention(nn.Module):
    """Multi-head self-attention in which every patch sees every other."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, n, 3, H, E / H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, n, E / H)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (B, n, E); shift and scale (B, 1, E)."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Transformer block under AdaLN-Zero (DiT, section 3.2): shifts, scales and gates come from the condition."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=lambda: nn.GELU(approximate="tanh"))
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """x (B, n, E), activated condition c (B, E) -> (B, n, E)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulated(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulated(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """A generator that denoises all tokens of an image together: ``loss`` here, ``generate`` below."""

    def __init__(self, spec: DiTModel, space: Continuous, num_classes: int, label_dropout: float):
        super().__init__()
        self.spec, self.space, self.length, self.label_dropout = spec, space, num_tokens(space), label_dropout
        self.num_classes = num_classes
        dim, patch = spec.dim, spec.patch_size
        rows, columns = (side // patch for side in space.grid)
        self.input = nn.Linear(patch**2 * space.dim, dim)
        # frozen, yet a parameter, as in the published code: it is part of the numbers of parameters that are quoted
        self.positions = nn.Parameter(grid_positions(rows, columns, dim), requires_grad=False)
        self.time_mlp = nn.Sequential(nn.Linear(SINUSOIDS, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_embedding = nn.Embedding(num_classes + 1, dim)  # the last row: no class
        self.blocks = nn.ModuleList(Block(dim, spec.num_heads, spec.mlp_ratio) for _ in range(spec.depth))
        self.final_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, patch**2 * 2 * space.dim)
        self._initialise()
        self._tables: dict[tuple, DiffusionTables] = {}

    def _initialise(self) -> None:
        """As published: Xavier-uniform, embeddings of time and class normal, and AdaLN-Zero's zeros."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        for part in (self.time_mlp[0], self.time_mlp[2], self.label_embedding):
            nn.init.normal_(part.weight, std=0.02)
        # every block starts as the identity, and the output at zero
        for part in (*(block.modulation for block in self.blocks), self.final_modulation, self.output):
            nn.init.zeros_(part.weight)

    def tables(self, num_steps: int | None, device: torch.device) -> DiffusionTables:
        """The training schedule (None) or one respaced to ``num_steps``, kept for each device."""
        key = (num_steps, device)
        if key not in self._tables:
            spec = self.spec
            self._tables[key] = DiffusionTables.make(spec.num_train_timesteps, num_steps, spec.beta_schedule).on(device)
        return self._tables[key]

    # --- the network ------------------------------------------------------------------------------------

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L, D) row by row -> (B, n, p p D), n patches of p x p tokens, row by row too."""
        p, (rows, columns) = self.spec.patch_size, self.space.grid
        split = tokens.unflatten(1, (rows // p, p, columns // p, p))  # (B, h / p, p, w / p, p, D)
        return split.transpose(2, 3).flatten(3).flatten(1, 2)

    def unpatched(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n, p p C) -> (B, L, C): the inverse of ``patches``."""
        p, (rows, columns) = self.spec.patch_size, self.space.grid
        split = x.unflatten(2, (p, p, -1)).unflatten(1, (rows // p, columns // p))  # (B, h / p, w / p, p, p, C)
        return split.transpose(2, 3).flatten(1, 4)

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Noisy tokens (B, L, D), training timesteps (B,), labels (B,) -> noise and raw variance (B, L, 2 D).

        The label -1 stands for "no class"; one timestep (1,) may serve all images."""
        waves = angles(timestep.float(), SINUSOIDS // 2)
        time = self.time_mlp(torch.cat([waves.cos(), waves.sin()], dim=-1))
        c = F.silu(time + self.label_embedding(torch.where(labels < 0, self.num_classes, labels)))
        x = self.input(self.patches(x)) + self.positions
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        return self.unpatched(self.output(modulated(self.final_norm(x), shift, scale)))

    # --- the loss ---------------------------------------------------------------------------------------

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training loss of tokens (B, L, D) with labels (B,): (B, L), with one timestep an image.

        All randomness (timestep, noise, dropped labels) comes from ``noise``."""
        device = tokens.device
        drop = noise.uniform("label", step, ()).to(device) < self.label_dropout
        t = noise.integers("timestep", step, self.spec.num_train_timesteps, ()).to(device)
        eps = noise.normal("diffusion", step, (self.length, self.space.dim)).to(device)
        return self.loss_given(tokens, labels.masked_fill(drop, -1), t, eps)

    def loss_given(
        self, tokens: torch.Tensor, labels: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
    ) -> torch.Tensor:
        """The hybrid loss (B, L) with every random choice given: t (B,), eps (B, L, D).

        The diffusion sees B L tokens, the network B images."""

        def denoise(xt: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return self.predict(xt.view_as(tokens), t, labels).float().flatten(0, 1)

        steps = t.repeat_interleave(self.length)
        loss = training_loss(self.tables(None, t.device), denoise, tokens.flatten(0, 1), steps, eps.flatten(0, 1))
        return loss.view(tokens.shape[:2])

    def forward(self, *args) -> torch.Tensor:
        return self.loss(*args)


# --- sampling -------------------------------------------------------------------------------------------


class _NoiseOfSteps:
    """Row i, (B L, D), is the noise of denoising step i and row 0 the start, each drawn when it is asked for.

    All rows of a batch of large images together would take gigabytes."""

    def __init__(self, noise: NoiseSource, num_steps: int, model: DiT, device: torch.device):
        self.noise, self.num_steps, self.device = noise, num_steps, device
        self.shape = (model.length, model.space.dim)

    def __len__(self) -> int:
        return self.num_steps + 1

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.noise.normal("sample", i, self.shape).to(self.device).flatten(0, 1)


@torch.inference_mode()
def generate(
    model: DiT,
    labels: torch.Tensor,
    sampling: SamplingSpec,
    noise: NoiseSource,
    clock: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> torch.Tensor:
    """Draw tokens (B, L, D) for labels (B,), on the labels' device, in ``num_diffusion_steps`` denoising steps.

    ``ddpm`` adds noise in each step, which ``temperature`` multiplies (1 in DiT's paper); ``ddim`` adds none. Under
    guidance the batch is doubled, the second half without class (label -1), and the scale is the same in every step.
    ``guided_channels`` given, the other channels of a token stay as the class predicts them: the published code guides
    three of four (DiT, appendix A). ``clock(part)`` times the network as "backbone"."""
    batch, device, dim = labels.shape[0], labels.device, model.space.dim
    scale, guided = sampling.guidance_scale, slice(sampling.guided_channels or dim)  # of noise and raw variance, 2 D
    all_labels = labels if scale == 1 else torch.cat([labels, torch.full_like(labels, -1)])

    def denoise(xt: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = xt.view(batch, model.length, dim)
        with clock("backbone"):
            x = x if scale == 1 else x.repeat(2, 1, 1)
            predicted = model.predict(x, timestep[:1], all_labels).float()  # all rows are at the same step
        if scale != 1:
            predicted, uncond = predicted.chunk(2)
            eps, eps_uncond = predicted[..., guided], uncond[..., guided]
            predicted = torch.cat([eps_uncond + scale * (eps - eps_uncond), predicted[..., guided.stop :]], dim=-1)
        return predicted.flatten(0, 1)

    tables = model.tables(sampling.num_diffusion_steps, device)
    rows = _NoiseOfSteps(noise, sampling.num_diffusion_steps, model, device)
    if sampling.sampler == "ddim":
        tokens = sample_ddim(tables, denoise, rows[0], clamp_x0=sampling.clamp_x0)
    else:
        tokens = sample(tables, denoise, rows, temperature=sampling.temperature, clamp_x0=sampling.clamp_x0)
    return tokens.view(batch, model.length, dim)
