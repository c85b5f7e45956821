"""All that was measured of an experiment, taken from the records once: what its table is rendered from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.report.claims.orderings import Comparison
from mar_bench.report.format import NOT_CHOSEN, lines_and_columns, row_at
from mar_bench.report.frame import Selection, Spread, floor_of, main_setting, se_of, seconds_of, seed_values
from mar_bench.report.frame import spread as spread_of


@dataclass(frozen=True)
class Measured:
    """``left_out`` counts records on seeds that the experiment does not declare (cells.left_out)."""

    experiment: Experiment
    selection: Selection
    cells: pd.DataFrame
    floors: pd.DataFrame
    speeds: pd.DataFrame
    comparisons: list[Comparison]
    left_out: int = 0

    def spread(self, row: str, role: str) -> Spread:
        """A cell's mean of a metric with its deviation, of one run with its standard error; NaN without a number."""
        return spread_of(seed_values(self.cells, row, role), seed_values(self.cells, row, se_of(role)))

    def status(self, row: str) -> str:
        """``done`` (one run at least), ``failed``, ``absent`` from this scale, ``not chosen yet`` or ``missing``."""
        if row in self.experiment.absent:
            return "absent"
        found = set(self.cells.loc[self.cells["row"] == row, "status"])
        missing = NOT_CHOSEN if self.experiment.is_open(row) else "missing"
        return "done" if "done" in found else "failed" if "failed" in found else missing

    @property
    def speed_setting(self) -> str | None:
        """The one setting whose seconds are shown."""
        return main_setting(self.speeds)

    @property
    def speed_column(self) -> tuple[str, ...] | None:
        """The last column of the table of which a row was timed in that setting: guided sampling, as the paper's."""
        lines, columns = lines_and_columns(self.experiment)
        timed = set(self.speeds.loc[self.speeds["setting"] == self.speed_setting, "row"])
        found = (c for c in reversed(columns) if any(row_at(self.experiment, line, c) in timed for line in lines))
        return next(found, None)

    def beside(self, line: tuple[str, ...], name: str) -> float:
        """A number that a line of the table has once (checks.BESIDE), from any of its rows; NaN without one."""
        experiment, columns = self.experiment, lines_and_columns(self.experiment)[1]
        if name == "seconds_per_image":
            chosen = self.speed_column
            return math.nan if chosen is None else self._seconds(row_at(experiment, line, chosen))
        rows = [row_at(experiment, line, column) for column in columns]
        return next((v for v in self._values(rows, name) if not math.isnan(v)), math.nan)

    def _seconds(self, row: str) -> float:
        return seconds_of(self.speeds, row, self.speed_setting)

    def _values(self, rows: list[str], name: str) -> Iterator[float]:
        for row in rows:
            if name == "rfd":
                yield floor_of(self.floors, row)
                continue
            for record in self.selection.get(row, {}).get("generation", []):
                count = record.parameters.get({"parameters": "total", "head_parameters": "head"}[name])
                yield math.nan if record.status != "done" or count is None else float(count)
