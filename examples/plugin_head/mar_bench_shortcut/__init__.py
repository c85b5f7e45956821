"""A shortcut head for mar_bench. This module must not import torch: planning reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from mar_bench import Plugin
from mar_bench.config.parse import Few, Width, between
from mar_bench.config.spec_model import DrawsTokens


@dataclass(frozen=True)
class ShortcutHead(DrawsTokens):
    """Flow matching with the size of the step as an input (2410.12557)."""

    denoises: ClassVar[bool] = True
    kind: Literal["shortcut"] = "shortcut"
    depth: Few = 3
    width: Width = 1024
    draws_per_token: Few = 4
    smallest_step: Annotated[int, between(2, 1024)] = 128  # steps of a whole path at most; a power of two
    consistent_share: Annotated[float, between(0, 1)] = 0.25  # of the draws that learn from two smaller steps


plugin = Plugin(
    heads={ShortcutHead: "mar_bench_shortcut.head:Shortcut"},
    experiments=Path(__file__).parent / "experiments",
)
