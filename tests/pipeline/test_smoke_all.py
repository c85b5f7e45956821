"""Every experiment at smoke scale, from YAML to tables, figures and claims, with real processes and real images."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import load_experiment
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.config.yaml_layers import experiment_files
from mar_bench.records.record import Record, read_records
from mar_bench.report.frames import select
from tests.docs.test_commands import LINES

pytestmark = pytest.mark.smoke
EVERY = ("--all", "--scale", "smoke")


def call(folder: Path, *words: str) -> str:
    places = {f"MAR_BENCH_{name.upper()}": str(folder / name) for name in ("runs", "records", "reports")}
    done = CliRunner().invoke(app, words, env=places, catch_exceptions=False)
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done.output


@pytest.fixture(scope="module")
def folder(table1, tmp_path_factory) -> Path:
    """A run of all experiments, which goes on from that of Table 1."""
    folder = tmp_path_factory.mktemp("all")
    for name in ("runs", "records"):
        shutil.copytree(table1 / name, folder / name)
    call(folder, "run", *EVERY)
    return folder


@pytest.fixture(scope="module")
def records(folder) -> dict[str, Record]:
    return read_records(folder / "records")


def test_nothing_is_left_to_do(folder):
    assert "nothing to do" in call(folder, "run", *EVERY)


def test_the_documented_commands_at_smoke_scale_run(folder):
    lines = {line for _, line in LINES if "--scale smoke" in line and "columns" not in line}  # a plugin's order
    for line in sorted(lines):
        call(folder, *shlex.split(line)[1:])
    assert len(lines) > 2


@pytest.mark.parametrize("name", experiment_files())
def test_every_row_is_measured_and_has_its_table(name, folder, records):
    experiment = with_choices(load_experiment(name, "smoke"), records)
    assert not any(map(experiment.is_open, experiment.rows))
    for tasks in select(experiment, records).values():
        for task, found in tasks.items():
            if task == "likelihood" and not experiment.shows_likelihood:
                continue
            assert [r.status for r in found] == ["done"] * len(found) and found, task
    for row in experiment.choices:
        (record,) = select(experiment, records)[row]["generation"]
        assert (
            record.selection[experiment.choices[row]["metric"]] == experiment.choices[row]
            and record.spec["sampling"]["seed"] != CHOICE_SEED
        )


def test_tables_figures_and_claims(folder):
    call(folder, "table", *EVERY, "--save")
    call(folder, "plot", *EVERY)
    reports = folder / "reports/smoke"
    for name in experiment_files():
        assert {f"{name}.{ending}" for ending in ("md", "csv", "tex")} <= {p.name for p in reports.iterdir()}
        text = (reports / f"{name}.md").read_text()
        assert "smoke scale, not comparable" in text and "FAILED" not in text
    assert len(list(reports.glob("*.pdf"))) == len(experiment_files()) - 1  # a gallery is drawn by sample
    claims = call(folder, "claims", "--scale", "smoke")
    assert "no records" not in claims and claims.count(", smoke scale.") >= 10
