"""What every backbone promises, on codes and on vectors: who may look at whom, and what z depends on."""

from __future__ import annotations

import pytest
import torch

from mar_bench.config.spec import Continuous, Discrete, TokenSpace
from mar_bench.models.build import BACKBONES
from mar_bench.models.orders import draw_order, gather
from mar_bench.utils.noise import NoiseSource
from tests.tiny import BACKBONE_SPECS, NUM_CLASSES, backbone_of, tokens_in

B, L = 4, 9
SPACES = {"codes": Discrete(11, (3, 3)), "vectors": Continuous(3, (3, 3))}
KINDS = {
    attention: [kind for kind, spec in BACKBONE_SPECS.items() if spec.attention == attention]
    for attention in ("causal", "bidirectional")
}

every_backbone = pytest.mark.parametrize("kind", BACKBONES)
causal_backbone = pytest.mark.parametrize("kind", KINDS["causal"])
bidirectional_backbone = pytest.mark.parametrize("kind", KINDS["bidirectional"])
every_order = pytest.mark.parametrize("order_kind", ["raster", "permuted", "random"])
LABELS = torch.tensor([0, 3, -1, 1])


@pytest.fixture(params=SPACES.values(), ids=SPACES)
def space(request) -> TokenSpace:
    return request.param


def order_of(kind: str = "random") -> torch.Tensor:
    return draw_order(kind, NoiseSource(0, range(B)), 0, L).clone()


def in_order(space: TokenSpace, order: torch.Tensor) -> torch.Tensor:
    return gather(tokens_in(space, B), order)


def changed(tokens: torch.Tensor, rank: int) -> torch.Tensor:
    """Another token at place ``rank`` of every image."""
    out = tokens.clone()
    out[:, rank] = (out[:, rank] + 1) % 11 if out.dim() == 2 else out[:, rank] + 1.0
    return out


def places_that_differ(one: torch.Tensor, other: torch.Tensor) -> list[int]:
    """Places at which z differs by more than rounding in every image; asserts that images agree about it."""
    differs = (one - other).abs().amax(-1) > 1e-4
    assert torch.equal(differs.any(0), differs.all(0))
    return differs[0].nonzero().flatten().tolist()


def test_every_backbone_has_a_spec_of_its_kind():
    assert set(BACKBONES) == set(BACKBONE_SPECS)


@every_backbone
@torch.inference_mode()
def test_z_depends_on_the_class_and_no_class_is_none_of_them(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens = in_order(space, order)

    def z(label: int) -> torch.Tensor:
        return backbone.predict(tokens[:, :3], torch.full((B,), label), order, 1, backbone.new_cache())

    every = [z(label) for label in range(-1, NUM_CLASSES)]
    for i, one in enumerate(every):
        for other in every[:i]:
            assert places_that_differ(one, other) == [0]


@every_backbone
@torch.inference_mode()
def test_z_depends_on_every_known_token(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens = in_order(space, order)
    before = backbone.predict(tokens[:, :4], LABELS, order, 1)
    for rank in range(4):
        after = backbone.predict(changed(tokens, rank)[:, :4], LABELS, order, 1)
        assert places_that_differ(before, after) == [0]


@every_backbone
@torch.inference_mode()
def test_z_depends_on_where_known_tokens_and_targets_are(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens = in_order(space, order)
    before = backbone.predict(tokens[:, :4], LABELS, order, 1)
    for place in (0, 3, 4):  # two of the known tokens, the target
        moved = order.clone()
        moved[:, [place, 7]] = order[:, [7, place]]
        assert places_that_differ(before, backbone.predict(tokens[:, :4], LABELS, moved, 1)) == [0]


@every_backbone
@every_order
@torch.inference_mode()
def test_steps_with_a_cache_equal_steps_without_and_the_full_forward(kind, order_kind, space):
    backbone, order = backbone_of(kind, space), order_of(order_kind)
    tokens, cache = in_order(space, order), backbone.new_cache()
    for k in range(L):
        cached = backbone.predict(tokens[:, :k], LABELS, order, 1, cache)
        alone = backbone.predict(tokens[:, :k], LABELS, order, 1)
        known = 0 if kind in KINDS["causal"] else k
        full = backbone(tokens, LABELS, order, known)[:, k - known : k - known + 1]
        torch.testing.assert_close(cached, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cached, full, rtol=1e-5, atol=1e-5)


@every_backbone
def test_the_gradient_reaches_every_parameter(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    known = 0 if kind in KINDS["causal"] else 4
    backbone(in_order(space, order), LABELS, order, known).square().sum().backward()
    unreached = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


# --- causal ----------------------------------------------------------------------------------------------


@causal_backbone
@every_order
@torch.inference_mode()
def test_a_token_changes_z_after_it_and_never_before(kind, order_kind, space):
    backbone, order = backbone_of(kind, space), order_of(order_kind)
    tokens = in_order(space, order)
    before = backbone(tokens, LABELS, order)
    for rank in range(L):
        after = backbone(changed(tokens, rank), LABELS, order)
        assert places_that_differ(before, after) == list(range(rank + 1, L))
        assert torch.equal(before[:, : rank + 1], after[:, : rank + 1])


@causal_backbone
@torch.inference_mode()
def test_a_cache_takes_several_tokens_at_once(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens, cache = in_order(space, order), backbone.new_cache()
    for k in (0, 3, 8):
        cached = backbone.predict(tokens[:, :k], LABELS, order, 1, cache)
        alone = backbone.predict(tokens[:, :k], LABELS, order, 1)
        torch.testing.assert_close(cached, alone, rtol=1e-5, atol=1e-5)


@causal_backbone
@torch.inference_mode()
def test_later_positions_of_the_order_are_not_seen(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens, swapped = in_order(space, order), order.clone()
    swapped[:, [6, 8]] = order[:, [8, 6]]
    before, after = (backbone.predict(tokens[:, :4], LABELS, o, 1) for o in (order, swapped))
    assert torch.equal(before, after)


@causal_backbone
@torch.inference_mode()
def test_blocks_know_which_position_they_predict(kind, space):
    """Not only the head does: the target's position is part of the input."""
    backbone, order = backbone_of(kind, space), order_of()
    backbone.head_positions.zero_()
    tokens, moved = in_order(space, order), order.clone()
    moved[:, [4, 7]] = order[:, [7, 4]]
    before, after = (backbone.predict(tokens[:, :4], LABELS, o, 1) for o in (order, moved))
    assert places_that_differ(before, after) == [0]


@causal_backbone
def test_every_token_is_a_target(kind, space):
    assert [backbone_of(kind, space).num_known(u, L) for u in (0.0, 0.5, 0.999)] == [0, 0, 0]


# --- bidirectional ---------------------------------------------------------------------------------------


@bidirectional_backbone
@torch.inference_mode()
def test_z_does_not_depend_on_the_values_of_targets(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    tokens = in_order(space, order)
    for known in range(L):
        before, other = backbone(tokens, LABELS, order, known), tokens
        for rank in range(known, L):
            other = changed(other, rank)
        assert torch.equal(before, backbone(other, LABELS, order, known))


@bidirectional_backbone
@torch.inference_mode()
def test_z_does_not_depend_on_how_known_tokens_and_targets_are_listed(kind, space):
    backbone, order, known = backbone_of(kind, space), order_of(), 5
    tokens = in_order(space, order)
    before = backbone(tokens, LABELS, order, known)
    listing = torch.tensor([3, 0, 4, 1, 2, 8, 5, 7, 6])  # known tokens among themselves, targets too
    after = backbone(tokens[:, listing], LABELS, order[:, listing], known)
    torch.testing.assert_close(after, before[:, listing[known:] - known], rtol=1e-5, atol=1e-5)


@bidirectional_backbone
@torch.inference_mode()
def test_asking_for_fewer_positions_gives_the_first_of_them(kind, space):
    backbone, order = backbone_of(kind, space), order_of()
    known = in_order(space, order)[:, :3]
    every = backbone.predict(known, LABELS, order, L - 3)
    torch.testing.assert_close(backbone.predict(known, LABELS, order, 2), every[:, :2], rtol=1e-5, atol=1e-5)


@bidirectional_backbone
def test_at_least_one_token_is_a_target(kind, space):
    backbone = backbone_of(kind, space)
    counts = [backbone.num_known(u / 100, L) for u in range(100)]
    assert min(counts) >= 0
    assert max(counts) <= L - 1
    assert len(set(counts)) > 1
