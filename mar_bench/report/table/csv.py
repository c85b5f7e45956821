"""The table for machines: one line per cell and metric, under the records' own metric names."""

from __future__ import annotations

import math
from statistics import mean

import pandas as pd

from mar_bench.records.metrics import metric_name
from mar_bench.report.frame import (
    SeedValues,
    extractor_block,
    floor_of,
    is_shown,
    roles,
    se_of,
    seconds_of,
    seed_values,
)
from mar_bench.report.table.data import Measured
from mar_bench.report.table.sweeps import chosen_words
from mar_bench.report.table.versus_paper import agreement


def tidy(table: Measured) -> pd.DataFrame:
    """The table's frame. ``seconds_per_image`` is of one setting throughout, named in ``speed_setting``.

    ``difference`` and ``verdict`` are against the paper: "not comparable" where it has a number that is measured
    otherwise. ``chosen`` says at which point of its sweep a row stands."""
    experiment, setting = table.experiment, table.speed_setting
    lines = []
    for row, spec in experiment.rows.items():
        seconds = seconds_of(table.speeds, row, setting)
        for role, metric in roles(experiment).items():
            if not is_shown(metric, extractor_block(spec)):
                continue
            found, against = table.spread(row, role), agreement(table, row, metric)
            lines.append(
                {
                    "experiment": experiment.id,
                    "scale": experiment.scale,
                    "row": row,
                    **experiment.bundles(row),
                    "metric": metric_name(metric, extractor_block(spec)),
                    "status": table.status(row),
                    "mean": found.mean,
                    "sd": found.sd if found.over in ("training", "sampling") else math.nan,
                    "sd_training": found.sd_training,
                    "sd_sampling": found.sd_sampling,
                    "se": _mean_of(seed_values(table.cells, row, se_of(role))),
                    "n_train_seeds": len(found.train_seeds),
                    "n_sampling_seeds": len(found.sampling_seeds),
                    "num_generated": _images(table.cells, row),
                    "paper": against.published,
                    "difference": against.difference,
                    "verdict": against.verdict,
                    "chosen": chosen_words(experiment, row),
                    "floor_fd": floor_of(table.floors, row),
                    "seconds_per_image": seconds,
                    "speed_setting": None if math.isnan(seconds) else setting,
                    "records": " ".join(_record_ids(table.cells, row)),
                }
            )
    return pd.DataFrame(lines)


def _mean_of(values: SeedValues) -> float:
    """Of the runs' own standard errors: that of one run, not of their mean."""
    return mean(values.values()) if values else math.nan


def _images(cells: pd.DataFrame, row: str) -> str:
    """How many images a run of the cell generated; several numbers joined by a slash, empty where unknown."""
    return "/".join(f"{n:.0f}" for n in sorted(set(cells.loc[cells["row"] == row, "num_generated"].dropna())))


def _record_ids(cells: pd.DataFrame, row: str) -> list[str]:
    """The records that the cell's numbers are of, or its failed ones where none is done."""
    mine = cells[cells["row"] == row]
    done = mine[mine["status"] == "done"]
    return list((done if len(done) else mine)["id"])
