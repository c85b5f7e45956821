"""The verbs. No hyper-parameter has a flag: everything in a spec is overridden as key=value."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.errors import UserError, did_you_mean

app = typer.Typer(
    help="Benchmark and reproduction suite for discrete against continuous autoregressive image generation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Scale = Annotated[
    str, typer.Option(metavar="SCALE", help="An overlay in experiments/scale: smoke, tiny, desk or paper.")
]
Seeds = Annotated[str, typer.Option(metavar="0,1,2", help="Training seeds of the generators. Default: the spec's, 0.")]
SamplingSeeds = Annotated[
    str,
    typer.Option(metavar="0,1,2", help="Sampling seeds: other images from the same weights. Default: the spec's, 0."),
]
Only = Annotated[
    str, typer.Option(metavar="PATTERN", help="A shell pattern on row names, as in 'mar/*' or '*/diff/guided'.")
]


def _folder(name: str, help_text: str, default: str | None = None):
    """A folder as an option and as an environment variable; ``default`` is what the help says."""
    shown = default or True
    return typer.Option(metavar="DIR", help=help_text, envvar=f"MAR_BENCH_{name}", show_default=shown)


Runs = Annotated[str, _folder("RUNS", "Folder of check-points, latents and samples.", "runs")]
Records = Annotated[
    str, _folder("RECORDS", "Folder of records, the results.", "results/records in a checkout, else records")
]
Reports = Annotated[str, _folder("REPORTS", "Folder of tables and figures: <reports>/<scale>/<experiment>.*")]
Weights = Annotated[str, _folder("WEIGHTS", "Folder of public files.")]
ExperimentName = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A name (see list) or a YAML file.")]
Overrides = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", help="Overrides of the spec, as in train.steps=100.")
]


@app.command("list")
def list_experiments() -> None:
    """List experiments and scales."""
    from mar_bench.config import experiment_files, experiment_summary, experiments_dir, scales
    from mar_bench.console import console_table

    if not (files := experiment_files()):
        raise UserError(f"no experiments in {experiments_dir()} (see MAR_BENCH_EXPERIMENTS)")
    lines, broken = [], []
    for file in files.values():
        try:
            summary = experiment_summary(file)
            lines.append([summary["id"], summary["title"], str(summary["rows"])])
        except UserError as error:
            broken.append(str(error))
    print(console_table(["experiment", "title", "evaluations"], lines))
    print(f"scales: {', '.join(scales())}")
    if broken:
        raise UserError("; ".join(broken))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="EXPERIMENT[/ROW]", help="As in table1 or table1/mar/diff/guided.")],
    overrides: Overrides = None,
    scale: Scale = "tiny",
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Show an experiment's rows, or one row's resolved spec.

    With a row: everything that determines it, its ids and the paper's cell."""
    from mar_bench.config import load_experiment
    from mar_bench.console import console_table, to_yaml
    from mar_bench.ids import generation_run, reconstruction_run, speed_run
    from mar_bench.jobs import status
    from mar_bench.parse import as_tree
    from mar_bench.provenance import device_name

    experiment_name, row = _split_row(name)
    experiment = load_experiment(experiment_name, scale, overrides or ())
    places, found = _results(runs, records)
    if row is None:
        print(f"{experiment.id}: {experiment.title}, {scale} scale\n{experiment.source}\n")
        lines = []
        for row, spec in experiment.rows.items():
            run = generation_run(row, spec)
            lines.append([row, run.ids["train_id"], run.id, status(run, places, found), _paper_cell(experiment, row)])
        print(console_table(["row", "train_id", "eval_id", "status", "paper"], lines))
        return
    if row not in experiment.rows:
        raise UserError(f"{experiment.file}: no row '{row}', {did_you_mean(row, experiment.rows)}")
    spec = experiment.rows[row]
    run = generation_run(row, spec)
    others = reconstruction_run(row, spec), speed_run(row, spec, device_name(spec.compute.device))
    print(f"# {experiment.id}/{row}, {scale} scale: {status(run, places, found)}")
    print(f"# paper: {_paper_cell(experiment, row) or 'no such cell'}")
    print(to_yaml({"ids": {**run.ids, **{f"{r.task}_id": r.id for r in others}}, "spec": as_tree(spec)}))


@app.command()
def plan(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "tiny",
    seeds: Seeds = None,
    sampling_seeds: SamplingSeeds = None,
    only: Only = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Say what a run would do.

    Evaluations, trainings and what they share; what is done, missing or failed."""
    from mar_bench.planning import make_plan, plan_text

    places, found = _results(runs, records)
    _, planned = _planned([name], scale, _no_seeds(overrides), seeds, sampling_seeds, only)
    content = make_plan(name, scale, planned, places, found)
    print(json.dumps(content, indent=1) if as_json else plan_text(content))


@app.command()
def run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="EXPERIMENT|KEY=VALUE", help="Names or YAML files, then overrides."),
    ],
    scale: Scale = "tiny",
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N", help="Processes side by side. Default: cores / threads per process; 1 on a GPU.", min=1
        ),
    ] = None,
    only: Only = None,
    seeds: Seeds = None,
    sampling_seeds: SamplingSeeds = None,
    reuse_records: Annotated[
        bool, typer.Option("--reuse-records", help="Skip what has a record, even where its run is not here.")
    ] = False,
    runs: Runs = None,
    records: Records = None,
) -> None:
    """Train, sample and measure what is not done yet.

    Stopped, the same command goes on where it was."""
    from mar_bench.jobs import jobs_for, preflight, publish, writable
    from mar_bench.progress import duration, make_report

    places, found = _results(runs, records)
    names, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not names:
        raise UserError(f"run needs an experiment before {overrides[0]}; see mar-bench list")
    _, planned = _planned(names, scale, _no_seeds(overrides), seeds, sampling_seeds, only)
    world = _world()
    wanted = len(planned)
    if reuse_records:
        planned = [r for r in planned if not (r.id in found and found[r.id].status == "done")]
    publish(planned, places)
    todo = jobs_for(planned, places)
    if world:
        for job in todo:
            if job.kind == "train" and job.run.spec.train.published is None:
                world.share(range(job.run.spec.train.batch_size))  # raises before any work
        todo = world.agreed(todo)
    if not todo:
        print(f"nothing to do: all {wanted} runs are done; records are in {places.records}")
        return
    preflight([job.run for job in todo])
    writable(places)
    workers = world.size if world else min(jobs or _default_jobs(todo), len(todo))
    report = make_report(todo, 1 if world else workers, quiet=world is not None and not world.first)
    report.say(
        f"{len(todo)} jobs on {workers} process{'es' * (workers > 1)}{' together' if world else ''}, about "
        f"{duration(report.seconds_left())}; runs in {places.runs}, records in {places.records}"
    )
    if world:
        from mar_bench.together import run_together

        outcome = run_together(todo, places, world, report)
    else:
        from mar_bench.launch import run_jobs

        outcome = run_jobs(todo, places, workers, report)
    taken = duration(report.elapsed())
    if outcome.stopped:
        print(f"stopped after {taken}; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.failed:
        given_up = len(todo) - outcome.done - len(outcome.failed)
        print(
            f"{len(outcome.failed)} of {len(todo)} jobs failed after {taken}, {given_up} behind them were not run:",
            file=sys.stderr,
        )
        titles = {job.id: job.title for job in todo}
        for job_id, error in outcome.failed.items():
            print(f"  {titles[job_id]}: {error.splitlines()[0]}", file=sys.stderr)
        print("their records say more; run the same command to try again", file=sys.stderr)
        raise typer.Exit(1)
    words = [f"--scale {scale}", *([f"--records {records}"] if records else []), *map(shlex.quote, overrides)]
    if world is None or world.first:
        print(f"{outcome.done} jobs done in {taken}; next: mar-bench table {names[0]} {' '.join(words)}")


@app.command()
def table(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "tiny",
    output_format: Annotated[str, typer.Option("--format", metavar="md|csv", help="What to print.")] = "md",
    save: Annotated[bool, typer.Option("--save", help="Write both formats into the reports folder as well.")] = False,
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Print a table beside the paper's numbers."""
    from mar_bench.config import load_experiment
    from mar_bench.records import atomic_write

    if output_format not in ("md", "csv"):
        raise UserError(f"--format {output_format}: {did_you_mean(output_format, ('md', 'csv'))}")
    experiment = load_experiment(name, scale, _no_seeds(overrides))
    places, found = _results(None, records)
    from mar_bench.report.tables import build

    result = build(experiment, found)
    if not any(tasks["generation"] for tasks in result.selection.values()):
        nothing = f"no records of {experiment.id} at scale {scale} in {places.records}; `mar-bench run` makes them"
        if save:
            raise UserError(nothing)
        print(f"note: {nothing}", file=sys.stderr)
    texts = {"md": result.markdown(), "csv": result.csv()}
    print(texts[output_format], end="")
    if save:
        for ending, text in texts.items():
            path = Path(reports) / scale / f"{experiment.id}.{ending}"
            atomic_write(path, text)
            print(f"wrote {path}", file=sys.stderr)


@app.command()
def plot(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "tiny",
    reports: Reports = "reports",
    records: Records = None,
) -> None:
    """Draw distance against seconds per image.

    Writes <reports>/<scale>/<experiment>.png, .pdf and .svg."""
    from mar_bench.config import load_experiment

    experiment = load_experiment(name, scale, _no_seeds(overrides))
    _, found = _results(None, records)
    from mar_bench.report.plots import speed_accuracy

    for path in speed_accuracy(experiment, found, Path(reports) / scale / experiment.id):
        print(f"wrote {path}")


@app.command()
def sample(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "tiny",
    seeds: Annotated[str, typer.Option(metavar="N", help="The training seed whose images are drawn.")] = "0",
    sampling_seeds: Annotated[str, typer.Option(metavar="N", help="The sampling seed whose images are drawn.")] = "0",
    reports: Reports = "reports",
    runs: Runs = None,
) -> None:
    """Draw a sheet of generated images.

    A panel per row, from what run has sampled: <reports>/<scale>/<experiment>-samples.png."""
    from mar_bench.config import load_experiment
    from mar_bench.ids import generation_run, with_seeds
    from mar_bench.jobs import default_places, previews

    experiment = load_experiment(name, scale, _no_seeds(overrides))
    places = default_places(runs, None)
    train_seeds, drawn_seeds = _seeds("--seeds", seeds), _seeds("--sampling-seeds", sampling_seeds)
    if len(train_seeds) != 1 or len(drawn_seeds) != 1:
        raise UserError("a sheet shows one training seed and one sampling seed")
    chosen = {r: generation_run(r, with_seeds(s, train_seeds[0], drawn_seeds[0])) for r, s in experiment.rows.items()}
    images = previews(chosen, places)
    from mar_bench.report.samples import sample_grid

    path = sample_grid(experiment, images, Path(reports) / scale / f"{experiment.id}-samples.png")
    print(f"wrote {path}: {len(images)} of {len(chosen)} rows")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a public file. Default: list them.")] = None,
    weights: Weights = "weights",
) -> None:
    """Get a public file that the paper's scale needs.

    Downloads it where its address is known, records its SHA-256 and compares it from then on."""
    from mar_bench.console import console_table
    from mar_bench.fetch import fetch, listing

    folder = Path(weights)
    if name is not None:
        print(fetch(name, folder))
        return
    print(console_table(["name", "what", "MiB", "address", "here"], listing(folder)))
    print(f"folder: {folder}; the addresses are unverified; `mar-bench fetch NAME` gets a file or says how to")


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="mar, kl16, vq16, kl8 or consistency.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A published check-point, or diffusers' folder.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A .safetensors file; its manifest goes beside it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Of a mar: the weights, not their moving average.")] = False,
) -> None:
    """Convert published weights into our names.

    Every tensor must fit, and nothing in SOURCE is executed."""
    from mar_bench.convert import convert

    manifest = convert(kind, Path(source), Path(target), raw)
    counts = f"{manifest['tensors']} tensors, {manifest['parameters']:,} parameters of {manifest['weights']}"
    print(f"wrote {target}: {counts}, {len(manifest['left_out'])} left out; sha256 {manifest['target']['sha256']}")
    if kind == "mar":
        print(f"next: mar-bench run with train.published=NAME train.weights={target}; NAME stands for it in ids")
    else:
        print(f"next: tokenizer.weights={target}, or that of a part, as in parts.tokenizer.continuous.weights={target}")


@app.command()
def rehearse(
    name: ExperimentName,
    overrides: Overrides = None,
    scale: Scale = "paper",
    only: Only = None,
    images: Annotated[
        str, typer.Option(metavar="DIR", help="Any folder of pictures. Default: scikit-learn's two photographs.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images of a training step.", min=1)] = 2,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="The GPU whose hours are estimated.")] = "H100",
    count_only: Annotated[
        bool, typer.Option("--count-only", help="Count parameters and FLOPs, train nothing.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Write the table into the reports folder as well.")] = False,
    reports: Reports = "reports",
    runs: Runs = None,
) -> None:
    """Try every training of an experiment at its true size.

    A few real steps each, one after another, on the CPU: check-point, resume, one guided sample, memory and
    FLOPs, and the GPU hours of the whole, before any is spent."""
    from dataclasses import asdict

    from mar_bench.config import load_experiment
    from mar_bench.ids import chosen_rows
    from mar_bench.jobs import default_places, writable
    from mar_bench.provenance import provenance
    from mar_bench.records import atomic_write
    from mar_bench.report.rehearsal import GPUS, markdown, title_of

    gpu = gpu.upper().replace(" ", "")
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: {did_you_mean(gpu, GPUS)}")
    if images is not None and not Path(images).is_dir():
        raise UserError(f"--images {images}: no such folder")
    experiment = load_experiment(name, scale, overrides or ())
    rows = chosen_rows(experiment, only)
    places = default_places(runs, None)
    if not count_only:
        writable(places)
    from mar_bench import rehearse as rehearsal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to stop as Ctrl-C does
    folder = Path(images) if images else None
    rehearsal.picture_files(folder)
    threads, found = _cores(), []
    for item in rehearsal.count(rows):
        title = title_of(item.rows)
        if not count_only:
            print(f"{title}: {item.parameters['total'] / 1e6:.0f}M parameters", file=sys.stderr, flush=True)
            spec = rows[item.rows[0]]
            item = rehearsal.rehearse(item, spec, folder, places.runs, batch, threads)
            went = (
                f"FAILED: {item.error}"
                if item.error
                else f"{item.seconds / 60:.1f} min, {item.peak_bytes / 1e9:.1f} GB"
            )
            print(f"{title}: {went}", file=sys.stderr, flush=True)
        found.append(asdict(item))
    if not found:
        raise UserError(f"{experiment.file}: nothing is trained in these rows")
    content = {
        "gpu": gpu,
        "images": "pictures of a folder" if images else "the photographs of scikit-learn",
        "provenance": provenance("cpu", threads, sum(item["seconds"] for item in found)),
        "found": found,
    }
    text = markdown(f"{experiment.id}: rehearsal at {scale} scale", content, rows)
    print(text, end="")
    if save:
        target = Path(reports) / scale / f"{experiment.id}-rehearsal"
        atomic_write(target.with_suffix(".md"), text)
        atomic_write(target.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        print(f"wrote {target}.md and .json", file=sys.stderr)
    if any(item["error"] or item["resumed_equal"] is False for item in found):
        raise typer.Exit(1)


# --- what the verbs share -------------------------------------------------------------------------------


def _results(runs: str | None, records: str | None):
    """The two places and what is recorded. Raises UserError for a broken record, before any work."""
    from mar_bench.jobs import default_places
    from mar_bench.records import read_records

    places = default_places(runs, records)
    return places, read_records(places.records)


def _planned(names: list[str], scale: str, overrides: list[str], seeds, sampling_seeds, only: str | None):
    """Experiments and all their runs, each id once."""
    from mar_bench.config import load_experiment
    from mar_bench.ids import plan_runs
    from mar_bench.provenance import device_name

    train_seeds, drawn_seeds = _seeds("--seeds", seeds), _seeds("--sampling-seeds", sampling_seeds)
    experiments = [load_experiment(name, scale, overrides) for name in names]
    found = {}
    for experiment in experiments:
        device = device_name(next(iter(experiment.rows.values())).compute.device)
        for planned in plan_runs(experiment, train_seeds, drawn_seeds, only, device):
            found.setdefault(planned.id, planned)
    return experiments, list(found.values())


def _no_seeds(overrides: list[str] | None) -> list[str]:
    """Overrides, without those that would choose a seed beside the options that do."""
    for key, option in (("train.seed", "--seeds"), ("sampling.seed", "--sampling-seeds")):
        if any(word.partition("=")[0] == key for word in overrides or ()):
            raise UserError(f"{key} is chosen by {option} of run and plan; a table shows every seed that has records")
    return overrides or []


def _seeds(option: str, text: str | None) -> list[int] | None:
    """``0,1,2`` as whole numbers; None where the option was not given."""
    if text is None:
        return None
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected whole numbers with commas between, as in 0,1,2") from None
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise UserError(f"{option} {text}: seeds are 0 or more and below 2^63")
    return list(dict.fromkeys(seeds))


def _split_row(name: str) -> tuple[str, str | None]:
    """``table1/mar/diff/guided`` -> experiment and row; a YAML file's path may hold slashes of its own."""
    if ".yaml" in name:
        file, _, row = name.partition(".yaml")
        return f"{file}.yaml", row.strip("/") or None
    experiment, _, row = name.partition("/")
    return experiment, row or None


def _paper_cell(experiment, row: str) -> str:
    from mar_bench.report.wording import PAPER_NAMES, paper_number

    cell = experiment.paper.get(row, {})
    return ", ".join(f"{PAPER_NAMES.get(metric, metric)} {paper_number(metric, v)}" for metric, v in cell.items())


def _world():
    """Meet the processes that torchrun or srun started beside this one; None for one alone."""
    if not {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys():
        return None  # without a look at torch
    from mar_bench.distributed import join, world_of

    world = world_of()
    if world.size == 1:
        return None
    join(world)
    return world


def _default_jobs(jobs) -> int:
    """One process a core (or for each group of ``threads`` cores); one on a GPU, which they would share."""
    from mar_bench.provenance import cpu_name, device_name

    compute = jobs[0].run.spec.compute
    if device_name(compute.device) != cpu_name():
        return 1
    return max(1, _cores() // compute.threads)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
