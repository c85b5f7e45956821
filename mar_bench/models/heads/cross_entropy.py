"""Cross-entropy head: a linear classifier over the codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mar_bench.config.spec import CrossEntropyHead, Discrete, SamplingSpec
from mar_bench.models.heads.layers import invert
from mar_bench.utils.noise import NoiseSource


class CrossEntropy(nn.Module):
    """Mean cross-entropy, no label smoothing; guidance acts on the logits. Temperature divides the logits."""

    def __init__(self, spec: CrossEntropyHead, space: Discrete, dim: int):
        super().__init__()
        self.classifier = nn.Linear(dim, space.vocab_size)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def draw_training(self, noise: NoiseSource, step: int, length: int) -> dict[str, torch.Tensor]:
        return {}

    def loss(self, z: torch.Tensor, target: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        """z (B, n, E), codes (B, n) -> negative log-likelihood (B, n) in nats."""
        return F.cross_entropy(self.classifier(z).transpose(1, 2).float(), target, reduction="none")

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> torch.Tensor:
        """One uniform number a token, (B, n)."""
        return noise.uniform("sample", step, (n,))

    def sample(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Codes (B, n) by inverting the distribution function at ``drawn``; no top-k."""
        return self._draw(self._logits(z, guidance_scale, z_uncond), drawn, sampling)

    def sample_with_log_probability(
        self,
        z: torch.Tensor,
        drawn: torch.Tensor,
        sampling: SamplingSpec,
        guidance_scale: float = 1.0,
        z_uncond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``sample`` draws, and the log-probabilities (B, n) of it in nats, which confidence order compares.

        They are of the guided logits before temperature: the nearer it is to 0 the surer every drawn token would
        look, and at 0 there would be nothing to compare."""
        logits = self._logits(z, guidance_scale, z_uncond)
        codes = self._draw(logits, drawn, sampling)
        return codes, logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]

    def _logits(self, z: torch.Tensor, guidance_scale: float, z_uncond: torch.Tensor | None) -> torch.Tensor:
        """(B, n, V) in float32, guided."""
        logits = self.classifier(z).float()
        if z_uncond is None:
            return logits
        uncond = self.classifier(z_uncond).float()
        return uncond + guidance_scale * (logits - uncond)

    def _draw(self, logits: torch.Tensor, drawn: torch.Tensor, sampling: SamplingSpec) -> torch.Tensor:
        return invert((logits / sampling.temperature).softmax(-1), drawn)
