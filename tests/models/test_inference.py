"""Models prepared for sampling: weights in bf16, and packed layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mar_bench.models.build import generate
from mar_bench.models.inference import Replayed, compile_model, finalise, lower, pack
from mar_bench.models.schedules import ar_steps
from mar_bench.utils.errors import UserError
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


@torch.inference_mode()
@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_timesteps_are_embedded_once(head):
    model, labels = generator_of("masked", head), torch.arange(4) % NUM_CLASSES
    sampling = sampling_of(head, guidance_scale=2.0, num_ar_steps=3)
    expected, calls = generate(model, labels, sampling, NoiseSource(0, range(4))), []
    model.head.net.time_mlp.register_forward_hook(lambda *given: calls.append(1))
    generate(model, labels, sampling, NoiseSource(0, range(4)))
    assert len(calls) == 3 * sampling.num_diffusion_steps, "the weights may still change"
    finalise(model)
    calls.clear()
    for _ in range(2):
        assert torch.equal(generate(model, labels, sampling, NoiseSource(0, range(4))), expected)
    assert len(calls) == sampling.num_diffusion_steps


# --- graphs, on a CPU as calls that are made again on the same memory --------------------------------------------


def remade(call):
    """What ``inference.captured`` gives, without a GPU."""
    tokens, magnitudes = call()

    def again():
        new_tokens, new_magnitudes = call()
        tokens.copy_(new_tokens)
        for name, value in new_magnitudes.items():
            magnitudes[name].copy_(value)

    return again, (tokens, magnitudes)


@torch.inference_mode()
@pytest.mark.parametrize("head", ["diffusion", "flow"])
@pytest.mark.parametrize(
    "settings", [{}, {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "guidance_interval": (0.3, 1)}]
)
def test_graphs_draw_the_same_tokens(head, settings):
    model, labels = generator_of("masked", head), torch.arange(4) % NUM_CLASSES
    sampling = sampling_of(head, num_ar_steps=5, **settings)
    expected = [generate(model, labels, sampling, NoiseSource(seed, range(4))) for seed in (0, 1)]
    model.head.sample = replayed = Replayed(model.head.sample, remade)
    for seed in (0, 1, 0):
        assert torch.equal(generate(model, labels, sampling, NoiseSource(seed, range(4))), expected[seed])
    assert len(replayed.kept) == len({(step.new, step.guidance != 1) for step in ar_steps(sampling, "random", 9)})


@torch.inference_mode()
def test_graphs_report_values_that_are_not_finite():
    model, labels = generator_of("masked", "diffusion"), torch.arange(2)
    model.head.sample = Replayed(model.head.sample, remade)
    sampling = sampling_of("diffusion", clamp_x0=4.0)
    generate(model, labels, sampling, NoiseSource(0, range(2)))
    model.head.net.output.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="predictions of x0"):
        generate(model, labels, sampling, NoiseSource(0, range(2)))


@torch.inference_mode()
def test_what_cannot_be_captured_is_computed_with_a_warning():
    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    model, labels = generator_of("masked", "diffusion"), torch.arange(2)
    sampling = sampling_of("diffusion", guidance_scale=2.0)
    expected = generate(model, labels, sampling, NoiseSource(0, range(2)))
    model.head.sample = Replayed(model.head.sample, refuse)
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        assert torch.equal(generate(model, labels, sampling, NoiseSource(0, range(2))), expected)


@torch.inference_mode()
@pytest.mark.parametrize(("backbone", "head"), [("masked", "diffusion"), ("causal", "flow")])
def test_compiled_models_draw_the_same_tokens(backbone, head):
    """As torch.compile records the code; the compiler itself takes a minute and is tried by `make gpu-check`."""
    model, labels = generator_of(backbone, head), torch.arange(3) % NUM_CLASSES
    every = sampling_of(head), sampling_of(head, guidance_scale=2.0)
    expected = [generate(model, labels, sampling, NoiseSource(0, range(3))) for sampling in every]
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compile_model(model, backend="eager")
    for sampling, tokens in zip(every, expected):
        assert torch.equal(generate(model, labels, sampling, NoiseSource(0, range(3))), tokens)
    assert 0 < torch._dynamo.utils.counters["frames"]["ok"] < 40, "compiled again for each size"
