"""From trained weights to numbers: sample in fixed batches, decode, extract features once, measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mar_bench.data import ArrayImages, DataSet, FolderImages, batches, to_uint8, to_unit
from mar_bench.distributed import ALONE, World
from mar_bench.errors import UserError
from mar_bench.ids import Run
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
from mar_bench.records import PREVIEW, metric_name, replacing
from mar_bench.sampler import generate
from mar_bench.spec import RunSpec, SamplingSpec
from mar_bench.tokenizers.base import Tokenizer
from mar_bench.train import Progress

PREVIEW_IMAGES = 100  # decoded images kept for the sample grids

Statistics = dict[str, np.ndarray]  # mu (F,), sigma (F, F), count ()


# --- sampling -------------------------------------------------------------------------------------------


def draw_samples(
    spec: RunSpec,
    model: ARGenerator,
    folder: Path,
    device: torch.device,
    progress: Progress,
    world: World = ALONE,
) -> None:
    """Write the tokens of every image into ``folder``, one file a batch; image i has class i mod C.

    A batch whose file is there is not drawn again; several processes take turns in batches.
    Raises UserError where a token is not finite: such images would come out black."""
    sampling = spec.sampling
    for indices in batches(sampling.num_images, sampling.batch_size)[world.rank :: world.size]:
        progress(indices.start, sampling.num_images)
        path = _samples_file(folder, indices)
        if not _is_whole(path, len(indices)):
            labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
            tokens = generate(model, labels, sampling, NoiseSource(sampling.seed, indices))
            if not tokens.isfinite().all():
                raise UserError(
                    f"tokens of images {indices.start} to {indices.stop - 1} are not finite: the head is undertrained; "
                    "set sampling.clamp_x0 (4 for tokens of unit deviation) or train longer"
                )
            with replacing(path) as temporary:
                save_file({"tokens": tokens.cpu().contiguous()}, temporary)


def _samples_file(folder: Path, indices: range) -> Path:
    return folder / f"tokens-{indices.start:06d}.safetensors"


def _is_whole(path: Path, rows: int) -> bool:
    try:
        return len(load_file(path)["tokens"]) == rows
    except (OSError, SafetensorError, KeyError):
        return False


@torch.inference_mode()
def decoded_samples(
    sampling: SamplingSpec, tokenizer: Tokenizer, folder: Path, device: torch.device
) -> Iterator[torch.Tensor]:
    """uint8 images (B, C, H, W) on the CPU, batch by batch, of tokens drawn before."""
    for indices in batches(sampling.num_images, sampling.batch_size):
        tokens = load_file(_samples_file(folder, indices))["tokens"]
        yield to_uint8(tokenizer.decode(tokens.to(device), NoiseSource(sampling.seed, indices))).cpu()


# --- measuring ------------------------------------------------------------------------------------------


def reference_statistics(data: DataSet, space: FeatureSpace, progress: Progress) -> dict[str, np.ndarray]:
    """Statistics of the real images, keys ``train.mu``, ``heldout.sigma``, ...: computed once an extractor."""
    out = {}
    for split, images in (("train", data.train), ("heldout", data.heldout)):
        found = statistics(torch.cat([space.extract(b)[0] for b in _batches_of(images, progress)]))
        out |= {f"{split}.{name}": value for name, value in found.items()}
    return out


def _batches_of(images: ArrayImages | FolderImages, progress: Progress) -> Iterator[torch.Tensor]:
    for indices in batches(len(images)):
        progress(indices.start, len(images))
        yield images.get(indices)


def split_statistics(references: dict[str, np.ndarray], split: str) -> Statistics:
    return {name: references[f"{split}.{name}"] for name in ("mu", "sigma", "count")}


def evaluate_generation(
    run: Run, images: Iterator[torch.Tensor], references: dict[str, np.ndarray], space: FeatureSpace, folder: Path
) -> tuple[dict[str, float], dict]:
    """Metrics and protocol of a ``generation`` record; keeps statistics and a preview in ``folder``."""
    preview: list[torch.Tensor] = []

    def kept() -> Iterator[torch.Tensor]:
        for batch in images:
            preview.append(batch[: PREVIEW_IMAGES - sum(map(len, preview))])
            yield batch

    features, logits = _features(kept(), space)
    labels = torch.arange(len(logits)) % run.spec.data.num_classes
    generated = statistics(features)
    np.savez(folder / "statistics.npz", **generated)
    np.save(folder / PREVIEW, torch.cat(preview).numpy())
    metrics = {
        **_distances(run.spec, generated, references),
        **_scores(run.spec, logits, labels),
    }
    return metrics, _protocol(run, space, generated, references)


@torch.inference_mode()
def evaluate_reconstruction(
    run: Run,
    tokenizer: Tokenizer,
    data: DataSet,
    references: dict[str, np.ndarray],
    space: FeatureSpace,
    device: torch.device,
    progress: Progress,
) -> tuple[dict[str, float], dict]:
    """Metrics of the tokenizer alone on the held-out images, and of those images themselves ("real")."""
    signal_to_noise: list[torch.Tensor] = []
    if (splits := run.spec.metrics.is_splits) > len(data.heldout):
        raise UserError(f"metrics.is_splits {splits} is more than the {len(data.heldout)} held-out images; lower it")

    def reconstructed() -> Iterator[torch.Tensor]:
        for indices in batches(len(data.heldout)):
            progress(indices.start, len(data.heldout))
            original = data.heldout.get(indices)
            tokens = tokenizer.encode(to_unit(original).to(device))
            images = to_uint8(tokenizer.decode(tokens, NoiseSource(0, indices))).cpu()
            signal_to_noise.append(psnr(images, original))
            yield images

    features, logits = _features(reconstructed(), space)
    found = statistics(features)
    extractor = _extractor_block(run.spec)
    real = frechet_distance(split_statistics(references, "heldout"), split_statistics(references, "train"))
    metrics = {
        **_distances(run.spec, found, references),
        **_scores(run.spec, logits, data.heldout.labels),
        metric_name("fd:real", extractor): real,
        "psnr": torch.cat(signal_to_noise).mean().item(),
    }
    return metrics, _protocol(run, space, found, references)


def _features(images: Iterator[torch.Tensor], space: FeatureSpace) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, F) and logits (N, classes) of batches of images."""
    features, logits = zip(*(space.extract(batch) for batch in images))
    return torch.cat(features), torch.cat(logits)


def _extractor_block(spec: RunSpec) -> dict[str, str]:
    return {"kind": spec.metrics.extractor.kind, "name": spec.metrics.extractor.name}


def _distances(spec: RunSpec, found: Statistics, references: dict[str, np.ndarray]) -> dict[str, float]:
    """Distances to the training and to the held-out images."""
    extractor = _extractor_block(spec)
    return {
        metric_name(metric, extractor): frechet_distance(found, split_statistics(references, split))
        for metric, split in (("fd", "train"), ("fd:heldout", "heldout"))
    }


def _scores(spec: RunSpec, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What the extractor's own classes say: the score, and the accuracy where they are the data's."""
    extractor = _extractor_block(spec)
    scores = {metric_name("is", extractor): inception_style_score(logits, spec.metrics.is_splits)}
    if spec.metrics.extractor.kind == "classifier":
        scores[metric_name("accuracy", extractor)] = accuracy(logits, labels)
    return scores


def _protocol(run: Run, space: FeatureSpace, found: Statistics, references: dict[str, np.ndarray]) -> dict:
    return {
        "extractor": {**_extractor_block(run.spec), "id": run.ids["extractor_id"], "sha256": space.sha256},
        "num_generated": int(found["count"]),
        "num_reference": int(references["train.count"]),
        "num_heldout": int(references["heldout.count"]),
        "label_mode": "balanced",
        "dtype": "float32",
    }
