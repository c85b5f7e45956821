"""Write docs/performance.md: `make bench`, about half an hour on two idle cores.

How MAR-B compares with the published algorithm written down in `baseline.py`, how time grows with each size against
what FLOPs predict, how long tables of many records take, and what limits the paper's scale on its hardware."""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mar_bench.cli.speed import SYSTEMS
from mar_bench.config.checks import finish
from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import ARModel, CausalBackbone, Continuous, DigitsData, PixelTokenizer, RunSpec, num_tokens
from mar_bench.models.backbones.causal import CausalDecoder
from mar_bench.models.schedules import ar_steps
from mar_bench.pipeline.benchmark import measure
from mar_bench.pipeline.cost import GPUS, head_flops, sampling_flops, training_flops
from mar_bench.pipeline.room import STATE, fitting_batch, parameters
from mar_bench.pipeline.train import FILLED
from mar_bench.records.provenance import device_name
from mar_bench.report.format import markdown_table
from mar_bench.utils.files import atomic_write

ROOT = Path(__file__).parents[1]
REPEATS = 5
FLOPS, MEMORY, LINK = 1e12 * GPUS["H100"], 3.35e12, 450e9  # per second, from the data sheet; LINK: NVLink, one way
RANKS = 16
SAMPLING = ["system", "batch", "TFLOP", "GB of weights", "limit", "s/image", "hours for 50,000 images on 8"]
TRAINING = ["system", "TFLOP a step", "GB of gradients", "GB of state", "images that fit", "limit", "days"]
TEXT = """# Performance

Written by `make bench` on {where}. A GPU is measured by `make gpu-check`, any row or system by `mar-bench speed`.

## Against the published algorithm

MAR-B, guided, fp32, beside `benchmarks/baseline.py`, the published algorithm written down without regard to speed; its
agreement with the official code is in [faithful.md](faithful.md). One process, the same cores, in turn; medians of the
ratios, above 1 if ours is faster. `packed`: with `compute.pack_weights`.

{compared}

The kv-cache of a causal backbone of the same size, for the 256 tokens of 8 guided images: {cached}.

## Growth

Seconds of a batch of a small MAR, one size changed at a time, and the exponent between the last two values beside that
of the FLOPs. A smaller exponent says that something else still counts at these sizes. Records: all tables of tiny
scale.

{growth}

## Paper scale at the limits of the hardware

By the data sheet of the H100 (989 TFLOP/s in bf16, 3.35 TB/s, 450 GB/s between GPUs), if nothing but the larger need
counted. Settings of Table 4 and Figure 6. Weights are read once a pass in bf16. The authors' training reaches 16 % of
such limits and their sampling 30 % (`pipeline/cost.py`).

{sampling}

One of 16 GPUs in a training step; state: weights, gradients, moments and average. A GPU of 80 GB adds up gradients over
as many passes as its memory asks for (`compute.micro_batch: auto`).

{training}
"""


@dataclass(frozen=True)
class Growth:
    """A size, and three values of it, the rest being equal."""

    name: str
    values: tuple[int, ...]
    batch: int = 8


GROWTHS = (
    Growth("tokens of an image", (64, 256, 1024)),
    Growth("width of the backbone", (128, 256, 512)),
    Growth("width of the head", (128, 256, 512)),
    Growth("batch", (4, 16, 64)),
    Growth("AR steps", (4, 16, 64)),
    Growth("denoising steps", (10, 30, 100)),
)


def small(**changes: int) -> RunSpec:
    """A MAR of 256 tokens and width 256 on 64x64 images of one channel, with the given sizes instead."""
    spec = load_experiment("table1", "smoke").rows["mar/diff/guided"]
    side = math.isqrt(changes.get("tokens of an image", 256))
    backbone = replace(spec.model.backbone, dim=changes.get("width of the backbone", 256))  # type: ignore[union-attr]
    head = replace(spec.model.head, width=changes.get("width of the head", 256))  # type: ignore[union-attr]
    steps = {"num_ar_steps": changes.get("AR steps", 8), "num_diffusion_steps": changes.get("denoising steps", 20)}
    return finish(
        replace(
            spec,
            data=DigitsData(image_size=4 * side),
            tokenizer=PixelTokenizer(group=4),
            model=replace(spec.model, backbone=backbone, head=head),
            sampling=replace(spec.sampling, **steps),
        )
    )


def growth(lines: list[list[str]]) -> None:
    """Seconds of a batch at each value; exponents between the last two, measured and by FLOPs."""
    for part in GROWTHS:
        seconds, flops = [], []
        for value in part.values:
            spec, batch = small(**{part.name: value}), value if part.name == "batch" else part.batch
            laps = measure("", spec, batch, REPEATS, torch.device("cpu"), False)["laps"]
            seconds.append(statistics.median(laps))
            flops.append(batch * sampling_flops(spec))
        ratio = math.log(part.values[-1] / part.values[-2])
        exponents = (math.log(found[-1] / found[-2]) / ratio for found in (seconds, flops))
        times = " / ".join(f"{lap:.3g}" for lap in seconds)
        lines.append([part.name, " / ".join(map(str, part.values)), times, *(f"{x:.2f}" for x in exponents)])
        print(*lines[-1], sep="  ", file=sys.stderr, flush=True)


@torch.inference_mode()
def kv_cache() -> str:
    """Seconds of the causal backbone of MAR-B's size for the 256 tokens of 8 guided images, with its cache and without.

    Without it, of eight evenly spaced tokens, each counting for 32."""
    backbone = CausalDecoder(CausalBackbone(dim=768, num_heads=12, depth=24), Continuous(16, (16, 16)), 1000).eval()
    tokens, labels, order = torch.randn(16, 256, 16), torch.arange(16), torch.arange(256).expand(16, 256)
    cache, seconds = backbone.new_cache(), {"with": 0.0, "without": 0.0}
    for known in range(256):
        begin = time.perf_counter()
        backbone.predict(tokens[:, :known], labels, order, 1, cache)
        middle = time.perf_counter()
        seconds["with"] += middle - begin
        if known % 32 == 16:
            backbone.predict(tokens[:, :known], labels, order)
            seconds["without"] += 32 * (time.perf_counter() - middle)
    ratio = seconds["without"] / seconds["with"]
    return (
        f"{seconds['with']:.3g} s with the cache and {seconds['without']:.4g} s without it, {ratio:.1f} times as long"
    )


def many_records(lines: list[list[str]]) -> None:
    """Seconds from files to all tables of tiny scale, with a quarter, a half and all of the committed records."""
    files, taken = sorted((ROOT / "results/records").glob("*.json")), []
    for share in (4, 2, 1):
        with tempfile.TemporaryDirectory() as folder:
            for path in files[::share]:
                shutil.copy(path, folder)
            begin = time.perf_counter()
            command = [sys.executable, "-m", "mar_bench", "table", "--all", "--scale", "tiny", "--records", folder]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            taken.append((len(files[::share]), time.perf_counter() - begin))
    (n1, t1), (n2, t2) = taken[-2:]
    counts, seconds = " / ".join(str(n) for n, _ in taken), " / ".join(f"{t:.3g}" for _, t in taken)
    lines.append(["records", counts, seconds, f"{math.log(t2 / t1) / math.log(n2 / n1):.2f}", "1.00"])


def sampling_at_the_limits() -> list[list[str]]:
    """FLOPs and bytes of weights of a batch at paper scale, and what they take on one H100 at its limits."""
    lines = []
    for system, spec in systems():
        weights, space = parameters(spec), spec.space
        if isinstance(spec.model, ARModel):
            head = head_flops(spec.model.head, spec.model.backbone.dim, space)[1] / 2  # a weight is used once a token
            steps = ar_steps(spec.sampling, spec.model.order, num_tokens(space))
            read = 2 * sum(weights - head + (step.denoising or 1) * head for step in steps)
        else:
            read = 2 * weights * (spec.sampling.num_diffusion_steps or 1)
        for batch in (1, 256):
            flops = batch * sampling_flops(spec)
            seconds = {"compute": flops / FLOPS, "memory": read / MEMORY}
            limit = max(seconds, key=lambda name: seconds[name])
            cells = [f"{flops / 1e12:,.1f}", f"{read / 1e9:,.0f}", limit, f"{seconds[limit] / batch:.3g}"]
            hours = 50_000 * seconds[limit] / batch / 8 / 3600
            lines.append([system, str(batch), *cells, f"{hours:.2f}" if batch > 1 else ""])
    return lines


def training_at_the_limits() -> list[list[str]]:
    """A training step at paper scale on RANKS H100 at their limits."""
    lines = []
    for system, spec in systems():
        weights, images = parameters(spec), math.ceil(spec.train.batch_size / RANKS)
        flops, sent = images * training_flops(spec), 2 * 4 * weights  # gradients in fp32, there and back in the ring
        seconds = {"compute": flops / FLOPS, "gradients": sent / LINK}
        limit = max(seconds, key=lambda name: seconds[name])
        fits = min(images, fitting_batch(spec, FILLED * 80e9))
        cells = [f"{flops / 1e12:,.0f}", f"{sent / 1e9:,.1f}", f"{STATE * weights / 1e9:,.0f}", f"{fits} of {images}"]
        lines.append([system, *cells, limit, f"{spec.train.steps * seconds[limit] / 86400:.2g}"])
    return lines


def systems() -> Iterator[tuple[str, RunSpec]]:
    for system, name in SYSTEMS.items():
        experiment, _, row = name.partition("/")
        yield system, load_experiment(experiment, "paper").rows[row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/performance.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("against the baseline", file=sys.stderr, flush=True)
    script = [sys.executable, "-m", "benchmarks.against_baseline", "--repeats", "3", "--threads", str(given.threads)]
    compared = subprocess.run(script, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    print("kv-cache", file=sys.stderr, flush=True)
    cached, lines = kv_cache(), list[list[str]]()
    growth(lines)
    many_records(lines)
    tables = {
        "cached": cached,
        "compared": compared[compared.index("|") :].strip(),
        "growth": markdown_table(["", "values", "seconds", "exponent", "by FLOPs"], lines),
        "sampling": markdown_table(SAMPLING, sampling_at_the_limits()),
        "training": markdown_table(TRAINING, training_at_the_limits()),
    }
    where = f"{device_name('cpu')}, {given.threads} threads, torch {torch.__version__}"
    atomic_write(given.out, TEXT.format(where=where, **tables))
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
