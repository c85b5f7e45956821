"""Parameter names of published checkpoints -> ours, by the rules of `names.yaml`."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

from mar_bench.config.yaml_layers import load_yaml


@cache
def _rules(layout: str) -> list[tuple[re.Pattern[str], str]]:
    rules = load_yaml(Path(__file__).with_name("names.yaml"))[layout]
    return [(re.compile(theirs.replace("@", "(weight|bias)")), ours) for theirs, ours in rules.items()]


def our_name(official: str, layout: str = "mar") -> str:
    """A name in a layout of `names.yaml` -> ours, one to one. Raises KeyError for a name that no official model has."""
    for theirs, ours in _rules(layout):
        if match := theirs.fullmatch(official):
            return match.expand(ours)
    raise KeyError(official)


def ldm_name(official: str) -> str:
    """A name in latent diffusion's autoencoders with five resolutions -> its name in diffusers, one to one.

    Latent diffusion counts decoder stages from the full resolution, diffusers from the latent. Raises KeyError."""
    if stage := re.match(r"decoder\.up\.(\d+)\.", official):
        official = f"decoder.up.{4 - int(stage[1])}.{official[stage.end() :]}"  # no rule matches -1
    return our_name(official, "ldm")


def mar_architecture(shapes: dict[str, tuple[int, ...]]) -> dict[str, int | float]:
    """Sizes of a masked MAR with a diffusion head, from the shapes of its tensors under our names; the number of heads
    affects no shape. Raises KeyError for a missing tensor, another Exception for an impossible shape."""
    blocks = {match[0] for name in shapes if (match := re.match(r".+blocks\.\d+", name))}
    depths = Counter(block.rpartition("blocks.")[0] for block in blocks)
    dim, num_tokens = shapes["backbone.mask_token"][2], shapes["backbone.head_positions"][1]
    return {
        "dim": dim,
        "num_tokens": num_tokens,
        "num_classes": shapes["backbone.class_embedding.embedding.weight"][0],
        "token_dim": shapes["head.net.input.weight"][1],
        "head_width": shapes["head.net.input.weight"][0],
        "encoder_depth": depths["backbone.encoder_"],
        "decoder_depth": depths["backbone.decoder_"],
        "head_depth": depths["head.net."],
        "num_class_tokens": shapes["backbone.encoder_positions"][1] - num_tokens,
        "mlp_ratio": shapes["backbone.encoder_blocks.0.mlp.fc1.weight"][0] / dim,
    }
