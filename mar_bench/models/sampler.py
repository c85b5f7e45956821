"""The generation loop: order, steps, guidance, head sampling. It has no parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from mar_bench.config.spec import Discrete, SamplingSpec, TokenSpace
from mar_bench.models.ar import ARGenerator
from mar_bench.models.orders import confident_first, draw_order, gather, gumbel
from mar_bench.models.schedules import guidance_scale, tokens_per_step
from mar_bench.utils.noise import NoiseSource


def no_clock(part: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


@torch.inference_mode()
def generate(
    model: ARGenerator,
    labels: torch.Tensor,
    sampling: SamplingSpec,
    noise: NoiseSource,
    clock: Callable[[str], contextlib.AbstractContextManager] = no_clock,
    limit: int | None = None,
) -> torch.Tensor:
    """Draw tokens (B, L[, D]) for labels (B,), on the labels' device.

    Each AR step draws the next set of tokens of the order (paper, equation 5). In confidence order it draws a token
    at every open position and keeps the surest, which then come next in the order (paper, appendix C). Under guidance
    the batch is doubled, the second half without class (label -1). ``clock(part)`` times "backbone" and "head". With
    ``limit`` it stops after that many AR steps; tokens that are not drawn are 0."""
    device, batch, length = labels.device, labels.shape[0], model.length
    by_confidence = sampling.order == "confidence"
    order = draw_order(sampling.order or model.order, noise, 0, length).to(device)
    guided = sampling.guidance_scale != 1
    fold = 2 if guided else 1
    all_labels = torch.cat([labels, torch.full_like(labels, -1)]) if guided else labels
    cache = model.backbone.new_cache()
    drawn: list[torch.Tensor] = []
    known = 0
    counts = tokens_per_step(length, sampling.num_ar_steps or length)
    for step, n in enumerate(counts[:limit]):
        asked = length - known if by_confidence else n
        with clock("backbone"):
            so_far = torch.cat(drawn, dim=1) if drawn else _nothing(model.space, batch, device)
            so_far = so_far.repeat(fold, *(1,) * (so_far.dim() - 1))
            z = model.backbone.predict(so_far, all_labels, order.repeat(fold, 1), asked, cache)
        with clock("head"):
            scale = guidance_scale(sampling.guidance_schedule, sampling.guidance_scale, length, length - known - n)
            head_noise = model.head.draw_sampling(noise, step, asked, sampling).to(device)
            z, z_uncond = z.chunk(2) if guided else (z, None)
            if by_confidence:
                chance = sampling.choice_temperature * (1 - (step + 1) / len(counts))
                chance = chance * gumbel(noise, step, asked).to(device)
                tokens, places = _surest(model.head, z, head_noise, sampling, scale, z_uncond, chance, n)
                order = torch.cat([order[:, :known], gather(order[:, known:], places)], dim=1)
            else:
                tokens = model.head.sample(z, head_noise, sampling, scale, z_uncond)
            drawn.append(tokens)
        known += n
    tokens = torch.cat(drawn, dim=1)
    return tokens.new_zeros(batch, length, *tokens.shape[2:]).scatter_(1, _like(order[:, :known], tokens), tokens)


def _surest(
    head: nn.Module,
    z: torch.Tensor,
    head_noise: torch.Tensor,
    sampling: SamplingSpec,
    scale: float,
    z_uncond: torch.Tensor | None,
    chance: torch.Tensor,
    n: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, n) that are kept of those drawn at all m open positions, and the m places (B, m) with theirs first.

    Confidence is the log-probability of the token drawn plus ``chance`` (B, m), which is
    choice_temperature * (1 - (k + 1) / K) * Gumbel noise and so nothing in the last step (MaskGIT; MAGE)."""
    tokens, log_probability = head.sample_with_log_probability(z, head_noise, sampling, scale, z_uncond)
    places = confident_first(log_probability + chance, n)
    return gather(tokens, places[:, :n]), places


def _nothing(space: TokenSpace, batch: int, device: torch.device) -> torch.Tensor:
    """No tokens yet: (B, 0) codes or (B, 0, D) vectors."""
    if isinstance(space, Discrete):
        return torch.empty(batch, 0, dtype=torch.int64, device=device)
    return torch.empty(batch, 0, space.dim, device=device)


def _like(order: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return order if tokens.dim() == 2 else order[..., None].expand_as(tokens)
