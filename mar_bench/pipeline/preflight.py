"""Checks before any work starts: files the user must provide, folders that must be writable."""

from __future__ import annotations

import tempfile
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
        _preflight_inputs(run.spec)
        if run.task != "speed":
            _preflight_metrics(run.spec.metrics)


def _preflight_inputs(spec: RunSpec) -> None:
    if spec.data.kind == "imagefolder" and (spec.data.root is None or not Path(spec.data.root).is_dir()):
        raise UserError(
            f"the images of '{spec.data.name}' are yours to provide: set data.root to a folder with "
            f"train/<class>/* and val/<class>/* (found {spec.data.root or 'none'})"
        )
    weights = getattr(spec.tokenizer, "weights", "")
    if weights is None or (weights and not Path(weights).is_file()):
        raise UserError(
            f"tokenizer '{getattr(spec.tokenizer, 'name', spec.tokenizer.kind)}' needs its published weights: set tokenizer.weights to a local file, or "
            f"parts.tokenizer.<part>.weights if rows use different tokenizers (found {weights or 'none'}); "
            "mar-bench fetch lists the files and their sources, mar-bench convert converts them"
        )
    cache = getattr(spec.tokenizer, "official_cache", None)
    if cache is not None and not Path(cache).is_dir():
        raise UserError(f"tokenizer.official_cache {cache}: no such folder; it holds <class>/<image>.npz")
    train = spec.train
    if train.published is not None and (train.weights is None or not Path(train.weights).is_file()):
        raise UserError(
            f"train.published is '{train.published}': set train.weights to the file that mar-bench convert wrote "
            f"(found {train.weights or 'none'})"
        )


def _preflight_metrics(metrics: MetricsSpec) -> None:
    extractor, reference = metrics.extractor, metrics.reference
    if extractor.kind == "inception":
        _locate(
            "inception", extractor.weights, "metrics.extractor.weights",
            "without it there is no FID, but an FD: metrics.extractor.kind=efficientnet_lite0 works offline",
        )  # fmt: skip
    if extractor.kind == "plugin" and not entry_points(group="mar_bench.extractors", name=extractor.name):
        known = ", ".join(sorted(p.name for p in entry_points(group="mar_bench.extractors"))) or "none"
        raise UserError(f"metrics.extractor.name '{extractor.name}': no installed package has this extractor ({known})")
    if reference.kind == "file":
        _locate(
            reference.name, reference.file, "metrics.reference.file",
            "or measure against your own training images: metrics.reference.kind=training",
        )  # fmt: skip


def _locate(name: str, file: str | None, key: str, hint: str) -> None:
    try:
        located(name, file, key)
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None
