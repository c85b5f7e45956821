"""The training loss of the autoregressive generator, with fakes that record their arguments."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from mar_bench.config.spec import Discrete
from mar_bench.models.ar import ARGenerator
from mar_bench.models.orders import draw_order
from mar_bench.models.schedules import random_share
from mar_bench.utils.noise import NoiseSource

B, L = 64, 9


class Backbone(nn.Module):
    """z is the position it stands for; keeps what it was given."""

    def num_known(self, u: float, length: int) -> int:
        self.u = u
        return 4

    def forward(self, tokens, labels, order, num_known):
        self.given = tokens, labels, order, num_known
        return order[:, num_known:]


class Head(nn.Module):
    """The loss names the position, the token and the draw that met: position + 10 token + 100 draw."""

    def draw_training(self, noise, step, length):
        return {"draw": torch.arange(length).expand(len(noise.indices), length)}

    def loss(self, z, target, drawn):
        return z + 10 * target + 100 * drawn["draw"]


def generator(order: str = "random", label_dropout: float = 0.0, **more) -> ARGenerator:
    return ARGenerator(order, Backbone(), Head(), Discrete(L, (3, 3)), label_dropout, **more)


TOKENS, LABELS = torch.arange(L).expand(B, L), torch.arange(B) % 5  # the token at a position is its number


def test_loss_pairs_z_target_and_draws_of_the_same_position():
    model = generator()
    loss = model.loss(TOKENS, LABELS, NoiseSource(0, range(B)), step=3)
    tokens, labels, order, num_known = model.backbone.given
    assert torch.equal(loss, 111 * order[:, 4:])
    assert torch.equal(tokens, order)
    assert torch.equal(labels, LABELS)
    assert num_known == 4


def test_the_order_is_drawn_anew_for_each_image_and_step():
    model, orders = generator(), []
    for step in range(3):
        model.loss(TOKENS, LABELS, NoiseSource(0, range(B)), step)
        orders += [tuple(o) for o in model.backbone.given[2].tolist()]
    assert len(set(orders)) == 3 * B
    raster = generator("raster")
    raster.loss(TOKENS, LABELS, NoiseSource(0, range(B)), 0)
    assert torch.equal(raster.backbone.given[2], TOKENS)


def test_the_share_of_random_orders_falls_during_the_training():
    share = partial(random_share, (0.25, 0.75), total_steps=100)
    model, random = generator(random_share=share), generator()
    found, expected = [], []
    for step in range(100):
        for each in (model, random):
            each.loss(TOKENS, LABELS, NoiseSource(0, range(B)), step)
        order, whole = model.backbone.given[2], random.backbone.given[2]
        raster = (order == TOKENS).all(1)
        assert torch.equal(order[~raster], whole[~raster])  # the draws of a training in random order
        found.append(1 - raster.float().mean().item())
        expected.append(share(step))
    assert found[:25] == [1] * 25 and found[75:] == [0] * 25
    middle = torch.tensor(found[25:75]), torch.tensor(expected[25:75])
    assert (middle[0] - middle[1]).abs().max() < 0.25  # four standard deviations of 64 images
    assert (middle[0] - middle[1]).mean().abs() < 0.03


def test_the_permutation_is_that_of_its_seed():
    for seed in (0, 1):
        model = generator("permuted", order_seed=seed)
        model.loss(TOKENS, LABELS, NoiseSource(5, range(B)), 3)
        assert torch.equal(model.backbone.given[2], draw_order("permuted", NoiseSource(0, range(B)), 0, L, seed))


def test_label_dropout_rate_and_independence_of_slots():
    model, dropped = generator(label_dropout=0.25), []
    for step in range(100):
        model.loss(TOKENS, LABELS, NoiseSource(0, range(B)), step)
        labels = model.backbone.given[1]
        assert torch.equal(labels[labels >= 0], LABELS[labels >= 0])
        dropped.append(labels == -1)
    share = torch.stack(dropped).float()
    assert abs(share.mean() - 0.25) < 0.03
    assert share.mean(0).max() < 0.5


def test_mask_ratio_is_drawn_once_per_step():
    draws = []
    for indices, step in ((range(B), 0), (range(B), 1), (range(B // 2, B), 1)):
        model = generator()
        model.loss(TOKENS[: len(indices)], LABELS[: len(indices)], NoiseSource(0, indices), step)
        draws.append(model.backbone.u)
    assert draws[0] != draws[1]
    assert draws[1] == draws[2]
