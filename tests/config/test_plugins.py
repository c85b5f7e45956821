"""Packages that add to the suite: the example, as if it were installed, and plugins that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/plugin_head"


def with_package(folder: Path, entry: str, *paths: Path) -> dict[str, str]:
    """An environment in which a package with this entry point is found, as an installed one would be."""
    about = folder / "some_plugin-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(f"[mar_bench.plugins]\nmine = {entry}\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (folder, *paths)))}


def call(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> dict[str, str]:
    return with_package(tmp_path_factory.mktemp("site"), "mar_bench_shortcut:plugin", EXAMPLE)


def test_the_example_passes_its_own_tests(example):
    done = call(example, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE))
    assert done.returncode == 0, done.stdout


@pytest.mark.smoke
def test_its_row_is_trained_and_stands_in_the_table(example, tmp_path):
    places = ["--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    words = ["heads", "--scale", "smoke", "--only", "kl/shortcut/unguided", *places]
    done = call(example, "-m", "mar_bench", "run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    table = call(example, "-m", "mar_bench", "table", "heads", "--scale", "smoke", "--records", places[-1])
    (line,) = (line for line in table.stdout.splitlines() if line.startswith("| KL") and "shortcut" in line)
    assert "±" in line, table.stdout


def test_without_the_package_its_kind_is_unknown():
    words = ["show", "table1/mar/diff/guided", "--scale", "smoke", "model.head={kind: shortcut}"]
    done = call(dict(os.environ), "-m", "mar_bench", *words)
    assert done.returncode == 2 and "unknown kind 'shortcut'" in done.stderr


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import nothing_of_this_name", "plugin 'mine': ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("plugin = 5", "plugin 'mine': TypeError: plugin:plugin is not a mar_bench.Plugin"),
        (
            "from mar_bench import Plugin\nplugin = Plugin(heads={int: 'a:b'})",
            "<class 'int'> is not a dataclass with a kind",
        ),
        (
            "import pathlib\nfrom mar_bench import Plugin\nplugin = Plugin(experiments=pathlib.Path(__file__).parent)",
            "there is an experiment 'table1' already; rename it, or write adds_to",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(code, told, tmp_path):
    (tmp_path / "plugin.py").write_text(code)
    (tmp_path / "table1.yaml").write_text("id: table1\n")
    done = call(with_package(tmp_path, "plugin:plugin"), "-m", "mar_bench", "list")
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
