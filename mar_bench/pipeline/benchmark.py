"""How fast a model samples and trains on this machine, and what share of the machine's limits it reaches.

Random weights suffice. Limits are measured, not taken from data sheets: the rate of a large matrix product, and that of
copying memory."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mar_bench.config.spec import Discrete, RunSpec, drawing_part, num_tokens
from mar_bench.data.latents import Latents
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.build import build_generator, build_tokenizer, count_parameters, generate
from mar_bench.models.schedules import ar_steps
from mar_bench.pipeline.cost import sampling_flops, training_flops
from mar_bench.pipeline.outputs import for_sampling
from mar_bench.pipeline.rehearse import decoding_flops, stand_in
from mar_bench.pipeline.room import room
from mar_bench.pipeline.speed import PARTS, forget_peak, now, peak_memory, sampling_laps
from mar_bench.pipeline.train import AUTOCAST, installed_memory, train_generator
from mar_bench.utils.errors import Superseded
from mar_bench.utils.noise import NoiseSource

MATRIX = {"cuda": 8192, "cpu": 2048}  # side of the matrices whose product is timed
COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes
TRIES = 5
UNSURE = 3  # the factor within which estimates of memory lie


@dataclass(frozen=True)
class Limits:
    """Measured rates of a device: operations and bytes per second."""

    flops: float
    bytes: float


def limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of a few tries each: a square matrix product, and a copy, which reads and writes."""

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(TRIES):
            begin = now(device)
            work()
            seconds.append(now(device) - begin)
        return min(seconds)

    side, size = MATRIX[device.type], COPIED[device.type]
    a, b = (torch.full((side, side), 0.5, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * side**3 / best(lambda: a @ b)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return Limits(flops, 2 * size / best(lambda: target.copy_(source)))


class _Launches(TorchDispatchMode):
    """Counts the operations that compute something; a view launches no kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not (func.is_view or func.namespace != "aten")
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def launches(spec: RunSpec, model: Generator, device: torch.device) -> float | None:
    """Operations that a denoising step launches, before any compiler merges them; None without denoising."""
    if not drawing_part(spec.model).denoises:
        return None
    counts = []
    if isinstance(model, ARGenerator):
        vars(model.head).pop("sample", None)  # the class's own, instead of graphs
    for steps in (2, 3, 2, 3):  # the first two also make what is kept, such as tables
        sampling = replace(spec.sampling, num_diffusion_steps=steps, last_diffusion_steps=None, order=None)
        if isinstance(model, ARGenerator):
            sampling = replace(sampling, num_ar_steps=None if sampling.num_ar_steps is None else 1)
        with _Launches() as found:
            generate(model, torch.zeros(1, dtype=torch.int64, device=device), sampling, NoiseSource(0, [0]))
        counts.append(found.count)
    ar_steps = model.length if isinstance(model, ARGenerator) and spec.sampling.num_ar_steps is None else 1
    return (counts[3] - counts[2]) / ar_steps


def weight_bytes(spec: RunSpec, model: Generator) -> float:
    """Bytes of weights that are read while a batch is sampled, if each pass reads them once."""
    sizes, sampling, each = count_parameters(model), spec.sampling, AUTOCAST[spec.sampling.precision].itemsize
    if not isinstance(model, ARGenerator):
        return each * (sampling.num_diffusion_steps or 1) * sizes["total"]
    steps = ar_steps(sampling, sampling.order or model.order, model.length)
    return each * sum(sizes["backbone"] + (step.denoising or 1) * sizes["head"] for step in steps)


def measure(name: str, spec: RunSpec, size: int, repeats: int, device: torch.device, train: bool) -> dict[str, Any]:
    """Seconds of batches of ``size`` images (``laps``), of whole training steps or of sampling, and what explains them;
    ``error`` in their place if memory ran out."""
    forget_peak(device)
    row: dict[str, Any] = {"model": name, "batch": size, "pixels": spec.data.image_size}
    if (needed := _needed(spec, size, train)) > UNSURE * installed_memory(device):  # the system would kill the process
        return row | {"error": f"needs about {needed / 1e9:,.0f} GB of memory"}
    try:
        row |= _training(spec, size, repeats, device) if train else _sampling(spec, size, repeats, device)
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):  # the latter on the CPU
            raise
        return row | {"error": "out of memory"}
    row["peak_memory"] = peak_memory(device)
    rates = limits(device, AUTOCAST[(spec.train if train else spec.sampling).precision])
    needs = {"compute": row["flops"] * size / rates.flops, "memory": row["bytes"] / rates.bytes}
    row["limit"] = max(needs, key=lambda name: needs[name])
    return row | {"share_of_limit": needs[row["limit"]] / statistics.median(row["laps"])}


def _needed(spec: RunSpec, size: int, train: bool) -> float:
    """An estimate of the bytes of memory for batches of ``size`` images."""
    train_spec, speed_spec = replace(spec.train, batch_size=size), replace(spec.speed, batch_size=size)
    return room("train" if train else "speed", replace(spec, train=train_spec, speed=speed_spec))[0]


def _sampling(spec: RunSpec, size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    with torch.device("meta"):
        decode = decoding_flops(spec, build_tokenizer(spec)) or 0.0
    model = for_sampling(build_generator(spec), spec, device)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = stand_in(spec, Path(folder)).to(device)
    laps = sampling_laps(spec, model, tokenizer, device, size, repeats)
    shares = {part: laps.share(part) for part in PARTS}
    return {
        "parameters": count_parameters(model)["total"],
        "laps": laps.wholes,
        **shares,
        "other": 1 - sum(shares.values()),
        "flops": sampling_flops(spec) + decode,
        "bytes": weight_bytes(spec, model),
        "launches": launches(spec, model, device),
    }


def _training(spec: RunSpec, size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """The loop that trains all models, on random tokens; it is left before it saves anything."""
    length, space = num_tokens(spec.space), spec.space
    images = 4 * size
    noise = NoiseSource(0, range(images))
    if isinstance(space, Discrete):
        tokens = noise.integers("tokens", 0, space.vocab_size, (length,))
    else:
        tokens = noise.normal("tokens", 0, (length, space.dim))
    labels = torch.arange(images) % spec.data.num_classes
    latents = Latents({"tokens": tokens[None]}, {}, labels, labels[:0], lambda stored, noise: stored["tokens"], False)
    train = replace(spec.train, batch_size=size, steps=10**6, snapshots=(), published=None, images=None)
    begins: list[float] = []

    def at_each_step(step: int, *_: float) -> None:
        begins.append(now(device))
        if step > repeats:  # the first step warms up
            raise Superseded

    with tempfile.TemporaryDirectory() as folder, suppress(Superseded):
        train_generator(replace(spec, train=train), latents, Path(folder), at_each_step)
    with torch.device("meta"):
        parameters = count_parameters(build_generator(spec))["total"]
    laps = [after - before for before, after in itertools.pairwise(begins[1:])]
    # weights are read forwards and backwards; gradients, two moments and the average are read and written
    return {"parameters": parameters, "laps": laps, "flops": training_flops(spec), "bytes": 4.0 * parameters * 12}


def _quartiles(laps: list[float]) -> list[float]:
    return np.quantile(laps, [0.25, 0.5, 0.75]).tolist()


def timm_line(row: dict[str, Any], train: bool) -> dict[str, Any]:
    """A row in the columns of timm's benchmark script, then ours: step times in milliseconds, sizes in millions."""
    kind = "train" if train else "infer"
    line = {"model": row["model"], f"{kind}_batch_size": row["batch"], f"{kind}_img_size": row["pixels"]}
    if "error" in row:
        return line | {"error": row["error"]}
    low, step, high = _quartiles(row["laps"])
    line |= {
        f"{kind}_samples_per_sec": round(row["batch"] / step, 3),
        f"{kind}_step_time": round(1e3 * step, 3),
        f"{kind}_gmacs": round(row["flops"] / 2e9, 5),
        "param_count": round(row["parameters"] / 1e6, 2),
        "step_time_q25": round(1e3 * low, 3),
        "step_time_q75": round(1e3 * high, 3),
        "repeats": len(row["laps"]),
        "peak_memory_mb": round(row["peak_memory"] / 1e6),
        "limit": row["limit"],
        "share_of_limit": round(row["share_of_limit"], 4),
    }
    shares = {f"share_{part}": round(row[part], 4) for part in (*PARTS, "other") if part in row}
    return line | shares | ({"launches_per_denoising_step": row["launches"]} if row.get("launches") else {})


def words(row: dict[str, Any]) -> dict[str, str]:
    """A row as cells of a table by heading."""
    cells = {"system": row["model"], "batch": str(row["batch"])}
    if "error" in row:
        return cells | {"s/image": row["error"]}
    low, median, high = (seconds / row["batch"] for seconds in _quartiles(row["laps"]))
    cells |= {"s/image": f"{median:.4g} ({low:.4g} to {high:.4g})", "images/s": f"{1 / median:.4g}"}
    cells |= {part: f"{row[part]:.0%}" for part in (*PARTS, "other") if part in row}
    cells |= {"peak MB": f"{row['peak_memory'] / 1e6:,.0f}", "GFLOP/image": f"{row['flops'] / 1e9:,.4g}"}
    cells |= {"limit": row["limit"], "reached": f"{row['share_of_limit']:.0%}"}
    return cells | ({"launches a denoising step": f"{row['launches']:g}"} if row.get("launches") else {})
