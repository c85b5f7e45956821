"""What must hold between the fields of a spec, and its normal form."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from mar_bench.errors import UserError
from mar_bench.parse import join
from mar_bench.spec import RunSpec, num_tokens


def finish(spec: RunSpec) -> RunSpec:
    """Fill what follows from other fields, drop knobs that the row's parts do not have, and check.

    So two rows that draw the same images have the same spec and the same ids. Raises UserError with the way out.
    """
    stride, size = spec.tokenizer.stride, spec.data.image_size
    if not (stride > 0 and stride & (stride - 1) == 0 and size > 0 and size % stride == 0):
        raise UserError(f"tokenizer.stride {stride} must be a power of two that divides data.image_size {size}")
    length, sampling, model = num_tokens(spec.space), spec.sampling, spec.model
    if model.head.denoises and sampling.num_diffusion_steps is None:
        raise UserError(f"sampling.num_diffusion_steps is null but the {model.head.kind} head denoises; give a number")
    spec = replace(
        spec,
        sampling=replace(
            sampling,
            order=sampling.order or model.order,
            num_ar_steps=length if sampling.num_ar_steps is None else sampling.num_ar_steps,
            num_diffusion_steps=sampling.num_diffusion_steps if model.head.denoises else None,
            clamp_x0=sampling.clamp_x0 if model.head.denoises else None,
            guidance_schedule="linear" if sampling.guidance_scale == 1 else sampling.guidance_schedule,
        ),
    )
    check(spec)
    return spec


def check(spec: RunSpec) -> None:
    """Cross-field rules. Raises UserError with the way out."""
    data, tokenizer, model, train, sampling = spec.data, spec.tokenizer, spec.model, spec.train, spec.sampling
    backbone, head = model.backbone, model.head

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise UserError(message)

    length = num_tokens(spec.space)
    need(
        isinstance(spec.space, head.space),
        f"head '{head.kind}' needs {head.space.__name__.lower()} tokens but tokenizer '{tokenizer.kind}' gives "
        f"{type(spec.space).__name__.lower()} ones; take another head or another tokenizer",
    )
    steps = sampling.num_ar_steps
    need(
        1 <= steps <= length,
        f"sampling.num_ar_steps {steps} must lie between 1 and the {length} tokens of an image "
        "(null: one token a step)",
    )
    need(
        backbone.attention != "causal" or steps == length,
        f"causal attention draws one token a step: sampling.num_ar_steps {steps} is fewer than the {length} tokens; "
        "set it to null or take the masked backbone",
    )
    need(
        backbone.attention != "causal" or sampling.order == model.order,
        f"a causal backbone trained in {model.order} order cannot be sampled in {sampling.order} order; "
        "leave sampling.order null",
    )
    need(
        sampling.guidance_scale == 1 or 0 < train.label_dropout < 1,
        f"guidance (sampling.guidance_scale {sampling.guidance_scale}) needs a model trained both with and without "
        f"class: train.label_dropout {train.label_dropout} must lie strictly between 0 and 1, or turn guidance off (1)",
    )
    need(backbone.dim % backbone.num_heads == 0, f"model.backbone.dim {backbone.dim} is not a multiple of num_heads")
    if head.denoises:
        need(
            1 <= sampling.num_diffusion_steps <= head.num_train_timesteps,
            f"sampling.num_diffusion_steps {sampling.num_diffusion_steps} must lie between 1 and "
            f"model.head.num_train_timesteps {head.num_train_timesteps}",
        )
    if hasattr(backbone, "masking"):
        masking = backbone.masking
        need(
            0 <= masking.low <= masking.high <= 1 and masking.high > 0,
            f"model.backbone.masking: 0 <= low {masking.low} <= high {masking.high} <= 1 must hold",
        )
        if masking.kind == "truncated_normal":
            need(masking.std > 0, f"model.backbone.masking.std {masking.std} must be above 0")
    need(0 <= train.label_dropout <= 1, f"train.label_dropout {train.label_dropout} must lie between 0 and 1")
    need(0 <= train.ema_decay < 1, f"train.ema_decay {train.ema_decay} must lie in [0, 1)")
    need(sampling.temperature > 0, f"sampling.temperature {sampling.temperature} must be above 0")
    need(
        sampling.clamp_x0 is None or sampling.clamp_x0 > 0,
        f"sampling.clamp_x0 {sampling.clamp_x0} must be above 0 (null: no clamp)",
    )
    need(sampling.num_images >= 2, f"sampling.num_images {sampling.num_images}: a distance needs at least 2 images")
    need(0 <= backbone.dropout < 1, f"model.backbone.dropout {backbone.dropout} must lie in [0, 1)")
    need(getattr(data, "heldout", 2) >= 2, f"data.heldout {getattr(data, 'heldout', 0)} must be at least 2")
    for path, value in _positive(spec):
        need(value > 0, f"{path} {value} must be above 0")


_POSITIVE = {
    "steps", "batch_size", "lr", "width", "dim", "depth", "encoder_depth", "decoder_depth", "num_heads", "latent_dim",
    "vocab_size", "code_dim", "feature_dim", "num_class_tokens", "draws_per_token", "num_train_timesteps", "repeats",
    "threads", "checkpoint_every", "is_splits", "image_size", "channels", "num_classes", "mlp_ratio", "grad_clip",
    "scale", "init_std",
}  # fmt: skip


def _positive(block: Any, path: str = ""):
    for f in fields(block):
        value = getattr(block, f.name)
        if is_dataclass(value):
            yield from _positive(value, join(path, f.name))
        elif f.name in _POSITIVE:
            yield join(path, f.name), value
