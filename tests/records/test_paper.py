"""The published numbers: what the files hold, and what reading them says of a mistake."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

import mar_bench
from mar_bench.config.experiment import load_experiment
from mar_bench.records.paper import COLUMNS, PublishedRow, cells, lookup, paper_dir, paper_files, published
from mar_bench.utils.errors import UserError

SUMS = {  # table -> rows, values, (column, metric) -> sum; added up from the paper's text, not from the files
    "table1": (
        8,
        32,
        {
            ("unguided", "fd"): 92.57,
            ("unguided", "is"): 996.0,
            ("guided", "fd"): 29.05,
            ("guided", "is"): 2069.3,
        },
    ),
    "table2": (
        5,
        25,
        {
            ("", "rfd"): 11.02,
            ("unguided", "fd"): 24.26,
            ("unguided", "is"): 917.7,
            ("guided", "fd"): 12.87,
            ("guided", "is"): 1394.9,
        },
    ),
    "table3": (
        4,
        28,
        {
            ("", "head_parameters"): 74e6,
            ("", "head_parameters_code"): 71_749_000,
            ("", "seconds_per_image"): 1.153,
            ("unguided", "fd"): 12.49,
            ("unguided", "is"): 816.0,
            ("guided", "fd"): 8.44,
            ("guided", "is"): 1135.5,
        },
    ),
    "table4": (
        15,
        103,
        {
            ("", "parameters"): 8_904e6,
            ("", "parameters_code"): 1_628_654_176,
            ("unguided", "fd"): 85.22,
            ("unguided", "is"): 2005.2,
            ("unguided", "precision"): 6.70,
            ("unguided", "recall"): 5.48,
            ("guided", "fd"): 28.95,
            ("guided", "is"): 3036.2,
            ("guided", "precision"): 8.21,
            ("guided", "recall"): 5.73,
        },
    ),
    "table5": (3, 6, {("", "fd"): 21.01, ("", "is"): 493.1}),
    "table6": (
        10,
        30,
        {
            ("", "parameters"): 481e6,
            ("unguided", "fd"): 61.65,
            ("unguided", "is"): 969.9,
            ("guided", "fd"): 25.58,
            ("guided", "is"): 1811.7,
        },
    ),
    "fig6": (1, 2, {("guided", "seconds_per_image"): 0.288, ("guided", "fd"): 1.97}),
    "appendix_pixel": (1, 1, {("", "fd"): 2.93}),
    "appendix_l2": (1, 1, {("", "fd_above"): 100}),
}
HEADER = ",".join(COLUMNS)
GOOD = """\
t,mar/ce,"MAR (default), CrossEnt",unguided,fd,8.79,Table 1
t,mar/ce,"MAR (default), CrossEnt",guided,fd,3.69,Table 1
t,mar/ce,"MAR (default), CrossEnt",,parameters_code,478326304,official code
t,l2,L2 loss,,fd_above,100,Appendix D.3
"""


# --- the files ------------------------------------------------------------------------------------------


def test_every_published_table_is_counted_here():
    assert set(paper_files()) == set(SUMS)


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


def test_the_order_is_the_papers():
    assert list(published("table2")) == ["vq16", "kl16", "kl8", "consistency", "kl16_imagenet"]
    assert list(published("table4"))[:3] == ["adm", "vdmpp", "vqgan_ar"]
    assert list(published("table4"))[-3:] == ["mar_b", "mar_l", "mar_h"]


@pytest.mark.parametrize(
    ("reference", "numbers"),
    [
        ("table1/random_bidirectional/diff/guided", {"fd": 1.84, "is": 292.7}),
        ("table2/vq16", {"rfd": 5.87}),
        ("table2/vq16/unguided", {"fd": 7.82, "is": 151.7}),
        (
            "table3/w1024",
            {"head_parameters": 21e6, "head_parameters_code": 20_260_000, "seconds_per_image": 0.288},
        ),
        ("table4/dit_xl_2", {"parameters": 675e6}),
        ("table4/givt/guided", {"fd": 3.35, "precision": 0.84, "recall": 0.53}),
        ("table4/mar_b", {"parameters": 208e6, "parameters_code": 207_924_768}),
        ("table4/mar_l", {"parameters": 479e6, "parameters_code": 478_326_304}),
        ("table4/mar_h", {"parameters": 943e6, "parameters_code": 942_403_104}),
        ("table4/mar_h/guided", {"fd": 1.55, "is": 303.7, "precision": 0.81, "recall": 0.62}),
        ("table5/ce_confidence", {"fd": 8.72, "is": 145.6}),
        ("table6/edm2_xxl/guided", {"fd": 1.81}),
        ("table6/mar_l/guided", {"fd": 1.73, "is": 279.9}),
        ("fig6/mar_diff_64/guided", {"seconds_per_image": 0.288, "fd": 1.97}),
        ("appendix_pixel/pixel", {"fd": 2.93}),
        ("appendix_l2/l2", {"fd_above": 100.0}),
    ],
)
def test_single_cells(reference, numbers):
    assert lookup(reference) == numbers


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("table1/mar/diff/unguided", "table2/kl16/unguided"),
        ("table1/mar/diff/guided", "table2/kl16/guided"),
        ("table1/mar/ce/unguided", "table5/ce_random"),
        ("table1/mar/diff/unguided", "table5/diff_random"),
        ("table2/kl16_imagenet/unguided", "table3/w1024/unguided"),
        ("table2/kl16_imagenet/guided", "table3/w1024/guided"),
    ],
)
def test_what_the_paper_prints_twice_is_the_same(one, other):
    assert lookup(one) == lookup(other)


def test_blanks_of_the_paper_are_absent():
    table4 = cells("table4")
    assert "vqgan_ar/guided" not in table4 and "diffit" not in table4 and "uvit_h_2_g/unguided" not in table4
    assert "is" not in table4["givt/unguided"] and "precision" not in table4["vdmpp/guided"]
    assert "givt/guided" not in cells("table6")


def test_labels_and_sources_are_the_papers():
    row = published("table4")["mar_l"]
    assert (row.table, row.row, row.label, row.source) == ("table4", "mar_l", "MAR-L", "Table 4; official code")
    assert published("table1")["mar/diff"].label == "MAR (default), DiffLoss"
    sources = [row.source for name in ("appendix_pixel", "appendix_l2") for row in published(name).values()]
    assert sources == ["Appendix D.1", "Appendix D.3"]
    for table in SUMS:
        labels = [row.label for row in published(table).values()]
        assert len(set(labels)) == len(labels)


def test_table1_is_what_its_experiment_says():  # to be deleted with the experiment's own `paper` block
    assert cells("table1") == load_experiment("table1", "paper").paper


# --- where they lie -------------------------------------------------------------------------------------


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MAR_BENCH_PAPER", raising=False)
    assert paper_dir() == Path(mar_bench.__file__).parents[1] / "results/paper"
    monkeypatch.setattr(mar_bench, "__file__", str(tmp_path / "site-packages/mar_bench/__init__.py"))
    assert paper_dir() == tmp_path / "site-packages/mar_bench/paper"
    (tmp_path / "site-packages/results/paper").mkdir(parents=True)
    assert paper_dir() == tmp_path / "site-packages/results/paper"
    monkeypatch.setenv("MAR_BENCH_PAPER", str(tmp_path / "mine"))
    assert paper_dir() == tmp_path / "mine"


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


def test_reading(folder):
    numbers = {"unguided": {"fd": 8.79}, "guided": {"fd": 3.69}, "": {"parameters_code": 478326304.0}}
    assert published("t") == {
        "mar/ce": PublishedRow("t", "mar/ce", "MAR (default), CrossEnt", numbers, "Table 1; official code"),
        "l2": PublishedRow("t", "l2", "L2 loss", {"": {"fd_above": 100.0}}, "Appendix D.3"),
    }
    assert cells("t") == {
        "mar/ce/unguided": {"fd": 8.79},
        "mar/ce/guided": {"fd": 3.69},
        "mar/ce": {"parameters_code": 478326304.0},
        "l2": {"fd_above": 100.0},
    }
    assert lookup("t/mar/ce") == {"parameters_code": 478326304.0}


def test_spaces_blank_lines_a_byte_order_mark_and_other_columns_do_no_harm(folder):
    plain = published("t")
    lines = GOOD.replace(",fd,", ", fd ,").replace("\n", ",seen\n\n")
    write(folder, lines, f"\ufeff{HEADER},note")
    assert published("t") == plain


def test_cells_of_the_same_name_lose_nothing(folder):
    write(folder, "t,a/b,one,,fd,1,x\nt,a,two,b,is,2,x\n")
    assert cells("t") == {"a/b": {"fd": 1.0, "is": 2.0}}


@pytest.mark.parametrize(
    ("old", "new", "line", "hints"),
    [
        ("8.79", "eight", 2, ("value 'eight'", "number")),
        ("8.79", "nan", 2, ("value 'nan'",)),
        ("8.79", "-inf", 2, ("value '-inf'",)),
        ("8.79", "1e999", 2, ("value '1e999'",)),
        ("8.79", "-", 2, ("value '-'", "left out")),
        ("8.79", '"8,79"', 2, ("value '8,79'", "3.50")),
        ("8.79", "", 2, ("value is empty",)),
        ("guided,fd,3.69", "unguided,fd,3.69", 3, ("fd of 'mar/ce/unguided'", "line 2", "remove one")),
        ("t,l2,L2 loss,,fd_above", "t,,L2 loss,,fd_above", 5, ("row is empty", "fill it in")),
        ("fd_above", " ", 5, ("metric is empty", "fill it in")),
        ("L2 loss", "", 5, ("label is empty",)),
        ("Appendix D.3", "", 5, ("source is empty",)),
        ("t,l2", ",l2", 5, ("table is empty",)),
        ("t,l2", "table3,l2", 5, ("table 'table3'", "write 't'", "move")),
        ('CrossEnt",guided', 'CE",guided', 3, ("row 'mar/ce'", "'MAR (default), CE'", "CrossEnt", "keep one")),
        ("L2 loss", "L2, loss", 5, ("expected 7 cells", "double quotes")),
        (",Appendix D.3", "", 5, ("expected 7 cells",)),
        ("L2 loss", '"L2 loss', 5, ("not readable as CSV", "double quotes")),
    ],
)
def test_mistakes_in_a_line(folder, old, new, line, hints):
    assert GOOD.count(old) == 1 or old == "8.79"
    file = write(folder, GOOD.replace(old, new, 1))
    message = mistake(published, "t")
    assert message.startswith(f"{file}:{line}: ")
    assert all(hint in message for hint in hints), message
    assert mistake(cells, "t") == mistake(lookup, "t/l2") == message


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column(folder, name):
    file = write(folder, header=HEADER.replace(name, "other"))
    message = mistake(published, "t")
    assert message == f"{file}:1: no column {name}: the first line is {HEADER}"


def test_files_that_are_none(folder):
    (folder / "t.csv").write_bytes(b"")
    assert "t.csv:1: no column table, row, label" in mistake(published, "t")
    (folder / "t.csv").write_bytes(b"\xff\xfe\x00")
    assert "t.csv: not readable as UTF-8" in mistake(published, "t")
    (folder / "t.csv").unlink()
    (folder / "t.csv").mkdir()
    assert "t.csv: not readable" in mistake(published, "t")
    (folder / "t.csv").rmdir()
    message = mistake(published, "t")
    assert str(folder) in message and "set MAR_BENCH_PAPER" in message


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        ("tabel1", "did you mean 'table1'?"),
        ("../paper/table1", "did you mean 'table1'?"),
        ("fig4", "did you mean 'fig6'?"),
        ("", "known: appendix_l2, appendix_pixel, fig6, table1, table2, table3, table4, table5, table6"),
    ],
)
def test_a_table_that_is_not_there(table, hint):
    assert mistake(published, table) == f"no published table '{table}' in {paper_dir()}: {hint}"


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("table9/vq16/unguided", "no published table 'table9'"),
        ("table2/vq61/unguided", "did you mean 'vq16'?"),
        ("table2/vq16/ungided", "did you mean 'vq16/unguided'?"),
        ("table1/mar/ce", "did you mean 'mar/ce/guided'?"),
        ("table5/ce_random/guided", "did you mean 'ce_random'?"),
        ("table4/something", "known: adm, diffit, "),
        ("table4/something/guided", "known: adm, diffit, "),
        ("table2", "known: consistency, kl16, kl16_imagenet, kl8, vq16"),
        ("", "no published table ''"),
    ],
)
def test_a_reference_to_nothing(reference, hint):
    assert hint in mistake(lookup, reference)


def test_changing_what_was_read_changes_nothing():
    lookup("table2/vq16")["rfd"] = 0.0
    cells("table2")["vq16"]["rfd"] = 0.0
    assert lookup("table2/vq16") == {"rfd": 5.87}
