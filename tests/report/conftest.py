"""Experiments that most tests of reports use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mar_bench.config.experiment import Experiment, load_experiment


@pytest.fixture(scope="session")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


@pytest.fixture(scope="session")
def paper() -> Experiment:
    """Table 1 at the paper's scale; no row waits for a choice."""
    return replace(load_experiment("table1", "paper"), sweeps={})
