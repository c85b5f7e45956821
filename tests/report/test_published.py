"""What stands beside our numbers: columns once per line, absent rows, quoted rows, choices, verdicts."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config.choices import with_choices
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import CHOICE_SEED, with_seeds
from mar_bench.records.paper import PublishedRow
from mar_bench.report.format import number, plus_minus
from mar_bench.report.paper_agreement import CLOSE, DIFFERS, MATCH, verdict
from mar_bench.report.table.build import table
from mar_bench.report.table.notes import WHY_NONE
from tests.made_up import by_id, everything, generation, generations, made_up, speed
from tests.report.test_tables import first_table

ROW = "mar/diff/guided"


def cells_of(text: str) -> dict[str, dict[str, str]]:
    """First label of a line -> heading -> cell, in the first table."""
    heading, *lines = first_table(text)
    return {line[0]: dict(zip(heading, line)) for line in lines}


def by_row(made) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(made.csv())).drop_duplicates("row").set_index("row")


# --- columns once per line, absent and quoted rows ------------------------------------------------------


def test_a_line_has_its_columns_once(table1):
    laid = {**table1.layout, "beside": ["parameters", "head_parameters", "rfd", "seconds_per_image"]}
    line = {"parameters": 407e6, "head_parameters": 21e6, "rfd": 1.43, "seconds_per_image": 0.288}
    beside = replace(table1, layout=laid, paper={**table1.paper, "mar/diff": line})
    text = table(beside, everything(table1)).markdown()
    heading, *lines = first_table(text)
    names = ["parameters", "head parameters", "reconstruction FD-1k, vs training", "seconds per image"]
    assert heading[5:9] == [f"{name} (paper)" for name in names]
    seconds = number(speed(table1, ROW).metrics["seconds_per_image"])
    assert lines[-1][5:9] == ["300k (407M)", "50k (21M)", "2.60 (1.43)", f"{seconds} (0.288)"]
    assert lines[0][5:8] == ["300k (–)", "50k (–)", "4.20 (–)"]
    assert "reconstruction FID against training images, seconds per image" in text
    assert "Seconds per image: with CFG, Example CPU, 1 thread, float32, batch 64." in text
    assert "reconstruction FD-1k, vs training" not in text.split("Further metrics")[1], "not twice"


def test_quoted_rows_have_a_table_of_their_own(table1):
    adm = {"": {"parameters": 554e6}, "unguided": {"fd": 10.94, "is": 101.0}}
    vdm = {"": {"parameters": 2e9}, "guided": {"fd": 2.12}}
    rows = [PublishedRow("t4", "adm", "ADM", adm, "Table 4"), PublishedRow("t4", "vdm", "VDM++", vdm, "Table 4")]
    part = table(replace(table1, quoted=rows), {}).markdown().split("Quoted from the paper (Table 4)")[1]
    assert first_table(part) == [
        ["system", "parameters", "FID, without CFG", "IS, without CFG", "FID, with CFG"],
        ["ADM", "554M", "10.94", "101.0", "–"],
        ["VDM++", "2B", "–", "–", "2.12"],
    ]
    assert "Quoted" not in table(table1, {}).markdown()
    bound = table(load_experiment("appendix_l2", "tiny"), {}).markdown().split("Quoted from the paper")[1]
    assert first_table(bound) == [["system", "FID"], ["L2 loss instead of DiffLoss", "> 100"]]


# --- choices --------------------------------------------------------------------------------------------


def points(experiment, row: str, values) -> dict:
    """Records of a row's sweep points on the seed of choices."""
    made = []
    for (_, spec), fd in zip(experiment.sweeps[row].points, values):
        alone = replace(experiment, rows={row: with_seeds(spec, 0, 0)})
        made.append(generation(alone, row, spec.train.seed, CHOICE_SEED, fd))
    return by_id(*made)


def test_a_swept_row_names_its_point_and_the_alternatives(tmp_path):
    swept = made_up("swept")
    waiting = table(swept, {})
    assert "- best: not chosen yet; `mar-bench run swept --scale tiny` measures the 4 candidates" in waiting.markdown()
    assert cells_of(waiting.markdown())["best"]["FD-1k (paper)"] == "– (–)"
    assert waiting.status("best") == by_row(waiting).loc["best", "chosen"] == "not chosen yet"
    assert pd.isna(by_row(waiting).loc["fixed", "chosen"])
    records = points(swept, "best", (5.0, 4.0, 3.0, 3.5))
    chosen = with_choices(swept, records)
    made = table(chosen, {**records, **generations(chosen, lambda *_: 3.1, rows=["best"])})
    (note,) = [line for line in made.markdown().splitlines() if line.startswith("- best: ")]
    assert "guidance_scale 3, temperature 0.9, chosen by the lowest FD-1k on sampling seed 1000" in note
    assert "guidance_scale 2, temperature 0.9: 5.00; guidance_scale 2, temperature 1: 4.00;" in note
    assert cells_of(made.markdown())["best"]["FD-1k (paper)"] == "3.10 ± 0.00 (–)"
    assert by_row(made).loc["best", "chosen"] == "guidance_scale=3;temperature=0.9"


def test_a_failed_point_shows_in_the_row_that_waits_for_it():
    swept = made_up("swept")
    records = points(swept, "best", (5.0, None, 3.0, 3.5))
    made = table(replace(swept, seeds={"training": [0], "sampling": [0]}), records)
    assert {row for row in swept.rows if made.status(row) == "failed"} == {"best"}
    assert "FAILED" in made.markdown() and "Failed runs" in made.markdown()


# --- verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "ours", "published", "expected"),
    [
        ("fd", 1.60, 1.55, MATCH), ("fd", 1.50, 1.55, MATCH), ("fd", 1.601, 1.55, CLOSE),  # 0.05 is more than 3 %
        ("fd", 10.3, 10.0, MATCH), ("fd", 9.7, 10.0, MATCH), ("fd", 10.301, 10.0, CLOSE),  # 3 % is more than 0.05
        ("fd", 11.0, 10.0, CLOSE), ("fd", 11.001, 10.0, DIFFERS), ("fd", 0.26, 0.2, DIFFERS),
        ("is", 206.0, 200.0, MATCH), ("is", 206.01, 200.0, CLOSE), ("is", 179.9, 200.0, DIFFERS),
        ("precision", 0.80, 0.78, MATCH), ("precision", 0.801, 0.78, DIFFERS), ("recall", 0.5799, 0.60, DIFFERS),
        ("kid", 1.0, 1.0, ""), ("fd", math.nan, 1.0, ""), ("fd", 1.0, math.nan, ""),
    ],
)  # fmt: skip
def test_verdicts_at_the_limits(metric, ours, published, expected):
    assert verdict(metric, ours, published) == expected


def judged(text: str) -> list[list[str]]:
    return first_table(text.split("## Against the paper")[1])[1:]


def test_the_paper_scale_has_verdicts(paper):
    made = generation(paper, ROW, 0, 0, 2.02)
    made = table(paper, by_id(replace(made, metrics={**made.metrics, "is": 250.0})))
    assert judged(made.markdown()) == [
        [ROW, "FID", "2.02 ± 0.04", "1.98", "+0.04 (+2.0 %)", "match"],
        [ROW, "IS", "250.0 ± 0.2", "290.3", "-40.3 (-13.9 %)", "differs"],
    ]
    assert "**match: 1, close: 0, differs: 1.**" in made.markdown() and WHY_NONE not in made.markdown()
    frame = pd.read_csv(io.StringIO(made.csv())).set_index(["row", "metric"])
    fid, kid, missing = (frame.loc[key] for key in ((ROW, "fid"), (ROW, "kid"), ("mar/ce/guided", "fid")))
    assert fid["difference"] == pytest.approx(0.04) and fid["verdict"] == "match"
    assert math.isnan(kid["difference"]) and pd.isna(kid["verdict"])
    assert math.isnan(missing["difference"]) and pd.isna(missing["verdict"]) and missing["paper"] == 3.69


@pytest.mark.parametrize(("fid", "word"), [(120.0, "match"), (80.0, "differs")])
def test_a_published_bound_has_a_verdict_and_no_difference(paper, fid, word):
    bounded = replace(paper, paper={ROW: {"fd_above": 100.0}})
    text = table(bounded, by_id(generation(paper, ROW, 0, 0, fid))).markdown()
    ((*_, published, difference, found),) = judged(text)
    assert (published, difference, found) == ("> 100", "–", word)
    assert f"{plus_minus(fid, 0.02 * fid)} (> 100)" in text


def test_other_scales_have_no_verdicts_and_say_why(table1):
    made = table(table1, generations(table1))
    text, frame = made.markdown(), pd.read_csv(io.StringIO(made.csv()))
    assert "## Against the paper" not in text and text.count(WHY_NONE) == 1
    published = frame["paper"].notna()
    assert set(frame.loc[published, "verdict"]) == {"not comparable"} and frame.loc[~published, "verdict"].isna().all()
    assert frame["difference"].isna().all()
    unpublished = replace(table1, paper={})
    assert WHY_NONE not in table(unpublished, generations(table1)).markdown()
