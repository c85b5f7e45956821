"""Checks before any work starts: files the user must provide, folders that must be writable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from mar_bench.config.ids import Run
from mar_bench.config.spec import MetricsSpec, RunSpec
from mar_bench.models.pretrained.fetch import located
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError


def writable(places: Places) -> None:
    """Create both folders. Raises UserError if one cannot be written to."""
    for option, folder in (("--runs", places.runs), ("--records", places.records)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"{option} {folder}: cannot be written to ({error.strerror}); choose another") from None


def preflight(runs: list[Run]) -> None:
    """Raises UserError naming the key to set if a run needs a file that is not on this machine."""
    for run in runs:
        _check_inputs(run.spec)
        if run.task != "speed":
            _check_metrics(run.spec.metrics)


def _check_inputs(spec: RunSpec) -> None:
    data, tokenizer, train = spec.data, spec.tokenizer, spec.train
    name = getattr(tokenizer, "name", tokenizer.kind)
    if data.kind == "imagefolder":
        what = f"the images of '{data.name}' are yours to provide: set data.root to a folder with train/<class>/* and"
        _need(data.root, Path.is_dir, f"{what} val/<class>/*")
    if hasattr(tokenizer, "weights"):
        what = f"tokenizer '{name}' needs its published weights: set tokenizer.weights to a local file, or"
        _need(tokenizer.weights, Path.is_file, f"{what} parts.tokenizer.<part>.weights (see mar-bench fetch, convert)")
    if (cache := getattr(tokenizer, "official_cache", None)) is not None:
        _need(cache, Path.is_dir, "set tokenizer.official_cache to a folder with <class>/<image>.npz")
    if train.published is not None:
        what = f"train.published is '{train.published}': set train.weights to the file that mar-bench convert wrote"
        _need(train.weights, Path.is_file, what)


def _need(path: str | None, exists: Callable[[Path], bool], what: str) -> None:
    if path is None or not exists(Path(path)):
        raise UserError(f"{what} (found {path or 'none'})")


def _check_metrics(metrics: MetricsSpec) -> None:
    extractor, reference = metrics.extractor, metrics.reference
    if extractor.kind == "inception":
        located("inception", extractor.weights, "metrics.extractor.weights")
    if extractor.kind == "plugin" and not entry_points(group="mar_bench.extractors", name=extractor.name):
        raise UserError(f"metrics.extractor.name '{extractor.name}': no installed package has this extractor")
    if reference.kind == "file":
        located(reference.name, reference.file, "metrics.reference.file")
