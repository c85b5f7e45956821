"""Pixels as they are (paper, appendix D.1); with ``group`` a patch of them makes a token."""

from __future__ import annotations

import torch

from mar_bench.config.spec import DataSpec, PixelTokenizer, latent_space
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class Pixels(Tokenizer):
    """Tokens are values in [-1, 1], one for each channel."""

    def __init__(self, spec: PixelTokenizer, data: DataSpec):
        super().__init__()
        self.space = latent_space(spec, data)

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": grid_to_tokens(((images + 1) * 127.5).round().to(torch.uint8))}

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        return stored["pixels"].float() / 127.5 - 1

    def decode(self, tokens: torch.Tensor, noise: NoiseSource | None = None) -> torch.Tensor:
        return tokens_to_grid(tokens, self.space.grid).clamp(-1, 1)
