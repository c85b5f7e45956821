"""What the CPU prepares while a device, or other threads, compute: random numbers, and their way to the device. And
numbers on their way back, which nobody waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
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


class Later(Generic[T]):
    """Numbers that a device computes, read ``lag`` calls later, when it has done so. Default: 1 on a GPU, else 0."""

    def __init__(self, device: torch.device, lag: int | None = None):
        self.asynchronous = device.type == "cuda"
        self.lag = int(self.asynchronous) if lag is None else lag
        self.waiting: deque[tuple[T, torch.Tensor, Any]] = deque()

    def __call__(self, tag: T, numbers: torch.Tensor) -> Iterator[tuple[T, list[float]]]:
        """Put in numbers (n,) with a tag; get out those that are due."""
        copied, event = numbers, None
        if self.asynchronous:
            copied = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((tag, copied, event))
        return self.due(self.lag)

    def due(self, lag: int = 0) -> Iterator[tuple[T, list[float]]]:
        """All that were put in before the last ``lag``, in order."""
        while len(self.waiting) > lag:
            tag, numbers, event = self.waiting.popleft()
            if event is not None:
                event.synchronize()
            yield tag, numbers.tolist()
