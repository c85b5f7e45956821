"""Tensors in safetensors files that carry a digest of their content: parts of a stage that is written over a long time.

Once the stage is complete its marker has the SHA-256 of every file; until then these digests tell which parts of an
interrupted stage can be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mar_bench.utils.files import replacing


def save_part(tensors: dict[str, torch.Tensor], path: Path, made_from: str) -> None:
    """Write ``tensors`` atomically; ``made_from`` is everything that determines them."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"sha256": _sha256(tensors, made_from)})


def read_part(path: Path, made_from: str) -> dict[str, torch.Tensor] | None:
    """The tensors in a file; None if it is missing, damaged, or made from something else."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            told = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return tensors if told == _sha256(tensors, made_from) else None


def hash_tensors(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add the names, types, shapes and values of tensors to a digest, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _sha256(tensors: Mapping[str, torch.Tensor], made_from: str) -> str:
    digest = hashlib.sha256(f"{made_from}\n".encode())
    hash_tensors(digest, tensors)
    return digest.hexdigest()
