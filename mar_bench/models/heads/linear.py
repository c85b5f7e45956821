"""Heads of one linear layer: cross-entropy over codes, and squared error (paper, appendix D.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import Continuous, CrossEntropyHead, Discrete, MSEHead, SamplingSpec
from mar_bench.models.finite import finite
from mar_bench.models.heads.base import Head
from mar_bench.models.heads.layers import invert
from mar_bench.utils.noise import NoiseSource


class CrossEntropy(Head):
    """Mean cross-entropy without label smoothing; guidance acts on the logits. Temperature divides the logits."""

    def __init__(self, spec: CrossEntropyHead, space: Discrete, dim: int):
        super().__init__()
        self.classifier = nn.Linear(dim, space.vocab_size)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), codes (B, n) -> negative log-likelihood (B, n) in nats."""
        return F.cross_entropy(self.classifier(z).float().transpose(1, 2), target, reduction="none")

    def log_likelihood(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Exact."""
        return -self.loss(z, target, drawn)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """One uniform number per token, (B, n)."""
        return noise.uniform("sample", step, (n,))

    def predict(self, z: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        """The logits (B, n, V) in float32."""
        return self.classifier(z).float()

    def sample(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        """Codes (B, n) by inverting the cumulative distribution at ``drawn``; no top-k."""
        return self._drawn(self.predict_guided(z, drawn, sampling, scale, z_uncond), drawn, sampling)

    @staticmethod
    def _drawn(logits: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        return invert(finite(logits / sampling.temperature, "logits / temperature").softmax(-1), drawn)

    def sample_with_log_probability(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, n) as ``sample`` draws them, and their log-probabilities (B, n) in nats.

        These come from the guided logits before temperature: a low temperature would make every drawn token look
        certain, and confidence order could not tell tokens apart."""
        logits = self.predict_guided(z, drawn, sampling, scale, z_uncond)
        codes = self._drawn(logits, drawn, sampling)
        return codes, logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]


class MSE(Head):
    """Mean squared error; guidance acts on the predictions. Temperature has no effect: nothing is drawn.

    It models no distribution: its optimum is the mean of all possible tokens, and in raster order all samples of a
    class are the same image. The paper reports an FID above 100."""

    def __init__(self, spec: MSEHead, space: Continuous, dim: int):
        super().__init__()
        self.output = nn.Linear(dim, space.dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def loss(self, z: Tensor, target: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """z (B, n, E), tokens (B, n, D) -> squared error (B, n), mean over D."""
        return (self.output(z).float() - target).square().mean(-1)

    def draw_sampling(self, noise: NoiseSource, step: int, n: int, sampling: SamplingSpec) -> Tensor:
        """No random numbers, (B, n, 0)."""
        return torch.empty(len(noise.indices), n, 0)

    def predict(self, z: Tensor, drawn: Tensor, sampling: SamplingSpec) -> Tensor:
        return self.output(z).float()
