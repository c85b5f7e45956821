"""Training: one loop for generators, tokenizers and extractors, check-pointed and resumed bit for bit."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mar_bench.build import build_generator, count_parameters, pick_device
from mar_bench.errors import UserError
from mar_bench.latents import Latents
from mar_bench.model import ARGenerator
from mar_bench.noise import NoiseSource, epoch_indices, seeded
from mar_bench.records import atomic_write, replacing
from mar_bench.schedules import learning_rate
from mar_bench.spec import RunSpec

Progress = Callable[[int, int], None]  # (step, total); raises to stop the work cleanly
LOG_EVERY = 50
LOSS_IMAGES, LOSS_BATCH = 500, 50  # images and batch of the final losses on both splits


def fit(
    module: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
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
) -> None:
    """AdamW for ``steps`` steps of ``loss_at(step)``, a scalar that depends on the step and the weights alone.

    Writes metrics.jsonl and checkpoint.pt into ``folder`` and goes on from a checkpoint that it finds there.
    Raises UserError where the loss is no longer finite; on any exception of ``progress`` saves first."""
    optimiser = torch.optim.AdamW(
        parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}],
        lr=lr_at(0),
        betas=betas,
        weight_decay=0.0,
        fused=True,
    )
    device = next(module.parameters()).device
    checkpoint, log = folder / "checkpoint.pt", folder / "metrics.jsonl"
    parts = {"model": module, "optimiser": optimiser, **({"ema": ema} if ema is not None else {})}
    start, spent = 0, 0.0
    if state := _checkpoint(checkpoint):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, spent = state["step"], state["seconds"]
    lines = [line for line in _lines(log) if json.loads(line)["step"] < start] if start else []
    began = time.perf_counter() - spent

    def save(step: int) -> None:
        atomic_write(log, "".join(f"{line}\n" for line in lines))
        states = {name: part.state_dict() for name, part in parts.items()}
        with replacing(checkpoint) as temporary:
            torch.save({**states, "step": step, "seconds": time.perf_counter() - began}, temporary)

    module.train()
    for step in range(start, steps):
        try:
            progress(step, steps)
        except BaseException:
            save(step)
            raise
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step)
        with seeded(seed, f"torch-{step}", device):
            loss = loss_at(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), grad_clip or math.inf)
        optimiser.step()
        if ema is not None:
            ema.update_parameters(module)
        if step % LOG_EVERY == 0 or step == steps - 1:
            if not math.isfinite(loss.item()):
                raise UserError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
            seconds = round(time.perf_counter() - began, 2)
            entry = {"step": step, "loss": loss.item(), "lr": lr_at(step), "grad_norm": norm.item(), "seconds": seconds}
            lines.append(json.dumps(entry))
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            save(step + 1)
    module.eval()
    atomic_write(log, "".join(f"{line}\n" for line in lines))
    checkpoint.unlink(missing_ok=True)


def _checkpoint(path: Path) -> dict | None:
    """What a check-point holds; None where there is none. A damaged one is put aside: the training starts anew."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a cut or altered file fails in many ways
        aside = path.with_name(f".damaged-{path.name}")
        path.replace(aside)
        warnings.warn(f"{path} is damaged ({type(error).__name__}), put aside as {aside.name}", stacklevel=2)
        return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def decay_groups(model: ARGenerator, weight_decay: float) -> list[dict]:
    """AdamW's groups: no decay on biases, norms, other 1-D parameters and the head (official code)."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim <= 1 or name.startswith("head.") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def train_generator(spec: RunSpec, latents: Latents, folder: Path, progress: Progress) -> dict:
    """Train the generator of ``spec`` on stored latents; writes model and EMA weights into ``folder``.

    Returns the training summary: final losses on both splits, seconds, parameter counts."""
    train = spec.train
    device = pick_device(spec.compute.device)
    model = build_generator(spec).to(device)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    slots = range(train.batch_size)
    noise = NoiseSource(train.seed, slots)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")

    def loss_at(step: int) -> torch.Tensor:
        indices = epoch_indices(train.seed, step, slots, train.batch_size, len(latents.labels))
        tokens = latents.draw(indices, noise, step).to(device)
        labels = latents.labels[indices].to(device)
        with autocast:
            return model(tokens, labels, noise, step).mean()

    fit(
        model,
        loss_at,
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
    )
    save_file(model.state_dict(), folder / "raw.safetensors")
    save_file(ema.module.state_dict(), folder / "ema.safetensors")
    losses = {
        "loss_train": split_loss(ema.module, latents, False, train.seed),
        "loss_heldout": split_loss(ema.module, latents, True, train.seed),
    }
    last = json.loads(_lines(folder / "metrics.jsonl")[-1])
    return {**losses, "steps": train.steps, "seconds": last["seconds"], "parameters": count_parameters(model)}


@torch.no_grad()
def split_loss(model: ARGenerator, latents: Latents, heldout: bool, seed: int) -> float:
    """Mean loss over the first images of a split, unaugmented, with the same noise for both splits."""
    model.eval()
    device = next(model.parameters()).device
    stored, labels = latents.split(heldout)
    total, count = 0.0, 0
    for batch in range(0, min(LOSS_IMAGES, len(labels)), LOSS_BATCH):
        rows = slice(batch, min(batch + LOSS_BATCH, len(labels)))
        tokens = latents.tokens_of({k: v[rows] for k, v in stored.items()}, None).to(device)
        noise = NoiseSource(seed, range(len(tokens)))
        # steps of the losses are counted from far beyond any training step, so that no draw is used twice
        loss = model.loss(tokens, labels[rows].to(device), noise, 2**40 + batch)
        total, count = total + loss.sum().item(), count + loss.numel()
    return total / count
