"""Commands for measurements: eval, reference build, compare, verify, neighbours, collect."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mar_bench.cli import options
from mar_bench.cli.options import app
from mar_bench.utils.errors import UserError

if TYPE_CHECKING:
    from mar_bench.records.record import Record

InceptionWeights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The 2015 Inception network. Default: --weights, else torch's cache.",
        callback=options.as_path,
    ),
]
TrainSeed = Annotated[str, typer.Option("--seeds", metavar="N", help="Training seed of a row.")]
SamplingSeed = Annotated[str, typer.Option("--sampling-seeds", metavar="N", help="Sampling seed of a row.")]


@app.command("eval")
def evaluate(
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            help="A folder of PNG files, an npz (arr_0) or a sampled row, as in table1/mar/diff/guided.",
            callback=options.as_path,
        ),
    ],
    overrides: options.Overrides = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="REFERENCE",
            help="Real images: an npz (ADM's or from reference build) or a folder. Default: the row's own.",
            callback=options.as_path,
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="inception, efficientnet_lite0 or an installed plugin. Default: that of the row or of the reference, "
            "else inception.",
        ),
    ] = None,
    inception_weights: InceptionWeights = None,
    unindexed: Annotated[
        bool, typer.Option("--unindexed", help="Order files by name; numbers in the names are not indices.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Write a record that verify can score again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    scale: options.Scale = "tiny",
    seeds: TrainSeed = "0",
    sampling_seeds: SamplingSeed = "0",
    runs: options.Runs = None,
    records: options.Records = None,
    weights: options.Weights = "weights",
) -> None:
    """Score any images: FID, IS, KID, precision, recall, copies.

    Override settings as in metrics.is_splits=5; the others are lowered for small sets."""
    from mar_bench.config.yaml_layers import experiment_files, is_yaml, split_row
    from mar_bench.pipeline.request import load_row

    places, found = options.results(runs, records)
    import torch

    from mar_bench.pipeline import eval_images
    from mar_bench.report.show_record import how_measured, scores_text, warnings

    file = split_row(samples)[0]
    if not Path(samples).exists() and (is_yaml(file) or file in experiment_files()):
        chosen = options.one_seed("--seeds", seeds), options.one_seed("--sampling-seeds", sampling_seeds)
        experiment, row = load_row(samples, scale, overrides, found)
        source = eval_images.open_row(experiment, row, places, chosen)
        torch.set_num_threads(source.run.spec.compute.threads)  # as when its record was made, for equal bits
    else:
        source = eval_images.open_source(samples, indexed=not unindexed)
        eval_images.settings_of(overrides or [])  # raises before any work
        for option, value, usual in (
            ("--scale", scale, "tiny"),
            ("--seeds", seeds, "0"),
            ("--sampling-seeds", sampling_seeds, "0"),
        ):
            if value != usual:
                raise UserError(
                    f"{option} {value}: it chooses the images of a row, and {samples} is not a row; leave it out"
                )
        if reference is None:
            raise UserError("--reference is needed: an npz or a folder of real images")
    if source.run and extractor is None:
        space = eval_images.own_extractor(source.run, places)
    else:
        name = extractor or eval_images.extractor_of(reference) or "inception"
        space = eval_images.open_extractor(name, inception_weights, Path(weights))
    record = eval_images.evaluate(source, reference, space, overrides or [], places, _announce, save)
    try:
        if as_json:
            text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False)
        else:
            notes = (f"note: {warning}" for warning in warnings(record))
            text = "\n".join([*how_measured(record), "", scores_text(record), "", *notes])
        print(text, flush=True)
    except Exception:  # a full disk, a closed pipe: what took hours to measure is not lost to it
        if not save:
            how = "the scores were not printed; keep this line as a .json file, which mar-bench show reads:"
            print(f"{how}\n{json.dumps(asdict(record))}", file=sys.stderr)
        raise
    if save:
        print(f"wrote {places.records / record.id}.json", file=sys.stderr)


reference_app = options.Typer(
    help="Statistics and features of real images, in a file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(reference_app, name="reference")


@reference_app.command("build")
def build(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder or an npz (arr_0).", callback=options.as_path)
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The .npz to write.", callback=options.as_path)],
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Crop and resize as ADM does; JPEG files are read too.", min=8)
    ] = None,
    extractor: Annotated[str, typer.Option(metavar="NAME", help="As in eval.")] = "inception",
    inception_weights: InceptionWeights = None,
    most: Annotated[
        int,
        typer.Option("--images", metavar="N", help="Number of features kept, for precision, recall and KID.", min=2),
    ] = 10_000,
    weights: options.Weights = "weights",
) -> None:
    """Build a reference: statistics of all images, features of some."""
    from mar_bench.data.npz import REFERENCE, kind_of
    from mar_bench.pipeline import eval_images
    from mar_bench.utils.files import sha256_of, with_folder

    path = Path(target)
    if path.suffix.lower() != ".npz":
        raise UserError(f"{target}: a reference is written to a .npz file")
    if path.exists() and kind_of(path) != REFERENCE:
        raise UserError(f"{target}: exists and is not a reference of mar-bench reference build; name another file")
    if size is None and kind_of(images) == REFERENCE:
        raise UserError(f"{images}: already a reference; give it to mar-bench eval --reference")
    space = eval_images.open_extractor(extractor, inception_weights, Path(weights))
    reference = eval_images.open_reference(images, space, most, _announce("reference"), size)
    reference.save(with_folder(path))
    about = reference.about
    source = "the file's own mu and sigma" if about.get("statistics") else f"{about['num_images']} images"
    print(f"wrote {target}: {source}, {about['num_features']} features of {extractor}; sha256 {sha256_of(path)}")


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A row, as in table1/mar/diff/guided, or a record.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The row or record to compare it with.")],
    overrides: options.Overrides = None,
    scale: options.Scale = "tiny",
    as_json: options.AsJson = False,
    records: options.Records = None,
) -> None:
    """Compare two rows or records, metric by metric.

    Differences are paired on common seeds, with intervals; if the two were measured differently, prints the reasons."""
    from mar_bench.report.compare import frame, markdown

    sides = [(name, records_of(name, overrides, scale, records)) for name in (one, other)]
    if as_json:
        options.print_json({"one": one, "other": other, "metrics": frame(*sides[0], *sides[1]).to_dict("records")})
    else:
        print(markdown(*sides[0], *sides[1]), end="")


def records_of(name: str, overrides: list[str] | None, scale: str, records: str | None) -> list[Record]:
    """The records of a row, or the one with an id. Raises UserError if there is none."""
    from mar_bench.pipeline.request import load_row
    from mar_bench.report.frames import select

    if options.is_record(name):
        return [options.find_record(name, records)]
    places, found = options.results(None, records)
    experiment, row = load_row(name, scale, overrides, found)
    if row is None:
        raise UserError(f"{name}: neither a record nor a row, as in table1/mar/diff/guided")
    tasks = select(experiment, found)[row]
    if not tasks["generation"]:
        raise UserError(f"no records of {name} at scale {scale} in {places.records}; mar-bench run makes them")
    return [*tasks["generation"], *tasks["reconstruction"], *tasks["likelihood"]]


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="RECORD", help="A record's id or its file.")],
    again: Annotated[
        int | None,
        typer.Option("--resample", metavar="N", help="Also draw N images again and compare them bit for bit.", min=1),
    ] = None,
    runs: options.Runs = None,
    records: options.Records = None,
) -> None:
    """Score a record again from its kept features; exit code 1 if a number has changed."""
    from mar_bench.pipeline.store import default_places

    record = options.find_record(name, records)
    from mar_bench.pipeline.verify import DIFFERENT
    from mar_bench.pipeline.verify import verify as compared
    from mar_bench.utils.console import console_table

    lines, notes = compared(record, default_places(runs, records), again)
    print(console_table(["what", "recorded", "now", "verdict"], lines))
    for note in notes:
        print(f"note: {note}")
    if any(verdict == DIFFERENT for *_, verdict in lines):
        print(f"record {record.id} is not reproduced", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def neighbours(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT/ROW", help="As in table1/mar/diff/guided.")],
    overrides: options.Overrides = None,
    scale: options.Scale = "tiny",
    count: Annotated[int, typer.Option(metavar="N", help="Images in each of the two groups.", min=1, max=20)] = 8,
    nearest: Annotated[int, typer.Option(metavar="K", help="Training images shown beside each.", min=1, max=10)] = 5,
    seeds: TrainSeed = "0",
    sampling_seeds: SamplingSeed = "0",
    reports: options.Reports = "reports",
    runs: options.Runs = None,
) -> None:
    """Show generated images beside the training images nearest to them.

    Writes <reports>/<scale>/<experiment>-neighbours-<row>.png and prints the share of images that count as copies."""
    from mar_bench.pipeline import eval_images
    from mar_bench.pipeline.request import load_row
    from mar_bench.report.figures.sheets import neighbour_page

    chosen = options.one_seed("--seeds", seeds), options.one_seed("--sampling-seeds", sampling_seeds)
    places, records = options.results(runs, None)
    experiment, row = load_row(name, scale, overrides, records)
    found = eval_images.neighbours(eval_images.open_row(experiment, row, places, chosen), places, count, nearest)
    target = Path(reports) / scale / f"{experiment.id}-neighbours-{row.replace('/', '-')}.png"
    print(f"wrote {neighbour_page(experiment, row, found, target)}")
    shares = [f"{(values <= 1).mean():.1%} of {len(values)}" for values in (found.closeness, found.real)]
    print(f"copied: {shares[0]} generated images, {shares[1]} held-out real images")


@app.command()
def collect(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...",
            help="Folders of records, or folders with such a folder inside.",
            callback=options.as_path,
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, write nothing.")] = False,
    records: options.Records = None,
) -> None:
    """Copy the records of other machines.

    Of two results of one id that agree, the earlier is kept. Results that disagree are moved to <records>/conflicts,
    where no table shows them, and listed; the exit code is then 1."""
    from mar_bench.pipeline.store import default_places, fault_in
    from mar_bench.records.collect import collect

    plan = collect([Path(folder) for folder in folders], default_places(None, records).records, dry_run, fault_in)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print("\n".join([*plan.changes(), f"{plan.summary()}; nothing is written"]))
    else:
        print(f"{plan.summary()}; records are in {plan.folder}")
    if conflicts := plan.conflicts():
        print("\n".join(conflicts), file=sys.stderr)
        raise typer.Exit(1)


def _announce(what: str) -> Callable[[int, int], None]:
    """Print the start of a step on stderr; the returned Progress prints a line every five seconds."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    printed = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() > printed + 5:
            printed = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return progress
