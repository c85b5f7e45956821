"""All randomness, as a function of (seed, purpose, index, step).

Every number comes from a counter-based generator (Philox) keyed by seed and purpose, with the image's index and the
step in the counter: draws do not depend on batches, shards or devices, and a resumed run replays exactly. Numbers are
drawn on the CPU in float32."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch

SHARED = 2**63  # the index of draws shared by all images of a step


def philox(seed: int, purpose: str, index: int, step: int) -> np.random.Generator:
    """An independent generator for each (seed, purpose, index, step)."""
    # the low counter words advance within a stream; index and step are in the high ones, so streams never overlap
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, salt], counter=[0, 0, step, index]))


class NoiseSource:
    """Noise for a batch of images with the given global indices (in training: slots of the global batch).

    Tests override ``normal`` and ``uniform`` to supply their own."""

    def __init__(self, seed: int, indices: Sequence[int]):
        self.seed, self.indices = seed, list(indices)

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal (B, *shape) float32."""
        return self._each(purpose, step, lambda generator: generator.standard_normal(shape, dtype=np.float32))

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Uniform on [0, 1) (B, *shape) float32."""
        return self._each(purpose, step, lambda generator: generator.random(shape, dtype=np.float32))

    def integers(self, purpose: str, step: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Integers in [0, high) (B, *shape) int64."""
        return self._each(purpose, step, lambda generator: generator.integers(high, size=shape))

    def shared(self, purpose: str, step: int) -> float:
        """One number, uniform on [0, 1), for the whole global batch."""
        return float(philox(self.seed, purpose, SHARED, step).random())

    def _each(self, purpose: str, step: int, draw: Callable) -> torch.Tensor:
        """What ``philox`` would draw for each image, from one generator whose counter is set anew: making one costs
        several times as much as drawing a token."""
        generator = philox(self.seed, purpose, 0, step)
        state, rows = generator.bit_generator.state, []
        for index in self.indices:
            state["state"]["counter"][3] = index
            generator.bit_generator.state = state
            rows.append(draw(generator))
        return torch.from_numpy(np.stack(rows))


def epoch_indices(seed: int, step: int, slots: Sequence[int], batch_size: int, size: int) -> np.ndarray:
    """The indices, below ``size``, of the images in a step's slots: (len(slots),) int64, permuted anew each epoch."""
    positions = step * batch_size + np.asarray(slots, dtype=np.int64)
    epochs = positions // size
    return np.array([_permutation(seed, int(e), size)[p % size] for e, p in zip(epochs, positions)])


@lru_cache(maxsize=2)  # a batch may span two epochs
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return philox(seed, "epoch", SHARED, epoch).permutation(size)


@contextlib.contextmanager
def seeded(seed: int, purpose: str, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it, for code that draws from them
    implicitly: module and codebook initialisation, dropout."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    number = int(philox(seed, purpose, SHARED, 0).integers(2**63))
    with torch.random.fork_rng(devices=cuda):
        # not torch.manual_seed: without a GPU it formats a stack trace each time, for the day CUDA is initialised
        torch.default_generator.manual_seed(number)
        if cuda:
            torch.cuda.manual_seed_all(number)
        yield
