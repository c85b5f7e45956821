"""Numbers that a refactor must reproduce, and the command that writes them anew:

    python -m tests.golden.regenerate

Do that only for a change that is meant to move them, and raise the stage's revision in config/stages.py in
the same commit where trained weights or samples of users move too. Losses do not go through an optimiser:
steps are plain gradient descent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mar_bench.config.ids import generation_run
from mar_bench.config.spec import (
    ARModel,
    ClassifierExtractor,
    Continuous,
    DigitsData,
    DiTModel,
    ImageFolderData,
    KLTokenizer,
    LDMKLTokenizer,
    MetricsSpec,
    RunSpec,
    SamplingSpec,
    TrainingReference,
    TrainSpec,
    VQTokenizer,
)
from mar_bench.data.datasets import load_data, silent, to_uint8
from mar_bench.metrics.features import Classifier, FeatureSpace
from mar_bench.metrics.score import Measure
from mar_bench.models import build
from mar_bench.models.build import build_generator, build_tokenizer
from mar_bench.models.diffusion import DiffusionTables
from mar_bench.models.orders import draw_order, gather
from mar_bench.models.sampler import generate
from mar_bench.models.tokenizers.pretrained import KLAutoencoder16, net_of
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.sample import evaluate_generation, reference_of_part
from mar_bench.pipeline.store import Places
from mar_bench.utils.noise import NoiseSource, seeded
from tests.parity.agreements import filled
from tests.tiny import BACKBONE_SPECS, HEAD_SPECS, generator_of, normal, sampling_of, scrambled, shrunk, tokens_in

FILE = Path(__file__).with_name("losses.json")
BATCH, STEPS, LEARNING_RATE = 8, 6, 0.1
HEADS = ("diffusion", "cross_entropy", "gmm", "mse", "flow", "energy")
PARTS = [(b, h) for b in ("masked", "causal") for h in HEADS]
LABELS = torch.tensor([0, 1, 2, 3, 4, -1, 3, 2])


def descend(module: nn.Module, loss_at: Callable[[int], torch.Tensor]) -> list[float]:
    """The loss before each of STEPS steps of gradient descent."""
    module.train()
    losses, trained = [], [parameter for parameter in module.parameters() if parameter.requires_grad]
    for step in range(STEPS):
        loss = loss_at(step)
        losses.append(loss.item())
        for parameter, grad in zip(trained, torch.autograd.grad(loss, trained)):
            parameter.data -= LEARNING_RATE * grad
    return losses


def generator_losses(backbone: str, head: str) -> list[float]:
    tokenizer = shrunk(KLTokenizer if HEAD_SPECS[head].space is Continuous else VQTokenizer)
    model_spec = ARModel(backbone=shrunk(BACKBONE_SPECS[backbone]), head=shrunk(HEAD_SPECS[head]))
    spec = RunSpec(data=DigitsData(), tokenizer=tokenizer, model=model_spec, train=TrainSpec(label_dropout=0.3))
    model, tokens, labels = build_generator(spec), tokens_in(spec.space, BATCH), LABELS.clamp(min=0)
    return descend(model, lambda step: model.loss(tokens, labels, NoiseSource(0, range(BATCH)), step).mean())


def tokenizer_losses(spec: KLTokenizer | VQTokenizer) -> list[float]:
    tokenizer = build_tokenizer(RunSpec(data=DigitsData(), tokenizer=spec))
    images, noise = normal(BATCH, 1, 16, 16).clamp(-1, 1), normal(BATCH, 16, 3, seed=1)
    with seeded(0, "golden"):  # the codebook starts from draws of torch's own
        return descend(tokenizer, lambda step: tokenizer.training_loss(images, noise))


def losses() -> dict[str, float]:
    """26 losses: of every pair of backbone and head the third and the last, of both tokenizers the last.

    Before the third step a diffusion head does not look at z yet (its gates start at zero)."""
    out = {}
    for backbone, head in PARTS:
        every = generator_losses(backbone, head)
        out |= {f"{backbone}/{head}/{step}": every[step] for step in (2, STEPS - 1)}
    for spec in (shrunk(KLTokenizer), shrunk(VQTokenizer)):
        out[f"tokenizer/{spec.kind}/{STEPS - 1}"] = tokenizer_losses(spec)[-1]
    return out


def dit() -> dict[str, list[float]]:
    """Of the whole-image rival: losses on the way down, and with weights filled from streams all that it computes."""
    spec = RunSpec(data=DigitsData(), tokenizer=shrunk(KLTokenizer), model=shrunk(DiTModel))
    model, tokens, labels = build_generator(spec), tokens_in(spec.space, BATCH), LABELS.clamp(min=0)
    noise = NoiseSource(0, range(BATCH))
    out = {"losses": descend(model, lambda step: model.loss(tokens, labels, noise, step).mean())}
    model = scrambled(build_generator(spec))
    loss = model.loss(tokens, labels, noise, 0)
    out["loss"] = a_few(loss)
    trained = [p for p in model.parameters() if p.requires_grad]
    out["gradient norms"] = [g.norm().item() for g in torch.autograd.grad(loss.mean(), trained)]
    for sampler in ("ddpm", "ddim"):
        sampling = SamplingSpec(num_diffusion_steps=5, sampler=sampler, guidance_scale=3.0, guided_channels=2)
        out[f"samples of {sampler}"] = a_few(build.generate(model, labels, sampling, noise))
    return out


def a_few(values: torch.Tensor) -> list[float]:
    """Mean, deviation and five values."""
    flat = values.detach().double().flatten()
    return [flat.mean().item(), flat.std().item(), *flat[:: flat.numel() // 5][:5].tolist()]


def quantities(backbone: str, head: str) -> dict[str, list[float]]:
    """What is compared with the official arrays too, of a model whose weights are filled from streams."""
    model, labels = generator_of(backbone, head, side=4), LABELS.clamp(min=0)
    noise, masked = NoiseSource(0, range(BATCH)), backbone == "masked"
    order, known = draw_order("random", noise, 0, model.length), 5 if masked else 0
    tokens, drawn = tokens_in(model.space, BATCH), model.head.draw_training(noise, 0, model.length)
    out = {}
    with torch.no_grad():
        if masked:
            shown = gather(tokens, order)[:, :known]
            out["encoder"] = a_few(model.backbone.encode(shown, LABELS, order[:, :known]))
        out["z"] = a_few(model.backbone(gather(tokens, order), LABELS, order, known))
        if head == "diffusion":
            t = torch.arange(BATCH) * 6
            out["denoising MLP"] = a_few(model.head.net(normal(BATCH, 3), t, normal(BATCH, model.backbone.dim, seed=1)))
    loss = model.loss_given(tokens, LABELS, order, known, drawn)
    out["loss"] = a_few(loss)
    gradients = torch.autograd.grad(loss.mean(), list(model.parameters()), allow_unused=True)
    out["gradient norms"] = [0.0 if g is None else g.norm().item() for g in gradients]
    sampling = sampling_of(head, guidance_scale=3.0, temperature=0.9, num_ar_steps=6 if masked else None)
    samples = generate(model, labels, sampling, noise)
    out["samples"] = a_few(samples) if samples.is_floating_point() else samples[:3].flatten().tolist()
    return out


def measures() -> dict[str, float]:
    """Metrics of fixed images on an extractor with fixed weights, and the scale that a tokenizer fits."""
    spec = RunSpec(
        data=DigitsData(),
        tokenizer=shrunk(KLTokenizer),
        sampling=SamplingSpec(num_images=40),
        metrics=MetricsSpec(
            extractor=shrunk(ClassifierExtractor), reference=TrainingReference(), is_splits=2, kid_subset_size=20
        ),
    )
    run = generation_run("row", spec)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = scrambled(Classifier(spec.metrics.extractor, spec.data)).state_dict()
        # a quarter: with weights this wild the classifier is sure of everything, and its score has no logarithm
        save_file({k: v / 4 for k, v in weights.items()}, folder / "weights.safetensors")
        space = FeatureSpace(spec.metrics.extractor, spec.data, folder / "weights.safetensors", torch.device("cpu"))
        data = load_data(spec.data)
        real = [
            reference_of_part(spec.data, part, "real", "real", space, 500, silent)
            for part in (data.train, data.heldout)
        ]
        images = to_uint8(normal(40, 1, 16, 16, seed=3))
        scores, _ = evaluate_generation(spec, [images[:25], images[25:]], space, Measure(spec.metrics, *real))
        STAGES["tokenizer"](run, Places(folder, folder), folder, lambda *_: None)
        trained = load_file(folder / "tokenizer.safetensors")
    return {**scores.metrics, **{f"{n}.{i}": v for n in ("shift", "scale") for i, v in enumerate(trained[n].tolist())}}


def tables() -> dict[str, list[float]]:
    """Of the noise schedule in full and respaced, in float64."""
    out = {}
    for num_steps in (None, 5, 10, 25, 50, 100, 250):
        made = DiffusionTables.make(1000, num_steps)
        for name in ("timesteps", "betas", "posterior_variance", "posterior_log_variance_clipped"):
            out[f"{num_steps or 1000} steps, {name}"] = a_few(torch.as_tensor(getattr(made, name)))
    return out


def kl16() -> dict[str, list[float]]:
    """KL-16 with weights that are a function of their names in diffusers."""
    spec = LDMKLTokenizer()
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in net_of(spec).state_dict().items()}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        file = Path(name) / "weights.safetensors"
        save_file({name: filled(name, shape) for name, shape in shapes.items()}, file)
        tokenizer = KLAutoencoder16(replace(spec, weights=str(file)), ImageFolderData(image_size=32))
        stored = tokenizer.stored(normal(1, 3, 32, 32).clamp(-1, 1))
        return {**{k: a_few(v) for k, v in stored.items()}, "decoded": a_few(tokenizer.decode(normal(1, 4, 16)))}


def golden() -> dict:
    fixed = {"losses": losses(), "measures": measures(), "tables": tables(), "kl16": kl16(), "dit": dit()}
    return {**fixed, **{f"{b}/{h}": quantities(b, h) for b, h in PARTS}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(golden(), indent=1) + "\n")
