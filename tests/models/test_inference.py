"""Models prepared for sampling: weights in bf16, and packed layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mar_bench.models.build import generate
from mar_bench.models.inference import lower, pack
from mar_bench.utils.noise import NoiseSource
from tests.tiny import NUM_CLASSES, PARTS, generator_of, sampling_of

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@torch.inference_mode()
@pytest.mark.parametrize(("backbone", "head"), PARTS)
def test_bf16_condition_is_close_and_all_heads_sample_with_it(backbone, head):
    model, labels = generator_of(backbone, head), torch.arange(4) % NUM_CLASSES
    sampling = sampling_of(head, guidance_scale=2.0)
    plain = generate(model, labels, sampling, NoiseSource(0, range(4)))
    order = torch.arange(9).expand(4, 9)
    z = model.backbone.predict(plain[:, :4], labels, order)
    lower(model)
    with torch.autocast("cpu", torch.bfloat16):
        off = model.backbone.predict(plain[:, :4], labels, order) - z
    assert 0 < off.abs().mean() < 0.02 * z.std()
    low = generate(model, labels, replace(sampling, precision="bf16"), NoiseSource(0, range(4)))
    assert low.dtype == plain.dtype and low.shape == plain.shape
    assert not (low.is_floating_point() and torch.equal(low, plain))


def test_only_what_autocast_would_cast_is_kept_in_bf16():
    model = generator_of("masked", "diffusion")
    lower(model)
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    assert {p.dtype for part in linear for p in part.parameters()} == {torch.bfloat16}
    count = sum(len(list(part.parameters())) for part in linear)
    assert sum(p.dtype == torch.float32 for p in model.parameters()) == len(list(model.parameters())) - count > 0
    mixture = generator_of("causal", "gmm")
    lower(mixture)
    assert mixture.head.output.weight.dtype == torch.float32, "it computes without autocast"


@needs_onednn
def test_large_layers_are_packed_and_equal():
    net = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256), nn.Linear(256, 8))
    names, x = list(net.state_dict()), torch.randn(3, 7, 256)
    with torch.inference_mode():
        plain = net(x)
        assert pack(net) == 2 and list(net.state_dict()) == names
        torch.testing.assert_close(net(x), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(x[0, :1]), plain[0, :1], rtol=1e-5, atol=1e-5)


@needs_onednn
def test_gradients_and_other_types_use_the_plain_weights():
    layer = nn.Linear(256, 256)
    assert pack(layer) == 1
    layer.weight.data.zero_()
    assert layer(torch.ones(1, 256)).equal(layer.bias[None])
    layer.to(torch.bfloat16)
    with torch.inference_mode():
        assert layer(torch.ones(1, 256, dtype=torch.bfloat16)).equal(layer.bias[None])
