"""From trained weights to numbers: sample in fixed batches, decode, extract features once, measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mar_bench.data import DataSet, to_uint8, to_unit
from mar_bench.ids import Run
from mar_bench.latents import BATCH
from mar_bench.metrics import (
    FeatureSpace,
    accuracy,
    frechet_distance,
    inception_style_score,
    psnr,
    statistics,
)
from mar_bench.model import ARGenerator
from mar_bench.noise import NoiseSource
from mar_bench.records import metric_name
from mar_bench.sampler import generate
from mar_bench.spec import RunSpec
from mar_bench.tokenizers.base import Tokenizer
from mar_bench.train import Progress

PREVIEW = 100  # decoded images kept for the sample grids


def sample_images(
    spec: RunSpec, model: ARGenerator, tokenizer: Tokenizer, folder: Path, device: torch.device, progress: Progress
) -> torch.Tensor:
    """Decoded uint8 images (N, C, H, W); image i has class i mod C.

    Batches hold consecutive indices and their tokens are kept in ``folder``: what is there is not drawn again."""
    sampling, classes = spec.sampling, spec.data.num_classes
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for begin in range(0, sampling.num_images, sampling.batch_size):
        progress(begin, sampling.num_images)
        indices = range(begin, min(begin + sampling.batch_size, sampling.num_images))
        path = folder / f"tokens-{begin:06d}.safetensors"
        tokens = _kept_tokens(path, len(indices))
        if tokens is None:
            labels = torch.tensor([i % classes for i in indices], device=device)
            tokens = generate(model, labels, sampling, NoiseSource(sampling.seed, indices)).cpu()
            temporary = path.with_suffix(".tmp")
            save_file({"tokens": tokens.contiguous()}, temporary)
            temporary.replace(path)
        images.append(decode(tokenizer, tokens, device))
    return torch.cat(images)


def _kept_tokens(path: Path, rows: int) -> torch.Tensor | None:
    try:
        tokens = load_file(path)["tokens"]
    except Exception:  # absent, cut short or not safetensors at all: draw again
        return None
    return tokens if len(tokens) == rows else None


@torch.inference_mode()
def decode(tokenizer: Tokenizer, tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Tokens (B, L[, D]) -> uint8 images (B, C, H, W) on the CPU."""
    return to_uint8(tokenizer.decode(tokens.to(device))).cpu()


def evaluate_generation(
    run: Run, images: torch.Tensor, data: DataSet, space: FeatureSpace, folder: Path
) -> tuple[dict[str, float], dict]:
    """Metrics and protocol of a ``generation`` record; keeps statistics and a preview in ``folder``."""
    spec = run.spec
    labels = torch.arange(len(images)) % spec.data.num_classes
    features, logits = space.extract(images)
    generated = statistics(features)
    np.savez(folder / "statistics.npz", **generated)
    np.save(folder / "preview.npy", images[:PREVIEW].numpy())
    metrics = _distances(spec, generated, logits, labels, data, space)
    return metrics, _protocol(run, space, len(images), len(data.train), len(data.heldout))


@torch.inference_mode()
def evaluate_reconstruction(
    run: Run, tokenizer: Tokenizer, data: DataSet, space: FeatureSpace, device: torch.device, progress: Progress
) -> tuple[dict[str, float], dict]:
    """Metrics of the tokenizer alone on the held-out images, and of those images themselves ("real")."""
    originals, reconstructed = [], []
    for begin in range(0, len(data.heldout), BATCH):
        progress(begin, len(data.heldout))
        images = data.heldout.get(range(begin, min(begin + BATCH, len(data.heldout))))
        originals.append(images)
        reconstructed.append(decode(tokenizer, tokenizer.encode(to_unit(images).to(device)), device))
    original, images = torch.cat(originals), torch.cat(reconstructed)
    features, logits = space.extract(images)
    metrics = _distances(run.spec, statistics(features), logits, data.heldout.labels, data, space)
    real = _distances(run.spec, statistics(space.extract(original)[0]), None, None, data, space)
    extractor = _extractor_block(run)
    metrics[metric_name("fd:real", extractor)] = real[metric_name("fd", extractor)]
    metrics["psnr"] = psnr(images, original)
    return metrics, _protocol(run, space, len(images), len(data.train), len(data.heldout))


def _extractor_block(run_or_spec) -> dict:
    spec = getattr(run_or_spec, "spec", run_or_spec)
    return {"kind": spec.metrics.extractor.kind, "name": spec.metrics.extractor.name}


def _distances(
    spec: RunSpec,
    generated: dict[str, np.ndarray],
    logits: torch.Tensor | None,
    labels: torch.Tensor | None,
    data: DataSet,
    space: FeatureSpace,
) -> dict[str, float]:
    """Distances to the training and to the held-out images; score and accuracy where logits are given."""
    extractor = _extractor_block(spec)
    metrics = {}
    for suffix, images in (("", data.train), (":heldout", data.heldout)):
        reference = statistics(space.extract(images.get(range(len(images))))[0])
        metrics[metric_name(f"fd{suffix}", extractor)] = frechet_distance(generated, reference)
    if logits is not None:
        metrics[metric_name("is", extractor)] = inception_style_score(logits, spec.metrics.is_splits)
        if spec.metrics.extractor.kind == "classifier":
            metrics[metric_name("accuracy", extractor)] = accuracy(logits, labels)
    return metrics


def _protocol(run: Run, space: FeatureSpace, images: int, reference: int, heldout: int) -> dict:
    return {
        "extractor": {**_extractor_block(run), "id": run.ids["extractor_id"], "sha256": space.sha256},
        "num_generated": images,
        "num_reference": reference,
        "num_heldout": heldout,
        "label_mode": "balanced",
        "dtype": "float32",
    }
