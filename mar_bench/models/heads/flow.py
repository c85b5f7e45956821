"""Flow-matching head: the head's MLP predicts the velocity that carries noise to a token along a straight line.

Flow matching (2210.02747) on the path of rectified flow (2209.03003): x_t = (1 - t) eps + t x, whose velocity is
x - eps, so t = 0 is noise and t = 1 the token."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.config.spec import Continuous, FlowHead, SamplingSpec
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.utils.noise import NoiseSource

# Times in [0, 1] are embedded as the timesteps of a diffusion head: the fastest sinusoid turns by one radian a step,
# and over [0, 1] alone none would complete a sixth of a turn.
TIME_SCALE = 1000.0


class Flow(nn.Module):
    """Flow-matching loss; guidance acts on the velocity. Temperature multiplies the noise at the start."""

    def __init__(self, spec: FlowHead, space: Continuous, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        self.net = AdaLNMLP(space.dim, space.dim, dim, spec.width, spec.depth)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        """For each token M times (B, L, M), uniform, and their noise (B, L, M, D), M = draws_per_token."""
        draws = self.spec.draws_per_token
        return {
            "t": noise.uniform("time", step, (length, draws)),
            "eps": noise.normal("flow", step, (length, draws, self.token_dim)),
        }

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), tokens (B, n, D), t (B, n, M), eps (B, n, M, D) -> (B, n): the squared error of the velocity,
        mean over D and M."""
        t, eps = drawn["t"], drawn["eps"]
        x = target[:, :, None]  # (B, n, 1, D)
        xt = (1 - t[..., None]) * eps + t[..., None] * x
        condition = self.net.condition(z)[:, :, None].expand(*t.shape, -1)
        velocity = self.net.conditioned(xt.flatten(0, 2), TIME_SCALE * t.flatten(), condition.flatten(0, 2)).float()
        return (velocity.view_as(eps) - (x - eps)).square().mean((-1, -2))

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """The start of each token, (B, n, D); the way from there is drawn by nothing."""
        return noise.normal("sample", step, (n, self.token_dim))

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z (B, n, E) -> tokens (B, n, D) by T = num_diffusion_steps equal Euler steps from t = 0 to 1, the velocity
        taken at the beginning of each; both halves of guidance share the state and so the noise."""
        steps = sampling.num_diffusion_steps
        condition = self.net.condition(z).flatten(0, 1)
        uncond = None if z_uncond is None else self.net.condition(z_uncond).flatten(0, 1)
        x = sampling.temperature * drawn.flatten(0, 1)  # (B n, D)
        for i in range(steps):
            t = x.new_full((1,), TIME_SCALE * i / steps)
            x = x + self._velocity(x, t, condition, uncond, guidance_scale) / steps
        return x.view_as(drawn)

    def _velocity(
        self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor, uncond: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """States (N, D), one time (1,), embedded conditions (N, W) -> guided velocity (N, D) in float32."""
        if uncond is None:
            return self.net.conditioned(x, t, c).float()
        both = self.net.conditioned(x.repeat(2, 1), t, torch.cat([c, uncond])).float()
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)
