"""The training loop of tokenizers, extractors and generators (``fit``), checkpointed and resumed bit for bit; and the
training of a run's generator on stored latents."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from mar_bench.pipeline.store import LOG, SUMMARY
from mar_bench.utils.errors import Superseded, UserError
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.noise import NoiseSource, epoch_indices, seeded

KEPT = 2  # checkpoints: a full disk or a dying machine may truncate the newest
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_IMAGES, LOSS_BATCH = 500, 50  # images and batch of the final losses on both splits


def fit(
    module: nn.Module,
    losses_at: Callable[[int], Iterator[torch.Tensor]],
    *,
    steps: int,
    lr_at: Callable[[int], float],
    seed: int,
    folder: Path,
    progress: Progress,
    checkpoint_every: int,
    parameter_groups: list[dict] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    grad_clip: float | None = None,
    ema: AveragedModel | None = None,
    loss_scaling: bool = False,
    max_skipped: int = 20,
    log_every: int = 50,
    pause: float = 0.0,
    about: dict[str, Any] | None = None,
    world: World = ALONE,
) -> int:
    """Train with AdamW for ``steps`` steps; returns how many were skipped because a gradient was not finite.

    ``losses_at(step)`` yields scalars that depend only on the step and the weights; the step's loss is their sum, and
    each is differentiated before the next is drawn. Writes metrics.jsonl and checkpoints into ``folder`` and resumes
    from the newest intact one of the same id and inputs (in ``about``). Every rank calls this; rank 0 writes.

    Raises UserError after more than ``max_skipped`` skipped steps in a row. Any exception from ``progress`` is
    re-raised after saving."""
    groups = parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}]
    optimiser = torch.optim.AdamW(groups, lr=lr_at(0), betas=betas, weight_decay=0.0, fused=True)
    device = next(module.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=loss_scaling)
    parts: dict[str, Any] = {"model": module, "optimiser": optimiser, "scaler": scaler}
    parts |= {"ema": ema} if ema is not None else {}
    start, skipped, in_a_row, spent, lines, resumed = 0, 0, 0, 0.0, [], False
    if state := _resume(folder, about, world):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, skipped, in_a_row, spent, lines = (state[k] for k in ("step", "skipped", "in_a_row", "seconds", "log"))
        for values in optimiser.state.values():  # copied, as these may share the checkpoint's memory-mapped file
            values.update({k: v.clone() for k, v in values.items() if isinstance(v, torch.Tensor)})
        resumed = True
        del state
    began = time.perf_counter() - spent

    def save(step: int) -> None:
        if not world.first or (resumed and step == start):
            return
        atomic_write(folder / LOG, "".join(f"{line}\n" for line in lines))
        counts = {"step": step, "skipped": skipped, "in_a_row": in_a_row, "seconds": time.perf_counter() - began}
        # all randomness is a function of seed and step, so no generator state needs saving
        content = {
            **{name: part.state_dict() for name, part in parts.items()},
            **counts,
            "log": lines,
            "seed": seed,
            "about": about,
        }
        with replacing(written := folder / ".checkpoint") as temporary:
            torch.save(content, temporary)
        written.replace(folder / f"checkpoint-{step:09d}-{sha256_of(written)}.pt")
        for old in checkpoints(folder)[KEPT:]:
            old.unlink()

    module.train()
    purpose = "torch" if world.first else f"torch-{world.rank}"  # each rank has its own dropout
    for step in range(start, steps):
        try:
            if progress(step, steps) and step > start:
                save(step)
        except Superseded:
            raise
        except BaseException:
            save(step)
            raise
        time.sleep(pause)
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step)
        optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        with seeded(seed, f"{purpose}-{step}", device):
            for part in losses_at(step):
                scaler.scale(part).backward()
                loss += part.detach()
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(module.parameters(), grad_clip or math.inf)
        if norm.isfinite():
            in_a_row = 0
            scaler.step(optimiser)
            if ema is not None:
                ema.update_parameters(module)
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row > max_skipped:
                raise UserError(
                    f"{in_a_row} steps in a row up to step {step} had gradients that are not finite (loss "
                    f"{loss.item():.4g}); lower the learning rate, or use bf16 or fp32 instead of fp16"
                )
        scaler.update()
        if step % log_every == 0 or step == steps - 1:
            seconds = round(time.perf_counter() - began, 2)
            numbers = {"step": step, "loss": world.mean(loss.item()), "lr": lr_at(step), "grad_norm": norm.item()}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            lines.append(json.dumps({**finite, "skipped": skipped, "seconds": seconds}))
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            save(step + 1)
    if start < steps:
        save(steps)  # kept until the stage is marked done (store.mark_done)
    module.eval()
    return skipped


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training, newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _resume(folder: Path, about: dict[str, Any] | None, world: World) -> dict | None:
    """The newest intact checkpoint, memory-mapped; None if there is none.

    A checkpoint whose content does not match the SHA-256 in its name, or that was trained on latents that have been
    made again, is renamed. Raises UserError if it belongs to another training."""
    newest, about = None, about or {}
    for path in checkpoints(folder) if world.first else ():
        why = "is damaged"
        if sha256_of(path) == path.stem.rpartition("-")[2]:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            theirs = state.get("about") or {}
            if theirs.get("id") != about.get("id") or theirs.get("inputs") == about.get("inputs"):
                newest = path
                break
            why = "was trained on other latents"
        path.replace(aside := path.with_name(f".damaged-{path.name}"))
        warnings.warn(f"{path} {why}, renamed to {aside.name}", stacklevel=2)
    if (newest := world.agreed(newest)) is None:
        return None
    state = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
    if (state.get("about") or {}).get("id") != about.get("id"):
        raise UserError(f"{newest}: a checkpoint of another training; move it elsewhere")
    return state


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
    skipped = fit(
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
        loss_scaling=train.precision == "fp16",
        max_skipped=train.max_skipped_steps,
        log_every=spec.compute.log_every,
        pause=spec.compute.step_pause,
        about={"id": stage_ids(spec)["train_id"], "spec": as_tree(spec), "inputs": inputs},
        world=world,
    )
    if not world.first:
        return None
    save_tensors(model.state_dict(), folder / "raw.safetensors")
    save_tensors(ema.module.state_dict(), folder / "ema.safetensors")
    summary: dict[str, Any] = {"loss_train": split_loss(ema.module, latents, False, train.seed)}
    if len(latents.heldout_labels):
        summary["loss_heldout"] = split_loss(ema.module, latents, True, train.seed)
    for name, loss in summary.items():
        if not math.isfinite(loss):
            raise UserError(
                f"{name} of the trained weights is {loss}, {skipped} steps skipped; lower the learning rate"
            )
    last_line = json.loads((folder / LOG).read_text().splitlines()[-1])
    images = len(latents.labels)
    summary |= {"images": images, "epochs": round(train.steps * train.batch_size / images, 3)}
    summary |= {"steps": train.steps, "seconds": last_line["seconds"], "parameters": count_parameters(model)}
    summary |= {"skipped_steps": skipped} if skipped else {}
    return summary | ({"processes": world.size} if world.size > 1 else {})


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
    size = spec.compute.micro_batch or len(slots)
    parts = [slots[i : i + size] for i in range(0, len(slots), size)]
    dtype = AUTOCAST[train.precision]
    forward: Any = model
    if world.size > 1:
        forward = DistributedDataParallel(model, device_ids=[world.local_rank] if device.type == "cuda" else None)

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        for part in parts:
            noise = NoiseSource(train.seed, part)
            indices = epoch_indices(train.seed, step, part, train.batch_size, len(latents.labels))
            tokens, labels = latents.draw(indices, noise, step).to(device), latents.labels[indices].to(device)
            # gradients are synchronised with the last part; the context stays open while ``fit`` differentiates
            with contextlib.nullcontext() if part == parts[-1] or world.size == 1 else forward.no_sync():
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = forward(tokens, labels, noise, step).mean() * (len(part) / len(slots))
                yield loss

    return losses_at


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

    def update(averaged: list, current: list, count: torch.Tensor | int) -> None:
        most = (1 + int(count)) / (10 + int(count)) if train.ema_warmup else 1.0
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
