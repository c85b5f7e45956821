"""The masked backbone: an MAE-style encoder of the known tokens and a decoder of all positions.

Paper, section 3.4 and appendix B. Embeddings are arranged as in the official code: class tokens in front, learned
positions in the encoder, in the decoder, and again before the head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mar_bench.config.spec import MaskedBackbone, TokenSpace, num_tokens
from mar_bench.models.backbones.base import Backbone
from mar_bench.models.backbones.layers import ClassEmbedding, blocks_of, initialise, token_embedding
from mar_bench.models.orders import gather
from mar_bench.models.schedules import mask_ratio


class MaskedEncoderDecoder(Backbone):
    """Condition z for any number of unknown positions at once. Attention is bidirectional."""

    def __init__(self, spec: MaskedBackbone, space: TokenSpace, num_classes: int):
        super().__init__()
        length, dim, front = num_tokens(space), spec.dim, spec.num_class_tokens
        self.masking, self.num_class_tokens, self.dim = spec.masking, front, dim
        self.class_embedding = ClassEmbedding(num_classes, dim)
        self.token_embedding = token_embedding(space, dim)
        self.encoder_positions = nn.Parameter(torch.empty(1, front + length, dim))
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.encoder_blocks = blocks_of(spec, spec.encoder_depth)
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embedding = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.decoder_positions = nn.Parameter(torch.empty(1, front + length, dim))
        self.decoder_blocks = blocks_of(spec, spec.decoder_depth)
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_positions = nn.Parameter(torch.empty(1, length, dim))
        initialise(self, spec.init_std)

    def num_known(self, u: float, length: int) -> int:
        return length - max(1, math.ceil(length * mask_ratio(self.masking, u)))

    def new_cache(self) -> None:
        """None: every token sees every other, so each step recomputes everything."""
        return

    def encode(self, known: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        """Known tokens (B, k[, D]) at positions (B, k) -> (B, C + k, E), C class tokens first."""
        x = self.token_embedding(known) + gather(self.encoder_positions, positions + self.num_class_tokens)
        front = self.class_embedding(labels)[:, None] + self.encoder_positions[:, : self.num_class_tokens]
        x = self.input_norm(torch.cat([front, x], dim=1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, order: Tensor, n: int) -> Tensor:
        """Encoder output -> z (B, n, E) at the n positions of the order that follow the known ones."""
        known = encoded.shape[1] - self.num_class_tokens
        masks = self.mask_token.expand(order.shape[0], order.shape[1] - known, -1)
        x = torch.cat([self.decoder_embedding(encoded), masks], dim=1)  # class tokens, then the order
        front = self.decoder_positions[:, : self.num_class_tokens].expand(order.shape[0], -1, -1)
        x = x + torch.cat([front, gather(self.decoder_positions, order + self.num_class_tokens)], dim=1)
        asked = slice(self.num_class_tokens + known, self.num_class_tokens + known + n)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        # training asks for all masks, most of the inputs, and keeps the one product for queries, keys and values
        x = last(x, asked=asked) if n < masks.shape[1] else last(x)[:, asked]
        x = self.decoder_norm(x)
        return x + gather(self.head_positions, order[:, known : known + n])

    def predict(self, known: Tensor, labels: Tensor, order: Tensor, n: int = 1, cache: None = None) -> Tensor:
        return self.decode(self.encode(known, labels, order[:, : known.shape[1]]), order, n)

    def forward(self, tokens: Tensor, labels: Tensor, order: Tensor, num_known: int = 0) -> Tensor:
        return self.predict(tokens[:, :num_known], labels, order, order.shape[1] - num_known)
