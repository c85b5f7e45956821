"""Small convolutional autoencoders that are trained here: KL-regularised and vector-quantised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import DataSpec, KLTokenizer, VQTokenizer, latent_space
from mar_bench.models.finite import clipped
from mar_bench.models.tokenizers.base import Tokenizer, check_codable, grid_to_tokens, tokens_to_grid
from mar_bench.utils.noise import NoiseSource


class ResidualConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


def encoder(channels: int, width: int, stride: int, out: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, out, H / stride, W / stride), with a stride-2 convolution per halving."""
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


class Autoencoder(Tokenizer):
    """An encoder with ``out`` channels, a decoder of latents (B, L, dim), and a shift and scale for each dimension."""

    shift: Tensor  # (D,), subtracted from a raw latent
    scale: Tensor  # (D,), then multiplied with the result

    def __init__(self, spec: KLTokenizer | VQTokenizer, data: DataSpec, dim: int, out: int):
        super().__init__()
        self.space = latent_space(spec, data)
        self.encoder = encoder(data.channels, spec.width, spec.stride, out)
        self.decoder = decoder(data.channels, spec.width, spec.stride, dim)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Raw latents (B, L, D) -> images (B, C, H, W), not clipped."""
        return self.decoder(tokens_to_grid(latents, self.space.grid))


class KLAutoencoder(Autoencoder):
    """KL-regularised (1312.6114; LDM's KL-f, 2112.10752); tokens have unit scale.

    A token is the normalised mean of the latent; in training its normalised std times noise is added."""

    stochastic = True

    def __init__(self, spec: KLTokenizer, data: DataSpec):
        super().__init__(spec, data, spec.latent_dim, 2 * spec.latent_dim)
        self.kl_weight = spec.kl_weight

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw mean and log variance, each (B, L, D)."""
        mean, log_variance = grid_to_tokens(self.encoder(images)).chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 10)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.moments(images)
        return {"mean": (mean - self.shift) * self.scale, "std": (0.5 * log_variance).exp() * self.scale}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        return clipped(self.decode_raw(tokens / self.scale + self.shift))

    def training_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error per pixel plus ``kl_weight`` times the mean KL per latent value (nats)."""
        mean, log_variance = self.moments(images)
        reconstruction = self.decode_raw(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return F.mse_loss(reconstruction, images) + self.kl_weight * kl.mean()

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """Per channel: sampled latents of the training images get mean 0 and std 1."""
        mean, log_variance = self.moments(images)
        mean, variance = mean.flatten(0, 1), log_variance.exp().flatten(0, 1)
        self.shift.copy_(mean.mean(0))
        self.scale.copy_((mean.var(0) + variance.mean(0)).rsqrt())


class VQAutoencoder(Autoencoder):
    """Vector-quantised (1711.00937; LDM's VQ-f, 2112.10752): tokens are codes, or latents before quantisation.

    The codebook is a moving average, initialised by k-means; dead codes are replaced by vectors of the batch."""

    def __init__(self, spec: VQTokenizer, data: DataSpec):
        from vector_quantize_pytorch import VectorQuantize

        super().__init__(spec, data, spec.code_dim, spec.code_dim)
        self.codes = spec.output == "codes"
        codebook = {"codebook_size": spec.vocab_size, "kmeans_init": True, "threshold_ema_dead_code": 1}
        training = {"decay": spec.codebook_decay, "commitment_weight": spec.commitment_weight}
        # one rank trains it; the library would average the codebook with the others, which wait elsewhere
        self.quantiser = VectorQuantize(dim=spec.code_dim, sync_codebook=False, **codebook, **training)

    def stored(self, images: Tensor) -> dict[str, Tensor]:
        latents = grid_to_tokens(self.encoder(images))
        if not self.codes:
            return {"latents": (latents - self.shift) * self.scale}
        check_codable(latents)
        _, codes, _ = self.quantiser(latents, freeze_codebook=True)
        return {"codes": codes.int()}

    def decode(self, tokens: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Latents are quantised first, as in the decoder's training."""
        if self.codes:
            return clipped(self.decode_raw(self.quantiser.get_output_from_indices(tokens)))
        latents = self.quantiser(tokens / self.scale + self.shift, freeze_codebook=True)[0]
        return clipped(self.decode_raw(latents))

    def training_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error per pixel plus the weighted commitment loss; ``noise`` is not used."""
        latents, _, commitment = self.quantiser(grid_to_tokens(self.encoder(images)))
        return F.mse_loss(self.decode_raw(latents), images) + commitment.sum()

    @torch.no_grad()
    def fit_scale(self, images: Tensor) -> None:
        """Per channel: latents of the training images get mean 0 and std 1."""
        latents = grid_to_tokens(self.encoder(images)).flatten(0, 1)
        self.shift.copy_(latents.mean(0))
        self.scale.copy_(1 / latents.std(0))
