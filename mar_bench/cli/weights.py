"""Commands for public files and rehearsals: fetch, convert, rehearse."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.cli.options import (
    AsJson,
    ExperimentName,
    Only,
    Overrides,
    Records,
    Reports,
    Runs,
    Scale,
    Weights,
    app,
    as_path,
    print_json,
)
from mar_bench.utils.errors import UserError, did_you_mean


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a public file or data set. Default: list all.")
    ] = None,
    weights: Weights = "weights",
) -> None:
    """Get a public file that the paper scale needs, or the data set of the fashion scale.

    Downloads it if its address is known, records its SHA-256 and verifies it from then on. Fashion-MNIST comes from
    Debian's package where there is apt-get (nothing is installed), else from its official address."""
    from mar_bench.data import public_sets
    from mar_bench.models.pretrained.fetch import fetch, listing, public_files
    from mar_bench.utils.console import console_table

    folder = Path(weights)
    if name is not None:
        known = [*public_sets.PUBLIC_SETS, *public_files()]
        if name not in known:
            raise UserError(f"no public file or data set '{name}', {did_you_mean(name, known)}")
        print(public_sets.fetch_set(name, folder) if name in public_sets.PUBLIC_SETS else fetch(name, folder))
        return
    rows = listing(folder) + public_sets.listing(folder)
    print(console_table(["name", "what", "MiB", "address", "here"], rows))
    print(f"folder: {folder}; the addresses are unverified; `mar-bench fetch NAME` gets a file or explains how to")


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="mar, kl16, vq16, kl8 or consistency.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A published checkpoint.", callback=as_path)],
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A .safetensors file; its manifest goes beside it.", callback=as_path),
    ],
    raw: Annotated[
        bool, typer.Option("--raw", help="For mar: the raw weights, not their EMA, or a file of weights only.")
    ] = False,
) -> None:
    """Convert published weights to our parameter names.

    Every tensor must fit; no code in SOURCE is executed."""
    from mar_bench.models.pretrained.convert import convert

    manifest = convert(kind, Path(source), Path(target), raw)
    counts = f"{manifest['tensors']} tensors, {manifest['parameters']:,} parameters of {manifest['weights']}"
    print(f"wrote {target}: {counts}, {len(manifest['left_out'])} left out; sha256 {manifest['target']['sha256']}")


@app.command()
def rehearse(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "paper",
    only: Only = None,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="The GPU whose hours are estimated.")] = "H100",
    count_only: Annotated[bool, typer.Option("--count-only", help="Count FLOPs; train nothing.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Also write the report into the reports folder.")] = False,
    reports: Reports = "reports",
    runs: Runs = None,
) -> None:
    """Run a few CPU steps of every training at its true size; estimate memory, FLOPs and GPU hours."""
    from mar_bench.config.experiment import load_experiment
    from mar_bench.config.ids import chosen_rows
    from mar_bench.pipeline.cost import GPUS
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.provenance import cores

    gpu = gpu.upper().replace(" ", "")
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: {did_you_mean(gpu, GPUS)}")
    experiment = load_experiment(name, scale, overrides or ())
    rows = chosen_rows(experiment, only)
    places = default_places(runs, None)
    if not count_only:
        places.check_writable()
    from mar_bench.pipeline.rehearse import rehearse_all
    from mar_bench.report.rehearsal import markdown
    from mar_bench.utils.files import atomic_write, with_folder

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    content = rehearse_all(rows, gpu, None if count_only else places.runs, cores())
    if not content["found"]:
        raise UserError(f"{experiment.file}: these rows train nothing")
    text = markdown(f"{experiment.id}: rehearsal at {scale} scale", content)
    print(text, end="")
    if save:
        target = Path(reports) / scale / f"{experiment.id}-rehearsal"
        atomic_write(with_folder(target.with_suffix(".md")), text)
        atomic_write(target.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        print(f"wrote {target}.md and .json", file=sys.stderr)
    if any(item["error"] or item["resumed_equal"] is False for item in content["found"]):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False, runs: Runs = None, records: Records = None, weights: Weights = "weights") -> None:
    """Check this machine: versions, device, folders, Slurm, public files, and metrics against known values.

    Exit code 1 if something that every run needs does not work."""
    from mar_bench.pipeline.doctor import findings
    from mar_bench.pipeline.store import default_places
    from mar_bench.utils.console import console_table

    found = list(findings(default_places(runs, records), Path(weights)))
    if as_json:
        print_json({"checks": [finding._asdict() for finding in found]})
    else:
        print(console_table(["", "check", "found"], [list(finding) for finding in found]))
    if any(finding.state == "error" for finding in found):
        raise typer.Exit(1)
