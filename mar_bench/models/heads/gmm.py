"""Gaussian-mixture head: one linear layer gives the mixture from which a token is drawn (GIVT, 2312.02116)."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import nn

from mar_bench.config.spec import Continuous, GaussianMixtureHead, SamplingSpec
from mar_bench.models.heads.layers import invert
from mar_bench.utils.noise import NoiseSource

SMALLEST_SCALE = 1e-6  # of a component, in token units (GIVT)
INITIAL_SPREAD = 0.5  # [ours] deviation of the components' means before training; tokens have about 1
CANDIDATES = 64  # [ours] R: of so many tokens guidance takes one; more come nearer to the guided density


class Mixture(NamedTuple):
    """k diagonal Gaussians; leading shapes are those of z."""

    log_weights: torch.Tensor  # (..., k), normalised
    means: torch.Tensor  # (..., k, D)
    scales: torch.Tensor  # (..., k, D), standard deviations

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., D) -> (...) in nats, summed over the D dimensions; leading shapes broadcast."""
        standard = (x[..., None, :] - self.means) / self.scales
        each = -(0.5 * standard.square() + self.scales.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return (self.log_weights + each).logsumexp(-1)

    def draw(self, normals: torch.Tensor) -> torch.Tensor:
        """Normals (..., 1 + D) -> x (..., D): the first number chooses the component, the others the place in it."""
        component = invert(self.log_weights.exp(), as_uniform(normals[..., 0]))[..., None, None]
        mean, scale = (torch.take_along_dim(part, component, -2)[..., 0, :] for part in (self.means, self.scales))
        return mean + scale * normals[..., 1:]

    def for_candidates(self) -> Mixture:
        """The same mixture for each of several tokens that stand in a new axis behind z's: (B, n, 1, ...)."""
        return Mixture(*(part[:, :, None] for part in self))


def as_uniform(normal: torch.Tensor) -> torch.Tensor:
    """The normal distribution function, kept below 1 in float32."""
    return torch.special.ndtr(normal).clamp(max=1 - 2**-24)


def _all_digits(device: torch.device) -> contextlib.AbstractContextManager:
    """No autocast inside, where the device (not meta) knows of any."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def squareplus(x: torch.Tensor) -> torch.Tensor:
    """A smooth and positive (x + sqrt(x^2 + 4)) / 2: 1 at 0, x far above, -1 / x far below."""
    return (x + (x.square() + 4).sqrt()) / 2


class GaussianMixture(nn.Module):
    """Negative log-likelihood; guidance acts on the densities. Temperature multiplies the standard deviations."""

    def __init__(self, spec: GaussianMixtureHead, space: Continuous, dim: int):
        super().__init__()
        self.components, self.token_dim = spec.num_components, space.dim
        each = self.components * self.token_dim
        self.sizes = [self.components, each, each]  # logits, means, scales before squareplus
        self.output = nn.Linear(dim, sum(self.sizes))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        # With zeros alone (GIVT) all components are equal, get equal gradients and stay equal: one Gaussian. Their
        # means start apart, each with the tokens nearest to it to explain.
        with torch.no_grad():
            nn.init.normal_(self.output.bias[self.components : self.components + each], std=INITIAL_SPREAD)

    def mixture(self, z: torch.Tensor, temperature: float = 1.0) -> Mixture:
        """z (..., E) -> the distribution of its token, in float32."""
        with _all_digits(z.device):  # which a likelihood with scales down to 1e-6 needs
            logits, means, scales = self.output(z.float()).split(self.sizes, dim=-1)
        means, scales = (part.unflatten(-1, (self.components, self.token_dim)) for part in (means, scales))
        return Mixture(logits.log_softmax(-1), means, temperature * squareplus(scales).clamp(min=SMALLEST_SCALE))

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        return {}

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), tokens (B, n, D) -> negative log-likelihood of the token (B, n) in nats, summed over D.

        A density can be above 1, so the loss can be below 0."""
        return -self.mixture(z).log_density(target)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """One block of normals an image, (B, 1, n, 1 + D), or (B, R + 1, n, 1 + D) under guidance.

        Row 0 draws the token that there is without guidance, whether there is guidance or not; rows 1 to R - 1 draw
        the other candidates, and the first number of row R chooses among all."""
        size = 1 + self.token_dim
        own = noise.normal("sample", step, (1, n, size))
        if sampling.guidance_scale == 1:
            return own
        return torch.cat([own, noise.normal("candidates", step, (CANDIDATES, n, size))], dim=1)

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z (B, n, E) -> tokens (B, n, D). Under guidance from about p_u (p_c / p_u)^w (GIVT), p_c and p_u being the
        two mixtures at the given temperature.

        GIVT draws by rejection; here the number of draws is fixed: of R tokens from p_c one is taken with the odds
        (p_c / p_u)^(w - 1) (sampling-importance-resampling). So a token never lies farther out than what R draws from
        p_c come upon, and no harm is done where the guided density has no integral (p_u narrower than p_c).
        Memory: the densities of all candidates, (B, n, R, k, D)."""
        rows = drawn.transpose(1, 2)  # (B, n, 1 or R + 1, 1 + D)
        conditional = self.mixture(z, sampling.temperature)
        if z_uncond is None or guidance_scale == 1:
            return conditional.draw(rows[:, :, 0])
        unconditional = self.mixture(z_uncond, sampling.temperature)
        if guidance_scale == 0:  # a mixture again: nothing to resample
            return unconditional.draw(rows[:, :, 0])
        conditional, unconditional = conditional.for_candidates(), unconditional.for_candidates()
        candidates = conditional.draw(rows[:, :, :-1])  # (B, n, R, D)
        ratio = conditional.log_density(candidates) - unconditional.log_density(candidates)  # (B, n, R)
        chosen = _resample((guidance_scale - 1) * ratio, as_uniform(rows[:, :, -1, 0]))
        return torch.take_along_dim(candidates, chosen[..., None, None], -2)[..., 0, :]


def _resample(log_odds: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Log odds (B, n, R), uniforms (B, n) -> which candidate (B, n), by inverting the cumulative odds.

    They are listed so that candidate 0 stands where even odds have u: the nearer the odds are to even (w to 1), the
    more often the token stays what it is without guidance. Any list would do, as u knows nothing of the candidates."""
    count = log_odds.shape[-1]
    place = (u * count).long()[..., None]
    listing = (torch.arange(count, device=u.device) - place) % count  # (B, n, R)
    at = invert(log_odds.gather(-1, listing).softmax(-1), u)
    return listing.gather(-1, at[..., None])[..., 0]
