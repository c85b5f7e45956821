"""Sample in fixed batches, decode, and score the decoded images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mar_bench.config.spec import DataSpec, RunSpec
from mar_bench.data.datasets import CONVERSION, ArrayImages, FolderImages, batches, to_images
from mar_bench.data.images import Progress
from mar_bench.data.parts import read_part, save_part
from mar_bench.metrics.features import FeatureSpace
from mar_bench.metrics.references import Reference, build_reference
from mar_bench.metrics.score import FeatureSet, Measure, Scores, extract_features
from mar_bench.models.ar import Generator
from mar_bench.models.build import generate
from mar_bench.models.tokenizers.base import Tokenizer
from mar_bench.pipeline.room import decoded_together
from mar_bench.utils.files import reading
from mar_bench.utils.noise import NoiseSource


def draw_samples(
    spec: RunSpec,
    model: Generator,
    folder: Path,
    device: torch.device,
    progress: Progress,
    missing: list[range],
    made_from: str,
) -> None:
    """Write the tokens of the ``missing`` batches into ``folder``, one file per batch; image i has class i mod C.

    Raises UserError if a token, or a value that decides on one, is not finite."""
    done = 0
    for indices in missing:
        progress(done, sum(map(len, missing)))
        tokens = draw_batch(spec, model, indices, device)
        save_part({"tokens": tokens}, batch_file(folder, indices), f"{indices} {made_from}")
        done += len(indices)


def not_drawn(spec: RunSpec, folder: Path, made_from: str, part: tuple[int, int] = (0, 1)) -> list[range]:
    """The batches without an intact token file in ``folder``; ``part`` (j, n) selects batches j, j + n, ...

    ``made_from`` identifies the weights: a file drawn from others does not count."""
    every = batches(spec.sampling.num_images, spec.sampling.batch_size)[part[0] :: part[1]]
    return [indices for indices in every if read_part(batch_file(folder, indices), f"{indices} {made_from}") is None]


def draw_batch(spec: RunSpec, model: Generator, indices: range, device: torch.device) -> torch.Tensor:
    """The tokens of one batch of images, on the CPU."""
    labels = torch.tensor([i % spec.data.num_classes for i in indices], device=device)
    tokens = generate(model, labels, spec.sampling, NoiseSource(spec.sampling.seed, indices))
    return tokens.cpu().contiguous()


def batch_file(folder: Path, indices: range) -> Path:
    return folder / f"tokens-{indices.start:06d}.safetensors"


def read_batch(folder: Path, indices: range) -> torch.Tensor:
    """The tokens of one batch. Raises UserError unless the file holds a row for each image."""
    path = batch_file(folder, indices)
    with reading(path, f"file with the tokens of {len(indices)} images", "delete its folder and run again"):
        tokens = load_file(path)["tokens"]
        if len(tokens) != len(indices):
            raise ValueError(f"{len(tokens)} rows")
    return tokens


@torch.inference_mode()
def decoded_samples(
    spec: RunSpec,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    hashed: Callable[[Any], None] = lambda tokens: None,
) -> Iterator[torch.Tensor]:
    """Decode stored tokens to uint8 images (B, C, H, W) on the CPU, batch by batch; ``hashed`` gets their bytes."""
    for indices in batches(spec.sampling.num_images, spec.sampling.batch_size):
        tokens = read_batch(folder, indices)
        hashed(tokens.numpy())
        noise = NoiseSource(spec.sampling.seed, indices)
        yield to_images(decoded(spec, tokenizer, tokens.to(device), noise), spec.data)


def decoded(spec: RunSpec, tokenizer: Tokenizer, tokens: torch.Tensor, noise: NoiseSource) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1] of tokens (B, L[, D]), so many at a time that their layers fit into memory."""
    most = decoded_together(spec)
    sources = [NoiseSource(noise.seed, noise.indices[i : i + most]) for i in range(0, len(tokens), most)]
    return torch.cat([tokenizer.decode(part, source) for part, source in zip(tokens.split(most), sources)])


def reference_of_part(
    data: DataSpec,
    images: ArrayImages | FolderImages,
    kind: str,
    suffix: str,
    space: FeatureSpace,
    most: int,
    progress: Progress,
) -> Reference:
    """A part of a data set as a reference, named ``<data set>:<suffix>``; ``most`` as in ``build_reference``."""

    def told() -> Iterator[torch.Tensor]:
        for indices in batches(len(images)):
            progress(indices.start, len(images))
            yield images.get(indices)

    name = f"{getattr(data, 'name', data.kind)}:{suffix}"
    return build_reference(told(), len(images), space, most, kind, name)


def evaluate_generation(
    spec: RunSpec, images: Iterable[torch.Tensor], space: FeatureSpace, measure: Measure
) -> tuple[Scores, FeatureSet]:
    """Scores of a ``generation`` record; image i has class i mod C."""
    seen = extract_features(images, space, class_labels(spec), conversion=CONVERSION)
    return measure(seen), seen


def class_labels(spec: RunSpec) -> torch.Tensor:
    """The class (N,) of each generated image."""
    return torch.arange(spec.sampling.num_images) % spec.data.num_classes
