"""No value and no file of a user ends in a traceback: a part of what ``make torture`` tries."""

from __future__ import annotations

import time

import pytest

from mar_bench.cluster.profile import load_profile
from mar_bench.config.experiment import load_experiment
from mar_bench.utils.errors import UserError
from tests.torture.extremes import field_extremes
from tests.torture.hostile_yaml import HEAD, WHOLE, hostile_yaml


def test_extreme_values_of_fields_are_accepted_or_refused_in_one_line():
    tried, accepted, failures = field_extremes(every=61)
    assert failures == [] and tried > 500 and accepted < tried / 5


def test_hostile_files_are_refused_in_one_line_and_at_once(tmp_path):
    (good := tmp_path / "good.yaml").write_text(WHOLE)
    load_experiment(str(good), "smoke")
    for name, file in hostile_yaml(tmp_path):
        for read in (lambda file=file: load_experiment(str(file), "smoke"), lambda file=file: load_profile(str(file))):
            begin = time.perf_counter()
            with pytest.raises(UserError) as caught:
                read()
            message = str(caught.value)
            assert file.name in message and "\n" not in message and len(message) < 600, name
            assert time.perf_counter() - begin < 2, name
    assert not (tmp_path / "pwned").exists() and HEAD in WHOLE
