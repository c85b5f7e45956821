"""Check and measure a GPU with nothing but this checkout: `make gpu-check`, about ten minutes.

1. MAR-B with random weights on the device against the same on this CPU, whose agreement with the official code is in
   docs/faithful.md: in fp32 and bf16, by CUDA graphs, and compiled.
2. Seconds of sampling and training of the paper's systems, and what limits them.
3. Table 1 at smoke scale, trained and drawn on the device and on this CPU.
4. The same training on all devices together.

Writes reports/gpu/<device>.md and .json, also after a failure. Exit code 1 if anything failed or is off by more than is
allowed. `--device cpu --quick` tries the command itself, with small models."""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mar_bench.cli.speed import SYSTEMS
from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import Continuous, RunSpec
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.build import build_generator, generate, pick_device
from mar_bench.pipeline.benchmark import measure, timm_line, words
from mar_bench.pipeline.outputs import for_sampling
from mar_bench.pipeline.train import AUTOCAST
from mar_bench.records.provenance import device_name
from mar_bench.records.record import read_records
from mar_bench.report.format import markdown_table
from mar_bench.utils.files import atomic_write, with_folder
from mar_bench.utils.noise import NoiseSource, seeded

ROOT = Path(__file__).parents[1]
IMAGES, KNOWN, ASKED = 4, 5, 6  # of the comparison with the CPU
# allowed differences, relative in root mean square. bf16 has 8 bits, and an untrained head amplifies rounding; tokens
# that have nothing in common would differ by 1.4
ALLOWED = {
    "fp32": {"z": 1e-5, "tokens": 1e-3, "loss": 1e-5, "gradients": 1e-4},
    "bf16": {"z": 0.03, "tokens": 0.4, "loss": 0.002, "gradients": 0.05},
}
SPREAD = 0.05  # allowed relative difference of a distance in Table 1, whose trainings amplify rounding
MODES = {  # how the device computes
    "fp32": ("fp32", {"cuda_graphs": False}),
    "fp32, CUDA graphs": ("fp32", {}),
    "fp32, compiled": ("fp32", {"compile": True, "cuda_graphs": False}),
    "bf16, CUDA graphs": ("bf16", {}),
}
Line = dict[str, str]


def spec_of(system: str, quick: bool) -> RunSpec:
    """A system of the paper, or a small one."""
    name, scale = ("table1/mar/diff/guided", "smoke") if quick else (SYSTEMS[system], "paper")
    experiment, _, row = name.partition("/")
    return load_experiment(experiment, scale).rows[row]


# --- 1. the device against this CPU --------------------------------------------------------------------------------


def quantities(spec: RunSpec, model: Generator, device: torch.device) -> dict[str, Tensor]:
    """z, tokens, loss and gradients of a few images, on the CPU."""
    assert isinstance(model, ARGenerator) and isinstance(spec.space, Continuous)
    noise, labels = NoiseSource(0, range(IMAGES)), torch.arange(IMAGES, device=device)
    tokens = noise.normal("tokens", 0, (model.length, spec.space.dim)).to(device)
    order = noise.uniform("order", 0, (model.length,)).argsort(1).to(device)
    low = torch.autocast(device.type, AUTOCAST[spec.sampling.precision], enabled=spec.sampling.precision != "fp32")
    trained = copy.deepcopy(model).to(device).requires_grad_(True)  # in eval mode: dropout has a generator per device
    with low:
        loss = trained.loss(tokens, labels, noise, 0).mean()
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
    del trained
    drawing = for_sampling(copy.deepcopy(model), spec, device)
    assert isinstance(drawing, ARGenerator)
    with torch.inference_mode(), low:
        z = drawing.backbone.predict(tokens[:, :KNOWN], labels, order, ASKED)
    drawn = generate(drawing, labels, spec.sampling, noise)
    found = {"z": z, "tokens": drawn, "loss": loss.detach(), "gradients": gradients}
    return {name: values.float().cpu() for name, values in found.items()}


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def agreement(device: torch.device, quick: bool) -> list[Line]:
    spec = spec_of("mar-b", quick)
    few = {"num_ar_steps": 4, "num_diffusion_steps": 10, "clamp_x0": 4.0, "guidance_scale": 3.0, "precision": "fp32"}
    spec = replace(spec, sampling=replace(spec.sampling, **few))
    model = build_generator(spec).eval()
    with seeded(0, "gpu-check"), torch.no_grad():
        for parameter in model.parameters():  # no zeros, behind which errors would hide
            parameter += 0.02 * torch.randn_like(parameter)
    expected, lines = quantities(spec, model, torch.device("cpu")), []
    for mode, (precision, compute) in MODES.items():
        if quick and "compile" in compute:
            continue  # a minute of compilation
        sampling = replace(spec.sampling, precision=precision)
        found = quantities(replace(spec, sampling=sampling, compute=replace(spec.compute, **compute)), model, device)
        for name, values in found.items():
            off, allowed = difference(values, expected[name]), ALLOWED[precision][name]
            line = {"mode": mode, "quantity": name, "difference": f"{off:.1e}", "allowed": f"{allowed:g}"}
            lines.append(line | {"": "" if off <= allowed else "TOO LARGE"})
    return lines


# --- 2. speed ------------------------------------------------------------------------------------------------------


def speeds(device: torch.device, quick: bool, minutes: float) -> tuple[list[Line], list[dict]]:
    """Sampling, then training, of each system and batch, smallest first, while there is time."""
    systems, batches = (["small"], (1, 2)) if quick else (list(SYSTEMS), (1, 64, 256))
    deadline, took, shown, kept = time.monotonic() + 60 * minutes, dict[tuple[str, bool], float](), [], []
    for train in (False, True):
        for size in batches[train:]:
            for system in systems:
                spec = spec_of(system, quick)
                if took.get((system, train), 0) * 2 > deadline - time.monotonic():  # at least twice the last batch's
                    shown.append({"system": system, "batch": str(size), "s/image": "not measured: out of time"})
                    continue
                begin = time.monotonic()
                print(f"{system}, batch {size}{', training' * train}", file=sys.stderr, flush=True)
                row = measure(system, spec, size, 3 if train or size == 1 else 1, device, train)
                took[system, train] = time.monotonic() - begin
                shown.append({"": "training" if train else "sampling"} | words(row))
                kept.append(timm_line(row, train))
    return shown, kept


# --- 3 and 4. Table 1 on the device, on this CPU, and on all devices -------------------------------------------------


def trained(folder: Path, words: list[str], ranks: int = 1) -> dict[str, float]:
    """The distances of Table 1 at smoke scale by row and seed, from a run of its own in ``folder``."""
    command = [sys.executable, "-m", "mar_bench", "run", "table1", "--scale", "smoke", "--no-speed", *words]
    if ranks > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command += ["--runs", str(folder / "runs"), "--records", str(folder / "records")]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.__stderr__)
    found = read_records(folder / "records").values()
    return {r.id: value for r in found for name, value in r.metrics.items() if re.fullmatch("fd_[a-z0-9]+", name)}


def table1(device: torch.device, quick: bool) -> list[Line]:
    only = ["--only", "mar/diff/guided"] if quick else []
    ranks = torch.cuda.device_count() if device.type == "cuda" else 2
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        expected = trained(here / "cpu", [*only, "compute.device=cpu"])
        lines = []
        for title, count in (("the device", 1), (f"{ranks} ranks", ranks)):
            if title != "the device" and ranks < 2:
                continue
            for stage in ("tokenizer", "latents", "extractor"):  # the same for all
                shutil.copytree(here / "cpu/runs" / stage, here / title / "runs" / stage)
            found = trained(here / title, [*only, f"compute.device={device.type}"], count)
            off = max(abs(found[i] / expected[i] - 1) for i in expected)
            line = {"Table 1, smoke scale": title, "cells": str(len(expected)), "largest difference": f"{off:.1e}"}
            lines.append(line | {"allowed": f"{SPREAD:g}", "": "" if off <= SPREAD else "TOO LARGE"})
    return lines


# --- the report ----------------------------------------------------------------------------------------------------


def attempted(title: str, part: Callable[[], Any], empty: Any) -> Any:
    """The part's result, or ``empty`` and a failure among the rest."""
    print(f"== {title}", file=sys.stderr, flush=True)
    try:
        return part(), ""
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        return empty, f"{title}: {type(error).__name__}: {reason}"


def table(lines: list[Line]) -> str:
    heading = list(dict.fromkeys(name for line in lines for name in line))
    return str(markdown_table(heading, [[line.get(name, "") for name in heading] for line in lines]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--minutes", type=float, default=7, help="for the measurement of speed")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/gpu")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --quick tries the command")
    device, name = pick_device(given.device), device_name(given.device)
    parts: dict[str, tuple[Any, str]] = {
        "agreement": attempted("the device against this CPU", lambda: agreement(device, given.quick), []),
        "speed": attempted("speed", lambda: speeds(device, given.quick, given.minutes), ([], [])),
        "table1": attempted("Table 1", lambda: table1(device, given.quick), []),
    }
    (same, _), ((shown, kept), _), (runs, _) = parts.values()
    failures = [reason for _, reason in parts.values() if reason]
    failures += [" ".join(line.values()) for line in same + runs if line[""]]
    about = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "failures": failures}
    text = f"# {name}\n\nMade by `make gpu-check` with torch {torch.__version__}, CUDA {torch.version.cuda}.\n\n"
    text += "".join(f"- **failed**: {reason}\n" for reason in failures) or "Everything agrees.\n"
    text += "\n## Against the CPU\n\nRelative differences in root mean square.\n\n" + table(same)
    text += "\n\n## Speed\n\nRandom weights; `mar-bench speed --help` explains the columns.\n\n" + table(shown)
    text += "\n\n## Trained on the device\n\n" + table(runs) + "\n"
    path = with_folder(given.out / (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() + ".md"))
    atomic_write(path, text)
    content = about | {"agreement": same, "speed": kept, "table1": runs}
    atomic_write(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    print(text)
    print(f"wrote {path} and {path.with_suffix('.json').name}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
