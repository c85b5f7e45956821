"""Published rows of systems that the suite does not measure, as claims show them."""

from __future__ import annotations

from mar_bench.config.experiment import Experiment
from mar_bench.report.table.grid import quoted_grid


def markdown(experiment: Experiment) -> str:
    """A table under its heading; empty without such rows."""
    grid = quoted_grid(experiment)
    return grid.markdown() if grid else ""
