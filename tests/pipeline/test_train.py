"""The training loop: resuming gives the same bits; averages, decay and schedules follow their formulas."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import generation_run
from mar_bench.config.spec import Discrete, RunSpec, TrainSpec
from mar_bench.data.latents import Latents, balanced
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import TOKENIZERS, build_generator, count_parameters, generate
from mar_bench.pipeline import train
from mar_bench.pipeline.distributed import ALONE, World
from mar_bench.pipeline.execute import train_tokenizer
from mar_bench.pipeline.fit import checkpoints, fit
from mar_bench.pipeline.store import Places, is_sound, mark_done
from mar_bench.pipeline.train import decay_groups, generator_losses, split_loss, train_generator
from mar_bench.utils.errors import UserError
from mar_bench.utils.noise import NoiseSource
from tests.tiny import tokens_in

ROWS = ("raster_causal/ce/guided", "mar/diff/guided")
IMAGES, HELDOUT = 40, 12


class Stop(BaseException):
    """Like Stopped no Exception, so that no handler swallows it."""


def stop_at(stop: int):
    def progress(step: int, total: int, loss: float | None = None) -> None:
        if step == stop:
            raise Stop

    return progress


def go_on(*state: float) -> None:
    pass


def trained(spec: RunSpec, folder: Path, progress=go_on, **about) -> dict:
    folder.mkdir(exist_ok=True)
    return train_generator(spec, latents_of(spec), folder, progress, **about)


def stopped(spec: RunSpec, folder: Path, step: int, **about) -> None:
    with pytest.raises(Stop):
        trained(spec, folder, stop_at(step), **about)


def steps_kept(folder: Path) -> list[int]:
    return [torch.load(path, weights_only=True)["step"] for path in checkpoints(folder)]


def spec_of(row: str, *overrides: str) -> RunSpec:
    few = ("train.steps=12", "train.batch_size=8", "train.warmup_steps=3", "compute.checkpoint_every=5")
    return load_experiment("table1", "smoke", (*few, "model.backbone.dropout=0.1", *overrides)).rows[row]


def latents_of(spec: RunSpec) -> Latents:
    """Random tokens under two views."""

    def part(count: int, seed: int) -> dict[str, torch.Tensor]:
        tokens = tokens_in(spec.space, count, seed)
        if isinstance(spec.space, Discrete):
            return {"codes": tokens.int()}
        return {"mean": tokens, "std": torch.full_like(tokens, 0.1)}

    views = [part(IMAGES, seed) for seed in (0, 1)]
    train = {name: torch.stack([view[name] for view in views]) for name in views[0]}
    kind = TOKENIZERS[spec.tokenizer.kind]
    labels = (torch.arange(IMAGES) % 10, torch.arange(HELDOUT) % 10)
    return Latents(train, part(HELDOUT, 2), *labels, kind.tokens_of, kind.stochastic)


def step_of(spec: RunSpec, world: World = ALONE) -> dict[str, torch.Tensor]:
    """The loss and the gradients of a step, with no weight at zero: modulations that start there hide gradients."""
    model, loss = build_generator(spec), 0.0
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    train.change_blocks(model, spec.compute)
    model.train()
    torch.manual_seed(0)
    for part in generator_losses(spec, model, latents_of(spec), torch.device("cpu"), world)(3):
        part.backward()
        loss += part.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": torch.tensor(world.mean(loss)), **gradients}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= share * max(1e-3, values.abs().max()), name


def lines_of(folder: Path) -> list[dict]:
    """The log without its clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_bits(one: Path, other: Path, *names: str) -> None:
    for name in names or ("raw.safetensors", "ema.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert lines_of(one) == lines_of(other)


# --- stopping and resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_generator_resumes_with_the_same_bits(row, tmp_path):
    """Stopped twice. A snapshot is what a training of as many steps ends with."""
    settings = ("train.lr_schedule=constant", "train.ema_warmup=true", "train.snapshots=[12, 7, 2]")
    spec, whole, parts = spec_of(row, *settings), tmp_path / "whole", tmp_path / "parts"
    summary = trained(spec, whole)
    stopped(spec, parts, 3)
    assert steps_kept(parts) == [3]
    stopped(spec, parts, 11)
    resumed = trained(spec, parts)
    snapshots = ["ema-2.safetensors", "ema-7.safetensors"]
    assert sorted(path.name for path in whole.glob("ema-*")) == snapshots
    assert_same_bits(whole, parts, "raw.safetensors", "ema.safetensors", *snapshots)
    seconds = [{at.pop("seconds") for at in (s, *s["snapshots"].values())} for s in (resumed, summary)]
    assert resumed == summary and all(len(found) == 3 for found in seconds)
    short = trained(spec_of(row, *settings[:2], "train.steps=7"), tmp_path / "short")
    assert (tmp_path / "short/ema.safetensors").read_bytes() == (whole / snapshots[1]).read_bytes()
    assert summary["snapshots"]["7"] == {key: short[key] for key in summary["snapshots"]["7"]}
    assert steps_kept(parts) == [12, 11]
    raw, ema = (load_file(whole / f"{name}.safetensors") for name in ("raw", "ema"))
    assert raw.keys() == ema.keys() == build_generator(spec).state_dict().keys()
    assert not any(torch.equal(raw[name], ema[name]) for name in raw if "blocks" in name)


def test_killed_training_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    spec, whole, killed = spec_of(ROWS[1]), tmp_path / "whole", tmp_path / "killed"
    trained(spec, whole)
    draw = ARGenerator.draw

    def dies(self, noise, step):
        if step == 8:
            raise Stop  # not from progress: nothing is saved
        return draw(self, noise, step)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ARGenerator, "draw", dies)
        trained(spec, killed)
    assert steps_kept(killed) == [5]
    with (killed / "metrics.jsonl").open("a") as log:
        log.write('{"step": 6}\n')  # written, but its checkpoint was not
    trained(spec, killed)
    assert_same_bits(whole, killed)


@pytest.mark.parametrize("row", ROWS)
def test_tokenizer_resumes_with_the_same_bits(row, tmp_path):
    """The codebook too, whose start and whose replaced codes draw from torch's own generator."""
    few = ("tokenizer.steps=12", "tokenizer.batch_size=16", "compute.checkpoint_every=5")
    run = generation_run(row, load_experiment("table1", "smoke", few).rows[row])
    places, (whole, parts) = Places(tmp_path, tmp_path), (tmp_path / "whole", tmp_path / "parts")
    for folder in (whole, parts):
        folder.mkdir()
    train_tokenizer(run, places, whole, go_on)
    with pytest.raises(Stop):
        train_tokenizer(run, places, parts, stop_at(7))
    train_tokenizer(run, places, parts, go_on)
    assert_same_bits(whole, parts, "tokenizer.safetensors")
    assert all(torch.isfinite(w).all() for w in load_file(parts / "tokenizer.safetensors").values())


def test_training_seed_also_seeds_the_noise():
    """With equal weights, other seeds draw other images, steps and masks."""
    specs = [spec_of(ROWS[0], f"train.seed={seed}") for seed in (0, 1)]
    model, latents = build_generator(specs[0]).eval(), latents_of(specs[0])
    one, other = (next(generator_losses(spec, model, latents, torch.device("cpu"), ALONE)(0)) for spec in specs)
    assert one != other


# --- what is learnt and written -------------------------------------------------------------------------


def test_loss_falls(tmp_path):
    spec = spec_of(ROWS[0], "train.steps=101", "train.lr=5e-3", "model.backbone.dropout=0")
    latents = latents_of(spec)
    few = replace(latents, train={k: v[:1, :4] for k, v in latents.train.items()}, labels=latents.labels[:4])
    summary = train_generator(spec, few, tmp_path, go_on)
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 50, 100]
    assert max(losses[1:]) < 0.7 * losses[0]
    assert summary["loss_train"] < 0.1 < summary["loss_heldout"], "four images are memorised"
    assert summary["steps"] == 101 and summary["seconds"] > 0
    assert summary["parameters"] == count_parameters(build_generator(spec))


def test_training_on_some_images_never_sees_the_others(tmp_path):
    """Nor does the loss that the summary calls that of training."""
    spec = spec_of(ROWS[0], "train.images=20")
    latents = latents_of(spec)
    others = np.setdiff1d(np.arange(IMAGES), balanced(latents.labels.numpy(), 20))
    changed = {name: values.clone() for name, values in latents.train.items()}
    for values in changed.values():
        values[:, others] = 0
    summaries = []
    for name, given in {"one": latents.train, "other": changed}.items():
        (tmp_path / name).mkdir()
        summaries.append(train_generator(spec, replace(latents, train=given), tmp_path / name, go_on))
    assert_same_bits(tmp_path / "one", tmp_path / "other")
    assert summaries[0]["loss_train"] == summaries[1]["loss_train"]
    assert (summaries[0]["images"], summaries[0]["epochs"]) == (20, 12 * 8 / 20)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_training_in_each_order(attention, tmp_path):
    """Annealed, it begins as one in random order and ends as one of its own; each draws images."""
    few = ("train.steps=8", "train.batch_size=8", "train.warmup_steps=3", "compute.log_every=1")
    rows, losses = load_experiment("orders", "tiny", few).rows, {}
    for order in ("permuted", "annealed", "random"):
        spec, folder = rows[f"{attention}/{order}/guided"], tmp_path / order
        assert math.isfinite(trained(spec, folder)["loss_train"])
        losses[order] = [line["loss"] for line in lines_of(folder)]
        model = build_generator(spec).eval()
        model.load_state_dict(load_file(folder / "ema.safetensors"))
        tokens = generate(model, torch.arange(4), spec.sampling, NoiseSource(0, range(4)))
        assert tokens.shape[:2] == (4, model.length)
    assert losses["permuted"][1:] != losses["random"][1:]  # a new head's loss is the same in every order
    assert losses["annealed"][:5] == losses["random"][:5] and losses["annealed"][5:] != losses["random"][5:]


def test_tensorboard_shows_the_log_also_of_a_resumed_training(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    spec = spec_of(ROWS[0], "compute.tensorboard=true", "compute.log_every=1", "compute.checkpoint_every=5")
    folder = tmp_path / "train/abc"
    folder.mkdir(parents=True)

    def stop_at_seven(step: int, *_: float) -> bool:
        if step == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train_generator(spec, latents_of(spec), folder, stop_at_seven)
    train_generator(spec, latents_of(spec), folder, go_on)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard/abc")).Reload().Scalars("loss")
    logged = [(line["step"], line["loss"]) for line in lines_of(folder)]
    assert [event.step for event in events] == [step for step, _ in logged]
    assert [event.value for event in events] == pytest.approx([loss for _, loss in logged], rel=1e-6)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'mar-bench\[tensorboard\]'"):
        train_generator(spec, latents_of(spec), folder, go_on)


def test_split_losses_use_the_same_noise():
    spec = spec_of(ROWS[1])
    latents = latents_of(spec)
    train = {name: values[:, :HELDOUT] for name, values in latents.train.items()}
    heldout, labels = {name: values[0] for name, values in train.items()}, latents.labels[:HELDOUT]
    same = replace(latents, train=train, heldout=heldout, labels=labels, heldout_labels=labels)
    model = build_generator(spec)
    assert split_loss(model, same, False, 0) == split_loss(model, same, True, 0)
    assert split_loss(model, same, False, 0) != split_loss(model, latents, True, 0)
    assert not model.training


def test_loss_that_is_not_finite_is_a_user_error(tmp_path):
    spec = spec_of(ROWS[0], "train.warmup_steps=0")
    spec = replace(spec, train=replace(spec.train, lr=1e30, grad_clip=1e30))  # out of the range that YAML may set
    with pytest.raises(
        UserError, match=r"loss_train of the weights after 12 steps is nan, \d+ steps skipped; lower the learning rate"
    ):
        trained(spec, tmp_path / "end")
    with pytest.raises(UserError, match=r"4 steps in a row up to step \d+"):
        trained(replace(spec, train=replace(spec.train, max_skipped_steps=3)), tmp_path / "row")


# --- the loop against its formulas ----------------------------------------------------------------------


def run(folder: Path, module: nn.Module, loss_at, **changes) -> int:
    """The loop alone, on ``loss_at(step)``."""
    settings = {"steps": 12, "lr_at": lambda step: 0.1, "seed": 0, "checkpoint_every": 5, "progress": go_on, **changes}
    folder.mkdir(exist_ok=True)
    return fit(module, lambda step: iter([loss_at(step)]), folder=folder, **settings)


def test_step_is_as_long_as_the_learning_rate(tmp_path):
    """Adam's step under a constant gradient of one."""
    rates = [0.1, 0.2, 0.05, 0.4, 0.01, 0.3]
    module, seen = nn.Linear(3, 1, bias=False), []

    def loss_at(step: int) -> torch.Tensor:
        seen.append(module.weight.detach().clone())
        return module.weight.sum()

    run(tmp_path, module, loss_at, steps=6, lr_at=rates.__getitem__)
    steps = -torch.stack([*seen, module.weight.detach()]).diff(dim=0)
    assert torch.allclose(steps, torch.tensor(rates)[:, None, None].expand_as(steps), rtol=1e-4)


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_average_starts_from_the_first_weights(warm_up, tmp_path):
    module, seen = nn.Linear(3, 1), []
    update = train.ema_update(TrainSpec(ema_decay=0.5, ema_warmup=warm_up))
    ema = AveragedModel(module, multi_avg_fn=update)

    def loss_at(step: int) -> torch.Tensor:
        seen.append(module.weight.detach().clone())
        return (module.weight * torch.tensor([1.0, -2.0, 3.0])).sum() * math.cos(step)

    run(tmp_path, module, loss_at, ema=ema)
    average, *after = [*seen[1:], module.weight.detach()]
    for n, weights in enumerate(after, start=1):
        decay = min(0.5, (1 + n) / (10 + n)) if warm_up else 0.5
        average = decay * average + (1 - decay) * weights
    assert torch.allclose(ema.module.weight, average, atol=1e-6)
    assert not torch.allclose(ema.module.weight, module.weight)


def test_gradients_are_clipped_and_logged_unclipped(tmp_path, monkeypatch):
    module, norms = nn.Linear(4, 1, bias=False), []
    take_step = torch.optim.AdamW.step

    def looks_first(self, *args):
        norms.append(module.weight.grad.norm().item())
        return take_step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", looks_first)
    run(tmp_path, module, lambda step: 10 * module.weight.sum(), grad_clip=3.0)
    assert norms == pytest.approx([3.0] * 12, rel=1e-4)
    assert [line["grad_norm"] for line in lines_of(tmp_path)] == pytest.approx([20.0, 20.0])


@pytest.mark.parametrize("row", ROWS)
def test_biases_norms_and_the_head_are_not_decayed(row):
    model = build_generator(spec_of(row))
    decayed, free = decay_groups(model, 0.02)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.02, 0.0)
    in_decayed, in_free = ({id(p) for p in group["params"]} for group in (decayed, free))
    for name, parameter in model.named_parameters():
        spared = name.startswith("head.") or "norm" in name or name.endswith("bias") or parameter.ndim < 2
        assert (id(parameter) in in_free, id(parameter) in in_decayed) == (spared, not spared), name


def test_dropout_follows_seed_and_step(tmp_path):
    """What torch draws by itself in a step depends on the step alone, not on those before it."""
    drawn = []
    for seed in (0, 1):
        module = nn.Linear(1, 1)
        state = torch.random.get_rng_state()
        run(
            tmp_path / str(seed),
            module,
            lambda step, m=module: drawn.append(torch.rand(3)) or m.weight.sum(),
            seed=seed,
        )
        assert torch.equal(torch.random.get_rng_state(), state), "outside nothing is seeded"
    assert len({tuple(t.tolist()) for t in drawn}) == 24


def test_two_checkpoints_are_kept_and_damaged_ones_renamed(tmp_path):
    spec, whole, parts = spec_of(ROWS[1], "compute.checkpoint_every=2"), tmp_path / "whole", tmp_path / "parts"
    trained(spec, whole)
    stopped(spec, parts, 9)
    assert steps_kept(parts) == [9, 8]
    newest, older = checkpoints(parts)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.warns(UserWarning, match="damaged"):
        stopped(spec, parts, 8)
    assert steps_kept(parts) == [8], "resumed from the older one"
    content = bytearray(older.read_bytes())
    content[len(content) // 2] ^= 1  # torch loads it without a word
    older.write_bytes(content)
    (parts / "metrics.jsonl").write_text('{"step": 0, "lo')
    with pytest.warns(UserWarning, match="damaged"):
        trained(spec, parts)
    assert_same_bits(whole, parts)
    assert all((parts / f".damaged-{path.name}").is_file() for path in (newest, older))


def test_progress_tells_the_losses_of_earlier_steps(tmp_path):
    seen: list[tuple[int, int, float]] = []
    trained(spec_of(ROWS[0], "compute.log_every=1"), tmp_path, lambda *state: seen.append(state))
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [loss for _, _, loss in seen if math.isfinite(loss)]
    assert len(told) > len(logged) // 2 and told == logged[: len(told)] and math.isnan(seen[0][2])


def test_finished_training_survives_a_failure_to_write_its_weights(tmp_path, monkeypatch):
    """Nor are its steps repeated: a full disk, a kill or a loss that is not finite may follow the last step."""
    spec, whole, full, steps = spec_of(ROWS[1]), tmp_path / "whole", tmp_path / "full", []
    trained(spec, whole)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(train, "save_file", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
        trained(spec, full)
    trained(spec, full, lambda step, *_: steps.append(step))
    assert steps == []
    assert_same_bits(whole, full)
    mark_done(full, 1.0)
    assert is_sound(full) and not checkpoints(full), "deleted once the stage is done"


def test_checkpoint_belongs_to_one_training(tmp_path):
    spec = spec_of(ROWS[1])
    stopped(spec, tmp_path, 4)
    state = torch.load(checkpoints(tmp_path)[0], weights_only=True)
    assert {"model", "ema", "optimiser", "scaler", "step", "seed", "about"} <= state.keys()
    assert state["about"]["spec"]["train"]["lr"] == spec.train.lr and state["step"] == 4
    with pytest.raises(UserError, match="a checkpoint of another training"):
        trained(replace(spec, train=replace(spec.train, lr=0.5)), tmp_path)


def test_a_training_starts_again_if_its_latents_were_made_again(tmp_path):
    spec, steps = spec_of(ROWS[1]), []
    stopped(spec, tmp_path, 4, inputs={"latents": "one"})
    with pytest.warns(UserWarning, match="other latents"):
        trained(spec, tmp_path, lambda step, *_: steps.append(step), inputs={"latents": "two"})
    assert steps[0] == 0
