"""The command for records of several machines: collect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mar_bench.cli.options import Records, app


@app.command()
def collect(
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", help="Folders of records or containing them (results/records, runs folders)."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, write nothing.")] = False,
    records: Records = None,
) -> None:
    """Copy the records of other machines.

    Of two equal results of one id the earlier is kept. Results that disagree are set aside in <records>/conflicts,
    where no table shows them, and named; the exit code is then 1."""
    from mar_bench.pipeline.store import default_places
    from mar_bench.records.collect import collect

    plan = collect([Path(folder) for folder in folders], default_places(None, records).records, dry_run)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print("\n".join([*plan.changes(), f"{plan.summary()}; nothing is written"]))
    else:
        print(f"{plan.summary()}; records are in {plan.folder}")
    if conflicts := plan.conflicts():
        print("\n".join(conflicts), file=sys.stderr)
        raise typer.Exit(1)
