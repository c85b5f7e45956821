"""The autoregressive generator: a training loss from an order, a backbone and a head.

Also defines the interface that it shares with the DiT baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mar_bench.config.spec import TokenSpace, num_tokens
from mar_bench.models.backbones.base import Backbone
from mar_bench.models.heads.base import Head
from mar_bench.models.orders import annealed, draw_order, gather
from mar_bench.utils.ahead import placed
from mar_bench.utils.noise import NoiseSource


class Generator(nn.Module, ABC):
    """The interface of a model for training and sampling; calling it computes the loss, ``build.generate`` samples."""

    space: TokenSpace
    length: int  # L, tokens per image
    label_dropout: float

    def loss(self, tokens: Tensor, labels: Tensor, noise: NoiseSource, step: int) -> Tensor:
        """Tokens (B, L[, D]) and labels (B,) -> loss (B, n) of the n <= L target tokens of each image.

        All randomness comes from ``noise``, whose indices are the images' slots in the global batch."""
        return self(tokens, labels, **placed(self.draw(noise, step), tokens.device))

    def forward(self, tokens: Tensor, labels: Tensor, drop: Tensor, **drawn: Any) -> Tensor:
        """The loss (B, n), given what ``draw`` has drawn."""
        return self.loss_given(tokens, labels.masked_fill(drop, -1), **drawn)

    @abstractmethod
    def draw(self, noise: NoiseSource, step: int) -> dict[str, Any]:
        """All random choices of a training step, on the CPU: ``drop`` (B,), the images that lose their label, and
        arguments of ``loss_given``."""

    loss_given: Callable[..., Tensor]  # tokens (B, L[, D]), labels (B,), -1 for "no class", and what is drawn -> (B, n)


class ARGenerator(Generator):
    """An autoregressive generator (paper, section 3): the loss is here, the generation loop in sampler.py.

    ``random_share`` gives the share of images that keep a random order at a training step; the others are in raster
    order."""

    def __init__(
        self,
        order: str,
        backbone: Backbone,
        head: Head,
        space: TokenSpace,
        label_dropout: float,
        order_seed: int = 0,
        random_share: Callable[[int], float] = lambda step: 1.0,
    ):
        super().__init__()
        self.order, self.order_seed, self.random_share = order, order_seed, random_share
        self.space, self.length, self.label_dropout = space, num_tokens(space), label_dropout
        self.backbone, self.head = backbone, head

    def draw(self, noise: NoiseSource, step: int) -> dict[str, Any]:
        """Label dropout, order, number of known tokens, and the head's random numbers."""
        order = draw_order(self.order, noise, step, self.length, self.order_seed)
        if (share := self.random_share(step)) < 1:
            order = annealed(order, share, noise, step)
        return {
            "drop": noise.uniform("label", step, ()) < self.label_dropout,
            "order": order,
            "num_known": self.backbone.num_known(noise.shared("mask", step), self.length),
            "drawn": self.head.draw_training(noise, step, self.length),
        }

    def loss_given(
        self, tokens: Tensor, labels: Tensor, order: Tensor, num_known: int, drawn: dict[str, Tensor]
    ) -> Tensor:
        """``drawn`` holds the head's draws by position, (B, L, ...)."""
        tokens = gather(tokens, order)
        z = self.backbone(tokens, labels, order, num_known)
        targets = order[:, num_known:]
        drawn = {name: gather(values, targets) for name, values in drawn.items()}
        return self.head.loss(z, tokens[:, num_known:], drawn)
