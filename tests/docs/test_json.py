"""The objects that ``--json`` prints have the keys that the documentation states."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app

ROOT = Path(__file__).parents[2]
TABLE = re.findall(r"^\| `([^`]+ --json)` \| (.+) \|$", (ROOT / "docs/usage.md").read_text(), flags=re.M)


def keys_of(content: object) -> set[str]:
    """All keys of an object and of the objects in its lists."""
    if isinstance(content, dict):
        return set(content).union(*map(keys_of, content.values()))
    return set().union(*map(keys_of, content)) if isinstance(content, list) else set()


# status needs a submission: tests/slurm has it
@pytest.mark.parametrize(("words", "stated"), [pair for pair in TABLE if "status" not in pair[0]])
def test_the_keys_are_those_that_are_stated(words, stated, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    runs = ["--runs", str(tmp_path)] if words.split()[0] in ("show", "plan", "doctor") else []
    result = CliRunner().invoke(app, [*words.split(), *runs], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    keys = re.findall(r"`(\w+)`", stated)
    assert keys and set(keys) <= keys_of(json.loads(result.output))


def test_every_command_is_stated():
    assert len(TABLE) == 8
