"""The numbers in losses.json, written by ``python -m tests.golden.regenerate`` (see there when to)."""

from __future__ import annotations

import json

import pytest

from tests.golden.regenerate import FILE, PARTS, dit, kl16, losses, measures, quantities, tables

GOLDEN = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return losses()


def test_a_loss_of_every_part_is_pinned(found):
    assert len(GOLDEN["losses"]) == 2 * len(PARTS) + 2
    assert set(found) == set(GOLDEN["losses"])


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_a_loss_is_what_it_was(name, found):
    assert found[name] == pytest.approx(GOLDEN["losses"][name], rel=1e-5)


def test_losses_repeat_bit_for_bit(found):
    assert losses() == found


def test_metrics_and_scales_are_what_they_were():
    assert measures() == pytest.approx(GOLDEN["measures"], rel=1e-4)


def test_the_noise_schedules_are_what_they_were():
    found = tables()
    assert set(found) == set(GOLDEN["tables"])
    for name, values in GOLDEN["tables"].items():
        assert found[name] == pytest.approx(values, rel=1e-12, abs=1e-12), name


def test_kl16_encodes_and_decodes_as_it_did():
    pytest.importorskip("diffusers", reason="the paper's tokenizers are an extra")
    found = kl16()
    assert set(found) == set(GOLDEN["kl16"])
    for name, values in GOLDEN["kl16"].items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name


def test_the_whole_image_rival_computes_what_it_did():
    found = dit()
    assert set(found) == set(GOLDEN["dit"])
    for name, values in GOLDEN["dit"].items():
        # of samples mean, deviation, values: untrained weights magnify rounding
        tolerance = {"abs": 2e-3 * values[1]} if name.startswith("samples") else {"rel": 1e-4, "abs": 1e-5}
        assert found[name] == pytest.approx(values, **tolerance), name


@pytest.mark.parametrize(("backbone", "head"), PARTS)
def test_the_core_computes_what_it_did(backbone, head):
    found, expected = quantities(backbone, head), GOLDEN[f"{backbone}/{head}"]
    assert set(found) == set(expected)
    for name, values in expected.items():
        if name != "samples":
            assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
        elif isinstance(values[0], int):
            assert found[name] == values
        else:  # mean, deviation, values; an untrained head magnifies rounding in what it samples
            assert found[name] == pytest.approx(values, abs=2e-3 * values[1])
