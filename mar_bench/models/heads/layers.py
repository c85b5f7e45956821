"""Parts shared by heads and the DiT: AdaLN, the MLP that uses it (paper, appendix A), drawing an index by weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.models.heads.base import guided

FREQUENCIES = 256  # size of the sinusoidal timestep embedding


def angles(positions: Tensor, count: int) -> Tensor:
    """Positions (N,) -> (N, count), at frequencies that decrease geometrically from 1 towards 1/10000."""
    steps = torch.arange(count, device=positions.device, dtype=positions.dtype)
    return positions[:, None] * torch.exp(-math.log(10_000) / count * steps)


def timestep_embedding(t: Tensor) -> Tensor:
    """Timesteps (N,), up to about 1000 -> sinusoids (N, 256), cosines first."""
    waves = angles(t.float(), FREQUENCIES // 2)
    return torch.cat([waves.cos(), waves.sin()], dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """AdaLN of normalised x (..., E) by shift and scale, which broadcast to it."""
    return x * (1 + scale) + shift


def initialise(module: nn.Module, zero_start: bool) -> None:
    """Xavier-uniform, but normal for the embeddings of time and class (DiT's code). With ``zero_start`` every block
    starts as the identity and the output is zero (AdaLN-Zero, DiT section 3.2); otherwise modulations are normal."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        modulation = name.endswith("modulation.weight")
        if zero_start and (modulation or name == "output.weight"):
            nn.init.zeros_(parameter)
        elif modulation or name in ("time_mlp.0.weight", "time_mlp.2.weight", "label_embedding.weight"):
            nn.init.normal_(parameter, std=0.02)


def invert(weights: Tensor, u: Tensor) -> Tensor:
    """Indices (...) drawn from weights (..., N) by inverting their cumulative sum at u (...) in [0, 1)."""
    cumulative = weights.cumsum(-1)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1).clamp(max=weights.shape[-1] - 1)


class ResidualBlock(nn.Module):
    """x + gate * MLP(AdaLN(x)); shift, scale and gate come from the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        return x + gate * self.mlp(modulated(self.norm(x), shift, scale))


class AdaLNMLP(nn.Module):
    """Input (N, I), timestep (N,), condition (N, E) -> output (N, O).

    Unless it ``denoises``, the timestep is None, and blocks do not start as the identity."""

    final = False  # whether its weights will not change any more (inference.py)

    def __init__(
        self, input_dim: int, output_dim: int, condition_dim: int, width: int, depth: int, denoises: bool = True
    ):
        super().__init__()
        self.times: dict[float, Tensor] = {}
        if denoises:
            self.time_mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition_dim, width)
        self.input = nn.Linear(input_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, output_dim)
        initialise(self, zero_start=denoises)

    def forward(self, x: Tensor, t: Tensor | None, z: Tensor) -> Tensor:
        return self.conditioned(x, None if t is None else self.time(t), self.condition(z))

    def time(self, t: Tensor) -> Tensor:
        """Timesteps (N,) -> their embedding (N, W)."""
        return self.time_mlp(timestep_embedding(t))

    def time_at(self, t: float) -> Tensor:
        """The embedding (1, W) of one timestep, kept if the weights are final."""
        kept = self.times.get(t)
        if kept is None:
            kept = self.time(torch.full((1,), t, device=self.input.weight.device))
            if self.final:
                self.times[t] = kept
        return kept

    def conditioned(self, x: Tensor, time: Tensor | None, c: Tensor) -> Tensor:
        """``forward`` from an embedded timestep (N or 1, W) and an embedded condition (N, W), so that a sampler
        computes each once."""
        c = F.silu(c if time is None else time + c)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=-1)
        return self.output(modulated(self.final_norm(x), shift, scale))

    def guided(self, x: Tensor, time: Tensor, c: Tensor, scale: Tensor, channels: int | None) -> Tensor:
        """x (N, I), conditions with a class and without one (2 N, W), guidance scale () -> guided output (N, O)."""
        conditional, unconditional = self.conditioned(x.repeat(2, 1), time, c).float().chunk(2)
        return guided(conditional, unconditional, scale, channels)


def guided_network(
    net: AdaLNMLP, z: Tensor, z_uncond: Tensor | None, scale: float | Tensor, channels: int | None = None
) -> Callable[[Tensor, float], Tensor]:
    """The network as a sampler calls it: x (B n, I), one timestep -> output (B n, O) in float32.

    z (B, n, E) is embedded once. Given a ``z_uncond``, both halves of guidance see the same x in one doubled batch,
    and the first ``channels`` of the output are guided (default: all)."""
    c = net.condition(z).flatten(0, 1)
    if z_uncond is None:
        return lambda x, t: net.conditioned(x, net.time_at(t), c).float()
    both = torch.cat([c, net.condition(z_uncond).flatten(0, 1)])
    # a tensor, so that compiled and captured code serves every scale
    scale = scale if isinstance(scale, Tensor) else torch.full((), scale, device=z.device)
    return lambda x, t: net.guided(x, net.time_at(t), both, scale, channels)
