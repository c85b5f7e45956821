"""What the CPU prepares while a device, or other threads, compute: random numbers, and their way to the device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """``make(i)`` for consecutive i below ``count``, each made by a thread while its predecessor is used.

    On a CPU with a single thread each is made when it is asked for: there is nobody else to make it."""

    def __init__(self, make: Callable[[int], T], count: int, device: torch.device):
        self.make, self.count = make, count
        self.pool = ThreadPoolExecutor(1) if device.type != "cpu" or torch.get_num_threads() > 1 else None
        self.next: dict[int, Any] = {}  # the one that is being made

    def __call__(self, i: int) -> T:
        if self.pool is None:
            return self.make(i)
        made = self.next.pop(i) if i in self.next else self.pool.submit(self.make, i)
        self.next = {i + 1: self.pool.submit(self.make, i + 1)} if i + 1 < self.count else {}
        return made.result()


def placed(tree: Any, device: torch.device) -> Any:
    """Tensors in dictionaries, tuples and lists, copied to the device; a GPU copies while it computes."""
    if isinstance(tree, dict):
        return {key: placed(value, device) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(placed(value, device) for value in tree)
    if not isinstance(tree, torch.Tensor):
        return tree
    return tree.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tree.to(device)
