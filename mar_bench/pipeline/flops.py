"""FLOPs counted by torch on the meta device (no weights, no memory); ``pipeline.cost`` computes them from the spec."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mar_bench.config.spec import Discrete, RunSpec, TokenSpace, num_tokens
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator
from mar_bench.models.tokenizers.base import Tokenizer

META = torch.device("meta")


def on_meta(spec: RunSpec) -> Generator:
    with META:
        return build_generator(spec)


def meta_tokens(space: TokenSpace, batch: int = 1) -> torch.Tensor:
    """(batch, L[, D])."""
    if isinstance(space, Discrete):
        return torch.zeros(batch, num_tokens(space), dtype=torch.int64, device=META)
    return torch.zeros(batch, num_tokens(space), space.dim, device=META)


def decoding_flops(tokenizer: Tokenizer) -> float:
    """Tokens of one image to pixels; the tokenizer is on the meta device."""
    return count_flops(lambda: tokenizer.decode(meta_tokens(tokenizer.space)))


def count_flops(work: Callable[[], object]) -> float:
    """A multiply-add counts as two. Attention is counted on the meta device only, elementwise operations never."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
