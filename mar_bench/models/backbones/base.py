"""The contract of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

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

    @abstractmethod
    def forward(self, tokens: Tensor, labels: Tensor, order: Tensor, num_known: int = 0) -> Tensor:
        """Training: z (B, L - num_known, E) for order[:, num_known:]; ``tokens`` (B, L[, D]) are in that order."""
