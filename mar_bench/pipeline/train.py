"""The training of a run's generator on stored latents."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mar_bench.config.ids import stage_ids
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import ARModel, ComputeSpec, RunSpec, TrainSpec
from mar_bench.data.images import Progress
from mar_bench.data.latents import Latents
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator, count_parameters, pick_device
from mar_bench.models.finite import check_finite
from mar_bench.models.pretrained.fetch import converted
from mar_bench.models.schedules import learning_rate
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.pipeline.fit import fit
from mar_bench.pipeline.room import fitting_batch
from mar_bench.pipeline.store import SUMMARY, weights_file
from mar_bench.utils.ahead import Ahead, placed
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.noise import NoiseSource, epoch_indices

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FILLED = 0.8  # of a device's free memory, by micro_batch auto: its estimate is rough
LOSS_IMAGES, LOSS_BATCH = 500, 50  # images and batch of the final losses on both splits


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file atomically. Raises UserError for a tensor that is not finite."""
    check_finite(tensors, path.name, "lower the learning rate")
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def train_generator(
    spec: RunSpec,
    latents: Latents,
    folder: Path,
    progress: Progress,
    world: World = ALONE,
    inputs: dict[str, str] | None = None,
) -> dict[str, Any] | None:
    """Train the generator of ``spec`` on stored latents; writes raw and EMA weights into ``folder``.

    ``inputs`` identifies the latents, for resuming. Returns the training summary (final losses on both splits, seconds,
    parameter counts); None on ranks other than 0.
    Raises UserError if the batch cannot be split over the ranks."""
    train, device, latents = spec.train, pick_device(spec.compute.device), latents.some(spec.train.images)
    model = build_generator(spec).to(device)
    ema = AveragedModel(model, multi_avg_fn=ema_update(train))
    change_blocks(model, spec.compute)
    fitted = fit(
        model,
        generator_losses(spec, model, latents, device, world),
        steps=train.steps,
        lr_at=lambda s: learning_rate(train.lr_schedule, train.lr, s, train.warmup_steps, train.steps),
        seed=train.seed,
        folder=folder,
        progress=progress,
        checkpoint_every=spec.compute.checkpoint_every,
        parameter_groups=decay_groups(model, train.weight_decay),
        betas=train.betas,
        grad_clip=train.grad_clip,
        ema=ema,
        snapshots=train.snapshots,
        loss_scaling=train.precision == "fp16",
        max_skipped=train.max_skipped_steps,
        log_every=spec.compute.log_every,
        pause=spec.compute.step_pause,
        about={"id": stage_ids(spec)["train_id"], "spec": as_tree(spec), "inputs": inputs},
        **({"logged": tensorboard(folder)} if spec.compute.tensorboard else {}),
        world=world,
    )
    if not world.first:
        return None
    save_tensors(model.state_dict(), folder / "raw.safetensors")
    save_tensors(ema.module.state_dict(), folder / "ema.safetensors")
    summary = _stand(ema.module, latents, train, train.steps, fitted.seconds, fitted.skipped)
    at_steps = {}
    for step, kept in sorted(fitted.snapshots.items()):
        save_tensors(kept["weights"], folder / weights_file("ema", step))
        ema.module.load_state_dict(kept["weights"])
        at_steps[str(step)] = _stand(ema.module, latents, train, step, kept["seconds"], fitted.skipped)
    summary |= {"snapshots": at_steps} if at_steps else {}
    summary |= {"images": len(latents.labels), "parameters": count_parameters(model)}
    summary |= {"skipped_steps": fitted.skipped} if fitted.skipped else {}
    return summary | ({"processes": world.size} if world.size > 1 else {})


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """What writes the lines of a training's log for TensorBoard into ``runs/tensorboard/<train_id>``.

    Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("compute.tensorboard: it is not installed; pip install 'mar-bench[tensorboard]'") from None
    place, writer = folder.parents[1] / "tensorboard" / folder.name, None

    def write(line: dict[str, Any]) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(str(place), purge_step=line["step"])  # a resumed training begins here
        for name in ("loss", "lr", "grad_norm", "skipped"):
            if line[name] is not None:
                writer.add_scalar(name, line[name], line["step"])
        writer.flush()

    return write


def _stand(
    model: nn.Module, latents: Latents, train: TrainSpec, steps: int, seconds: float, skipped: int
) -> dict[str, Any]:
    """How far a training has come: steps, epochs, seconds and the losses of its weights on both splits.

    Raises UserError if a loss is not finite."""
    losses = {"loss_train": split_loss(model, latents, False, train.seed)}
    if len(latents.heldout_labels):
        losses["loss_heldout"] = split_loss(model, latents, True, train.seed)
    for name, loss in losses.items():
        if not math.isfinite(loss):
            what = f"{name} of the weights after {steps} steps is {loss}, {skipped} steps skipped"
            raise UserError(f"{what}; lower the learning rate")
    epochs = round(steps * train.batch_size / len(latents.labels), 3)
    return {**losses, "steps": steps, "epochs": epochs, "seconds": round(seconds, 2)}


def take_published(spec: RunSpec, folder: Path) -> None:
    """Use a converted checkpoint as the training's result. Raises UserError if it does not fit the spec."""
    weights = Path(spec.train.weights or "")  # preflight has checked that the file exists
    heads = (converted(weights).get("architecture") or {}).get("num_heads")
    part = spec.model.backbone if isinstance(spec.model, ARModel) else spec.model
    if heads not in (None, part.num_heads):  # shapes do not show this
        own = f"the '{part.kind}' of the spec has num_heads {part.num_heads}"
        raise UserError(f"{weights}: these weights have {heads} attention heads, but {own}")
    with torch.device("meta"):
        model = build_generator(spec)
    try:
        model.load_state_dict(load_file(weights), strict=True, assign=True)
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{weights}: not the weights of '{spec.train.published}' as specified: {reason}") from None
    check_finite(model.state_dict(), weights, "get the file again")
    save_tensors(model.state_dict(), folder / "ema.safetensors")
    summary = {"published": spec.train.published, "sha256": sha256_of(weights), "parameters": count_parameters(model)}
    atomic_write(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def generator_losses(
    spec: RunSpec, model: Generator, latents: Latents, device: torch.device, world: World
) -> Callable[[int], Iterator[torch.Tensor]]:
    """The losses of a step's micro-batches for ``fit``, weighted so that they sum to the mean over the batch.

    Randomness belongs to an image's slot in the global batch, so it does not depend on how ranks split the batch."""
    train = spec.train
    slots = world.share(range(train.batch_size))
    size = micro_batch(spec, model, latents, len(slots), device)
    parts = [slots[i : i + size] for i in range(0, len(slots), size)]
    dtype = AUTOCAST[train.precision]
    forward: Any = model
    if world.size > 1:
        forward = DistributedDataParallel(model, device_ids=[world.local_rank] if device.type == "cuda" else None)

    def draw(step: int) -> list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
        """Tokens, labels and random numbers of each micro-batch."""
        drawn = []
        for part in parts:
            noise = NoiseSource(train.seed, part)
            indices = epoch_indices(train.seed, step, part, train.batch_size, len(latents.labels))
            drawn.append((latents.draw(indices, noise, step), latents.labels[indices], model.draw(noise, step)))
        return drawn

    draws = Ahead(draw, train.steps, device)

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        for part, batch in zip(parts, draws(step)):
            tokens, labels, drawn = placed(batch, device)
            # gradients are synchronised with the last part; the context stays open while ``fit`` differentiates
            with contextlib.nullcontext() if part == parts[-1] or world.size == 1 else forward.no_sync():
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = forward(tokens, labels, **drawn).mean() * (len(part) / len(slots))
                yield loss

    return losses_at


def micro_batch(spec: RunSpec, model: Generator, latents: Latents, count: int, device: torch.device) -> int:
    """The number of a step's ``count`` images in each of its forward passes, which are equal but for the last.

    ``auto`` begins with an estimate and halves it until a step fits; on the CPU it leaves half of the memory to other
    processes and the data."""
    given = spec.compute.micro_batch
    if given != "auto":
        return given or count
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else installed_memory(device) // 2
    size = min(count, fitting_batch(spec, FILLED * free))
    while size > 1 and not _fits(spec, model, latents, size, device):
        size //= 2
    return math.ceil(count / math.ceil(count / size))


def installed_memory(device: torch.device) -> int:
    """Bytes of the device, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _fits(spec: RunSpec, model: Generator, latents: Latents, size: int, device: torch.device) -> bool:
    """Whether there is memory for a forward and a backward pass of so many images."""
    noise, dtype = NoiseSource(spec.train.seed, range(size)), AUTOCAST[spec.train.precision]
    indices = np.arange(size) % len(latents.labels)
    try:
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]  # those of AdamW, to come
        tokens, labels = placed((latents.draw(indices, noise, 0), latents.labels[indices]), device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens, labels, noise, 0).mean()
        loss.backward()
        return bool(moments)
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def decay_groups(model: Generator, weight_decay: float) -> list[dict]:
    """Parameter groups for AdamW: no decay on biases, norms, other 1-D parameters and the head (official code).

    Frozen parameters are in neither group."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and not name.startswith("head.")].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def ema_update(train: TrainSpec) -> Callable:
    """AveragedModel's update theta' = d theta' + (1 - d) theta, with a warm-up of d if ``ema_warmup``."""

    def update(averaged: list, current: list, count: int) -> None:
        most = (1 + count) / (10 + count) if train.ema_warmup else 1.0
        get_ema_multi_avg_fn(min(train.ema_decay, most))(averaged, current, count)

    return update


def change_blocks(model: nn.Module, compute: ComputeSpec) -> None:
    """Apply gradient checkpointing and compilation to a model's repeated blocks, in place.

    Parameter names stay the same. Copies (EMA) must be made before."""
    for block in [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]:
        if compute.gradient_checkpointing:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compute.compile:
            block.compile(dynamic=True)  # the number of tokens varies per step


@torch.no_grad()
def split_loss(model: nn.Module, latents: Latents, heldout: bool, seed: int) -> float:
    """Mean loss over the first images of a split, unaugmented, with the same noise for both splits."""
    model.eval()
    device = next(model.parameters()).device
    stored, labels = latents.split(heldout)
    total, count = 0.0, 0
    for batch in range(0, min(LOSS_IMAGES, len(labels)), LOSS_BATCH):
        rows = slice(batch, batch + LOSS_BATCH)
        tokens = latents.tokens_of({k: v[rows] for k, v in stored.items()}, None).to(device)
        noise = NoiseSource(seed, range(len(tokens)))
        # numbered far beyond any training step, so no random draw is shared with training
        loss = model.loss(tokens, labels[rows].to(device), noise, 2**40 + batch)  # type: ignore[operator]
        total, count = total + loss.sum().item(), count + loss.numel()
    return total / count
