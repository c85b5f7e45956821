"""What is done once to a trained generator whose weights are only read from then on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_bench.config.spec import SamplingSpec
from mar_bench.models.ar import ARGenerator, Generator
from mar_bench.models.backbones.layers import Block
from mar_bench.models.finite import note, noted
from mar_bench.models.heads.denoising import Diffusion
from mar_bench.models.heads.layers import AdaLNMLP

SMALLEST = 2**16  # weights of a layer worth packing; with fewer, the product takes less time than calling oneDNN
ROWS = 64  # for which the layout is chosen; it serves all other numbers nearly as well


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Compile transformer blocks, the network of denoising heads with its guidance, and the update of a diffusion step.

    For all sizes at once, as the numbers of tokens vary. Results differ by rounding."""
    compiled = partial(torch.compile, dynamic=True, backend=backend)
    for part in model.modules():
        if isinstance(part, AdaLNMLP):
            part.conditioned, part.guided = compiled(part.conditioned), compiled(part.guided)  # type: ignore[method-assign]
        elif isinstance(part, Diffusion):
            part.ancestral = compiled(part.ancestral)
        elif isinstance(part, Block):
            part.compile(dynamic=True, backend=backend)


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


Found = tuple[Tensor, dict[str, Tensor]]  # tokens, and the magnitudes that ``finite`` has seen


class Replayed:
    """The ``sample`` of a head as CUDA graphs, one for each size and setting: a denoising loop of thousands of kernels
    becomes one launch. A call that cannot be captured is made as it is, with a warning.

    ``capture`` runs a call and returns what to call to run it again, on the same memory, and its result."""

    def __init__(self, sample: Callable[..., Tensor], capture: Callable[..., tuple[Callable[[], object], Found]]):
        self.sample, self.capture = sample, capture
        self.kept: dict[Any, tuple[dict[str, Tensor], Callable[[], object], Found] | None] = {}

    def __call__(
        self, z: Tensor, drawn: Tensor, sampling: SamplingSpec, scale: float = 1.0, z_uncond: Tensor | None = None
    ) -> Tensor:
        given = {"z": z, "drawn": drawn}
        if z_uncond is not None:
            given |= {"z_uncond": z_uncond, "scale": torch.full((), scale, device=z.device)}
        key = sampling, *((name, x.shape, x.dtype) for name, x in given.items())
        if key not in self.kept:
            self.kept[key] = self._captured(sampling, {name: x.clone() for name, x in given.items()})
        if (kept := self.kept[key]) is None:
            return self.sample(sampling=sampling, **given)
        inputs, again, (tokens, magnitudes) = kept
        for name, x in given.items():
            inputs[name].copy_(x)
        again()
        note({what: x.clone() for what, x in magnitudes.items()})
        return tokens.clone()

    def _captured(self, sampling: SamplingSpec, inputs: dict[str, Tensor]) -> Any:
        def call() -> Found:
            with noted() as magnitudes:
                return self.sample(sampling=sampling, **inputs), magnitudes

        try:
            return inputs, *self.capture(call)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"sampling goes on without a CUDA graph, which takes longer: {reason}", stacklevel=3)
            return None


def captured(call: Callable[[], Found]) -> tuple[Callable[[], object], Found]:
    """``capture`` on a GPU: a call that warms up, makes tables and compiles, then one that is recorded."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread may copy or allocate pinned memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = call()
    return graph.replay, found


def replay(model: Generator) -> None:
    """Let a denoising head on a GPU sample by CUDA graphs."""
    if isinstance(model, ARGenerator) and hasattr(model.head, "net"):
        model.head.sample = Replayed(model.head.sample, captured)  # type: ignore[method-assign]
