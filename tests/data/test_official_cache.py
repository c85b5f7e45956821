"""The official code's cache of latents: an npz file an image, imported instead of encoding."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import ImageFolderData, LatentsSpec, LDMKLTokenizer, RunSpec
from mar_bench.data.datasets import load_data, to_unit
from mar_bench.data.encode import imported
from mar_bench.data.images import read_image
from mar_bench.data.latents import Latents, load_latents
from mar_bench.models.build import TOKENIZERS
from mar_bench.models.tokenizers import pretrained as published
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource, philox

SIZE, DIM = 64, 3
# "a.png" comes before "a.png.copy.png"; with .npz behind both it would come after it
NAMES = {"train": ("b.png", "a.png", "a.png.copy.png", "a-1.png", "A.PNG"), "val": ("z.png", "y.png")}


class StandIn(nn.Module):
    """In place of diffusers' autoencoder: one convolution; some log variances lie outside the official bounds."""

    def __init__(self, **config):
        super().__init__()
        self.convolution = nn.Conv2d(3, 2 * DIM, 16, stride=16)

    def parameters_of(self, images: torch.Tensor) -> torch.Tensor:
        return 30 * self.convolution(images)

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        mean, log_variance = self.parameters_of(images).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=std))


class World:
    """Images of two classes, weights, and the official cache of the training images."""

    def __init__(self, folder: Path):
        self.folder, self.root, self.cache = folder, folder / "root", folder / "cache"
        self.weights = folder / "kl.safetensors"
        rng = philox(0, "test-cache", 0, 0)
        for part, names in NAMES.items():
            for name in ("ape", "bee"):
                (self.root / part / name).mkdir(parents=True)
                for file in names:
                    pixels = rng.integers(0, 256, (70, 66, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(self.root / part / name / file)
        self.net = StandIn()
        for i, parameter in enumerate(self.net.parameters()):
            drawn = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
            parameter.data = torch.from_numpy(drawn) * (0.03 if i == 0 else 0.3)
        save_file(self.net.state_dict(), self.weights)
        self.write_cache()

    @torch.inference_mode()
    def write_cache(self) -> None:
        """As the official main_cache.py: <class>/<file>.npz, the distribution's parameters, images one by one."""
        for path in sorted((self.root / "train").glob("*/*")):
            image = to_unit(torch.from_numpy(read_image(path, SIZE, 3)))[None]
            target = self.cache / path.parent.name / f"{path.name}.npz"
            target.parent.mkdir(parents=True, exist_ok=True)
            moments, flip = (self.net.parameters_of(x)[0].numpy() for x in (image, image.flip(dims=[3])))
            np.savez(target, moments=moments, moments_flip=flip)

    def spec(self, cache: bool = True, group: int = 1, root: bool = True, **data) -> RunSpec:
        root = str(self.root) if root else None
        tokenizer = LDMKLTokenizer(
            weights=str(self.weights), official_cache=str(self.cache) if cache else None, latent_dim=DIM, group=group
        )
        images = ImageFolderData(**{"root": root, "image_size": SIZE, "num_classes": 2, **data})
        return RunSpec(data=images, tokenizer=tokenizer, latents=LatentsSpec(shard_images=4))

    def made(self, name: str, spec: RunSpec) -> Latents:
        target = self.folder / name
        target.mkdir()
        run, places = generation_run("row", spec), Places(self.folder / "runs", self.folder)
        STAGES["latents"](run, places, target, lambda *_: None)
        return load_latents(target, TOKENIZERS["ldm_kl"])


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(published, "_diffusers", lambda: SimpleNamespace(AutoencoderKL=StandIn))
    return World(tmp_path)


@pytest.mark.parametrize("group", [1, 2])
def test_an_import_is_the_encoding_itself(group, world):
    direct, found = (world.made(str(cache), world.spec(cache=cache, group=group)) for cache in (False, True))
    assert found.train["mean"].shape == (2, 10, 16 // group**2, DIM * group**2)
    assert torch.equal(found.labels, direct.labels) and torch.equal(found.heldout_labels, direct.heldout_labels)
    for name in ("mean", "std"):
        for view in (0, 1):  # one image was encoded at a time, and all of them: not the same last bits
            mine, theirs = found.train[name][view][:], direct.train[name][view][:]
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
            assert len({tuple(row) for row in theirs.flatten(1).tolist()}) == 10
        assert torch.equal(found.heldout[name][:], direct.heldout[name][:])
    raw = world.net.parameters_of(to_unit(load_data(world.spec().data).train.get(range(10))))[:, DIM:]
    assert raw.min() < -30 and raw.max() > 20, "the bounds were reached"
    noise = NoiseSource(0, range(6))
    drawn = [latents.draw([9, 0, 4, 4, 7, 2], noise, 3) for latents in (found, direct)]
    assert torch.allclose(*drawn, rtol=1e-3, atol=1e-3 * drawn[0].std().item())


def test_a_cache_is_imported_without_images(world):
    alone = world.made("alone", world.spec(root=False))
    assert len(alone.labels) == 10 and alone.split(True, 500)[0] == {} and len(alone.heldout_labels) == 0
    about = json.loads((world.folder / "alone/manifest.json").read_text())
    assert about["imported_from"] == "cache"
    assert about["images"] == {"train": 10, "heldout": 0} and about["views"] == [[0, 0, False], [0, 0, True]]
    assert about["tokenizer"]["scale"] == pytest.approx(0.2325)


def test_without_mirrored_views_the_mirrored_arrays_are_not_looked_at(world):
    for path in world.cache.glob("*/*"):
        with np.load(path) as arrays:
            np.savez(path, moments=arrays["moments"])
    assert world.made("found", world.spec(flip=False)).train["mean"].shape == (1, 10, 16, DIM)
    with pytest.raises(UserError, match="moments_flip"):
        world.made("both", world.spec())


GOOD = np.zeros((6, 4, 4), np.float32)
SPOILT = {
    "no array": ({"moments": GOOD}, "moments_flip is not"),
    "pickle": ({"moments": np.array([{"a": 1}], dtype=object), "moments_flip": GOOD}, "moments holds Python objects"),
    "wrong shape": ({"moments": GOOD, "moments_flip": GOOD[..., :3]}, r"moments_flip is float32 \(6, 4, 3\)"),
    "wrong dtype": ({"moments": GOOD.astype(float), "moments_flip": GOOD}, "moments is float64"),
    "not finite": ({"moments": GOOD, "moments_flip": GOOD * np.float32("nan")}, "moments_flip .* finite"),
    "truncated": (None, "not a valid npz file"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_file_is_named(kind, world):
    arrays, message = SPOILT[kind]
    path = world.cache / "bee/a-1.png.npz"
    path.write_bytes(path.read_bytes()[:300])
    if arrays:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"cache/bee/a-1\.png\.npz: .*{message}"):
        world.made("found", world.spec())


def test_a_tree_that_is_not_the_data_sets_is_an_error(world):
    def refused(message: str, **changes) -> None:
        spec = world.spec(**changes)
        with pytest.raises(UserError, match=message):
            imported(spec, None, torch.device("cpu"))

    refused(r"cache: found 2 class folders but data\.num_classes is 3; expected .*<npz file>", num_classes=3)
    refused(r"official cache holds no shifted images; set data\.shift=0", shift=1)
    (world.cache / "bee").rename(world.cache / "wasp")
    with pytest.raises(UserError, match="not the classes of .*val: 'bee' is in only one of them"):
        world.made("found", world.spec())
    for path in (world.cache / "wasp").iterdir():
        path.rename(path.with_suffix(".npy"))
    refused(r"wasp: no npz file in it")
