"""Energy head: the head's MLP turns noise into a token in one step, trained by the energy score (EAR, 2505.07812).

z is the MLP's input and noise its condition, as in EAR's code. The other way round temperature does not work: layer
norms take the scale of an input away, and samples of a trained head at temperature 0.5 spread as wide as at 1.
[ours], to be as the other heads here: normal noise (EAR: uniform), guidance of tokens (there of z), a temperature of
the noise (there of the blocks' shifts), and no last training at another temperature."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.config.spec import Continuous, EnergyHead, SamplingSpec
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.utils.noise import NoiseSource


def energy_score(samples: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Samples (..., S, D) of a distribution, S >= 2, what was observed (..., D) -> energy score (...), exponent 1.

    mean_i |x_i - y| - 1/2 mean_{i != j} |x_i - x_j|, Euclidean: an unbiased estimate of E|X - y| - 1/2 E|X - X'|, which
    is strictly proper: in expectation over y only the true distribution has the least (Gneiting and Raftery, 2007).
    EAR's loss, of two samples, is twice this."""
    # torch's norm has the gradient 0 at 0, where two samples are equal or one is the target, instead of 0 / 0
    near = torch.linalg.vector_norm(samples - target[..., None, :], dim=-1).mean(-1)
    i, j = torch.triu_indices(samples.shape[-2], samples.shape[-2], 1, device=samples.device)  # each pair once
    apart = torch.linalg.vector_norm(samples[..., i, :] - samples[..., j, :], dim=-1).mean(-1)
    return near - apart / 2


class Energy(nn.Module):
    """Energy score; guidance acts on the tokens that share their noise. Temperature multiplies the noise."""

    def __init__(self, spec: EnergyHead, space: Continuous, dim: int):
        super().__init__()
        self.spec = spec
        # Modulations and output do not start at zero: then all samples of a token would be equal, where nothing drives
        # them apart. The score would first fit one point, and noise get in only through what that does to the weights.
        self.net = AdaLNMLP(dim, space.dim, spec.noise_dim, spec.width, spec.depth, timed=False, zero_start=False)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        """For each token the noise of S = samples_per_token samples, (B, L, S, noise_dim)."""
        return {"noise": noise.normal("energy", step, (length, self.spec.samples_per_token, self.spec.noise_dim))}

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), tokens (B, n, D), noise (B, n, S, noise_dim) -> energy score (B, n), a distance of tokens."""
        noise = drawn["noise"]
        z = z[:, :, None].expand(*noise.shape[:3], -1)
        return energy_score(self._tokens(z, noise), target)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """The noise of each token, (B, n, noise_dim)."""
        return noise.normal("sample", step, (n, self.spec.noise_dim))

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """z (B, n, E) -> tokens (B, n, D) in one pass; both halves of guidance share the noise."""
        noise = sampling.temperature * drawn
        tokens = self._tokens(z, noise)
        if z_uncond is None:
            return tokens
        uncond = self._tokens(z_uncond, noise)
        return uncond + guidance_scale * (tokens - uncond)

    def _tokens(self, z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z (..., E), noise (..., noise_dim) -> tokens (..., D) in float32."""
        return self.net(z, None, noise).float()
