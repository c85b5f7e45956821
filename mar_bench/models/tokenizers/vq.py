"""A vector-quantised autoencoder (1711.00937; LDM's VQ-f, 2112.10752): tokens are codes, or latents before
quantisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from mar_bench.config.spec import DataSpec, VQTokenizer, latent_space
from mar_bench.models.tokenizers.base import Tokenizer, decoder, encoder, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class VQAutoencoder(Tokenizer):
    """The codebook is a moving average, initialised by k-means; dead codes are replaced by vectors of the batch."""

    shift: Tensor  # (D,), subtracted from a raw latent
    scale: Tensor  # (D,), multiplied then

    def __init__(self, spec: VQTokenizer, data: DataSpec):
        super().__init__()
        self.space, self.codes = latent_space(spec, data), spec.output == "codes"
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
        self.register_buffer("shift", torch.zeros(spec.code_dim))
        self.register_buffer("scale", torch.ones(spec.code_dim))

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        latents = grid_to_tokens(self.encoder(images))
        if not self.codes:
            return {"latents": (latents - self.shift) * self.scale}
        _, codes, _ = self.quantiser(latents, freeze_codebook=True)
        return {"codes": codes.int()}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Latents are quantised first, as in the decoder's training."""
        if self.codes:
            latents = self.quantiser.get_output_from_indices(tokens)
        else:
            latents = self.quantiser(tokens / self.scale + self.shift, freeze_codebook=True)[0]
        return self.decoder(tokens_to_grid(latents, self.space.grid)).clamp(-1, 1)

    def training_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error per pixel plus the weighted commitment loss; ``noise`` is not used."""
        latents, _, commitment = self.quantiser(grid_to_tokens(self.encoder(images)))
        return F.mse_loss(self.decoder(tokens_to_grid(latents, self.space.grid)), images) + commitment.sum()

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """Per channel: latents of the training images get mean 0 and std 1."""
        latents = grid_to_tokens(self.encoder(images)).flatten(0, 1)
        self.shift.copy_(latents.mean(0))
        self.scale.copy_(1 / latents.std(0))
