"""Extreme values, hostile files and load as figures; what is tried and how stands in the modules that they call."""

from __future__ import annotations

import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mar_bench.cluster.profile import load_profile
from mar_bench.config.experiment import load_experiment
from mar_bench.utils.errors import UserError
from tests.torture.extremes import field_extremes
from tests.torture.hostile_files import TOUCHED, hostile_files
from tests.torture.hostile_yaml import hostile_yaml
from tests.torture.load import make_records, measure_load
from tests.torture.test_hostile_files import MIB, SECONDS, attempt
from tests.torture.workshop import SCALE, Figure, Workshop, forked

RECORDS = 20_000
LIMITS = {"table": 10.0, "plan": 3.0, "status": 3.0}  # seconds, by the first word of a command
MOST_MB = 1000


def extremes(lab: Workshop) -> Iterator[Figure]:
    tried, accepted, failures = forked(field_extremes)
    yield Figure(
        "extreme values",
        "every field of specs, cluster profiles and experiment files at extreme values, as far as a plan goes: "
        "accepted, or refused in one line that names the field or the file",
        tried,
        failures,
        f"{accepted:,} accepted",
    )


def hostile(lab: Workshop) -> Iterator[Figure]:
    with lab.bench() as folder:
        files = list(hostile_yaml(folder))
        reads: list[Callable[[str], object]] = [lambda file: load_experiment(file, SCALE), load_profile]
        cases = [(name, path, read) for name, path in files for read in reads]
        told = [(name, forked(unlike_a_refusal, path, read)) for name, path, read in cases]
    yield Figure(
        "hostile YAML files",
        "as experiment and as cluster profile: refused in one line that names the file, "
        f"within {SECONDS} s and {MIB} MiB",
        len(files),
        [f"{name}: {wrong}" for name, wrong in told if wrong],
    )
    with lab.bench() as folder:
        told = [
            (name, forked(unlike_a_refusal, path, lambda file, verb=verb: attempt(Path(file), verb)))
            for name, path, verb in hostile_files(folder)
        ]
        touched = [*folder.rglob(TOUCHED), *Path.cwd().glob(TOUCHED)]
    yield Figure(
        "hostile npz files and checkpoints",
        "as samples or reference of `eval` and as source of `convert`: likewise, and none runs its command",
        len(told),
        [f"{name}: {wrong}" for name, wrong in told if wrong] + [f"{path} was made" for path in touched],
    )


def unlike_a_refusal(path: Path, read: Callable[[str], object]) -> str | None:
    """In a child of its own: in what the answer to a file differs from a refusal in one line, at once."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(str(path))
        return "accepted"
    except UserError as error:
        message = str(error)
    except Exception:
        return traceback.format_exc()
    seconds, mib = time.monotonic() - begin, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if seconds > SECONDS or mib > MIB:
        return f"{seconds:.1f} s, {mib:.0f} MiB"
    return None if path.name in message and message.isprintable() and len(message) < 600 else repr(message)


def load(lab: Workshop) -> Iterator[Figure]:
    with lab.bench() as folder, multiprocessing.get_context("spawn").Pool(1) as small:
        make_records(folder / "records", RECORDS)
        costs = small.apply(measure_load, (folder / "records",))  # children inherit the peak memory of their parent
    told = [f"{name} {load.processor_seconds:.1f} s, {load.megabytes:.0f} MB" for name, load in costs.items()]
    over = [
        load.megabytes > MOST_MB or load.processor_seconds > LIMITS.get(name.split()[0], 60)
        for name, load in costs.items()
    ]
    yield Figure(
        f"commands on {RECORDS:,} records",
        ", ".join(f"`{verb}` within {limit:.0f} s" for verb, limit in LIMITS.items())
        + f" of one processor, each in {MOST_MB} MB",
        len(costs),
        [each for each, wrong in zip(told, over) if wrong],
        "; ".join(told),
    )
