"""What must hold between the fields of a spec, its normal form, and what an experiment must look like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from mar_bench.config.spec import (
    ARModel,
    Continuous,
    Discrete,
    RunSpec,
    SamplingSpec,
    TrainSpec,
    drawing_part,
    keeps_floats,
    latent_space,
    num_tokens,
)
from mar_bench.utils.errors import UserError

Rules = Iterator[tuple[bool, str]]  # what must hold, and what to say where it does not
CHOICE_TEMPERATURE = 4.5  # MaskGIT's and MAGE's default


def finish(spec: RunSpec) -> RunSpec:
    """Fill what follows from other fields, drop knobs that the row's parts do not have, and check.

    So two rows that draw the same images have the same spec and the same ids. Raises UserError with the way out.
    """
    stride, size = spec.tokenizer.stride, spec.data.image_size
    if not (stride > 0 and stride & (stride - 1) == 0 and size > 0 and size % stride == 0):
        raise UserError(f"tokenizer.stride {stride} must be a power of two that divides data.image_size {size}")
    if spec.tokenizer.group < 1:
        raise UserError(f"tokenizer.group {spec.tokenizer.group} must be above 0")
    part = drawing_part(spec.model)
    if part.denoises and spec.sampling.num_diffusion_steps is None:
        raise UserError(f"sampling.num_diffusion_steps is null but '{part.kind}' denoises; give a number")
    spec = replace(
        spec,
        sampling=_sampling_that_counts(spec),
        latents=spec.latents if keeps_floats(spec.tokenizer) else replace(spec.latents, dtype="fp32"),
    )
    if spec.train.published is not None:  # nothing else of the training means anything
        spec = replace(spec, train=TrainSpec(published=spec.train.published, weights=spec.train.weights))
    check(spec)
    return spec


def _sampling_that_counts(spec: RunSpec) -> SamplingSpec:
    """The sampling with every knob filled in that the model has, and every one dropped that it has not."""
    sampling, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    sampling = replace(
        sampling,
        num_diffusion_steps=sampling.num_diffusion_steps if part.denoises else None,
        clamp_x0=sampling.clamp_x0 if part.clamps else None,
        temperature=sampling.temperature if part.draws else 1.0,
        guidance_schedule="linear" if sampling.guidance_scale == 1 else sampling.guidance_schedule,
    )
    if not isinstance(model, ARModel):
        alone = {"order": None, "num_ar_steps": None, "choice_temperature": None}
        if sampling.sampler == "ddim":  # it adds no noise that a temperature could multiply
            alone["temperature"] = 1.0
        if sampling.guidance_scale == 1 or sampling.guided_channels == getattr(spec.space, "dim", None):
            alone["guided_channels"] = None
        return replace(sampling, **alone, guidance_schedule="linear" if sampling.guidance_scale == 1 else "constant")
    order = sampling.order or model.order
    chance = CHOICE_TEMPERATURE if sampling.choice_temperature is None else sampling.choice_temperature
    return replace(
        sampling,
        order=order,
        choice_temperature=chance if order == "confidence" else None,
        num_ar_steps=num_tokens(spec.space) if sampling.num_ar_steps is None else sampling.num_ar_steps,
        sampler="ddpm",
        guided_channels=None,
    )


def check(spec: RunSpec) -> None:
    """Cross-field rules. Raises UserError with the way out."""
    for rules in (_data, _tokenizer, _model, _training, _sampling, _measuring):
        for holds, message in rules(spec):
            if not holds:
                raise UserError(message)


_BUILT_IN = {"mnist5k": (5000, 32), "digits": (1797, 8)}  # images, and the size whose multiples they can have


def _data(spec: RunSpec) -> Rules:
    data = spec.data
    yield 0 <= data.shift < data.image_size, f"data.shift {data.shift} must lie between 0 and data.image_size"
    yield data.channels in (1, 3), f"data.channels {data.channels} must be 1 (grey) or 3 (RGB)"
    if data.kind not in _BUILT_IN:
        return
    images, native = _BUILT_IN[data.kind]
    yield data.image_size % native == 0, f"data.image_size {data.image_size} must be a multiple of {native}"
    yield data.channels == 1, f"data.channels {data.channels} must be 1: {data.kind} is grey"
    yield data.num_classes == 10, f"data.num_classes {data.num_classes} must be 10: {data.kind} has ten digits"
    left = images - data.heldout
    yield left >= 2, f"data.heldout {data.heldout} leaves nothing to train on: {data.kind} has {images} images"
    parts = {"tokenizer": spec.tokenizer, "metrics.extractor": spec.metrics.extractor}
    if spec.train.published is None:
        parts["train"] = spec.train
    for path, part in parts.items():
        size = getattr(part, "batch_size", 0)
        yield size <= left, f"{path}.batch_size {size} is more than the {left} training images of {data.kind}"
    for key in ("is_splits", "kid_subset_size"):
        given = getattr(spec.metrics, key)
        yield given <= data.heldout, f"metrics.{key} {given} is more than the {data.heldout} images of data.heldout"


def _tokenizer(spec: RunSpec) -> Rules:
    tokenizer, group = spec.tokenizer, spec.tokenizer.group
    latents = latent_space(tokenizer, spec.data)
    yield (
        group == 1 or isinstance(latents, Continuous),
        f"tokenizer.group {group}: codes are not grouped; set it to 1, or output to latents",
    )
    yield (
        latents.grid[0] % group == 0,
        f"tokenizer.group {group} does not divide the {latents.grid[0]} x {latents.grid[0]} latents of an image",
    )
    if not tokenizer.trained:
        if hasattr(tokenizer, "weights"):
            channels = spec.data.channels
            yield channels == 3, f"data.channels {channels} must be 3: '{tokenizer.kind}' is for RGB images"
        if tokenizer.kind.startswith("ldm_"):
            yield tokenizer.stride == 16, f"tokenizer.stride {tokenizer.stride}: '{tokenizer.kind}' has a stride of 16"
        return
    factor = 2 if tokenizer.stride <= 2 else 4  # of the width where the norms are
    yield (
        factor * tokenizer.width % 8 == 0,
        f"tokenizer.width {tokenizer.width} must be a multiple of {8 // factor}: its norms have 8 groups",
    )
    if hasattr(tokenizer, "vocab_size"):
        first = tokenizer.batch_size * num_tokens(latents)
        yield (
            tokenizer.vocab_size <= first,
            f"tokenizer.vocab_size {tokenizer.vocab_size} is more than the {first} tokens of the first batch, "
            "on which the codebook starts; lower it or raise tokenizer.batch_size",
        )


def _model(spec: RunSpec) -> Rules:
    model, part, tokenizer = spec.model, drawing_part(spec.model), spec.tokenizer
    what = f"head '{part.kind}'" if isinstance(model, ARModel) else f"model '{part.kind}'"
    yield (
        isinstance(spec.space, part.space),
        f"{what} needs {part.space.__name__.lower()} tokens but tokenizer '{tokenizer.kind}' gives "
        f"{type(spec.space).__name__.lower()} ones; take another {what.split()[0]} or another tokenizer",
    )
    path, backbone = ("model.backbone", model.backbone) if isinstance(model, ARModel) else ("model", model)
    yield (
        backbone.dim % backbone.num_heads == 0,
        f"{path}.dim {backbone.dim} is not a multiple of num_heads {backbone.num_heads}",
    )
    yield (
        int(backbone.dim * backbone.mlp_ratio) >= 1,
        f"{path}.mlp_ratio {backbone.mlp_ratio} leaves the MLP no unit at dim {backbone.dim}; raise it",
    )
    if not isinstance(model, ARModel):
        side, patch = spec.space.grid[0], model.patch_size
        yield side % patch == 0, f"model.patch_size {patch} does not divide the {side} x {side} latents of an image"
        yield model.dim % 4 == 0, f"model.dim {model.dim} must be a multiple of 4: its positions are sines of two axes"
    if hasattr(backbone, "masking"):
        low, high = backbone.masking.low, backbone.masking.high
        yield (
            low <= high and high > 0,
            f"model.backbone.masking: low {low} must not be above high {high}, nor high be 0",
        )


def _training(spec: RunSpec) -> Rules:
    dropout, scale = spec.train.label_dropout, spec.sampling.guidance_scale
    yield (
        scale == 1 or 0 < dropout < 1,
        f"guidance (sampling.guidance_scale {scale}) needs a model trained both with and without "
        f"class: train.label_dropout {dropout} must lie strictly between 0 and 1, or turn guidance off (1)",
    )
    yield (
        spec.train.published is None or spec.sampling.weights == "ema",
        f"sampling.weights {spec.sampling.weights}: of published weights there is one kind; leave it at ema",
    )


def _sampling(spec: RunSpec) -> Rules:
    sampling, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    if part.denoises:
        most = getattr(part, "num_train_timesteps", 1000)
        yield (
            1 <= sampling.num_diffusion_steps <= most,
            f"sampling.num_diffusion_steps {sampling.num_diffusion_steps} must lie between 1 and "
            + (f"the model's num_train_timesteps {most}" if hasattr(part, "num_train_timesteps") else str(most)),
        )
    if isinstance(model, ARModel):
        yield from _ar_sampling(spec)
    elif sampling.guided_channels is not None:
        yield (
            sampling.guided_channels <= spec.space.dim,
            f"sampling.guided_channels {sampling.guided_channels} is more than a token has: {spec.space.dim}",
        )


def _ar_sampling(spec: RunSpec) -> Rules:
    sampling, model, length = spec.sampling, spec.model, num_tokens(spec.space)
    steps = sampling.num_ar_steps
    yield (
        1 <= steps <= length,
        f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image "
        "(null: one token a step)",
    )
    causal = model.backbone.attention == "causal"
    if sampling.order == "confidence":
        yield (
            model.head.space is Discrete,
            f"confidence order needs a head with probabilities of tokens, and '{model.head.kind}' has none; take "
            "cross_entropy, or another sampling.order",
        )
        yield not causal, "confidence order needs the masked backbone: a causal one does not see all open positions"
    yield (
        not causal or steps == length,
        f"causal attention draws one token a step: sampling.num_ar_steps {steps} is fewer than the {length} tokens; "
        "set it to null or take the masked backbone",
    )
    yield (
        not causal or sampling.order == model.order,
        f"a causal backbone trained in {model.order} order cannot be sampled in {sampling.order} order; "
        "leave sampling.order null",
    )


def _measuring(spec: RunSpec) -> Rules:
    images, metrics, name = spec.sampling.num_images, spec.metrics, spec.metrics.extractor.name
    left = images - -(-images // metrics.jackknife_groups)  # without the largest of the jackknife's groups
    for key, most in (
        ("jackknife_groups", images),
        ("is_splits", left),
        ("kid_subset_size", images),
        ("neighbours", left - 1),
    ):
        given = getattr(metrics, key)
        yield given <= most, f"metrics.{key} {given} is too many for sampling.num_images {images}; lower it"
    for key in ("kid_subset_size", "neighbours"):
        given, most = getattr(metrics, key), metrics.reference_images
        yield given <= most, f"metrics.{key} {given} is more than metrics.reference_images {most}; lower it"
    file = metrics.reference.kind == "file"
    yield (
        not (file and metrics.extractor.trained),
        f"metrics.reference '{getattr(metrics.reference, 'name', '')}' is a file, made with another extractor than the "
        f"classifier '{name}' that is trained here: set metrics.reference.kind=training",
    )
    yield (
        re.fullmatch(r"[\w-]+", name) is not None,
        f"metrics.extractor.name '{name}' ends up in the names of metrics: letters, digits, _ and - only",
    )
    yield (
        re.fullmatch(r"auto|cpu|cuda(:\d+)?", spec.compute.device) is not None,
        f"compute.device '{spec.compute.device}' must be auto, cpu, cuda or cuda:<number>",
    )
