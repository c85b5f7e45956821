"""The commands that show records and runs: table, plot, sample, curves, claims, report."""

from __future__ import annotations

import contextlib
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mar_bench.cli.options import (
    All,
    AsJson,
    ExperimentNames,
    Records,
    Reports,
    Runs,
    Scale,
    app,
    as_path,
    one_seed,
    print_json,
    results,
)
from mar_bench.utils.console import printable
from mar_bench.utils.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mar_bench.config.experiment import Experiment
    from mar_bench.records.record import RecordFolder

TABLE_FORMATS = ("md", "csv", "tex")
ScaleOrAll = Annotated[str | None, typer.Option("--scale", metavar="SCALE", help="An overlay in experiments/scale.")]


@contextlib.contextmanager
def _noted(every: bool) -> Iterator[None]:
    """Print a UserError as a note instead if ``every`` experiment was asked for."""
    try:
        yield
    except UserError as error:
        if not every:
            raise
        print(f"note: {printable(str(error))}", file=sys.stderr)


def _shown(words: list[str] | None, every: bool, scale: str, found: RecordFolder) -> list[Experiment]:
    """The experiments to show, without the rows that overrides do not fit; they must leave the others distinct."""
    from mar_bench.config.experiment import need_distinct_rows
    from mar_bench.pipeline.request import load_all

    experiments = load_all(words, every, scale, found, only="")
    for experiment in experiments:
        need_distinct_rows(experiment)
    return experiments


@app.command()
def table(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    output_format: Annotated[str, typer.Option("--format", metavar="md|csv|tex", help="Format to print.")] = "md",
    save: Annotated[bool, typer.Option("--save", help="Also write all formats into the reports folder.")] = False,
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Print a table beside the paper's numbers."""
    from mar_bench.report.table import build

    if output_format not in TABLE_FORMATS:
        raise UserError(f"--format {output_format}: {did_you_mean(output_format, TABLE_FORMATS)}")
    _, found = results(None, records)
    for experiment in _shown(words, every, scale, found):
        made = build.table(experiment, found)
        with _noted(every):
            for path in build.save_formats(made, Path(reports, scale)) if save else ():
                print(f"wrote {path}", file=sys.stderr)
        print({"md": made.markdown, "csv": made.csv, "tex": made.tex}[output_format](), end="")


@app.command()
def cite(words: ExperimentNames = None, scale: Scale = "tiny", records: Records = None) -> None:
    """Print BibTeX of the paper and of this suite, with the records behind a table."""
    from mar_bench.report.cite import bibtex
    from mar_bench.report.table.grid import Measured

    _, found = results(None, records)
    print("\n".join(bibtex(Measured(experiment, found)) for experiment in _shown(words, False, scale, found)), end="")


@app.command()
def plot(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Draw an experiment's figure; the default is distance against seconds per image.

    Writes <reports>/<scale>/<experiment>.png, .pdf and .svg."""
    from mar_bench.report.figures.draw import draw

    _, found = results(None, records)
    for experiment in _shown(words, every, scale, found):
        with _noted(every):
            for path in draw(experiment, found, Path(reports, scale, experiment.stem)):
                print(f"wrote {path}")


@app.command()
def sample(
    words: ExperimentNames = None,
    every: All = False,
    scale: Scale = "tiny",
    seeds: Annotated[str, typer.Option(metavar="N", help="The training seed whose images are shown.")] = "0",
    sampling_seeds: Annotated[str, typer.Option(metavar="N", help="The sampling seed whose images are shown.")] = "0",
    reports: Reports = "reports",
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Draw a sheet of generated images, one panel per row.

    Shows images that run has sampled; writes <reports>/<scale>/<experiment>-samples.png."""
    from mar_bench.config.ids import generation_run, with_seeds
    from mar_bench.pipeline.store import previews
    from mar_bench.report.figures.sheets import sample_grid

    places, found = results(runs, records)
    pair = one_seed("--seeds", seeds), one_seed("--sampling-seeds", sampling_seeds)
    for experiment in _shown(words, every, scale, found):
        chosen = {row: generation_run(row, with_seeds(spec, *pair)) for row, spec in experiment.rows.items()}
        images = previews(chosen, places)
        with _noted(every):
            path = sample_grid(experiment, images, Path(reports, scale, f"{experiment.stem}-samples.png"))
            print(f"wrote {path}: {len(images)} of {len(chosen)} rows")


@app.command()
def curves(
    rows: Annotated[list[str], typer.Argument(metavar="EXPERIMENT/ROW|KEY=VALUE", help="Rows, then overrides.")],
    scale: Scale = "tiny",
    picture: Annotated[
        str, typer.Option("--save", metavar="FILE", help="Write a png, pdf or svg instead.", callback=as_path)
    ] = None,
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Draw the training losses of rows and the distances at their snapshots, also while they train.

    While a row trains, its losses are known up to its last checkpoint. Distances are means over all measured seeds."""
    from mar_bench.config.ids import generation_run
    from mar_bench.pipeline.pictures import losses_of
    from mar_bench.pipeline.request import load_row, names_and_overrides
    from mar_bench.report import curves as draw

    names, overrides = names_and_overrides(rows)
    places, found = results(runs, records)
    panels: dict[str, dict[str, draw.Points]] = {"loss": {}, "distance": {}}
    for name in names:
        experiment, row = load_row(name, scale, overrides, found)
        if row is None:
            raise UserError(f"{name}: give a row of {experiment.id}: {', '.join(experiment.rows)}")
        spec = experiment.rows[row]
        drawn = {"loss": losses_of(generation_run(row, spec), places), "distance": draw.snapshots(spec, found)}
        for title, points in drawn.items():
            panels[title] |= {name: points} if points else {}
    panels = {title: of_rows for title, of_rows in panels.items() if of_rows}
    if not panels:
        raise UserError(f"{', '.join(names)}: nothing is trained or measured yet; `mar-bench run` does it")
    if picture is not None:
        if Path(picture).suffix not in draw.FORMATS:
            raise UserError(f"--save {picture}: end it with {', '.join(draw.FORMATS)}")
        print(f"wrote {draw.picture(panels, Path(picture))}")
        return
    for title, of_rows in panels.items():
        print(f"{draw.drawn(title, of_rows)}\n{draw.listed(of_rows)}\n")


@app.command()
def claims(
    scale: ScaleOrAll = None,
    save: Annotated[bool, typer.Option("--save", help="Also write the report into the reports folder.")] = False,
    as_json: AsJson = False,
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Judge the paper's claims from the available records.

    Judges each at --scale or, by default, at every scale. --save writes <reports>/claims.md or, with --scale,
    <reports>/<scale>/claims.md."""
    from mar_bench.report.claims.report import as_dict, claims_file, judge, markdown
    from mar_bench.utils.files import atomic_write, with_folder

    places, found = results(None, records)
    if save and not found:
        raise UserError(f"no records in {places.records}; `mar-bench run` makes them")
    judged = judge(claims_file(), found, scale)
    text = markdown(judged)
    if as_json:
        print_json(as_dict(judged))
    else:
        print(text, end="")
    if save:
        path = Path(reports, scale or "", "claims.md")
        atomic_write(with_folder(path), text)
        print(f"wrote {path}", file=sys.stderr)


@app.command()
def report(
    words: ExperimentNames = None,
    scale: Scale = "tiny",
    opened: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to this machine, up to date as runs go on.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: any free one.")] = 8765,
    reports: Reports = "reports",
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Write a page with all results of a scale: claims, tables, figures and images, in one HTML file.

    Shows the experiments that have records, or those given; images and training losses come from the run folder.
    Writes <reports>/<scale>/index.html, or with --serve nothing."""
    from mar_bench.pipeline.pictures import page_text, write_page

    folder = Path(reports, scale)

    def make() -> str:
        places, found = results(runs, records)
        return page_text(_shown(words, not words, scale, found), scale, places, found, folder, "records")

    if serve:
        from mar_bench.pipeline.serve import PageServer

        with PageServer(port, results(runs, records)[0], make) as server, contextlib.suppress(KeyboardInterrupt):
            print(f"serving {server.address} until Ctrl-C", flush=True)
            if opened:
                webbrowser.open(server.address)
            server.serve_forever()
        return
    places, found = results(runs, records)
    path = write_page(_shown(words, not words, scale, found), scale, places, found, folder)
    print(f"wrote {path}")
    if opened:
        webbrowser.open(path.resolve().as_uri())
