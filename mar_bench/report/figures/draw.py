"""The figure of an experiment, by the kind that it names."""

from __future__ import annotations

from pathlib import Path

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.figures.curve import curve
from mar_bench.report.figures.speed import speed_accuracy
from mar_bench.report.figures.tradeoff import tradeoff
from mar_bench.utils.errors import UserError


def draw(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Write ``stem`` with .png, .pdf and .svg; return their paths. Equal records give equal bytes.

    Without a ``figure`` block, or one of speed that names neither line nor point, distance against seconds per image.
    Raises UserError where there is nothing to draw, and for a gallery, which is of images and not of records."""
    kind = experiment.figure.get("kind", "speed")
    if kind == "gallery":
        scale = experiment.scale
        raise UserError(f"{experiment.id} is a gallery: `mar-bench sample {experiment.id} --scale {scale}` draws it")
    if kind == "curve":
        return curve(experiment, records, stem)
    if experiment.figure.keys() & {"line", "point"}:
        return tradeoff(experiment, records, stem)
    return speed_accuracy(experiment, records, stem)
