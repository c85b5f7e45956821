"""Load the output of finished stages."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mar_bench.config.ids import Run
from mar_bench.config.spec import measures_scale
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import Measure
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator, build_tokenizer
from mar_bench.models.pretrained.fetch import located
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError

SUMMARY, FITTED, EXTRACTOR = "summary.json", "tokenizer.safetensors", "extractor.safetensors"
REFERENCE, HELDOUT = "reference.npz", "heldout.npz"
STATISTICS, SEEN = "statistics.npz", "seen.safetensors"


def load_tokenizer(run: Run, places: Places, device: torch.device) -> Tokenizer:
    tokenizer = build_tokenizer(run.spec)
    if run.spec.tokenizer.trained or measures_scale(run.spec.tokenizer):
        weights = places.folder("tokenizer", run.ids["tokenizer_id"]) / FITTED
        try:
            tokenizer.load_fitted(load_file(weights))
        except RuntimeError:  # names or shapes this version does not know
            raise UserError(f"{weights}: written by another version; delete its folder and run again") from None
    return tokenizer.to(device).eval().requires_grad_(False)


def tokenizer_file(run: Run, places: Places) -> Path | None:
    """The tokenizer's weights; None if it has none."""
    spec = run.spec.tokenizer
    if spec.trained:
        return places.folder("tokenizer", run.ids["tokenizer_id"]) / FITTED
    weights = getattr(spec, "weights", None)
    return None if weights is None else Path(weights)


def load_generator(run: Run, places: Places, device: torch.device) -> Generator:
    """The trained generator with the weights (EMA or raw) named in the sampling spec."""
    folder = places.folder("train", run.ids["train_id"])
    model = build_generator(run.spec)
    model.load_state_dict(load_file(folder / f"{run.spec.sampling.weights}.safetensors"))
    return model.to(device).eval().requires_grad_(False)


def load_extractor(run: Run, places: Places, device: torch.device) -> FeatureSpace:
    spec, weights = run.spec.metrics.extractor, None
    if spec.trained:
        weights = places.folder("extractor", run.ids["extractor_id"]) / EXTRACTOR
    elif spec.kind == "inception":
        weights = located("inception", spec.weights, "metrics.extractor.weights")
    return FeatureSpace(spec, run.spec.data, weights, device)


def load_measure(run: Run, places: Places) -> Measure:
    """Scores images against the run's reference and against the held-out images."""
    folder = places.folder("extractor", run.ids["extractor_id"])
    return Measure(run.spec.metrics, read_reference(folder / REFERENCE), read_reference(folder / HELDOUT))
