"""The latent cache: what a tokenizer makes of every view, and how training tokens are drawn from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mar_bench.build import TOKENIZERS
from mar_bench.data import ArrayImages, DataSet, apply_view, to_unit, views
from mar_bench.latents import Latents, build_latents, load_latents
from mar_bench.noise import NoiseSource, philox, seeded
from mar_bench.spec import DigitsData, KLTokenizer, VQTokenizer
from mar_bench.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid

DATA = DigitsData(shift=1, flip=True)  # 18 views
SPECS = {
    "kl": KLTokenizer(stride=4, width=8, latent_dim=3),
    "vq": VQTokenizer(stride=4, width=8, vocab_size=7, code_dim=3),
}
TRAIN, HELDOUT = 20, 6
CPU = torch.device("cpu")


def tokenizer_of(kind: str) -> Tokenizer:
    with seeded(0, "test-init"):
        tokenizer = TOKENIZERS[kind](SPECS[kind], DATA)
        images = to_unit(pictures().train.get(range(TRAIN)))
        if kind == "vq":
            tokenizer.train()
            tokenizer.training_loss(images, torch.zeros(()))  # which starts the codebook
    tokenizer.eval().requires_grad_(False)
    tokenizer.fit_scale(images)
    return tokenizer


def pictures() -> DataSet:
    rng = philox(0, "test-pictures", 0, 0)

    def part(count: int) -> ArrayImages:
        return ArrayImages(rng.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8), rng.integers(10, size=count))

    return DataSet(part(TRAIN), part(HELDOUT))


@pytest.fixture(scope="module", params=SPECS)
def made(request, tmp_path_factory) -> tuple[Tokenizer, Latents]:
    tokenizer, folder = tokenizer_of(request.param), tmp_path_factory.mktemp("latents")
    steps = []
    build_latents(DATA, pictures(), tokenizer, folder, CPU, lambda step, total: steps.append((step, total)))
    assert steps == [(0, TRAIN)] * 18 + [(0, HELDOUT)]
    return tokenizer, load_latents(folder, type(tokenizer))


def test_every_view_of_every_image_is_there_in_its_place(made):
    tokenizer, latents = made
    data = pictures()
    for i, view in enumerate(views(DATA)):
        expected = tokenizer.stored(to_unit(apply_view(data.train.get(range(TRAIN)), view)))
        for name, values in expected.items():
            assert latents.train[name].dtype == values.dtype
            assert torch.equal(latents.train[name][i], values)
    for name, values in tokenizer.stored(to_unit(data.heldout.get(range(HELDOUT)))).items():
        assert torch.equal(latents.heldout[name], values)
    assert torch.equal(latents.labels, data.train.labels) and torch.equal(latents.heldout_labels, data.heldout.labels)


def test_what_is_stored_is_as_small_as_it_can_be(made):
    tokenizer, latents = made
    if tokenizer.stochastic:
        shapes = {k: tuple(v.shape) for k, v in latents.train.items()}
        assert shapes == dict.fromkeys(("mean", "std"), (18, TRAIN, 16, 3))
    else:
        assert {k: (v.dtype, tuple(v.shape)) for k, v in latents.train.items()} == {
            "codes": (torch.int32, (18, TRAIN, 16))
        }


def test_tokens_are_those_of_the_view_drawn_for_each_image(made):
    tokenizer, latents = made
    indices, noise = [3, 0, 19, 3], NoiseSource(5, range(4))
    found = latents.draw(indices, noise, step=7)
    chosen = noise.integers("view", 7, 18, ()).tolist()
    assert len(set(chosen)) > 1
    for row, (view, image) in enumerate(zip(chosen, indices)):
        stored = {name: values[view, image][None] for name, values in latents.train.items()}
        latent_noise = noise.normal("latent", 7, (16, 3))[row][None] if tokenizer.stochastic else None
        assert torch.equal(found[row], tokenizer.tokens_of(stored, latent_noise)[0])
    assert found.dtype == (torch.float32 if tokenizer.stochastic else torch.int64)


def test_draws_repeat_for_the_same_seed_and_step_alone(made):
    _, latents = made
    indices = list(range(12))

    def draw(seed: int, step: int) -> torch.Tensor:
        return latents.draw(indices, NoiseSource(seed, indices), step)

    assert torch.equal(draw(0, 3), draw(0, 3))
    assert not torch.equal(draw(0, 3), draw(0, 4)) and not torch.equal(draw(0, 3), draw(1, 3))
    part = latents.draw(indices[4:8], NoiseSource(0, indices[4:8]), 3)
    assert torch.equal(part, draw(0, 3)[4:8]), "whatever the batch"


def test_all_views_are_drawn(made):
    _, latents = made
    name, rows = next(iter(latents.train)), range(500)
    marked = replace(latents, train={name: torch.arange(18.0).view(18, 1, 1, 1)}, tokens_of=lambda s, _: s[name])
    assert set(marked.draw([0] * 500, NoiseSource(0, rows), 0).flatten().tolist()) == set(range(18))


def test_a_split_is_of_images_as_they_are(made):
    _, latents = made
    stored, labels = latents.split(heldout=False)
    name = next(iter(stored))
    assert torch.equal(stored[name], latents.train[name][0]) and labels is latents.labels
    assert latents.split(heldout=True) == (latents.heldout, latents.heldout_labels)


def test_kl_noise_has_the_stored_deviation():
    tokenizer = tokenizer_of("kl")
    stored = tokenizer.stored(to_unit(pictures().train.get([0])))
    noise = NoiseSource(0, range(4000)).normal("latent", 0, (16, 3))
    tokens = tokenizer.tokens_of({k: v.expand(4000, -1, -1) for k, v in stored.items()}, noise)
    assert torch.allclose(tokens.mean(0), stored["mean"][0], atol=0.08)
    assert torch.allclose(tokens.std(0) / stored["std"][0], torch.ones(16, 3), atol=0.06)
    assert torch.equal(tokenizer.encode(to_unit(pictures().train.get([0]))), stored["mean"]), "without noise: the mean"


def test_kl_tokens_have_unit_scale_and_decode_undoes_it():
    tokenizer = tokenizer_of("kl")
    stored = tokenizer.stored(to_unit(pictures().train.get(range(TRAIN))))
    noise = NoiseSource(0, range(200 * TRAIN)).normal("latent", 0, (16, 3))
    tokens = tokenizer.tokens_of({k: v.repeat(200, 1, 1) for k, v in stored.items()}, noise).flatten(0, 1)
    assert torch.allclose(tokens.mean(0), torch.zeros(3), atol=0.02)
    assert torch.allclose(tokens.std(0), torch.ones(3), atol=0.02)
    raw_mean, _ = tokenizer.moments(to_unit(pictures().train.get([1])))
    assert torch.allclose(
        tokenizer.decode(stored["mean"][1:2]), tokenizer._decode_raw(raw_mean).clamp(-1, 1), atol=1e-5
    )


@torch.inference_mode()
def test_a_code_is_the_nearest_vector_of_the_codebook_and_decodes_as_it():
    tokenizer, batch = tokenizer_of("vq"), to_unit(pictures().train.get(range(4)))
    vectors, codebook = grid_to_tokens(tokenizer.encoder(batch)), tokenizer.quantiser.codebook
    codes = tokenizer.encode(batch)
    assert codes.shape == (4, 16) and codes.dtype == torch.int64
    assert torch.equal(codes, torch.cdist(vectors, codebook.expand(4, -1, -1)).argmin(-1))
    expected = tokenizer.decoder(tokens_to_grid(codebook[codes], (4, 4)))
    assert torch.allclose(tokenizer.decode(codes), expected.clamp(-1, 1), atol=1e-6)
