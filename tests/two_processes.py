"""A program for test_distributed.py: the loss and every gradient of one training step, of this process's world.

python two_processes.py ROW FILE [KEY=VALUE ...]"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import nn

from mar_bench.models.build import build_generator
from mar_bench.pipeline.distributed import join, world_of
from mar_bench.pipeline.train import generator_losses
from tests.pipeline.test_train import latents_of, spec_of


def main(row: str, file: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    world = world_of()
    if world.size > 1:
        join(world)
    spec = spec_of(row, "model.backbone.dropout=0", "train.batch_size=16", *overrides)
    model: nn.Module = build_generator(spec)
    # modulations of the head start at zero, which would hide the gradients behind them
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    loss = torch.zeros(())
    for part in generator_losses(spec, model, latents_of(spec), torch.device("cpu"), world)(step=3):
        part.backward()
        loss += part.detach()
    if world.size > 1:
        torch.distributed.all_reduce(loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if world.first:
        save_file({"loss": loss[None] / world.size, **gradients}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
