"""Packed layers compute what plain ones do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mar_bench.models.packed import pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def test_large_layers_are_packed_and_equal():
    net = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256), nn.Linear(256, 8))
    names, x = list(net.state_dict()), torch.randn(3, 7, 256)
    with torch.inference_mode():
        plain = net(x)
        assert pack(net) == 2 and list(net.state_dict()) == names
        torch.testing.assert_close(net(x), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(x[0, :1]), plain[0, :1], rtol=1e-5, atol=1e-5)


def test_gradients_and_other_types_use_the_plain_weights():
    layer = nn.Linear(256, 256)
    assert pack(layer) == 1
    layer.weight.data.zero_()
    assert layer(torch.ones(1, 256)).equal(layer.bias[None])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(1, 256, dtype=torch.bfloat16))
