"""Every agreement with the official implementation holds, and docs/faithful.md lists them all."""

from __future__ import annotations

import json

import pytest
import torch

from mar_bench.models.pretrained.names import our_name
from tests.parity.agreements import (
    BEGIN,
    DATA,
    END,
    MODELS,
    ROOT,
    SAMPLED,
    SIZES,
    Official,
    baseline_agreements,
    diffusion_tables,
    forward_passes,
    kl16,
    kl16_file,
    kl16_names,
    official,
    published,
    sampled,
    tame,
    tokens_of,
    training,
)


@pytest.fixture(scope="module", params=MODELS)
def one(request) -> Official:
    return official(request.param)


def test_every_tensor_is_accounted_for(one):
    shapes = json.loads((DATA / f"{one.name}.json").read_text())
    assert set(one.manifest["names"]) == set(one.official_names) and one.manifest["left_out"] == {}
    assert one.manifest["weights"] == "model_ema" and one.manifest["tensors"] == len(one.official_names)
    assert one.manifest["architecture"]["dim"] == shapes["config"]["encoder_embed_dim"]


def test_forward_passes(one):
    assert [a for a in forward_passes(one) if not a.holds] == []


def test_training_loss_and_every_gradient_norm(one):
    assert [a for a in training(one) if not a.holds] == []


@pytest.mark.parametrize("setting", SAMPLED)
def test_sampled_latents(one, setting):
    agreement = sampled(one, setting)
    assert agreement.holds, agreement


def test_the_baseline_of_the_benchmarks(one):
    assert [a for a in baseline_agreements(one) if not a.holds] == []


CHANGES = [{"noise_factor": 1.01}, {"temperature": 0.95 * 1.01}, {"guidance_scale": 3 * 1.01}]


def test_samples_of_unit_size(one):
    assert tame(one).holds


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_an_error_of_one_percent_in_samples_of_unit_size(one, change):
    assert tame(one, **change).found > 0.01


def test_every_sampled_setting_is_compared(one):
    assert {name for name in one.arrays if name.startswith("sample_")} == set(SAMPLED)


def test_latents_become_tokens(one):
    assert torch.equal(tokens_of(one.tensor("latents"), one.config["patch_size"]), one.tensor("tokens"))


def test_diffusion_tables():
    assert [a for a in diffusion_tables() if not a.holds] == []


@pytest.mark.parametrize("size", SIZES)
def test_checkpoints_map_one_to_one(size):
    shapes = json.loads((DATA / f"mar_{size}_state_shapes.json").read_text())
    ours = {name: list(tensor.shape) for name, tensor in published(size).state_dict().items()}
    assert len({our_name(name) for name in shapes}) == len(shapes)
    assert {our_name(name): shape for name, shape in shapes.items()} == ours


def test_kl16_through_convert(tmp_path):
    manifest, weights = kl16_file(tmp_path)
    assert set(manifest["names"]) == set(kl16_names()) and manifest["left_out"] == {}
    assert (manifest["tensors"], manifest["parameters"], manifest["weights"]) == (312, 66_456_019, "model")
    assert len(manifest["squeezed"]) == 4 * (2 + 1 + 1), "the attention of the encoder's last stage and both middles"
    assert [a for a in kl16(weights) if not a.holds] == []


def test_readme_names_every_agreement():
    """The digits depend on the machine that wrote the table; what is compared and what is allowed do not."""
    text = (ROOT / "docs/faithful.md").read_text()
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    allowed = {quantity: limit for quantity, _, _, limit in cells}
    assert allowed["condition z"] == allowed["encoder output"] == "1e-04" and allowed["training loss"] == "1e-05"
    assert allowed["gradient norms, every parameter"] == "1e-03" and allowed["latent mean"] == "1e-04"
    assert sum(quantity.startswith("samples: ") for quantity in allowed) == len(SAMPLED)
    for _, _, difference, limit in cells:
        if limit[0].isdigit():
            assert float(difference.split()[0]) <= float(limit)
