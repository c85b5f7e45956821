"""The guard against NaN and overflow: in weights, and in what becomes tokens and images.

An index, a clamp or an argsort hides a value that is not finite, and the images would be wrong without an error. So a
generator notes its values before they are lost (``finite``) and reports them once a batch (``watched``), as no step
may wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from mar_bench.utils.errors import UserError

_largest: ContextVar[dict[str, Tensor] | None] = ContextVar("largest", default=None)


def finite(x: Tensor, what: str) -> Tensor:
    """``x``, unchanged; inside ``watched`` its largest magnitude is kept on its device under the name ``what``."""
    if _largest.get() is not None and not x.is_meta:
        note({what: x.abs().max()})  # NaN if one value is: two kernels, fewer than isfinite
    return x


def note(found: dict[str, Tensor]) -> None:
    """Keep magnitudes (), by name, of which ``noted`` has collected the largest."""
    if (largest := _largest.get()) is not None:
        largest.update({what: torch.maximum(largest[what], x) if what in largest else x for what, x in found.items()})


@contextmanager
def noted() -> Iterator[dict[str, Tensor]]:
    """Collect the largest magnitudes that ``finite`` sees in the block, apart from those outside it."""
    largest: dict[str, Tensor] = {}
    token = _largest.set(largest)
    try:
        yield largest
    finally:
        _largest.reset(token)


@contextmanager
def watched(whose: str, hint: str) -> Iterator[None]:
    """Raises UserError at the end of the block if a value given to ``finite`` in it was not finite. Only this waits for
    the device."""
    with noted() as largest:
        yield
    if largest:
        whole = torch.stack([*largest.values()]).isfinite().tolist()
        if broken := [what for what, good in zip(largest, whole) if not good]:
            raise UserError(f"{', '.join(broken)} of {whose} are not finite: {hint}")


def check_finite(tensors: Mapping[str, Tensor], owner: object, hint: str) -> None:
    """Raises UserError naming the first tensor, such as a weight of ``owner``, that is not finite. Waits for it."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{owner}: {name} has values that are not finite; {hint}")


def clipped(images: Tensor) -> Tensor:
    """Decoded images within [-1, 1]; infinity becomes NaN, which whoever converts them to bytes refuses."""
    return torch.where(images.isfinite(), images.clamp(-1, 1), torch.nan)
