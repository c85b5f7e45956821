"""What the run folder has to show of an experiment: samples, the order of their tokens, reconstructions and losses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import Run, generation_run, reconstruction_run, with_seeds
from mar_bench.config.spec import RunSpec, num_tokens
from mar_bench.data.datasets import load_data
from mar_bench.models.orders import draw_order
from mar_bench.models.schedules import ar_steps
from mar_bench.pipeline import store
from mar_bench.pipeline.store import Places, previews
from mar_bench.records.record import RecordFolder
from mar_bench.report.claims.report import claims_file, judge
from mar_bench.report.page.build import Section, page, section
from mar_bench.report.page.pictures import COLUMNS, Curve, Pictures
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, with_folder
from mar_bench.utils.noise import NoiseSource

FRAMES = 8
UNKNOWN = 128  # the grey of a token that is not drawn yet
MOST_STRIPS = 6
CURVE_POINTS = 60


def write_page(experiments: list[Experiment], scale: str, places: Places, records: RecordFolder, folder: Path) -> Path:
    """Write the page of a scale into ``folder`` and return its path; that of overrides has a name of its own.

    Raises UserError if no experiment has a record."""
    overridden = experiments[0].stem.removeprefix(experiments[0].id)
    path = folder / f"index{overridden}.html"
    text = page_text(experiments, scale, places, records, folder, os.path.relpath(records.folder, folder))
    atomic_write(with_folder(path), text)
    return path


def page_text(
    experiments: list[Experiment], scale: str, places: Places, records: RecordFolder, folder: Path, records_at: str
) -> str:
    """The page of a scale; ``folder`` may have sheets of neighbours, ``records_at`` is where it links to records.

    Raises UserError if no experiment has a record."""
    sections = [section(experiment, records, gathered(experiment, places), folder) for experiment in experiments]
    shown = sorted((s for s in sections if any(s.records.values())), key=_place)
    if not shown:
        raise UserError(f"no records at scale {scale} in {places.records}; `mar-bench run` makes them")
    return page(scale, shown, judge(claims_file(), records, scale), records_at)


def _place(of: Section) -> tuple[int, str]:
    """Of an experiment on the page: the paper's tables, its figures and its appendix, then the others."""
    name, kinds = of.experiment.id, ("table", "fig", "appendix", "")
    return next(i for i, kind in enumerate(kinds) if re.match(rf"{kind}(\d|_|$)", name) or not kind), name


def gathered(experiment: Experiment, places: Places) -> Pictures:
    """The pictures of an experiment on training and sampling seed 0; without a run folder there are none."""
    runs = {row: generation_run(row, with_seeds(spec, 0, 0)) for row, spec in experiment.rows.items()}
    samples = {row: images for row, images in previews(runs, places).items() if len(images)}
    curves = {row: curve for row, run in runs.items() if (curve := losses_of(run, places))}
    by_training = {run.ids["train_id"]: row for row, run in reversed(runs.items()) if row in curves}
    return Pictures(
        samples,
        _strips({row: runs[row] for row in samples}, samples),
        _reconstructions(runs, experiment, places),
        {row: curve for row, curve in curves.items() if row in by_training.values()},
    )


def _strips(runs: dict[str, Run], samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first image of a row for each order and number of AR steps: as its tokens become known, the rest grey.

    The whole image is decoded once, from all of its tokens; a token covers the patch at its place. Confidence order is
    left out, as it is not known beforehand."""
    strips: dict[str, np.ndarray] = {}
    seen = set()
    for row, run in runs.items():
        spec, model = run.spec, run.spec.model
        kind = spec.sampling.order or getattr(model, "order", None)
        how = kind, spec.sampling.num_ar_steps, num_tokens(spec.space)
        if kind not in (None, "confidence") and how not in seen and len(strips) < MOST_STRIPS:
            seen.add(how)
            strips[row] = _frames(spec, kind, samples[row][0])
    return strips


def _frames(spec: RunSpec, kind: str, image: np.ndarray) -> np.ndarray:
    """Image (C, H, W) -> FRAMES images (FRAMES, C, H, W), the last of which is whole."""
    grid, length = spec.space.grid, num_tokens(spec.space)
    order = draw_order(kind, NoiseSource(spec.sampling.seed, range(1)), 0, length, getattr(spec.model, "order_seed", 0))
    steps = ar_steps(spec.sampling, kind, length)
    place = np.empty(length, int)  # of each token in the order
    place[order[0].numpy()] = np.arange(length)
    patch = image.shape[1] // grid[0], image.shape[2] // grid[1]
    places = np.kron(place.reshape(grid), np.ones(patch, int))
    known = [steps[round(i * (len(steps) - 1) / (FRAMES - 1))] for i in range(FRAMES)]
    return np.stack([np.where(places < step.known + step.new, image, np.uint8(UNKNOWN)) for step in known])


def _reconstructions(
    runs: dict[str, Run], experiment: Experiment, places: Places
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Row -> held-out images and their reconstructions, the first row of each tokenizer."""
    first = {reconstruction_run(row, run.spec).id: row for row, run in reversed(runs.items())}
    decoded = previews({row: reconstruction_run(row, experiment.rows[row]) for row in first.values()}, places)
    found, heldout = {}, cache(lambda data: load_data(data).heldout)
    with suppress(UserError):  # the data may be elsewhere
        for row, images in decoded.items():
            found[row] = heldout(experiment.rows[row].data).get(range(COLUMNS)).numpy(), images[:COLUMNS]
    return found


def losses_of(run: Run, places: Places) -> Curve:
    """The losses of a run's training so far, thinned out; empty if it has none."""
    with suppress(OSError, ValueError, KeyError):
        lines = [json.loads(line) for line in (places.stage("train", run) / store.LOG).read_text().splitlines()]
        logged = [(line["step"] + 1, float(f"{line['loss']:.5g}")) for line in lines if line["loss"] is not None]
        return _thinned(logged)
    return []


def _thinned(curve: Sequence[tuple[int, float]]) -> Curve:
    """About CURVE_POINTS points, at even distances of the logarithm of the step."""
    wanted = {round(len(curve) ** (i / (CURVE_POINTS - 1))) - 1 for i in range(CURVE_POINTS)} if curve else set()
    return [point for i, point in enumerate(curve) if i in wanted]
