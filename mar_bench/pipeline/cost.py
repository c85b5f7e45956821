"""The cost of training and sampling: FLOPs from the spec alone, then seconds on a CPU core and hours on a GPU.

A multiply-add counts as two operations; norms, activations and other elementwise operations are not counted. Attention
counts every query with every key, causal or not, as torch's FLOP counter does. Never imports torch."""

from __future__ import annotations

import functools
import math
from dataclasses import fields, replace
from typing import Any

from mar_bench.config.spec import (
    CausalBackbone,
    DiTModel,
    MaskedBackbone,
    ModelSpec,
    RunSpec,
    SamplingSpec,
    TokenSpace,
    num_tokens,
)
from mar_bench.models.schedules import ar_steps, mask_ratio

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the masking ratio, over which a training step is averaged
TIME_FEATURES = 256  # sinusoids that embed a timestep
# dense 16-bit peak from the data sheets, TFLOP/s
GPUS = {"V100": 125, "A100": 312, "H100": 989, "H200": 989, "B200": 2250, "L40S": 362, "RTX4090": 165, "MI300X": 1307}
# share of that peak implied by the authors' times: 1 day 11 hours for MAR-L on 16 H100, 0.288 s per image on an A100
TRAINING_SHARE, SAMPLING_SHARE = 0.162, 0.30
CPU_RATE = 35e9  # FLOP/s of one core, measured at tiny scale
STEP_SECONDS = 0.005  # of a training step, whatever its size
CONVOLUTION_SECONDS = {"tokenizer": 7e-4, "extractor": 3e-4}  # per training image of 32 x 32 pixels at width 16
LATENCY_IMAGES = 10  # one image alone takes about as long as this many in a batch


def seconds(stage: str, spec: RunSpec) -> float:
    """Rough estimate of a stage's seconds on one CPU core, used to order jobs and to estimate the time left."""
    if stage in CONVOLUTION_SECONDS:
        part: Any = spec.tokenizer if stage == "tokenizer" else spec.metrics.extractor
        if not part.trained:
            return 1.0
        pixels = spec.data.image_size**2 * spec.data.channels / 1024
        return 1.0 + CONVOLUTION_SECONDS[stage] * part.steps * part.batch_size * pixels * (part.width / 16) ** 1.5
    if stage == "train" and spec.train.published is None:
        return spec.train.steps * (STEP_SECONDS + spec.train.batch_size * training_flops(spec) / CPU_RATE)
    if stage == "likelihood":
        return likelihood_flops(spec) / CPU_RATE
    timed = spec.speed.repeats * (spec.speed.batch_size + LATENCY_IMAGES)
    images = {"sample": spec.sampling.num_images, "speed": timed}.get(stage)
    return images * sampling_flops(spec) / CPU_RATE if images else 1.0


def gpu_hours(stage: str, spec: RunSpec, gpu: str = "H100", extra_flops: float = 0.0) -> float:
    """Estimated hours of training, sampling or likelihoods on one GPU; decoding adds ``extra_flops`` per image. 0 for
    the rest."""
    if stage == "train" and spec.train.published is None:
        flops, share = spec.train.steps * spec.train.batch_size * training_flops(spec), TRAINING_SHARE
    elif stage == "sample":
        flops, share = spec.sampling.num_images * (sampling_flops(spec) + extra_flops), SAMPLING_SHARE
    elif stage == "likelihood":
        flops, share = likelihood_flops(spec), SAMPLING_SHARE
    else:
        return 0.0
    return flops / (GPUS[gpu] * 1e12 * share * 3600)


def training_flops(spec: RunSpec) -> float:
    """Forward and backward pass of one image, averaged over the masking ratio. A backward pass costs two forward."""
    model, space, length = spec.model, spec.space, num_tokens(spec.space)
    if model.kind == "dit":
        return 3 * _dit_pass(model, space)
    backbone, (once, _, draws) = model.backbone, head_flops(model.head, model.backbone.dim, space)
    if backbone.kind == "causal":  # teacher forcing: every token is a target
        return 3 * (_causal_passes(backbone, space, [length - 1]) + length * (once + draws))
    hidden = [max(1, math.ceil(length * mask_ratio(backbone.masking, u))) for u in QUANTILES]
    passes = [_masked_pass(backbone, space, length - n) + n * (once + draws) for n in hidden]
    return 3 * sum(passes) / len(passes)


def sampling_flops(spec: RunSpec) -> float:
    """All AR steps of one image (for DiT: all denoising steps), guidance included, decoding excluded."""
    return _sampling_flops(spec.model, replace(spec.sampling, seed=0), spec.space)


@functools.cache  # most jobs of a plan differ by their seeds alone
def _sampling_flops(model: ModelSpec, sampling: SamplingSpec, space: TokenSpace) -> float:
    length, guided = num_tokens(space), sampling.guidance_scale != 1
    if model.kind == "dit":
        return (1 + guided) * (sampling.num_diffusion_steps or 1) * _dit_pass(model, space)
    steps = ar_steps(sampling, sampling.order or model.order, length)
    if model.backbone.kind == "causal":  # with the kv-cache each step has one new input
        backbone = (1 + guided) * _causal_passes(model.backbone, space, [step.known for step in steps])
    else:
        passes = (_masked_pass(model.backbone, space, step.known, step.asked) for step in steps)
        backbone = sum((1 + (step.guidance != 1)) * flops for step, flops in zip(steps, passes))
    once, each, _ = head_flops(model.head, model.backbone.dim, space)
    drawn = ((1 + (step.guidance != 1)) * step.asked * (once + (step.denoising or 1) * each) for step in steps)
    return backbone + sum(drawn)


def likelihood_flops(spec: RunSpec) -> float:
    """The likelihoods of as many held-out and training images as the spec asks for at most."""
    model, given, length = spec.model, spec.likelihood, num_tokens(spec.space)
    if model.kind == "dit":
        return 0.0
    terms, backbone = given.positions or length, model.backbone
    if backbone.kind == "causal":
        passes = _causal_passes(backbone, spec.space, [length - 1])
    else:
        passes = _mean_masked_pass(backbone, spec.space) * terms
    once, each, draws = head_flops(model.head, backbone.dim, spec.space)
    steps = 0
    if model.head.kind == "diffusion":
        each, steps = draws / model.head.draws_per_token, given.timesteps or model.head.num_train_timesteps
    orders = given.orders if spec.sampling.order == "random" else 1
    return 2 * given.images * orders * (passes + terms * (once + steps * each))


def block_flops(dim: int, mlp_ratio: float, queries: int, keys: int) -> float:
    """A transformer block: qkv, projection and MLP on each query, and attention to the keys."""
    return 2 * queries * dim * (4 * dim + 2 * int(dim * mlp_ratio)) + 4 * queries * keys * dim


def _masked_pass(part: MaskedBackbone, space: TokenSpace, known: int, asked: int | None = None) -> float:
    """The masked backbone with ``known`` known tokens; vectors are embedded by a linear layer, codes by a look-up.

    If only ``asked`` unknown tokens are drawn, the last block computes just keys and values for the other inputs."""
    seen, every = part.num_class_tokens + known, part.num_class_tokens + num_tokens(space)
    encoder = part.encoder_depth * block_flops(part.dim, part.mlp_ratio, seen, seen)
    decoder = part.decoder_depth * block_flops(part.dim, part.mlp_ratio, every, every)
    if asked is not None and asked < num_tokens(space) - known:
        keys_and_values = 4 * (every - asked) * part.dim**2
        decoder += keys_and_values - block_flops(part.dim, part.mlp_ratio, every - asked, every)
    return encoder + decoder + 2 * seen * part.dim**2 + known * 2 * getattr(space, "dim", 0) * part.dim


@functools.lru_cache
def _mean_masked_pass(part: MaskedBackbone, space: TokenSpace) -> float:
    """The masked backbone asked for one token, averaged over the number of known ones."""
    length = num_tokens(space)
    return sum(_masked_pass(part, space, known, 1) for known in range(length)) / length


def _causal_passes(part: CausalBackbone, space: TokenSpace, known: list[int]) -> float:
    """The causal backbone in successive passes with ``known[i]`` known tokens, each reusing the keys of the last."""
    total, cached = 0.0, 0
    for k in known:
        keys = part.num_class_tokens + k
        total += part.depth * block_flops(part.dim, part.mlp_ratio, keys - cached, keys)
        total += k * 2 * getattr(space, "dim", 0) * part.dim  # tokens are embedded anew in each pass
        cached = keys
    return total


def head_flops(head: Any, dim: int, space: TokenSpace) -> tuple[float, float, float]:
    """Operations per token with a condition of size ``dim``: those done once, those in each pass of the head's MLP
    when sampling, and those in all passes of a training step."""
    size = getattr(space, "vocab_size", 0) or getattr(space, "dim", 0)
    is_mlp = {"depth", "width"} <= {f.name for f in fields(head)}  # a plugin's head without them counts as a layer
    if not is_mlp:  # a linear layer; of gmm: weights, means and log stds
        outputs = head.num_components * (1 + 2 * size) if head.kind == "gmm" else size
        return 2 * dim * outputs, 0, 0
    inner = head.depth * 5 * head.width + 2 * head.width  # AdaLN blocks, without the condition's embedding
    if head.kind == "energy":  # z is the input, noise the condition
        each = 2 * head.width * (dim + inner + size + head.noise_dim)
        return 0, each, head.samples_per_token * each
    outputs = 2 * size if head.kind == "diffusion" else size
    each, timestep = 2 * head.width * (size + inner + outputs), 2 * head.width * (TIME_FEATURES + head.width)
    return 2 * dim * head.width, each, getattr(head, "draws_per_token", 1) * (each + timestep)


def _dit_pass(model: DiTModel, space: TokenSpace) -> float:
    """One image through the diffusion transformer; modulations are computed once per image."""
    patches, dim = num_tokens(space) // model.patch_size**2, model.dim
    values = model.patch_size**2 * getattr(space, "dim", 0)
    condition = 2 * dim * (TIME_FEATURES + dim) + 2 * dim**2 * (6 * model.depth + 2)
    return model.depth * block_flops(dim, model.mlp_ratio, patches, patches) + 6 * patches * dim * values + condition
