"""What stands beside the measured numbers: columns of a line, rows of other scales, quoted rows, choices of sweeps."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import CHOICE_SEED, generation_run, with_seeds
from mar_bench.records.paper import PublishedRow
from mar_bench.report import format as wording
from mar_bench.report.frames import select
from mar_bench.report.table.build import build
from tests.made_up import by_id, everything, generation, generations, reconstruction, speed
from tests.made_up_files import made_up
from tests.report.test_tables import first_table

ROW = "mar/diff/guided"


@pytest.fixture(scope="module")
def table1():
    return load_experiment("table1", "tiny")


def cells_of(text: str) -> dict[str, dict[str, str]]:
    """Line -> heading -> cell of the first table; a line goes by its labels."""
    heading, *lines = first_table(text)
    return {line[0]: dict(zip(heading, line)) for line in lines}


@pytest.mark.parametrize(
    ("count", "words"),
    [(942_403_104, "942M"), (1_527_000, "1.5M"), (2e9, "2B"), (1.4e9, "1.4B"), (2e6, "2M"), (50_000, "50k"), (12, "12"),
     (44_550_000, "45M"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_parameters_are_written_short(count, words):
    assert wording.count_of(count) == words


# --- columns of a line ----------------------------------------------------------------------------------


def test_a_line_has_its_columns_once(table1):
    laid = {**table1.layout, "beside": ["parameters", "head_parameters", "rfd", "seconds_per_image"]}
    line = {"parameters": 407e6, "head_parameters": 21e6, "rfd": 1.43, "seconds_per_image": 0.288}
    beside = replace(table1, layout=laid, paper={**table1.paper, "mar/diff": line})
    text = build(beside, everything(table1)).markdown()
    heading, *lines = first_table(text)
    assert heading[5:10] == [
        "parameters (paper)", "head parameters (paper)", "reconstruction FD-1k (paper)", "seconds per image (paper)",
        "FD-1k, without CFG (paper)",
    ]  # fmt: skip
    seconds = wording.number(speed(table1, ROW).metrics["seconds_per_image"])
    assert lines[-1][5:9] == ["300k (407M)", "50k (21M)", "2.60 (1.43)", f"{seconds} (0.288)"]
    assert lines[0][5:8] == ["300k (–)", "50k (–)", "4.20 (–)"]
    assert "the paper's FID, IS, parameters, parameters of the head, reconstruction FID and seconds per image" in text
    assert "Seconds per image: with CFG, Example CPU, 1 thread, float32, batch 64." in text
    assert "reconstruction FD-1k   |" not in text.split("The same rows")[1]  # said already


def test_any_row_of_a_line_gives_its_numbers(table1):
    beside = replace(table1, layout={**table1.layout, "beside": ["parameters", "seconds_per_image"]})
    made = by_id(generation(table1, ROW, 0, 0, 5.0), speed(table1, "mar/diff/unguided"))
    *_, last = first_table(build(beside, made).markdown())
    seconds = speed(table1, "mar/diff/unguided").metrics["seconds_per_image"]
    assert last[5:7] == ["300k", wording.number(seconds)]
    nothing = first_table(build(beside, {}).markdown())
    assert all(line[5:7] == ["–", "–"] for line in nothing[1:])


# --- rows that a scale has not --------------------------------------------------------------------------


def test_absent_rows_still_show_the_paper_s_numbers(tmp_path):
    swept = made_up(tmp_path, "swept")
    assert "gone" in swept.absent and "gone" not in swept.rows
    table = build(swept, generations(swept, lambda *_: 5.0))
    shown = cells_of(table.markdown())["gone"]
    assert (shown["FD-1k (paper)"], shown["IS-1k (paper)"]) == ("paper scale only (7.82)", "– (151.7)")
    assert table.status("gone") == "absent"


def test_orderings_leave_out_pairs_of_which_a_row_is_absent(tmp_path):
    orderings = "orderings:\n  - {claim: c, axis: cell, better: fixed, worse: gone}\n"
    swept = made_up(tmp_path, "swept", more=orderings)
    assert build(swept, generations(swept, lambda *_: 5.0)).comparisons == []


# --- quoted rows ----------------------------------------------------------------------------------------


def test_quoted_rows_have_a_table_of_what_they_give(table1):
    rows = [
        PublishedRow(
            "t4", "adm", "ADM", {"": {"parameters": 554e6}, "unguided": {"fd": 10.94, "is": 101.0}}, "Table 4"
        ),
        PublishedRow("t4", "vdm", "VDM++", {"": {"parameters": 2e9}, "guided": {"fd": 2.12}}, "Table 4"),
    ]
    text = build(replace(table1, quoted=rows), {}).markdown()
    part = text.split("Quoted from the paper (Table 4), not measured here:")[1]
    assert first_table(part) == [
        ["system", "parameters", "FID, without CFG", "IS, without CFG", "FID, with CFG"],
        ["ADM", "554M", "10.94", "101.0", "–"],
        ["VDM++", "2B", "–", "–", "2.12"],
    ]
    assert "Quoted" not in build(table1, {}).markdown()


def test_a_quoted_bound_stands_in_the_column_of_its_metric():
    text = build(load_experiment("appendix_l2", "tiny"), {}).markdown()
    part = text.split("Quoted from the paper (Appendix D.3), not measured here:")[1]
    assert first_table(part) == [["system", "FID"], ["L2 loss instead of DiffLoss", "> 100"]]
    tex = build(load_experiment("appendix_l2", "tiny"), {}).tex()
    assert "L2 loss instead of DiffLoss (FID $>$ 100) &" in tex


# --- choices of sweeps ----------------------------------------------------------------------------------


def points(experiment, row: str, values) -> dict:
    """Records of the points of a row's sweep on the seed of choices."""
    made = []
    for (_, spec), fd in zip(experiment.sweeps[row].points, values):
        alone = replace(experiment, rows={row: with_seeds(spec, 0, 0)})
        made.append(generation(alone, row, spec.train.seed, CHOICE_SEED, fd))
    return by_id(*made)


def test_a_row_of_a_sweep_has_a_footnote_and_says_when_it_is_not_chosen(tmp_path):
    swept = made_up(tmp_path, "swept")
    first = swept.sweeps["best"].points[0][1]
    of_first = by_id(generation(replace(swept, rows={"best": first}), "best", 0, 0, 5.0))
    table = build(swept, of_first)
    assert (
        "- best: not chosen yet; `mar-bench run swept --scale tiny` measures the 4 points of its sweep."
        in table.markdown()
    )
    assert cells_of(table.markdown())["best"]["FD-1k (paper)"] == "– (–)" and table.status("best") == "not chosen yet"
    frame = pd.read_csv(io.StringIO(table.csv())).drop_duplicates("row").set_index("row")
    assert frame.loc["best", "chosen"] == "not chosen yet" and pd.isna(frame.loc["fixed", "chosen"])


def test_a_chosen_row_says_among_what(tmp_path):
    swept = made_up(tmp_path, "swept")
    swept_records = points(swept, "best", (5.0, 4.0, 3.0, 3.5))
    chosen = with_choices(swept, swept_records)
    table = build(chosen, {**swept_records, **generations(chosen, lambda *_: 3.1, rows=["best"])})
    assert (
        "- best: guidance_scale 3, temperature 0.9, chosen by the lowest FD-1k on sampling seed 1000 among "
        "(guidance_scale, temperature) (2, 0.9): 5.00, (2, 1): 4.00, (3, 0.9): 3.00, (3, 1): 3.50."
    ) in table.markdown()
    assert cells_of(table.markdown())["best"]["FD-1k (paper)"] == "3.10 ± 0.00 (–)"
    frame = pd.read_csv(io.StringIO(table.csv())).drop_duplicates("row").set_index("row")
    assert frame.loc["best", "chosen"] == "guidance_scale=3;temperature=0.9"


@pytest.fixture(scope="module")
def searched():
    return load_experiment("same_tokenizer", "tiny")


def tried(experiment, distances=(3.0, 2.0, 4.0), losses=(1.0, 1.5, 2.0)) -> dict:
    """Records of every setting of every search: its short training and its tokenizer alone."""
    made = []
    for search in experiment.searches:
        for (_, spec), fd, loss in zip(search.points, distances, losses):
            alone = replace(experiment, rows={search.judge: with_seeds(spec, 0, 0)})
            training = {"loss_train": 1.0, "loss_heldout": loss, "steps": 1000, "seconds": 1.0}
            made.append(generation(alone, search.judge, spec.train.seed, CHOICE_SEED, 9.0, training=training))
            floor = reconstruction(alone, search.judge)
            made.append(replace(floor, metrics={**floor.metrics, "fd_mnist5k": fd}))
    return by_id(*made)


def test_a_search_is_told_once_for_all_its_rows(searched):
    chosen = with_choices(searched, made := tried(searched))
    text = build(chosen, made).markdown()
    told = [line for line in text.splitlines() if "tokenizer with" in line]
    assert told == [
        "- vq_ce/unguided, vq_ce/guided, vq_diff/unguided, vq_diff/guided: tokenizer with commitment_weight 1, chosen "
        "among (reconstruction FD and held-out loss of a training of 1000 steps of vq_ce/unguided) commitment_weight "
        "1: 3.00 and 1.00, score 2.50; commitment_weight 0.25: 2.00 and 1.50, score 2.50; code_dim 4: 4.00 and 2.00, "
        "score 4.00. The score, lower is better, is the sum of both, each as a multiple of the best.",
        told[1],
    ]
    assert "kl_weight 0.02: 3.00 and 1.00" in told[1] and "sampling seed" not in text.split("tokenizer with")[1]
    frame = pd.read_csv(io.StringIO(build(chosen, made).csv())).drop_duplicates("row").set_index("row")
    assert frame.loc["vq_diff/guided", "chosen"] == "commitment_weight=1"


def test_rows_of_a_search_that_is_not_done_show_nothing(searched):
    table = build(searched, everything(searched, lambda *_: 5.0))
    assert {table.status(row) for row in searched.rows} == {"not chosen yet"}
    assert table.cells.empty and table.floors.empty and table.speeds.empty
    waits = "not chosen yet; `mar-bench run same_tokenizer --scale tiny` measures the 3 tokenizers of their search."
    assert table.markdown().count(waits) == 2


def test_a_failed_point_shows_in_the_rows_that_wait_for_it(searched, tmp_path):
    search = searched.searches[0]
    alone = replace(searched, rows={search.judge: with_seeds(search.points[1][1], 0, 0)})
    failed = by_id(generation(alone, search.judge, 0, CHOICE_SEED, None))
    declared = replace(searched, seeds={"training": [0], "sampling": [0]})
    table = build(declared, {**tried(searched), **failed})
    assert {row for row in searched.rows if table.status(row) == "failed"} == set(search.rows)
    assert "FAILED" in table.markdown() and "Failed runs" in table.markdown() and table.left_out == 0
    swept = made_up(tmp_path, "swept")
    alone = replace(swept, rows={"best": with_seeds(swept.sweeps["best"].points[2][1], 0, 0)})
    failed = by_id(generation(alone, "best", 0, CHOICE_SEED, None))
    assert build(swept, failed).status("best") == "failed"


def test_the_seed_of_choices_is_of_no_table(tmp_path):
    swept = made_up(tmp_path, "swept")
    made = by_id(*(generation(swept, "fixed", 0, s, 5.0) for s in (0, CHOICE_SEED)))
    chosen = select(swept, made)["fixed"]["generation"]
    assert [r.id for r in chosen] == [generation_run("fixed", with_seeds(swept.rows["fixed"], 0, 0)).id]
    assert build(swept, made).left_out == 0


# --- declared seeds -------------------------------------------------------------------------------------


def pairs(experiment, made, row: str) -> list[tuple[int, int]]:
    return [(r.spec["train"]["seed"], r.spec["sampling"]["seed"]) for r in select(experiment, made)[row]["generation"]]


def test_seeds_that_only_some_rows_have_count_nowhere_where_seeds_are_declared(table1):
    declared = replace(table1, seeds={"training": [0, 1], "sampling": [0]})
    more = generations(table1, lambda *_: 5.0, seeds=(2,), rows=[ROW])
    made = {**generations(table1, lambda *_: 5.0, seeds=(0, 1)), **more}
    assert pairs(declared, made, ROW) == [(0, 0), (1, 0)]
    assert pairs(table1, made, ROW) == [(0, 0), (1, 0), (2, 0)]  # declares none
    text = build(declared, made).markdown()
    assert "1 record is left out, on seeds that other tables use and not all rows here have." in text
    assert "left out" not in build(table1, made).markdown().replace("leaves out", "")


def test_seeds_that_all_rows_with_records_have_count(table1):
    declared = replace(table1, seeds={"training": [0]})
    made = generations(table1, lambda *_: 5.0, seeds=(0, 7), rows=[ROW, "mar/ce/guided"])
    assert pairs(declared, made, ROW) == [(0, 0), (7, 0)] and build(declared, made).left_out == 0
    failed = {**made, **by_id(generation(table1, "mar/ce/unguided", 0, 0, 5.0))}
    assert pairs(declared, failed, ROW) == [(0, 0)] and build(declared, failed).left_out == 2
    assert pairs(declared, {**made, **by_id(generation(table1, "mar/ce/unguided", 0, 0, None))}, ROW) == [
        (0, 0),
        (7, 0),
    ]


def test_failed_records_of_other_tables_seeds_are_left_out_too(table1):
    declared = replace(table1, seeds={"training": [0]})
    made = {**generations(table1, lambda *_: 5.0, seeds=(0,)), **by_id(generation(table1, ROW, 3, 0, None))}
    table = build(declared, made)
    assert "Failed runs" not in table.markdown() and table.left_out == 1


# --- how numbers are written ----------------------------------------------------------------------------


def test_published_shares_have_two_decimals():
    assert [wording.paper_number(m, 0.6) for m in ("precision", "recall", "rfd")] == ["0.60", "0.60", "0.60"]


def test_kid_without_inception_has_three_digits_and_a_power_of_ten(table1):
    def shown(*values):
        return wording.metric_number(table1, "kid", *values)

    assert [shown(-28008.2), shown(0.005, 0.0001), shown(0.0), shown(float("nan"))] == [
        "-2.80e4",
        "5.00e-3 ± 1.00e-4",
        "0",
        "–",
    ]
    inception = load_experiment("table1", "paper")
    assert wording.metric_number(inception, "kid", 0.002, 0.0001) == "2.00 ± 0.10"
    assert wording.metric_number(table1, "fd", 5.0, 0.1) == "5.00 ± 0.10"


def test_columns_of_a_bundle_without_label_have_no_words():
    table5 = load_experiment("table5", "tiny")
    table5 = replace(table5, labels={**table5.labels, "sampling": {"mar": {}}})
    table = build(table5, everything(table5, lambda row, t, s: 5.0 + 0.1 * t))
    assert first_table(table.markdown())[0] == ["loss", "order", "FD-1k (paper)", "IS-1k (paper)"]
    assert "multicolumn" not in table.tex() and ", , " not in table.markdown()
    assert "The same rows, beside the columns above:" in table.markdown()
    claims = table.markdown().split("## What the paper claims")[1]
    assert "| mar " not in claims and "| order " in claims
