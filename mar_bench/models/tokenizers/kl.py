"""A KL-regularised autoencoder: continuous tokens with unit scale (after Kingma and Welling; LDM's KL-f)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mar_bench.config.spec import Continuous, DataSpec, KLTokenizer, latent_space
from mar_bench.models.tokenizers.base import Tokenizer, decoder, encoder, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class KLAutoencoder(Tokenizer):
    """Tokens are the latent's normalised mean, plus its normalised deviation times noise in training."""

    stochastic = True

    def __init__(self, spec: KLTokenizer, data: DataSpec):
        super().__init__()
        self.kl_weight = spec.kl_weight
        self.space: Continuous = latent_space(spec, data)
        dim = spec.latent_dim
        self.encoder = encoder(data.channels, spec.width, spec.stride, 2 * dim)
        self.decoder = decoder(data.channels, spec.width, spec.stride, dim)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw mean and log variance, each (B, L, D)."""
        mean, log_variance = grid_to_tokens(self.encoder(images)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 10)

    def stored(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, log_variance = self.moments(images)
        return {"mean": (mean - self.shift) * self.scale, "std": (0.5 * log_variance).exp() * self.scale}

    @staticmethod
    def tokens_of(stored: dict[str, torch.Tensor], noise: torch.Tensor | None) -> torch.Tensor:
        return stored["mean"] if noise is None else stored["mean"] + stored["std"] * noise

    def _decode_raw(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(tokens_to_grid(latents, self.space.grid))

    def decode(self, tokens: torch.Tensor, noise: NoiseSource | None = None) -> torch.Tensor:
        return self._decode_raw(tokens / self.scale + self.shift).clamp(-1, 1)

    def training_loss(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mean squared error a pixel plus ``kl_weight`` times the mean KL a latent value (nats)."""
        mean, log_variance = self.moments(images)
        reconstruction = self._decode_raw(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return F.mse_loss(reconstruction, images) + self.kl_weight * kl.mean()

    @torch.no_grad()
    def fit_scale(self, images: torch.Tensor) -> None:
        """Per channel, so that sampled latents of the training images have mean 0 and deviation 1."""
        mean, log_variance = self.moments(images)
        mean, variance = mean.flatten(0, 1), log_variance.exp().flatten(0, 1)
        self.shift.copy_(mean.mean(0))
        self.scale.copy_((mean.var(0) + variance.mean(0)).rsqrt())
