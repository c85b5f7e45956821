"""The latent cache: what a tokenizer makes of every image under every view, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mar_bench.data import DataSet, apply_view, batches, to_unit, views
from mar_bench.noise import NoiseSource
from mar_bench.spec import DataSpec
from mar_bench.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Latents:
    """``train`` holds tensors (V, N, L[, D]), one entry a view; ``heldout`` (N', L[, D]), images as they are."""

    train: dict[str, torch.Tensor]
    heldout: dict[str, torch.Tensor]
    labels: torch.Tensor
    heldout_labels: torch.Tensor
    tokens_of: Callable[[dict[str, torch.Tensor], torch.Tensor | None], torch.Tensor]
    stochastic: bool

    def draw(self, indices: Sequence[int] | np.ndarray, noise: NoiseSource, step: int) -> torch.Tensor:
        """Training tokens (B, L[, D]) of images: a view drawn for each, and a sample of the latent."""
        first = next(iter(self.train.values()))
        chosen = noise.integers("view", step, first.shape[0], ())
        rows = torch.as_tensor(np.asarray(indices))
        stored = {name: values[chosen, rows] for name, values in self.train.items()}
        return self.tokens_of(stored, noise.normal("latent", step, first.shape[2:]) if self.stochastic else None)

    def split(self, heldout: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Stored tensors (N, L[, D]) and labels of a split, images as they are."""
        if heldout:
            return self.heldout, self.heldout_labels
        return {name: values[0] for name, values in self.train.items()}, self.labels


@torch.inference_mode()
def encode_all(tokenizer: Tokenizer, images, view, device: torch.device, progress) -> dict[str, torch.Tensor]:
    """``stored`` tensors of every image under one view, on the CPU."""
    parts = []
    for indices in batches(len(images)):
        progress(indices.start, len(images))
        batch = to_unit(apply_view(images.get(indices), view))
        parts.append({k: v.cpu() for k, v in tokenizer.stored(batch.to(device)).items()})
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def build_latents(spec: DataSpec, data: DataSet, tokenizer: Tokenizer, folder: Path, device, progress) -> None:
    """Write ``latents.safetensors`` into ``folder``."""
    per_view = [encode_all(tokenizer, data.train, view, device, progress) for view in views(spec)]
    tensors = {f"train.{name}": torch.stack([p[name] for p in per_view]) for name in per_view[0]}
    for name, values in encode_all(tokenizer, data.heldout, (0, 0, False), device, progress).items():
        tensors[f"heldout.{name}"] = values
    tensors["labels"], tensors["heldout_labels"] = data.train.labels, data.heldout.labels
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "latents.safetensors")


def load_latents(folder: Path, tokenizer: type[Tokenizer] | Tokenizer) -> Latents:
    tensors = load_file(folder / "latents.safetensors")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return Latents(
        train=part("train."),
        heldout=part("heldout."),
        labels=tensors["labels"],
        heldout_labels=tensors["heldout_labels"],
        tokens_of=tokenizer.tokens_of,
        stochastic=tokenizer.stochastic,
    )
