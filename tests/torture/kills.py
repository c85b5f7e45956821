"""SIGKILL at random moments and at every write point; the same command again must leave what it leaves undisturbed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mar_bench.config.stages import STAGES
from tests.parity.agreements import DATA
from tests.torture import killed, workshop
from tests.torture.workshop import SCALE, Figure, Workshop, before, copied, difference, run_words, state

ROW, MOMENTS = ("--only", "diffusion"), 60
QUICK = ("run: train", "run: generation", "convert", "collect")


@dataclass(frozen=True)
class Command:
    """A command to be killed: what must be there before, and its words in a folder."""

    name: str
    prepare: Callable[[Path], object]
    words: Callable[[Path], tuple[object, ...]]


def commands(lab: Workshop) -> list[Command]:
    """``run`` from nothing, from before each of its stages, and the other commands that write."""
    done = lab.undisturbed(*ROW)

    def converted(folder: Path) -> None:
        torch.save({"model_ema": load_file(DATA / "mar_kl16.safetensors")}, folder / "official.pth")

    def published(folder: Path, tasks: Iterable[str] = STAGES) -> None:
        (folder / "records").mkdir()
        for path in (done / "records").glob("*.json"):
            if json.loads(path.read_text())["task"] in tasks:
                (folder / "records" / path.name).write_bytes(path.read_bytes())

    def collected(folder: Path) -> None:
        """Of the three records one is here already, one disagrees and one is missing."""
        published(copied(done, folder), ("generation", "reconstruction"))
        for path in (folder / "records").glob("*.json"):
            if (content := json.loads(path.read_text()))["task"] == "generation":
                content["metrics"]["precision_digits"] /= 2
                path.write_text(json.dumps(content))

    def here(folder: Path, *names: str) -> tuple[object, ...]:
        return tuple(word for name in names for word in (f"--{name}", folder / name))

    row, scale = f"{workshop.EXPERIMENT}/diffusion", ("--scale", SCALE)
    stages = [
        Command(f"run: {name}", lambda f, name=name: copied(done, f, before(name)), lambda f: run_words(f, *ROW))
        for name in STAGES
    ]
    return [
        Command("run", lambda f: None, lambda f: run_words(f, *ROW)),
        *stages,
        Command(
            "eval --save", partial(copied, done),
            lambda f: ("eval", row, "--save", *scale, *here(f, "runs", "records")),
        ),
        Command("convert", converted, lambda f: ("convert", "mar", f / "official.pth", f / "ours.safetensors")),
        Command("collect", collected, lambda f: ("collect", f / "runs", *here(f, "records"))),
        Command(
            "table --save", published,
            lambda f: ("table", workshop.EXPERIMENT, "--save", *scale, *here(f, "records", "reports")),
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What an undisturbed command leaves, the seconds that it or its first stage takes, and its write points."""

    code: int
    state: dict[str, Any]
    seconds: float
    points: int


def undisturbed(lab: Workshop, command: Command) -> Truth:
    with lab.bench() as folder:
        command.prepare(folder)
        points = killed.counter()
        process = workshop.start(folder, command.words(folder), partial(killed.arm, points, 0))
        wait_for_stage(command, folder, process)
        begin = time.monotonic()
        code, text = workshop.end(folder, process)
        assert code == (1 if command.name == "collect" else 0), text  # it sets a record aside
        return Truth(code, state(folder), time.monotonic() - begin, killed.count(points))


def wait_for_stage(command: Command, folder: Path, process: Any) -> None:
    """Until ``run`` begins the first stage that is left to do."""
    _, colon, stage = command.name.partition(": ")
    while colon and process.is_alive() and not any((folder / "runs" / stage).glob("*")):
        time.sleep(0.001)


def again(folder: Path, command: Command, truth: Truth) -> str | None:
    """Give a killed command once more, unless all was done; what is wrong with the outcome."""
    if difference(truth.state, state(folder)) is None:
        return None
    code, text = workshop.command(folder, *command.words(folder))
    if code != truth.code:
        return f"exit code {code} instead of {truth.code}: {text.strip().splitlines()[-1][:300]}"
    return difference(truth.state, state(folder))


def kills(lab: Workshop) -> Iterator[Figure]:
    every = [c for c in commands(lab) if not lab.quick or c.name in QUICK]
    truths = dict(zip((c.name for c in every), lab.each(partial(undisturbed, lab), every)))

    def at_a_moment(case: int) -> str | None:
        staged = [c for c in every if c.name != "run"]
        draw, command, real = random.Random(case), staged[case % len(staged)], not lab.quick and case % 10 == 9
        for _ in range(9):  # until the signal comes before the end
            with lab.bench() as folder:
                command.prepare(folder)
                process = workshop.start(folder, command.words(folder), real=real)
                wait_for_stage(command, folder, process)
                moment = draw.uniform(0, truths[command.name].seconds)
                if workshop.end(folder, process, moment)[0] == -signal.SIGKILL:
                    told = again(folder, command, truths[command.name])
                    return told and f"case {case}: {command.name}, killed after {moment:.3f} s: {told}"
        return f"case {case}: {command.name} always ended before the signal"

    cases = lab.cases(MOMENTS, 4)
    yield Figure(
        "kills at random moments",
        "SIGKILL to a command and its workers at a random moment of each stage of `run`, of `eval --save`, `convert`, "
        "`collect` and `table --save`; the same command again must leave the files, records and exit code of an "
        "undisturbed one, but for times, host and commit",
        len(cases),
        [told for told in lab.each(at_a_moment, cases) if told],
    )

    points = [(c, n) for c in every if ":" not in c.name or lab.quick for n in range(1, truths[c.name].points + 1)]

    def at_a_point(case: int) -> str | None:
        command, last = points[case]
        with lab.bench() as folder:
            command.prepare(folder)
            process = workshop.start(folder, command.words(folder), partial(killed.arm, killed.counter(), last))
            code, text = workshop.end(folder, process)
            told = again(folder, command, truths[command.name]) if code == -signal.SIGKILL else f"never reached: {text}"
            return told and f"case {case}: {command.name}, killed at write point {last}: {told}"

    cases = lab.cases(len(points), 5)
    yield Figure(
        "kills at write points",
        "SIGKILL before and after every call of `run`, `eval --save`, `convert`, `collect` and `table --save` that "
        "replaces, syncs or deletes a file (tests/torture/killed.py); then as above",
        len(cases),
        [told for told in lab.each(at_a_point, cases) if told],
    )
