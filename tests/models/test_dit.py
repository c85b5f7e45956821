"""The DiT baseline: its published sizes, network, loss and samplers, and all stages on its spec."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from mar_bench.config.checks import finish
from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run, speed_run
from mar_bench.config.spec import Continuous, DiTModel, RunSpec, SamplingSpec, SDKLTokenizer, TrainSpec
from mar_bench.models.build import build_generator, count_parameters, generate
from mar_bench.models.diffusion import DiffusionTables, linear_betas, noised, respaced_timesteps, sample, sample_ddim
from mar_bench.models.dit import DiT, grid_positions
from mar_bench.pipeline.cost import sampling_flops, training_flops
from mar_bench.pipeline.distributed import ALONE
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.store import Places, mark_done
from mar_bench.pipeline.train import change_blocks, decay_groups, generator_losses
from mar_bench.utils.noise import NoiseSource
from tests.pipeline.test_cost import META, count_flops, on_meta
from tests.pipeline.test_train import latents_of
from tests.tiny import assert_same_tokens, normal, scrambled, shrunk, tokens_in

SPACE = Continuous(3, (4, 6))  # uneven sides and channels, so that no two axes can be taken for each other
CLASSES, STEPS = 5, 5
SAMPLING = SamplingSpec(num_diffusion_steps=STEPS)
CPU = torch.device("cpu")


def fresh(**changes) -> DiT:
    return DiT(shrunk(DiTModel, **changes), SPACE, CLASSES, label_dropout=0.3)


@pytest.fixture(scope="module")
def model() -> DiT:
    """With no zero of the initialisation left, but with its true positions."""
    made = fresh()
    positions = made.positions.data.clone()
    scrambled(made).positions.data.copy_(positions)
    return made


def labels_of(indices: range) -> torch.Tensor:
    return torch.tensor([i % CLASSES for i in indices])


def draw(model: DiT, indices: range = range(4), seed: int = 0, **changes) -> torch.Tensor:
    return generate(model, labels_of(indices), replace(SAMPLING, **changes), NoiseSource(seed, indices))


# --- the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "dim", "num_heads", "parameters"),
    [(12, 384, 6, 32_963_360), (12, 768, 12, 130_512_416), (24, 1024, 16, 458_102_816), (28, 1152, 16, 675_129_632)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_published_parameter_counts(depth, dim, num_heads, parameters):
    """Of ImageNet's latents at 256 pixels."""
    spec = RunSpec(tokenizer=SDKLTokenizer(group=1), model=DiTModel(depth=depth, dim=dim, num_heads=num_heads))
    model = on_meta(spec)
    assert model.space == Continuous(4, (32, 32))
    assert count_parameters(model) == {"total": parameters, "backbone": parameters, "head": 0}
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 256 * dim, "the positions"


def test_patches_round_trip_in_place(model):
    tokens = tokens_in(SPACE, 2)
    patches = model.patches(tokens)
    assert torch.equal(model.unpatched(patches), tokens)
    image = tokens.unflatten(1, SPACE.grid)
    for i in range(6):  # two rows of three patches
        row, column = 2 * (i // 3), 2 * (i % 3)
        assert torch.equal(patches[:, i], image[:, row : row + 2, column : column + 2].flatten(1))


def test_positions_are_sinusoids_of_column_and_row():
    found = grid_positions(4, 6, 32)
    assert found.shape == (24, 32) and found.dtype == torch.float32
    row, column = 2, 5
    expected = [f(axis / 10_000 ** (i / 8)) for axis in (column, row) for f in (math.sin, math.cos) for i in range(8)]
    assert found[row * 6 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_fresh_network_predicts_zero_and_every_block_is_the_identity():
    model, x = fresh(), tokens_in(SPACE, 2)
    assert not model.predict(x, torch.tensor([3, 9]), torch.tensor([0, -1])).any()
    patches, c = normal(2, 6, 32), normal(2, 32)
    assert torch.equal(model.blocks[0](patches, c), patches)


def test_fresh_weights_are_spread_as_published():
    model = DiT(DiTModel(depth=1, dim=256, num_heads=4), Continuous(4, (32, 32)), 1000, 0.1)
    for layer in (model.time_mlp[0], model.time_mlp[2], model.label_embedding):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer in (model.input, model.blocks[0].attn.qkv, model.blocks[0].mlp.fc1):
        bound = math.sqrt(6 / sum(layer.weight.shape))  # Xavier's
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02) and not layer.bias.any()


def test_class_no_class_and_timestep_each_matter(model):
    x = tokens_in(SPACE, 1).expand(4, -1, -1)
    out = model.predict(x, torch.tensor([3, 3, 3, 4]), torch.tensor([0, 1, -1, 0]))
    assert out.shape == (4, 24, 6)
    assert all(not torch.allclose(out[i], out[j]) for i in range(4) for j in range(i))
    assert torch.allclose(model.predict(x, torch.tensor([3]), torch.full((4,), -1))[0], out[2], atol=1e-5)


# --- the loss -------------------------------------------------------------------------------------------


def test_loss_has_one_value_per_token_and_reaches_every_weight(model):
    tokens = tokens_in(SPACE, 6)
    loss = model.loss(tokens, labels_of(range(6)), NoiseSource(0, range(6)), 0)
    assert loss.shape == (6, 24) and loss.isfinite().all()
    loss.mean().backward()
    assert model.positions.grad is None
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    model.zero_grad()


def test_one_timestep_serves_all_tokens_of_an_image_and_draws_follow_the_slot():
    model, seen = fresh(), {}
    model.loss_given = lambda tokens, labels, t, eps: seen.update(labels=labels, t=t, eps=eps)
    tokens, labels = tokens_in(SPACE, 40), torch.ones(40, dtype=torch.int64)
    model.loss(tokens, labels, NoiseSource(0, range(40)), 3)
    whole = dict(seen)
    assert whole["t"].shape == (40,) and whole["eps"].shape == (40, 24, 3)
    assert whole["t"].min() >= 0 and whole["t"].max() < 50 and len(whole["t"].unique()) > 10
    assert 3 <= (whole["labels"] == -1).sum() <= 24, "three tenths lose their class"
    model.loss(tokens[30:], labels[30:], NoiseSource(0, range(30, 40)), 3)
    assert all(torch.equal(seen[name], whole[name][30:]) for name in seen)


# --- the schedule and DDIM ------------------------------------------------------------------------------


def test_linear_betas_are_ddpms():
    betas = linear_betas(1000)
    assert (betas[0], betas[-1]) == pytest.approx((1e-4, 0.02))
    assert np.diff(betas) == pytest.approx(np.full(999, 0.0199 / 999))
    assert np.cumprod(1 - betas)[[0, 499, 999]] == pytest.approx([0.9999, 0.078587, 4.0358e-5], rel=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("clamp", [None, 10.0])
def test_ddim_with_the_true_noise_recovers_the_image(steps, clamp):
    """If the same noise is seen in every x_t, all of them lie on one line that ends at x0."""
    full, tables = (DiffusionTables.make(50, n, "linear") for n in (None, steps))
    x0, eps = normal(7, 3).double(), normal(7, 3, seed=1).double()
    seen = []

    def denoise(x: torch.Tensor, timestep: int) -> torch.Tensor:
        seen.append(timestep)
        torch.testing.assert_close(x, noised(full.rows()[timestep], x0, None, eps))
        return torch.cat([eps, torch.full_like(eps, math.nan)], dim=-1)  # the variance is never used

    start = noised(full.rows()[tables.timesteps[-1]], x0, None, eps)
    torch.testing.assert_close(sample_ddim(tables, denoise, start, clamp_x0=clamp), x0)
    assert seen == respaced_timesteps(50, steps)[::-1]


def test_ddim_clamps_x0_and_keeps_what_it_knows_of_x_t():
    tables, start = DiffusionTables.make(50, 2, "linear"), normal(7, 3).double()
    seen = []

    def denoise(x: torch.Tensor, timestep: int) -> torch.Tensor:
        seen.append(x)
        return torch.zeros(7, 6, dtype=torch.float64)

    found = sample_ddim(tables, denoise, start, clamp_x0=0.2)
    assert found.abs().max() <= 0.2
    x0 = (start / tables.signal[1]).clamp(-0.2, 0.2)
    eps = (start - tables.signal[1] * x0) / tables.sigma[1]
    torch.testing.assert_close(seen[1], tables.signal[0] * x0 + tables.sigma[0] * eps)


def test_ddim_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="no oracle: diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=40, beta_start=1e-4 * 25, beta_end=0.02 * 25, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(40)

    def network(x: torch.Tensor, timestep: int) -> torch.Tensor:
        eps = torch.tanh(x.roll(1, -1) + 0.1 * timestep)
        return torch.cat([eps, eps], dim=-1)

    x = start = normal(6, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, int(t)).chunk(2, dim=-1)[0], t, x, eta=0.0).prev_sample
    found = sample_ddim(DiffusionTables.make(40, schedule="linear").on(CPU), network, start)
    assert (found - x).abs().max() < 1e-3 * x.std()


# --- sampling -------------------------------------------------------------------------------------------


def by_hand(model: DiT, image: int, scale: float, channels: int, temperature: float = 1.0) -> torch.Tensor:
    """One image by ``diffusion.sample`` with all its noise at hand, class and no class in passes of their own."""
    noise, label = NoiseSource(0, [image]), labels_of(range(image, image + 1))
    rows = torch.stack([noise.normal("sample", i, (24, 3))[0] for i in range(STEPS + 1)])  # (T + 1, L, D)

    def denoise(xt: torch.Tensor, timestep: float) -> torch.Tensor:
        c, u = (model.predict(xt[None], torch.tensor([timestep]), which)[0] for which in (label, torch.tensor([-1])))
        out = c.clone()
        out[:, :channels] = u[:, :channels] + scale * (c - u)[:, :channels]
        return out

    tables = DiffusionTables.make(50, STEPS, "linear").on(CPU)
    with torch.no_grad():
        return sample(tables, denoise, rows, temperature=temperature)


@pytest.mark.parametrize(
    ("scale", "channels", "temperature"), [(1.0, None, 1.0), (3.0, None, 0.9), (3.0, 2, 1.0), (0.0, 1, 1.0)]
)
def test_images_are_those_of_the_slow_way(model, scale, channels, temperature):
    drawn = draw(model, guidance_scale=scale, guided_channels=channels, temperature=temperature)
    assert drawn.shape == (4, 24, 3)
    for image in (0, 3):
        assert_same_tokens(drawn[image], by_hand(model, image, scale, channels or 3, temperature))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_guidance_1_is_none(model, sampler):
    passes = []
    predict = model.predict
    model.predict = lambda x, t, labels: passes.append(labels.tolist()) or predict(x, t, labels)
    try:
        none = draw(model, sampler=sampler)
        almost = draw(model, sampler=sampler, guidance_scale=1 + 1e-7)
    finally:
        del model.predict
    assert passes[0] == [0, 1, 2, 3] and passes[-1] == [0, 1, 2, 3, -1, -1, -1, -1]
    assert_same_tokens(almost, none)
    assert not torch.allclose(draw(model, sampler=sampler, guidance_scale=3.0), none, atol=0.1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_images_are_independent_of_the_batch_and_can_be_clamped(model, sampler):
    more = {"sampler": sampler, "guidance_scale": 2.0}
    whole = draw(model, range(6), **more)
    parts = torch.cat([draw(model, part, **more) for part in (range(1), range(1, 4), range(4, 6))])
    assert_same_tokens(parts, whole)
    assert torch.equal(draw(model, range(6), **more), whole)
    assert not torch.allclose(draw(model, range(6), seed=1, **more), whole, atol=0.1)
    assert draw(model, range(6), **more, clamp_x0=0.1).abs().max() <= 0.1 + 1e-6 < 0.5 < whole.abs().max()


def test_temperature_scales_the_added_noise_and_does_not_affect_ddim(model):
    assert torch.equal(draw(model, sampler="ddim", temperature=0.5), draw(model, sampler="ddim"))
    assert not torch.allclose(draw(model, temperature=0.5), draw(model))
    assert_same_tokens(draw(model, num_diffusion_steps=1, temperature=0.5), draw(model, num_diffusion_steps=1))


# --- in the suite ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row() -> RunSpec:
    """A row of the smoke experiment with DiT in place of the autoregressive generator."""
    few = ("sampling.num_images=8", "metrics.jackknife_groups=4", "metrics.kid_subset_size=8")
    row = load_experiment("table1", "smoke", few).rows["mar/diff/guided"]
    model = shrunk(DiTModel, num_train_timesteps=100, patch_size=1)
    sampling = replace(row.sampling, batch_size=4, num_diffusion_steps=4)
    tokenizer, extractor = (replace(part, steps=5) for part in (row.tokenizer, row.metrics.extractor))
    metrics = replace(row.metrics, extractor=replace(extractor, min_accuracy=0.0))
    return replace(row, model=model, sampling=sampling, tokenizer=tokenizer, metrics=metrics)


def test_irrelevant_settings_are_normalised(row):
    def sampled(**changes) -> SamplingSpec:
        return finish(replace(row, sampling=replace(row.sampling, **changes))).sampling

    normal_form = sampled()
    assert (normal_form.order, normal_form.num_ar_steps, normal_form.guidance_schedule) == (None, None, "constant")
    assert sampled(sampler="ddim", temperature=0.5) == sampled(sampler="ddim", temperature=1.0)
    assert sampled(temperature=0.5) != normal_form
    assert sampled(guided_channels=4) == normal_form != sampled(guided_channels=3)
    assert sampled(guided_channels=3, guidance_scale=1.0) == sampled(guidance_scale=1.0)


@pytest.mark.parametrize("compute", [{"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_memory_savings_keep_the_gradients(compute, row):
    def gradients(spec: RunSpec) -> list[torch.Tensor]:
        model = scrambled(build_generator(spec)).train()
        change_blocks(model, spec.compute)
        for loss in generator_losses(spec, model, latents_of(spec), CPU, ALONE)(2):
            loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    spec = replace(row, train=TrainSpec(batch_size=8))
    plain, saving = gradients(spec), gradients(replace(spec, compute=replace(spec.compute, **compute)))
    for found, expected in zip(saving, plain):
        assert (found - expected).abs().max() <= 1e-4 * max(1e-3, expected.abs().max())


def test_frozen_positions_are_in_no_group_and_matrices_decay():
    model = fresh()
    decayed, free = (group["params"] for group in decay_groups(model, 0.1))
    assert {id(p) for p in (*decayed, *free)} == {id(p) for p in model.parameters()} - {id(model.positions)}
    assert all(p.ndim == 1 for p in free)


def test_from_images_to_records(row, tmp_path):
    """Every stage that a row has, in this process; its speed too, which has no head to share in."""
    places, spec = Places(tmp_path / "runs", tmp_path / "records"), finish(row)
    places.check_writable()
    for run in (generation_run("dit", spec), speed_run("dit", spec, "cpu")):
        for job in jobs_for([run], places):
            folder = places.folder(job.kind, job.id)
            if not folder.is_dir():
                folder.mkdir(parents=True)
                STAGES[job.kind](run, places, folder, lambda *_: None)
                mark_done(folder, 1.0)
            assert job.cost > 0 and job.title.startswith(job.kind)
    records = [json.loads(path.read_text()) for path in places.records.iterdir()]
    generation, speed = sorted(records, key=lambda record: record["task"])
    assert {record["status"] for record in records} == {"done"} and generation["metrics"]["fd_digits"] > 0
    assert generation["spec"]["model"]["kind"] == "dit" and generation["parameters"]["head"] == 0
    metrics = speed["metrics"]
    assert metrics["share_head"] == 0 < metrics["share_backbone"] < 1 and speed["protocol"]["kv_cache"] is False


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_flops_are_those_of_all_steps(sampler, scale, row):
    """Exactly, but that the embedding of a timestep, here of one image, serves both halves of guidance."""
    spec = replace(row, sampling=replace(row.sampling, sampler=sampler, guidance_scale=scale))
    model, labels = on_meta(spec).eval(), torch.zeros(1, dtype=torch.int64, device=META)
    parts: list[str] = []
    clock = lambda part: parts.append(part) or nullcontext()  # noqa: E731
    counted = count_flops(lambda: generate(model, labels, spec.sampling, NoiseSource(0, [0]), clock))
    assert [part for part in parts if part != "noise"] == ["backbone"] * 4
    shared = 4 * sum(2 * layer.weight.numel() for layer in (model.time_mlp[0], model.time_mlp[2])) * (scale != 1)
    assert sampling_flops(spec) == counted + shared
    forward = count_flops(lambda: model.loss(tokens_in(spec.space, 1).to(META), labels, NoiseSource(0, [0]), 0))
    assert training_flops(spec) == 3 * forward


def test_published_flops_of_xl():
    """118.64 billion multiply-adds (DiT, table 1), each of which is two operations here."""
    spec = RunSpec(tokenizer=SDKLTokenizer(group=1), model=DiTModel(), sampling=SamplingSpec(num_diffusion_steps=250))
    assert sampling_flops(spec) / 250 == pytest.approx(2 * 118.64e9, rel=1e-3)
