"""The committed reports are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest

from mar_bench.config.ids import IdCheck
from mar_bench.records.record import RecordFolder
from mar_bench.report.claims.report import claims_file, judge, markdown
from mar_bench.report.figures.draw import plot_of
from mar_bench.report.figures.panels import fingerprint
from mar_bench.report.table.build import table

ROOT = Path(__file__).parents[2]
TABLES = sorted(path for path in ROOT.glob("reports/*/*.tex"))


@pytest.fixture(scope="module")
def records() -> RecordFolder:
    return RecordFolder(ROOT / "results/records", IdCheck())


@pytest.mark.parametrize("file", TABLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tables_and_figures(file, records):
    made = table(file.stem, records, file.parent.name)
    assert file.with_suffix(".md").read_text() == made.markdown(), "make reports"
    if (figure := file.with_suffix(".svg")).is_file():
        assert f"points {fingerprint(plot_of(made.experiment, made.frame))}" in figure.read_text(), "make reports"


@pytest.mark.parametrize("scale", [None, "tiny"])
def test_claims(scale, records):
    assert (ROOT / "reports" / (scale or "") / "claims.md").read_text() == markdown(
        judge(claims_file(), records, scale)
    )
