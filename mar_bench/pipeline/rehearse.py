"""A rehearsal: every distinct training of an experiment at its true architecture, for a few real steps.

What a cluster would find out after hours in the queue is found out here: that model, head and tokenizer build, that
losses and gradients are finite, that a check-point is written and resumed bit for bit, that a guided sample can be
drawn and decoded. Each training has a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import ARModel, RunSpec, drawing_part, is_causal, measures_scale, num_tokens
from mar_bench.data.datasets import IMAGE_ENDINGS, ArrayImages, DataSet, read_image
from mar_bench.data.latents import build_latents, load_latents
from mar_bench.models import sampler
from mar_bench.models.build import TOKENIZERS, build_tokenizer, count_parameters, generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.models.tokenizers.pretrained import net_of
from mar_bench.pipeline.cost import sampling_flops, training_flops
from mar_bench.pipeline.flops import decoding_flops, on_meta
from mar_bench.pipeline.train import checkpoints, fit_generator, generator_and_average
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource, seeded

STEPS, RESUME_AT = 3, 2
AR_STEPS, DENOISING_STEPS, CAUSAL_TOKENS = 4, 4, 8  # of the sample
BYTES_TRAINED = 20  # a parameter: weights, gradient, two moments and the average, four bytes each
BYTES_STORED = 16  # a parameter in a check-point: all but the gradient
SPARE = 2 * 10**9  # bytes for libraries, the tokenizer and activations of a few images


@dataclass
class Rehearsal:
    """What was found out about one training; ``rows`` share it. Memory in bytes, times in seconds."""

    rows: list[str]
    parameters: dict[str, int]
    tokenizer_parameters: int
    flops: dict[str, float]  # of a training "step", and to "decode" an image
    image_flops: dict[str, float]  # to sample an image, by row
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


def trainings(rows: dict[str, RunSpec]) -> dict[str, list[str]]:
    """train_id -> the rows that share it; published weights are not trained."""
    found: dict[str, list[str]] = {}
    for row, spec in rows.items():
        if spec.train.published is None:
            found.setdefault(generation_run(row, spec).ids["train_id"], []).append(row)
    return found


def count(rows: dict[str, RunSpec]) -> Iterator[Rehearsal]:
    """Parameters and FLOPs of each training, on the meta device."""
    sampled: dict[str, float] = {}  # rows that differ in guidance scale or temperature cost the same
    for train_id, members in trainings(rows).items():
        spec = rows[members[0]]
        with torch.device("meta"):
            tokenizer = build_tokenizer(spec)
        flops = {"step": training_flops(spec) * spec.train.batch_size, "decode": decoding_flops(tokenizer)}
        images: dict[str, float] = {}
        for row in members:
            s = rows[row].sampling
            key = f"{train_id} {s.num_ar_steps} {s.num_diffusion_steps} {s.guidance_scale != 1} {s.order}"
            if key not in sampled:
                sampled[key] = sampling_flops(rows[row])
            images[row] = sampled[key]
        sizes = count_parameters(on_meta(spec)), sum(p.numel() for p in tokenizer.parameters())
        yield Rehearsal(members, *sizes, flops, images)


# --- the scheduler's side -------------------------------------------------------------------------------


def rehearse(
    found: Rehearsal, spec: RunSpec, images: Path | None, scratch: Path, batch: int, threads: int
) -> Rehearsal:
    """Rehearse one training in a process of its own and fill in what it finds; an error is part of that.

    Raises UserError where memory or disk will not do."""
    check_room(found, scratch)
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    _sweep(scratch)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{_mine()}{os.getpid()}-") as folder:
        work = (theirs, spec, images, Path(folder), batch, threads)
        process = context.Process(target=_in_process, args=work, daemon=True)
        with _environment(MALLOC_MMAP_THRESHOLD_="1000000"):  # so that freed tensors leave the process at once
            process.start()
        theirs.close()
        try:
            answer = mine.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            name = f"{signal.Signals(-code).name}: out of memory?" if code < 0 else f"exit code {code}"
            answer = {"error": f"the process died ({name})"}
        except BaseException:
            process.terminate()
            raise
        finally:
            process.join()
    return replace(found, **answer)


def _mine() -> str:
    """How the folders of this machine's rehearsals begin; the number of the process follows."""
    return f"rehearsal-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def _sweep(scratch: Path) -> None:
    """Remove what rehearsals of this machine left behind that were killed."""
    for folder in scratch.glob(f"{_mine()}*"):
        process = folder.name.removeprefix(_mine()).partition("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):
            continue


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """For processes started in the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_room(found: Rehearsal, scratch: Path) -> None:
    """Raises UserError where memory or disk will not do for a training of this size."""
    size = found.parameters["total"]
    needed = {"memory": BYTES_TRAINED * size + SPARE, "disk": BYTES_STORED * size + SPARE}
    there = {"memory": _free_memory(), "disk": shutil.disk_usage(scratch).free}
    for what, bytes_needed in needed.items():
        if bytes_needed > there[what]:
            raise UserError(
                f"{found.rows[0]}: {size / 1e6:.0f}M parameters need about {bytes_needed / 1e9:.0f} GB of {what} and "
                f"{there[what] / 1e9:.0f} GB are free"
                + (f" in {scratch}; choose another place with --runs" if what == "disk" else "; use a larger machine")
            )


def _free_memory() -> int:
    """Bytes that a new process can have of the machine's; a limit on this process alone is not seen."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- in the process -------------------------------------------------------------------------------------


def _in_process(pipe: Connection, *work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    begin = time.perf_counter()
    try:
        answer = _rehearse(*work)
    except UserError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}\n{traceback.format_exc()}"}
    unit = 1 if sys.platform == "darwin" else 1024
    answer["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    answer["seconds"] = time.perf_counter() - begin
    pipe.send(answer)


def _end_with(parent: int) -> None:
    """Not to go on for minutes with gigabytes of memory when nobody is there any more to hear of it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _rehearse(spec: RunSpec, images: Path | None, folder: Path, batch: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    spec = small_run(spec, batch)
    tokenizer = _tokenizer(spec, folder)
    pixels = pictures(images, batch, spec.data.image_size, spec.data.channels)
    labels = np.arange(batch) % spec.data.num_classes
    data = DataSet(ArrayImages(pixels, labels), ArrayImages(pixels[:1], labels[:1]))
    (folder / "latents").mkdir()
    build_latents(spec, data, tokenizer, folder / "latents", torch.device("cpu"), lambda done, total: None)
    latents = load_latents(folder / "latents", TOKENIZERS[spec.tokenizer.kind])
    clock: list[float] = []

    class Enough(Exception):
        """From inside a step, so that nothing is saved: the check-point before it has to do."""

    def train() -> tuple[nn.Module, str, list[float]]:
        """The averaged model after STEPS steps, a digest of all weights, and the losses."""
        model, ema = generator_and_average(spec)
        losses: list[float] = []
        forward = model.forward

        def watched(tokens, labels, noise, step):
            if step == STEPS:
                raise Enough
            loss = forward(tokens, labels, noise, step)
            losses.append(loss.mean().item())
            return loss

        model.forward = watched
        with suppress(Enough):
            fit_generator(spec, model, ema, latents, folder, lambda step, total: clock.append(time.perf_counter()))
        return ema.module, digest(model, ema.module), losses

    expected, losses = train()[1:]
    gc.collect()  # modules with hooks are cycles; at this size they must be gone before the next is built
    stored = checkpoints(folder)
    size = stored[0].stat().st_size
    seconds = min(b - a for a, b in zip(clock, clock[1:]))
    averaged, found, again = train()  # goes on from the check-point
    for path in stored:
        path.unlink()
    gc.collect()
    begin = time.perf_counter()
    _sample(spec, averaged, tokenizer)
    return {
        "steps": STEPS,
        "images_a_step": batch,
        "seconds_a_step": seconds,
        "losses": losses,
        "checkpoint_bytes": size,
        # from the first step on the same bits would come out too
        "resumed_equal": found == expected and len(again) == STEPS - RESUME_AT,
        "sample_seconds": time.perf_counter() - begin,
    }


def small_run(spec: RunSpec, batch: int) -> RunSpec:
    """The same architecture on the CPU, a few images and a few steps; one more step than is made, never reached."""
    train = replace(spec.train, steps=STEPS + 1, batch_size=batch, warmup_steps=1)
    compute = replace(spec.compute, device="cpu", checkpoint_every=RESUME_AT, compile=False, micro_batch=None)
    part, ar_steps = drawing_part(spec.model), spec.sampling.num_ar_steps
    if isinstance(spec.model, ARModel) and not is_causal(spec.model):
        ar_steps = min(AR_STEPS, num_tokens(spec.space))
    most = getattr(part, "num_train_timesteps", DENOISING_STEPS)
    sampling = replace(
        spec.sampling,
        num_ar_steps=ar_steps,
        num_diffusion_steps=min(DENOISING_STEPS, most) if part.denoises else None,
        guidance_scale=3.0,
        clamp_x0=4.0 if part.clamps else None,  # what has learned for three steps knows nothing yet
    )
    return replace(spec, train=train, compute=compute, sampling=sampling)


def _tokenizer(spec: RunSpec, folder: Path) -> Tokenizer:
    """With its weights; where none are given with random ones, through a file as they would come."""
    part = spec.tokenizer
    if hasattr(part, "weights") and part.weights is None:
        weights = folder / "tokenizer.safetensors"
        with seeded(0, "rehearsal"):
            save_file(net_of(part).state_dict(), weights)
        part = replace(part, weights=str(weights))
    if measures_scale(part):
        part = replace(part, scale=1.0)  # measured on all of the data, which is not here
    return build_tokenizer(replace(spec, tokenizer=part)).eval().requires_grad_(False)


def picture_files(folder: Path | None) -> list[Path]:
    """Image files below a folder, or scikit-learn's two. Raises UserError where there is none."""
    if folder is None:
        import sklearn.datasets

        folder = Path(sklearn.datasets.__file__).parent / "images"
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no image in it ({', '.join(sorted(IMAGE_ENDINGS))})")
    return found


def pictures(folder: Path | None, count: int, size: int, channels: int) -> np.ndarray:
    """Real images uint8 (count, channels, size, size): of a folder, or scikit-learn's photographs mirrored in turn.

    Raises UserError where there is none."""
    found = picture_files(folder)
    step = max(1, len(found) // count)  # spread over the classes
    try:
        images = [read_image(path, size, channels) for path in found[::step][:count]]
    except ValueError as error:
        raise UserError(f"an image cannot be read ({error})") from None
    more = [images[i % len(images)][..., :: -1 if (i // len(images)) % 2 else 1] for i in range(count)]
    return np.stack(more)


def digest(*modules: nn.Module) -> str:
    """SHA-256 of every tensor's bits."""
    total = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            total.update(name.encode())
            total.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _sample(spec: RunSpec, model: nn.Module, tokenizer: Tokenizer) -> None:
    """One guided image: all of it in a few steps, or the first tokens with the kv-cache."""
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
