"""Rules between the fields of a spec, and its normal form. Ranges of single fields are in their types (parse.py)."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config.spec import RunSpec, SamplingSpec, TrainSpec
from mar_bench.config.spec_data import Continuous, Discrete, TrainedTokenizer, latent_space, num_tokens
from mar_bench.config.spec_model import ARModel, DiTModel, drawing_part
from mar_bench.utils.errors import UserError

MOST_TOKENS = 2**16  # of an image: attention is quadratic
CHOICE_TEMPERATURE = 4.5  # MaskGIT's and MAGE's default
BUILT_IN = {"mnist5k": 5000, "digits": 1797}  # number of images
NATIVE = {"mnist5k": 32, "digits": 8, "idx": 32}  # image_size must be a multiple of this size


def finish(spec: RunSpec) -> RunSpec:
    """Normalise and check a spec: fill in derived values and reset settings that the model ignores.

    Two rows that draw the same images have the same normal form and the same ids. Raises UserError with the fix."""
    stride, size = spec.tokenizer.stride, spec.data.image_size
    fits = stride & (stride - 1) == 0 and size % stride == 0
    _need(fits, f"tokenizer.stride {stride} must be a power of two that divides data.image_size {size}")
    sampling = _relevant_sampling(spec)
    floats = isinstance(latent_space(spec.tokenizer, spec.data), Continuous) and spec.tokenizer.kind != "pixel"
    latents = spec.latents if floats else replace(spec.latents, dtype="fp32")  # codes and bytes have no such type
    train = spec.train
    if train.published is not None:  # the rest of the training has no effect
        train = TrainSpec(published=train.published, weights=train.weights)
    spec = replace(spec, sampling=sampling, latents=latents, train=train)
    for rules in (_data, _tokenizer, _model, _training, _sampling, _metrics):
        rules(spec)
    return spec


def _relevant_sampling(spec: RunSpec) -> SamplingSpec:
    """The sampling with every setting that the model uses filled in, and all others reset to neutral values."""
    given, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    unguided, whole = given.guidance_scale == 1, isinstance(model, DiTModel)
    order = None if isinstance(model, DiTModel) else given.order or model.order
    temperature = CHOICE_TEMPERATURE if given.choice_temperature is None else given.choice_temperature
    length = num_tokens(spec.space) if given.num_ar_steps is None else given.num_ar_steps
    channels = None if unguided or given.guided_channels == getattr(spec.space, "dim", None) else given.guided_channels
    draws = part.draws and not (whole and given.sampler == "ddim")  # DDIM adds no noise to scale
    return replace(
        given,
        num_diffusion_steps=given.num_diffusion_steps if part.denoises else None,
        clamp_x0=given.clamp_x0 if part.clamps else None,
        temperature=given.temperature if draws else 1.0,
        guidance_schedule="linear" if unguided else "constant" if whole else given.guidance_schedule,
        order=order,
        choice_temperature=temperature if order == "confidence" else None,
        num_ar_steps=None if whole else length,
        sampler=given.sampler if whole else "ddpm",
        guided_channels=channels if whole else None,
    )


def _need(holds: object, message: str) -> None:
    if not holds:
        raise UserError(message)


def _at_most(given: int, most: int, key: str, what: str) -> None:
    _need(given <= most, f"{key} {given} is more than the {most} {what}")


def _data(spec: RunSpec) -> None:
    data = spec.data
    _need(data.shift < data.image_size, f"data.shift {data.shift} must be below data.image_size {data.image_size}")
    if data.kind == "imagefolder":
        return
    native = NATIVE[data.kind]
    _need(data.image_size % native == 0, f"data.image_size {data.image_size} must be a multiple of {native}")
    _need(data.channels == 1, f"data.channels {data.channels} must be 1: {data.kind} is grey")
    if data.heldout is not None:
        for key in ("is_splits", "kid_subset_size"):
            _at_most(getattr(spec.metrics, key), data.heldout, f"metrics.{key}", "images of data.heldout")
    if data.kind == "idx":
        return
    images = BUILT_IN[data.kind]
    left = images - data.heldout
    _need(data.num_classes == 10, f"data.num_classes {data.num_classes} must be 10: {data.kind} has ten digits")
    _need(left >= 2, f"data.heldout {data.heldout} leaves nothing to train on: {data.kind} has {images} images")
    batches = {"tokenizer": spec.tokenizer, "metrics.extractor": spec.metrics.extractor, "train": spec.train}
    for path, part in batches.items():
        if path != "train" or spec.train.published is None:
            _at_most(getattr(part, "batch_size", 0), left, f"{path}.batch_size", f"training images of {data.kind}")


def _tokenizer(spec: RunSpec) -> None:
    tokenizer, group, kind = spec.tokenizer, spec.tokenizer.group, spec.tokenizer.kind
    latents = latent_space(tokenizer, spec.data)
    side = latents.grid[0]
    grouped = group == 1 or isinstance(latents, Continuous)
    _need(grouped, f"tokenizer.group {group}: codes are not grouped; set it to 1, or output to latents")
    _need(side % group == 0, f"tokenizer.group {group} does not divide the {side} x {side} latents of an image")
    size = f"data.image_size {spec.data.image_size} gives {num_tokens(spec.space):,} tokens an image, at most"
    _need(num_tokens(spec.space) <= MOST_TOKENS, f"{size} {MOST_TOKENS:,}: lower it, or raise tokenizer.stride")
    if not isinstance(tokenizer, TrainedTokenizer):
        rgb = spec.data.channels == 3 or not hasattr(tokenizer, "weights")
        _need(rgb, f"data.channels {spec.data.channels} must be 3: '{kind}' is for RGB images")
        fits = tokenizer.stride == 16 or not kind.startswith("ldm_")
        _need(fits, f"tokenizer.stride {tokenizer.stride}: '{kind}' has a stride of 16")
        return
    width, unit = tokenizer.width, 4 if tokenizer.stride <= 2 else 2
    _need(width % unit == 0, f"tokenizer.width {width} must be a multiple of {unit}: its norms have 8 groups")
    if tokenizer.kind == "vq":
        what = "tokens of the batch that initialises the codebook; lower it or raise tokenizer.batch_size"
        _at_most(tokenizer.vocab_size, tokenizer.batch_size * num_tokens(latents), "tokenizer.vocab_size", what)


def _model(spec: RunSpec) -> None:
    model, part, space, tokenizer = spec.model, drawing_part(spec.model), spec.space, spec.tokenizer.kind
    path, backbone = ("model.backbone", model.backbone) if isinstance(model, ARModel) else ("model", model)
    role = "head" if isinstance(model, ARModel) else "model"
    needed, given = part.space.__name__.lower(), type(space).__name__.lower()
    _need(needed == given, f"{role} '{part.kind}' needs {needed} tokens but tokenizer '{tokenizer}' gives {given} ones")
    dim, heads = backbone.dim, backbone.num_heads
    _need(dim % heads == 0, f"{path}.dim {dim} is not a multiple of num_heads {heads}")
    _need(dim * backbone.mlp_ratio >= 1, f"{path}.mlp_ratio {backbone.mlp_ratio} leaves no unit of dim {dim}")
    if isinstance(model, DiTModel):
        side, patch = space.grid[0], model.patch_size
        _need(side % patch == 0, f"model.patch_size {patch} does not divide the {side} x {side} latents of an image")
        _need(dim % 4 == 0, f"model.dim {dim} must be a multiple of 4: its positions are sines of two axes")
    elif model.backbone.kind == "masked":
        low, high = model.backbone.masking.low, model.backbone.masking.high
        holds = low <= high and high > 0
        _need(holds, f"model.backbone.masking: low {low} must not be above high {high}, and high must not be 0")


def _training(spec: RunSpec) -> None:
    dropout, scale, weights = spec.train.label_dropout, spec.sampling.guidance_scale, spec.sampling.weights
    what = f"must lie strictly between 0 and 1 for guidance; sampling.guidance_scale 1, now {scale}, turns it off"
    _need(scale == 1 or 0 < dropout < 1, f"train.label_dropout {dropout} {what}")
    one_kind = f"sampling.weights {weights}: published weights have only one kind; leave it at ema"
    _need(spec.train.published is None or weights == "ema", one_kind)


def _sampling(spec: RunSpec) -> None:
    sampling, model, part, space = spec.sampling, spec.model, drawing_part(spec.model), spec.space
    if part.denoises:
        steps, most = sampling.num_diffusion_steps, getattr(part, "num_train_timesteps", 1000)
        _need(steps is not None, f"sampling.num_diffusion_steps is null but '{part.kind}' denoises; give a number")
        _need((steps or 0) <= most, f"sampling.num_diffusion_steps {steps} must lie between 1 and {most}")
    if isinstance(model, DiTModel):
        if sampling.guided_channels is not None and isinstance(space, Continuous):
            _at_most(sampling.guided_channels, space.dim, "sampling.guided_channels", "channels of a token")
        return
    steps, length, order = sampling.num_ar_steps or 0, num_tokens(space), sampling.order
    _need(steps <= length, f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image")
    causal, confident = model.backbone.attention == "causal", order == "confidence"
    probabilities = "sampling.order confidence needs a head with probabilities of tokens: cross_entropy"
    _need(model.head.space is Discrete or not confident, probabilities)
    _need(not (causal and confident), "sampling.order confidence needs the masked backbone, which sees open positions")
    one = f"sampling.num_ar_steps {steps}: causal attention draws one token per step; use null or the masked backbone"
    _need(not causal or steps == length, one)
    trained = (
        f"sampling.order {order}: a causal backbone trained in {model.order} order draws in no other; set it to null"
    )
    _need(not causal or order == model.order, trained)


def _metrics(spec: RunSpec) -> None:
    images, metrics, name = spec.sampling.num_images, spec.metrics, spec.metrics.extractor.name
    left = images - -(-images // metrics.jackknife_groups)  # without the largest jackknife group
    largest = {"jackknife_groups": images, "is_splits": left, "kid_subset_size": images, "neighbours": left - 1}
    for key, most in largest.items():
        given = getattr(metrics, key)
        _need(given <= most, f"metrics.{key} {given} is too many for sampling.num_images {images}; lower it")
    for key in ("kid_subset_size", "neighbours"):
        _at_most(getattr(metrics, key), metrics.reference_images, f"metrics.{key}", "of metrics.reference_images")
    other = f"a file, made with another extractor than the classifier '{name}'; set its kind to training"
    _need(metrics.reference.kind != "file" or not metrics.extractor.trained, f"metrics.reference is {other}")
