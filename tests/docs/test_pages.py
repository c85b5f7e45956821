"""The pages that are made from the program and the records cover all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.config.yaml_layers import experiment_files

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "python -m tests.docs.regenerate"


def test_every_option_is_in_the_reference():
    text = (DOCS / "commands.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():
        part = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        missing = [option for option in options if option != "--help" and f"`{option}" not in part]
        assert part and not missing, f"{name}: {missing}; {AGAIN}"


@pytest.mark.parametrize("name", experiment_files())
def test_every_experiment_has_a_page(name):
    text = (DOCS / f"experiments/{name}.md").read_text()
    assert load_experiment(name, "paper").question in text and f"mar-bench run {name}" in text, AGAIN


def test_every_page_is_in_the_site_and_links_to_files():
    listed = str(yaml.safe_load((DOCS / "mkdocs.yml").read_text())["nav"])
    for page in DOCS.rglob("*.md"):
        assert f"docs/{page.relative_to(DOCS)}" in listed
        for link in re.findall(r"\]\(([^)#:]+)[#)]", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
