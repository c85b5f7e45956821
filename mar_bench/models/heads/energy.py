"""Energy head: an MLP turns noise into a token in one step, trained with the energy score (EAR, 2505.07812).

z is the MLP's input and noise its condition, as in EAR's code. With the roles swapped, temperature would not work:
layer norm removes the scale of the input, so a trained head would draw equally wide samples at temperatures 0.5 and 1.
[ours], for consistency with the other heads: normal noise (EAR: uniform), guidance of the tokens (EAR: of z),
temperature scales the noise (EAR: the shifts of the blocks), and no final training phase at another temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from mar_bench.config.spec import Continuous, EnergyHead, SamplingSpec
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import AdaLNMLP
from mar_bench.utils.noise import NoiseSource


def energy_score(samples: Tensor, target: Tensor) -> Tensor:
    """Samples (..., S, D) of a distribution, S >= 2, and an observation (..., D) -> energy score (...), exponent 1.

    mean_i |x_i - y| - 1/2 mean_{i != j} |x_i - x_j|, Euclidean: an unbiased estimate of a strictly proper score, whose
    expectation is minimal only for the true distribution (Gneiting and Raftery, 2007). EAR's loss with two samples is
    twice this."""
    # torch's norm has gradient 0 at 0 (two equal samples, or a sample equal to the target) instead of 0 / 0
    near = torch.linalg.vector_norm(samples - target[..., None, :], dim=-1).mean(-1)
    i, j = torch.triu_indices(samples.shape[-2], samples.shape[-2], 1, device=samples.device)  # each pair once
    apart = torch.linalg.vector_norm(samples[..., i, :] - samples[..., j, :], dim=-1).mean(-1)
    return near - apart / 2


class Energy(Head):
    """Energy score; guidance acts on tokens drawn with the same noise. Temperature multiplies the noise."""

    def __init__(self, spec: EnergyHead, space: Continuous, dim: int):
        super().__init__()
        self.spec = spec
        # With an output of zero, all samples of a token would be equal until the weights have changed.
        self.net = AdaLNMLP(dim, space.dim, spec.noise_dim, spec.width, spec.depth, denoises=False)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, Tensor]:
        """The noise of S = samples_per_token samples per token, (B, L, S, noise_dim)."""
        return {"noise": noise.normal("energy", step, (length, self.spec.samples_per_token, self.spec.noise_dim))}

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D), noise (B, n, S, noise_dim) -> energy score (B, n), in token units."""
        noise = drawn["noise"]
        return energy_score(self.net(z[:, :, None].expand(*noise.shape[:3], -1), None, noise).float(), target)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """The noise of each token, (B, n, noise_dim)."""
        return noise.normal("sample", step, (n, self.spec.noise_dim))

    def predict(self, z: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        """z (B, n, E) -> tokens (B, n, D) in one pass."""
        return self.net(z, None, sampling.temperature * drawn).float()
