"""The made-up records on which load is measured are what a real folder could hold."""

from __future__ import annotations

from mar_bench.config.ids import IdCheck
from mar_bench.records.record import read_records
from mar_bench.utils.errors import UserError
from tests.torture.load import FOREIGN, make_records


def test_made_up_records_are_valid_and_of_many_seeds(tmp_path):
    make_records(tmp_path, 500, ("smoke",))
    records, check, foreign = read_records(tmp_path), IdCheck(), 0
    assert len(records) == 500 and len({record.seeds for record in records.values()}) > 3
    for record in records.values():
        try:
            check(tmp_path, record)
        except UserError:
            foreign += 1
    assert 0 < foreign <= 500 // FOREIGN + 10
