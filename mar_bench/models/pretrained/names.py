"""Parameter names of published checkpoints -> ours, by the rules of `names.yaml`."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from mar_bench.config.layers import load_yaml


@cache
def _rules(layout: str) -> list[tuple[re.Pattern[str], str]]:
    rules = load_yaml(Path(__file__).with_name("names.yaml"))[layout]
    return [(re.compile(theirs.replace("@", "(weight|bias)")), ours) for theirs, ours in rules.items()]


def our_name(official: str, layout: str = "mar") -> str:
    """Name in a published file of one of the layouts of `names.yaml` -> ours.

    One to one. Raises KeyError for a name that no official model has."""
    for theirs, ours in _rules(layout):
        if match := theirs.fullmatch(official):
            return match.expand(ours)
    raise KeyError(official)


def ldm_name(official: str, stages: int) -> str:
    """Name in latent diffusion's autoencoder with ``stages`` resolutions -> name in diffusers.

    One to one; the 1 x 1 convolutions of attention become linear layers, all other shapes are equal. Latent diffusion
    counts decoder stages from the full resolution, diffusers from the latent. Raises KeyError for unknown names."""
    if stage := re.match(r"decoder\.up\.(\d+)\.", official):
        official = f"decoder.up.{stages - 1 - int(stage[1])}.{official[stage.end() :]}"  # no rule matches -1
    return our_name(official, "ldm")


def mar_architecture(shapes: dict[str, tuple[int, ...]]) -> dict[str, int | float]:
    """Sizes of a masked MAR with a diffusion head, from the shapes of its tensors under our names.

    The number of attention heads cannot be inferred. Raises KeyError for a missing tensor, IndexError or
    ZeroDivisionError for an impossible shape."""

    def blocks(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})

    dim, num_tokens = shapes["backbone.mask_token"][2], shapes["backbone.head_positions"][1]
    return {
        "dim": dim,
        "num_tokens": num_tokens,
        "num_classes": shapes["backbone.class_embedding.embedding.weight"][0],
        "token_dim": shapes["head.net.input.weight"][1],
        "head_width": shapes["head.net.input.weight"][0],
        "encoder_depth": blocks("backbone.encoder_blocks."),
        "decoder_depth": blocks("backbone.decoder_blocks."),
        "head_depth": blocks("head.net.blocks."),
        "num_class_tokens": shapes["backbone.encoder_positions"][1] - num_tokens,
        "mlp_ratio": shapes["backbone.encoder_blocks.0.mlp.fc1.weight"][0] / dim,
    }
