"""The likelihood of a data set's stored tokens, for held-out and for training images."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch

from mar_bench.config.spec import RunSpec, drawing_part
from mar_bench.data.datasets import batches
from mar_bench.data.images import Progress
from mar_bench.data.latents import Latents
from mar_bench.models.ar import ARGenerator
from mar_bench.models.likelihood import bits_per_token
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource

SEED = 2**63  # above every seed of a spec, and one for all models, so that they are asked about the same tokens


def measure_likelihood(
    spec: RunSpec, model: ARGenerator, latents: Latents, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """The metrics, uncertainty and protocol of a ``likelihood`` record.

    Images are without views. Where a tokenizer's latents are stochastic, a model is trained on samples of them; so
    one sample per image is scored, the same for every model."""
    order, settings, found = spec.sampling.order or model.order, spec.likelihood, {}
    every = {"nll": latents.heldout_labels, "nll_train": latents.labels}
    if not len(latents.heldout_labels):
        raise UserError("the latents hold no held-out images, whose likelihood was asked for: set data.root")
    chosen = {name: _evenly(len(labels), settings.images) for name, labels in every.items()}
    done, total = 0, sum(map(len, chosen.values()))
    for name, rows in chosen.items():
        (stored, labels), bits, digest = latents.split(name == "nll"), [], hashlib.sha256()
        for places in batches(len(rows), settings.batch_size):
            progress(done, total)
            noise, of = NoiseSource(SEED, places), rows[places.start : places.stop]
            batch = {key: values[of] for key, values in stored.items()}
            shape = next(iter(batch.values())).shape[1:]
            tokens = latents.tokens_of(batch, noise.normal("latent", 0, shape) if latents.stochastic else None)
            digest.update(tokens.numpy().tobytes())
            scored = bits_per_token(model, tokens.to(device), labels[of].to(device), order, settings, noise)
            bits.append(scored.cpu())
            done += len(of)
        found[name] = torch.cat(bits), digest.hexdigest()
    errors = {name: (bits.std() / math.sqrt(len(bits))).item() for name, (bits, _) in found.items()}
    counts = {"heldout": len(chosen["nll"]), "train": len(chosen["nll_train"])}
    return {
        "metrics": {name: bits.mean().item() for name, (bits, _) in found.items()},
        "uncertainty": {name: {"standard_error": error, "method": "over images"} for name, error in errors.items()},
        "protocol": {
            "scored": {**counts, **{f"{name}_sha256": digest for name, (_, digest) in found.items()}},
            "likelihood": drawing_part(spec.model).likelihood,
            "order": order,
            "orders": settings.orders if order == "random" else 1,
            "positions": settings.positions or model.length,
            "timesteps": settings.timesteps,
            "skipped_timesteps": settings.skipped_timesteps,
        },
    }


def _evenly(images: int, most: int) -> np.ndarray:
    """Indices of ``most`` of the images, or of all, evenly spaced: data sets are sorted by class or shuffled."""
    count = min(images, most)
    return np.arange(count) * images // count
