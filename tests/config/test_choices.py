"""Cells chosen by sweeps: what is planned, and what is chosen by which records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mar_bench.cli.options import app
from mar_bench.config.choices import with_choices
from mar_bench.config.ids import Run, plan_runs
from mar_bench.config.parse import as_tree
from mar_bench.config.spec import CHOICE_SEED
from mar_bench.pipeline.run_local import Outcome
from mar_bench.pipeline.store import Places, publish
from mar_bench.records.record import Record, read_record, write_record
from tests.experiment_files import MINE, load, mistake, written

SWEPT = """
axes:
  head:
    small:
      set: {model: {head: {kind: diffusion, width: 8}}}
      select: {minimise: fd, over: {sampling.guidance_scale: [1.5, 2.0, 3.0], sampling.temperature: [0.9, 1.0]}}
    large: {set: {model: {head: {kind: diffusion, width: 16}}}}
layout: {rows: [head], metrics: [fd]}
"""


def record_of(run: Run, **numbers) -> Record:
    metrics = {f"{metric}_digits": value for metric, value in numbers.items()}
    return Record(run.task, "done", run.ids, as_tree(run.spec), metrics=metrics)


@pytest.fixture
def swept(tmp_path):
    return load(written(tmp_path, MINE.partition("axes:")[0] + SWEPT))


def measured(experiment, value_of) -> dict[str, Record]:
    """Records of all points, their distance by what ``value_of`` says of the sampling."""
    points = [run for run in plan_runs(experiment) if run.sweep and run.task == "generation"]
    return {run.id: record_of(run, fd=value_of(run.spec.sampling)) for run in points}


def distance(sampling) -> float:
    return abs(sampling.guidance_scale - 2) + sampling.temperature


def test_a_cell_is_planned_only_after_its_points_are_measured(swept):
    runs = [run for run in plan_runs(swept, [0, 1]) if run.task == "generation"]
    points = [run for run in runs if run.sweep]
    assert len(points) == 6 and {run.spec.sampling.seed for run in points} == {CHOICE_SEED}
    assert {run.spec.train.seed for run in points} == {0}
    assert [run.row for run in runs if not run.sweep] == ["large", "large"]
    assert swept.is_open("small") and not swept.is_open("large")
    records = measured(swept, distance)
    run_id, record = records.popitem()
    assert with_choices(swept, records).is_open("small")
    assert with_choices(swept, {**records, run_id: replace(record, status="failed")}).is_open("small")


def test_the_best_point_is_chosen_and_reported_on_other_seeds(swept):
    chosen = with_choices(swept, records := measured(swept, distance))
    sampling = chosen.rows["small"].sampling
    assert (sampling.guidance_scale, sampling.temperature) == (2.0, 0.9) and not chosen.is_open("small")
    choice = chosen.choices["small"]
    assert choice["chosen"] == {"sampling.guidance_scale": 2.0, "sampling.temperature": 0.9}
    assert len(choice["points"]) == 6 and {point["eval_id"] for point in choice["points"]} == set(records)
    cells = [run for run in plan_runs(chosen, [0], [0, 1]) if run.task == "generation" and not run.sweep]
    mine = [run for run in cells if run.row == "small"]
    assert [run.spec.sampling.seed for run in mine] == [0, 1] and all(run.choice == choice for run in mine)
    assert chosen.rows["large"] == swept.rows["large"]
    largest = replace(swept, sweeps={"small": replace(swept.sweeps["small"], minimise=False)})
    assert with_choices(largest, records).rows["small"].sampling.guidance_scale == 3.0


def test_publishing_adds_the_choice_to_an_existing_record(swept, tmp_path):
    chosen = with_choices(swept, measured(swept, distance))
    run = next(r for r in plan_runs(chosen) if r.choice)
    places = Places(tmp_path / "runs", tmp_path / "records")
    places.records.mkdir()
    write_record(places.records, record_of(run, fd=1.0))
    publish([run], places)
    assert read_record(places.records / f"{run.id}.json").selection == {run.choice["metric"]: run.choice}


@pytest.mark.parametrize(
    ("old", "new", "hints"),
    [
        ("minimise: fd, ", "", ("select", "one of minimise and maximise")),
        ("minimise: fd", "minimise: df", ("select", "did you mean 'fd'")),
        ("sampling.temperature: [", "train.lr: [", ("over.train.lr", "no knob to choose")),
        ("[0.9, 1.0]", "0.9", ("sampling.temperature", "expected a list")),
    ],
)
def test_mistakes_in_a_sweep(old, new, hints, tmp_path):
    text = MINE.partition("axes:")[0] + SWEPT
    assert old in text
    message = mistake(written(tmp_path, text.replace(old, new)))
    assert all(hint in message for hint in hints), message


def test_a_failed_point_does_not_block_the_other_cells(tmp_path, monkeypatch):
    """The first pass measures the points, and one fails; the second makes the cells that could be chosen."""
    text = MINE.partition("axes:")[0] + SWEPT.replace(
        "width: 16}}}}", "width: 16}}}, select: {maximise: is, over: {sampling.temperature: [0.9, 1.0]}}}"
    )
    file = written(tmp_path, text)
    passes = []

    def run_jobs(jobs, places, workers, report):
        runs = {job.id: job.run for job in jobs if job.kind == "generation"}
        passes.append(runs)
        failed = {}
        for i, run in runs.items():
            if run.row == "large" and run.spec.sampling.temperature == 0.9:
                failed[i] = "no memory"
            else:
                write_record(places.records, record_of(run, fd=1.0, **{"is": 1.0}))
        return Outcome(done=len(runs) - len(failed), failed=failed, stopped=False)

    monkeypatch.setattr("mar_bench.pipeline.run_local.run_jobs", run_jobs)
    places = ("--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records"))
    done = CliRunner().invoke(app, ["run", str(file), "--scale", "little", *places])
    assert done.exit_code == 1 and "large" in done.output
    assert [run.row for run in passes[1].values()] == ["small"] and len(passes) == 2
    assert not next(iter(passes[1].values())).sweep


def test_a_knob_fixed_by_an_override_is_not_swept(tmp_path):
    file = written(tmp_path, MINE.partition("axes:")[0] + SWEPT)
    sweep = load(file, "sampling.temperature=0.5").sweeps["small"]
    assert [values for values, _ in sweep.points] == [{"sampling.guidance_scale": g} for g in (1.5, 2.0, 3.0)]
    assert {spec.sampling.temperature for _, spec in sweep.points} == {0.5}
    both = load(file, "sampling.temperature=0.5", "sampling.guidance_scale=2.0")
    assert not both.sweeps and not both.is_open("small")
