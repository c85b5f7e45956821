"""A vector-quantised autoencoder: each token is a code (van den Oord et al.; LDM's VQ-f)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

from mar_bench.spec import DataSpec, Discrete, VQTokenizer, token_space
from mar_bench.tokenizers.base import Tokenizer, decoder, encoder, grid_to_tokens, tokens_to_grid


class VQAutoencoder(Tokenizer):
    """Codebook by moving average with k-means start; codes that die are replaced by batch vectors."""

    def __init__(self, spec: VQTokenizer, data: DataSpec):
        super().__init__()
        self.space: Discrete = token_space(spec, data)
        self.encoder = encoder(data.channels, spec.width, spec.stride, spec.code_dim)
        self.decoder = decoder(data.channels, spec.width, spec.stride, spec.code_dim)
        self.quantiser = VectorQuantize(
            dim=spec.code_dim,
            codebook_size=spec.vocab_size,
            decay=spec.codebook_decay,
            commitment_weight=spec.commitment_weight,
            kmeans_init=True,
            threshold_ema_dead_code=1,
        )

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        _, codes, _ = self.quantiser(grid_to_tokens(self.encoder(images)), freeze_codebook=True)
        return {"codes": codes.int()}

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        return stored["codes"].long()

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        latents = self.quantiser.get_output_from_indices(tokens)
        return self.decoder(tokens_to_grid(latents, self.space.grid)).clamp(-1, 1)

    def training_loss(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mean squared error a pixel plus the weighted commitment loss; ``noise`` is not used."""
        latents, _, commitment = self.quantiser(grid_to_tokens(self.encoder(images)))
        return F.mse_loss(self.decoder(tokens_to_grid(latents, self.space.grid)), images) + commitment.sum()
