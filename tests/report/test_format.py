"""How numbers, metrics and rows are written."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.report import format as fmt

ROW = "mar/diff/guided"
NAN = math.nan


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (fmt.number, (None,), "–"), (fmt.number, (NAN,), "–"), (fmt.number, (0,), "0.00"),
        (fmt.number, (-5.414,), "-5.41"), (fmt.number, (227.34,), "227.3"), (fmt.number, (0.00098,), "0.00098"),
        (fmt.number, (-2.4e-10,), "0.00"),
        (fmt.plus_minus, (5.414, None), "5.41"), (fmt.plus_minus, (0.0123, 0.00051), "0.012 ± 0.001"),
        (fmt.plus_minus, (227.34, 1.26), "227.3 ± 1.3"), (fmt.plus_minus, (0.003, 1.26), "0.00 ± 1.26"),
        (fmt.number, (0.5, None, True), "+0.50"), (fmt.percent, (1.26,), "+1.3 %"), (fmt.percent, (NAN,), "–"),
        (fmt.paper_number, ("fd", 3.5), "3.50"), (fmt.paper_number, ("is", 227.3), "227.3"),
        (fmt.paper_number, ("parameters", 943e6), "943M"), (fmt.paper_number, ("fd_above", 100.0), "100"),
        (fmt.paper_number, ("fd", None), "–"), (fmt.count_of, (1_527_000,), "1.5M"), (fmt.count_of, (2e9,), "2B"),
        (fmt.count_of, (50_000,), "50k"), (fmt.count_of, (12,), "12"), (fmt.count_of, (NAN,), "–"),
    ],
)  # fmt: skip
def test_numbers(function, arguments, text):
    assert function(*arguments) == text


def test_only_the_inception_network_gives_an_fid(table1, paper):
    metrics = ("fd", "fd:heldout", "is", "kid", "copied")
    ours = ["FD-1k", "held-out FD-1k", "IS-1k", "KID", "copied"]
    assert [fmt.metric_title(table1, m, named=False) for m in metrics] == ours
    assert [fmt.metric_title(table1, m) for m in metrics] == [f"{name} mnist5k" for name in ours]
    assert [fmt.metric_title(paper, m) for m in metrics[:3]] == ["FID", "held-out FID", "IS"]
    mixed = replace(table1, rows={**table1.rows, ROW: paper.rows[ROW]})
    assert fmt.metric_title(mixed, "fd") == "FD-1k mnist5k / FID"
    assert fmt.extractors(mixed) == ["mnist5k"] and fmt.extractors(paper) == []
    few = load_experiment("table1", "paper", ["sampling.num_images=5000"])
    assert [fmt.metric_title(few, m) for m in ("fd", "is", "kid")] == ["FID-5k", "IS-5k", "KID"]
    assert [fmt.metric_title(table1, "fd", images=n) for n in (300, 50_000)] == ["FD-300 mnist5k", "FD mnist5k"]
    titles = [fmt.scale_title(e) for e in (paper, replace(table1, scale="paper"))]
    assert titles == ["paper scale", "paper scale, not comparable with the paper's FID"]


def test_units(table1, paper):
    for experiment, kid, shown in ((paper, "kid x 1000", "2.00 ± 0.10"), (table1, "kid", "0.0020 ± 0.0001")):
        assert [fmt.with_unit(experiment, m, m) for m in ("kid", "copied", "is")] == [kid, "copied %", "is"]
        assert fmt.metric_number(experiment, "kid", 0.002, 0.0001) == shown
        assert fmt.metric_number(experiment, "copied", 0.5) == "50.00"
        assert fmt.metric_number(experiment, "fd", 3.5, 0.1) == "3.50 ± 0.10"
        assert fmt.in_units(experiment, "copied:real", 0.5) == 50 and fmt.in_units(experiment, "kid", None) is None


def test_the_layout_places_every_row_once(table1):
    lines, columns = fmt.lines_and_columns(table1)
    assert columns == [("unguided",), ("guided",)]
    placed = [fmt.row_at(table1, line, column) for line in lines for column in columns]
    assert sorted(placed) == sorted(table1.rows) and placed[1] == "raster_causal/ce/guided"
    loose = replace(table1, layout={"columns": ["loss"]})  # an axis that is not placed runs down
    assert fmt.row_axes(loose) == ["variant", "guidance"]
    assert fmt.row_at(loose, ("mar", "guided"), ("diff",)) == ROW
