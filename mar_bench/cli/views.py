"""The verbs that look at records and runs: table, plot, sample, claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.cli.options import (
    All,
    ExperimentNames,
    Records,
    Reports,
    Runs,
    Scale,
    app,
    load,
    named,
    names_and_overrides,
    no_seeds,
    one_seed,
    results,
)
from mar_bench.utils.errors import UserError, did_you_mean

TABLE_FORMATS = ("md", "csv", "tex")


@app.command()
def table(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    output_format: Annotated[str, typer.Option("--format", metavar="md|csv|tex", help="What to print.")] = "md",
    save: Annotated[bool, typer.Option("--save", help="Write all formats into the reports folder as well.")] = False,
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Print a table beside the paper's numbers."""
    if output_format not in TABLE_FORMATS:
        raise UserError(f"--format {output_format}: {did_you_mean(output_format, TABLE_FORMATS)}")
    places, found = results(None, records)
    names, overrides = names_and_overrides(words)
    experiments = [load(name, scale, no_seeds(overrides), found) for name in named(names, every)]
    for experiment in experiments:
        _table(experiment, found, places, output_format, save, reports, strict=save and not every)


def _table(experiment, found: dict, places, output_format: str, save: bool, reports: str, strict: bool) -> None:
    """Print one table; without records print a note, or with ``strict`` raise UserError, and save nothing."""
    from mar_bench.report.table.build import build
    from mar_bench.utils.files import atomic_write

    scale = experiment.scale
    result = build(experiment, found)
    if not any(tasks["generation"] for tasks in result.selection.values()):
        nothing = f"no records of {experiment.id} at scale {scale} in {places.records}; `mar-bench run` makes them"
        if strict:
            raise UserError(nothing)
        print(f"note: {nothing}", file=sys.stderr)
        save = False
    texts = {"md": result.markdown(), "csv": result.csv(), "tex": result.tex()}
    print(texts[output_format], end="")
    if save:
        for ending, text in texts.items():
            path = Path(reports) / scale / f"{experiment.id}.{ending}"
            atomic_write(path, text)
            print(f"wrote {path}", file=sys.stderr)


@app.command()
def plot(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Draw an experiment's figure, or distance against seconds per image where it names none.

    Writes <reports>/<scale>/<experiment>.png, .pdf and .svg."""
    _, found = results(None, records)
    names, overrides = names_and_overrides(words)
    experiments = [load(name, scale, no_seeds(overrides), found) for name in named(names, every)]
    from mar_bench.report.figures.draw import draw

    for experiment in experiments:
        try:
            paths = draw(experiment, found, Path(reports) / scale / experiment.id)
        except UserError as error:
            if not every:
                raise
            print(f"note: {error}", file=sys.stderr)
            continue
        for path in paths:
            print(f"wrote {path}")


@app.command()
def sample(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    seeds: Annotated[str, typer.Option(metavar="N", help="The training seed whose images are drawn.")] = "0",
    sampling_seeds: Annotated[str, typer.Option(metavar="N", help="The sampling seed whose images are drawn.")] = "0",
    reports: Reports = "reports",
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Draw a sheet of generated images.

    A panel per row, from what run has sampled: <reports>/<scale>/<experiment>-samples.png."""
    from mar_bench.config.ids import generation_run, with_seeds
    from mar_bench.pipeline.store import previews
    from mar_bench.report.samples import sample_grid

    places, found = results(runs, records)
    pair = one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)
    names, overrides = names_and_overrides(words)
    for name in named(names, every):
        experiment = load(name, scale, no_seeds(overrides), found)
        chosen = {row: generation_run(row, with_seeds(spec, *pair)) for row, spec in experiment.rows.items()}
        images = previews(chosen, places)
        if every and not images:
            print(f"note: no images of {experiment.id} at scale {scale} in {places.runs}", file=sys.stderr)
            continue
        path = sample_grid(experiment, images, Path(reports) / scale / f"{experiment.id}-samples.png")
        print(f"wrote {path}: {len(images)} of {len(chosen)} rows")


@app.command()
def claims(
    scale: Scale = None,
    save: Annotated[bool, typer.Option("--save", help="Write it into the reports folder as well.")] = False,
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Judge the paper's claims by the records there are.

    Each at the largest scale that has its evidence, or all at --scale. --save writes <reports>/claims.md, with --scale
    <reports>/<scale>/claims.md."""
    from mar_bench.report.claims.file import claims_file
    from mar_bench.report.claims.report import markdown
    from mar_bench.utils.files import atomic_write

    text = markdown(claims_file(), results(None, records)[1], scale)
    print(text, end="")
    if save:
        path = Path(reports, scale or "", "claims.md")
        atomic_write(path, text)
        print(f"wrote {path}", file=sys.stderr)
