"""Everything measured of one experiment; its table, notes and warnings are derived from this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.format import NOT_CHOSEN, lines_and_columns, metric_title, row_at
from mar_bench.report.frames import Selection, frame_of, main_setting, metric_value, spreads, values
from mar_bench.report.spread import Spread


@dataclass(frozen=True)
class Measured:
    """``left_out`` counts records on seeds that the experiment does not declare (``frames.left_out``)."""

    experiment: Experiment
    selection: Selection
    left_out: int = 0

    @cached_property
    def frame(self) -> pd.DataFrame:
        return frame_of(self.experiment, self.selection)

    @cached_property
    def spreads(self) -> dict[tuple[str, str], Spread]:
        return spreads(self.frame)

    def spread(self, row: str, metric: str) -> Spread:
        """Mean and ± of a metric over the runs of a row; NaN without a number."""
        return self.spreads.get((row, metric), Spread())

    def once(self, metric: str) -> dict[str, float]:
        """Row -> what a line of the table has once: rfd, parameters, head_parameters or seconds_per_image.

        Seconds are those of ``speed_setting`` and ``speed_column``."""
        if metric != "seconds_per_image":
            return values(self.frame, metric)
        rows = {row_at(self.experiment, line, self.speed_column) for line in lines_and_columns(self.experiment)[0]}
        return {row: seconds for row, seconds in self.seconds.items() if row in rows}

    @cached_property
    def speed_setting(self) -> str | None:
        """The one setting whose seconds are shown."""
        return main_setting(self.frame)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Row -> seconds per image in ``speed_setting``."""
        return values(self.frame, "seconds_per_image", self.speed_setting)

    @cached_property
    def speed_column(self) -> tuple[str, ...]:
        """The last column of the table with a timed row: guided sampling, as in the paper."""
        lines, columns = lines_and_columns(self.experiment)
        timed = [c for c in columns if any(row_at(self.experiment, line, c) in self.seconds for line in lines)]
        return (timed or columns)[-1]

    @property
    def reconstruction_distance(self) -> str:
        """``FD-1k``: the distance of the reconstructed images, whose number may differ from that of the samples."""
        counts = {int(n) for n in self.frame.loc[self.frame["metric"] == "rfd", "num_images"].dropna()}
        return metric_title(self.experiment, "fd", named=False, images=counts.pop() if len(counts) == 1 else None)

    def statuses(self, row: str) -> set[str]:
        """The statuses of the row's generation records."""
        return {record.status for record in self.selection.get(row, {}).get("generation", [])}

    def status(self, row: str) -> str:
        """``done`` (at least one run), ``failed``, ``absent`` at this scale, ``not chosen yet`` or ``missing``."""
        if row in self.experiment.absent:
            return "absent"
        found = self.statuses(row)
        missing = NOT_CHOSEN if self.experiment.is_open(row) else "missing"
        return "done" if "done" in found else "failed" if "failed" in found else missing

    def done(self, *tasks: str, metric: str | None = None) -> list[tuple[str, Record]]:
        """The rows' done records of the tasks, if ``metric`` is given only those with a number for it."""
        found = [(row, r) for task in tasks for row, of_row in self.selection.items() for r in of_row[task]]
        done = [(row, r) for row, r in found if r.status == "done"]
        return [(row, r) for row, r in done if metric is None or not math.isnan(metric_value(r, metric))]
