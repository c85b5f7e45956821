"""A program for test_distributed.py: the loss and all gradients of a step on two processes, for every case.

python two_processes.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mar_bench.pipeline.distributed import join, world_of
from tests.pipeline.test_train import ROWS, spec_of, step_of

OFF = ("model.backbone.dropout=0", "train.batch_size=16")
SPLITS = {"whole": (), "micro": ("compute.micro_batch=3",)}  # the second splits each process's share unevenly
CASES = {f"{row.replace('/', '-')}-{name}": (row, *OFF, *words) for row in ROWS for name, words in SPLITS.items()}

if __name__ == "__main__":
    torch.set_num_threads(1)
    join(here := world_of())
    for name, words in CASES.items():
        found = step_of(spec_of(*words), here)
        if here.first:
            save_file(found, Path(sys.argv[1]) / name)
