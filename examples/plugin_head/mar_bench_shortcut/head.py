"""The head: a velocity that depends on time and on the size of the step to take."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mar_bench.models.heads.base import Head, guided
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench_shortcut import ShortcutHead

TIME_SCALE = 1000.0  # the sinusoids of the timestep embedding have periods from 2 pi on


class Shortcut(Head):
    """x_t = (1 - t) eps + t x. A step of size d goes from x_t to x_t + d s(x_t, t, d).

    For d = 0 the target of s is the velocity x - eps; for d = 2 h it is the mean of two steps of size h, without a
    gradient (2410.12557, equations 4 and 5). Guidance acts on s; temperature multiplies the initial noise."""

    def __init__(self, spec: ShortcutHead, space, dim: int):
        super().__init__()
        self.spec, self.token_dim = spec, space.dim
        self.levels = int(math.log2(spec.smallest_step))
        self.net = AdaLNMLP(space.dim, space.dim, dim, spec.width, spec.depth)
        self.step_size = nn.Embedding(self.levels + 1, dim)  # 0: the smallest; level l: 1 / 2^(l - 1) of the path
        nn.init.normal_(self.step_size.weight, std=0.02)

    def draw_training(self, noise, step: int, length: int) -> dict[str, Tensor]:
        """For M draws per token: the noise, (B, L, M, D); the level of the step, 0 unless it learns from two smaller
        ones, and a uniform number, from which comes the time, (B, L, M)."""
        shape = (length, self.spec.draws_per_token)
        consistent = noise.uniform("shortcut-kind", step, shape) < self.spec.consistent_share
        level = 1 + noise.integers("shortcut-level", step, self.levels, shape)
        return {
            "eps": noise.normal("shortcut", step, (*shape, self.token_dim)),
            "level": torch.where(consistent, level, 0),
            "u": noise.uniform("shortcut-time", step, shape),
        }

    def velocity(self, x: Tensor, t: Tensor, size: Tensor, z: Tensor) -> Tensor:
        """x (N, D), time (N,), index of the step's size (N,), z (N, E) -> s (N, D)."""
        return self.net(x, TIME_SCALE * t, z + self.step_size(size)).float()

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D) -> squared error of s (B, n), mean over D and M."""
        eps, level, u = drawn["eps"], drawn["level"], drawn["u"]
        steps = 2.0 ** (level - 1).clamp(min=0)  # of the large size in a whole path
        t = torch.where(level > 0, (u * steps).floor() / steps, u)
        x = target[:, :, None]
        xt, velocity = (1 - t[..., None]) * eps + t[..., None] * x, x - eps
        flat = xt.flatten(0, 2), t.flatten(), z[:, :, None].expand(*t.shape, -1).flatten(0, 2)
        size = level.flatten()
        with torch.no_grad():
            half = (0.5 / steps).flatten()
            small = torch.where(size < self.levels, size + 1, 0)
            first = self.velocity(flat[0], flat[1], small, flat[2])
            second = self.velocity(flat[0] + half[:, None] * first, flat[1] + half, small, flat[2])
            goal = torch.where(level[..., None] > 0, ((first + second) / 2).view_as(eps), velocity)
        found = self.velocity(flat[0], flat[1], size, flat[2]).view_as(eps)
        return (found - goal).square().mean((-1, -2))

    def draw_sampling(self, noise, step: int, n: int, sampling) -> Tensor:
        """The initial noise of each token, (B, n, D)."""
        return noise.normal("sample", step, (n, self.token_dim))

    def sample(self, z: Tensor, drawn: Tensor, sampling, scale: float = 1.0, z_uncond: Tensor | None = None) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D) in ``num_diffusion_steps`` equal steps."""
        steps = sampling.num_diffusion_steps
        x, flat = (sampling.temperature * drawn).flatten(0, 1), [z.flatten(0, 1)]
        flat += [] if z_uncond is None else [z_uncond.flatten(0, 1)]
        level = math.ceil(math.log2(steps)) + 1
        size = torch.full((len(x),), level if level <= self.levels else 0, device=x.device)
        for i in range(steps):
            t = torch.full((len(x),), i / steps, device=x.device)
            s = [self.velocity(x, t, size, condition) for condition in flat]
            x = x + (s[0] if len(s) == 1 else guided(s[0], s[1], scale)) / steps
        return x.view_as(drawn)
