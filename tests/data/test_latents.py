"""The latent cache: what a tokenizer makes of every view, and how training tokens are drawn from it."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import (
    DigitsData,
    ImageFolderData,
    KLTokenizer,
    LatentsSpec,
    PixelTokenizer,
    RunSpec,
    VQTokenizer,
)
from mar_bench.data.datasets import BATCH, ArrayImages, DataSet, apply_view, silent, to_unit, views
from mar_bench.data.encode import Source, encoded, finish_latents, manifest_of, write_shards
from mar_bench.data.latents import Latents, balanced, load_latents
from mar_bench.models.build import TOKENIZERS, build_tokenizer
from mar_bench.models.tokenizers.base import Tokenizer, grid_to_tokens, tokens_to_grid
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource, philox, seeded

DATA = DigitsData(shift=1, flip=True)  # 18 views
SPECS = {
    "kl": KLTokenizer(stride=4, width=8, latent_dim=3),
    "vq": VQTokenizer(stride=4, width=8, vocab_size=7, code_dim=3),
}
TRAIN, HELDOUT, SHARD = 20, 6, 7
CPU = torch.device("cpu")


def run_spec(kind: str, **kept) -> RunSpec:
    tokenizer = SPECS.get(kind) or PixelTokenizer(group=4)
    return RunSpec(data=DATA, tokenizer=tokenizer, latents=LatentsSpec(**{"shard_images": SHARD, **kept}))


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


def build_latents(spec: RunSpec, data: DataSet, tokenizer: Tokenizer, folder: Path, device, progress) -> None:
    """Write the latents of ``data`` to ``folder`` in one process."""
    sources = encoded(spec, data, tokenizer, device)
    manifest = manifest_of(spec, sources, tokenizer, None)
    write_shards(sources, manifest, folder, progress)
    finish_latents(manifest, folder)


@pytest.fixture(scope="module", params=SPECS)
def made(request, tmp_path_factory) -> tuple[Tokenizer, Latents]:
    tokenizer, folder = tokenizer_of(request.param), tmp_path_factory.mktemp("latents")
    steps = []
    build_latents(run_spec(request.param), pictures(), tokenizer, folder, CPU, lambda *step: steps.append(step))
    assert steps == [(done, TRAIN + HELDOUT) for done in (0, 7, 14, 20)]
    names = [f"shard-0000{i}.safetensors" for i in range(3)]
    assert sorted(p.name for p in folder.iterdir()) == ["heldout-00000.safetensors", "manifest.json", *names]
    return tokenizer, load_latents(folder, type(tokenizer))


def test_tokens_are_those_of_the_view_drawn_for_each_image(made):
    tokenizer, latents = made
    indices, noise = [3, 0, 19, 3], NoiseSource(5, range(4))
    found = latents.draw(indices, noise, step=7)
    chosen = noise.integers("view", 7, 18, ()).tolist()
    assert len(set(chosen)) > 1
    for row, (view, image) in enumerate(zip(chosen, indices)):
        stored = {name: values[[view], [image]] for name, values in latents.train.items()}
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


# --- some of the training images -------------------------------------------------------------------------


def test_a_choice_is_balanced_and_part_of_every_larger_one():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)[philox(0, "test-labels", 0, 0).permutation(100)]
    choices = {count: balanced(labels, count) for count in range(2, 101)}
    for count, chosen in choices.items():
        assert len(set(chosen)) == count and (np.diff(chosen) > 0).all()
        assert set(chosen) <= set(choices[min(100, count + 1)])
        assert np.abs(np.bincount(labels[chosen], minlength=3) - count * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert np.bincount(labels[choices[50]]).tolist() == [30, 15, 5]
    assert choices[20].max() > 80 and choices[20].min() < 20  # not the first ones


def test_some_images_are_drawn_as_from_all(made):
    latents, chosen = made[1], balanced(made[1].labels.numpy(), 8)
    some, noise = latents.some(8), NoiseSource(0, range(3))
    assert latents.some(None) is latents and torch.equal(some.labels, latents.labels[chosen])
    assert torch.equal(some.draw([7, 0, 7], noise, 1), latents.draw(chosen[[7, 0, 7]], noise, 1))
    for limit in (None, 5):
        stored, labels = some.split(False, limit)
        assert torch.equal(labels, latents.labels[chosen][:limit])
        for name, values in stored.items():
            assert torch.equal(values[:], latents.train[name][0][chosen][:limit])
    assert some.split(True)[0].keys() == latents.split(True)[0].keys()
    assert torch.equal(some.split(True)[1], latents.heldout_labels)
    with pytest.raises(UserError, match=f"train.images {TRAIN + 1} is more than the {TRAIN} training images"):
        latents.some(TRAIN + 1)


def in_memory(tokenizer: Tokenizer) -> Latents:
    """The same latents as plain tensors, the shortest way."""
    data, every = pictures(), views(DATA)

    def stored(part: ArrayImages, view) -> dict[str, torch.Tensor]:
        return tokenizer.stored(to_unit(apply_view(part.get(range(len(part))), view)))

    seen = [stored(data.train, view) for view in every]
    train = {name: torch.stack([s[name] for s in seen]) for name in seen[0]}
    parts = train, stored(data.heldout, every[0]), data.train.labels, data.heldout.labels
    return Latents(*parts, tokenizer.tokens_of, tokenizer.stochastic)


@pytest.mark.parametrize("size", [3, 8192])
@pytest.mark.parametrize("kind", [*SPECS, "pixel"])
def test_tokens_have_the_same_bits_in_any_shards(kind, size, tmp_path):
    spec = run_spec(kind, shard_images=size)
    tokenizer = tokenizer_of(kind) if kind in SPECS else build_tokenizer(spec)
    build_latents(spec, pictures(), tokenizer, tmp_path, CPU, silent)
    found, expected = load_latents(tmp_path, TOKENIZERS[kind]), in_memory(tokenizer)
    for name, values in expected.train.items():
        assert all(torch.equal(found.train[name][view][:], values[view]) for view in range(18))
    rng = philox(0, "test-rows", 0, 0)
    for step in range(2):
        indices, noise = rng.integers(TRAIN, size=33), NoiseSource(1, range(33))
        tokens = found.draw(indices, noise, step)
        assert torch.equal(tokens, expected.draw(indices, noise, step))
        assert tokens.dtype == (torch.int64 if kind == "vq" else torch.float32)
    for heldout, limit in ((False, 5), (True, 5), (False, 100), (True, 100)):
        (stored, labels), (wanted, wanted_labels) = found.split(heldout, limit), expected.split(heldout, limit)
        assert torch.equal(labels, wanted_labels) and all(torch.equal(stored[k], wanted[k]) for k in wanted)


def test_half_precision_is_half_the_size_and_read_as_single(tmp_path):
    tokenizer, whole = tokenizer_of("kl"), in_memory(tokenizer_of("kl"))
    build_latents(run_spec("kl", dtype="fp16"), pictures(), tokenizer, tmp_path, CPU, silent)
    values = SHARD * 18 * 16 * 3 * 2  # mean and std
    assert 2 * values < (tmp_path / "shard-00000.safetensors").stat().st_size < 2.1 * values
    found, noise = load_latents(tmp_path, type(tokenizer)), NoiseSource(0, range(TRAIN))
    rounded = replace(whole, train={k: v.half().float() for k, v in whole.train.items()})
    tokens = found.draw(range(TRAIN), noise, 0)
    assert tokens.dtype == torch.float32 and torch.equal(tokens, rounded.draw(range(TRAIN), noise, 0))
    assert torch.equal(found.split(True, 9)[0]["mean"], whole.heldout["mean"].half().float())


def made_of(values: torch.Tensor, batch: int = 4, asked: list | None = None) -> dict[str, Source]:
    """A training set whose latents are ``values`` (N, L, D), one view."""

    def stored(rows: range) -> dict[str, torch.Tensor]:
        if asked is not None:
            asked.append(rows)
        return {"latents": values[None, rows.start : rows.stop]}

    return {"train": Source(torch.arange(len(values)), stored, batch)}


def write(sources: dict[str, Source], folder: Path, **kept) -> None:
    about = manifest(sources, **kept)
    folder.mkdir(exist_ok=True)
    write_shards(sources, about, folder, silent)
    finish_latents(about, folder)


def manifest(sources: dict[str, Source], **kept) -> dict:
    spec = run_spec("vq", **kept)
    return manifest_of(replace(spec, data=replace(DATA, shift=0, flip=False)), sources, tokenizer_of("vq"), None)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "fp32", "latents of train images 4 to 6 are not finite"),
        (float("inf"), "fp16", "latents of train images 4 to 6 are not finite"),
        (-7e4, "fp16", r"reach 7e\+04, too large for fp16; set latents\.dtype=fp32"),
    ],
)
def test_latents_that_cannot_be_stored_are_refused(value, dtype, message, tmp_path):
    values = torch.zeros(9, 2, 3)
    values[5, 1, 2] = value
    sources = made_of(values)
    with pytest.raises(UserError, match=message):
        write_shards(sources, manifest(sources, dtype=dtype), tmp_path, silent)
    assert not list(tmp_path.iterdir())


def test_an_encoding_never_depends_on_the_shards(tmp_path):
    """Batches begin at the same images whatever the shards, as their neighbours may change an image's last bits."""
    values = torch.randn(23, 2, 3, generator=torch.Generator().manual_seed(0))
    for size in (1, 4, 5, 23):
        asked: list[range] = []
        write(made_of(values, asked=asked), tmp_path / str(size), shard_images=size)
        assert set(asked) == {range(i, min(i + 4, 23)) for i in range(0, 23, 4)}
        found = load_latents(tmp_path / str(size), TOKENIZERS["vq"])
        assert torch.equal(found.train["latents"][0][:], values) and torch.equal(found.labels, torch.arange(23))
        stored, labels = found.split(True, 5)
        assert stored == {} and labels.shape == (0,) and labels.dtype == torch.int64, "nothing is held out"


def test_a_stopped_encoding_goes_on(tmp_path):
    values, asked = torch.rand(20, 2, 3), []
    sources = made_of(values, asked=asked)
    about = manifest(sources, shard_images=8)

    def progress(done: int, total: int) -> None:
        assert total == 20
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(sources, about, tmp_path, progress)
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.safetensors"]
    for expected in ([range(8, 12), range(12, 16), range(16, 20)], []):
        asked.clear()
        write_shards(sources, about, tmp_path, silent)
        assert asked == expected


def test_shards_that_are_not_whole_or_not_of_the_same_are_made_again(tmp_path):
    asked: list[range] = []
    sources = made_of(torch.rand(20, 2, 3), asked=asked)
    about = manifest(sources, shard_images=4)
    write_shards(sources, about, tmp_path, silent)
    path = tmp_path / "shard-00002.safetensors"
    for content in (b"", path.read_bytes()[:-1]):
        path.write_bytes(content)
        asked.clear()
        write_shards(sources, about, tmp_path, silent)
        assert asked == [range(8, 12)]
    for other in (manifest(sources, shard_images=4, dtype="fp16"), {**about, "files_sha256": "other"}):
        asked.clear()
        write_shards(sources, other, tmp_path, silent)
        assert len(asked) == 5


def test_several_processes_share_the_shards(tmp_path):
    tokenizer, spec = tokenizer_of("kl"), run_spec("kl", shard_images=3)
    sources = encoded(spec, pictures(), tokenizer, CPU)
    about = manifest_of(spec, sources, tokenizer, None)
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    write_shards(sources, about, alone, silent)
    for name in ("latents.safetensors", "heldout-00007.safetensors", ".shard-00000.safetensors.x"):
        (together / name).write_bytes(b"stale")
    made = []
    for rank in (2, 0, 1):
        before = set(together.iterdir())
        write_shards(sources, about, together, silent, rank, 3)
        made.append(len(set(together.iterdir()) - before))
    assert made == [3, 3, 3]  # 7 of training images, 2 of held-out ones
    for folder in (alone, together):
        finish_latents(about, folder)
    assert {p.name: p.read_bytes() for p in alone.iterdir()} == {p.name: p.read_bytes() for p in together.iterdir()}


def test_files_are_mapped_and_the_kernel_is_told_which_bytes_will_be_read(made):
    _, latents = made
    for file in (f for values in (*latents.train.values(), *latents.heldout.values()) for f in values.files):
        mapped, told = np.frombuffer(file.memory, np.uint8), []
        assert np.shares_memory(file.array, mapped)
        memory = SimpleNamespace(madvise=lambda advice, begin, length, told=told: told.append((begin, length)))
        views_, rows = (np.arange(11) * 7 % size for size in file.array.shape[:2])
        replace(file, memory=memory).expect(views_, rows)
        assert len(told) == 11
        for (begin, length), view, index in zip(told, views_, rows):
            row = file.array[view, index]
            at = row.__array_interface__["data"][0] - mapped.ctypes.data
            assert begin % mmap.PAGESIZE == 0 and begin <= at < begin + mmap.PAGESIZE
            assert begin + length == at + row.nbytes


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("shard-00001.safetensors", lambda content: content[:-4]),
        ("shard-00001.safetensors", None),
        ("manifest.json", lambda content: content.replace(b'"shard_images": 7', b'"shard_images": 8')),
        ("manifest.json", lambda content: content.replace(b'"format": 1', b'"format": 2')),
        ("manifest.json", lambda content: b"{"),
        ("manifest.json", None),
    ],
)
def test_a_folder_that_cannot_be_read_says_what_to_do(file, change, tmp_path):
    write(made_of(torch.rand(20, 2, 3)), tmp_path)
    load_latents(tmp_path, TOKENIZERS["vq"])
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if change:
        (tmp_path / file).write_bytes(change(content))
    with pytest.raises(UserError, match=rf"{tmp_path}: (not a valid latent cache|no such file).* delete the folder"):
        load_latents(tmp_path, TOKENIZERS["vq"])


def test_the_manifest_says_what_the_latents_are_made_from(tmp_path):
    spec, tokenizer = run_spec("kl", dtype="fp16"), tokenizer_of("kl")
    (tmp_path / "weights").write_bytes(b"w")
    about = manifest_of(spec, encoded(spec, pictures(), tokenizer, CPU), tokenizer, tmp_path / "weights")
    assert about["images"] == {"train": TRAIN, "heldout": HELDOUT} and about["dtype"] == "fp16"
    assert about["tokenizer"]["kind"] == "kl" and about["tokenizer"]["sha256"].startswith("50e721e49c01")
    assert about["tokenizer"]["scale"] == tokenizer.scale.tolist()
    assert about["views"][0] == [0, 0, False] and len(about["views"]) == 18
    assert about["grid"] == [4, 4] and about["dim"] == 3 and "vocab_size" not in about
    assert about["files_sha256"] is None and about["imported_from"] is None


def test_images_of_a_folder_become_latents(tmp_path):
    """The stage itself: two classes, mirrored views, tokens that are the pixels."""
    rng = philox(0, "test-files", 0, 0)
    for folder in ("train/ape", "train/bee", "val/ape", "val/bee"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "root" / folder / f"{i}.png")
    data = ImageFolderData(name="two", root=str(tmp_path / "root"), image_size=8, num_classes=2)
    spec = RunSpec(data=data, tokenizer=PixelTokenizer(group=2), latents=LatentsSpec(shard_images=2))
    run, places, folder = generation_run("row", spec), Places(tmp_path / "runs", tmp_path), tmp_path / "latents"
    folder.mkdir()
    STAGES["latents"](run, places, folder, silent)
    mark_done(folder, 1.0)
    assert is_sound(folder)
    latents = load_latents(folder, TOKENIZERS["pixel"])
    assert latents.labels.tolist() == latents.heldout_labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.array(Image.open(tmp_path / "root/train/bee/0.png")).transpose(2, 0, 1)[None].copy()
    tokenizer = build_tokenizer(spec)
    for view, images in enumerate((pixels, pixels[..., ::-1].copy())):
        expected = tokenizer.stored(to_unit(torch.from_numpy(images)))["pixels"]
        assert torch.equal(latents.train["pixels"][[view], [3]], expected)


def test_large_images_are_encoded_a_few_at_a_time():
    for size, batch in ((16, BATCH), (256, 64)):
        part = ArrayImages(np.zeros((2, 1, size, size), np.uint8), np.zeros(2))
        assert encoded(run_spec("kl"), DataSet(part, part), Tokenizer(), CPU)["train"].batch == batch


@torch.inference_mode()
def test_a_code_is_the_nearest_vector_of_the_codebook_and_decodes_as_it():
    tokenizer, batch = tokenizer_of("vq"), to_unit(pictures().train.get(range(4)))
    vectors, codebook = grid_to_tokens(tokenizer.encoder(batch)), tokenizer.quantiser.codebook
    codes = tokenizer.encode(batch)
    assert codes.shape == (4, 16) and codes.dtype == torch.int64
    assert torch.equal(codes, torch.cdist(vectors, codebook.expand(4, -1, -1)).argmin(-1))
    expected = tokenizer.decoder(tokens_to_grid(codebook[codes], (4, 4)))
    assert torch.allclose(tokenizer.decode(codes), expected.clamp(-1, 1), atol=1e-6)
