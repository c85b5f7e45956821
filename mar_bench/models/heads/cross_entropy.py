"""Cross-entropy head: a linear classifier over the codes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import CrossEntropyHead, Discrete, SamplingSpec
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
        logits = self.predict_guided(z, drawn, sampling, scale, z_uncond)
        return invert((logits / sampling.temperature).softmax(-1), drawn)

    def sample_with_log_probability(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, n) as ``sample`` draws them, and their log-probabilities (B, n) in nats.

        The log-probabilities are those of the guided logits before temperature: a low temperature would make every
        drawn token look certain and leave confidence order nothing to compare."""
        logits = self.predict_guided(z, drawn, sampling, scale, z_uncond)
        codes = invert((logits / sampling.temperature).softmax(-1), drawn)
        return codes, logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
