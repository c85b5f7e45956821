"""What training at paper scale needs: micro-batches, autocast with a guard, recomputed and compiled blocks, EMA."""

from __future__ import annotations

import json
import math
from functools import partialmethod
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mar_bench.config.ids import generation_run, with_seeds
from mar_bench.config.spec import TrainSpec
from mar_bench.models.ar import ARGenerator
from mar_bench.models.build import build_generator
from mar_bench.pipeline import train
from mar_bench.pipeline.execute import STAGES
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.request import preflight
from mar_bench.pipeline.sample import draw_samples, not_drawn
from mar_bench.pipeline.store import Places
from mar_bench.pipeline.train import ema_update
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import sha256_of
from tests.pipeline.test_train import ROWS, Stop, assert_close, go_on, lines_of, run, spec_of, step_of, stop_at

FEW = ("sampling.num_images=4", "metrics.kid_subset_size=4", "metrics.neighbours=1", "metrics.jackknife_groups=4")


def gradients(row: str, *overrides: str) -> dict[str, torch.Tensor]:
    return step_of(spec_of(row, *overrides))


# --- accumulation, recomputation, compilation -----------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_micro_batches_and_recomputed_blocks_keep_the_gradients(row, monkeypatch):
    """Recomputed blocks drop the same units again; micro-batches draw others."""
    off, kept = "model.backbone.dropout=0", gradients(row)
    whole = gradients(row, off)
    assert any(not torch.allclose(kept[name], whole[name]) for name in kept), "dropout is on"
    for size in (3, 100):
        assert_close(gradients(row, off, f"compute.micro_batch={size}"), whole, 1e-5)
    recomputed = Mock(side_effect=train.checkpoint)
    monkeypatch.setattr(train, "checkpoint", recomputed)
    assert_close(gradients(row, "compute.gradient_checkpointing=true"), kept, 1e-6)
    assert recomputed.call_count >= 2


def test_automatic_micro_batches_are_halved_until_they_fit(monkeypatch):
    """Eight images a step: the estimate says all of them, then memory is for three."""
    sizes, loss = [], ARGenerator.loss

    def scarce(self, tokens, *given):
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError
        return loss(self, tokens, *given)

    off = "model.backbone.dropout=0"
    whole = gradients(ROWS[0], off)
    assert_close(gradients(ROWS[0], off, "compute.micro_batch=auto"), whole, 1e-7)
    monkeypatch.setattr(ARGenerator, "loss", scarce)
    assert_close(gradients(ROWS[0], off, "compute.micro_batch=auto"), whole, 1e-5)
    assert sizes == [8, 4, 2]


def test_compilation_keeps_the_gradients(monkeypatch):
    """As torch.compile records code and derives gradients; `make torture` also compiles it, which takes a minute."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    off = "model.backbone.dropout=0"
    assert_close(gradients(ROWS[1], off, "compute.compile=true"), gradients(ROWS[1], off), 1e-4)


# --- precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_is_near_full_precision_and_not_equal_to_it(row, precision):
    full, less = gradients(row), gradients(row, f"train.precision={precision}")
    norm = {name: values.norm() for name, values in full.items()}
    assert all((less[name] - full[name]).norm() <= 0.1 * max(norm[name], 1e-2) for name in full)
    assert any(not torch.equal(less[name], full[name]) for name in full)
    assert all(values.dtype == torch.float32 for values in less.values())


class Sick(nn.Linear):
    """A loss whose gradient is not finite in the given steps."""

    def __init__(self, *sick: int):
        super().__init__(2, 1)
        self.sick, self.seen = sick, []

    def __call__(self, step: int) -> torch.Tensor:
        self.seen.append(self.weight.detach().clone())
        return self.weight.sum() * (math.nan if step in self.sick else 1.0)


def test_step_with_non_finite_gradient_is_skipped_and_counted(tmp_path):
    module = Sick(0, 3, 4, 11)
    ema = AveragedModel(module, multi_avg_fn=ema_update(TrainSpec(ema_decay=0.5)))
    assert run(tmp_path, module, module, ema=ema).skipped == 4
    moved = [not torch.equal(a, b) for a, b in zip(module.seen, [*module.seen[1:], module.weight])]
    assert moved == [step not in (0, 3, 4, 11) for step in range(12)]
    assert int(ema.n_averaged) == 12, "skipped steps count too, as in the official code"
    assert module.weight.isfinite().all() and ema.module.weight.isfinite().all()
    lines = lines_of(tmp_path)
    assert [line["skipped"] for line in lines] == [1, 4] and lines[0]["loss"] is None


def test_too_many_skipped_steps_in_a_row_fail_also_across_a_stop(tmp_path):
    few, many, again = Sick(2, 3, 5, 6, 8, 9), Sick(1, 4, 5, 6), Sick(1, 4, 5, 6)
    assert run(tmp_path / "few", few, few, max_skipped=2).skipped == 6
    with pytest.raises(Stop):
        run(tmp_path, many, many, progress=stop_at(5), checkpoint_every=50, max_skipped=2)
    with pytest.raises(UserError, match="3 steps in a row up to step 6"):
        run(tmp_path, again, again, max_skipped=2)


def test_loss_scaling_skips_until_the_scale_fits(tmp_path):
    """A loss that overflows at the first scales is skipped until the scale fits; then steps are as without."""

    def trained(name: str, steps: int, **changes) -> tuple[int, torch.Tensor]:
        torch.manual_seed(0)
        module, seven = nn.Linear(2, 1), torch.tensor(7.0, dtype=torch.float16)
        loss_at = lambda step: (module.weight.half() * seven).sum().float()  # noqa: E731
        return run(tmp_path / name, module, loss_at, steps=steps, **changes).skipped, module.weight.detach()

    skipped, weight = trained("scaled", 40, loss_scaling=True)
    assert 1 <= skipped <= 5
    none, expected = trained("fewer", 40 - skipped)
    assert none == 0 and torch.allclose(weight, expected, rtol=1e-4)


# --- published weights instead of training ---------------------------------------------------------------


def published_run(weights: Path | None = None, *overrides: str):
    words = ["train.published=mine", *([f"train.weights={weights}"] if weights else []), *FEW, *overrides]
    return generation_run("row", spec_of("mar/diff/guided", *words))


@pytest.fixture
def weights(tmp_path) -> Path:
    file = tmp_path / "mine.safetensors"
    save_file(build_generator(published_run().spec).state_dict(), file)
    return file


def take(weights: Path, folder: Path) -> None:
    STAGES["train"](published_run(weights), Places(folder, folder), folder, go_on)


def test_published_weights_replace_a_training(weights, tmp_path):
    run_, trained = published_run(weights), generation_run("row", spec_of("mar/diff/guided"))
    assert run_.ids == published_run().ids == published_run(None, "train.lr=0.5").ids, "the name stands for the weights"
    assert run_.ids == generation_run("r", with_seeds(run_.spec, 7, 0)).ids, "which are not trained: no seed"
    assert run_.ids["train_id"] != trained.ids["train_id"]
    kinds = [job.kind for job in jobs_for([run_], Places(tmp_path / "runs", tmp_path / "records"))]
    assert "train" in kinds and "latents" not in kinds
    take(weights, tmp_path)
    assert load_file(tmp_path / "ema.safetensors").keys() == load_file(weights).keys()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["published"] == "mine" and summary["sha256"] == sha256_of(weights)


def test_published_weights_must_fit_the_manifest_beside_them(weights, tmp_path):
    """It tells the number of attention heads, which no shape shows, and the SHA-256 of the file."""
    beside, target = weights.with_suffix(".json"), {"sha256": sha256_of(weights)}

    def manifest(heads: int | None) -> str:
        return json.dumps({"architecture": {"num_heads": heads}, "target": target})

    for heads in (4, None):
        beside.write_text(manifest(heads))
        take(weights, tmp_path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    for text, written, message in (
        (manifest(8), None, "8 attention heads, but .*num_heads 4"),
        (manifest(4), content, "mine.safetensors: damaged.*convert the published file again"),
        ("{", None, "mine.json: not a valid manifest"), ("[]", None, "mine.json: not a valid manifest"),
    ):  # fmt: skip
        beside.write_text(text)
        weights.write_bytes(written or weights.read_bytes())
        with pytest.raises(UserError, match=message):
            take(weights, tmp_path)


def test_published_weights_must_exist_and_fit(tmp_path):
    for weights in (None, tmp_path / "absent.safetensors"):
        with pytest.raises(UserError, match="set train.weights"):
            preflight([published_run(weights)])
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("<html>")
    for name in ("other", "text"):
        with pytest.raises(UserError, match=f"{name}.safetensors: not the weights of 'mine'"):
            take(tmp_path / f"{name}.safetensors", tmp_path)
    with pytest.raises(UserError, match="sampling.weights raw"):
        published_run(None, "sampling.weights=raw")


def test_tokens_that_are_not_finite_are_an_error(tmp_path, monkeypatch):
    spec = spec_of("mar/diff/guided", *FEW, "sampling.batch_size=2")
    model: ARGenerator = build_generator(spec).eval()
    model.head.net.output.bias.data.fill_(math.nan)
    with pytest.raises(UserError, match="tokens of images 0 to 1 are not finite"):
        draw_samples(spec, model, tmp_path, torch.device("cpu"), go_on, not_drawn(spec, tmp_path, ""), "")
    assert not list(tmp_path.glob("tokens-*"))
