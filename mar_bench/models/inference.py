"""What is done once to a trained generator whose weights are only read from then on."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.heads.layers import AdaLNMLP

SMALLEST = 2**16  # weights of a layer worth packing; with fewer, the product takes less time than calling oneDNN
ROWS = 64  # for which the layout is chosen; it serves all other numbers nearly as well


def finalise(model: nn.Module) -> None:
    """Let heads keep what they compute from the weights alone: the embeddings of denoising timesteps."""
    for part in model.modules():
        if isinstance(part, AdaLNMLP):
            part.final = True


def lower(model: Generator) -> None:
    """Keep the weights of linear layers in bf16, in place, so that autocast has none to cast in each call.

    Norms, embeddings and free parameters stay in float32, and so does a head that computes without autocast."""
    kept = set(model.head.modules()) if isinstance(model, ARGenerator) and not model.head.autocasts else set()
    for part in model.modules():
        if isinstance(part, nn.Linear) and part not in kept:
            part.to(torch.bfloat16)


def pack(model: nn.Module) -> int:
    """Lay out the weights of large linear layers as oneDNN's kernels read them, and return their number.

    A product of few rows spends most of its time on rearranging the weights for the kernel. The layers, in place, keep
    plain weights too, for gradients and other types. Results differ by rounding. 0 for a torch without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return 0
    layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part.weight.numel() >= SMALLEST]
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        layer.forward = partial(_product, layer, weight)  # type: ignore[method-assign]
    return len(layers)


def _product(layer: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or x.dtype != packed.dtype:
        return F.linear(x, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")
