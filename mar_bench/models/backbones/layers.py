"""What both backbones are made of: transformer blocks with an optional kv-cache, token and class embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from mar_bench.config.spec import Discrete, TokenSpace

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class KVCache:
    """Keys and values of one attention layer for the inputs seen so far, each (B, H, n, E / H)."""

    def __init__(self):
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Attention(nn.Module):
    """Multi-head self-attention; with ``causal`` an input looks at itself and at what came before it."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, causal: bool, cache: KVCache | None) -> torch.Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, n, E / H)
        attend = None
        if cache is not None:
            k, v = cache.append(k, v)
            if causal and length > 1:
                past = k.shape[2] - length
                attend = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device).tril(diagonal=past)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attend,
            is_causal=causal and cache is None,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, length, dim)))


class Block(nn.Module):
    """Pre-norm transformer block (ViT's)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, activation: str, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=ACTIVATIONS[activation], drop=dropout)

    def forward(self, x: torch.Tensor, causal: bool = False, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), causal, cache)
        return x + self.mlp(self.norm2(x))


class ClassEmbedding(nn.Module):
    """Labels (B,) -> (B, E); the label -1 stands for "no class" and has an embedding of its own."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, dim)
        self.no_class = nn.Parameter(torch.zeros(1, dim))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.where((labels < 0)[:, None], self.no_class, self.embedding(labels.clamp(min=0)))


def token_embedding(space: TokenSpace, dim: int) -> nn.Module:
    """Tokens -> (B, n, E): a table for codes, a linear map for vectors."""
    if isinstance(space, Discrete):
        return nn.Embedding(space.vocab_size, dim)
    return nn.Linear(space.dim, dim)


def initialise(module: nn.Module, init_std: float) -> None:
    """Linear layers Xavier-uniform, norms at identity, embeddings and free parameters normal(init_std)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            if part.elementwise_affine:
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=init_std)
        for parameter in part.parameters(recurse=False):
            if not isinstance(part, (nn.Linear, nn.LayerNorm, nn.Embedding)):
                nn.init.normal_(parameter, std=init_std)
