"""The generation loop of the autoregressive generator. It has no parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mar_bench.config.spec import Discrete, SamplingSpec
from mar_bench.models.ar import ARGenerator
from mar_bench.models.finite import finite
from mar_bench.models.orders import confident_first, draw_order, gather, gumbel
from mar_bench.models.schedules import ar_steps
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
    token and keeps the most confident as the next set (paper, appendix C). In steps with guidance the batch is doubled;
    the second half has no class (label -1). ``clock`` times "backbone", "noise" and "head". ``limit`` stops after that
    many AR steps; tokens not drawn are 0."""
    device, batch, length = labels.device, labels.shape[0], model.length
    kind = sampling.order or model.order
    steps = ar_steps(sampling, kind, length)[:limit]
    settings = [replace(sampling, num_diffusion_steps=step.denoising) for step in steps]
    guided = any(step.guidance != 1 for step in steps)
    order = draw_order(kind, noise, 0, length, model.order_seed).to(device)
    all_labels = torch.cat([labels, torch.full_like(labels, -1)]) if guided else labels
    cache = model.backbone.new_cache()
    shape, dtype = ((), torch.int64) if isinstance(model.space, Discrete) else ((model.space.dim,), torch.float32)
    drawn = torch.empty(batch, 0, *shape, dtype=dtype, device=device)
    draws = Ahead(lambda i: model.head.draw_sampling(noise, i, steps[i].asked, settings[i]), len(steps), device)
    for i, step in enumerate(steps):
        # a cache holds both halves, so both go on while guidance is out of its interval
        fold = 2 if step.guidance != 1 or (guided and cache is not None) else 1
        with clock("backbone"):
            so_far = drawn.repeat(fold, *(1,) * (drawn.dim() - 1))
            z = model.backbone.predict(so_far, all_labels[: fold * batch], order.repeat(fold, 1), step.asked, cache)
        with clock("noise"):
            head_noise = placed(draws(i), device)
        with clock("head"):
            z_uncond = z[batch:] if step.guidance != 1 else None
            given = (z[:batch], head_noise, settings[i], step.guidance, z_uncond)
            if kind == "confidence":
                assert sampling.choice_temperature is not None
                # MaskGIT's (and MAGE's) annealed randomness: 0 in the last step
                randomness = sampling.choice_temperature * (1 - (i + 1) / (sampling.num_ar_steps or length))
                tokens, confidence = model.head.sample_with_log_probability(*given)
                confidence = confidence + randomness * gumbel(noise, i, step.asked).to(device)
                places = confident_first(finite(confidence, "confidences"), step.new)
                tokens = gather(tokens, places[:, : step.new])
                order = torch.cat([order[:, : step.known], gather(order[:, step.known :], places)], dim=1)
            else:
                tokens = model.head.sample(*given)
            drawn = torch.cat([drawn, tokens], dim=1)
    index = order[:, : drawn.shape[1]]
    index = index if drawn.dim() == 2 else index[..., None].expand_as(drawn)
    return drawn.new_zeros(batch, length, *drawn.shape[2:]).scatter_(1, index, drawn)
