"""Randomness is a function of (seed, purpose, index, step) only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mar_bench.utils.noise import NoiseSource, epoch_indices, philox, seeded


def philox_words(key: list[int], counter: list[int]) -> list[int]:
    """Four words of Philox4x64-10 (Salmon et al. 2011) at one counter."""
    full = 2**64 - 1
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & full, (p0 >> 64) ^ c3 ^ k1, p0 & full
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & full, (k1 + 0xBB67AE8584CAA73B) & full
    return [c0, c1, c2, c3]


def test_index_and_step_are_the_high_words_of_the_counter():
    stream = philox(7, "sample", index=5, step=3)
    key = [int(k) for k in stream.bit_generator.state["state"]["key"]]
    words = stream.bit_generator.random_raw(12).tolist()
    expected = [philox_words(key, [block, 0, 3, 5]) for block in (1, 2, 3)]
    assert words == list(itertools.chain.from_iterable(expected))
    assert key[0] == 7


@pytest.mark.parametrize("changed", ["seed", "purpose", "index", "step"])
def test_every_part_of_the_name_matters(changed):
    name = {"seed": 1, "purpose": "sample", "index": 2, "step": 3}
    other = {**name, changed: "order" if changed == "purpose" else name[changed] + 1}
    assert philox(**name).random() == philox(**name).random()
    assert philox(**name).random() != philox(**other).random()


def test_one_value_of_each_kind_is_pinned():
    noise = NoiseSource(1, [2, 30_000])
    assert noise.uniform("order", 3, ()).tolist() == pytest.approx([0.2889213562011719, 0.2664295434951782], abs=1e-7)
    assert noise.normal("sample", 3, ()).tolist() == pytest.approx([0.5074164271354675, -0.5136961340904236], abs=1e-6)
    assert noise.integers("timestep", 3, 1000, ()).tolist() == [442, 484]
    assert noise.shared("mask", 3) == pytest.approx(0.5891243613412963, abs=1e-12)
    assert epoch_indices(1, 3, range(4), 4, 10).tolist() == [5, 7, 9, 1]
    with seeded(1, "init"):
        assert torch.rand(1).item() == pytest.approx(0.06742072105407715, abs=1e-6)


def draws(indices, seed=0, step=0) -> list[torch.Tensor]:
    noise = NoiseSource(seed, indices)
    return [
        noise.normal("sample", step, (3, 2)),
        noise.uniform("order", step, (5,)),
        noise.integers("timestep", step, 1000, (4,)),
    ]


def test_an_images_noise_does_not_depend_on_its_batch():
    together = draws(range(8))
    for rows in ([3], [7, 0, 2], [4, 5, 6, 7]):
        for alone, every in zip(draws(rows), together):
            assert torch.equal(alone, every[rows])
    for every, seed, step in zip(together, draws(range(8), seed=1), draws(range(8), step=1)):
        assert not torch.equal(every, seed) and not torch.equal(every, step)
    assert NoiseSource(0, [1]).shared("mask", 4) == NoiseSource(0, [8, 9]).shared("mask", 4)


def test_shapes_types_and_ranges():
    noise = NoiseSource(0, range(500))
    normal, uniform = noise.normal("a", 0, (20, 3)), noise.uniform("a", 0, (20, 3))
    integers = noise.integers("a", 0, 7, (20,))
    assert (normal.shape, normal.dtype) == ((500, 20, 3), torch.float32)
    assert (uniform.shape, uniform.dtype) == ((500, 20, 3), torch.float32)
    assert (integers.shape, integers.dtype) == ((500, 20), torch.int64)
    assert noise.uniform("a", 0, ()).shape == (500,)
    assert (normal.mean().item(), normal.std().item()) == pytest.approx((0, 1), abs=0.02)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert integers.unique().tolist() == list(range(7))


@pytest.mark.parametrize(("batch_size", "size"), [(4, 12), (5, 12), (12, 12), (32, 7)])
def test_an_epoch_shows_every_image_once(batch_size, size):
    steps = [epoch_indices(0, step, range(batch_size), batch_size, size) for step in range(3 * size)]
    seen = np.concatenate(steps)
    epochs = seen[: len(seen) // size * size].reshape(-1, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert len({tuple(e) for e in epochs}) > 1


def test_slots_of_a_step_can_be_split_between_ranks():
    whole = epoch_indices(0, 5, range(8), 8, 30)
    halves = [epoch_indices(0, 5, slots, 8, 30) for slots in (range(4), range(4, 8))]
    assert np.concatenate(halves).tolist() == whole.tolist()
    assert epoch_indices(1, 5, range(8), 8, 30).tolist() != whole.tolist()


def test_seeded_repeats_and_restores_the_state_of_torch():
    torch_state = torch.random.get_rng_state()

    def inside(seed: int, purpose: str) -> list[float]:
        with seeded(seed, purpose):
            return torch.rand(3).tolist()

    assert inside(0, "init") == inside(0, "init")
    assert len({tuple(inside(s, p)) for s in (0, 1) for p in ("init", "tokenizer-init")}) == 4
    with pytest.raises(KeyError), seeded(0, "init"):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), torch_state)
