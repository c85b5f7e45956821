"""The single core: an order, a backbone and a head make a training loss. It knows no concrete class of them.

And what it has in common with the rival that draws whole images (rivals/dit.py): a Generator."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from mar_bench.config.spec import TokenSpace, num_tokens
from mar_bench.models.orders import draw_order, gather
from mar_bench.utils.noise import NoiseSource


class Generator(Protocol):
    """The nn.Module that trainer and evaluator see; calling it is its loss. ``build.generate`` draws tokens from it."""

    space: TokenSpace
    length: int  # tokens of an image, L
    label_dropout: float

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training loss of tokens (B, L[, D]) with labels (B,): (B, n) over the tokens that it is of, n <= L.

        All randomness comes from ``noise``, by the images' slots in the global batch."""


class ARGenerator(nn.Module):
    """An autoregressive generator over tokens (paper, section 3): ``loss`` here, ``generate`` in sampler.py."""

    def __init__(self, order: str, backbone: nn.Module, head: nn.Module, space: TokenSpace, label_dropout: float):
        super().__init__()
        self.order, self.space, self.length = order, space, num_tokens(space)
        self.label_dropout = label_dropout
        self.backbone, self.head = backbone, head

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training loss of tokens (B, L[, D]) with labels (B,): (B, n) over each image's n target tokens.

        All randomness (order, share of known tokens, dropped labels, the head's own) comes from ``noise``."""
        device = tokens.device
        order = draw_order(self.order, noise, step, self.length).to(device)
        drop = noise.uniform("label", step, ()).to(device) < self.label_dropout
        num_known = self.backbone.num_known(noise.shared("mask", step), self.length)
        drawn = self.head.draw_training(noise, step, self.length)
        return self.loss_given(tokens, labels.masked_fill(drop, -1), order, num_known, drawn)

    def loss_given(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        order: torch.Tensor,
        num_known: int,
        drawn: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The loss with every random choice given; ``drawn`` holds the head's draws by position, (B, L, ...)."""
        tokens = gather(tokens, order)
        z = self.backbone(tokens, labels, order, num_known)
        targets = order[:, num_known:]
        drawn = {name: gather(values.to(tokens.device), targets) for name, values in drawn.items()}
        return self.head.loss(z, tokens[:, num_known:], drawn)

    def forward(self, *args) -> torch.Tensor:
        return self.loss(*args)
