"""The published models' exact sizes; and names that no official model has."""

from __future__ import annotations

import pytest

from mar_bench.models.pretrained.names import our_name
from tests.parity.agreements import HEAD_SIZES, SIZES, denoising_mlp, parameters, published


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    assert parameters(published(size)) == SIZES[size][-1]


@pytest.mark.parametrize(("width", "millions"), HEAD_SIZES.items())
def test_denoising_mlp_sizes(width, millions):
    assert f"{parameters(denoising_mlp(width)) / 1e6:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize(
    "name",
    [
        "",
        "class_emb",
        "encoder_blocks.0.attn.weight",
        "diffloss.net.time_embed.mlp.1.bias",
        "model.mask_token",
        "mask_token.weight",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(KeyError):
        our_name(name)
