"""Nonsense in experiment files and overrides: a plan, or a refusal in one line that names the file and the key."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import tempfile
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import typer
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.parse import as_tree
from mar_bench.config.yaml_layers import SCALES, experiments_dir
from mar_bench.utils.errors import UserError
from tests.torture.workshop import Figure, Workshop, forked

CASES, SECONDS, MEMORY = 2000, 10, 8 * 2**30  # seconds and bytes of address space that one file may take
GOOD = ("planned", "refused")
ODD: Any = (
    "", " ", "~", "yes", "0100", "1:30:00", "1e400", "-0.0", ".nan", "=1+1", "{", "[", "'", "a: b", "#", "&a", "*a",
    "!!python/object:os.system", "${parts.head}", "${oc.env:HOME}", "${", "\x00", "\x1b[31m", "\u202e", "\ud83d",
    "a\nb", "é" * 300, "../../etc", "<script>", 0, -1, 2**63, 10**400, 1e308, 5e-324, float("nan"), float("inf"), None,
    [], {},
)  # fmt: skip
SCALARS = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8) | st.booleans()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@cache
def shipped() -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(experiments_dir().glob("*.yaml"))}


def paths_of(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a tree, inner ones too."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def known_fields() -> list[str]:
    """Dotted paths of fields of specs, and of parts."""
    rows = [row for name in ("table1", "heads") for row in load_experiment(name, "smoke").rows.values()]
    scale = yaml.safe_load((experiments_dir() / "scale/smoke.yaml").read_text())
    return sorted({".".join(map(str, path)) for tree in [*map(as_tree, rows), scale] for path in paths_of(tree)})


@st.composite
def experiments(draw: Any) -> str:
    """A shipped experiment file with up to three changes to its tree and perhaps one to its text."""
    tree = yaml.safe_load(shipped()[draw(st.sampled_from(sorted(shipped())))])
    for _ in range(draw(st.integers(0, 3))):
        *outer, last = draw(st.sampled_from(list(paths_of(tree))))
        block = tree
        for key in outer:
            block = block[key]
        value, change = block[last], draw(st.sampled_from(["drop", "replace", "retype", "rename", "copy", "nest"]))
        if change in ("rename", "copy") and isinstance(block, dict):
            block[draw(st.text(max_size=8) | st.integers() | st.sampled_from([*map(str, block)]))] = value
        if change in ("rename", "drop") and len(tree) > 1:
            del block[last]
        elif change == "retype":
            block[last] = draw(st.sampled_from([[value], {"kind": value}, str(value), [value, value], not value]))
        elif change == "replace":
            block[last] = draw(VALUES)
        elif change == "nest":
            for _ in range(draw(st.sampled_from([1, 20, 200]))):
                block[last] = {str(last): block[last]}
    lines = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).splitlines()
    at, change = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(["", "", "double", "cut", "insert"]))
    if change == "insert":
        lines[at] += draw(st.text(max_size=4) | st.sampled_from([value for value in ODD if isinstance(value, str)]))
    return "\n".join(lines[:at] if change == "cut" else lines[: at + 1] + lines[at + (change != "double") :]) + "\n"


def overrides(fields: list[str]) -> st.SearchStrategy[list[str]]:
    keys = st.sampled_from(fields) | st.text(max_size=6)
    some = st.lists(st.builds(lambda key, value: f"{key}={value}", keys, VALUES), max_size=2)
    return st.just([]) | some  # often none, as a bad one is refused before the file is read


class TooLong(BaseException):
    """Not an Exception, which might be taken for bad input."""


def attempt(folder: Path, text: str, scale: str, words: list[str]) -> str:
    """Plan an experiment file: ``planned``, ``refused``, or what is wrong with the answer."""
    (file := folder / "fuzzed.yaml").write_text(text, errors="surrogatepass")
    argv = ["plan", "--scale", scale, "--runs", str(folder), "--records", str(folder), "--", str(file), *words]
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            typer.main.get_command(app).main(argv, standalone_mode=False)
        return "planned"
    except click.ClickException:
        return "refused"
    except UserError as error:
        return complaint(str(error), file, text, words) or "refused"
    except TooLong:
        return f"more than {SECONDS} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def complaint(message: str, file: Path, text: str, words: list[str]) -> str | None:
    """What a refusal lacks: it is one line that names the file or an override, and a key or a line of the text."""
    if len(message.splitlines()) != 1:
        return f"{len(message.splitlines())} lines: {message[:300]!r}"
    keys = [word.partition("=")[0] or word for word in words]
    if not any(str(name) in message for name in (file, experiments_dir(), "override", *keys)):
        return f"names neither file nor override: {message[:300]}"
    known = {word for given in (*shipped().values(), text, *words) for word in re.findall(r"[\w-]+", given)}
    rest = {*re.findall(r"[\w-]+", message.replace(str(file), ""))}
    return None if rest & {*known, "line"} else f"names no key: {message[:300]}"


def attempts(folder: Path, number: int, count: int) -> list[str]:
    """``count`` attempts; in a child of its own, for its memory is bounded."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def alarm(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, alarm)
    found: list[str] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(experiments(), st.sampled_from(SCALES), overrides(known_fields()))
    def each(text: str, scale: str, words: list[str]) -> None:
        told = attempt(folder, text, scale, words)
        found.append(told if told in GOOD else f"{told} [scale {scale}, overrides {words}]")

    each()
    return found


def fuzz(lab: Workshop) -> Iterator[Figure]:
    count = (60 if lab.quick else CASES) // lab.cores
    with lab.bench() as folder:
        parts = lab.each(lambda i: forked(attempts, Path(tempfile.mkdtemp(dir=folder)), i, count), range(lab.cores))
    found = [told for part in parts for told in part]
    yield Figure(
        "fuzzed experiment files",
        "shipped experiment files with keys dropped, renamed, doubled, nested or retyped, odd values and broken text, "
        f"and up to two overrides of any field, through `plan`: a plan within {SECONDS} s, or one line that names the "
        "file or the override, and the key",
        len(found),
        [told for told in found if told not in GOOD],
        f"{found.count('planned')} planned, {found.count('refused')} refused",
    )
