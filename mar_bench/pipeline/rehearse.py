"""Rehearsal: every distinct training of an experiment at its true size, for three real steps on the CPU.

It finds in minutes what a cluster would find after hours in the queue: whether model, head and tokenizer build, losses
are finite, a checkpoint resumes bit for bit, and a guided sample can be drawn and decoded. Each training runs in a
process of its own, so that the peak memory reported is its own."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mar_bench.config.ids import stage_ids
from mar_bench.config.spec import ARModel, RunSpec, drawing_part, is_causal, measures_scale, num_tokens
from mar_bench.data.datasets import ArrayImages, DataSet
from mar_bench.data.encode import build_latents
from mar_bench.data.images import IMAGE_ENDINGS, read_image
from mar_bench.data.latents import load_latents
from mar_bench.models import sampler
from mar_bench.models.build import TOKENIZERS, build_generator, build_tokenizer, count_parameters, generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.models.tokenizers.pretrained import net_of
from mar_bench.pipeline.cost import gpu_hours, sampling_flops, training_flops
from mar_bench.pipeline.fit import checkpoints
from mar_bench.pipeline.flops import META, decoding_flops, on_meta
from mar_bench.pipeline.train import train_generator
from mar_bench.records.provenance import provenance
from mar_bench.utils.errors import UserError, described
from mar_bench.utils.files import sha256_of
from mar_bench.utils.noise import NoiseSource, seeded

STEPS, RESUME_AT = 3, 2
AR_STEPS, DENOISING_STEPS, CAUSAL_TOKENS = 4, 4, 8  # of the sample
BYTES_TRAINED = 20  # per parameter: weights, gradient, two moments and the average, four bytes each
BYTES_STORED = 40  # per parameter: two checkpoints of all but the gradient, raw and averaged weights
SPARE = 2 * 10**9  # bytes for libraries, the tokenizer and activations of a few images
WEIGHTS = ("raw.safetensors", "ema.safetensors")


@dataclass
class Rehearsal:
    """Findings about one training, which ``rows`` share. Memory in bytes, times in seconds."""

    rows: list[str]
    parameters: dict[str, int]
    tokenizer_parameters: int
    flops: dict[str, float]  # of a training "step", and to "decode" an image
    image_flops: dict[str, float]  # to sample an image, by row
    gpu_hours: dict[str, float]  # of "training", and of "sampling" all rows
    steps: int = 0
    images_a_step: int = 0
    seconds_a_step: float = 0.0
    losses: list[float] = field(default_factory=list)
    checkpoint_bytes: int = 0
    resumed_equal: bool | None = None
    sample_seconds: float = 0.0
    peak_bytes: int = 0
    seconds: float = 0.0
    error: str | None = None


def trainings(rows: dict[str, RunSpec]) -> list[list[str]]:
    """The rows of each distinct training; published weights are not trained."""
    found: dict[str, list[str]] = {}
    for row, spec in rows.items():
        if spec.train.published is None:
            found.setdefault(stage_ids(spec)["train_id"], []).append(row)
    return list(found.values())


def count(rows: dict[str, RunSpec], gpu: str) -> Iterator[Rehearsal]:
    """Parameters, FLOPs and GPU hours of each training, without running any."""
    for members in trainings(rows):
        spec = rows[members[0]]
        with META:
            tokenizer = build_tokenizer(spec)
        decode = decoding_flops(tokenizer)
        yield Rehearsal(
            members,
            count_parameters(on_meta(spec)),
            sum(p.numel() for p in tokenizer.parameters()),
            {"step": training_flops(spec) * spec.train.batch_size, "decode": decode},
            {row: sampling_flops(rows[row]) for row in members},
            {
                "training": gpu_hours("train", spec, gpu),
                "sampling": sum(gpu_hours("sample", rows[row], gpu, decode) for row in members),
            },
        )


# --- the parent process ---------------------------------------------------------------------------------


def rehearse_all(
    rows: dict[str, RunSpec], gpu: str, scratch: Path | None, images: str | None, batch: int, threads: int
) -> dict[str, Any]:
    """The content of a rehearsal's report; without ``scratch``, a folder for temporary files, nothing is trained."""
    folder, found = Path(images) if images else None, []
    picture_files(folder)
    for item in count(rows, gpu):
        if scratch is not None:
            name, size = item.rows[0], item.parameters["total"]
            print(f"{name}: {size / 1e6:.0f}M parameters", file=sys.stderr, flush=True)
            item = rehearse(item, rows[name], folder, scratch, batch, threads)
            outcome = item.error or f"{item.seconds / 60:.1f} min, {item.peak_bytes / 1e9:.1f} GB"
            print(f"{name}: {'FAILED: ' * bool(item.error)}{outcome}", file=sys.stderr, flush=True)
        found.append(asdict(item))
    return {
        "gpu": gpu,
        "images": "pictures of a folder" if images else "the photographs of scikit-learn",
        "provenance": provenance("cpu", threads, sum(item["seconds"] for item in found)),
        "found": found,
    }


def rehearse(
    found: Rehearsal, spec: RunSpec, images: Path | None, scratch: Path, batch: int, threads: int
) -> Rehearsal:
    """Rehearse one training in a child process; a failure is part of the result.

    Raises UserError if memory or disk is too small."""
    check_room(found, scratch)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # in the child, freed tensors go back to the system at once
    with tempfile.TemporaryDirectory(dir=scratch, prefix="rehearsal-") as folder:
        work = (theirs, spec, images, Path(folder), batch, threads)
        process = context.Process(target=_child, args=work, daemon=True)
        process.start()
        theirs.close()
        try:
            answer = ours.recv()
        except EOFError:
            process.join()
            answer = {"error": f"the process died (exit code {process.exitcode}; -9 is often out of memory)"}
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join()
    return replace(found, **answer)


def check_room(found: Rehearsal, scratch: Path) -> None:
    """Raises UserError if memory or disk is too small for a training of this size."""
    size = found.parameters["total"]
    for what, each, free, way_out in (
        ("memory", BYTES_TRAINED, _free_memory(), "use a larger machine"),
        ("disk", BYTES_STORED, shutil.disk_usage(scratch).free, f"choose a folder other than {scratch} with --runs"),
    ):
        if (needed := each * size + SPARE) > free:
            raise UserError(
                f"{found.rows[0]}: {size / 1e6:.0f}M parameters need about {needed / 1e9:.0f} GB of {what}, "
                f"{free / 1e9:.0f} GB are free; {way_out}"
            )


def _free_memory() -> int:
    """Bytes available to a new process on this machine."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- the child process ----------------------------------------------------------------------------------


def _child(pipe: Connection, *work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    begin = time.perf_counter()
    answer: dict[str, Any]
    try:
        answer = try_training(*work)
    except Exception as error:
        answer = {"error": described(error)}
    unit = 1 if sys.platform == "darwin" else 1024
    answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    answer["seconds"] = time.perf_counter() - begin
    pipe.send(answer)


def try_training(spec: RunSpec, images: Path | None, folder: Path, batch: int, threads: int) -> dict[str, Any]:
    """Encode a few images, train, resume from the checkpoint before the last step, and draw one guided sample."""
    torch.set_num_threads(threads)
    spec = small_run(spec, batch)
    tokenizer = _tokenizer(spec, folder)
    pixels = pictures(images, batch, spec.data.image_size, spec.data.channels)
    data = DataSet(
        ArrayImages(pixels, np.arange(batch) % spec.data.num_classes), ArrayImages(pixels[:1], np.zeros(1, dtype=int))
    )
    (folder / "latents").mkdir()
    build_latents(spec, data, tokenizer, folder / "latents", torch.device("cpu"), lambda done, total: None)
    latents = load_latents(folder / "latents", TOKENIZERS[spec.tokenizer.kind])

    def weights_after(first_step: int) -> list[str] | None:
        """Hashes of the trained weights; None unless training began at ``first_step``."""
        steps: list[int] = []
        train_generator(spec, latents, folder, lambda step, total: steps.append(step))
        gc.collect()  # modules with hooks are cycles; at this size they must be gone before the next one is built
        return [sha256_of(folder / name) for name in WEIGHTS] if steps[0] == first_step else None

    expected = weights_after(0)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoints(folder)[0]
    size = newest.stat().st_size
    newest.unlink()
    resumed = weights_after(RESUME_AT)
    begin = time.perf_counter()
    model = build_generator(spec)
    model.load_state_dict(load_file(folder / "ema.safetensors"))
    sample_one(spec, model, tokenizer)
    return {
        "steps": STEPS,
        "images_a_step": batch,
        "seconds_a_step": min(b["seconds"] - a["seconds"] for a, b in zip(log, log[1:])),
        "losses": [line["loss"] for line in log],
        "checkpoint_bytes": size,
        "resumed_equal": resumed is not None and resumed == expected,
        "sample_seconds": time.perf_counter() - begin,
    }


def small_run(spec: RunSpec, batch: int) -> RunSpec:
    """The same architecture with few images, few training steps and few sampling steps, on the CPU."""
    train = replace(spec.train, steps=STEPS, batch_size=batch, warmup_steps=1)
    compute = replace(
        spec.compute, device="cpu", checkpoint_every=RESUME_AT, compile=False, micro_batch=None, log_every=1
    )
    part, ar_steps = drawing_part(spec.model), spec.sampling.num_ar_steps
    if isinstance(spec.model, ARModel) and not is_causal(spec.model):
        ar_steps = min(AR_STEPS, num_tokens(spec.space))
    most = getattr(part, "num_train_timesteps", DENOISING_STEPS)
    sampling = replace(
        spec.sampling,
        num_ar_steps=ar_steps,
        num_diffusion_steps=min(DENOISING_STEPS, most) if part.denoises else None,
        guidance_scale=3.0,
        clamp_x0=4.0 if part.clamps else None,  # after three steps predictions are far off
    )
    return replace(spec, train=train, compute=compute, sampling=sampling)


def _tokenizer(spec: RunSpec, folder: Path) -> Tokenizer:
    """With its weights, or with random ones if none are given, through a file as real ones would come."""
    part: Any = spec.tokenizer
    if hasattr(part, "weights") and part.weights is None:
        weights = folder / "tokenizer.safetensors"
        with seeded(0, "rehearsal"):
            save_file(net_of(part).state_dict(), weights)
        part = replace(part, weights=str(weights))
    if measures_scale(part):
        part = replace(part, scale=1.0)  # measured on the whole data set, which is not here
    return build_tokenizer(replace(spec, tokenizer=part)).eval().requires_grad_(False)


def picture_files(folder: Path | None) -> list[Path]:
    """Image files below a folder; None: scikit-learn's two photographs. Raises UserError if there are none."""
    if folder is None:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no image in it ({', '.join(sorted(IMAGE_ENDINGS))})")
    return found


def pictures(folder: Path | None, count: int, size: int, channels: int) -> np.ndarray:
    """Real images uint8 (count, channels, size, size), mirrored where a folder has too few.

    Raises UserError for an image that cannot be read."""
    found = picture_files(folder)
    step = max(1, len(found) // count)  # spread over the classes
    images = [read_image(path, size, channels) for path in found[::step][:count]]
    return np.stack([images[i % len(images)][..., :: -1 if (i // len(images)) % 2 else 1] for i in range(count)])


def sample_one(spec: RunSpec, model: Any, tokenizer: Tokenizer) -> None:
    """Draw one guided image, with a kv-cache its first tokens only, and decode it.

    Raises UserError if tokens are not finite."""
    model.eval()
    noise, labels = NoiseSource(0, [0]), torch.zeros(1, dtype=torch.int64)
    if is_causal(spec.model):
        tokens = sampler.generate(model, labels, spec.sampling, noise, limit=CAUSAL_TOKENS)
    else:
        tokens = generate(model, labels, spec.sampling, noise)
    if not tokens.isfinite().all():
        raise UserError("the sampled tokens are not finite")
    with torch.inference_mode():
        tokenizer.decode(tokens, noise)
