"""The command that measures speed: speed."""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mar_bench.cli import options
from mar_bench.cli.options import app
from mar_bench.utils.errors import UserError, did_you_mean
from mar_bench.utils.files import atomic_write, with_folder

if TYPE_CHECKING:
    from mar_bench.config.spec import RunSpec

# the paper's systems, and DiT, as rows at paper scale
SYSTEMS = {
    "mar-b": "table4/mar_b/guided",
    "mar-l": "table4/mar_l/guided",
    "mar-h": "table4/mar_h/guided",
    "dit-xl": "fig6/dit_d",
}


def _counts(option: str, text: str | None) -> list[int | None]:
    """``1,8,256`` as positive whole numbers; None, for the spec's own, without a text."""
    if text is None:
        return [None]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 10**9 for word in words):
        raise UserError(f"{option} {text}: expected positive whole numbers separated by commas, as in 1,8,256")
    return [int(word) for word in words]


@app.command()
def speed(
    system: Annotated[
        str, typer.Argument(metavar="EXPERIMENT/ROW|SYSTEM", help=f"A row, or one of {', '.join(SYSTEMS)}.")
    ],
    overrides: options.Overrides = None,
    scale: Annotated[
        str, typer.Option(metavar="SCALE", help="Of a row (see list). Default: tiny; a SYSTEM is at paper scale.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="1,8,256", help="Images a batch. Default: 1 and the spec's.")] = None,
    ar_steps: Annotated[str, typer.Option(metavar="8,64", help="Autoregressive steps.")] = None,
    diffusion_steps: Annotated[str, typer.Option(metavar="25,100", help="Denoising steps.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Time training steps instead of sampling.")] = False,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16", help="Of matrix products. Default: the spec's.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="Batches that are timed.", min=1)] = 5,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:1. Default: the spec's.")] = None,
    csv_file: Annotated[
        str, typer.Option("--csv", metavar="FILE", help="Also write timm's columns.", callback=options.as_path)
    ] = None,
) -> None:
    """Time sampling or training with random weights on this machine.

    Seconds an image and their parts, memory, and the share that is reached of what the device can compute or copy,
    whichever is the limit. Nothing else should run meanwhile."""
    from mar_bench.pipeline.request import load_row
    from mar_bench.records.provenance import cores

    name = SYSTEMS.get(system, system)
    if "/" not in name:
        raise UserError(f"{system}: expected EXPERIMENT/ROW or a system, {did_you_mean(system, SYSTEMS)}")
    scale = scale or ("paper" if system in SYSTEMS else "tiny")
    batches = _counts("--batch", batch)
    for option, text in {"--ar-steps": ar_steps, "--diffusion-steps": diffusion_steps}.items():
        if train and text is not None:
            raise UserError(f"{option} {text}: a training step has none; leave it out")
    grid = itertools.product(_counts("--ar-steps", ar_steps), _counts("--diffusion-steps", diffusion_steps))
    given = list(overrides or ())
    if not any(word.startswith("compute.threads=") for word in given):
        given.append(f"compute.threads={cores()}")
    given += [f"compute.device={device}"] * (device is not None)
    given += [f"{'train' if train else 'sampling'}.precision={precision}"] * (precision is not None)
    experiment, row = load_row(name, scale, given, {})
    if row is None:
        raise UserError(f"{system}: give a row of {experiment.id}: {', '.join(experiment.rows)}")
    specs = {}
    for ar, denoising in grid:
        steps = {"ar": ar, "diffusion": denoising}
        title = " ".join([system, *(f"{name}={count}" for name, count in steps.items() if count)])
        specs[title] = _with_steps(experiment.rows[row], steps, title)
    if csv_file:
        _check_writable(Path(csv_file))
    _measure(specs, batches, repeats, train, csv_file)


def _check_writable(file: Path) -> None:
    """Raises UserError before any work is done in vain."""
    if file.is_dir():
        raise UserError(f"--csv {file}: a folder; give a file")
    there = file.exists()
    try:
        with_folder(file).open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise UserError(f"--csv {file}: it cannot be written ({error.strerror}); give another file") from None


def _with_steps(spec: RunSpec, steps: dict[str, int | None], title: str) -> RunSpec:
    """The row with other numbers of steps, where given. Raises UserError for a row that has none or cannot do these."""
    from mar_bench.config.checks import finish
    from mar_bench.config.spec import drawing_part

    given: dict[str, Any] = {f"num_{name}_steps": count for name, count in steps.items() if count}
    try:
        found = finish(replace(spec, sampling=replace(spec.sampling, **given)))
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    for name, count in given.items():
        if getattr(found.sampling, name) != count:
            raise UserError(f"{title}: '{drawing_part(spec.model).kind}' has no sampling.{name}")
    return found


def _measure(specs: dict[str, Any], batches: list[int | None], repeats: int, train: bool, csv_file: str | None) -> None:
    import pandas as pd
    import torch

    from mar_bench.models.build import pick_device
    from mar_bench.pipeline.benchmark import measure, timm_line, words
    from mar_bench.records.provenance import device_name
    from mar_bench.utils.console import console_table

    first, rows = next(iter(specs.values())), []
    compute, precision = first.compute, (first.train if train else first.sampling).precision
    torch.set_num_threads(compute.threads)
    where = f"{device_name(compute.device)}, threads: {compute.threads}, torch {torch.__version__}, {precision}"
    print(f"{'training' if train else 'sampling and decoding'}, {repeats} batches after one to warm up; {where}")
    try:
        for title, spec in specs.items():
            sizes = [1, spec.train.batch_size if train else spec.speed.batch_size] if batches == [None] else batches
            for size in sizes:
                print(f"{title}, batch {size}", file=sys.stderr, flush=True)
                rows.append(measure(title, spec, size, repeats, pick_device(spec.compute.device), train))
    finally:  # what is measured when the user stops it
        if rows:
            lines = [words(row) for row in rows]
            heading = list(dict.fromkeys(name for line in lines for name in line))
            print(console_table(heading, [[line.get(name, "") for name in heading] for line in lines]))
        if rows and csv_file is not None:
            pd.DataFrame([timm_line(row, train) for row in rows]).to_csv(text := io.StringIO(), index=False)
            atomic_write(with_folder(Path(csv_file)), text.getvalue())
            print(f"wrote {csv_file}", file=sys.stderr)
