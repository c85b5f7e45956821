"""Packages that add to the suite: the example, as if it were installed, and plugins that cannot be used."""

from __future__ import annotations

import os
import re
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
        (
            "from mar_bench import Plugin\nfrom mar_bench.records.metrics import MetricSpec\n"
            "plugin = Plugin(metrics={MetricSpec('fd', 'FD'): 'a:b'})",
            "a metric's name must be new, of letters, digits and _: 'fd'",
        ),
        (
            "from mar_bench import Plugin\nfrom mar_bench.config.spec import PixelTokenizer\n"
            "plugin = Plugin(data={PixelTokenizer: 'a:b'})",
            "has no image_size and no channels and no num_classes and no flip and no shift and no images",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(code, told, tmp_path):
    (tmp_path / "plugin.py").write_text(code)
    (tmp_path / "table1.yaml").write_text("id: table1\n")
    done = call(with_package(tmp_path, "plugin:plugin"), "-m", "mar_bench", "list")
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


def block(language: str) -> str:
    """The last block of docs/plugins.md in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (EXAMPLE.parents[1] / "docs/plugins.md").read_text(), re.S)[-1]


@pytest.fixture(scope="module")
def documented(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("documented")
    (folder / "mine.py").write_text(block("python"))
    (folder / "experiments").mkdir()
    (folder / "experiments/columns.yaml").write_text(block("yaml"))
    return with_package(folder, "mine:plugin")


@pytest.mark.smoke
def test_the_documented_order_data_and_metric_stand_in_a_table(documented, tmp_path):
    records, row = str(tmp_path / "records"), "causal/columns/guided"
    words = ["orders", "--scale", "smoke", "data={kind: bars}"]
    places = ["--runs", str(tmp_path / "runs"), "--records", records]
    done = call(documented, "-m", "mar_bench", "run", *words, "--only", row, *places)
    assert done.returncode == 0, done.stdout + done.stderr
    table = call(documented, "-m", "mar_bench", "table", *words, "--records", records)
    assert table.returncode == 0, table.stdout + table.stderr
    (line,) = (line for line in table.stdout.splitlines() if "column by column" in line and "±" in line)
    assert "mean distance" in table.stdout
    assert line.count("±") == 5, line  # two likelihoods, two distances and the new metric


@pytest.mark.parametrize(
    ("broken", "instead", "call_it", "told"),
    [
        (
            "len(noise.indices), length)",
            "1, length)",
            "draw_order('columns', noise, 0, 16)",
            "must give a permutation of 16",
        ),
        ("% spec.num_classes", "% 5", "load_data(mine.BarsData())", "must give labels below data.num_classes 4"),
        ("dtype=np.uint8", "dtype=np.int64", "load_data(mine.BarsData())", "must give images uint8 (1, 16, 16), not"),
        ("def load_bars", "def load", "load_data(mine.BarsData())", "'mine:load_bars': module 'mine' has no attribute"),
    ],
)
def test_what_a_plugin_gives_is_checked(broken, instead, call_it, told, tmp_path):
    (tmp_path / "mine.py").write_text(block("python").replace(broken, instead))
    names = "from mar_bench.data.datasets import load_data; from mar_bench.models.orders import draw_order"
    noise = "from mar_bench.utils.noise import NoiseSource; noise = NoiseSource(0, range(3))"
    done = call(with_package(tmp_path, "mine:plugin"), "-c", f"import mine; {names}; {noise}; {call_it}")
    assert done.stderr.splitlines()[-1].startswith("mar_bench.utils.errors.UserError: ") and told in done.stderr
