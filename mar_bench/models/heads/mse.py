"""Squared-error head: one linear layer predicts the token itself (paper, appendix D.3).

It models no distribution: its optimum is the mean of all possible tokens, and in raster order all samples of a class
are the same image. The paper reports an FID above 100."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mar_bench.config.spec import Continuous, MSEHead, SamplingSpec
from mar_bench.models.heads.base import Head
from mar_bench.utils.noise import NoiseSource


class MSE(Head):
    """Mean squared error; guidance acts on the predictions. Temperature has no effect: nothing is drawn."""

    def __init__(self, spec: MSEHead, space: Continuous, dim: int):
        super().__init__()
        self.output = nn.Linear(dim, space.dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D) -> squared error (B, n), mean over D."""
        return (self.output(z).float() - target).square().mean(-1)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """No random numbers, (B, n, 0)."""
        return torch.empty(len(noise.indices), n, 0)

    def predict(self, z: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        return self.output(z).float()
