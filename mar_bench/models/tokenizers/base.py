"""The tokenizer contract and the small convolutional autoencoder that KL and VQ share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mar_bench.config.spec import TokenSpace
from mar_bench.utils.noise import NoiseSource


class Tokenizer(nn.Module):
    """Images (B, C, H, W) in [-1, 1] <-> tokens in ``space``; owns its shift and scale.

    ``stored(images)`` is what the latent cache keeps (a dict of tensors with B rows) and ``tokens_of`` turns
    it into training tokens, so that a stochastic encoder is sampled anew in each step."""

    space: TokenSpace
    stochastic = False  # whether tokens_of wants noise

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("a tokenizer says what it stores")

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        raise AssertionError("a tokenizer says what its tokens are")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L[, D]) of images, without noise."""
        return self.tokens_of(self.stored(images), None)

    def decode(self, tokens: torch.Tensor, noise: NoiseSource | None = None) -> torch.Tensor:
        """Images (B, C, H, W) of tokens, clipped to [-1, 1].

        ``noise`` tells a decoder that draws which images these are; None: the first B."""
        raise AssertionError("a tokenizer decodes")

    def training_loss(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Scalar loss of a batch (B, C, H, W) with ``noise`` (B, L, D) standard normal."""
        raise AssertionError("this tokenizer is not trained here")

    def fit_scale(self, images: torch.Tensor) -> None:
        """Set shift and scale from training images, once training is over; nothing to do by default."""

    def fitted_state(self) -> dict[str, torch.Tensor]:
        """What training and ``fit_scale`` have determined, to be stored."""
        return self.state_dict()

    def load_fitted(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of ``fitted_state``. Raises RuntimeError where ``state`` is of another tokenizer."""
        self.load_state_dict(state)


def grid_to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) -> (B, h w, D), row by row."""
    return x.flatten(2).transpose(1, 2)


def tokens_to_grid(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, h w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class ResidualConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


def encoder(channels: int, width: int, stride: int, out: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, out, H / stride, W / stride): a stride-2 convolution a halving."""
    layers: list[nn.Module] = []
    now = channels
    for level in range(stride.bit_length() - 1):
        wide = width * min(4, 2 ** (level + 1))
        layers += [nn.Conv2d(now, wide, 4, stride=2, padding=1), nn.SiLU()]
        now = wide
    if not layers:
        layers, now = [nn.Conv2d(channels, 2 * width, 3, padding=1)], 2 * width
    return nn.Sequential(*layers, ResidualConv(now), nn.GroupNorm(8, now), nn.SiLU(), nn.Conv2d(now, out, 1))


def decoder(channels: int, width: int, stride: int, dim: int) -> nn.Sequential:
    """(B, dim, h, w) -> (B, channels, h stride, w stride), the mirror image of ``encoder``."""
    levels = stride.bit_length() - 1
    now = width * min(4, 2 ** max(1, levels))
    layers: list[nn.Module] = [nn.Conv2d(dim, now, 3, padding=1), ResidualConv(now), nn.SiLU()]
    for level in reversed(range(levels)):
        wide = width * min(4, 2**level)
        layers += [nn.ConvTranspose2d(now, wide, 4, stride=2, padding=1), nn.SiLU()]
        now = wide
    return nn.Sequential(*layers, nn.Conv2d(now, channels, 3, padding=1))
