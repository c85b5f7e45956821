"""The loss and all gradients of one training step, for this process's world.

As a program, for test_distributed.py: python two_processes.py FOLDER writes those of every case into the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mar_bench.models.build import build_generator
from mar_bench.pipeline.distributed import World, join, world_of
from mar_bench.pipeline.train import generator_losses
from tests.pipeline.test_train import ROWS, latents_of, spec_of

WHOLE, MICRO = (), ("compute.micro_batch=3",)  # the second splits each process's share unevenly
CASES = {f"{row.replace('/', '-')}-{len(words)}": (row, words) for row in ROWS for words in (WHOLE, MICRO)}


def step_of(row: str, words: tuple[str, ...], world: World) -> dict[str, torch.Tensor]:
    """Without dropout, and with every weight away from zero: modulations that start there hide gradients."""
    spec = spec_of(row, "model.backbone.dropout=0", "train.batch_size=16", *words)
    model: nn.Module = build_generator(spec)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    loss = 0.0
    for part in generator_losses(spec, model, latents_of(spec), torch.device("cpu"), world)(step=3):
        part.backward()
        loss += part.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(world.mean(loss)), **gradients}


if __name__ == "__main__":
    torch.set_num_threads(1)
    join(here := world_of())
    for name, case in CASES.items():
        found = step_of(*case, here)
        if here.first:
            save_file(found, Path(sys.argv[1]) / name)
