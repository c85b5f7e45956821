"""The room that a run needs, from its spec alone: memory of a stage and disk for its output.

Estimates within a factor of three, to choose a machine by and to refuse what no machine has. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mar_bench.config.checks import BUILT_IN
from mar_bench.config.ids import Run
from mar_bench.config.spec import RunSpec, is_causal, num_tokens
from mar_bench.config.stages import STAGES
from mar_bench.pipeline.cost import TIME_FEATURES, block_flops, head_flops
from mar_bench.utils.errors import UserError

# bytes for each trained parameter: weight, gradient, two moments and EMA in memory; two checkpoints and both weights
STATE, KEPT = 20, 40
# floats kept for the backward pass, in units of its width, by a block besides its MLP, a layer of an MLP head and a
# convolutional net at full resolution
BLOCK, LAYER, CONVOLUTION = 8, 12, 12
PUBLISHED, CHANNELS, FEATURES = 4e8, 128, 2048  # a published network: bytes, channels at full resolution, features
PROJECTED = 2**21  # projected features that MIND sorts together, of 1,000 projections
LIBRARIES = 4e8  # bytes of torch and the rest in every process
CLASS_IMAGES = (1281, 50)  # training and held-out images of a class: ImageNet's, as a plan opens no folder
IDX_IMAGES = (60_000, 10_000)  # of MNIST and most of its relatives
ENCODED = 250, 2**22  # images, and pixels, encoded together at most
DECODED = 4 * 2**30  # bytes for the images that are decoded together
MEMORY, DISK = 32e12, 10e15  # bytes: the largest servers sold, and the file system of a large site


def parameters(spec: RunSpec) -> float:
    """Parameters of the generator without biases and norms: within a few percent."""
    model, space, length = spec.model, spec.space, num_tokens(spec.space)
    size = getattr(space, "vocab_size", 0) or getattr(space, "dim", 0)
    part, depth = _transformer(model)
    blocks = depth * block_flops(part.dim, part.mlp_ratio, 1, 0) / 2  # a weight is used once for each query
    if model.kind == "dit":
        patch = model.patch_size**2
        vectors = spec.data.num_classes + TIME_FEATURES + length // patch + 3 * patch * size
        return blocks + part.dim * vectors + part.dim**2 * (6 * depth + 3)
    vectors = spec.data.num_classes + size + part.dim + 3 * length + 2 * part.num_class_tokens
    once, _, training = head_flops(model.head, part.dim, space)
    return blocks + part.dim * vectors + (once + training / _draws(model.head)) / 2


def _transformer(model: Any) -> tuple[Any, int]:
    """The part of a model that is a transformer, and its number of blocks."""
    part = model if model.kind == "dit" else model.backbone
    return part, part.depth if hasattr(part, "depth") else part.encoder_depth + part.decoder_depth


def _draws(head: Any) -> int:
    return getattr(head, "draws_per_token", 0) or getattr(head, "samples_per_token", 1)


def room(stage: str, spec: RunSpec) -> tuple[float, float]:
    """Bytes of memory that a stage needs in one process, and of disk for its output.

    A training's whole batch counts, unless ``compute.micro_batch`` divides it (``auto``: as far as it must); ranks
    share it."""
    data, metrics, sampling, length = spec.data, spec.metrics, spec.sampling, num_tokens(spec.space)
    pixels, (train, heldout) = data.image_size**2, _images(data)
    loaded = (train + heldout) * pixels * data.channels * (data.kind != "imagefolder")  # read image by image
    token = 4 * getattr(spec.space, "dim", 2)  # float32, or a code in 8 bytes
    batch = {"speed": spec.speed.batch_size, "likelihood": spec.likelihood.batch_size}.get(stage, sampling.batch_size)
    width, decoding = _width(spec), _decoding_bytes(spec)
    fixed = loaded + (0 if spec.tokenizer.trained else PUBLISHED)
    if stage in ("tokenizer", "extractor"):
        part: Any = spec.tokenizer if stage == "tokenizer" else metrics.extractor
        kept = 0 if stage == "tokenizer" else _reference_bytes(spec, train, heldout)
        if not part.trained:
            return PUBLISHED + kept, kept
        weights = 4 * part.width * (250 * part.width + pixels / 64 * getattr(part, "feature_dim", 0))
        training = STATE / 4 * weights + 4 * CONVOLUTION * part.batch_size * pixels * part.width
        return loaded + training + kept, weights + kept
    if stage == "latents":
        views = (2 * data.shift + 1) ** 2 * (2 if data.flip else 1)
        tensors = 2 if "kl" in spec.tokenizer.kind else 1  # mean and std
        stored = length * tensors * (token / 2 if spec.latents.dtype == "fp16" else token)
        shard = min(train, spec.latents.shard_images) * views * stored
        return fixed + 12 * min(ENCODED[0] * pixels, ENCODED[1]) * width + shard, stored * (train * views + heldout)
    weights = parameters(spec)
    if stage == "train":
        given = spec.compute.micro_batch
        micro = 1 if given == "auto" else min(spec.train.batch_size, given or spec.train.batch_size)
        snapshots = 4 * len(spec.train.snapshots) * weights  # in memory, in the checkpoints and as files
        trained = STATE * weights + micro * _kept_bytes(spec) + snapshots, KEPT * weights + 3 * snapshots
        return trained if spec.train.published is None else (4 * weights, 4 * weights)
    drawing = 4 * weights + batch * _drawing_bytes(spec)
    if stage == "sample":
        return drawing, sampling.num_images * length * token
    if stage == "likelihood":
        steps = spec.likelihood.timesteps or getattr(spec.model.head, "num_train_timesteps", 0)
        return drawing + batch * length * token * steps, 0  # the noise of the bound
    if stage == "speed":
        return drawing + fixed + min(batch, decoded_together(spec)) * decoding, 0
    seen, size = sampling.num_images if stage == "generation" else heldout, _features(spec)
    groups = (2 * metrics.jackknife_groups + 6) * 8 * size**2  # covariances
    memory = 4 * seen * size + groups + _reference_bytes(spec, train, heldout) + 32 * metrics.kid_subset_size**2
    memory += 96 * min(PROJECTED, 1000 * min(seen, metrics.reference_images))
    memory += fixed + min(batch, decoded_together(spec)) * decoding
    return memory, 8 * size**2 + metrics.keep_features * 4 * seen * size


def fitting_batch(spec: RunSpec, memory: float) -> int:
    """Images of a training step that fit into so many bytes beside the state of the training; at least 1."""
    return max(1, int((memory - STATE * parameters(spec)) / _kept_bytes(spec)))


def decoded_together(spec: RunSpec) -> int:
    """Images that are decoded at once, at most."""
    return max(1, int(DECODED / _decoding_bytes(spec)))


def _decoding_bytes(spec: RunSpec) -> float:
    """Of an image: a layer's input, output and one between."""
    return 12 * spec.data.image_size**2 * _width(spec)


def _width(spec: RunSpec) -> int:
    """Channels of a tokenizer's widest layer at full resolution."""
    return spec.data.channels if spec.tokenizer.kind == "pixel" else getattr(spec.tokenizer, "width", CHANNELS)


def _images(data: Any) -> tuple[int, int]:
    """Training and held-out images."""
    if data.kind in BUILT_IN:
        return BUILT_IN[data.kind] - data.heldout, data.heldout
    if data.kind == "idx":
        return IDX_IMAGES[0], data.heldout or IDX_IMAGES[1]
    if data.kind != "imagefolder":  # a plugin's
        return data.images
    return CLASS_IMAGES[0] * data.num_classes, CLASS_IMAGES[1] * data.num_classes


def _features(spec: RunSpec) -> int:
    return getattr(spec.metrics.extractor, "feature_dim", FEATURES)


def _reference_bytes(spec: RunSpec, train: int, heldout: int) -> float:
    """Features and covariances of training and held-out images."""
    rows = sum(min(count, spec.metrics.reference_images) for count in (train, heldout))
    return 4 * rows * _features(spec) + 16 * _features(spec) ** 2


def _positions(spec: RunSpec) -> int:
    """The length of a transformer's sequence."""
    model, length = spec.model, num_tokens(spec.space)
    return length // model.patch_size**2 if model.kind == "dit" else length + model.backbone.num_class_tokens


def _kept_bytes(spec: RunSpec) -> float:
    """What one image keeps for the backward pass; attention weights are not kept."""
    model, length, (part, depth) = spec.model, num_tokens(spec.space), _transformer(spec.model)
    inside = BLOCK + 2 * part.mlp_ratio
    blocks = depth + inside if spec.compute.gradient_checkpointing else depth * inside
    floats = _positions(spec) * part.dim * blocks
    if model.kind == "ar":
        once, _, training = head_flops(model.head, part.dim, spec.space)
        wide, deep = getattr(model.head, "width", 0), getattr(model.head, "depth", 0)
        outputs = 0 if training else once / (2 * part.dim)
        floats += length * (_draws(model.head) * wide * LAYER * (deep + 1) + 3 * outputs)
    return floats * (4 if spec.train.precision == "fp32" else 2)


def _drawing_bytes(spec: RunSpec) -> float:
    """What drawing one image needs: values of a block and of the head, the cache of all blocks, the noise."""
    model, length, (part, depth) = spec.model, num_tokens(spec.space), _transformer(spec.model)
    cached = 2 * depth if is_causal(model) else 0
    noise = length * getattr(spec.space, "dim", 0) * ((spec.sampling.num_diffusion_steps or 0) + 1)
    values = _positions(spec) * part.dim * (BLOCK + 2 * part.mlp_ratio + cached)
    if model.kind == "ar":
        once, _, training = head_flops(model.head, part.dim, spec.space)
        values += length * (LAYER * getattr(model.head, "width", 0) + (0 if training else 3 * once / (2 * part.dim)))
    each = 4 if spec.sampling.precision == "fp32" else 2
    return (4 * noise + each * values) * (1 if spec.sampling.guidance_scale == 1 else 2)


def room_of(stages: Iterable[tuple[str, str, RunSpec]]) -> dict[str, Any]:
    """Memory of the largest of some stages (name, title, spec) and disk for all of them, in bytes.

    Raises UserError if no machine has as much."""
    memory, largest, disk = 0.0, "", 0.0
    for stage, title, spec in stages:
        needed, kept = room(stage, spec)
        memory, largest, disk = *max((memory, largest), (needed + LIBRARIES, title)), disk + kept
    if memory > MEMORY:
        what = f"{largest} needs about {memory / 1e12:,.0f} TB of memory in one process; no machine has that"
        raise UserError(f"{what}: lower its sizes or its batch, or set compute.micro_batch")
    if disk > DISK:
        raise UserError(f"this needs about {disk / 1e15:,.0f} PB of disk; no site has that: lower sizes or images")
    return {"memory_bytes": round(memory), "largest_stage": largest, "disk_bytes": round(disk)}


def check_room(runs: Iterable[Run]) -> None:
    """Raises UserError if a stage of the runs, done or not, needs more than any machine has."""
    stages = {}
    for run in runs:
        names = [*(name for name, stage in STAGES.items() if not stage.is_task), run.task]
        stages.update({run.ids[key]: (name, run) for name in names if (key := STAGES[name].id_key) in run.ids})
    room_of((name, f"{name} of {run.row}", run.spec) for name, run in stages.values())
