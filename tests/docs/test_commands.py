"""Every command in the documentation and in the headers of experiments is one that the program understands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mar_bench.cli import UsageError, app
from mar_bench.config.yaml_layers import experiment_files, scales
from mar_bench.pipeline.request import names_and_overrides

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("experiments/**/*.yaml"),
]
STANDS_FOR = re.compile(r"\b[A-Z]{3,}\b|\.\.\.|<")  # what a reader replaces
COMMAND = re.compile(r"(?:^|[`$#] *|\| )(mar-bench [^`|\n]*)", re.M)


def commands(page: Path) -> Iterator[str]:
    text = page.read_text().replace("\\\n", " ")
    for found in COMMAND.findall(text):
        line = re.split(r"(?<=\S) {2,}#?| # |[),;:] |\n", re.sub(r" {2,}(?=--|[a-z.]+=)", " ", found.strip()))[0]
        yield line.rstrip(".,;:")


def parsed(line: str) -> dict:
    """The arguments of a command, as the program understands them; none if the text only names the command."""
    group = typer.main.get_command(app)
    context = group.make_context("mar-bench", shlex.split(line)[1:])
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    try:
        return command.make_context(name, rest, parent=context).params
    except UsageError as error:
        if "Missing" in error.format_message() and len(rest) < 2:
            return {}
        raise


LINES = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)})


def test_commands_are_found():
    assert len(LINES) > 100 and {page.rpartition("/")[0] for page, _ in LINES} >= {"", "docs", "experiments"}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_the_program_understands(page, line):
    if line.split()[1].isupper() or line.split()[1].startswith("--"):  # COMMAND, --install-completion
        return
    given = parsed(line)
    if STANDS_FOR.search(line):
        return
    assert given.get("scale") in (None, *scales())
    experiments, _ = names_and_overrides([word for word in given.get("words") or () if word])
    for word in experiments:
        assert word.split("/")[0] in experiment_files() or Path(word).suffix == ".yaml"
