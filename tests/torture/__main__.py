"""Run the scenarios and print one table of figures; `make torture` writes it into docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module
from pathlib import Path

from mar_bench.records.provenance import cores, cpu_name, git_state
from mar_bench.utils.files import atomic_write
from tests.torture.workshop import Figure, Workshop, warm_up

Scenario = Callable[[Workshop], Iterator[Figure]]


def later(name: str) -> Scenario:
    """A scenario of a module that is imported when its turn comes."""
    module, _, function = name.rpartition(".")

    def scenario(lab: Workshop) -> Iterator[Figure]:
        yield from getattr(import_module(f"tests.torture.{module}"), function)(lab)

    return scenario


SCENARIOS: dict[str, Scenario] = {
    "kills": later("kills.kills"),
    "concurrency": later("concurrency.concurrency"),
    "corruptions": later("corruption.corruptions"),
    "disks": later("disks.disks"),
    "fuzz": later("fuzz.fuzz"),
    "extremes": later("pieces.extremes"),
    "hostile": later("pieces.hostile"),
    "load": later("pieces.load"),
    "memory": later("memory.memory"),
    "bits": later("bits.bits"),
}
QUICK = ("kills", "concurrency", "corruptions", "fuzz", "memory", "bits")  # parts of the others have tests of their own


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    parser.add_argument("--case", type=int, help="one case of a scenario by its number; its folders are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table into a Markdown file")
    parser.add_argument("--jobs", type=int, default=cores(), help="cases at once; default: one per core")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    warm_up()
    figures = []
    lab = Workshop(Path(tempfile.mkdtemp(prefix="torture-")), options.quick, options.jobs, options.case)
    names = [options.only] if options.only else [n for n in SCENARIOS if n in QUICK or not options.quick]
    for figure, seconds in (each for name in names for each in timed(name, lab)):
        figures.append((figure, seconds))
        print(f"{line(figure, seconds)} {figure.note}", *figure.wrong, sep="\n    ", flush=True)
    if options.case is None:
        shutil.rmtree(lab.folder)
    else:
        print(f"folders: {lab.folder}")
    if options.write:
        atomic_write(options.write, markdown(figures))
    sys.exit(any(figure.wrong for figure, _ in figures))


def timed(name: str, lab: Workshop) -> Iterator[tuple[Figure, float]]:
    """A scenario's figures, each with the seconds it took; what breaks the scenario itself is a figure too."""
    figures = SCENARIOS[name](lab)
    while True:
        begin = time.monotonic()
        try:
            figure = next(figures, None)
        except Exception:
            figure, figures = Figure(name, "", 0, [traceback.format_exc()]), iter(())
        if figure is None:
            return
        yield figure, time.monotonic() - begin


def line(figure: Figure, seconds: float) -> str:
    return f"| {figure.what} | {figure.tried:,} | {len(figure.wrong)} | {seconds:.0f} |"


def markdown(figures: list[tuple[Figure, float]]) -> str:
    git = git_state()
    where = f"commit {git.get('commit', 'unknown')[:12]}{' with changes' if git.get('dirty') else ''}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return "\n".join(
        [
            "# Reliability",
            "",
            "Written by `make torture`; not to be edited. "
            f"{cpu_name()}, {cores()} cores, {memory:.0f} GB; {where}; {date.today()}; "
            f"{sum(seconds for _, seconds in figures) / 60:.0f} minutes.",
            "",
            "| what | tried | wrong | seconds |",
            "|---|---|---|---|",
            *(line(figure, seconds) for figure, seconds in figures),
            "",
            *(f"- **{f.what}**: {f.counted}{f' ({f.note})' if f.note else ''}." for f, _ in figures),
            *(f"- wrong, {f.what}: {told.splitlines()[0]}" for f, _ in figures for told in f.wrong[:5]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
