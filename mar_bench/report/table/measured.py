"""Everything measured of one experiment; its table, notes and warnings are derived from this."""

from __future__ import annotations

import math

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.format import NOT_CHOSEN, lines_and_columns, metric_title, row_at
from mar_bench.report.frames import frame_of, main_setting, metric_value, select, spreads, values
from mar_bench.report.stats import Spread


class Measured:
    """Attributes: experiment, selection (row -> task -> records), left_out (how many records ``frames.select`` leaves
    out for their seeds), frame, spreads ((row, metric) -> Spread), speed_setting (the one setting whose seconds are
    shown), seconds (row -> seconds per image in it), speed_column (the last column with a timed row: guided)."""

    def __init__(self, experiment: Experiment, records: dict[str, Record]):
        self.experiment, self.selection = experiment, select(experiment, records)
        everything = select(experiment, records, on_any_seed=True)
        counts = [
            len({r.id for tasks in of.values() for r in tasks["generation"]}) for of in (everything, self.selection)
        ]
        self.left_out = counts[0] - counts[1]
        self.frame = frame_of(experiment, self.selection)
        self.spreads = spreads(self.frame)
        self.speed_setting = main_setting(self.frame)
        self.seconds = values(self.frame, "seconds_per_image", self.speed_setting)
        lines, columns = lines_and_columns(experiment)
        timed = [c for c in columns if any(row_at(experiment, line, c) in self.seconds for line in lines)]
        self.speed_column = (timed or columns)[-1]

    @property
    def is_empty(self) -> bool:
        """Whether no row has a generation record."""
        return not any(tasks["generation"] for tasks in self.selection.values())

    def spread(self, row: str, metric: str) -> Spread:
        """Mean and ± of a metric over the runs of a row; NaN without a number."""
        return self.spreads.get((row, metric), Spread())

    def once(self, metric: str) -> dict[str, float]:
        """Row -> what a line of the table has once: rfd, parameters, head_parameters, or seconds_per_image of
        ``speed_column``."""
        if metric != "seconds_per_image":
            return values(self.frame, metric)
        rows = {row_at(self.experiment, line, self.speed_column) for line in lines_and_columns(self.experiment)[0]}
        return {row: seconds for row, seconds in self.seconds.items() if row in rows}

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
        missing = NOT_CHOSEN if self.experiment.is_open(row) else "missing"
        return min(self.statuses(row), default=missing)  # done before failed

    def done(self, *tasks: str, metric: str | None = None) -> list[tuple[str, Record]]:
        """The rows' done records of the tasks, if ``metric`` is given only those with a number for it."""
        found = [(row, r) for task in tasks for row, of_row in self.selection.items() for r in of_row[task]]
        done = [(row, r) for row, r in found if r.status == "done"]
        return [(row, r) for row, r in done if metric is None or not math.isnan(metric_value(r, metric))]
