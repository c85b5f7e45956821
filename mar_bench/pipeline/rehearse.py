"""Rehearsal: every distinct training of an experiment at its true size, for three real steps on the CPU.

It checks in minutes what would otherwise fail after hours in a cluster's queue: model, head and tokenizer build, losses
are finite, a checkpoint resumes bit for bit, and a guided sample can be drawn and decoded. Each training has its own
process, whose peak memory is reported."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from mar_bench.config.ids import stage_ids
from mar_bench.config.spec import ARModel, Discrete, RunSpec, drawing_part, is_causal, measures_scale, num_tokens
from mar_bench.data.datasets import packaged, to_unit
from mar_bench.data.images import read_image
from mar_bench.data.latents import Latents
from mar_bench.models import sampler
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import build_generator, build_tokenizer, count_parameters, generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.models.tokenizers.pretrained import net_of
from mar_bench.pipeline.cost import gpu_hours, sampling_flops, training_flops
from mar_bench.pipeline.fit import checkpoints
from mar_bench.pipeline.run_local import cause, end, ignoring_interrupts
from mar_bench.pipeline.speed import peak_memory
from mar_bench.pipeline.train import train_generator
from mar_bench.records.provenance import provenance
from mar_bench.utils.errors import UserError, described
from mar_bench.utils.files import atomic_write, sha256_of
from mar_bench.utils.noise import NoiseSource, seeded

STEPS, RESUME_AT = 3, 2
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # of scikit-learn
AR_STEPS, DENOISING_STEPS, MOST_AR_STEPS = 4, 4, 8  # of the sample; with a kv-cache the rest is not drawn
ROOM = {"memory": 20, "disk": 40}  # bytes per parameter: five tensors of float32; two checkpoints and the weights
MEMORY = Path("/proc/meminfo")  # elsewhere than on Linux memory is not checked
SPARE = 2 * 10**9  # bytes for libraries, the tokenizer and activations of two images


def count(rows: dict[str, RunSpec], gpu: str) -> Iterator[dict[str, Any]]:
    """Parameters, FLOPs and GPU hours of each training, published weights aside, and the ``rows`` that share it."""
    trainings: dict[str, list[str]] = {}
    for row, spec in rows.items():
        if spec.train.published is None:
            trainings.setdefault(stage_ids(spec)["train_id"], []).append(row)
    for members in trainings.values():
        spec = rows[members[0]]
        with torch.device("meta"):
            model, tokenizer = build_generator(spec), build_tokenizer(spec)
        decode = decoding_flops(spec, tokenizer)
        sampling = sum(gpu_hours("sample", rows[row], gpu, decode or 0.0) for row in members)
        yield {
            "rows": members,
            "parameters": count_parameters(model),
            "tokenizer_parameters": sum(p.numel() for p in tokenizer.parameters()),
            "flops": {"step": training_flops(spec) * spec.train.batch_size, "decode": decode},
            "image_flops": {row: sampling_flops(rows[row]) for row in members},
            "gpu_hours": {"training": gpu_hours("train", spec, gpu), "sampling": sampling},
            **{"steps": 0, "resumed_equal": None, "seconds": 0.0, "error": None},
        }


def decoding_flops(spec: RunSpec, tokenizer: Tokenizer) -> float | None:
    """Operations of decoding one image, counted on the meta device; None for a decoder that reads values."""
    blank = torch.zeros(1, num_tokens(spec.space), 1, device="meta")
    tokens = blank[..., 0].long() if isinstance(spec.space, Discrete) else blank.expand(-1, -1, spec.space.dim)
    with suppress(RuntimeError), FlopCounterMode(display=False) as counter:
        tokenizer.decode(tokens)
        return float(counter.get_total_flops())
    return None


def rehearse_all(rows: dict[str, RunSpec], gpu: str, scratch: Path | None, threads: int) -> dict[str, Any]:
    """The content of a rehearsal's report; without ``scratch``, a folder for temporary files, nothing is trained.

    Raises UserError if memory or disk is too small."""
    found = []
    for item in count(rows, gpu):
        if scratch is not None:
            name = item["rows"][0]
            check_room(name, item["parameters"]["total"], scratch)
            print(f"{name}: ", end="", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=scratch, prefix="rehearsal-") as folder:
                item |= in_child(rows[name], Path(folder), threads)
            print(item["error"] or f"{item['seconds'] / 60:.1f} min", file=sys.stderr, flush=True)
        found.append(item)
    origin = provenance("cpu", threads, sum(item["seconds"] for item in found))
    return {"gpu": gpu, "images": "the photographs of scikit-learn", "provenance": origin, "found": found}


def check_room(name: str, parameters: int, scratch: Path) -> None:
    """Raises UserError if memory or disk is too small for a training of this size."""
    found = re.search(r"MemAvailable: *(\d+)", MEMORY.read_text()) if MEMORY.is_file() else None
    memory = int(found[1]) * 1024 if found else math.inf
    for what, free in {"memory": memory, "disk": shutil.disk_usage(scratch).free}.items():
        if (needed := ROOM[what] * parameters + SPARE) > free:
            raise UserError(
                f"{name}: {parameters / 1e6:.0f}M parameters need about {needed / 1e9:.0f} GB of {what}, "
                f"{free / 1e9:.0f} GB are free; use a larger machine, or another folder than {scratch} with --runs"
            )


def in_child(spec: RunSpec, folder: Path, threads: int) -> dict[str, Any]:
    """Call ``try_training`` in a separate process; a failure is part of the result."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # in the child, freed tensors go back to the system at once
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(spec, folder, threads))
    with ignoring_interrupts():
        process.start()
    try:
        process.join()
    finally:
        end(process, 0)
    died = {"error": f"the process died ({cause(process.exitcode)})"}
    return json.loads(answer.read_text()) if (answer := folder / "answer.json").is_file() else died


def _child(spec: RunSpec, folder: Path, threads: int) -> None:
    begin = time.perf_counter()
    torch.set_num_threads(threads)
    try:
        answer = try_training(spec, folder)
    except Exception as error:
        answer = {"error": described(error)}
    answer |= {"peak_bytes": peak_memory(torch.device("cpu")), "seconds": time.perf_counter() - begin}
    atomic_write(folder / "answer.json", json.dumps(answer))


def try_training(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Encode two images, train, resume from the checkpoint before the last step, draw and decode one guided sample."""
    spec = small_run(spec)
    tokenizer = stand_in(spec, folder)
    files = [packaged("sklearn", f"datasets/images/{name}") for name in PHOTOGRAPHS]
    pixels = np.stack([read_image(file, spec.data.image_size, spec.data.channels) for file in files])
    stored = {name: values[None] for name, values in tokenizer.stored(to_unit(torch.from_numpy(pixels))).items()}
    labels = torch.arange(len(files)) % spec.data.num_classes
    latents = Latents(stored, {}, labels, labels[:0], tokenizer.tokens_of, tokenizer.stochastic)

    def trained_from(first_step: int) -> list[str]:
        """Hashes of the trained weights; none unless training began at ``first_step``."""
        steps: list[int] = []
        train_generator(spec, latents, folder, lambda step, *_: steps.append(step))
        gc.collect()  # modules with hooks form reference cycles; free them before the next large model is built
        names = ("raw", "ema") if steps[0] == first_step else ()
        return [sha256_of(folder / f"{name}.safetensors") for name in names]

    expected = trained_from(0)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoints(folder)[0]
    size = newest.stat().st_size
    newest.unlink()
    resumed = trained_from(RESUME_AT)
    begin = time.perf_counter()
    model = build_generator(spec).eval()
    model.load_state_dict(load_file(folder / "ema.safetensors"))
    noise, label = NoiseSource(0, [0]), torch.zeros(1, dtype=torch.int64)
    draw: Any = partial(sampler.generate, limit=MOST_AR_STEPS) if isinstance(model, ARGenerator) else generate
    tokens = draw(model, label, spec.sampling, noise)
    if not tokens.isfinite().all():
        raise UserError("the sampled tokens are not finite")
    with torch.inference_mode():
        tokenizer.decode(tokens, noise)
    return {
        "steps": STEPS,
        "images_a_step": len(files),
        "seconds_a_step": min(b["seconds"] - a["seconds"] for a, b in zip(log, log[1:])),
        "losses": [line["loss"] for line in log],
        "checkpoint_bytes": size,
        "resumed_equal": resumed == expected,
        "sample_seconds": time.perf_counter() - begin,
    }


def small_run(spec: RunSpec) -> RunSpec:
    """The same architecture with few images, few training steps and few sampling steps, on the CPU."""
    part, ar_steps = drawing_part(spec.model), spec.sampling.num_ar_steps
    if isinstance(spec.model, ARModel) and not is_causal(spec.model):
        ar_steps = min(AR_STEPS, num_tokens(spec.space))
    denoising = min(DENOISING_STEPS, getattr(part, "num_train_timesteps", DENOISING_STEPS)) if part.denoises else None
    clamp = 4.0 if part.diffuses else None  # after three steps predictions are far off
    sampling = replace(
        spec.sampling, num_ar_steps=ar_steps, num_diffusion_steps=denoising, guidance_scale=3.0, clamp_x0=clamp
    )
    train = replace(spec.train, steps=STEPS, snapshots=(), batch_size=len(PHOTOGRAPHS), warmup_steps=1, images=None)
    compute: Any = dict(device="cpu", checkpoint_every=RESUME_AT, log_every=1, compile=False, micro_batch=None)
    return replace(spec, train=train, compute=replace(spec.compute, **compute), sampling=sampling)


def stand_in(spec: RunSpec, folder: Path) -> Tokenizer:
    """The tokenizer with its weights, or with random ones if none are given, loaded from a file like real ones."""
    part: Any = spec.tokenizer
    if getattr(part, "weights", "") is None:
        weights = folder / "tokenizer.safetensors"
        with seeded(0, "rehearsal"):
            save_file(net_of(part).state_dict(), weights)
        part = replace(part, weights=str(weights))
    if measures_scale(part):
        part = replace(part, scale=1.0)  # measured on the whole data set, which is not here
    return build_tokenizer(replace(spec, tokenizer=part)).eval().requires_grad_(False)
