"""Linear layers whose weights lie in memory as oneDNN's kernels read them, for sampling on a CPU.

A product with few rows spends most of its time on rearranging the weights. A sampler's weights never change, so they
can be rearranged once. Results differ from those of the plain layers by rounding."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2**16  # weights of a layer; with fewer, the product takes less time than calling oneDNN
ROWS = 64  # for which the layout is chosen; it serves all other numbers nearly as well


def pack(module: nn.Module) -> int:
    """Pack the large linear layers of a module, whose weights are final, in place and return how many.

    0, and nothing is changed, for a torch without oneDNN. A packed layer keeps its plain weights, and uses them where
    gradients are recorded."""
    if not torch.backends.mkldnn.is_available():
        return 0
    layers = [part for part in module.modules() if isinstance(part, nn.Linear) and part.weight.numel() >= SMALLEST]
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        layer.forward = partial(_product, layer, weight)  # type: ignore[method-assign]
    return len(layers)


def _product(layer: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, layer.bias, "none", [], "")
