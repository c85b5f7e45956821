"""The published numbers: the contents of the files, and the errors for mistakes in them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from mar_bench.records.paper import COLUMNS, Finding, PublishedRow, findings, lookup, paper_dir, published
from mar_bench.utils.errors import UserError

SUMS = {  # table -> rows, values, (column, metric) -> sum; added up from the paper's text, not from the files
    "table1": (8, 32, {
        ("unguided", "fd"): 92.57, ("unguided", "is"): 996.0, ("guided", "fd"): 29.05, ("guided", "is"): 2069.3,
    }),
    "table2": (5, 25, {
        ("", "rfd"): 11.02, ("unguided", "fd"): 24.26, ("unguided", "is"): 917.7, ("guided", "fd"): 12.87,
        ("guided", "is"): 1394.9,
    }),
    "table3": (4, 28, {
        ("", "head_parameters"): 74e6, ("", "head_parameters_code"): 71_749_000, ("", "seconds_per_image"): 1.153,
        ("unguided", "fd"): 12.49, ("unguided", "is"): 816.0, ("guided", "fd"): 8.44, ("guided", "is"): 1135.5,
    }),
    "table4": (15, 103, {
        ("", "parameters"): 8904e6, ("", "parameters_code"): 1_628_654_176, ("unguided", "fd"): 85.22,
        ("unguided", "is"): 2005.2, ("unguided", "precision"): 6.7, ("unguided", "recall"): 5.48,
        ("guided", "fd"): 28.95, ("guided", "is"): 3036.2, ("guided", "precision"): 8.21, ("guided", "recall"): 5.73,
    }),
    "table5": (3, 6, {("", "fd"): 21.01, ("", "is"): 493.1}),
    "table6": (10, 30, {
        ("", "parameters"): 481e6, ("unguided", "fd"): 61.65, ("unguided", "is"): 969.9, ("guided", "fd"): 25.58,
        ("guided", "is"): 1811.7,
    }),
    "fig6": (1, 2, {("guided", "seconds_per_image"): 0.288, ("guided", "fd"): 1.97}),
    "appendix_pixel": (1, 1, {("", "fd"): 2.93}),
    "appendix_l2": (1, 1, {("", "fd_above"): 100}),
}  # fmt: skip
HEADER = ",".join(COLUMNS)
GOOD = """\
t,mar/ce,"MAR (default), CrossEnt",unguided,fd,8.79,Table 1
t,mar/ce,"MAR (default), CrossEnt",guided,fd,3.69,Table 1
t,mar/ce,"MAR (default), CrossEnt",,parameters_code,478326304,official code
t,l2,L2 loss,,fd_above,100,Appendix D.3
"""


# --- the files ------------------------------------------------------------------------------------------


def test_every_published_table_is_counted_here():
    assert {path.stem for path in paper_dir().glob("*.csv")} == {*SUMS, "small_scale"}


@pytest.mark.parametrize("table", SUMS)
def test_counts_and_sums(table):
    rows, values, sums = SUMS[table]
    found = defaultdict(list)
    for row in published(table).values():
        for column, metrics in row.numbers.items():
            for metric, value in metrics.items():
                found[column, metric].append(value)
    assert len(published(table)) == rows
    assert sum(map(len, found.values())) == values
    assert {key: sum(v) for key, v in found.items()} == pytest.approx(sums, rel=1e-12)


@pytest.mark.parametrize(
    ("reference", "column", "numbers"),
    [
        ("table1/random_bidirectional/diff/guided", "", {"fd": 1.84, "is": 292.7}),
        ("table2/vq16", "", {"rfd": 5.87}),
        ("table2/vq16", "unguided", {"fd": 7.82, "is": 151.7}),
        ("table4/mar_b", "", {"parameters": 208e6, "parameters_code": 207_924_768}),
        ("table4/mar_h", "", {"parameters": 943e6, "parameters_code": 942_403_104}),
        ("table4/mar_h/guided", "", {"fd": 1.55, "is": 303.7, "precision": 0.81, "recall": 0.62}),
        ("table6/mar_l", "guided", {"fd": 1.73, "is": 279.9}),
        ("appendix_l2/l2", "", {"fd_above": 100.0}),
    ],
)
def test_single_cells(reference, column, numbers):
    assert lookup(reference)[column] == numbers


def test_blanks_of_the_paper_are_absent():
    table4 = {name: row.numbers for name, row in published("table4").items()}
    assert "guided" not in table4["vqgan_ar"] and "" not in table4["diffit"] and "unguided" not in table4["uvit_h_2_g"]
    assert "is" not in table4["givt"]["unguided"] and "precision" not in table4["vdmpp"]["guided"]


# --- where they lie -------------------------------------------------------------------------------------


# --- reading, and mistakes ------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("MAR_BENCH_PAPER", str(tmp_path))
    write(tmp_path)
    return tmp_path


def write(folder: Path, lines: str = GOOD, header: str = HEADER) -> Path:
    file = folder / "t.csv"
    file.write_text(f"{header}\n{lines}", encoding="utf-8")
    return file


def mistake(call, argument: str) -> str:
    with pytest.raises(UserError) as caught:
        call(argument)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_rows_cells_and_lookup(folder):
    numbers = {"unguided": {"fd": 8.79}, "guided": {"fd": 3.69}, "": {"parameters_code": 478326304.0}}
    rows = {
        "mar/ce": PublishedRow("t", "mar/ce", "MAR (default), CrossEnt", numbers, "Table 1; official code"),
        "l2": PublishedRow("t", "l2", "L2 loss", {"": {"fd_above": 100.0}}, "Appendix D.3"),
    }
    assert published("t") == rows
    assert lookup("t/mar/ce/guided") == {"": {"fd": 3.69}} and lookup("t/mar/ce") == numbers
    write(folder, GOOD.replace(",fd,", ", fd ,").replace("\n", ",seen\n\n"), f"\ufeff{HEADER},note")
    assert published("t") == rows, "spaces, blank lines, a byte order mark and further columns are ignored"


@pytest.mark.parametrize(
    ("old", "new", "line", "hint"),
    [
        ("8.79", "eight", 2, "eight"),
        ("8.79", "nan", 2, "finite"),
        ("8.79", "", 2, "finite"),
        ("guided,fd,3.69", "unguided,fd,3.69", 3, "another fd"),
        ("t,l2,L2 loss,,fd_above", "t,,L2 loss,,fd_above", 5, "only column may be empty"),
        ("t,l2", "table3,l2", 5, "table must be 't'"),
        ('CrossEnt",guided', 'CE",guided', 3, "another label"),
        ("L2 loss", "L2, loss", 5, "double quotes"),
        (",Appendix D.3", "", 5, "double quotes"),
    ],
)
def test_mistakes_in_a_line(folder, old, new, line, hint):
    file = write(folder, GOOD.replace(old, new, 1))
    message = mistake(published, "t")
    assert str(file) in message and hint in message and f"line {line}:" in message


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("tabel1/mar", "did you mean 'table1'?"),
        ("table2/vq16/ungided", "did you mean 'vq16/unguided'?"),
        ("table1/mar/c", "did you mean 'mar/ce'?"),
        ("table2", "vq16"),
        ("", "no published table ''"),
    ],
)
def test_a_reference_to_nothing(reference, hint):
    assert hint in mistake(lookup, reference)


def test_findings_of_others(folder):
    file = folder / "small_scale.csv"
    text = 'claim,source,table,setting,metric,system,value,seen\norders,arXiv 1,Table 1,"A, B",FID,raster,25.40,text\n'
    file.write_text(text)
    assert findings(["orders"]) == [Finding("orders", "arXiv 1", "Table 1", "A, B", "FID", "raster", "25.40", "text")]
    assert "did you mean 'orders'?" in mistake(findings, ["order"])
    for old, new, hint in (("25.40", "low", "value must be a number"), (",text", ",", "may be empty")):
        file.write_text(text.replace(old, new))
        message = mistake(findings, ["orders"])
        assert str(file) in message and hint in message and "line 2:" in message


def test_committed_findings_say_where_they_were_seen():
    assert {finding.claim for finding in findings(["orders", "likelihood"])} == {"orders", "likelihood"}
    assert {f.value for f in findings(["orders"]) if "RAR-L" in f.setting} == {"3.08", "3.01", "2.48", "2.43", "2.18"}
