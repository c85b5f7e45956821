"""Rules between the fields of a spec, and its normal form. Ranges of single fields are in their types (parse.py)."""

from __future__ import annotations

from dataclasses import replace

from mar_bench.config.spec import LikelihoodSpec, RunSpec, SamplingSpec, TrainSpec
from mar_bench.config.spec_data import Continuous, Discrete, TrainedTokenizer, latent_space, num_tokens
from mar_bench.config.spec_model import ARModel, DiTModel, ModelSpec, drawing_part
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
    model, train = _relevant_training(spec)
    spec = replace(spec, model=model, train=train)
    sampling = _relevant_sampling(spec)
    floats = isinstance(latent_space(spec.tokenizer, spec.data), Continuous) and spec.tokenizer.kind != "pixel"
    latents = spec.latents if floats else replace(spec.latents, dtype="fp32")  # codes and bytes have no such type
    likelihood = _relevant_likelihood(spec, sampling.order)
    spec = replace(spec, sampling=sampling, latents=latents, likelihood=likelihood)
    for rules in (_data, _tokenizer, _model, _training, _sampling, _metrics):
        rules(spec)
    return spec


def _relevant_training(spec: RunSpec) -> tuple[ModelSpec, TrainSpec]:
    """The model and its training without settings that change nothing, and with one name for each order."""
    model, train = spec.model, spec.train
    if train.published is not None:  # the rest of the training has no effect
        train = TrainSpec(published=train.published, weights=train.weights)
    train = replace(train, snapshots=tuple(sorted({*train.snapshots} - {train.steps})))
    if train.images == _images_to_train_on(spec):
        train = replace(train, images=None)
    if isinstance(model, DiTModel):
        return model, replace(train, annealing=None)
    if spec.sampling.order == "permuted" != model.order and model.order_seed:
        raise UserError(f"model.order_seed {model.order_seed}: only a model in permuted order has one; set it to 0")
    if model.order == "random" and train.annealing in ((0, 0), (1, 1)):  # raster or random order throughout
        model = replace(model, order="raster" if train.annealing == (0, 0) else "random")
        train = replace(train, annealing=None)
    return replace(model, order_seed=model.order_seed if model.order == "permuted" else 0), train


def _images_to_train_on(spec: RunSpec) -> int | None:
    """Training images of a built-in data set; None for others, which are not known before they are loaded."""
    built_in = BUILT_IN.get(spec.data.kind)
    return None if built_in is None else built_in - spec.data.heldout


def _relevant_sampling(spec: RunSpec) -> SamplingSpec:
    """The sampling with every setting that the model uses filled in, and all others reset to neutral values."""
    given, model, part = spec.sampling, spec.model, drawing_part(spec.model)
    unguided, whole = given.guidance_scale == 1, isinstance(model, DiTModel)
    order = None if isinstance(model, DiTModel) else given.order or ("raster" if spec.train.annealing else model.order)
    temperature = CHOICE_TEMPERATURE if given.choice_temperature is None else given.choice_temperature
    length = num_tokens(spec.space) if given.num_ar_steps is None else given.num_ar_steps
    channels = None if unguided or given.guided_channels == getattr(spec.space, "dim", None) else given.guided_channels
    sampler = given.sampler if part.diffuses else "ddpm"
    draws = part.draws and sampler == "ddpm"  # the other samplers add no noise to scale
    steps = given.num_diffusion_steps if part.denoises else None
    once = whole or length == 1  # a single AR step, or none
    anneals = not once and steps not in (None, given.last_diffusion_steps)
    return replace(
        given,
        num_diffusion_steps=steps,
        last_diffusion_steps=given.last_diffusion_steps if anneals else None,
        clamp_x0=given.clamp_x0 if part.diffuses else None,
        temperature=given.temperature if draws else 1.0,
        guidance_schedule="linear" if unguided else "constant" if whole else given.guidance_schedule,
        order=order,
        choice_temperature=temperature if order == "confidence" else None,
        num_ar_steps=None if whole else length,
        ar_schedule="cosine" if once or length == num_tokens(spec.space) else given.ar_schedule,
        sampler=sampler,
        guidance_interval=None if whole or unguided or given.guidance_interval == (0, 1) else given.guidance_interval,
        guided_channels=channels if whole else None,
        snapshot=None if given.snapshot == spec.train.steps else given.snapshot,
    )


def _relevant_likelihood(spec: RunSpec, order: str | None) -> LikelihoodSpec:
    """The likelihood with settings that the model ignores at their defaults, and None for all positions or steps."""
    given, unused, head = spec.likelihood, LikelihoodSpec(), drawing_part(spec.model)
    steps = getattr(head, "num_train_timesteps", None)
    skipped = 0 if steps is None else given.skipped_timesteps
    what = "steps that can be left out of the head's num_train_timesteps; at least 3 remain"
    _at_most(skipped, max(0, (steps or 0) - 3), "likelihood.skipped_timesteps", what)
    every = given.timesteps is None or (steps is not None and given.timesteps >= steps - skipped)
    return replace(
        given,
        orders=unused.orders if order in ("raster", "permuted") else given.orders,
        positions=None if (given.positions or 0) >= num_tokens(spec.space) else given.positions,
        skipped_timesteps=skipped,
        timesteps=unused.timesteps if steps is None else None if every else given.timesteps,
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
    if data.kind not in NATIVE:  # a plugin's
        _trained_on(spec, data.images[0])
        _heldout(spec, data.images[1])
        return
    native = NATIVE[data.kind]
    _need(data.image_size % native == 0, f"data.image_size {data.image_size} must be a multiple of {native}")
    _need(data.channels == 1, f"data.channels {data.channels} must be 1: {data.kind} is grey")
    if data.heldout is not None:
        _heldout(spec, data.heldout)
    if data.kind == "idx":  # how many images it has is known when its files are read
        return
    images, left = BUILT_IN[data.kind], _images_to_train_on(spec) or 0
    _need(data.num_classes == 10, f"data.num_classes {data.num_classes} must be 10: {data.kind} has ten digits")
    _need(left >= 2, f"data.heldout {data.heldout} leaves nothing to train on: {data.kind} has {images} images")
    _trained_on(spec, left)


def check_counts(spec: RunSpec, train: int, heldout: int) -> None:
    """Raises UserError for a setting that needs more images than the data set has."""
    _heldout(spec, min(heldout, spec.data.heldout or heldout))
    _trained_on(spec, train)


def _heldout(spec: RunSpec, images: int) -> None:
    for key in ("is_splits", "kid_subset_size"):
        _at_most(getattr(spec.metrics, key), images, f"metrics.{key}", "held-out images (data.heldout)")


def _trained_on(spec: RunSpec, images: int) -> None:
    name = getattr(spec.data, "name", spec.data.kind)
    batches = {"tokenizer": spec.tokenizer, "metrics.extractor": spec.metrics.extractor, "train": spec.train}
    for path, part in batches.items():
        if path != "train" or spec.train.published is None:
            _at_most(getattr(part, "batch_size", 0), images, f"{path}.batch_size", f"training images of {name}")
    _at_most(spec.train.images or 0, images, "train.images", f"training images of {name}")


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
    train, order = spec.train, getattr(spec.model, "order", None)
    if train.annealing is not None:
        start, end = train.annealing
        _need(start <= end, f"train.annealing: its start {start:g} must not be above its end {end:g}")
        _need(order == "random", f"train.annealing needs model.order random, now {order}; set it to null")
    if train.images is not None:
        _at_most(train.batch_size, train.images, "train.batch_size", "images of train.images")
    dropout, scale, weights = spec.train.label_dropout, spec.sampling.guidance_scale, spec.sampling.weights
    what = f"must lie strictly between 0 and 1 for guidance; sampling.guidance_scale 1, now {scale}, turns it off"
    _need(scale == 1 or 0 < dropout < 1, f"train.label_dropout {dropout} {what}")
    one_kind = f"sampling.weights {weights}: published weights have only one kind; leave it at ema"
    _need(spec.train.published is None or weights == "ema", one_kind)
    train, snapshot = spec.train, spec.sampling.snapshot
    for step in train.snapshots:
        _at_most(step, train.steps, "train.snapshots: step", "steps of training, train.steps; shorten the list")
    if snapshot is not None:
        kept = f"kept are {', '.join(map(str, train.snapshots)) or 'none'} (train.snapshots) and the end, null"
        _need(snapshot in train.snapshots, f"sampling.snapshot {snapshot}: no weights are kept after this step; {kept}")
        _need(weights == "ema", f"sampling.weights {weights}: snapshots are of the ema weights; set it to ema")
        whole = f"sampling.snapshot {snapshot}: a part of an annealed training is not what a shorter one ends with"
        _need(train.annealing is None, f"{whole}; set it or train.annealing to null")


def _sampling(spec: RunSpec) -> None:
    sampling, model, part, space = spec.sampling, spec.model, drawing_part(spec.model), spec.space
    if part.denoises:
        steps, most = sampling.num_diffusion_steps, getattr(part, "num_train_timesteps", 1000)
        _need(steps is not None, f"sampling.num_diffusion_steps is null but '{part.kind}' denoises; give a number")
        for key in ("num_diffusion_steps", "last_diffusion_steps"):
            given = getattr(sampling, key)
            _need((given or 0) <= most, f"sampling.{key} {given} must lie between 1 and {most}")
    if isinstance(model, DiTModel):
        if sampling.guided_channels is not None and isinstance(space, Continuous):
            _at_most(sampling.guided_channels, space.dim, "sampling.guided_channels", "channels of a token")
        return
    steps, length, order = sampling.num_ar_steps or 0, num_tokens(space), sampling.order
    _need(steps <= length, f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image")
    if sampling.guidance_interval is not None:
        start, end = sampling.guidance_interval
        _need(start < end, f"sampling.guidance_interval: its start {start:g} must be below its end {end:g}")
    if order == "checkerboard":
        first = (length + 1) // 2
        what = f"must lie between 2 and {first + 1}: all AR steps but the last draw the {first} tokens of one colour"
        _need(2 <= steps <= first + 1, f"sampling.num_ar_steps {steps} of checkerboard order {what}")
    causal, confident = model.backbone.attention == "causal", order == "confidence"
    probabilities = "sampling.order confidence needs a head with probabilities of tokens: cross_entropy"
    _need(model.head.space is Discrete or not confident, probabilities)
    sees = f"sampling.order {order} needs the masked backbone, which sees open positions"
    _need(not (causal and order in ("confidence", "checkerboard")), sees)
    one = f"sampling.num_ar_steps {steps}: causal attention draws one token per step; use null or the masked backbone"
    _need(not causal or steps == length, one)
    trained = [model.order, "raster"] if spec.train.annealing else [model.order]
    other = f"a causal backbone trained in {' and '.join(trained)} order draws in no other; set it to null"
    _need(not causal or order in trained, f"sampling.order {order}: {other}")


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
