"""The contract of every head, and that one step of twice the size does what two steps do once it has learnt it."""

from __future__ import annotations

import pytest
import torch
from mar_bench_shortcut import ShortcutHead
from mar_bench_shortcut.head import Shortcut

from mar_bench.config.experiment import load_experiment
from mar_bench.testing import WIDTH, B, HeadContract, L, sampling_for, space_for, tokens_in, training_loss, z
from mar_bench.utils.noise import NoiseSource


class TestShortcut(HeadContract):
    @pytest.fixture
    def spec(self):
        return ShortcutHead(depth=2, width=16, draws_per_token=3, smallest_step=8)


def test_it_is_a_row_of_heads_at_every_scale():
    for scale in ("smoke", "tiny", "paper"):
        experiment = load_experiment("heads", scale)
        row = experiment.rows["kl/shortcut/unguided"]
        assert isinstance(row.model.head, ShortcutHead) and row.sampling.num_diffusion_steps == 4
        assert row.model.head.width == experiment.rows["kl/flow/unguided"].model.head.width


def test_one_step_learns_to_do_what_many_do():
    """On one token for each condition: after training, samples of one step and of eight are that token."""
    torch.manual_seed(0)
    spec = ShortcutHead(depth=2, width=64, draws_per_token=8, smallest_step=8)
    head, target = Shortcut(spec, space_for(spec), WIDTH), tokens_in(space_for(spec), B)
    optimiser = torch.optim.Adam(head.parameters(), lr=2e-3)
    for step in range(400):
        drawn = head.draw_training(NoiseSource(0, range(B)), step, L)
        loss = head.loss(z(), target, drawn).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for steps in (1, 2, 8):
        settings = sampling_for(spec, num_diffusion_steps=steps)
        with torch.inference_mode():
            tokens = head.sample(z(), head.draw_sampling(NoiseSource(1, range(B)), 0, L, settings), settings)
        assert (tokens - target).square().mean().sqrt() < 0.2 * target.std(), f"{steps} steps"
    assert training_loss(head, z(), target).mean() < 0.2
