"""Parts shared by the backbones: transformer blocks with an optional kv-cache, token and class embeddings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import CausalBackbone, Discrete, MaskedBackbone, TokenSpace

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class KVCache:
    """Keys and values of one attention layer for the ``seen`` inputs so far, in buffers for ``capacity`` of them."""

    def __init__(self, capacity: int):
        self.capacity, self.seen = capacity, 0

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, (B, H, seen, E / H), after adding those of n more inputs, (B, H, n, E / H)."""
        if not self.seen:
            self.keys, self.values = (x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (keys, values))
        new = slice(self.seen, self.seen + keys.shape[2])
        self.keys[:, :, new], self.values[:, :, new] = keys, values
        self.seen = new.stop
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]


class Attention(nn.Module):
    """Multi-head self-attention; with ``causal`` an input sees only itself and earlier ones."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, causal: bool = False, cache: KVCache | None = None, asked: slice | None = None
    ) -> Tensor:
        """Inputs (B, n, E) -> outputs of the ``asked`` inputs, by default all."""
        batch, length, dim = x.shape
        q, k, v = self._heads(x) if asked is None else self._heads_of(x, asked)  # each (B, H, n, E / H)
        attend = None
        if cache is not None:
            k, v = cache.extended(k, v)
            if causal and length > 1:
                past = k.shape[2] - length
                attend = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(diagonal=past)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attend, dropout, is_causal=causal and cache is None)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._by_head(self.qkv(x).chunk(3, dim=-1))  # in training faster than a permuted (3, B, H, n, E / H)

    def _heads_of(self, x: Tensor, asked: slice) -> tuple[Tensor, ...]:
        """Queries of the asked inputs alone."""
        parts = self.qkv.weight.tensor_split(3), self.qkv.bias.tensor_split(3)
        inputs = x[:, asked], x, x
        return self._by_head(F.linear(x, weight, bias) for x, weight, bias in zip(inputs, *parts))

    def _by_head(self, parts: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """(B, n, E) -> (B, H, n, E / H) each."""
        return tuple(part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)


def mlp(dim: int, hidden: int, activation: nn.Module, dropout: float = 0.0) -> nn.Sequential:
    """The MLP of a transformer block."""
    first, second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    parts = {"fc1": first, "act": activation, "drop1": nn.Dropout(dropout), "fc2": second, "drop2": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(parts))


class Block(nn.Module):
    """Pre-norm transformer block, as in ViT."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, activation: str, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp(dim, int(dim * mlp_ratio), ACTIVATIONS[activation](), dropout)

    def forward(
        self, x: Tensor, causal: bool = False, cache: KVCache | None = None, asked: slice | None = None
    ) -> Tensor:
        seen = self.attn(self.norm1(x), causal, cache, asked)
        x = (x if asked is None else x[:, asked]) + seen
        return x + self.mlp(self.norm2(x))


def blocks_of(spec: MaskedBackbone | CausalBackbone, depth: int) -> nn.ModuleList:
    return nn.ModuleList(
        Block(spec.dim, spec.num_heads, spec.mlp_ratio, spec.activation, spec.dropout) for _ in range(depth)
    )


class ClassEmbedding(nn.Module):
    """Labels (B,) -> (B, E); the label -1, "no class", has its own embedding."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, dim)
        self.no_class = nn.Parameter(torch.zeros(1, dim))

    def forward(self, labels: Tensor) -> Tensor:
        return torch.where((labels < 0)[:, None], self.no_class, self.embedding(labels.clamp(min=0)))


def token_embedding(space: TokenSpace, dim: int) -> nn.Module:
    """Tokens -> (B, n, E): a lookup table for codes, a linear layer for vectors."""
    return nn.Embedding(space.vocab_size, dim) if isinstance(space, Discrete) else nn.Linear(space.dim, dim)


def initialise(module: nn.Module, init_std: float) -> None:
    """Linear layers Xavier-uniform, embeddings and free parameters normal with std ``init_std``; norms unchanged."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif not isinstance(part, nn.LayerNorm):
            for parameter in part.parameters(recurse=False):
                nn.init.normal_(parameter, std=init_std)
