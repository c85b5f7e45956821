"""Floating-point operations, counted by torch on the meta device: no weights, no memory, the true architecture.

A multiply-add counts as two. Attention counts on the meta device alone; elementwise operations count nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mar_bench.config.spec import Discrete, RunSpec, SamplingSpec, TokenSpace, num_tokens
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.build import build_generator, generate
from mar_bench.models.schedules import tokens_per_step
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.utils.noise import NoiseSource

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the share of known tokens, over which a training step is averaged
META = torch.device("meta")


class _GivenShare(NoiseSource):
    """One image's noise, with the batch's shared draw given."""

    def __init__(self, u: float):
        super().__init__(0, [0])
        self.u = u

    def shared(self, purpose: str, step: int) -> float:
        return self.u


def on_meta(spec: RunSpec) -> Generator:
    with META:
        return build_generator(spec)


def training_flops(spec: RunSpec) -> float:
    """Forward and backward of one image, the mean over the masking ratio."""
    model = on_meta(spec).train()
    tokens = _tokens(model.space, model.length)
    labels = torch.zeros(1, dtype=torch.int64, device=META)
    shares = QUANTILES if hasattr(getattr(spec.model, "backbone", None), "masking") else QUANTILES[:1]
    counts = [_count(lambda u=u: model(tokens, labels, _GivenShare(u), 0).mean().backward()) for u in shares]
    return sum(counts) / len(counts)


def sampling_flops(spec: RunSpec) -> float:
    """All AR steps of one image, or all denoising steps of a whole one, guidance's second half included, without
    decoding."""
    model, sampling = on_meta(spec).eval(), spec.sampling
    if not isinstance(model, ARGenerator):
        return sampling.num_diffusion_steps * _whole_image_step_flops(model, sampling)
    counts = tokens_per_step(model.length, sampling.num_ar_steps or model.length)
    known = [sum(counts[:step]) for step in range(len(counts))]  # before each step
    guided = sampling.guidance_scale != 1
    if sampling.order == "confidence":  # a token is drawn at all open positions, and most are dropped again
        counts = [model.length - k for k in known]
    return (1 + guided) * _backbone_flops(model, known) + _head_flops(model, sampling, counts, guided)


def _whole_image_step_flops(model: Generator, sampling: SamplingSpec) -> float:
    """One denoising step of one image; all of them cost the same."""
    labels, one = torch.zeros(1, dtype=torch.int64, device=META), replace(sampling, num_diffusion_steps=1)
    return _count(lambda: generate(model, labels, one, NoiseSource(0, [0])))


def _backbone_flops(model: ARGenerator, known: list[int]) -> float:
    """Steps that begin with so many known tokens. A few are counted and the others follow exactly: the operations of
    attention are a polynomial of degree two in the number of tokens. How many positions are asked for changes nothing:
    a masked backbone computes all, a causal one is asked for one."""
    labels = torch.zeros(1, dtype=torch.int64, device=META)
    order = torch.arange(model.length, device=META)[None]

    def step(k: int, cache: object = None) -> float:
        return _count(lambda: model.backbone.predict(_tokens(model.space, k), labels, order, 1, cache))

    cache = model.backbone.new_cache()
    if cache is not None and len(known) > 2:
        first, second, third = (step(k, cache) for k in range(3))  # each leaves its keys and values for the next
        return first + sum(second + (third - second) * (k - 1) for k in known[1:])
    if len(known) < 4:
        return sum(step(k, cache) for k in known)
    at = [0, model.length // 2, model.length - 1]
    curve = np.polynomial.Polynomial.fit(at, [step(k) for k in at], 2)
    return float(curve(np.array(known)).sum())


def _head_flops(model: ARGenerator, sampling: SamplingSpec, counts: list[int], guided: bool) -> float:
    """AR steps that draw so many tokens. One and two are counted: each token and each denoising step costs the same,
    beside what all tokens of a step share."""

    def drawn(n: int, num_diffusion_steps: int | None) -> float:
        few = replace(sampling, num_diffusion_steps=num_diffusion_steps)
        z = torch.zeros(1, n, model.backbone.dim, device=META)
        noise = model.head.draw_sampling(NoiseSource(0, [0]), 0, n, few).to(META)
        return _count(lambda: model.head.sample(z, noise, few, 2.0, z if guided else None))

    def all_steps(num_diffusion_steps: int | None) -> float:
        one, two = (drawn(n, num_diffusion_steps) for n in (1, 2))
        return sum(one + (n - 1) * (two - one) for n in counts)

    if sampling.num_diffusion_steps is None:
        return all_steps(None)
    first = all_steps(1)
    return first + (sampling.num_diffusion_steps - 1) * (all_steps(2) - first)


def _tokens(space: TokenSpace, count: int) -> torch.Tensor:
    """Of one image, (1, count[, D])."""
    if isinstance(space, Discrete):
        return torch.zeros(1, count, dtype=torch.int64, device=META)
    return torch.zeros(1, count, space.dim, device=META)


def decoding_flops(tokenizer: Tokenizer) -> float:
    """Tokens of one image to pixels; the tokenizer is on the meta device."""
    return _count(lambda: tokenizer.decode(_tokens(tokenizer.space, num_tokens(tokenizer.space))))


def _count(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
