"""The verbs of measuring: eval, reference, compare, verify, neighbours."""

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

SamplesArgument = Annotated[
    str,
    typer.Argument(
        metavar="SAMPLES",
        help="A folder of PNG files, an npz (arr_0), a data set (digits, mnist5k:heldout), kept features, or a row "
        "that run has sampled, as in table1/mar/diff/guided.",
    ),
]
Extractors = Annotated[
    list[str],
    typer.Option(
        "--extractor",
        metavar="NAME",
        help="inception, efficientnet_lite0 or one of an installed package; may be given again. Default: a row's own, "
        "else inception.",
    ),
]
InceptionWeights = Annotated[
    str, typer.Option(metavar="FILE", help="The 2015 Inception network. Default: the folder of weights, torch's cache.")
]
Unindexed = Annotated[
    bool, typer.Option("--unindexed", help="Numbers in file names are no indices: take files by name.")
]
TrainSeed = Annotated[str, typer.Option("--seeds", metavar="N", help="Of a row: the training seed.")]
SamplingSeed = Annotated[str, typer.Option("--sampling-seeds", metavar="N", help="Of a row: the sampling seed.")]


@app.command("eval")
def evaluate(
    samples: SamplesArgument,
    overrides: Overrides = None,
    reference: Annotated[
        str,
        typer.Option(
            metavar="REFERENCE",
            help="Real images: an npz (ADM's, or of reference build), a folder, a data set. Default: a row's own.",
        ),
    ] = None,
    extractor: Extractors = None,
    inception_weights: InceptionWeights = None,
    unindexed: Unindexed = False,
    keep_features: Annotated[
        str, typer.Option(metavar="FILE", help="Keep the features (.safetensors), to be measured again as SAMPLES.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write a record; verify scores it again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
    scale: Scale = "tiny",
    seeds: TrainSeed = "0",
    sampling_seeds: SamplingSeed = "0",
    runs: Runs = None,
    records: Records = None,
    weights: Weights = "weights",
) -> None:
    """Measure any images: FID, IS, KID, precision, recall, copies.

    Settings are overridden as metrics.is_splits=5; without a number, they are lowered for small sets."""
    places, _ = results(runs, records)
    import torch

    from mar_bench.metrics.score import Measure, save_seen
    from mar_bench.pipeline import eval_images as eval_sets
    from mar_bench.records.provenance import provenance

    _use_cores()
    begin = time.monotonic()
    source = _source(samples, unindexed, scale, overrides or [], seeds, sampling_seeds, places)
    settings, chosen = eval_sets.settings_of(overrides or [], source.run)
    if source.run is None and reference is None:
        raise UserError("--reference is needed: an npz, a folder of real images or a data set")
    if source.run is not None:
        _use_cores(source.run.spec.compute.threads)  # so that a row's numbers are its record's, to the last bit
    if keep_features and len(extractor or []) > 1:
        raise UserError(f"--keep-features {keep_features}: features of one extractor; name one --extractor")
    if keep_features and (not keep_features.endswith(".safetensors") or Path(keep_features).is_dir()):
        raise UserError(f"--keep-features {keep_features}: name a .safetensors file to write")
    failed, found = [], []
    for space_of in _spaces(extractor, source, inception_weights, Path(weights), places):
        try:
            space = space_of()
            rest = settings.reference_images, _progress("reference")
            if reference is None:
                real, heldout = eval_sets.own_references(source.run, space, places, *rest)
            else:
                real, heldout = eval_sets.open_reference(reference, space, *rest), None
            seen = source.see(space, _progress("samples"))  # last: whatever is wrong with the others comes before
            if keep_features:
                save_seen(seen, Path(keep_features))
            fitted = eval_sets.fitted(settings, chosen, seen, real)
            scores = Measure(fitted, real, heldout, progress=_say)(seen)
            made = provenance("auto", torch.get_num_threads(), time.monotonic() - begin)
            record = eval_sets.as_record(scores, space.about, fitted, made)
            if save:
                eval_sets.save(record, seen, real, heldout, places)
            found.append(record)
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


# --- reference ------------------------------------------------------------------------------------------

reference_app = typer.Typer(
    help="Real images as an extractor sees them, kept in a file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(reference_app, name="reference")


@reference_app.command("build")
def build(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder, an npz (arr_0) or a data set (digits, mnist5k:heldout).")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The .npz to write.")],
    size: Annotated[
        int, typer.Option(metavar="PIXELS", help="Crop and resize as ADM does; JPEG files are read too.", min=8)
    ] = None,
    extractor: Annotated[str, typer.Option(metavar="NAME", help="As in eval.")] = "inception",
    inception_weights: InceptionWeights = None,
    most: Annotated[
        int,
        typer.Option("--images", metavar="N", help="So many features are kept, for precision, recall and KID.", min=2),
    ] = 10_000,
    weights: Weights = "weights",
) -> None:
    """Build a reference: statistics of all images, features of some."""
    if not target.endswith(".npz"):
        raise UserError(f"{target}: a reference is written to a .npz file")
    from mar_bench.metrics.references import is_reference
    from mar_bench.models.build import pick_device
    from mar_bench.pipeline import eval_images as eval_sets
    from mar_bench.utils.files import sha256_of

    if Path(target).exists() and not is_reference(Path(target)):
        raise UserError(f"{target}: exists and is no reference of mar-bench reference build; name another file")
    _use_cores()
    space = eval_sets.named_extractor(extractor, inception_weights, Path(weights), pick_device("auto"))
    reference = eval_sets.reference_of_set(eval_sets.open_pictures(images, size), space, most, _progress("reference"))
    reference.save(Path(target))
    about = reference.about
    for note in about.get("notes", []):
        print(f"note: {note}")
    print(f"wrote {target}: {about['num_images']} images, {about['num_features']} features of {extractor}; "
          f"sha256 {sha256_of(Path(target))}")  # fmt: skip


# --- compare --------------------------------------------------------------------------------------------


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A row, as in table1/mar/diff/guided, or a record.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    overrides: Overrides = None,
    scale: Scale = "tiny",
    records: Records = None,
) -> None:
    """Set two rows or records side by side, metric by metric.

    Differences are paired on common seeds and have intervals; where the two were not measured alike, it says why."""
    from mar_bench.report.compare import markdown

    sides = (_records_of(name, scale, no_seeds(overrides), records) for name in (one, other))
    print(markdown(one, next(sides), other, next(sides)), end="")


def _records_of(name: str, scale: str, overrides: list[str], records: str | None) -> list:
    """The records of a row, or one. Raises UserError where there are none."""
    if is_record(name):
        return [find_record(name, None, records)[1]]
    experiment_name, row = split_row(name)
    if row is None:
        raise UserError(f"{name}: neither a record nor a row, as in table1/mar/diff/guided")
    from mar_bench.report.frame import select

    places, found = results(None, records)
    experiment = load(experiment_name, scale, overrides, found)
    if row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    tasks = select(experiment, found)[row]
    if not tasks["generation"]:
        raise UserError(f"no records of {name} at scale {scale} in {places.records}; mar-bench run makes them")
    return [*tasks["generation"], *tasks["reconstruction"]]


# --- verify ---------------------------------------------------------------------------------------------


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="RECORD", help="A record's id or its file.")],
    again: Annotated[
        int,
        typer.Option("--resample", metavar="N", help="Draw N images again too, to be equal bit for bit.", min=1),
    ] = None,
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Score a record again from what was kept.

    Exit code 1 where a number is another one now."""
    places, record = find_record(name, runs, records)
    from mar_bench.pipeline.verify import circumstances, resample, rescore
    from mar_bench.utils.console import console_table

    _use_cores()
    findings = [rescore(record, places)]
    if again is not None:
        findings.append(resample(record, again, places))
    lines = [line for part in findings for line in part.lines]
    print(console_table(["what", "recorded", "now", "verdict"], [list(line) for line in lines]))
    for note in [*circumstances(record), *(note for part in findings for note in part.notes)]:
        print(f"note: {note}")
    if not all(part.holds for part in findings):
        print(f"record {record.id} is not reproduced", file=sys.stderr)
        raise typer.Exit(1)


# --- neighbours -----------------------------------------------------------------------------------------


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
    """Set generated images beside the training images nearest to them.

    Writes <reports>/<scale>/<experiment>-neighbours-<row>.png; says how many are as near as a copy."""
    experiment_name, row = split_row(name)
    if row is None:
        raise UserError(f"{name}: a row is needed, as in table1/mar/diff/guided; mar-bench show {name} lists them")
    from mar_bench.config.experiment import load_experiment
    from mar_bench.pipeline.eval_images import row_run
    from mar_bench.pipeline.neighbours import neighbours as find
    from mar_bench.pipeline.store import default_places
    from mar_bench.report.neighbours import neighbour_page

    _use_cores()
    train_seed, sampling_seed = one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)
    places = default_places(runs, None)
    run = row_run(experiment_name, row, scale, overrides or [], places, train_seed, sampling_seed)
    found = find(run, places, count, nearest)
    experiment = load_experiment(experiment_name, scale, overrides or [])
    target = Path(reports) / scale / f"{experiment.id}-neighbours-{row.replace('/', '-')}.png"
    print(f"wrote {neighbour_page(experiment, row, found, target)}")
    shares = [f"{(values <= 1).mean():.1%} of {len(values)}" for values in (found.closeness, found.real)]
    print(f"copied: {shares[0]} generated images, {shares[1]} real images that nothing was trained on")


# --- what they share ------------------------------------------------------------------------------------


def _source(text: str, unindexed: bool, scale: str, overrides: list[str], seeds: str, sampling_seeds: str, places):
    """What SAMPLES stands for: kept features, a set of images, else a row of an experiment."""
    from mar_bench.config.experiment import find_experiment
    from mar_bench.data.image_sets import BUILT_IN, open_images
    from mar_bench.pipeline import eval_images as eval_sets

    if text.endswith(".safetensors"):
        return eval_sets.samples_of_features(Path(text))
    experiment, row = split_row(text)
    if row is None or Path(text).exists() or text.endswith(".npz") or text.partition(":")[0] in BUILT_IN:
        return eval_sets.samples_of_set(open_images(text, indexed=not unindexed))
    try:
        find_experiment(experiment)
    except UserError as error:
        raise UserError(f"{text}: no such file or folder, nor a row of an experiment ({error})") from None
    seed, sampling_seed = one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)
    return eval_sets.samples_of_run(
        eval_sets.row_run(experiment, row, scale, overrides, places, seed, sampling_seed), places
    )


def _spaces(names: list[str] | None, source, inception_weights: str | None, weights: Path, places):
    """Functions that make the extractors asked for: each may fail alone."""
    from mar_bench.models.build import pick_device
    from mar_bench.pipeline import eval_images as eval_sets

    if source.remembered is not None:
        if names:
            raise UserError(f"--extractor {names[0]}: {source.name} holds features of one extractor; leave it out")
        return [lambda: source.remembered]
    if source.run is not None and not names:
        return [lambda: eval_sets.own_extractor(source.run, places)]
    device = pick_device("auto")
    return [
        lambda name=name: eval_sets.named_extractor(name, inception_weights, weights, device)
        for name in dict.fromkeys(names or ["inception"])
    ]


def _use_cores(threads: int | None = None) -> None:
    """All of them by default."""
    import torch

    torch.set_num_threads(threads or cores())


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def _progress(what: str) -> Callable[[int, int], None]:
    """A line on stderr every few seconds."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() > told + 5:
            told = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return progress
