"""Tokenizers without weights of their own: raw pixels, and neighbouring latents joined into one token."""

from __future__ import annotations

import torch
from torch import Tensor

from mar_bench.config.spec import Continuous, DataSpec, PixelTokenizer, latent_space
from mar_bench.models.finite import clipped
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class Pixels(Tokenizer):
    """Tokens are pixels in [-1, 1] (paper, appendix D.1); the latent cache keeps them as uint8."""

    def __init__(self, spec: PixelTokenizer, data: DataSpec):
        super().__init__()
        self.space = latent_space(spec, data)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": grid_to_tokens(((images + 1) * 127.5).round().to(torch.uint8))}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return clipped(tokens_to_grid(tokens, self.space.grid))


class Grouped(Tokenizer):
    """Joins ``group`` x ``group`` continuous latents of ``inner`` into one token: 2 x 2 for KL-8 (paper, section 4.2),
    4 x 4 pixels (appendix D.1). Within a token channels come first, then rows, then columns (official code)."""

    space: Continuous

    def __init__(self, inner: Tokenizer, group: int):
        super().__init__()
        assert isinstance(inner.space, Continuous), "codes are not grouped"
        self.inner, self.group, self.latent_dim, self.stochastic = inner, group, inner.space.dim, inner.stochastic
        height, width = inner.space.grid
        self.space = Continuous(inner.space.dim * group**2, (height // group, width // group))

    def joined(self, latents: Tensor) -> Tensor:
        """(B, L group^2, D) -> (B, L, D group^2)."""
        g, (h, w) = self.group, self.space.grid
        cells = latents.unflatten(1, (h, g, w, g))  # (B, h, row, w, column, D)
        return cells.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)

    def parted(self, tokens: Tensor) -> Tensor:
        """The inverse of ``joined``."""
        g, (h, w), dim = self.group, self.space.grid, self.latent_dim
        cells = tokens.unflatten(1, (h, w)).unflatten(3, (dim, g, g))  # (B, h, w, D, row, column)
        return cells.permute(0, 1, 4, 2, 5, 3).flatten(1, 4)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        return {name: self.joined(values) for name, values in self.inner.stored(images).items()}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return self.inner.decode(self.parted(tokens), noise)

    def fitted_state(self) -> dict[str, Tensor]:
        return self.inner.fitted_state()

    def load_fitted(self, state: dict[str, Tensor]) -> None:
        self.inner.load_fitted(state)
