"""The generation loop of the autoregressive generator. It has no parameters."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from mar_bench.config.spec import Discrete, SamplingSpec
from mar_bench.models.ar import ARGenerator
from mar_bench.models.finite import finite
from mar_bench.models.orders import confident_first, draw_order, gather, gumbel
from mar_bench.models.schedules import guidance_scale, tokens_per_step
from mar_bench.utils.ahead import Ahead, placed
from mar_bench.utils.noise import NoiseSource

Clock = Callable[[str], contextlib.AbstractContextManager]  # clock("head") times the work inside


@torch.inference_mode()
def generate(
    model: ARGenerator,
    labels: Tensor,
    sampling: SamplingSpec,
    noise: NoiseSource,
    clock: Clock = contextlib.nullcontext,
    limit: int | None = None,
) -> Tensor:
    """Draw tokens (B, L[, D]) for labels (B,), on the labels' device.

    Each AR step draws the next set of tokens of the order (paper, equation 5). Confidence order draws every unknown
    token and keeps the most confident as the next set (paper, appendix C). Under guidance the batch is doubled; the
    second half has no class (label -1). ``clock`` times "backbone", "noise" and "head". ``limit`` stops after that many
    AR steps; tokens not drawn are 0."""
    device, batch, length = labels.device, labels.shape[0], model.length
    by_confidence, guided = sampling.order == "confidence", sampling.guidance_scale != 1
    order = draw_order(sampling.order or model.order, noise, 0, length, model.order_seed).to(device)
    fold = 2 if guided else 1
    all_labels = torch.cat([labels, torch.full_like(labels, -1)]) if guided else labels
    cache = model.backbone.new_cache()
    shape, dtype = ((), torch.int64) if isinstance(model.space, Discrete) else ((model.space.dim,), torch.float32)
    drawn = torch.empty(batch, 0, *shape, dtype=dtype, device=device)
    counts = tokens_per_step(length, sampling.num_ar_steps or length)
    unknown = [*itertools.accumulate(counts[:-1], operator.sub, initial=length)]  # before each step
    all_asked = unknown if by_confidence else counts
    draws = Ahead(
        lambda step: model.head.draw_sampling(noise, step, all_asked[step], sampling), len(counts[:limit]), device
    )
    for step, (n, asked) in enumerate(zip(counts[:limit], all_asked)):
        known = drawn.shape[1]
        with clock("backbone"):
            so_far = drawn.repeat(fold, *(1,) * (drawn.dim() - 1))
            z = model.backbone.predict(so_far, all_labels, order.repeat(fold, 1), asked, cache)
        with clock("noise"):
            head_noise = placed(draws(step), device)
        with clock("head"):
            scale = guidance_scale(sampling.guidance_schedule, sampling.guidance_scale, length, length - known - n)
            z, z_uncond = z.chunk(2) if guided else (z, None)
            if by_confidence:
                assert sampling.choice_temperature is not None
                # MaskGIT's (and MAGE's) annealed randomness: 0 in the last step
                randomness = sampling.choice_temperature * (1 - (step + 1) / len(counts))
                tokens, confidence = model.head.sample_with_log_probability(z, head_noise, sampling, scale, z_uncond)
                confidence = confidence + randomness * gumbel(noise, step, asked).to(device)
                places = confident_first(finite(confidence, "confidences"), n)
                tokens = gather(tokens, places[:, :n])
                order = torch.cat([order[:, :known], gather(order[:, known:], places)], dim=1)
            else:
                tokens = model.head.sample(z, head_noise, sampling, scale, z_uncond)
            drawn = torch.cat([drawn, tokens], dim=1)
    index = order[:, : drawn.shape[1]]
    index = index if drawn.dim() == 2 else index[..., None].expand_as(drawn)
    return drawn.new_zeros(batch, length, *drawn.shape[2:]).scatter_(1, index, drawn)
