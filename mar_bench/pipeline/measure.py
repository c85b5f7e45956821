"""The measuring stages: each ends in a record."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mar_bench.config.ids import Run
from mar_bench.config.spec import Continuous, is_causal
from mar_bench.data.datasets import CONVERSION, batches, load_data, to_images, to_unit
from mar_bench.data.images import Progress
from mar_bench.data.latents import load_latents
from mar_bench.metrics.functions import LatentNoise, psnr, statistics
from mar_bench.metrics.score import FeatureSet, extract_features
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import count_parameters, pick_device, tokenizer_class
from mar_bench.pipeline import store
from mar_bench.pipeline.likelihood import measure_likelihood
from mar_bench.pipeline.outputs import (
    generator_file,
    load_extractor,
    load_generator,
    load_measure,
    load_tokenizer,
    tokenizer_file,
)
from mar_bench.pipeline.sample import decoded_samples, evaluate_generation
from mar_bench.pipeline.speed import measure_speed
from mar_bench.pipeline.store import Places, new_record
from mar_bench.records.provenance import device_name
from mar_bench.records.record import PREVIEW, to_json, write_record
from mar_bench.utils.files import atomic_write, replacing, sha256_of
from mar_bench.utils.noise import NoiseSource


def measure_generation(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin, device = time.perf_counter(), pick_device(run.spec.compute.device)
    tokenizer, space = load_tokenizer(run, places, device), load_extractor(run, places, device)
    tokens, weights = hashlib.sha256(), generator_file(run, places)
    images = decoded_samples(run.spec, tokenizer, places.stage("sample", run), device, tokens.update)
    scores, seen = evaluate_generation(run.spec, images, space, load_measure(run, places))
    scores.protocol["weights"] = {"kind": run.spec.sampling.weights, "sha256": sha256_of(weights)}
    scores.protocol["tokens"] = {"sha256": tokens.hexdigest()}
    training = json.loads((weights.parent / store.SUMMARY).read_text())
    parameters, snapshots = training.pop("parameters"), training.pop("snapshots", {})
    if (step := run.spec.sampling.snapshot) is not None:
        training |= snapshots[str(step)]
    _record(run, places, folder, begin, seen, **vars(scores), parameters=parameters, training=training)


def measure_reconstruction(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    """Score the tokenizer alone on the held-out images, and score those images themselves ("real")."""
    begin, device = time.perf_counter(), pick_device(run.spec.compute.device)
    tokenizer, space = load_tokenizer(run, places, device), load_extractor(run, places, device)
    heldout = load_data(run.spec.data).heldout
    ratios: list[torch.Tensor] = []
    noise = LatentNoise()

    @torch.inference_mode()
    def reconstructed() -> Iterator[torch.Tensor]:
        for indices in batches(len(heldout)):
            progress(indices.start, len(heldout))
            original = heldout.get(indices)
            stored = tokenizer.stored(to_unit(original).to(device))
            if tokenizer.stochastic:
                noise.update(stored["mean"], stored["std"])
            tokens = tokenizer.tokens_of(stored, None)
            images = to_images(tokenizer.decode(tokens, NoiseSource(0, indices)), run.spec.data)
            ratios.append(psnr(images, original))
            yield images

    measure = load_measure(run, places)
    seen = extract_features(reconstructed(), space, heldout.labels, conversion=CONVERSION)
    seen = replace(seen, digests=None)  # a lossless tokenizer's reconstructions are the held-out images
    scores = measure(seen)
    scores.metrics |= {**measure.real(), "psnr": torch.cat(ratios).mean().item()}
    if isinstance(run.spec.space, Continuous):
        scores.metrics["latent_noise"] = noise.value()
    parameters = {"total": sum(p.numel() for p in tokenizer.parameters())}
    _record(run, places, folder, begin, seen, **vars(scores), parameters=parameters)


def measure_nll(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin, device = time.perf_counter(), pick_device(run.spec.compute.device)
    latents = load_latents(places.stage("latents", run), tokenizer_class(run.spec.tokenizer))
    latents = latents.some(run.spec.train.images)
    model, weights = load_generator(run, places, device), generator_file(run, places)
    assert isinstance(model, ARGenerator)
    measured = measure_likelihood(run.spec, model, latents, device, progress)
    measured["protocol"]["scored"]["latents"] = run.ids["latents_id"]
    measured["protocol"]["weights"] = {"kind": run.spec.sampling.weights, "sha256": sha256_of(weights)}
    _record(run, places, folder, begin, **measured, parameters=count_parameters(model))


def measure_seconds(run: Run, places: Places, folder: Path, progress: Progress) -> None:
    begin, compute = time.perf_counter(), run.spec.compute
    device = pick_device(compute.device)
    model, tokenizer = load_generator(run, places, device), load_tokenizer(run, places, device)
    metrics = measure_speed(run.spec, model, tokenizer, device, progress)
    protocol = {
        "device": device_name(compute.device),
        "threads": compute.threads,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[run.spec.sampling.precision],
        "batch_size": run.spec.speed.batch_size,
        "repeats": run.spec.speed.repeats,
        "includes": "sampling and decoding, no image writing",
        "kv_cache": is_causal(run.spec.model),
        **({"kernels": compute.kernels} if compute.kernels else {}),
    }
    _record(run, places, folder, begin, metrics=metrics, protocol=protocol, parameters=count_parameters(model))


def _record(run: Run, places: Places, folder: Path, begin: float, seen: FeatureSet | None = None, **measured) -> None:
    """Write the record beside the stage's output and publish it.

    Keeps the statistics of ``seen``, the scored images, for scoring again and, on request, features and logits."""
    if seen is not None:
        with replacing(folder / store.STATISTICS) as temporary, temporary.open("wb") as file:
            np.savez(file, **statistics(seen.features))  # type: ignore[arg-type]
        with replacing(folder / PREVIEW) as temporary, temporary.open("wb") as file:
            np.save(file, seen.preview.numpy())
        if run.spec.metrics.keep_features:
            seen.save(folder / store.SEEN)
        spec, file = run.spec.tokenizer, tokenizer_file(run, places)
        about = {"kind": spec.kind, "name": getattr(spec, "name", None), "sha256": file and sha256_of(file)}
        measured["protocol"]["tokenizer"] = about
    chosen = {run.choice["metric"]: run.choice} if run.choice else {}
    record = new_record(run, time.perf_counter() - begin, selection=chosen, **measured)
    atomic_write(folder / "record.json", to_json(record))
    write_record(places.records, record)
