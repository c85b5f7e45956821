"""Every shipped experiment at every scale validates and plans, and its models can be built."""

from __future__ import annotations

import functools
import json
from dataclasses import fields, is_dataclass, replace
from operator import attrgetter

import pytest
import torch

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import plan_runs
from mar_bench.config.spec import DiffusionHead, MaskedBackbone, RunSpec, num_tokens
from mar_bench.config.yaml_layers import experiment_files, scales
from mar_bench.models.build import build_generator, build_tokenizer, count_parameters
from mar_bench.pipeline.graph import jobs_for
from mar_bench.pipeline.plan import make_plan
from mar_bench.pipeline.request import Selection
from mar_bench.pipeline.store import Places
from mar_bench.utils.errors import UserError

EVERY = [(name, scale) for name in experiment_files() for scale in scales()]
every_experiment = pytest.mark.parametrize(("name", "scale"), EVERY)
every_scale = pytest.mark.parametrize("scale", scales())


def on_paper(spec: RunSpec) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Generator and tokenizer on the meta device."""
    return _on_paper(RunSpec(data=spec.data, tokenizer=spec.tokenizer, model=spec.model))


@functools.cache  # experiments share models
def _on_paper(spec: RunSpec) -> tuple[torch.nn.Module, torch.nn.Module]:
    with torch.device("meta"):
        return build_generator(spec), _tokenizer_on_paper(RunSpec(data=spec.data, tokenizer=spec.tokenizer))


@functools.cache
def _tokenizer_on_paper(spec: RunSpec) -> torch.nn.Module:
    if not spec.tokenizer.trained:
        pytest.importorskip("diffusers")
    return build_tokenizer(spec)


@functools.cache
def loaded(name: str, scale: str) -> Experiment:
    return load_experiment(name, scale)


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def rows_of(experiment: Experiment) -> list[RunSpec]:
    """One row for each model."""
    of_ar = attrgetter("backbone", "head")  # the order changes nothing that is built
    built = {r: (of_ar(s.model) if hasattr(s.model, "order") else s.model) for r, s in experiment.rows.items()}
    return list({(built[r], s.tokenizer, s.data): s for r, s in experiment.rows.items()}.values())


@every_experiment
def test_it_plans(name, scale, tmp_path):
    experiment, places = loaded(name, scale), Places(tmp_path / "runs", tmp_path / "records")
    if not experiment.rows:  # of small scales only
        with pytest.raises(UserError, match=f"no row at scale {scale}"):
            plan_runs(experiment)
        return
    runs = plan_runs(experiment, [0, 1])
    waiting = 2 * sum(map(experiment.is_open, experiment.rows))
    selection = Selection([experiment], {name: runs}, {"all": waiting})
    plan = make_plan(selection, scale, places, {})
    json.dumps(plan)
    assert experiment.id == name and experiment.title and experiment.source
    assert plan["evaluations"] <= 2 * len(experiment.rows)  # rows that differ in what a scale has not are one
    assert plan["evaluations"] == plan["missing"] - plan["sweep"] + waiting > 0
    assert plan["jobs"] == len(jobs_for(runs, places)) > 0
    assert not list(tmp_path.iterdir())


@every_experiment
def test_it_builds(name, scale):
    for spec in rows_of(loaded(name, scale)):
        generator, tokenizer = on_paper(spec)
        assert {p.device.type for p in generator.parameters()} == {"meta"}
        assert generator.space == tokenizer.space == spec.space and generator.length == num_tokens(spec.space)
        assert count_parameters(generator)["total"] == size(generator)


@pytest.mark.parametrize("scale", [scale for scale in scales() if scale != "smoke"])
def test_dit_sees_as_many_times_the_images_of_mar_as_in_its_paper(scale):
    """1,400 epochs against 400, and its published guidance."""
    rows = load_experiment("fig6", scale).rows
    dit, mar = rows["dit_a"], rows["mar_diff_a"]
    images = [spec.train.steps * spec.train.batch_size for spec in (dit, mar)]
    assert images[0] / images[1] == pytest.approx(3.5, rel=0.001)
    assert dit.sampling.guidance_scale == 1.5


# --- Table 1 --------------------------------------------------------------------------------------------


def leaves(block, path: str = "") -> dict[str, object]:
    out = {}
    for f in fields(block):
        value, where = getattr(block, f.name), f"{path}.{f.name}" if path else f.name
        out |= leaves(value, where) if is_dataclass(value) else {where: value}
    return out


def difference(one: RunSpec, other: RunSpec) -> set[str]:
    a, b = leaves(one), leaves(other)
    return {path for path in a.keys() | b.keys() if (path in a, a.get(path)) != (path in b, b.get(path))}


MAY_DIFFER = {
    "variant": ("model.order", "model.backbone.", "sampling.num_ar_steps", "sampling.order",
                "likelihood.orders"),
    "loss": ("tokenizer.", "latents.dtype", "model.head.", "train.lr_schedule", "sampling.num_diffusion_steps",
             "sampling.clamp_x0", "likelihood."),
    "guidance": ("sampling.guidance_scale", "sampling.guidance_schedule", "sampling.temperature"),
}  # fmt: skip


@every_scale
def test_rows_of_table1_differ_only_in_what_their_axis_is_about(scale):
    """A comparison along one axis must have all else equal."""
    experiment = load_experiment("table1", scale)
    for row, spec in experiment.rows.items():
        for axis, allowed in MAY_DIFFER.items():
            for bundle in experiment.labels[axis]:
                other = "/".join({**experiment.bundles(row), axis: bundle}.values())
                found = difference(spec, experiment.rows[other])
                assert all(path.startswith(allowed) for path in found), f"{row} and {other}: {found}"


@every_scale
def test_causal_and_masked_backbones_of_table1_have_the_same_size(scale):
    """Up to the masked one's decoder embedding, second norm, mask token and decoder positions."""
    rows = load_experiment("table1", scale).rows
    for loss in ("ce", "diff"):
        causal, masked = (on_paper(rows[f"{v}/{loss}/guided"])[0] for v in ("random_causal", "random_bidirectional"))
        backbone, positions = rows[f"mar/{loss}/guided"].model.backbone, masked.backbone.decoder_positions.numel()
        dim = backbone.dim
        extra = (dim * dim + dim) + 2 * dim + dim + positions - causal.backbone.target_positions.numel()
        assert size(masked) - size(causal) == extra < 0.05 * size(causal.backbone)
        assert size(masked.head) == size(causal.head)


# --- the paper's sizes ----------------------------------------------------------------------------------


def paper_row(row: str = "mar/diff/guided") -> RunSpec:
    return load_experiment("table1", "paper").rows[row]


@pytest.mark.parametrize(
    ("name", "depth", "dim", "heads", "head_depth", "head_width", "official"),
    [
        ("MAR-B", 24, 768, 12, 6, 1024, 207_924_768),
        ("MAR-L", 32, 1024, 16, 8, 1280, 478_326_304),
        ("MAR-H", 40, 1280, 16, 12, 1536, 942_403_104),
    ],
)
def test_official_models_have_the_official_number_of_parameters(
    name, depth, dim, heads, head_depth, head_width, official
):
    backbone = MaskedBackbone(dim=dim, encoder_depth=depth // 2, decoder_depth=depth // 2, num_heads=heads)
    spec = paper_row()
    model = replace(spec.model, backbone=backbone, head=DiffusionHead(depth=head_depth, width=head_width))
    with torch.device("meta"):
        assert size(build_generator(replace(spec, model=model))) == official


@pytest.mark.parametrize(
    ("width", "millions"), [(256, 1.527), (512, 5.412), (1024, 20.26), (1536, 44.55)]
)  # the paper's table 3, counted in its code
def test_denoising_mlps_have_the_papers_sizes(width, millions):
    spec = paper_row()
    with torch.device("meta"):
        model = build_generator(replace(spec, model=replace(spec.model, head=DiffusionHead(width=width))))
    assert count_parameters(model)["head"] / 1e6 == pytest.approx(millions, rel=5e-4)


def test_table1_at_gpu_scale_takes_an_h100_day(tmp_path):
    experiment, places = load_experiment("table1", "gpu"), Places(tmp_path / "runs", tmp_path / "records")
    cost = make_plan(Selection([experiment], {"table1": plan_runs(experiment)}, {}), "gpu", places, {})["cost"]
    assert cost["hours_of"] == "one H100" and 20 < cost["train"] + cost["sample"] < 24
    sizes = {count_parameters(on_paper(spec)[0])["total"] / 1e6 for spec in rows_of(experiment)}
    assert min(sizes) > 55 and max(sizes) < 70


def test_table1_at_paper_scale():
    kl, vq = (on_paper(paper_row(row))[1] for row in ("mar/diff/guided", "mar/ce/guided"))
    assert (size(kl), size(vq)) == (66_456_019, 69_593_371)
    lines = {row.rpartition("/")[0] for row in load_experiment("table1", "paper").rows}
    sizes = {line: count_parameters(on_paper(paper_row(f"{line}/guided"))[0]) for line in lines}
    assert sizes["mar/diff"] == {"total": 426_357_792, "backbone": 406_095_872, "head": 20_261_920}
    assert sizes["raster_causal/diff"]["backbone"] == sizes["random_causal/diff"]["backbone"] == 404_977_664
    assert sizes["mar/ce"]["head"] == 16384 * 1024 + 16384
    assert {row: s for row, s in sizes.items() if row.startswith("mar")} == {
        row.replace("random_bidirectional", "mar"): s for row, s in sizes.items() if "bidirectional" in row
    }
