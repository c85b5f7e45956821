"""The rule by which a number of ours is held against the paper's, at its edges, and the table that shows it."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.report.format import plus_minus
from mar_bench.report.table.build import build
from mar_bench.report.verdict import CLOSE, DIFFERS, MATCH, WHY_NONE, is_comparable, verdict
from tests.made_up import by_id, generation, generations

ROW = "mar/diff/guided"


@pytest.fixture(scope="module")
def paper():
    return replace(load_experiment("table1", "paper"), sweeps={})  # each row stands for itself


@pytest.mark.parametrize(
    ("metric", "ours", "published", "expected"),
    [
        ("fd", 1.60, 1.55, MATCH), ("fd", 1.50, 1.55, MATCH), ("fd", 1.601, 1.55, CLOSE),  # 0.05 is more than 3 %
        ("fd", 10.3, 10.0, MATCH), ("fd", 9.7, 10.0, MATCH), ("fd", 10.301, 10.0, CLOSE),  # 3 % is more than 0.05
        ("fd", 11.0, 10.0, CLOSE), ("fd", 9.0, 10.0, CLOSE), ("fd", 11.001, 10.0, DIFFERS), ("fd", 8.99, 10.0, DIFFERS),
        ("fd", 0.25, 0.2, MATCH), ("fd", 0.26, 0.2, DIFFERS),
        ("is", 206.0, 200.0, MATCH), ("is", 206.01, 200.0, CLOSE), ("is", 180.0, 200.0, CLOSE),
        ("is", 179.9, 200.0, DIFFERS),
        ("is", 1.05, 1.0, CLOSE),  # no absolute limit
        ("precision", 0.80, 0.78, MATCH), ("precision", 0.7999, 0.82, DIFFERS), ("precision", 0.801, 0.78, DIFFERS),
        ("recall", 0.58, 0.60, MATCH), ("recall", 0.5799, 0.60, DIFFERS),
        ("kid", 1.0, 1.0, None), ("fd:heldout", 1.0, 1.0, None), ("fd", math.nan, 1.0, None),
        ("fd", 1.0, math.nan, None),
    ],
)  # fmt: skip
def test_the_rule_at_its_edges(metric, ours, published, expected):
    assert verdict(metric, ours, published) == expected


def test_only_the_paper_s_own_protocol_compares(paper):
    assert is_comparable(paper, ROW) and not is_comparable(paper, "no such row")
    assert not is_comparable(load_experiment("table1", "tiny"), ROW)
    assert not is_comparable(load_experiment("table1", "paper", ["sampling.num_images=5000"]), ROW)
    other = ["metrics.extractor={kind: efficientnet_lite0}", "metrics.reference={kind: training}"]
    assert not is_comparable(load_experiment("table1", "paper", other), ROW)


def records_of(paper, row=ROW, **numbers):
    made = generation(paper, row, 0, 0, numbers.pop("fid"))
    return by_id(replace(made, metrics={**made.metrics, **numbers}))


def lines(text: str) -> list[list[str]]:
    block = text.split("## Against the paper")[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block[2:]]


def test_the_paper_scale_table_holds_ours_against_the_paper_s(paper):
    text = build(paper, records_of(paper, fid=2.02, **{"is": 250.0})).markdown()
    assert lines(text) == [
        [ROW, "FID", "2.02 ± 0.04", "1.98", "+0.04 (+2.0 %)", "match"],
        [ROW, "IS", "250.0 ± 0.2", "290.3", "-40.3 (-13.9 %)", "differs"],
    ]
    assert "**match: 1, close: 0, differs: 1.**" in text and WHY_NONE not in text


def test_the_csv_has_difference_and_verdict(paper):
    frame = pd.read_csv(io.StringIO(build(paper, records_of(paper, fid=2.02)).csv()))
    mine = frame[frame["row"] == ROW].set_index("metric")
    assert mine.loc["fid", "difference"] == pytest.approx(0.04) and mine.loc["fid", "verdict"] == "match"
    assert math.isnan(mine.loc["kid", "difference"]) and pd.isna(mine.loc["kid", "verdict"])
    missing = frame[(frame["row"] == "mar/ce/guided") & (frame["metric"] == "fid")].iloc[0]
    assert math.isnan(missing["difference"]) and pd.isna(missing["verdict"]) and missing["paper"] == 3.69


def test_no_other_scale_has_verdicts_and_it_says_why():
    tiny = load_experiment("table1", "tiny")
    table = build(tiny, generations(tiny))
    text = table.markdown()
    assert "## Against the paper" not in text and text.count(WHY_NONE) == 1
    frame = pd.read_csv(io.StringIO(table.csv()))
    published = frame["paper"].notna()
    assert set(frame.loc[published, "verdict"]) == {"not comparable"} and frame.loc[~published, "verdict"].isna().all()
    assert frame["difference"].isna().all()
    unpublished = replace(tiny, paper={})
    assert WHY_NONE not in build(unpublished, generations(tiny)).markdown()


@pytest.mark.parametrize(("fid", "word"), [(120.0, "match"), (80.0, "differs")])
def test_a_published_bound_has_a_verdict_and_no_difference(paper, fid, word):
    bounded = replace(paper, paper={ROW: {"fd_above": 100.0}})
    table = build(bounded, records_of(paper, fid=fid))
    ((*_, published, difference, said),) = lines(table.markdown())
    assert (published, difference, said) == ("> 100", "–", word)
    assert f"{plus_minus(fid, 0.02 * fid)} (> 100)" in table.markdown()
