"""The training loss of the autoregressive generator, with fakes that record their arguments."""

from __future__ import annotations

import torch
from torch import nn

from mar_bench.config.spec import Discrete
from mar_bench.models.ar import ARGenerator
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


def generator(order: str = "random", label_dropout: float = 0.0) -> ARGenerator:
    return ARGenerator(order, Backbone(), Head(), Discrete(L, (3, 3)), label_dropout)


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
