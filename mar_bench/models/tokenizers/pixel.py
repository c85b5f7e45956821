"""Raw pixels (paper, appendix D.1); with ``group`` a token is a patch of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mar_bench.config.spec import DataSpec, PixelTokenizer, latent_space
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class Pixels(Tokenizer):
    """Tokens are pixels in [-1, 1]; the latent cache keeps them as uint8."""

    def __init__(self, spec: PixelTokenizer, data: DataSpec):
        super().__init__()
        self.space = latent_space(spec, data)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": grid_to_tokens(((images + 1) * 127.5).round().to(torch.uint8))}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return tokens_to_grid(tokens, self.space.grid).clamp(-1, 1)
