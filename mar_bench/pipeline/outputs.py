"""Load what finished stages have written: tokenizers, generators, extractors and references.

The stage of a tokenizer, a generator or a reference must be complete and undamaged, else UserError is raised. An
extractor may be loaded inside its own stage, which is not complete then."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mar_bench.config.ids import Run
from mar_bench.config.spec import RunSpec, measures_scale
from mar_bench.metrics.features import FeatureSpace, kept_classifier
from mar_bench.metrics.references import read_reference
from mar_bench.metrics.score import Measure
from mar_bench.models.ar import Generator
from mar_bench.models.build import build_generator, build_tokenizer
from mar_bench.models.finite import check_finite
from mar_bench.models.inference import compile_model, finalise, lower, pack, replay
from mar_bench.models.pretrained.fetch import located
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline import store
from mar_bench.pipeline.store import Places, weights_file
from mar_bench.utils.errors import UserError

BROKEN = "restore it, or delete its folder and run again"  # a file of weights that are not finite


def load_tokenizer(run: Run, places: Places, device: torch.device) -> Tokenizer:
    tokenizer, weights = build_tokenizer(run.spec), tokenizer_file(run, places)
    if run.spec.tokenizer.trained or measures_scale(run.spec.tokenizer):
        weights = places.finished("tokenizer", run.ids["tokenizer_id"], run.row) / store.FITTED
        try:
            tokenizer.load_fitted(load_file(weights))
        except RuntimeError:  # names or shapes this version does not know
            raise UserError(f"{weights}: written by another version; delete its folder and run again") from None
    check_finite(tokenizer.state_dict(), weights, BROKEN)
    return tokenizer.to(device).eval().requires_grad_(False)


def tokenizer_file(run: Run, places: Places) -> Path | None:
    """The file of the tokenizer's weights; None for a tokenizer without weights."""
    if run.spec.tokenizer.trained:
        return places.stage("tokenizer", run) / store.FITTED
    weights = getattr(run.spec.tokenizer, "weights", None)
    return None if weights is None else Path(weights)


def load_generator(run: Run, places: Places, device: torch.device) -> Generator:
    """The trained generator with the weights (EMA or raw, at the end or at a snapshot) that the sampling spec names."""
    weights = generator_file(run, places)
    model = build_generator(run.spec)
    model.load_state_dict(load_file(weights))
    check_finite(model.state_dict(), weights, BROKEN)
    return for_sampling(model, run.spec, device)


def for_sampling(model: Generator, spec: RunSpec, device: torch.device) -> Generator:
    """The model, whose weights are final, on its device and in the precision and layout of the spec."""
    model = model.to(device).eval().requires_grad_(False)
    if spec.sampling.precision == "bf16":
        lower(model)
    if spec.compute.pack_weights and device.type == "cpu":
        pack(model)
    if spec.compute.compile:
        compile_model(model)
    finalise(model)
    if spec.compute.cuda_graphs and device.type == "cuda":
        replay(model)
    return model


def generator_file(run: Run, places: Places) -> Path:
    """The file of the weights that the sampling spec names, in a finished training."""
    folder, sampling = places.finished("train", run.ids["train_id"], run.row), run.spec.sampling
    return folder / weights_file(sampling.weights, sampling.snapshot)


def load_extractor(run: Run, places: Places, device: torch.device) -> FeatureSpace:
    spec, weights = run.spec.metrics.extractor, None
    if spec.trained:
        extractor_id = run.ids["extractor_id"]
        weights = kept_classifier(extractor_id) or places.folder("extractor", extractor_id) / store.EXTRACTOR
    elif spec.kind == "inception":
        weights = located("inception", spec.weights, "metrics.extractor.weights")
    return FeatureSpace(spec, run.spec.data, weights, device)


def load_measure(run: Run, places: Places) -> Measure:
    """Scores images against the run's reference and against the held-out images."""
    folder = places.finished("extractor", run.ids["extractor_id"], run.row)
    return Measure(run.spec.metrics, read_reference(folder / store.REFERENCE), read_reference(folder / store.HELDOUT))
