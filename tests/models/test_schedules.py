"""Schedules compared with slow reference implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mar_bench.config.spec import SamplingSpec, TruncatedNormalMasking, UniformMasking
from mar_bench.models.schedules import (
    ar_steps,
    guidance_scale,
    learning_rate,
    mask_ratio,
    random_share,
    tokens_per_step,
)

# --- tokens a step ---------------------------------------------------------------------------------------


def drawn_by_masks(length: int, steps: int) -> list[int]:
    """The official loop: a mask over positions that shrinks, counted."""
    mask, counts = np.ones(length, dtype=bool), []
    for step in range(steps):
        after = max(1, min(mask.sum() - 1, math.floor(length * np.cos(math.pi / 2 * (step + 1) / steps))))
        new = np.arange(length) < after
        drawn = mask if step == steps - 1 else mask & ~new
        counts.append(int(drawn.sum()))
        mask = new
    return counts


@pytest.mark.parametrize(("length", "steps"), [(256, 64), (256, 255), (1024, 64), (64, 8), (16, 6), (9, 4)])
def test_token_counts_match_the_official_loop(length, steps):
    assert tokens_per_step(length, steps) == drawn_by_masks(length, steps)
    assert tokens_per_step(64, 8) == [2, 3, 6, 8, 10, 11, 12, 12] and tokens_per_step(5, 1) == [5]
    assert all(tokens_per_step(n, n) == [1] * n for n in range(1, length))


def test_other_schedules_draw_more_at_first():
    """Half way through, cosine has drawn 1 - cos(45 degrees) of the tokens, square a quarter and linear half."""
    drawn = {kind: sum(tokens_per_step(256, 64, kind)[:32]) for kind in ("cosine", "square", "linear")}
    assert drawn == {"cosine": 75, "square": 64, "linear": 128}
    assert tokens_per_step(256, 64, "linear") == [4] * 64
    for kind in drawn:
        assert tokens_per_step(16, 16, kind) == [1] * 16
        assert sum(tokens_per_step(17, 5, kind)) == 17


# --- what a step does ------------------------------------------------------------------------------------


def test_steps_tile_the_tokens():
    steps = ar_steps(SamplingSpec(num_ar_steps=6, num_diffusion_steps=25), "random", 16)
    assert [step.new for step in steps] == tokens_per_step(16, 6)
    assert [step.known for step in steps] == [sum(tokens_per_step(16, 6)[:k]) for k in range(6)]
    assert all(step.asked == step.new and step.guidance == 1 and step.denoising == 25 for step in steps)
    assert [step.asked for step in ar_steps(SamplingSpec(num_ar_steps=3), "confidence", 16)] == [16, 13, 8]
    assert len(ar_steps(SamplingSpec(num_ar_steps=None, num_diffusion_steps=None), "raster", 16)) == 16


@pytest.mark.parametrize("length", [9, 16])
def test_checkerboard_order_draws_the_second_colour_in_one_step(length):
    first = (length + 1) // 2
    for steps in range(2, first + 2):
        new = [step.new for step in ar_steps(SamplingSpec(num_ar_steps=steps), "checkerboard", length)]
        assert new == [*tokens_per_step(first, steps - 1), length - first]


def test_denoising_steps_are_annealed_over_ar_steps():
    """DiSA's 50 to 5 in equal decrements, and in any order of the two."""
    for first, last in ((50, 5), (5, 50)):
        given = SamplingSpec(num_ar_steps=10, num_diffusion_steps=first, last_diffusion_steps=last)
        found = [step.denoising for step in ar_steps(given, "random", 64)]
        assert found == [round(first + (last - first) * k / 9) for k in range(10)]
        assert (found[0], found[-1]) == (first, last)
    one = SamplingSpec(num_ar_steps=1, num_diffusion_steps=50, last_diffusion_steps=5)
    assert [step.denoising for step in ar_steps(one, "random", 64)] == [50]


def test_guidance_can_be_left_out_by_progress():
    given = SamplingSpec(num_ar_steps=16, guidance_scale=3.0, guidance_interval=(0.25, 0.75))
    always = ar_steps(SamplingSpec(num_ar_steps=16, guidance_scale=3.0), "random", 16)
    scales = [step.guidance for step in ar_steps(given, "random", 16)]
    assert scales == [step.guidance if 4 <= step.known < 12 else 1 for step in always]
    assert all(step.guidance > 1 for step in always)


# --- guidance --------------------------------------------------------------------------------------------


def test_linear_guidance_is_the_official_formula():
    for unknown in range(1, 17):
        expected = 1 + (3.0 - 1) * (16 - unknown) / 16
        assert guidance_scale("linear", 3.0, 16, unknown) == pytest.approx(expected)
    assert guidance_scale("linear", 3.0, 16, 0) == guidance_scale("linear", 3.0, 16, 1)
    assert guidance_scale("linear", 1.0, 16, 4) == 1


# --- learning rate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine", "inverse_sqrt"])
def test_warm_up_is_linear_and_ends_at_the_base_rate(schedule):
    rates = [learning_rate(schedule, 0.8, step, 4, 100) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_cosine_falls_to_zero_over_the_steps_after_warm_up():
    for step in range(10, 111):
        expected = 0.8 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert learning_rate("cosine", 0.8, step, 10, 110) == pytest.approx(expected)
    assert learning_rate("cosine", 0.8, 110, 10, 110) == pytest.approx(0)


def test_inverse_square_root_holds_for_the_first_half():
    rates = [learning_rate("inverse_sqrt", 0.8, step, 4, 100) for step in range(4, 100)]
    assert rates[: 50 - 4 + 1] == [0.8] * 47
    assert rates[72 - 4] == pytest.approx(0.8 * math.sqrt(50 / 72))
    assert rates[46:] == sorted(rates[46:], reverse=True)


# --- random orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.75), (0.0, 1.0), (0.25, 0.25), (0.0, 0.0), (1.0, 1.0)])
def test_the_share_of_random_orders_is_that_of_rar(start, end):
    def official(step: int) -> float:
        """With steps of 100; its code divides by zero if both ends are this step."""
        if step < 100 * start:
            return 1.0
        return 0.0 if step > 100 * end or start == end else 1 - (step - 100 * start) / (100 * end - 100 * start)

    found = [random_share((start, end), step, 100) for step in range(100)]
    assert found == pytest.approx([official(step) for step in range(100)])
    assert random_share((start, end), 2**40, 100) == 0  # the losses at the end of a training are of raster order
    assert random_share(None, 3, 100) == random_share(None, 2**40, 100) == 1


# --- masking ---------------------------------------------------------------------------------------------

UNIFORMS = np.linspace(0, 1, 201)[:-1]


@pytest.mark.parametrize("masking", [
    TruncatedNormalMasking(),
    TruncatedNormalMasking(low=0.2, high=0.9, mean=0.4, std=0.1),
    TruncatedNormalMasking(low=0.0, high=1.0, mean=0.5, std=2.0),
])  # fmt: skip
def test_truncated_normal_matches_scipy(masking):
    from scipy.stats import truncnorm

    low, high = ((edge - masking.mean) / masking.std for edge in (masking.low, masking.high))
    expected = truncnorm.ppf(UNIFORMS, low, high, loc=masking.mean, scale=masking.std)
    assert [mask_ratio(masking, u) for u in UNIFORMS] == pytest.approx(expected.tolist(), abs=1e-9)


def test_ratios_stay_within_their_bounds():
    for masking in (TruncatedNormalMasking(), UniformMasking(low=0.3, high=0.6)):
        ratios = [mask_ratio(masking, u) for u in (0.0, 1e-12, 0.5, 1 - 2**-53)]
        assert masking.low <= min(ratios) <= max(ratios) <= masking.high
    ratios = [mask_ratio(UniformMasking(low=0.2, high=0.6), u) for u in (0, 0.25, 0.5)]
    assert ratios == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize("masking", [
    TruncatedNormalMasking(low=0.7, high=0.7),
    TruncatedNormalMasking(low=0.7, high=1.0, mean=-50.0, std=0.1),  # no probability between the bounds
    UniformMasking(low=0.7, high=0.7),
])  # fmt: skip
def test_a_range_without_width_gives_its_low_end(masking):
    assert mask_ratio(masking, 0.5) == 0.7
