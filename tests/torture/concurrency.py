"""Several commands at once on one run root, by themselves and as ranks of one torchrun: no stage is executed twice."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path

from mar_bench.config import stages
from mar_bench.pipeline import execute
from tests.torture import workshop
from tests.torture.workshop import Figure, Workshop, difference, records, run_words


def concurrency(lab: Workshop) -> Iterator[Figure]:
    yield many_processes(lab, 8)
    yield many_ranks(lab, 2 if lab.quick else 8)


def many_processes(lab: Workshop, count: int) -> Figure:
    expected = records(lab.undisturbed())
    with lab.bench() as folder:
        counts, wrong = together(folder, count, lambda number: {})
        wrong += [f"{stage} executed {times} times" for stage, times in counts.items() if times > 1]
        wrong += [told] if (told := difference(expected, records(folder))) else []
    return Figure(
        f"{count} processes on one run root",
        f"stages that {count} `run` of one experiment, started at once, have executed, counted as they start: each "
        "once, and the records are those of one process",
        len(counts),
        wrong,
    )


def many_ranks(lab: Workshop, count: int) -> Figure:
    """Ranks share what can be split; rank 0 alone does the rest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    with lab.bench() as folder:
        counts, wrong = together(folder, count, lambda number: {**meeting, "RANK": str(number), "LOCAL_RANK": "0"})
        shared = {name for name, stage in stages.STAGES.items() if stage.multiprocess}
        for stage, times in counts.items():
            if times != (count if stage.split()[0] in shared else 1):
                wrong.append(f"{stage} executed {times} times")
        done = {name for name, record in records(folder).items() if record["status"] == "done"}
        wrong += [f"no record {name}" for name in records(lab.undisturbed()).keys() - done]
    return Figure(
        f"{count} ranks of one torchrun",
        "stages that the ranks have executed: shared ones once per rank, the others by rank 0 alone",
        len(counts),
        wrong,
    )


def together(folder: Path, count: int, environment: Callable[[int], dict[str, str]]) -> tuple[Counter[str], list[str]]:
    """Start ``run`` ``count`` times at once; how often each stage was executed, and the processes that failed."""
    log, places = folder / "executed", []
    for number in range(count):
        (place := folder / f"{number}").mkdir()
        hook = partial(counted, log, {"MAR_BENCH_LOCKS": str(folder / "machine"), **environment(number)})
        places.append((place, workshop.start(place, run_words(folder), hook)))
    ends = [workshop.end(*each) for each in places]
    wrong = [f"exit code {code}: {text.strip()[-300:]}" for code, text in ends if code != 0 or "Traceback" in text]
    return Counter(log.read_text().splitlines()), wrong


def counted(log: Path, environment: dict[str, str]) -> None:
    """In a command: append a line to ``log`` whenever a stage is executed; workers inherit it."""
    os.environ.update(environment)

    def counting(name: str, work: Callable[..., None]) -> Callable[..., None]:
        @wraps(work)
        def execution(run, places, folder, *more):
            handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{name} {folder.name}\n".encode())
            os.close(handle)
            work(run, places, folder, *more)

        return execution

    execute.STAGES.update({name: counting(name, work) for name, work in execute.STAGES.items()})
