"""A KL-regularised autoencoder with continuous tokens of unit scale (1312.6114; LDM's KL-f, 2112.10752)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mar_bench.config.spec import DataSpec, KLTokenizer, latent_space
from mar_bench.models.tokenizers.base import Tokenizer, decoder, encoder, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class KLAutoencoder(Tokenizer):
    """Tokens are the normalised mean of the latent, in training plus its normalised std times noise."""

    stochastic = True
    shift: Tensor  # (D,), subtracted from a raw latent
    scale: Tensor  # (D,), multiplied then

    def __init__(self, spec: KLTokenizer, data: DataSpec):
        super().__init__()
        self.kl_weight = spec.kl_weight
        self.space = latent_space(spec, data)
        dim = spec.latent_dim
        self.encoder = encoder(data.channels, spec.width, spec.stride, 2 * dim)
        self.decoder = decoder(data.channels, spec.width, spec.stride, dim)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw mean and log variance, each (B, L, D)."""
        mean, log_variance = grid_to_tokens(self.encoder(images)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 10)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.moments(images)
        return {"mean": (mean - self.shift) * self.scale, "std": (0.5 * log_variance).exp() * self.scale}

    def _decode_raw(self, latents: Tensor) -> Tensor:
        return self.decoder(tokens_to_grid(latents, self.space.grid))

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return self._decode_raw(tokens / self.scale + self.shift).clamp(-1, 1)

    def training_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error per pixel plus ``kl_weight`` times the mean KL per latent value (nats)."""
        mean, log_variance = self.moments(images)
        reconstruction = self._decode_raw(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return F.mse_loss(reconstruction, images) + self.kl_weight * kl.mean()

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """Per channel: sampled latents of the training images get mean 0 and std 1."""
        mean, log_variance = self.moments(images)
        mean, variance = mean.flatten(0, 1), log_variance.exp().flatten(0, 1)
        self.shift.copy_(mean.mean(0))
        self.scale.copy_((mean.var(0) + variance.mean(0)).rsqrt())
