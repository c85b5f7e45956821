"""Texts of other people, in labels and records, do nothing in any format but stand there."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace

import pandas as pd
import pytest

from mar_bench.cli import main
from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record, read_record, write_record
from mar_bench.report import format as fmt
from mar_bench.report.claims.report import claims_file, judge, markdown
from mar_bench.report.compare import markdown as compared
from mar_bench.report.figures.draw import draw
from mar_bench.report.show_record import record_text
from mar_bench.report.table.build import table
from mar_bench.utils import console
from tests.made_up import everything, generation
from tests.report.test_latex import checked

EVIL = "=1+1 <script>a</script> [b](http://c) d\\|e|f \x1b[31m\u202e $\\frac{1 $ `g`"
LINES = f"{EVIL}\n# heading\n[b]: http://c"
ACTIVE = ("<script", "](http", "]: http", "\x1b", "\u202e", "\udcff")
ROW = "mar/diff/guided"


@pytest.fixture
def evil(table1) -> Experiment:
    labels = {axis: {name: {axis: f"{EVIL} {name}"} for name in of} for axis, of in table1.labels.items()}
    return replace(table1, title=EVIL, source=EVIL, labels=labels)


@pytest.fixture
def records(table1) -> dict[str, Record]:
    found = everything(table1)
    failed = generation(table1, ROW, 5, 0, None)
    failed = replace(failed, error=f"{EVIL}\n{LINES}")
    for record in (failed, *found.values()):
        reference = {**record.protocol.get("reference", {}), "name": LINES}
        protocol = {**record.protocol, "reference": reference, "label_mode": LINES}
        if record.task == "speed":
            protocol["device"] = LINES
        made = {"device": LINES, "git": {"commit": LINES}, "command": LINES}
        found[record.id] = replace(record, protocol=protocol, provenance=made)
    return found


def inert(text: str) -> str:
    assert not [part for part in ACTIVE if part in text] and "\n# heading" not in text
    return text


def test_markdown(evil, records):
    text = inert(table(evil, records).markdown())
    parts = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    assert "&#124;" in text and "\\|" in text and parts and parts[0] == parts[1] == parts[2]
    ones, others = [[r for r in records.values() if f"{row}/guided" in r.id or r.task == "generation"][i : i + 1]
                    for i, row in enumerate(("ce", "diff"))]  # fmt: skip
    inert(compared(f"{ROW} {LINES}", ones, f"{ROW} {LINES}", others))
    inert(markdown(judge(claims_file(), records, "tiny")))


def test_csv_starts_no_formula(evil, records):
    text = table(evil, records).csv()
    frame = pd.read_csv(io.StringIO(text))
    assert frame["mean"].dtype == float and set("\x1b\u202e").isdisjoint(text)
    assert all(cell.startswith("'=1+1") and "\\n# heading" in cell for cell in frame["speed_setting"].dropna())
    assert frame["speed_setting"].notna().any()
    cells = ["=1+1", "+a", "-b", "@c", "\tf", "\uff1d1", "-1.5", "-", "plain"]
    made = fmt.csv_text(pd.DataFrame({"=head": cells, "number": [-1.0] * len(cells)}))
    expected = ["'=1+1", "'+a", "'-b", "'@c", "\\tf", "'\uff1d1", "-1.5", "'-", "plain"]
    assert made.splitlines() == ["'=head,number", *(f"{cell},-1" for cell in expected)]


def test_latex(evil, records):
    text = checked(table(replace(evil, scale="a}\\input b"), records).tex())
    assert "\x1b" not in text and r"\label{tab:table1-a--input-b}" in text


@pytest.mark.parametrize("kind", ["speed", "curve"])
def test_figures_show_every_character_as_it_is(kind, evil, records, tmp_path):
    evil = replace(evil, figure={"kind": kind, "x": "sampling.guidance_scale", "x_title": EVIL})
    paths = draw(evil, records, tmp_path / "figure")
    assert len(paths) == 3 and xml.parse(tmp_path / "figure.svg")


def test_a_terminal_gets_no_control_characters(records, monkeypatch, capsys, tmp_path):
    heading, _, line = console.console_table([f"a{EVIL}"], [[LINES]]).split("\n")
    assert "\\x1b" in heading and "\\n# heading" in line and set("\x1b\u202e").isdisjoint(heading + line)
    for record in records.values():
        assert set("\x1b\u202e").isdisjoint(record_text(record))
    for name in ("no\x1b[31m\nsuch", "a\udcff.json"):
        monkeypatch.setattr(sys, "argv", ["mar-bench", "show", name, "--records", str(tmp_path)])
        with pytest.raises(SystemExit):
            main()
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and not set("\x1b\udcff") & set(message) and message.startswith("error: ")


def test_what_can_be_printed_stays_as_it_is():
    text = "Fréchet ± 5–6 \u00a0 日本 🙂 a\\b"
    assert console.printable(text) == text and console.printable("a\nb\tc\x7f\x85", keep="\n") == "a\nb\\tc\\x7f\\x85"
    assert fmt.inline("a < b <= c, 1<2, [x] (y) *z*") == "a < b <= c, 1<2, [x] (y) *z*"


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ("reference", "sha256"),
        ("extractor", "name"),
        (None, "extractor"),
        (None, "num_generated"),
        (None, "label_mode"),
    ],
)
@pytest.mark.parametrize("gone", [True, False])
def test_a_record_with_gaps_is_shown_and_tabulated(block, key, gone, table1, tmp_path):
    record = generation(table1, ROW, 0, 0, 5.0)
    protocol = json.loads(json.dumps(record.protocol))
    inner = protocol[block] if block else protocol
    inner.pop(key)
    if not gone:
        inner[key] = None
    spec = {**record.spec, "sampling": {**record.spec["sampling"], "seed": None}}
    found = read_record(write_record(tmp_path, replace(record, protocol=protocol, spec=spec)))
    assert found.seeds == (0, 0) and "5.00" in table(table1, {found.id: found}).markdown()
    assert found.id in record_text(found)
