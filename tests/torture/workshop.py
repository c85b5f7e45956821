"""Commands in forked children of one process that has imported everything, and the state of the files they leave.

A forked child costs hundredths of a second where a new Python takes seconds to import torch."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool  # not of concurrent.futures, which a forked child would try to join
from pathlib import Path
from typing import Any

from mar_bench.config.experiment import load_experiment
from mar_bench.config.stages import STAGES
from mar_bench.pipeline.store import Places

EXPERIMENT, SCALE = Path(__file__).with_name("small.yaml"), "smoke"
VOLATILE = {"seconds", "finished", "host", "command", "git"}  # what two runs of one command may differ in
LIMIT = 300  # seconds until a command counts as hanging
FORK: Any = multiprocessing.get_context("fork")


@dataclass
class Figure:
    """A line of the table: ``wrong`` describes every case that went wrong, ``note`` adds to what is ``counted``."""

    what: str
    counted: str
    tried: int
    wrong: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Workshop:
    """Where scenarios work, and how much: ``quick`` is the part that belongs to the tests, ``case`` the only one."""

    folder: Path
    quick: bool
    cores: int
    case: int | None = None

    def cases(self, count: int, quick: int) -> range:
        """The numbers of ``count`` cases, or every so many of them that about ``quick`` are left."""
        if self.case is not None:
            return range(self.case, min(self.case + 1, count))
        return range(0, count, max(1, count // quick if self.quick else 1))

    @contextmanager
    def bench(self) -> Iterator[Path]:
        """A folder of its own for one case."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        yield folder
        if self.case is None:
            shutil.rmtree(folder, ignore_errors=True)

    def each(self, function: Callable[[Any], Any], cases: Iterable[Any]) -> list[Any]:
        """``function`` of every case, in order, on all cores: the threads only wait for their children."""
        with ThreadPool(self.cores) as pool:
            return pool.map(function, cases, chunksize=1)

    def undisturbed(self, *words: str) -> Path:
        """A folder in which ``run`` with these words went through without disturbance; only to be copied."""
        folder = self.folder / hashlib.sha256(" ".join(words).encode()).hexdigest()
        if not folder.is_dir():
            folder.mkdir()
            code, text = run(folder, *words)
            assert code == 0, text
        return folder


def warm_up() -> None:
    """Import what commands import and load the images, so that children need not."""
    import torch

    import mar_bench.pipeline.eval_images
    import mar_bench.report.table.build  # noqa: F401
    from mar_bench.data.datasets import load_data

    torch.set_num_threads(1)
    load_data(next(iter(load_experiment(str(EXPERIMENT), SCALE).rows.values())).data)


# --- commands -------------------------------------------------------------------------------------------


class Workers:
    """Stands for multiprocessing's context: workers of ``run`` are forked, and hold no end of the scheduler's pipes."""

    mine: list[Any] = []

    def Pipe(self) -> tuple[Any, Any]:
        here, there = FORK.Pipe()
        self.mine.append(here)
        return here, there

    def Process(self, target: Callable, args: tuple) -> Any:
        return FORK.Process(target=self._work, args=(target, args))

    def _work(self, target: Callable, args: tuple) -> None:
        for pipe in self.mine:
            pipe.close()
        target(*args)


def start(
    folder: Path, words: Iterable[object], hook: Callable[[], object] = bool, real: bool = False, context: Any = FORK
) -> Any:
    """``mar-bench`` with these words as a child that leads a process group; ``hook`` is called in it beforehand.

    ``real``: by a Python of its own instead of a fork."""
    process = context.Process(target=_command, args=(folder, list(map(str, words)), hook, real))
    process.start()
    with suppress(OSError):
        os.setpgid(process.pid, process.pid)  # here too, before anyone can kill the group
    return process


def _command(folder: Path, words: list[str], hook: Callable[[], object], real: bool) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    with (folder / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["MAR_BENCH_LOCKS"] = str(folder / "machine")  # not to wait for other cases
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if real:
        sys.exit(subprocess.call([sys.executable, "-m", "mar_bench", *words]))
    from mar_bench.cli import main

    multiprocessing.get_context = lambda method=None: Workers()  # type: ignore[assignment]
    sys.argv = ["mar-bench", *words]
    hook()
    main()


def end(folder: Path, process: Any, seconds: float = LIMIT) -> tuple[int, str]:
    """Kill a command and all its processes after ``seconds``; its exit code, negative for a signal, and its output."""
    process.join(seconds)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it leads no group yet
            process.kill()
        process.join()
    output = folder / "output.txt"
    return process.exitcode, output.read_text() if output.is_file() else ""


def command(folder: Path, *words: object) -> tuple[int, str]:
    return end(folder, start(folder, words))


def run_words(folder: Path, *words: object) -> tuple[object, ...]:
    places = "--runs", folder / "runs", "--records", folder / "records"
    jobs = () if "--jobs" in words else ("--jobs", 1)
    return ("run", EXPERIMENT, "--scale", SCALE, *places, *jobs, *words)


def run(folder: Path, *words: object) -> tuple[int, str]:
    return command(folder, *run_words(folder, *words))


def places_in(folder: Path) -> Places:
    """A folder's run root and records, made as commands do; for scenarios that execute stages by themselves."""
    places = Places(folder / "runs", folder / "records")
    places.check_writable()
    return places


def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in a child of its own; raises RuntimeError if the child dies."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: there.send(function(*arguments)))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}") from None


# --- what they left -------------------------------------------------------------------------------------


def before(stage: str) -> list[str]:
    """The stages that come before one."""
    return list(STAGES)[: list(STAGES).index(stage)]


def copied(source: Path, folder: Path, stages: Iterable[str] = STAGES) -> Path:
    """Copy the run root of ``source`` to ``folder``, with these stages only and without published records."""
    for stage in stages:
        if (source / "runs" / stage).is_dir():
            shutil.copytree(source / "runs" / stage, folder / "runs" / stage)
    return folder


def stripped(content: Any) -> Any:
    """A record without what two runs may differ in; of a measurement of speed only the names of its numbers."""
    if not isinstance(content, dict):
        return content
    if content.get("task") == "speed":
        content = {**content, "metrics": sorted(content["metrics"])}
    return {key: stripped(value) for key, value in content.items() if key not in VOLATILE}


def records(folder: Path) -> dict[str, Any]:
    """The published records by id, stripped."""
    return {path.stem: stripped(json.loads(path.read_text())) for path in (folder / "records").glob("*.json")}


def state(folder: Path) -> dict[str, Any]:
    """Every file that counts: records stripped, files of run roots by name, of others the SHA-256.

    Hidden files do not count, as no command reads them; nor do locks."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part in ("locks", "machine") or part.startswith(".") for part in name.parts):
            continue
        if path.suffix == ".json" and (path.name == "record.json" or name.parts[0] == "records"):
            found[str(name)] = stripped(json.loads(path.read_text()))
        elif name.parts[0] == "runs":
            found[str(name)] = None
        elif path.name != "output.txt":
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(expected: Any, found: Any, path: str = "") -> str | None:
    """The first difference of two trees, as in ``metrics.fd_digits 337.4, not 337.2``; None if they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*expected, *found]):
            where = f"{path}.{key}".strip(".")
            if key not in found or key not in expected:
                return f"{where} {'is missing' if key in expected else 'is left over'}"
            if told := difference(expected[key], found[key], where):
                return told
        return None
    return None if expected == found else f"{path} {str(found)[:60]}, not {str(expected)[:60]}"
