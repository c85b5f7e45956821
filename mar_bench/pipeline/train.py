"""Training: one loop for generators, tokenizers and extractors, check-pointed and resumed bit for bit."""

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
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mar_bench.config.ids import stage_ids
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import ComputeSpec, RunSpec, TrainSpec
from mar_bench.data.latents import Latents
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator, count_parameters, pick_device
from mar_bench.models.schedules import learning_rate
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.utils.errors import Superseded, UserError
from mar_bench.utils.files import atomic_write, replacing
from mar_bench.utils.noise import NoiseSource, epoch_indices, seeded

# (step, total); raises to stop the work cleanly, and may answer that it is time to save
Progress = Callable[[int, int], bool | None]
KEPT = 2  # check-points: the newest may be cut by a full disk or a dying machine
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
    """AdamW for ``steps`` steps; returns how many were skipped because a gradient was not finite.

    ``losses_at(step)`` yields scalars that depend on the step and the weights alone; the step's loss is their sum,
    and each is differentiated before the next is asked for. Writes metrics.jsonl and check-points into ``folder``
    and goes on from the newest sound one that it finds there; the last is of the end. ``about`` is kept in them: its
    "id" says whose they are.

    Raises UserError after more than ``max_skipped`` skipped steps in a row; on any exception of ``progress`` saves
    first. Of several processes all call it, and the first one writes."""
    optimiser = torch.optim.AdamW(
        parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}],
        lr=lr_at(0),
        betas=betas,
        weight_decay=0.0,
        fused=True,
    )
    device = next(module.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=loss_scaling)
    log = folder / "metrics.jsonl"
    parts = {"model": module, "optimiser": optimiser, "scaler": scaler, **({"ema": ema} if ema is not None else {})}
    start, skipped, in_a_row, spent = 0, 0, 0, 0.0
    if state := _resume(folder, about, world):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, skipped, in_a_row, spent = (state[k] for k in ("step", "skipped", "in_a_row", "seconds"))
        _own(optimiser)
        del state
    lines = [line for line in _lines(log) if json.loads(line)["step"] < start] if start else []
    began = time.perf_counter() - spent

    def save(step: int) -> None:
        if not world.first:
            return
        atomic_write(log, "".join(f"{line}\n" for line in lines))
        counts = {"step": step, "skipped": skipped, "in_a_row": in_a_row, "seconds": time.perf_counter() - began}
        # all randomness is a function of the seed and the step, so these two are the state of every generator
        content = {**{name: part.state_dict() for name, part in parts.items()}, **counts, "seed": seed, "about": about}
        with replacing(folder / f"checkpoint-{step:09d}.pt") as temporary:
            torch.save(content, temporary)
        for old in checkpoints(folder)[KEPT:]:
            old.unlink()

    module.train()
    purpose = "torch" if world.first else f"torch-{world.rank}"  # each process drops out other units
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
                    f"{loss.item():.4g}); lower the learning rate, or train in bf16 or fp32 if this is fp16"
                )
        scaler.update()
        if step % log_every == 0 or step == steps - 1:
            seconds = round(time.perf_counter() - began, 2)
            numbers = {"loss": world.mean(loss.item()), "lr": lr_at(step), "grad_norm": norm.item()}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            lines.append(json.dumps({"step": step, **finite, "skipped": skipped, "seconds": seconds}))
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            save(step + 1)
    if start < steps:
        save(steps)  # it stays until what follows from it is safe (jobs.mark_done)
    module.eval()
    return skipped


def checkpoints(folder: Path) -> list[Path]:
    """The check-points of a training, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def _resume(folder: Path, about: dict[str, Any] | None, world: World) -> dict | None:
    """What the newest sound check-point holds, mapped into memory; None where there is none.

    Raises UserError for one that is of another training."""
    chosen = None
    if world.first:
        chosen = next((path for path in checkpoints(folder) if _read(path) is not None), None)
    if (chosen := world.agreed(chosen)) is None:
        return None
    state = torch.load(chosen, map_location="cpu", weights_only=True, mmap=True)
    if "step" not in state or (state.get("about") or {}).get("id") != (about or {}).get("id"):
        raise UserError(f"{chosen}: a check-point of another training; move it elsewhere")
    return state


def _read(path: Path) -> dict | None:
    """A check-point; a damaged one is put aside, so that the one before it counts."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a cut or altered file fails in many ways
        aside = path.with_name(f".damaged-{path.name}")
        path.replace(aside)
        warnings.warn(f"{path} is damaged ({type(error).__name__}), put aside as {aside.name}", stacklevel=2)
        return None


def _own(optimiser: torch.optim.Optimizer) -> None:
    """Copy what a loaded optimiser still shares with the check-point's file, which will be deleted."""
    for state in optimiser.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = value.clone()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, whole or not at all, that others may read too."""
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def decay_groups(model: Generator, weight_decay: float) -> list[dict]:
    """AdamW's groups: no decay on biases, norms, other 1-D parameters and the head (official code).

    Frozen parameters are in none."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (free if parameter.ndim <= 1 or name.startswith("head.") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def train_generator(
    spec: RunSpec, latents: Latents, folder: Path, progress: Progress, world: World = ALONE
) -> dict | None:
    """Train the generator of ``spec`` on stored latents; writes model and EMA weights into ``folder``.

    Returns the training summary: final losses on both splits, seconds, parameter counts; None where another of
    several processes writes it. Raises UserError where the batch cannot be split over them."""
    model, ema = generator_and_average(spec)
    skipped = fit_generator(spec, model, ema, latents, folder, progress, world)
    if not world.first:
        return None
    save_tensors(model.state_dict(), folder / "raw.safetensors")
    save_tensors(ema.module.state_dict(), folder / "ema.safetensors")
    losses = {
        "loss_train": split_loss(ema.module, latents, False, spec.train.seed),
        "loss_heldout": split_loss(ema.module, latents, True, spec.train.seed),
    }
    for name, loss in losses.items():
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"{name} of the trained weights is {loss} ({skipped} steps skipped); lower the learning rate"
            )
    return {
        **{name: loss for name, loss in losses.items() if loss is not None},
        "steps": spec.train.steps,
        "seconds": json.loads(_lines(folder / "metrics.jsonl")[-1])["seconds"],
        "parameters": count_parameters(model),
        **({"skipped_steps": skipped} if skipped else {}),
        **({"processes": world.size} if world.size > 1 else {}),
    }


def generator_and_average(spec: RunSpec) -> tuple[Generator, AveragedModel]:
    """A generator with fresh weights, set up for training, and the average that follows it."""
    model = build_generator(spec).to(pick_device(spec.compute.device))
    ema = AveragedModel(model, multi_avg_fn=ema_update(spec.train))
    change_blocks(model, spec.compute)
    return model, ema


def fit_generator(
    spec: RunSpec,
    model: Generator,
    ema: AveragedModel,
    latents: Latents,
    folder: Path,
    progress: Progress,
    world: World = ALONE,
) -> int:
    """``fit`` as the spec says; returns how many steps were skipped."""
    train = spec.train
    return fit(
        model,
        generator_losses(spec, model, latents, pick_device(spec.compute.device), world),
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
        about={"id": stage_ids(spec)["train_id"], "spec": as_tree(spec)},
        world=world,
    )


def generator_losses(
    spec: RunSpec, model: Generator, latents: Latents, device: torch.device, world: World
) -> Callable[[int], Iterator[torch.Tensor]]:
    """What ``fit`` asks for: the losses of a step's micro-batches, weighted so that they add up to the batch's mean.

    Every image of the global batch has its slot and its draws, however the batch is split over processes."""
    train = spec.train
    slots = world.share(range(train.batch_size))
    size = spec.compute.micro_batch or len(slots)
    parts = [slots[i : i + size] for i in range(0, len(slots), size)]
    dtype, forward = AUTOCAST[train.precision], model
    if world.size > 1:
        forward = DistributedDataParallel(model, device_ids=[world.local_rank] if device.type == "cuda" else None)

    def loss_of(part: range, step: int) -> torch.Tensor:
        noise = NoiseSource(train.seed, part)
        indices = epoch_indices(train.seed, step, part, train.batch_size, len(latents.labels))
        tokens = latents.draw(indices, noise, step).to(device)
        labels = latents.labels[indices].to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return forward(tokens, labels, noise, step).mean() * (len(part) / len(slots))

    def losses_at(step: int) -> Iterator[torch.Tensor]:
        for part in parts:
            # gradients travel with the last part; the context is still open while ``fit`` differentiates
            alone = forward.no_sync() if world.size > 1 and part != parts[-1] else contextlib.nullcontext()
            with alone:
                yield loss_of(part, step)

    return losses_at


def ema_update(train: TrainSpec) -> Callable:
    """How AveragedModel follows the weights: theta' = d theta' + (1 - d) theta, with a warm-up of d if asked for."""
    if not train.ema_warmup:
        return get_ema_multi_avg_fn(train.ema_decay)

    def update(averaged: list, current: list, count: torch.Tensor | int) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(train.ema_decay, (1 + n) / (10 + n)))(averaged, current, count)

    return update


def change_blocks(model: nn.Module, compute: ComputeSpec) -> None:
    """Make the repeated blocks of a model save memory or time in training, as ``compute`` says.

    In place, without a change of names; copies (EMA) are made before."""
    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    for block in blocks:
        if compute.gradient_checkpointing:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if compute.compile:
            block.compile(dynamic=True)  # the number of tokens changes from step to step


@torch.no_grad()
def split_loss(model: Generator, latents: Latents, heldout: bool, seed: int) -> float | None:
    """Mean loss over the first images of a split, unaugmented, with the same noise for both splits.

    None where the split is empty."""
    model.eval()
    device = next(model.parameters()).device
    stored, labels = latents.split(heldout)
    if not len(labels):
        return None
    total, count = 0.0, 0
    for batch in range(0, min(LOSS_IMAGES, len(labels)), LOSS_BATCH):
        rows = slice(batch, min(batch + LOSS_BATCH, len(labels)))
        tokens = latents.tokens_of({k: v[rows] for k, v in stored.items()}, None).to(device)
        noise = NoiseSource(seed, range(len(tokens)))
        # steps of the losses are counted from far beyond any training step, so that no draw is used twice
        loss = model.loss(tokens, labels[rows].to(device), noise, 2**40 + batch)
        total, count = total + loss.sum().item(), count + loss.numel()
    return total / count
