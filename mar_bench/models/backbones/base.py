"""The contract of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Known tokens (B, k[, D]), labels (B,), -1 for "no class", and an order (B, L) -> z for positions of the order."""

    dim: int  # E, the width of z

    @abstractmethod
    def num_known(self, u: float, length: int) -> int:
        """The number of known tokens in a training batch, from one uniform draw ``u``; at least one stays unknown."""

    @abstractmethod
    def new_cache(self) -> Any:
        """What ``predict`` may reuse between the steps of one generation."""

    @abstractmethod
    def predict(self, known: Tensor, labels: Tensor, order: Tensor, n: int = 1, cache: Any = None) -> Tensor:
        """Sampling: z (B, n, E) for order[:, k:k+n], given ``known`` (B, k[, D]) at order[:, :k]."""

    def conditions(self, tokens: Tensor, labels: Tensor, order: Tensor, places: Tensor) -> Tensor:
        """Likelihood: z (B, P, E) at ``places`` (B, P) of the order, each given all ``tokens`` (B, L[, D]) before it.

        One pass for each place of the order; a backbone that can do with fewer overrides this."""
        z = torch.empty(*places.shape, self.dim, device=tokens.device)
        for k in range(order.shape[1]):
            rows, columns = (places == k).nonzero(as_tuple=True)
            if len(rows):
                z[rows, columns] = self.predict(tokens[rows, :k], labels[rows], order[rows])[:, 0].to(z.dtype)
        return z

    @abstractmethod
    def forward(self, tokens: Tensor, labels: Tensor, order: Tensor, num_known: int = 0) -> Tensor:
        """Training: z (B, L - num_known, E) for order[:, num_known:]; ``tokens`` (B, L[, D]) are in that order."""
