"""Rules between the fields of a spec, and its normal form. Ranges of single fields are in their types (parse.py)."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config.spec import (
    ARModel,
    Continuous,
    Discrete,
    DiTModel,
    ImageFolderData,
    KLTokenizer,
    RunSpec,
    SamplingSpec,
    TrainSpec,
    VQTokenizer,
    drawing_part,
    keeps_floats,
    latent_space,
    num_tokens,
)
from mar_bench.utils.errors import UserError

CHOICE_TEMPERATURE = 4.5  # MaskGIT's and MAGE's default
BUILT_IN = {"mnist5k": (5000, 32), "digits": (1797, 8)}  # number of images; image_size must be a multiple of this size


def finish(spec: RunSpec) -> RunSpec:
    """Normalise and check a spec: fill in derived values and reset settings that the model ignores.

    Two rows that draw the same images have the same normal form and the same ids. Raises UserError with the way out."""
    stride, size = spec.tokenizer.stride, spec.data.image_size
    fits = stride > 0 and stride & (stride - 1) == 0 and size % stride == 0
    _need(fits, f"tokenizer.stride {stride} must be a power of two that divides data.image_size {size}")
    _need(spec.tokenizer.group >= 1, f"tokenizer.group {spec.tokenizer.group} must be above 0")
    part = drawing_part(spec.model)
    steps_given = not part.denoises or spec.sampling.num_diffusion_steps is not None
    _need(steps_given, f"sampling.num_diffusion_steps is null but '{part.kind}' denoises; give a number")
    spec = replace(
        spec,
        sampling=_relevant_sampling(spec),
        latents=spec.latents if keeps_floats(spec.tokenizer) else replace(spec.latents, dtype="fp32"),
    )
    if spec.train.published is not None:  # the rest of the training has no effect
        spec = replace(spec, train=TrainSpec(published=spec.train.published, weights=spec.train.weights))
    for rules in (_data, _tokenizer, _model, _training, _sampling, _metrics):
        rules(spec)
    return spec


def _relevant_sampling(spec: RunSpec) -> SamplingSpec:
    """The sampling with every setting the model uses filled in, and every other one reset to a neutral value."""
    sampling, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    unguided = sampling.guidance_scale == 1
    sampling = replace(
        sampling,
        num_diffusion_steps=sampling.num_diffusion_steps if part.denoises else None,
        clamp_x0=sampling.clamp_x0 if part.clamps else None,
        temperature=sampling.temperature if part.draws else 1.0,
        guidance_schedule="linear" if unguided else sampling.guidance_schedule,
    )
    if isinstance(model, DiTModel):
        all_channels = unguided or sampling.guided_channels == getattr(spec.space, "dim", None)
        return replace(
            sampling,
            order=None,
            num_ar_steps=None,
            choice_temperature=None,
            temperature=1.0 if sampling.sampler == "ddim" else sampling.temperature,  # DDIM adds no noise to scale
            guided_channels=None if all_channels else sampling.guided_channels,
            guidance_schedule="linear" if unguided else "constant",
        )
    order = sampling.order or model.order
    temperature = CHOICE_TEMPERATURE if sampling.choice_temperature is None else sampling.choice_temperature
    return replace(
        sampling,
        order=order,
        choice_temperature=temperature if order == "confidence" else None,
        num_ar_steps=num_tokens(spec.space) if sampling.num_ar_steps is None else sampling.num_ar_steps,
        sampler="ddpm",
        guided_channels=None,
    )


def _need(holds: object, message: str) -> None:
    if not holds:
        raise UserError(message)


def _data(spec: RunSpec) -> None:
    data = spec.data
    _need(0 <= data.shift < data.image_size, f"data.shift {data.shift} must lie between 0 and data.image_size")
    _need(data.channels in (1, 3), f"data.channels {data.channels} must be 1 (grey) or 3 (RGB)")
    if isinstance(data, ImageFolderData):
        return
    images, native = BUILT_IN[data.kind]
    left = images - data.heldout
    _need(data.image_size % native == 0, f"data.image_size {data.image_size} must be a multiple of {native}")
    _need(data.channels == 1, f"data.channels {data.channels} must be 1: {data.kind} is grey")
    _need(data.num_classes == 10, f"data.num_classes {data.num_classes} must be 10: {data.kind} has ten digits")
    _need(left >= 2, f"data.heldout {data.heldout} leaves nothing to train on: {data.kind} has {images} images")
    parts = {"tokenizer": spec.tokenizer, "metrics.extractor": spec.metrics.extractor, "train": spec.train}
    if spec.train.published is not None:
        del parts["train"]
    for path, part in parts.items():
        size = getattr(part, "batch_size", 0)
        _need(size <= left, f"{path}.batch_size {size} is more than the {left} training images of {data.kind}")
    for key in ("is_splits", "kid_subset_size"):
        given, most = getattr(spec.metrics, key), data.heldout
        _need(given <= most, f"metrics.{key} {given} is more than the {most} images of data.heldout")


def _tokenizer(spec: RunSpec) -> None:
    tokenizer, group = spec.tokenizer, spec.tokenizer.group
    kind, latents = tokenizer.kind, latent_space(tokenizer, spec.data)
    side = latents.grid[0]
    groups = group == 1 or isinstance(latents, Continuous)
    _need(groups, f"tokenizer.group {group}: codes are not grouped; set it to 1, or output to latents")
    _need(side % group == 0, f"tokenizer.group {group} does not divide the {side} x {side} latents of an image")
    if not isinstance(tokenizer, (KLTokenizer, VQTokenizer)):
        channels, stride = spec.data.channels, tokenizer.stride
        rgb = channels == 3 or not hasattr(tokenizer, "weights")
        _need(rgb, f"data.channels {channels} must be 3: '{kind}' is for RGB images")
        fits = stride == 16 or not kind.startswith("ldm_")
        _need(fits, f"tokenizer.stride {stride}: '{kind}' has a stride of 16")
        return
    width, unit = tokenizer.width, 4 if tokenizer.stride <= 2 else 2
    _need(width % unit == 0, f"tokenizer.width {width} must be a multiple of {unit}: its norms have 8 groups")
    if isinstance(tokenizer, VQTokenizer):
        size, first = tokenizer.vocab_size, tokenizer.batch_size * num_tokens(latents)
        what = f"tokenizer.vocab_size {size} is more than the {first} tokens of the batch that initialises the codebook"
        _need(size <= first, f"{what}; lower it or raise tokenizer.batch_size")


def _model(spec: RunSpec) -> None:
    model, part = spec.model, drawing_part(spec.model)
    role = "head" if isinstance(model, ARModel) else "model"
    needed, given = part.space.__name__.lower(), type(spec.space).__name__.lower()
    _need(
        isinstance(spec.space, part.space),
        f"{role} '{part.kind}' needs {needed} tokens but tokenizer '{spec.tokenizer.kind}' gives {given} ones; take "
        f"another {role} or another tokenizer",
    )
    path, backbone = ("model.backbone", model.backbone) if isinstance(model, ARModel) else ("model", model)
    dim, heads, ratio = backbone.dim, backbone.num_heads, backbone.mlp_ratio
    _need(dim % heads == 0, f"{path}.dim {dim} is not a multiple of num_heads {heads}")
    _need(int(dim * ratio) >= 1, f"{path}.mlp_ratio {ratio} leaves the MLP no unit at dim {dim}; raise it")
    if isinstance(model, DiTModel):
        side, patch = spec.space.grid[0], model.patch_size
        _need(side % patch == 0, f"model.patch_size {patch} does not divide the {side} x {side} latents of an image")
        _need(dim % 4 == 0, f"model.dim {dim} must be a multiple of 4: its positions are sines of two axes")
    elif model.backbone.kind == "masked":
        low, high = model.backbone.masking.low, model.backbone.masking.high
        holds = low <= high and high > 0
        _need(holds, f"model.backbone.masking: low {low} must not be above high {high}, nor high be 0")


def _training(spec: RunSpec) -> None:
    dropout, scale, weights = spec.train.label_dropout, spec.sampling.guidance_scale, spec.sampling.weights
    what = f"train.label_dropout {dropout} must lie strictly between 0 and 1 for guidance"
    _need(scale == 1 or 0 < dropout < 1, f"{what}; or turn guidance off (sampling.guidance_scale 1, now {scale})")
    one_kind = f"sampling.weights {weights}: published weights are of one kind; leave it at ema"
    _need(spec.train.published is None or weights == "ema", one_kind)


def _sampling(spec: RunSpec) -> None:
    sampling, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    if (steps := sampling.num_diffusion_steps) is not None:
        most = getattr(part, "num_train_timesteps", 1000)
        _need(1 <= steps <= most, f"sampling.num_diffusion_steps {steps} must lie between 1 and {most}")
    if isinstance(model, ARModel):
        _ar_sampling(sampling, model, num_tokens(spec.space))
    elif sampling.guided_channels is not None and isinstance(spec.space, Continuous):
        given, dim = sampling.guided_channels, spec.space.dim
        _need(given <= dim, f"sampling.guided_channels {given} is more than a token has: {dim}")


def _ar_sampling(sampling: SamplingSpec, model: ARModel, length: int) -> None:
    steps, order, causal = sampling.num_ar_steps or 0, sampling.order, model.backbone.attention == "causal"
    _need(
        1 <= steps <= length,
        f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image (null: one per step)",
    )
    if order == "confidence":
        _need(
            model.head.space is Discrete,
            f"confidence order needs a head with probabilities of tokens, and '{model.head.kind}' has none; take "
            "cross_entropy, or another sampling.order",
        )
        _need(not causal, "confidence order needs the masked backbone: a causal one does not see all open positions")
    _need(
        not causal or steps == length,
        f"causal attention draws one token per step: sampling.num_ar_steps {steps} is fewer than the {length} tokens; "
        "set it to null or take the masked backbone",
    )
    _need(
        not causal or order == model.order,
        f"a causal backbone trained in {model.order} order cannot be sampled in {order} order; "
        "leave sampling.order null",
    )


def _metrics(spec: RunSpec) -> None:
    images, metrics, name = spec.sampling.num_images, spec.metrics, spec.metrics.extractor.name
    left = images - -(-images // metrics.jackknife_groups)  # without the largest jackknife group
    largest = {"jackknife_groups": images, "is_splits": left, "kid_subset_size": images, "neighbours": left - 1}
    for key, most in largest.items():
        given = getattr(metrics, key)
        _need(given <= most, f"metrics.{key} {given} is too many for sampling.num_images {images}; lower it")
    for key in ("kid_subset_size", "neighbours"):
        given, most = getattr(metrics, key), metrics.reference_images
        _need(given <= most, f"metrics.{key} {given} is more than metrics.reference_images {most}; lower it")
    _need(
        metrics.reference.kind != "file" or not metrics.extractor.trained,
        f"metrics.reference '{getattr(metrics.reference, 'name', '')}' is a file, made with another extractor than the "
        f"classifier '{name}' that is trained here: set metrics.reference.kind=training",
    )
