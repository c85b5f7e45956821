"""Squared-error head: one linear layer gives the token itself (paper, appendix D.3).

It models no distribution: its best answer is the mean of all tokens that could stand there, and in raster order the
samples of a class are one and the same image. The paper reports an FID above 100."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.config.spec import Continuous, MSEHead, SamplingSpec
from mar_bench.utils.noise import NoiseSource


class MSE(nn.Module):
    """Mean squared error; guidance acts on the predictions. Temperature means nothing: nothing is drawn."""

    def __init__(self, spec: MSEHead, space: Continuous, dim: int):
        super().__init__()
        self.output = nn.Linear(dim, space.dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        return {}

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), tokens (B, n, D) -> squared error (B, n), mean over D."""
        return (self.output(z).float() - target).square().mean(-1)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """No number a token, (B, n, 0)."""
        return torch.empty(len(noise.indices), n, 0)

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z (B, n, E) -> the predicted tokens (B, n, D)."""
        tokens = self.output(z).float()
        if z_uncond is None:
            return tokens
        uncond = self.output(z_uncond).float()
        return uncond + guidance_scale * (tokens - uncond)
