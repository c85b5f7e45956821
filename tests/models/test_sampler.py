"""The generation loop: which positions, in which steps, under which guidance, with which noise."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mar_bench.config.spec import Continuous, Discrete, SamplingSpec
from mar_bench.models.orders import permutation
from mar_bench.models.sampler import generate
from mar_bench.models.schedules import tokens_per_step
from mar_bench.utils.noise import NoiseSource
from tests.tiny import NUM_CLASSES, PARTS, assert_same_tokens, generator_of, sampling_of

L = 9
parts = pytest.mark.parametrize(("backbone", "head"), PARTS)


class Recorder(nn.Module):
    """A model without weights: z is the position asked for (times the class, if any), the token drawn is z.

    Keeps what the sampler asked for in each step."""

    def __init__(self, order: str, side: int = 3):
        super().__init__()
        self.order, self.length, self.space = order, side * side, Discrete(side * side, (side, side))
        self.order_seed = 1
        self.backbone = self.head = self
        self.known: list[torch.Tensor] = []
        self.orders: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.scales: list[float] = []
        self.caches: list[object] = []
        self.denoising: list[int] = []

    def new_cache(self) -> object:
        return object()

    def predict(self, known, labels, order, n, cache):
        k = known.shape[1]
        assert torch.equal(known, order[:, :k])
        self.known.append(known)
        self.orders.append(order)
        self.labels.append(labels)
        self.caches.append(cache)
        return order[:, k : k + n]

    def draw_sampling(self, noise, step, n, sampling):
        return noise.uniform("sample", step, (n,))

    def sample(self, z, drawn, sampling, scale, z_uncond):
        assert (z_uncond is None) == (scale == 1)
        self.denoising.append(sampling.num_diffusion_steps)
        assert drawn.shape == z.shape
        self.scales.append(scale)
        return z.clone()


class NoiseTeller(Recorder):
    """Draws tokens that are the noise itself, so that two images are equal when their noise is."""

    def __init__(self, order: str):
        super().__init__(order)
        self.space = Continuous(1, (3, 3))

    def predict(self, known, labels, order, n, cache):
        return order[:, known.shape[1] : known.shape[1] + n, None]

    def sample(self, z, drawn, sampling, scale, z_uncond):
        return drawn[..., None]


def labels_of(indices) -> torch.Tensor:
    return torch.tensor([i % NUM_CLASSES for i in indices])


# --- positions and steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["raster", "permuted", "random"])
@pytest.mark.parametrize("steps", [*range(1, L + 1), None])
def test_each_position_is_drawn_once_and_lands_in_its_place(order, steps):
    model, batch = Recorder(order), 4
    sampling, noise = SamplingSpec(num_ar_steps=steps), NoiseSource(0, range(batch))
    tokens = generate(model, labels_of(range(batch)), sampling, noise)
    assert torch.equal(tokens, torch.arange(L).expand(batch, L))
    counts = [0, *tokens_per_step(L, steps or L)]
    assert [k.shape[1] for k in model.known] == [sum(counts[: i + 1]) for i in range(steps or L)]
    assert all(torch.equal(o, model.orders[0]) for o in model.orders)
    assert len({id(c) for c in model.caches}) == 1


def test_the_order_is_the_trained_one_unless_the_sampling_says_otherwise():
    def order_of(trained: str, asked: str | None) -> torch.Tensor:
        model, sampling = Recorder(trained), SamplingSpec(num_ar_steps=2, order=asked)
        generate(model, labels_of(range(3)), sampling, NoiseSource(0, range(3)))
        return model.orders[0]

    raster = torch.arange(L).expand(3, L)
    assert torch.equal(order_of("raster", None), raster)
    assert torch.equal(order_of("random", "raster"), raster)
    assert not torch.equal(order_of("random", None), raster)
    assert torch.equal(order_of("raster", "random"), order_of("random", None))
    permuted = torch.tensor(permutation(L, seed=1)).expand(3, L)
    assert torch.equal(order_of("permuted", None), permuted)
    assert torch.equal(order_of("random", "permuted"), permuted)


def test_the_clock_sees_every_step_of_each_part():
    seen: list[str] = []
    clock = lambda part: seen.append(part) or nullcontext()  # noqa: E731
    generate(Recorder("random"), labels_of(range(2)), SamplingSpec(num_ar_steps=3), NoiseSource(0, range(2)), clock)
    assert seen == ["backbone", "noise", "head"] * 3


# --- guidance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 8, 64])
def test_linear_guidance_grows_with_the_share_of_known_tokens(steps):
    model, length, w = Recorder("random", side=8), 64, 3.5
    sampling = SamplingSpec(num_ar_steps=steps, guidance_scale=w, guidance_schedule="linear")
    generate(model, labels_of(range(2)), sampling, NoiseSource(0, range(2)))
    after = [length - k.shape[1] for k in model.known[1:]] + [1]  # the last step counts as 1, not 0
    assert model.scales == pytest.approx([1 + (w - 1) * (length - m) / length for m in after])
    assert model.scales == sorted(model.scales)
    generate(model, labels_of(range(2)), replace(sampling, guidance_schedule="constant"), NoiseSource(0, range(2)))
    assert model.scales[steps:] == [w] * steps


def test_guidance_doubles_the_batch_with_a_half_without_class():
    model, labels = Recorder("random"), torch.tensor([4, 2])
    generate(model, labels, SamplingSpec(num_ar_steps=3, guidance_scale=2.0), NoiseSource(0, range(2)))
    for k, order, seen in zip(model.known, model.orders, model.labels):
        assert seen.tolist() == [4, 2, -1, -1]
        assert torch.equal(order[:2], order[2:])
        assert torch.equal(k[:2], k[2:])
    model = Recorder("random")
    generate(model, labels, SamplingSpec(num_ar_steps=3), NoiseSource(0, range(2)))
    assert [seen.tolist() for seen in model.labels] == [[4, 2]] * 3


@pytest.mark.parametrize("cached", [False, True])
def test_steps_without_guidance_cost_half_unless_a_cache_needs_both_halves(cached):
    model, labels = Recorder("random"), torch.tensor([4, 2])
    model.new_cache = object if cached else lambda: None
    sampling = SamplingSpec(num_ar_steps=9, guidance_scale=2.0, guidance_interval=(1 / 3, 2 / 3))
    generate(model, labels, sampling, NoiseSource(0, range(2)))
    guided = [False] * 3 + [True] * 3 + [False] * 3
    assert [scale != 1 for scale in model.scales] == guided
    assert [len(seen) == 4 for seen in model.labels] == [cached or now for now in guided]


def test_the_head_is_told_the_denoising_steps_of_the_ar_step():
    model = Recorder("random")
    sampling = SamplingSpec(num_ar_steps=3, num_diffusion_steps=50, last_diffusion_steps=10)
    generate(model, labels_of(range(2)), sampling, NoiseSource(0, range(2)))
    assert model.denoising == [50, 30, 10]


@parts
def test_guidance_1_equals_none_and_4_does_not(backbone, head):
    model, noise = generator_of(backbone, head), NoiseSource(0, range(4))

    def draw(scale: float, schedule: str = "linear") -> torch.Tensor:
        sampling = sampling_of(head, guidance_scale=scale, guidance_schedule=schedule)
        return generate(model, labels_of(range(4)), sampling, noise)

    none, almost = draw(1.0), 1 + 1e-12  # at 1 itself the unconditional half is not computed
    for schedule in ("linear", "constant"):
        assert_same_tokens(draw(almost, schedule), none)
    assert not torch.equal(draw(4.0), none)


# --- noise and batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_an_image_gets_the_same_noise_whatever_the_batch(steps):
    model, sampling = NoiseTeller("random"), SamplingSpec(num_ar_steps=steps)

    def draw(indices) -> torch.Tensor:
        return generate(model, labels_of(indices), sampling, NoiseSource(3, indices))

    together = draw(range(8))
    assert torch.equal(torch.cat([draw([i]) for i in range(8)]), together)
    assert torch.equal(draw([6, 1, 3]), together[[6, 1, 3]])
    assert together.unique().numel() == together.numel()  # nor do two images or two steps share it


def draw_one(model, sampling, known, step: int, rows: list[int]) -> tuple[torch.Tensor, ...]:
    """z and the token of one step for some rows of a batch of 8, given the known; then nudged both ways."""
    guided = sampling.guidance_scale != 1
    order = NoiseSource(0, rows).uniform("order", 0, (L,)).argsort(1).repeat(1 + guided, 1)
    labels = torch.cat([labels_of(rows), torch.full((guided * len(rows),), -1)])
    both = rows + [i + 8 for i in rows] if guided else rows
    found = model.backbone.predict(known[both], labels, order, 1)
    z, z_uncond = found.chunk(2) if guided else (found, None)
    drawn = model.head.draw_sampling(NoiseSource(0, rows), step, 1, sampling)
    scale = sampling.guidance_scale
    return z, *(model.head.sample(z, drawn + nudge, sampling, scale, z_uncond) for nudge in (0.0, -1e-5, 1e-5))


@parts
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.inference_mode()
def test_tokens_agree_across_batch_sizes_under_the_same_known_tokens(backbone, head, guidance):
    """Codes too, except where the two candidates lie within tolerance."""
    model, sampling, known = generator_of(backbone, head), sampling_of(head, guidance_scale=guidance), []
    predict = model.backbone.predict
    model.backbone.predict = lambda tokens, *rest: known.append(tokens) or predict(tokens, *rest)
    generate(model, labels_of(range(8)), sampling, NoiseSource(0, range(8)))
    model.backbone.predict = predict
    for step, tokens in enumerate(known):
        z, together, *_ = draw_one(model, sampling, tokens, step, [*range(8)])
        for rows in ([5], [0, 1, 2]):
            z_alone, alone, below, above = draw_one(model, sampling, tokens, step, rows)
            torch.testing.assert_close(z_alone, z[rows], rtol=1e-5, atol=1e-5)
            if alone.is_floating_point():
                assert_same_tokens(alone, together[rows])
            else:
                assert ((alone == together[rows]) | (below != above)).all()


BATCHES = ([0, 1, 2, 3], [4, 5, 6, 7])


def batch_digests(backbone: str, head: str, batches) -> dict[int, str]:
    """First index of a batch -> SHA-256 of its tokens."""
    model = generator_of(backbone, head)
    return {
        batch[0]: hashlib.sha256(
            generate(model, labels_of(batch), sampling_of(head), NoiseSource(0, batch)).numpy().tobytes()
        ).hexdigest()
        for batch in batches
    }


@parts
def test_the_same_batches_give_the_same_bits_in_any_order(backbone, head):
    forwards = batch_digests(backbone, head, BATCHES)
    assert batch_digests(backbone, head, BATCHES[::-1]) == forwards
    assert len(set(forwards.values())) == 2


def test_the_same_batches_give_the_same_bits_in_another_process():
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.models.test_sampler import *\n"
        "print({p: batch_digests(*p, BATCHES[1:]) for p in PARTS[::5]})"
    )
    root, command = Path(__file__).parents[2], [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str({p: batch_digests(*p, BATCHES[1:]) for p in PARTS[::5]})
