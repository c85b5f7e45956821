"""From YAML to specs: the order of the layers, replaced blocks, interpolation and types."""

from __future__ import annotations

import typing

import pytest
import yaml

from mar_bench.config import spec
from mar_bench.config.checks import finish
from mar_bench.config.experiment import load_experiment
from mar_bench.config.parse import KeyPathError, as_tree, overlay, parse
from mar_bench.config.spec import DiffusionHead, KLTokenizer, RunSpec, TrainSpec
from mar_bench.config.yaml_layers import experiment_files, find_experiment, scales
from mar_bench.utils.errors import UserError
from tests.experiment_files import BASE, MINE, load, mistake, written

# --- layers ---------------------------------------------------------------------------------------------

LAYERED = ("train.steps", "train.batch_size", "train.warmup_steps", "train.seed", "sampling.batch_size",
           "sampling.seed")  # fmt: skip


def layer(number: int) -> dict:
    """Layer ``number`` sets the fields that it and the later ones decide, all to its number."""
    tree: dict[str, dict[str, int]] = {}
    for path in LAYERED[number - 1 :]:
        block, key = path.split(".")
        tree.setdefault(block, {})[key] = number
    return tree


def test_each_layer_wins_over_those_below(tmp_path):
    """Base file, experiment, scale overlay, the experiment's own section, bundle, command line."""
    base, experiment = yaml.safe_load(BASE), yaml.safe_load(MINE)
    base = overlay(base, {"run": layer(1)})
    experiment |= {"run": layer(2), "scales": {"little": {"run": layer(4)}, "tiny": {"run": layer(6)}}}
    for bundle in experiment["axes"]["head"].values():
        bundle["set"] |= layer(5)
    file = written(tmp_path, *map(yaml.safe_dump, (experiment, base, {"run": layer(3)})))
    for row in load(file, "sampling.seed=6").rows.values():
        tree = as_tree(row)
        assert [tree[block][key] for block, key in (path.split(".") for path in LAYERED)] == [1, 2, 3, 4, 5, 6]


def test_a_scale_extends_another(tmp_path):
    file = written(tmp_path, scale="extends: lower\nrun: {train: {steps: 7}}")
    (tmp_path / "scale/lower.yaml").write_text("run: {train: {steps: 5, seed: 3}}")
    trained = load(file).rows["small"].train
    assert (trained.steps, trained.seed) == (7, 3)
    (tmp_path / "scale/lower.yaml").write_text("extends: little")
    assert "little.yaml: it extends itself: little -> lower -> little" in mistake(file)
    (tmp_path / "scale/lower.yaml").write_text("extends: tinny")
    assert "no scale overlay 'tinny', did you mean 'tiny'?" in mistake(file)
    (tmp_path / "scale/lower.yaml").write_text("run: {train: {steps: 5, seed: 3}}\nparts: {wide: 24}")
    written(tmp_path, scale="extends: lower\nrun: {train: {steps: 7}}\nparts:\n")
    assert load(file).rows["small"].train.seed == 3, "an empty key removes nothing"


def test_of_its_own_name_a_scale_extends_the_shipped_one_and_shipped_ones_only_each_other(tmp_path):
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale/tiny.yaml").write_text("extends: tiny\nrun: {train: {seed: 3}}")
    (file := tmp_path / "table1.yaml").write_text(find_experiment("table1").read_text())
    tiny, desk = (load_experiment(str(file), scale).rows["mar/ce/unguided"] for scale in ("tiny", "desk"))
    assert (tiny.train.seed, tiny.train.steps, tiny.data.kind) == (3, 4000, "mnist5k")
    assert (desk.train.seed, desk.train.steps, desk.data.kind) == (0, 16000, "mnist5k")


def test_layers_merge_inside_a_block_and_replace_where_the_kind_changes():
    below = {"head": {"kind": "diffusion", "width": 8, "depth": 2}, "steps": [1, 2], "x": 1}
    assert overlay(below, {"head": {"width": 9}, "steps": [3]}) == {
        "head": {"kind": "diffusion", "width": 9, "depth": 2}, "steps": [3], "x": 1,
    }  # fmt: skip
    assert overlay(below, {"head": {"kind": "diffusion", "width": 9}})["head"]["depth"] == 2
    assert overlay(below, {"head": {"kind": "mse"}})["head"] == {"kind": "mse"}
    assert overlay(below, {"head": None})["head"] is None
    assert below["head"]["width"] == 8, "layers are left as they were"


def test_an_override_of_the_kind_drops_the_old_block(tmp_path):
    rows = load(written(tmp_path), "tokenizer.kind=vq", "model.head.kind=cross_entropy").rows
    assert {row.tokenizer for row in rows.values()} == {spec.VQTokenizer()}
    kept = load(written(tmp_path), "tokenizer.kind=kl").rows
    assert {row.tokenizer.width for row in kept.values()} == {8}


def test_parts_are_interpolated_and_a_scale_changes_them(tmp_path):
    experiment = MINE.replace("width: 16", 'width: "${parts.wide}"') + "parts: {wide: 24}\n"
    assert load(written(tmp_path, experiment)).rows["large"].model.head.width == 24
    file = written(tmp_path, experiment, scale="parts: {wide: 40}")
    assert load(file).rows["large"].model.head.width == 40
    assert load(file, "parts.wide=48").rows["large"].model.head.width == 48


def test_a_whole_block_is_a_part_and_takes_any_of_its_fields(tmp_path):
    experiment = MINE.replace("{kind: diffusion, width: 16}", '"${parts.head}"') + "parts: {head: {kind: diffusion}}\n"
    head = load(written(tmp_path, experiment), "parts.head.depth=5").rows["large"].model.head
    assert head == DiffusionHead(depth=5)


def test_a_base_and_a_scale_beside_the_experiment_come_before_the_shipped_ones(tmp_path):
    file = written(tmp_path)
    assert load(file, scale="paper").rows["small"].data.kind == "digits"
    (tmp_path / "scale/paper.yaml").write_text("run: {train: {steps: 11}}")
    assert load(file, scale="paper").rows["small"].train.steps == 11


def test_a_training_shortened_on_the_command_line_keeps_the_snapshots_it_reaches():
    def kept(*overrides: str) -> tuple[int, ...]:
        return load_experiment("table1", "tiny", overrides).rows["mar/ce/unguided"].train.snapshots

    assert kept("train.steps=7") == () and kept("train.steps=1000") == (125, 250, 500)  # the end is kept anyway
    assert kept("train={steps: 1000}") == (125, 250, 500)
    assert kept("train.steps=9000") == kept() == (125, 250, 500, 1000, 2000)
    assert kept("train.steps=9000", "train.snapshots=[5000]") == (5000,)
    with pytest.raises(UserError, match="sampling.snapshot 2000: no weights are kept"):
        load_experiment("learning_curves", "tiny", ["train.steps=1000"])


def test_knobs_that_a_model_does_not_have_are_neutral():
    """Two rows that draw the same images have the same spec."""
    rows = load_experiment("table1", "tiny", ("train.lr_schedule=cosine",)).rows
    codes, vectors = rows["mar/ce/unguided"].sampling, rows["raster_causal/diff/guided"].sampling
    assert (codes.num_diffusion_steps, codes.clamp_x0) == (None, None)
    assert (vectors.num_diffusion_steps, vectors.clamp_x0, vectors.num_ar_steps) == (25, 4.0, 16)
    assert (codes.order, vectors.order) == ("random", "raster")
    other = load_experiment("table1", "tiny", ("sampling.guidance_schedule=constant",)).rows
    assert other["mar/ce/unguided"].sampling.guidance_schedule == "linear"
    assert other["mar/ce/guided"].sampling.guidance_schedule == "constant"


def test_orders_have_one_name():
    """What trains and samples the same way has the same spec, however it is written."""
    tree = as_tree(load_experiment("table1", "tiny").rows["mar/ce/unguided"])
    tree["sampling"]["order"] = None

    def row(**changes) -> RunSpec:
        return finish(parse(RunSpec, overlay(tree, changes)))

    annealed = row(train={"annealing": [0.5, 1]})
    assert (annealed.model.order, annealed.train.annealing, annealed.sampling.order) == ("random", (0.5, 1), "raster")
    assert row(train={"annealing": [0.5, 1]}, sampling={"order": "random"}).sampling.order == "random"
    assert row(train={"annealing": [1, 1]}) == row()
    assert row(train={"annealing": [0, 0]}) == row(model={"order": "raster"})
    assert row(model={"order_seed": 1}) == row()
    permuted = row(model={"order": "permuted"})
    assert permuted.sampling.order == "permuted" and permuted != row(model={"order": "permuted", "order_seed": 1})
    assert row(train={"images": 4000}) == row() != row(train={"images": 3999})
    assert finish(annealed) == annealed


def test_the_folder_of_experiments_can_be_chosen(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path))
    assert list(experiment_files()) == ["mine"] and scales() == ["little"]
    assert find_experiment("mine") == tmp_path / "mine.yaml"
    monkeypatch.delenv("MAR_BENCH_EXPERIMENTS")
    assert scales() == ["smoke", "tiny", "desk", "fashion", "gpu64", "gpu", "paper"]


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "value", "parsed"),
    [
        (int, 3, 3), (int, 3.0, 3), (int, 1e3, 1000), (float, 3, 3.0), (float, -0.0, 0.0), (bool, True, True),
        (str, "3", "3"), (int | None, None, None), (int | None, 4, 4), (tuple[float, float], [0, 1], (0.0, 1.0)),
        (typing.Literal["a", "b"], "b", "b"),
    ],
)  # fmt: skip
def test_values_are_converted_to_the_type_of_their_field(expected, value, parsed):
    found = parse(expected, value)
    assert (repr(found), type(found)) == (repr(parsed), type(parsed))


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (int, True), (int, 1.5), (int, "3"), (int, None), (int, float("nan")), (int, float("inf")), (float, True),
        (float, float("nan")), (float, float("-inf")), (float, 10**400), (int, 10**400), (float, "0.1"), (bool, 1),
        (bool, "true"), (str, 3), (str, None), (str, True), (tuple[float, float], [1]), (tuple[float, float], 1),
        (tuple[float, float], [1, "x"]), (typing.Literal["a", "b"], "c"), (typing.Literal["a", "b"], ["a"]),
        (KLTokenizer | DiffusionHead, {"kind": ["kl"]}), (KLTokenizer | DiffusionHead, "kl"), (TrainSpec, 3),
        (TrainSpec, {3: 4}), (TrainSpec, None),
    ],
)  # fmt: skip
def test_values_of_another_type_are_rejected(expected, value):
    with pytest.raises(KeyPathError):
        parse(expected, value, "x")
