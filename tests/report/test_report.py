"""Cells, wording and the rule that reports never import torch."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from statistics import stdev

import pytest

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.report import format as wording
from mar_bench.report import frame as cells
from tests.made_up import as_before, by_id, everything, generation, generations, reconstruction, speed

ROW = "mar/diff/guided"
NAN = math.nan


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


@pytest.fixture(scope="module")
def paper_scale() -> Experiment:
    return load_experiment("table1", "paper")


def test_reports_never_import_torch():
    code = (
        "import importlib, pkgutil, sys, mar_bench.report as report;"
        "names = [m.name for m in pkgutil.walk_packages(report.__path__, 'mar_bench.report.')];"
        "[importlib.import_module(name) for name in names];"
        "heavy = 'torch', 'timm', 'submitit', 'mar_bench.models.ar', 'mar_bench.pipeline.train';"
        "print(len(names) > 5, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr


# --- which records belong to a cell ---------------------------------------------------------------------


def test_a_cell_takes_every_seed_in_order_and_no_other_row(table1):
    made = list(generations(table1, seeds=(0, 1, 2), sampling_seeds=(0, 1)).values())
    random.Random(0).shuffle(made)
    selection = cells.select(table1, by_id(*made))
    grid = [(t, s) for t in (0, 1, 2) for s in (0, 1)]
    for row in table1.rows:
        assert [cells.seeds(r) for r in selection[row]["generation"]] == grid
    chosen = [r.id for tasks in selection.values() for r in tasks["generation"]]
    assert sorted(chosen) == sorted(r.id for r in made)


def test_the_seeds_of_the_experiment_itself_do_not_matter(table1):
    seeded = load_experiment("table1", "tiny", ["train.seed=5", "sampling.seed=6"])
    selection = cells.select(seeded, generations(table1))
    assert all(len(tasks["generation"]) == 3 for tasks in selection.values())


def test_a_cell_takes_the_speed_of_every_device(table1):
    made = by_id(*(speed(table1, ROW, device) for device in ("one CPU", "two CPU")))
    selection = cells.select(table1, made)
    assert {r.protocol["device"] for r in selection[ROW]["speed"]} == {"one CPU", "two CPU"}
    assert all(not tasks["speed"] for row, tasks in selection.items() if row != ROW)


def test_records_of_another_scale_are_not_selected(table1):
    selection = cells.select(table1, everything(load_experiment("table1", "smoke"), lambda *_: 1.0))
    assert not any(records for tasks in selection.values() for records in tasks.values())


def test_collect_keeps_failures_and_leaves_absent_numbers_empty(table1):
    made = by_id(generation(table1, ROW, 0, 0, 5.0, metrics={"fd_mnist5k": 5.0}), generation(table1, ROW, 1, 0, None))
    done, failed = cells.collect(table1, made).to_dict("records")
    assert (done["row"], done["guidance"], done["fd"], done["num_generated"]) == (ROW, "guided", 5.0, 1000)
    assert math.isnan(done["is"]) and math.isnan(failed["fd"])
    assert (failed["status"], failed["train_seed"]) == ("failed", 1)


def test_floors_and_speeds_are_one_line_a_row(table1):
    made = everything(table1)
    floors, speeds = cells.floors(table1, made), cells.speeds(table1, made)
    assert list(floors["row"]) == list(speeds["row"]) == list(table1.rows)
    assert cells.floor_of(floors, "mar/ce/guided") == 4.2 and cells.floor_of(floors, ROW) == 2.6
    assert math.isnan(cells.floor_of(floors, "no such row"))
    assert set(floors["kid_real"]) == {0.0003} and set(floors["num_images"]) == {1000}
    assert set(speeds["setting"]) == {"Example CPU, 1 thread, float32, batch 64"}


def test_failed_floors_and_speeds_are_left_out(table1):
    made = by_id(*(replace(make(table1, ROW), status="failed") for make in (reconstruction, speed)))
    assert cells.floors(table1, made).empty and cells.speeds(table1, made).empty


# --- means over seeds -----------------------------------------------------------------------------------


def test_samplings_of_one_training_do_not_pass_for_trainings():
    found = cells.spread({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (1, 1): 6.0})
    assert (found.mean, found.sd, found.n, found.over) == (3.5, stdev([2, 5]), 2, "training")
    assert (found.train_seeds, found.sampling_seeds, found.complete) == ((0, 1), (0, 1), True)


def test_every_training_weighs_the_same():
    found = cells.spread({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0})
    assert found.mean == 3.0 and not found.complete


def test_one_training_spreads_over_its_samplings():
    found = cells.spread({(7, 0): 1.0, (7, 1): 2.0, (7, 2): 6.0})
    assert (found.mean, found.sd, found.n, found.over) == (3.0, stdev([1, 2, 6]), 3, "sampling")
    assert (found.train_seeds, found.sampling_seeds) == ((7,), (0, 1, 2))


def test_one_run_has_no_deviation():
    found = cells.spread({(0, 3): 5.0})
    assert (found.mean, found.sd, found.n, found.over) == (5.0, None, 1, None)


def test_one_run_has_the_standard_error_of_its_images():
    found = cells.spread({(0, 3): 5.0}, {(0, 3): 0.2, (1, 3): 9.0})
    assert (found.mean, found.sd, found.n, found.over) == (5.0, 0.2, 1, "images")
    assert cells.spread({(0, 3): 5.0}, {(1, 3): 9.0}).over is None
    assert cells.spread({(0, 3): 5.0}, {(0, 3): NAN}).over is None


@pytest.mark.parametrize("seeds", [[(0, 0), (1, 0)], [(0, 0), (0, 1)]])
def test_the_chance_of_images_does_not_pass_for_that_of_seeds(seeds):
    values = dict(zip(seeds, (1.0, 3.0)))
    assert cells.spread(values, dict.fromkeys(seeds, 7.0)) == cells.spread(values)


def test_missing_numbers_are_left_out():
    assert cells.spread({(0, 0): 5.0, (1, 0): NAN}) == cells.spread({(0, 0): 5.0})
    empty = cells.spread({(0, 0): NAN})
    assert math.isnan(empty.mean) and (empty.sd, empty.n, empty.over) == (None, 0, None)


def test_seed_values_leave_out_failures_and_other_rows(table1):
    made = generations(table1, lambda row, t, s: 10.0 * t + s, sampling_seeds=(0, 1))
    made = {k: replace(r, status="failed") if cells.seeds(r)[0] == 1 else r for k, r in made.items()}
    values = cells.seed_values(cells.collect(table1, made), ROW)
    assert values == {(0, 0): 0.0, (0, 1): 1.0, (2, 0): 20.0, (2, 1): 21.0}


def test_standard_errors_stand_beside_their_metrics(table1):
    made = by_id(generation(table1, ROW, 0, 0, 5.0), as_before(generation(table1, ROW, 1, 0, 5.0)))
    frame = cells.collect(table1, made)
    assert cells.seed_values(frame, ROW, cells.se_of("fd")) == {(0, 0): pytest.approx(0.1)}
    assert cells.seed_values(frame, ROW, "kid") == {(0, 0): pytest.approx(0.005)}
    assert frame[cells.se_of("accuracy")].isna().all()


def test_a_metric_is_found_under_the_record_s_own_name(table1, paper_scale):
    ours, theirs = generation(table1, ROW, 0, 0, 5.0), generation(paper_scale, ROW, 0, 0, 6.0)
    assert [cells.metric_value(r, "fd:heldout") for r in (ours, theirs)] == [5.4, 6.4]
    assert math.isnan(cells.metric_value(ours, "fd:real")) and math.isnan(cells.standard_error(ours, "fd:real"))
    assert cells.standard_error(theirs, "fd") == pytest.approx(0.12)


# --- words and numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (NAN, "–"), (0, "0.00"), (5.414, "5.41"), (-5.414, "-5.41"), (0.1, "0.10"),
        (62.25, "62.25"), (227.34, "227.3"), (0.0123, "0.012"), (0.00098, "0.00098"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (5.414, None, "5.41"), (5.414, 0.118, "5.41 ± 0.12"), (0.0123, 0.00051, "0.012 ± 0.001"),
        (227.34, 1.26, "227.3 ± 1.3"), (8.4, 0.0, "8.40 ± 0.00"), (0.003, 1.26, "0.00 ± 1.26"),
        (-0.003, None, "-0.0030"),
    ],
)  # fmt: skip
def test_a_deviation_has_the_decimals_of_its_mean(mean, sd, text):
    assert wording.plus_minus(mean, sd) == text


def test_published_numbers_keep_the_paper_s_decimals():
    published = {"fd": 3.5, "is": 227.3, "recall": 0.6}
    assert [wording.paper_number(*cell) for cell in published.items()] == ["3.50", "227.3", "0.60"]
    assert wording.paper_number("fd", None) == "–"


def test_percent_and_thousands():
    assert [wording.percent(v) for v in (1.26, -0.04, NAN)] == ["+1.3 %", "-0.0 %", "–"]
    assert wording.percent(10.0, signed=False) == "10 %"
    assert [wording.thousands(n) for n in (50_000, 1000, 1797, 200, 0)] == ["50k", "1k", "1797", "200", "0"]


def test_only_the_inception_network_gives_an_fid(table1, paper_scale):
    metrics = ("fd", "fd:heldout", "is")
    ours = ["FD-1k mnist5k", "held-out FD-1k mnist5k", "IS-1k mnist5k"]
    assert [wording.metric_title(table1, m) for m in metrics] == ours
    assert [wording.metric_short(table1, m) for m in metrics] == ["FD-1k", "held-out FD-1k", "IS-1k"]
    assert [wording.metric_title(paper_scale, m) for m in metrics] == ["FID", "held-out FID", "IS"]
    assert [wording.metric_key(e, "fd:heldout") for e in (table1, paper_scale)] == [
        "fd_mnist5k_heldout", "fid_heldout",
    ]  # fmt: skip


def test_distances_and_scores_of_fewer_images_say_how_many(table1):
    few = load_experiment("table1", "paper", ["sampling.num_images=5000"])
    assert wording.metric_title(few, "fd") == wording.metric_short(few, "fd") == "FID-5k"
    assert wording.metric_title(few, "is") == "IS-5k"
    many = load_experiment("table1", "tiny", ["sampling.num_images=50000"])
    assert [wording.metric_short(many, m) for m in ("fd", "fd:heldout", "is")] == ["FD", "held-out FD", "IS"]


def test_other_metrics_do_not_depend_on_how_many(table1, paper_scale):
    metrics = ("kid", "precision", "recall", "copied", "accuracy")
    names = ["KID", "Precision", "Recall", "copied", "accuracy"]
    for experiment in (table1, paper_scale):
        assert [wording.metric_short(experiment, m) for m in metrics] == names
    assert wording.metric_title(table1, "kid") == "KID mnist5k"


def test_a_metric_of_other_images_says_of_how_many_of_them(table1, paper_scale):
    assert wording.metric_of(table1, "fd", 300) == "FD-300" and wording.metric_of(table1, "fd", None) == "FD"
    assert wording.metric_of(table1, "fd", 300, named=True) == "FD-300 mnist5k"
    assert wording.metric_of(paper_scale, "fd", 10_000) == "FID-10k"


def test_units_stand_in_headings_and_behind_numbers(table1, paper_scale):
    for experiment, kid, brackets, value in ((paper_scale, "kid x 1000", " (x 1000)", 2), (table1, "kid", "", 0.002)):
        names = [wording.with_unit(experiment, m, m) for m in ("kid", "copied", "is")]
        assert names == [kid, "copied %", "is"]
        units = [wording.unit_in_brackets(experiment, m) for m in ("kid", "copied:real", "is")]
        assert units == [brackets, " (%)", ""]
        assert wording.in_units(experiment, "kid", 0.002) == pytest.approx(value)
        assert wording.in_units(experiment, "copied:real", 0.5) == 50
        assert wording.in_units(experiment, "fd", 3.5) == 3.5 and wording.in_units(experiment, "kid", None) is None


def test_signs_and_counts_of_seeds():
    assert [wording.signed(v) for v in (0.5, -0.5, 0.0, NAN)] == ["+0.50", "-0.50", "0.00", "–"]
    counts = [(3, 1), (3, 2), (1, 5), (1, 1), (0, 0)]
    assert [wording.seed_count(*c) for c in counts] == ["3", "3", "1 (5 samplings)", "1", "0"]


def test_rows_with_different_extractors_are_named_apart(table1, paper_scale):
    mixed = replace(table1, rows={**table1.rows, ROW: paper_scale.rows[ROW]})
    assert wording.metric_title(mixed, "fd") == "FD-1k mnist5k / FID"
    assert wording.extractors(mixed) == ["mnist5k"] and wording.extractors(paper_scale) == []


def test_every_scale_but_the_paper_s_says_that_it_does_not_compare(table1, paper_scale):
    assert wording.scale_title(paper_scale) == "paper scale"
    assert wording.scale_title(table1) == "tiny scale, not comparable with the paper's FID"
    other = replace(table1, scale="paper")
    assert wording.scale_title(other) == "paper scale, not comparable with the paper's FID"


def test_a_label_without_letters_takes_its_name_along():
    labels = {"variant": "AR", "tokens per step": ">1"}
    assert wording.describe(labels) == "AR, tokens per step >1"


def test_the_grid_holds_every_row_once(table1):
    lines, columns = wording.lines_and_columns(table1)
    assert columns == [("unguided",), ("guided",)]
    placed = [wording.row_at(table1, line, column) for line in lines for column in columns]
    assert sorted(placed) == sorted(table1.rows) and placed[1] == "raster_causal/ce/guided"


def test_an_axis_that_the_layout_forgets_runs_down(table1):
    loose = replace(table1, layout={"columns": ["loss"]})
    assert wording.row_axes(loose) == ["variant", "guidance"]
    assert wording.row_at(loose, ("mar", "guided"), ("diff",)) == ROW


def test_a_knob_is_told_with_the_axes_that_decide_it(table1):
    assert wording.by_axes(table1, lambda spec: spec.tokenizer.kind) == "vq (ce), kl (diff)"
    assert wording.by_axes(table1, lambda spec: str(spec.train.batch_size)) == "32"
    both = wording.by_axes(table1, lambda spec: f"{spec.model.head.kind} {spec.sampling.guidance_scale:g}")
    assert "cross_entropy 1 (ce/unguided)" in both and "diffusion 3 (diff/guided)" in both


def test_markdown_prints_texts_as_they_are():
    text = wording.markdown_table(["a|b", "n"], [["1e5", "0.10"]])
    assert "a\\|b" in text and "1e5" in text and "0.10" in text


def test_training_and_sampling_seeds_have_deviations_of_their_own():
    values = {(0, 0): 1.0, (0, 1): 3.0, (0, 2): 5.0, (1, 0): 10.0, (1, 1): 14.0, (2, 0): 7.0}
    found = cells.spread(values)
    assert found.sd_sampling == pytest.approx(math.sqrt((2 * 4.0 + 1 * 8.0) / 3)), "pooled over the trainings"
    assert found.sd_training == found.sd == pytest.approx(stdev([3.0, 12.0, 7.0]))
    one = cells.spread({(0, 0): 1.0, (0, 1): 3.0})
    assert (one.sd_sampling, one.sd_training, one.sd) == (
        pytest.approx(math.sqrt(2)),
        None,
        pytest.approx(math.sqrt(2)),
    )
    assert cells.spread({(0, 0): 1.0, (1, 0): 3.0}).sd_sampling is None
