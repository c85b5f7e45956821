"""Gaussian-mixture head: one linear layer predicts the mixture that a token is drawn from (GIVT, 2312.02116)."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mar_bench.config.spec import Continuous, GaussianMixtureHead, SamplingSpec
from mar_bench.models.finite import finite
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import invert
from mar_bench.utils.noise import NoiseSource

SMALLEST_SCALE = 1e-6  # of a component, in token units (GIVT)
INITIAL_SPREAD = 0.5  # [ours] std of the components' means at initialisation; tokens have about 1
CANDIDATES = 64  # [ours] R: guidance resamples among this many; more approximate the guided density better


class Mixture(NamedTuple):
    """k diagonal Gaussians; leading shapes are those of z."""

    log_weights: Tensor  # (..., k), normalised
    means: Tensor  # (..., k, D)
    scales: Tensor  # (..., k, D), std

    def log_density(self, x: Tensor) -> Tensor:
        """x (..., D) -> (...) in nats, summed over the D dimensions; leading shapes broadcast."""
        standard = (x[..., None, :] - self.means) / self.scales
        each = -(0.5 * standard.square() + self.scales.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return (self.log_weights + each).logsumexp(-1)

    def draw(self, normals: Tensor) -> Tensor:
        """Normals (..., 1 + D) -> x (..., D): the first number picks the component, the others the value in it."""
        component = invert(self.log_weights.exp(), as_uniform(normals[..., 0]))[..., None, None]
        mean, scale = (torch.take_along_dim(part, component, -2)[..., 0, :] for part in (self.means, self.scales))
        return mean + scale * normals[..., 1:]


def as_uniform(normal: Tensor) -> Tensor:
    """The standard normal cdf, kept below 1 in float32."""
    return torch.special.ndtr(normal).clamp(max=1 - 2**-24)


def squareplus(x: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4)) / 2: smooth and positive; 1 at 0, about x for large x, about -1 / x for very negative x."""
    return (x + (x.square() + 4).sqrt()) / 2


class GaussianMixture(Head):
    """Negative log-likelihood; guidance acts on the densities. Temperature multiplies the std of the components."""

    autocasts = False

    def __init__(self, spec: GaussianMixtureHead, space: Continuous, dim: int):
        super().__init__()
        self.components, self.token_dim = spec.num_components, space.dim
        each = self.components * self.token_dim
        self.sizes = [self.components, each, each]  # logits, means, scales before squareplus
        self.output = nn.Linear(dim, sum(self.sizes))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        # Initialised to zero (GIVT), the components would stay equal, a single Gaussian; so their means differ.
        with torch.no_grad():
            nn.init.normal_(self.output.bias.split(self.sizes)[1], std=INITIAL_SPREAD)

    def mixture(self, z: Tensor, temperature: float = 1.0) -> Mixture:
        """z (..., E) -> the distribution of the token, in float32."""
        device = z.device.type  # meta has no autocast
        autocast = torch.amp.is_autocast_available(device)
        # a likelihood with scales down to 1e-6 needs full precision
        with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
            parameters = finite(self.output(z.float()), "mixture parameters")
        logits, means, scales = parameters.split(self.sizes, dim=-1)
        means, scales = (part.unflatten(-1, (self.components, self.token_dim)) for part in (means, scales))
        return Mixture(logits.log_softmax(-1), means, temperature * squareplus(scales).clamp(min=SMALLEST_SCALE))

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D) -> negative log-likelihood (B, n) in nats, summed over D; can be below 0."""
        return -self.mixture(z).log_density(target)

    def log_likelihood(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Exact."""
        return -self.loss(z, target, drawn)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """Normals (B, 1, n, 1 + D), or (B, R + 1, n, 1 + D) under guidance: row 0 draws the token without guidance,
        rows 1 to R - 1 the other candidates, and the first number of row R picks one of all R."""
        own = noise.normal("sample", step, (1, n, 1 + self.token_dim))
        if sampling.guidance_scale == 1:
            return own
        return torch.cat([own, noise.normal("candidates", step, (CANDIDATES, n, 1 + self.token_dim))], dim=1)

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D); under guidance approximately from p_u (p_c / p_u)^w (GIVT), where p_c and
        p_u are the two mixtures at the given temperature. Memory: all candidates' densities, (B, n, R, k, D).

        GIVT uses rejection sampling; here one of R tokens from p_c is picked with odds (p_c / p_u)^(w - 1)
        (sampling-importance-resampling), which stays in range even if the guided density is not normalisable."""
        rows = drawn.transpose(1, 2)  # (B, n, 1 or R + 1, 1 + D)
        if z_uncond is None or scale in (0, 1):  # a mixture again: nothing to resample
            z = z_uncond if z_uncond is not None and scale == 0 else z
            return self.mixture(z, sampling.temperature).draw(rows[:, :, 0])
        conditional, unconditional = (
            Mixture(*(part[:, :, None] for part in self.mixture(condition, sampling.temperature)))
            for condition in (z, z_uncond)
        )  # each (B, n, 1, ...)
        candidates = conditional.draw(rows[:, :, :-1])  # (B, n, R, D)
        ratio = conditional.log_density(candidates) - unconditional.log_density(candidates)  # (B, n, R)
        log_odds = finite((scale - 1) * ratio, "log odds of candidates")
        chosen = _resample(log_odds, as_uniform(rows[:, :, -1, 0]))
        return torch.take_along_dim(candidates, chosen[..., None, None], -2)[..., 0, :]


def _resample(log_odds: Tensor, u: Tensor) -> Tensor:
    """Log odds (B, n, R), uniforms (B, n) -> index of the candidate (B, n), by inverting the cumulative odds.

    The list starts such that equal odds pick candidate 0: the closer w is to 1, the more often the token equals the
    unguided one. Any order is valid, as u is independent of the candidates."""
    count = log_odds.shape[-1]
    place = (u * count).long()[..., None]
    listing = (torch.arange(count, device=u.device) - place) % count  # (B, n, R)
    at = invert(log_odds.gather(-1, listing).softmax(-1), u)
    return listing.gather(-1, at[..., None])[..., 0]
