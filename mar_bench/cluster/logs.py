"""The logs of a row's jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from mar_bench.cluster.ledger import find_rows, read_ledger
from mar_bench.cluster.status import look
from mar_bench.pipeline.store import Places


def logs_of(places: Places, name: str) -> Iterator[tuple[str, Path]]:
    """(job, log) for all jobs on the way to a row and all their processes, in the order of work; empty logs are
    left out."""
    ledger = read_ledger(places.runs)
    wanted = {stage for row in find_rows(ledger, name) for stage in row.stages}
    for submission in ledger:
        for job in submission.jobs.values():
            if not wanted & {stage.id for stage in job.stages}:
                continue
            number = job.slurm_id or job.key
            title = f"job {number}: {', '.join(stage.title for stage in job.stages[:3])}"
            for ending in ("out", "err"):
                for path in sorted((submission.folder / "logs").glob(f"{number}_[0-9]*_log.{ending}")):
                    if path.stat().st_size:
                        yield title, path


def print_logs(places: Places, name: str, lines: int, follow: bool = False) -> bool:
    """Print the last ``lines`` of each log of a row; returns whether there are any.

    With ``follow``, then print what is appended, also to logs of jobs that start later, until no row called ``name``
    is live."""
    ends: dict[Path, int] = {}  # how many bytes of each log are printed
    for title, path in logs_of(places, name):
        content = path.read_bytes()
        ends[path] = len(content)
        text = content.decode(errors="replace").splitlines()
        print(f"==> {title}\n--- {path}" + (f" (last {lines} of {len(text)} lines)" if len(text) > lines else ""))
        print("\n".join(text[-lines:]))
    live = follow
    while live:
        wanted = {row.id for row in find_rows(read_ledger(places.runs), name)}
        live = any(line.live for line in look(places, []).lines if line.id in wanted)
        for title, path in logs_of(places, name):
            with path.open(errors="replace") as file:
                file.seek(ends.get(path, 0))
                if new := file.read():
                    print((f"==> {title}\n" if path not in ends else "") + new, end="", flush=True)
                ends[path] = file.tell()
        if live:
            time.sleep(2)
    return bool(ends)
