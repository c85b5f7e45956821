"""The training loop of tokenizers, extractors and generators, checkpointed and resumed bit for bit."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mar_bench.data.images import Progress
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.pipeline.store import LOG
from mar_bench.utils.ahead import Later
from mar_bench.utils.errors import Superseded, UserError
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.noise import seeded

KEPT = 2  # checkpoints: a full disk or a dying machine may truncate the newest


@dataclass(frozen=True)
class Fitted:
    """What ``fit`` hands back: ``snapshots`` holds the seconds and the EMA weights (on the CPU) after those steps."""

    skipped: int  # steps whose gradient was not finite
    seconds: float  # of the clock; of the processor for one thread on the CPU
    snapshots: dict[int, dict[str, Any]]


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
    snapshots: Collection[int] = (),
    loss_scaling: bool = False,
    max_skipped: int = 20,
    log_every: int = 50,
    pause: float = 0.0,
    about: dict[str, Any] | None = None,
    logged: Callable[[dict[str, Any]], object] = lambda line: None,
    world: World = ALONE,
) -> Fitted:
    """Train with AdamW for ``steps`` steps, keeping the EMA weights after each of the steps in ``snapshots``.

    ``losses_at(step)`` yields scalars that depend only on the step and the weights; the step's loss is their sum, and
    each is differentiated before the next is drawn. Writes metrics.jsonl and checkpoints into ``folder`` and resumes
    from the newest intact one of the same id and inputs (in ``about``). ``logged`` gets each line of the log when it is
    known. Every rank calls this; rank 0 writes.

    Raises UserError after more than ``max_skipped`` skipped steps in a row. Any exception from ``progress`` is
    re-raised after saving."""
    groups = parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}]
    optimiser = torch.optim.AdamW(groups, lr=lr_at(0), betas=betas, weight_decay=0.0, fused=True)
    device = next(module.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=loss_scaling)
    parts: dict[str, Any] = {"model": module, "optimiser": optimiser, "scaler": scaler}
    parts |= {"ema": ema} if ema is not None else {}
    start, skipped, in_a_row, spent, lines, resumed = 0, 0, 0, 0.0, [], False
    kept: dict[int, dict[str, Any]] = {}  # part of the checkpoints, so that it is as safe as they are
    # listed once: walking through the modules in each step takes a tenth of a small model's training
    weights: list[Tensor] = list(module.parameters())
    averages: list[Tensor] = list(ema.parameters()) if ema is not None else []
    if state := _resume(folder, about, world):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, skipped, in_a_row, spent, lines = (state[k] for k in ("step", "skipped", "in_a_row", "seconds", "log"))
        for values in optimiser.state.values():  # copied, as these may share the checkpoint's memory-mapped file
            values.update({k: v.clone() for k, v in values.items() if isinstance(v, Tensor)})
        kept = {step: {**at, "weights": _on_cpu(at["weights"])} for step, at in state.get("snapshots", {}).items()}
        resumed = True
        del state
    # one thread's processor time is what its training takes on an idle machine, whatever else runs beside it
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    began = clock() - spent

    behind = Later[tuple[int, float]](device)
    latest = math.nan  # loss

    def look_at(read: Iterable[tuple[tuple[int, float], list[float]]]) -> None:
        """Count skipped steps and log, given a step with its learning rate, and its loss and norm."""
        nonlocal skipped, in_a_row, latest
        for (step, lr), (loss, norm) in read:
            bad, latest = not math.isfinite(norm), loss
            skipped, in_a_row = skipped + bad, (in_a_row + 1) * bad
            if in_a_row > max_skipped:
                raise UserError(
                    f"{in_a_row} steps in a row up to step {step} had gradients that are not finite (loss {loss:.4g}); "
                    "lower the learning rate, or use bf16 or fp32 instead of fp16"
                )
            if step % log_every == 0 or step == steps - 1:
                numbers = {"step": step, "loss": world.mean(loss), "lr": lr, "grad_norm": norm}
                finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
                line = {**finite, "skipped": skipped, "seconds": round(clock() - began, 2)}
                lines.append(json.dumps(line))
                if world.first:
                    logged(line)

    def save(step: int) -> None:
        look_at(behind.due())
        if not world.first or (resumed and step == start):
            return
        atomic_write(folder / LOG, "".join(f"{line}\n" for line in lines))
        counts = {"step": step, "skipped": skipped, "in_a_row": in_a_row, "seconds": clock() - began}
        # all randomness is a function of seed and step, so no generator state needs saving
        content = {
            **{name: part.state_dict() for name, part in parts.items()},
            **counts,
            "snapshots": kept,
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
            if progress(step, steps, latest) and step > start:
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
        norm = nn.utils.clip_grad_norm_(weights, grad_clip or math.inf)
        if not loss_scaling:  # else the scaler sees to it
            optimiser.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # nonzero: the step does nothing
        scaler.step(optimiser)
        scaler.update()
        if ema is not None:
            _average(ema, averages, weights, step)
        look_at(behind((step, lr_at(step)), torch.stack([loss, norm])))
        if step + 1 in snapshots and ema is not None:
            kept[step + 1] = {"seconds": clock() - began, "weights": _on_cpu(ema.module.state_dict())}
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            save(step + 1)
    if start < steps:
        spent = clock() - began
        save(steps)  # kept until the stage is marked done (store.mark_done)
    module.eval()
    return Fitted(skipped, spent, kept)


@torch.no_grad()
def _average(ema: AveragedModel, averages: list[Tensor], weights: list[Tensor], count: int) -> None:
    """``ema.update_parameters`` with its parameters, the model's and the number of earlier updates given."""
    if count == 0:
        for average, values in zip(averages, weights):
            average.copy_(values)
    else:
        ema.multi_avg_fn(averages, weights, count)  # type: ignore[misc]
    ema.n_averaged += 1


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to("cpu", copy=True) for name, values in weights.items()}


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
