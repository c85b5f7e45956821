"""Commands that measure: eval, reference build, compare, verify, neighbours."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.cli.options import (
    Overrides,
    Records,
    Reports,
    Runs,
    Scale,
    Weights,
    app,
    cores,
    find_record,
    is_record,
    load,
    no_seeds,
    one_seed,
    results,
    split_row,
)
from mar_bench.utils.errors import UserError, did_you_mean

InceptionWeights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The 2015 Inception network. Default: --weights, else torch's cache."),
]
TrainSeed = Annotated[str, typer.Option("--seeds", metavar="N", help="Training seed of a row.")]
SamplingSeed = Annotated[str, typer.Option("--sampling-seeds", metavar="N", help="Sampling seed of a row.")]


@app.command("eval")
def evaluate(
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            help="A folder of PNG files, an npz (arr_0), a data set (digits, mnist5k:heldout), kept features, or a "
            "sampled row, as in table1/mar/diff/guided.",
        ),
    ],
    overrides: Overrides = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="REFERENCE",
            help="Real images: an npz (ADM's or from reference build), a folder or a data set. Default: a row's own.",
        ),
    ] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="inception, efficientnet_lite0 or one of an installed package; may be repeated. Default: a row's own, "
            "else inception.",
        ),
    ] = None,
    inception_weights: InceptionWeights = None,
    unindexed: Annotated[
        bool, typer.Option("--unindexed", help="Order files by name; numbers in the names are not indices.")
    ] = False,
    keep_features: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the features (.safetensors), to be used as SAMPLES.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write a record that verify can score again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
    scale: Scale = "tiny",
    seeds: TrainSeed = "0",
    sampling_seeds: SamplingSeed = "0",
    runs: Runs = None,
    records: Records = None,
    weights: Weights = "weights",
) -> None:
    """Score any images: FID, IS, KID, precision, recall, copies.

    Override settings as in metrics.is_splits=5; those not given are lowered for small sets."""
    places, _ = results(runs, records)
    from mar_bench.config.yaml_layers import experiment_files
    from mar_bench.pipeline import eval_images

    _use_threads(cores())
    overrides, extractors = overrides or [], extractor or []
    experiment, row = split_row(samples)
    if row and not Path(samples).exists() and (".yaml" in experiment or experiment in experiment_files()):
        chosen = one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)
        run = eval_images.row_run(experiment, row, scale, overrides, places, *chosen)
        source = eval_images.source_of_run(run, places)
        _use_threads(run.spec.compute.threads)  # as when its record was made, for equal bits
    else:
        source = eval_images.open_source(samples, indexed=not unindexed)
        if reference is None:
            raise UserError("--reference is needed: an npz, a folder of real images or a data set")
    settings = eval_images.settings_of(overrides, source.run)
    if keep_features and len(extractors) > 1:
        raise UserError(f"--keep-features {keep_features}: holds the features of one extractor; give one --extractor")
    if keep_features and (not keep_features.endswith(".safetensors") or Path(keep_features).is_dir()):
        raise UserError(f"--keep-features {keep_features}: name a .safetensors file to write")
    failed, found = [], []
    for open_space in eval_images.open_extractors(extractors, source, inception_weights, Path(weights), places):
        try:
            done = eval_images.evaluate(source, reference, open_space(), settings, places, _progress, _say)
            if keep_features:
                done.features.save(Path(keep_features))
            if save:
                done.save(places)
            found.append(done.record)
        except UserError as error:
            failed.append(str(error))
    _print_records(found, as_json)
    for record in found if save else ():
        print(f"wrote {places.records / record.id}.json", file=sys.stderr)
    if failed:
        raise UserError("; ".join(failed))


def _print_records(found: list, as_json: bool) -> None:
    from mar_bench.report.record import how_measured, scores_text, warnings

    if as_json:
        print(json.dumps([asdict(record) for record in found], indent=1, sort_keys=True, allow_nan=False))
        return
    for record in found:
        print("\n".join([*how_measured(record), "", scores_text(record), ""]))
        for warning in warnings(record):
            print(f"note: {warning}")


reference_app = typer.Typer(
    help="Statistics and features of real images, in a file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(reference_app, name="reference")


@reference_app.command("build")
def build(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder, an npz (arr_0) or a data set (digits, mnist5k:heldout).")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The .npz to write.")],
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Crop and resize as ADM does; JPEG files are read too.", min=8),
    ] = None,
    extractor: Annotated[str, typer.Option(metavar="NAME", help="As in eval.")] = "inception",
    inception_weights: InceptionWeights = None,
    most: Annotated[
        int,
        typer.Option("--images", metavar="N", help="Number of features kept, for precision, recall and KID.", min=2),
    ] = 10_000,
    weights: Weights = "weights",
) -> None:
    """Build a reference: statistics of all images, features of some."""
    if not target.endswith(".npz"):
        raise UserError(f"{target}: a reference is written to a .npz file")
    from mar_bench.metrics.references import is_reference
    from mar_bench.pipeline import eval_images
    from mar_bench.utils.files import sha256_of

    if Path(target).exists() and not is_reference(Path(target)):
        raise UserError(f"{target}: exists and is not a reference of mar-bench reference build; name another file")
    _use_threads(cores())
    space = eval_images.named_extractor(extractor, inception_weights, Path(weights))
    source = eval_images.images_for_reference(images, size)
    reference = eval_images.reference_of_set(source, space, most, _progress("reference"))
    reference.save(Path(target))
    about = reference.about
    for note in about.get("notes", []):
        print(f"note: {note}")
    print(f"wrote {target}: {about['num_images']} images, {about['num_features']} features of {extractor}; "
          f"sha256 {sha256_of(Path(target))}")  # fmt: skip


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A row, as in table1/mar/diff/guided, or a record.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    overrides: Overrides = None,
    scale: Scale = "tiny",
    records: Records = None,
) -> None:
    """Compare two rows or records, metric by metric.

    Differences are paired on common seeds and have intervals; if the two were measured differently, it says how."""
    from mar_bench.report.compare import markdown

    sides = [_records_of(name, scale, no_seeds(overrides), records) for name in (one, other)]
    print(markdown(one, sides[0], other, sides[1]), end="")


def _records_of(name: str, scale: str, overrides: list[str], records: str | None) -> list:
    """One record, or the records of a row. Raises UserError if there are none."""
    if is_record(name):
        return [find_record(name, None, records)[1]]
    experiment_name, row = split_row(name)
    if row is None:
        raise UserError(f"{name}: neither a record nor a row, as in table1/mar/diff/guided")
    from mar_bench.report.frames import select

    places, found = results(None, records)
    experiment = load(experiment_name, scale, overrides, found)
    if row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    tasks = select(experiment, found)[row]
    if not tasks["generation"]:
        raise UserError(f"no records of {name} at scale {scale} in {places.records}; mar-bench run makes them")
    return [*tasks["generation"], *tasks["reconstruction"]]


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="RECORD", help="A record's id or its file.")],
    again: Annotated[
        int | None,
        typer.Option("--resample", metavar="N", help="Also draw N images again and compare them bit for bit.", min=1),
    ] = None,
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Score a record again from what was kept; exit code 1 if a number has changed."""
    places, record = find_record(name, runs, records)
    from mar_bench.pipeline import verify as verification
    from mar_bench.utils.console import console_table

    _use_threads(cores())
    findings = verification.verify(record, places, again)
    print(console_table(["what", "recorded", "now", "verdict"], [list(line) for line in findings.lines]))
    for note in findings.notes:
        print(f"note: {note}")
    if not findings.holds:
        print(f"record {record.id} is not reproduced", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def neighbours(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT/ROW", help="As in table1/mar/diff/guided.")],
    overrides: Overrides = None,
    scale: Scale = "tiny",
    count: Annotated[int, typer.Option(metavar="N", help="Images of each of the two kinds.", min=1, max=20)] = 8,
    nearest: Annotated[int, typer.Option(metavar="K", help="Training images beside each.", min=1, max=10)] = 5,
    seeds: TrainSeed = "0",
    sampling_seeds: SamplingSeed = "0",
    reports: Reports = "reports",
    runs: Runs = None,
) -> None:
    """Show generated images beside the training images nearest to them.

    Writes <reports>/<scale>/<experiment>-neighbours-<row>.png and prints how many are as near as a copy."""
    experiment_name, row = split_row(name)
    if row is None:
        raise UserError(f"{name}: a row is needed, as in table1/mar/diff/guided; mar-bench show {name} lists them")
    from mar_bench.config.experiment import load_experiment
    from mar_bench.pipeline.eval_images import row_run
    from mar_bench.pipeline.neighbours import neighbours as find
    from mar_bench.pipeline.store import default_places
    from mar_bench.report.neighbours import neighbour_page

    _use_threads(cores())
    places, chosen = (
        default_places(runs, None),
        (one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)),
    )
    found = find(row_run(experiment_name, row, scale, overrides or [], places, *chosen), places, count, nearest)
    experiment = load_experiment(experiment_name, scale, overrides or [])
    target = Path(reports) / scale / f"{experiment.id}-neighbours-{row.replace('/', '-')}.png"
    print(f"wrote {neighbour_page(experiment, row, found, target)}")
    shares = [f"{(values <= 1).mean():.1%} of {len(values)}" for values in (found.closeness, found.real)]
    print(f"copied: {shares[0]} generated images, {shares[1]} held-out real images")


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def _progress(what: str) -> Callable[[int, int], None]:
    """Prints a line on stderr every five seconds."""
    printed = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() > printed + 5:
            printed = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return progress
