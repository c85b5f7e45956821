"""The table in LaTeX: it compiles, and has the numbers of the Markdown."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.records.paper import PublishedRow
from mar_bench.report.render import escape_tex
from mar_bench.report.table.build import table
from tests.made_up import base, by_id, everything, generation, generations, made_up

REPORTS = Path(__file__).parents[2] / "reports"
ROW = "mar/diff/guided"
ADM = PublishedRow("table4", "adm", "ADM & 100% #1", {"": {"parameters": 554e6}, "unguided": {"fd": 10.94}}, "Table 4")


def checked(tex: str) -> str:
    """Assert that braces and environments close and that lines have as many cells as their tabular has columns."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"^%.*$", "", tex, flags=re.MULTILINE))
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    plain = re.sub(r"\$[<>|]\$", "", plain.replace(r"\width>\linewidth", ""))
    assert depth == 0 and plain.count("$") % 2 == 0 and not set(plain) & set('#%~|<>"±–†\t')
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 1 and tex.endswith("\\end{table}\n")
    tabulars = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\bottomrule\n\\end\{tabular\}\}", tex, flags=re.DOTALL)
    assert tabulars and len(tabulars) == tex.count(r"\begin{tabular}")
    for columns, body in tabulars:
        assert {width(line) for line in lines(body)} == {len(columns)}
    return tex


def lines(tex: str) -> list[str]:
    return [line for line in tex.splitlines() if line.endswith(r"\\")]


def width(line: str) -> int:
    spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return 1 + len(re.findall(r"(?<!\\)&", line)) + sum(spans)


def test_it_compiles_with_any_records(table1, tmp_path):
    some = by_id(generation(table1, ROW, 0, 0, 5.0), generation(table1, ROW, 1, 0, None))
    for records in ({}, some, generations(table1, lambda *_: None)):
        checked(table(table1, records).tex())
    absent = checked(table(made_up("swept"), {}).tex())
    assert "paper scale only (7.82) & -- (151.7)" in absent


def test_caption_label_and_numbers(table1):
    tex = checked(table(table1, everything(table1)).tex())
    caption = re.search(r"\\caption\{(.*)\}", tex)[1]
    assert caption.startswith(f"{table1.title}. Tiny scale, not comparable with the paper's FID. In brackets")
    assert r"$\pm$ is the standard deviation over 3 training runs" in caption and r"\label{tab:table1-tiny}" in tex
    best = {min(base(row) for row in table1.rows if row.endswith(column)) for column in ("unguided", "/guided")}
    for row in table1.rows:
        number = rf"{base(row) + 0.1:.2f} $\pm$ 0.10"
        assert (rf"\textbf{{{number}}}" if base(row) in best else f"& {number}") in tex
        assert f"({table1.paper[row]['fd']:.2f})" in tex
    assert r"\multicolumn{2}{c}{without CFG}" in tex and "\\cmidrule(lr){6-7}\n\\cmidrule(lr){8-9}" in tex
    paper = checked(table(load_experiment("table1", "paper"), {}).tex())
    assert "Paper scale. In brackets" in paper and "not comparable" not in paper


def test_text_is_escaped(table1):
    odd = r"50% of #1 & a_b $x$ {y} ~ ^ \ < > | “é” ±"
    named = replace(table1, title=odd, labels={**table1.labels, "loss": {"ce": {odd: odd}, "diff": {odd: "[*x]"}}})
    tex = checked(table(named, everything(table1)).tex())
    assert escape_tex(odd) in tex and "{[}{*}x]" in tex
    assert escape_tex("\\_{") == r"\textbackslash{}\_\{"


def test_quoted_rows_stand_apart(table1, tmp_path):
    tex = checked(table(replace(table1, quoted=[ADM]), everything(table1)).tex())
    own, quoted = tex.split(r"\emph{Quoted from the paper (Table 4), not measured here:}")
    assert "ADM" not in own and r"ADM \& 100\% \#1 & 554M & 10.94 \\" in quoted
    speed = made_up("speed")
    tex = checked(table(speed, everything(speed, lambda *_: 5.0)).tex())
    headings = "parameters (paper) & head parameters & reconstruction FD-1k, vs training & seconds per image (paper)"
    assert headings in tex and "300k (407M) & 50k & 2.60 &" in tex


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_the_committed_tables_compile(tmp_path):
    tables = sorted(REPORTS.glob("*/*.tex"))
    assert len(tables) > 20
    inputs = "".join(f"\\input{{{path}}}\n\\clearpage\n" for path in tables)
    header = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    (tmp_path / "all.tex").write_text(f"{header}{inputs}\\end{{document}}\n")
    options = ["-interaction=nonstopmode", "-halt-on-error", "-draftmode"]
    done = subprocess.run(["pdflatex", *options, "all.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout, "wider than the text"
