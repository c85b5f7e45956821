"""What heads are made of: the MLP conditioned by AdaLN (paper, section 3.2 and appendix A), and a draw from weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

FREQUENCIES = 256  # size of the sinusoidal timestep embedding


def timestep_embedding(t: torch.Tensor) -> torch.Tensor:
    """Sinusoids of the timestep (N,) -> (N, 256), cosines first; made for timesteps that run to about 1000."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def invert(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Indices (...) drawn from weights (..., N) by inverting their distribution function at u (...) in [0, 1)."""
    cumulative = weights.cumsum(-1)
    threshold = u[..., None] * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).clamp(max=weights.shape[-1] - 1)


class ResidualBlock(nn.Module):
    """x + gate * MLP(AdaLN(x)); shift, scale and gate come from the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class AdaLNMLP(nn.Module):
    """Input (N, I), timestep (N,), condition (N, E) -> output (N, O); without ``timed`` there is no timestep.

    With ``zero_start`` blocks start as the identity and the output at zero, as a denoiser does; else the output starts
    as a function of input and condition."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        condition_dim: int,
        width: int,
        depth: int,
        timed: bool = True,
        zero_start: bool = True,
    ):
        super().__init__()
        if timed:
            self.time_mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.timed = timed
        self.condition = nn.Linear(condition_dim, width)
        self.input = nn.Linear(input_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, output_dim)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        for layer in (self.time_mlp[0], self.time_mlp[2]) if timed else ():
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [*(b.modulation for b in self.blocks), self.final_modulation]
        if not zero_start:
            for layer in modulations:
                nn.init.normal_(layer.weight, std=0.02)
            return
        # AdaLN-Zero: every block starts as the identity and the output at zero (DiT)
        for layer in (*modulations, self.output):
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
        return self.conditioned(x, t, self.condition(z))

    def conditioned(self, x: torch.Tensor, t: torch.Tensor | None, c: torch.Tensor) -> torch.Tensor:
        """The same from an embedded condition ``c`` (N, W), which a sampler computes once for all steps.

        ``t`` has one entry (all tokens at the same step) or one a token."""
        c = F.silu(self.time_mlp(timestep_embedding(t)) + c if self.timed else c)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=-1)
        return self.output(self.final_norm(x) * (1 + scale) + shift)
