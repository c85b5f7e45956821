"""The likelihood of given tokens under an autoregressive generator, by the chain rule: one token per step.

It is conditional on the class. Guidance, temperature and the number of AR steps change samples, not the model, and
play no role."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mar_bench.config.spec import LikelihoodSpec
from mar_bench.models.ar import ARGenerator
from mar_bench.models.finite import finite, watched
from mar_bench.models.orders import draw_order, gather
from mar_bench.utils.noise import NoiseSource


@torch.inference_mode()
def bits_per_token(
    model: ARGenerator, tokens: Tensor, labels: Tensor, order: str, spec: LikelihoodSpec, noise: NoiseSource
) -> Tensor:
    """Tokens (B, L[, D]) and labels (B,) -> -log2 p(tokens | label) / L of each image, (B,) float64.

    In ``random`` order the mean over ``spec.orders`` permutations, drawn for each image; any other order is one. This
    mean is at least -log2 of the mean of p over the orders (Jensen). Continuous tokens have a density, so their number
    may be negative; it is an upper bound where the head's likelihood is a lower one.
    With ``spec.positions`` an unbiased estimate from so many terms of the chain rule; otherwise all L.

    Raises UserError if a value is not finite."""
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    repeats = spec.orders if order == "random" else 1
    with watched(f"images {noise.indices[0]} to {noise.indices[-1]}", "train longer, or at a lower learning rate"):
        for step in range(repeats):
            ordered = draw_order(order, noise, step, model.length, model.order_seed).to(tokens.device)
            places = _places(noise, step, model.length, spec.positions).to(tokens.device)
            known = gather(tokens, ordered)
            z = model.backbone.conditions(known, labels, ordered, places)
            drawn = model.head.draw_likelihood(noise, step, places.shape[1], spec)
            drawn = {name: values.to(tokens.device) for name, values in drawn.items()}
            nats = finite(model.head.log_likelihood(z, gather(known, places), drawn), "log-likelihoods of tokens")
            total -= nats.double().mean(1)
    return total / (repeats * math.log(2))


def _places(noise: NoiseSource, step: int, length: int, count: int | None) -> Tensor:
    """Places (B, P) of the order whose terms are computed: all, or ``count`` evenly spaced ones from a random start,
    so that every place is as likely as any other."""
    if count is None:
        return torch.arange(length).expand(len(noise.indices), length)
    start = noise.uniform("position", step, (1,)).double()
    return ((torch.arange(count) + start) * length / count).long().clamp(max=length - 1)
