"""Commands as Python functions: they return their results, and an exit code other than 0 is an exception."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import typer

from mar_bench.cli import experiments
from mar_bench.cli.metrics import records_of
from mar_bench.config.ids import IdCheck
from mar_bench.data.datasets import silent
from mar_bench.pipeline import eval_images as scoring
from mar_bench.pipeline.request import load
from mar_bench.pipeline.store import default_places
from mar_bench.records.record import Record, RecordFolder
from mar_bench.report import compare as comparing
from mar_bench.report.frames import frame


def run(
    experiment: str,
    scale: str = "tiny",
    overrides: Sequence[str] = (),
    *,
    only: str | None = None,
    seeds: Sequence[int] = (0,),
    sampling_seeds: Sequence[int] = (0,),
    jobs: int | None = None,
    speed: bool = True,
    runs: str | None = None,
    records: str | None = None,
) -> pd.DataFrame:
    """Train, sample and measure what is not done yet, and return the experiment's frame (``mar_bench.frame``).

    Raises UserError for a mistake, RuntimeError if a job failed (its records say why), and KeyboardInterrupt if it was
    stopped; the same call resumes."""
    try:
        experiments.run(
            words=[experiment, *overrides],
            scale=scale,
            jobs=jobs,
            only=only,
            seeds=",".join(map(str, seeds)),
            sampling_seeds=",".join(map(str, sampling_seeds)),
            no_speed=not speed,
            runs=runs,
            records=records,
        )
    except typer.Exit as ended:
        if ended.exit_code == 130:
            raise KeyboardInterrupt from None
        raise RuntimeError(f"{experiment}: jobs failed; their records have the errors") from None
    found = RecordFolder(default_places(runs, records).records, IdCheck())
    return frame(load(experiment, scale, list(overrides), found), found)


def compare(
    one: str, other: str, scale: str = "tiny", overrides: Sequence[str] = (), records: str | None = None
) -> pd.DataFrame:
    """Two rows or records, metric by metric: means, difference with its interval, and verdict (``report.compare``).

    Raises UserError if one has no records."""
    sides = [(name, records_of(name, list(overrides), scale, records)) for name in (one, other)]
    return comparing.frame(*sides[0], *sides[1])


def eval_images(
    images: str,
    reference: str,
    extractor: str = "inception",
    overrides: Sequence[str] = (),
    *,
    indexed: bool = True,
    weights: str = "weights",
) -> Record:
    """Score a folder or npz of images against a folder or npz of real ones; ``metrics`` of the record has the numbers.

    ``overrides`` are settings such as ``metrics.is_splits=5``; ``indexed`` says that numbers in file names order the
    images. Raises UserError for sets that cannot be compared."""
    source, places = scoring.open_source(images, indexed), default_places(None, None)
    space = scoring.open_extractor(extractor, None, Path(weights))
    return scoring.evaluate(source, reference, space, list(overrides), places, lambda what: silent, save=False)
