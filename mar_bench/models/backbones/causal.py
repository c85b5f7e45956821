"""The causal backbone: a GPT-style decoder along the order, with teacher forcing and a kv-cache.

Paper, section 3.3 and appendix B, which leave two choices open [ours]: as many class tokens in front as in the masked
backbone, and the last of them predicts the first token, so that both backbones match in parameters and FLOPs. In random
order an input needs to know the position that it predicts, so the embedding of the target's position is added."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import CausalBackbone, TokenSpace, num_tokens
from mar_bench.models.backbones.base import Backbone
from mar_bench.models.backbones.layers import ClassEmbedding, KVCache, blocks_of, initialise, token_embedding
from mar_bench.models.orders import gather


class CausalDecoder(Backbone):
    """Condition z for the next token of the order, after the class tokens and each known token."""

    def __init__(self, spec: CausalBackbone, space: TokenSpace, num_classes: int):
        super().__init__()
        length, dim, front = num_tokens(space), spec.dim, spec.num_class_tokens
        self.num_class_tokens, self.dim = front, dim
        self.class_embedding = ClassEmbedding(num_classes, dim)
        self.token_embedding = token_embedding(space, dim)
        self.positions = nn.Parameter(torch.empty(1, front + length, dim))
        self.target_positions = nn.Parameter(torch.empty(1, length, dim))
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = blocks_of(spec, spec.depth)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_positions = nn.Parameter(torch.empty(1, length, dim))
        initialise(self, spec.init_std)

    def num_known(self, u: float, length: int) -> int:
        """Teacher forcing: every token is a target."""
        return 0

    def new_cache(self) -> list[KVCache]:
        return [KVCache(self.positions.shape[1]) for _ in self.blocks]

    def _inputs(self, known: Tensor, labels: Tensor, order: Tensor) -> Tensor:
        """Class tokens and the k known tokens (B, C + k, E), with embeddings of own and target position.

        The last class token predicts order[:, 0]; token i predicts order[:, i + 1]."""
        k = known.shape[1]
        own = gather(self.positions, order[:, :k] + self.num_class_tokens)
        front = self.class_embedding(labels)[:, None] + self.positions[:, : self.num_class_tokens]
        x = torch.cat([front, self.token_embedding(known) + own], dim=1)
        targets = gather(self.target_positions, order[:, : k + 1])
        return self.input_norm(x + F.pad(targets, (0, 0, self.num_class_tokens - 1, 0)))

    def _run(self, x: Tensor, cache: list[KVCache] | None, targets: Tensor) -> Tensor:
        """Inputs -> z (B, n, E) at the last n of them, which predict the positions ``targets`` (B, n)."""
        for i, block in enumerate(self.blocks):
            x = block(x, causal=True, cache=cache[i] if cache is not None else None)
        x = self.norm(x[:, -targets.shape[1] :])
        return x + gather(self.head_positions, targets)

    def predict(
        self, known: Tensor, labels: Tensor, order: Tensor, n: int = 1, cache: list[KVCache] | None = None
    ) -> Tensor:
        """z (B, 1, E) for order[:, k]; with a cache, only inputs that it has not seen are computed."""
        assert n == 1, "causal attention draws one token per step"
        k = known.shape[1]
        x = self._inputs(known, labels, order)
        if cache is not None:
            x = x[:, cache[0].seen :]
        return self._run(x, cache, order[:, k : k + 1])

    def forward(self, tokens: Tensor, labels: Tensor, order: Tensor, num_known: int = 0) -> Tensor:
        """z (B, L, E): every position from the tokens before it (teacher forcing)."""
        assert num_known == 0
        return self._run(self._inputs(tokens[:, :-1], labels, order), None, order)

    def conditions(self, tokens: Tensor, labels: Tensor, order: Tensor, places: Tensor) -> Tensor:
        """One teacher-forced pass has them all."""
        return gather(self(tokens, labels, order), places)
