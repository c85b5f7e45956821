"""The parts of an experiment beside its specs: absent bundles, published and quoted rows, seeds, figures, plans."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mar_bench.cli.options import app
from mar_bench.config.spec import RunSpec
from mar_bench.pipeline.cost import gpu_hours
from tests.experiment_files import MINE, load, mistake, written

HEADS = """
axes:
  head:
    small: {label: {head: small}, set: {model: {head: {kind: diffusion, width: 8}}}}
    large: {label: {head: large}, set: {model: {head: {kind: diffusion, width: 16}}}}
  guidance:
    without: {set: {sampling: {guidance_scale: 1.0}}}
    with: {set: {sampling: {guidance_scale: 2.0}}}
layout: {rows: [head], columns: [guidance], metrics: [fd, is]}
"""
TOP = MINE.partition("axes:")[0]


def made(tmp_path, more: str = "", heads: str = HEADS, scale: str = "run: {}"):
    return load(written(tmp_path, TOP + heads + more, scale=scale))


def wrong(tmp_path, more: str = "", heads: str = HEADS) -> str:
    return mistake(written(tmp_path, TOP + heads + more))


# --- absent rows ----------------------------------------------------------------------------


def test_an_absent_bundle_keeps_its_place(tmp_path):
    experiment = made(tmp_path, "scales: {little: {axes: {head: {large: {absent: elsewhere}}}}}")
    assert experiment.absent == {"large/without": "elsewhere", "large/with": "elsewhere"}
    assert list(experiment.rows) == ["small/without", "small/with"]
    assert list(experiment.labels["head"]) == ["small", "large"]


def test_a_bundle_is_absent_beside_another(tmp_path):
    experiment = made(tmp_path, "scales: {little: {axes: {head: {large: {absent: {with: too slow}}}}}}")
    assert experiment.absent == {"large/with": "too slow"} and "large/without" in experiment.rows
    assert "expected a text" in wrong(tmp_path, "scales: {little: {axes: {head: {large: {absent: [1]}}}}}")


def test_keys_cannot_be_overlaid_on_a_reference_to_a_block(tmp_path):
    """They would silently replace the whole block."""
    more = 'run: {sampling: "${parts.mine}"}\nparts: {mine: {guidance_scale: 3.0}}\n'
    file = written(tmp_path, TOP + HEADS + more, scale="run: {sampling: {temperature: 0.9}}")
    assert "'${parts.mine}' is a whole block" in mistake(file)


# --- likelihoods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "key"), [("metrics: [fd, nll]", "layout.metrics"), ("metrics: [fd, is], beside: [nll]", "layout.beside")]
)
def test_a_likelihood_is_refused_for_a_head_without_one(shown, key, tmp_path):
    heads = HEADS.replace("metrics: [fd, is]", shown)
    assert made(tmp_path, heads=heads).shows_likelihood and not made(tmp_path).shows_likelihood
    said = wrong(tmp_path, heads=heads.replace("{kind: diffusion, width: 16}", "{kind: flow}"))
    fix = f"take nll out of {key}, or use head cross_entropy or diffusion or gmm"
    assert said.endswith(f"row 'large/without': 'flow' has no likelihood: {fix}")


# --- published numbers ----------------------------------------------------------------------------------


def test_a_reference_brings_all_columns_of_a_published_row(tmp_path):
    columns = HEADS.replace("without:", "unguided:").replace("with:", "guided:")
    paper = made(tmp_path, "paper: {small: table3/w256, large/guided: table1/mar/diff/guided}", columns).paper
    assert paper["small/unguided"] == {"fd": 3.47, "is": 195.3} and paper["small/guided"] == {"fd": 2.45, "is": 274.0}
    assert paper["small"]["seconds_per_image"] == 0.286
    assert paper["large/guided"] == {"fd": 1.98, "is": 290.3} and len(paper) == 4


def test_published_numbers_of_a_left_out_bundle_are_left_out(tmp_path):
    more = "paper: {large/without: {fd: 1.0}}\nscales: {little: {axes: {head: {large: null}}}}"
    assert made(tmp_path, more).paper == {}


def test_quoted_rows_are_those_that_no_row_of_ours_refers_to(tmp_path):
    experiment = made(tmp_path, "paper: {small/without: table5/ce_random}\nquoted: [table5]")
    assert [row.row for row in experiment.quoted] == ["ce_confidence", "diff_random"]


@pytest.mark.parametrize(
    ("more", "hints"),
    [
        ("paper: tabel1", ("tabel1", "did you mean 'table1'")),
        ("paper: {small/withou: {fd: 1.0}}", ("paper.small/withou", "did you mean 'small/without'")),
        ("paper: {small/without: table1/mar/dif/guided}", ("mar/dif", "did you mean")),
        ("quoted: [table44]", ("table44", "did you mean 'table4'")),
        ("seeds: {training: []}", ("seeds.training", "empty")),
        ("seeds: {training: [-1]}", ("seeds.training[0]", "must lie between 0")),
        ("figure: {kind: curve, x: train.steps}", ("figure.x", "knob of sampling")),
        ("figure: {kind: speed, line: haed}", ("figure.line", "did you mean 'head'")),
    ],
)
def test_mistakes(more, hints, tmp_path):
    message = wrong(tmp_path, more)
    assert all(hint in message for hint in hints), message


# --- the shipped ones -----------------------------------------------------------------------------------


def shown(*words: str) -> dict:
    done = CliRunner().invoke(app, ["plan", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan_of_all_experiments_says_what_they_share(tmp_path):
    plan = shown("--all", "--scale", "paper", "--runs", str(tmp_path), "--records", str(tmp_path))
    shared, table, cell = (plan["reuse"][k] for k in ("shared", "each_table_alone", "each_cell_alone"))
    assert shared["trainings"] < table["trainings"] < cell["trainings"]
    assert 0 < shared["gpu_hours"] < table["gpu_hours"] < cell["gpu_hours"]
    assert plan["trainings"] == shared["trainings"] and plan["sweep"] > 0 and plan["not_chosen"] > 0


def test_own_seeds_are_the_experiments(tmp_path):
    places = ("--scale", "tiny", "--runs", str(tmp_path), "--records", str(tmp_path))
    assert shown("table1", "--seeds", "own", *places)["trainings"] == 18
    plan = shown("fig4", "--sampling-seeds", "own", *places)
    assert {run["sampling_seed"] for run in plan["runs"]} == {0, 1, 2} and plan["trainings"] == 1


def test_the_hours_of_mar_l_are_the_authors():
    assert gpu_hours("train", RunSpec()) == pytest.approx(16 * 35, rel=0.01)
