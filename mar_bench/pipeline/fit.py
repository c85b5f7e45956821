"""The training loop of generators, tokenizers and extractors: checkpointed, and resumed bit for bit."""

from __future__ import annotations

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
from torch.optim.swa_utils import AveragedModel

from mar_bench.data.images import Progress
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.utils.errors import Superseded, UserError
from mar_bench.utils.files import atomic_write, replacing
from mar_bench.utils.noise import seeded

KEPT = 2  # checkpoints: a full disk or a dying machine may truncate the newest


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
    each is differentiated before the next is drawn. Writes metrics.jsonl and checkpoints into ``folder``, the last one
    after the last step, and resumes from the newest intact checkpoint there. ``about`` is stored in checkpoints; its
    "id" identifies the training they belong to.

    Raises UserError after more than ``max_skipped`` skipped steps in a row. Any exception from ``progress`` is
    re-raised after saving. Every rank calls this; rank 0 writes."""
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
    parts: dict[str, Any] = {"model": module, "optimiser": optimiser, "scaler": scaler}
    if ema is not None:
        parts["ema"] = ema
    start, skipped, in_a_row, spent = 0, 0, 0, 0.0
    if state := _resume(folder, about, world):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, skipped, in_a_row, spent = (state[k] for k in ("step", "skipped", "in_a_row", "seconds"))
        for values in optimiser.state.values():  # copied, as these may share the checkpoint's memory-mapped file
            values.update({k: v.clone() for k, v in values.items() if isinstance(v, torch.Tensor)})
        del state
    logged = log.read_text().splitlines() if start and log.is_file() else []
    lines = [line for line in logged if json.loads(line)["step"] < start]
    began = time.perf_counter() - spent

    def save(step: int) -> None:
        if not world.first:
            return
        atomic_write(log, "".join(f"{line}\n" for line in lines))
        counts = {"step": step, "skipped": skipped, "in_a_row": in_a_row, "seconds": time.perf_counter() - began}
        # all randomness is a function of seed and step, so no generator state needs saving
        content = {**{name: part.state_dict() for name, part in parts.items()}, **counts, "seed": seed, "about": about}
        with replacing(folder / f"checkpoint-{step:09d}.pt") as temporary:
            torch.save(content, temporary)
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
            numbers = {"loss": world.mean(loss.item()), "lr": lr_at(step), "grad_norm": norm.item()}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            lines.append(json.dumps({"step": step, **finite, "skipped": skipped, "seconds": seconds}))
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
    """The newest intact checkpoint, memory-mapped; None if there is none. Damaged ones are renamed.

    Raises UserError if it belongs to another training."""
    newest = None
    for path in checkpoints(folder) if world.first else ():
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            newest = path
            break
        except Exception as error:  # truncated or altered files fail in many ways
            path.replace(aside := path.with_name(f".damaged-{path.name}"))
            warnings.warn(f"{path} is damaged ({type(error).__name__}), renamed to {aside.name}", stacklevel=2)
    if (newest := world.agreed(newest)) is None:
        return None
    state = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
    if "step" not in state or (state.get("about") or {}).get("id") != (about or {}).get("id"):
        raise UserError(f"{newest}: a checkpoint of another training; move it elsewhere")
    return state


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file atomically."""
    with replacing(path) as temporary:
        save_file(tensors, temporary)
