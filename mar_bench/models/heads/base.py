"""The contract of a head, and classifier-free guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from mar_bench.config.spec import LikelihoodSpec, SamplingSpec
from mar_bench.utils.noise import NoiseSource


class Head(nn.Module, ABC):
    """Models p(token | z) for one token, given its condition z from the backbone.

    Built from ``(spec, space, dim)``, dim being the width E of z. All random numbers come from ``draw_training`` and
    ``draw_sampling``. A head implements ``predict``, or ``sample`` if guidance acts elsewhere,
    and ``log_likelihood`` if its spec has a ``likelihood``."""

    autocasts: ClassVar[bool] = True  # whether its layers follow torch.autocast

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, Tensor]:
        """The random numbers of a training step by name, each (B, L, ...); none by default."""
        return {}

    @abstractmethod
    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), target tokens (B, n[, D]), draws (B, n, ...) -> loss (B, n), unreduced."""

    @abstractmethod
    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """The random numbers for n tokens per image in AR step ``step``; the first dimension is B."""

    def predict(self, z: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        """z (B, n, E) -> the tokens (B, n, D) before guidance."""
        raise NotImplementedError

    def predict_guided(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float, z_uncond: Tensor | None
    ) -> Tensor:
        """``predict``, guided if there is a ``z_uncond``; both halves use the same draws."""
        conditional = self.predict(z, drawn, sampling)
        return conditional if z_uncond is None else guided(conditional, self.predict(z_uncond, drawn, sampling), scale)

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """z (B, n, E) -> tokens (B, n[, D]), a function of ``drawn``.

        With ``z_uncond`` (B, n, E), the condition without a class, sampling is guided by ``scale`` with equal draws."""
        return self.predict_guided(z, drawn, sampling, scale, z_uncond)

    def sample_with_log_probability(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens as ``sample`` draws them, and their log-probabilities (B, n) in nats; for confidence order only."""
        raise NotImplementedError(f"tokens of {type(self).__name__} have no probabilities")

    def draw_likelihood(self, noise: NoiseSource, step: int, n: int, spec: LikelihoodSpec) -> dict[str, Tensor]:
        """The random numbers with which a bound is estimated, by name, each (B, n, ...); none by default."""
        return {}

    def log_likelihood(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), target tokens (B, n[, D]) -> log p(target | z) (B, n) in nats, or an estimate of a lower bound.

        A density for continuous tokens. Only for heads whose spec has a ``likelihood``."""
        raise NotImplementedError(f"tokens of {type(self).__name__} have no likelihood")


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, channels: int | None = None) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, 2207.12598): uncond + w (cond - uncond), both (..., C).

    With ``channels``, only that many leading channels are guided; the rest stay conditional."""
    cond, uncond = conditional[..., :channels], unconditional[..., :channels]
    mixed = uncond + scale * (cond - uncond)
    return mixed if channels is None else torch.cat([mixed, conditional[..., channels:]], dim=-1)
