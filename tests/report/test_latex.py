"""The table in LaTeX: that it would compile, and that it says what the Markdown does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.records.paper import PublishedRow
from mar_bench.report.table.build import build
from mar_bench.report.table.latex import QUOTED, escape
from tests.made_up import base, by_id, everything, generation, generations
from tests.made_up_files import made_up

ROW = "mar/diff/guided"
ADM = PublishedRow("table4", "adm", "ADM & 100% #1", {"": {"parameters": 554e6}, "unguided": {"fd": 10.94}}, "Table 4")


@pytest.fixture(scope="module")
def table1():
    return load_experiment("table1", "tiny")


def body(tex: str) -> list[str]:
    """Lines of cells between the first and the last rule."""
    inside = tex[tex.index(r"\toprule") : tex.index(r"\bottomrule")].splitlines()
    return [line for line in inside if line.endswith(r"\\")]


def width(line: str) -> int:
    spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return 1 + len(re.findall(r"(?<!\\)&", line)) + sum(spans)


def check(tex: str) -> None:
    """Braces and environments are closed, every line has as many cells as the table has columns."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"^%.*$", "", tex, flags=re.MULTILINE))
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    plain = re.sub(r"\$[<>|]\$", "", plain)
    assert depth == 0 and plain.count("$") % 2 == 0 and not set(plain) & set('#%~|<>"±–†\t')
    assert re.findall(r"\\(begin|end)\{(\w+)\}", tex) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table"),
    ]  # fmt: skip
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", tex)[1]
    assert {width(line) for line in body(tex)} == {len(columns)}


def test_it_would_compile_at_every_state(table1):
    some = by_id(generation(table1, ROW, 0, 0, 5.0), generation(table1, ROW, 1, 0, None))
    for records in ({}, everything(table1), some, generations(table1, lambda *_: None)):
        check(build(table1, records).tex())
    check(build(load_experiment("table1", "paper"), {}).tex())


def test_caption_and_label(table1):
    tex = build(table1, everything(table1)).tex()
    assert r"\label{tab:table1-tiny}" in tex
    caption = re.search(r"\\caption\{(.*)\}", tex)[1]
    for words in (
        f"{table1.title}. Tiny scale, not comparable with the paper's FID.",
        "In brackets: the paper's FID and IS",
        r"$\pm$ is the standard deviation over 3 training runs",
    ):
        assert words in caption
    paper = load_experiment("table1", "paper")
    assert "Paper scale. In brackets" in build(paper, {}).tex() and "not comparable" not in build(paper, {}).tex()


def test_the_same_numbers_as_in_markdown(table1):
    tex = build(table1, everything(table1)).tex()
    for row in table1.rows:
        assert rf"{base(row) + 0.1:.2f} $\pm$ 0.10" in tex and f"({table1.paper[row]['fd']:.2f})" in tex
    assert r"\multicolumn{2}{c}{without CFG}" in tex and r"\cmidrule(lr){6-7} \cmidrule(lr){8-9}" in tex


def bold(tex: str) -> list[list[int]]:
    """For each line of cells the places that are bold."""
    lines = [line for line in body(tex) if r"\pm" in line or "--" in line]
    return [[i for i, cell in enumerate(line.split(" & ")) if r"\textbf" in cell] for line in lines]


def test_the_best_of_each_column_is_bold_by_the_direction_of_its_metric(table1):
    lines = bold(build(table1, everything(table1)).tex())
    assert lines[1] == [5, 6, 7, 8] and not any(lines[:1] + lines[2:])  # lowest distance, highest score


def test_ties_are_all_bold_and_a_single_number_is_not(table1):
    ties = build(table1, generations(table1, lambda *_: 5.0)).tex()
    assert all(places == [5, 6, 7, 8] for places in bold(ties))
    alike = build(table1, generations(table1, lambda row, *_: 5.0 if row == ROW else 5.001)).tex()
    assert all({5, 7} <= set(places) for places in bold(alike))  # 5.00 beside 5.00
    alone = build(table1, generations(table1, lambda *_: 5.0, rows=[ROW])).tex()
    assert r"\textbf" not in alone


def test_what_users_write_is_escaped(table1):
    odd = r"50% of #1 & a_b $x$ {y} ~ ^ \ < > | “é” ±"
    named = replace(table1, title=odd, labels={**table1.labels, "loss": {"ce": {odd: odd}, "diff": {odd: "[*x]"}}})
    tex = build(named, everything(table1)).tex()
    check(tex)
    assert escape(odd) in tex and "{[}{*}x]" in tex
    assert escape("\\_{") == r"\textbackslash{}\_\{"


def test_quoted_rows_stand_apart_and_say_so(table1):
    tex = build(replace(table1, quoted=[ADM]), everything(table1)).tex()
    check(tex)
    after = tex.split(QUOTED)[1]
    assert r"\midrule" in tex.split(QUOTED)[0].splitlines()[-2]
    assert r"ADM \& 100\% \#1 &  &  &  &  & 10.94 &  &  &  \\" in after and r"\textbf" not in after


def test_columns_of_a_line_stand_before_its_metrics(tmp_path):
    speed = made_up(tmp_path, "speed")
    tex = build(replace(speed, quoted=[ADM]), everything(speed, lambda *_: 5.0)).tex()
    check(tex)
    assert (
        "parameters (paper) & head parameters & reconstruction FD-1k & seconds per image (paper) & FD-1k (paper)" in tex
    )
    assert "300k (407M) & 50k & 2.60 &" in tex and r"ADM \& 100\% \#1 &  & 554M" in tex


def test_absent_cells_say_so(tmp_path):
    swept = made_up(tmp_path, "swept")
    tex = build(swept, {}).tex()
    check(tex)
    assert "paper scale only (7.82) & -- (151.7)" in tex
