"""A mistake in a file, on the command line or in a value is one line that names the file, the key and the way out."""

from __future__ import annotations

import math
import typing
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml

from mar_bench.cluster import profile
from mar_bench.config import experiment_file, spec
from mar_bench.config.checks import finish
from mar_bench.config.parse import KeyPathError, field_types, parse
from mar_bench.config.spec import RunSpec, SamplingSpec
from mar_bench.config.yaml_layers import load_yaml
from mar_bench.utils.errors import UserError
from tests.experiment_files import BASE, TABLE1, changed, load, mistake, written

# --- mistakes in files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "id"),
        ("- a\n- b\n", "mapping at the top level"),
        ("a: [1\n", "line 2"),
        ("id: a\nid: b\n", "duplicate key id"),
        ('"a\\rb": 1\n', "a key with control characters, 'a\\rb'"),
        ("a: !!python/object/apply:os.getcwd []\n", "YAML"),
    ],
)
def test_files_that_are_not_experiments(text, hint, tmp_path):
    file = written(tmp_path)
    file.write_text(text)
    message = mistake(file)
    assert "mine.yaml" in message and hint in message


def test_files_that_do_not_exist(tmp_path):
    assert "nowhere.yaml: no such file" in mistake(tmp_path / "nowhere.yaml")
    assert "did you mean 'table1'" in mistake("tabel1")
    assert "did you mean 'tiny'" in mistake(TABLE1, scale="tyni")
    assert "no base overlay 'imagenet', did you mean" in mistake(
        changed(tmp_path, "base: imagenet256", "base: imagenet")
    )
    with pytest.raises(UserError, match="no such file"):
        load_yaml(tmp_path / "nowhere.yaml")


AXIS = TABLE1.read_text()[slice(*map(TABLE1.read_text().index, ("  guidance:\n", "\nlayout:")))]


@pytest.mark.parametrize(
    ("old", "new", "hints"),
    [
        ("id: table1", "ident: table1", ("ident", "did you mean 'id'")),
        ("  guidance:\n", "  setting:\n", ("axes.setting", "column of data frames", "another name")),
        ('title: "Diffusion loss against cross-entropy"', "title: [a]", ("title", "expected a text")),
        ("base: imagenet256", "run: {trian: {steps: 1}}\nbase: imagenet256", ("trian", "did you mean 'train'")),
        ("base: imagenet256", "run: {lr: 1}\nbase: imagenet256", ("'lr'", "mean 'tokenizer.lr' or 'train.lr'?")),
        ("base: imagenet256", "scales: {tyni: {}}\nbase: imagenet256", ("scales", "tyni", "did you mean 'tiny'")),
        # axes
        (AXIS, "  guidance: {}\n", ("axes.guidance", "at least one bundle")),
        ("    guided:\n", "    16:\n", ("axes.guidance.16", "quote")),
        ('set: {sampling: "${parts.guided}"}', 'sett: {sampling: "${parts.guided}"}', ("sett", "did you mean 'set'")),
        ("train: {lr_schedule:", "train: {lr_shedule:", ("lr_shedule", "did you mean 'lr_schedule'")),
        ("set: ${parts.variant.mar}", "set: {model: {order: rastre}}", ("model.order", "did you mean 'raster'")),
        # interpolation
        ("${parts.variant.mar}", "${parts.variant.mer}", ("axes.variant.mar.set", "parts.variant.mer")),
        # layout
        ("metrics: [fd, is]", "metrics: [fid, is]", ("layout.metrics", "did you mean 'fd'")),
        # published cells
        ("mar/ce/guided: {fd: 3.69", "mar/ce/guided: {fid: 3.69", ("paper.mar/ce/guided", "did you mean 'fd'")),
        ("mar/ce/guided: {fd: 3.69", "mar/ce/guided: {fd: '-'", ("paper.mar/ce/guided.fd", "finite number")),
        # orderings
        ("axis: loss, better", "axis: los, better", ("orderings[0].axis", "did you mean 'loss'")),
        ("better: diff, worse: ce", "better: ce, worse: ce", ("orderings[0].worse", "same bundle")),
        ("costs_at_most: 0.10", "costs_at_most: -0.1", ("orderings[3].costs_at_most", "between 0 and 100")),
        ("costs_at_most: 0.10", "costs_at_most: 0.10, metric: nll", ("orderings[3].costs_at_most", "is a share")),
        ("costs_at_most: 0.10", "metric: is", ("orderings[3].metric", "'is'", "fd, fd:heldout")),
        ("costs_at_most: 0.10", "metric: nlt", ("orderings[3].metric", "did you mean 'nll'")),
        ("orderings:", "figure: {kind: speed, panels: loss}\norderings:", ("figure.panels", "kind speed")),
        ("orderings:", "figure: {kind: training, panels: los}\norderings:", ("figure.panels", "mean 'loss'")),
    ],
)  # fmt: skip
def test_mistakes_of_an_experiment(old, new, hints, tmp_path):
    message = mistake(changed(tmp_path, old, new), scale="tiny")
    assert "changed.yaml" in message
    for hint in hints:
        assert hint in message


def test_a_mistake_in_a_base_or_a_scale_names_the_experiment_and_the_scale(tmp_path):
    message = mistake(written(tmp_path, base=BASE + "part: {a: 1}\n"))
    assert "mine.yaml at scale little: part: unknown key" in message and "did you mean 'parts'" in message
    assert "mine.yaml: run: expected a block" in mistake(written(tmp_path, scale="run: 3\n"))
    scale = "run: {train: {steps: 3}, tokenizer: {steps: 4.5}}\n"
    assert "mine.yaml at scale little: row 'small': tokenizer.steps" in mistake(written(tmp_path, scale=scale))
    message = mistake(written(tmp_path), "train.steps=many")
    assert "little, command line train.steps=many: row 'small': train.steps: expected a whole number" in message


# --- mistakes on the command line and in values ---------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "hints"),
    [
        ("train.steps", ("key=value",)),
        ("trian.steps=3", ("command line", "trian", "did you mean 'train'")),
        ("train.stepz=3", ("train.stepz", "did you mean 'steps'")),
        ("train.lr_schedule=linear", ("command line", "constant, cosine, inverse_sqrt")),
        ("parts.few_step=3", ("parts.few_step", "did you mean 'few_steps'")),
        ("parts.tokenizer.continous.width=8", ("parts.tokenizer.continous", "did you mean")),
        ("parts.tokenizer.continuous.widht=8", ("command line", "widht", "did you mean 'width'")),
        ("parts.few_steps=few", ("command line", "num_ar_steps", "whole number")),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(override, hints):
    message = mistake(TABLE1, override, scale="tiny")
    for hint in hints:
        assert hint in message


MAR, CAUSAL, WORD = "mar/diff/guided", "raster_causal/diff/unguided", "mar/ce/unguided"


@pytest.mark.parametrize(
    ("row", "overrides", "hints"),
    [
        # heads, attention and steps
        (MAR, 'model.head={"kind":[]}', ("model.head.kind: unknown kind",)),
        (MAR, "model.head.kind=cross_entropy", ("head 'cross_entropy' needs discrete tokens", "'kl'")),
        (WORD, "parts.head.cross_entropy.kind=diffusion", ("head 'diffusion' needs continuous tokens", "'vq'")),
        (MAR, "parts.few_steps=0", ("num_ar_steps: 0", "between 1 and")),
        (CAUSAL, "sampling.num_ar_steps=4", ("causal", "num_ar_steps 4", "null")),
        ("random_causal/ce/guided", "sampling.order=raster", ("trained in random order", "set it to null")),
        (MAR, "train.snapshots=[5,9000]", ("train.snapshots: step 9000", "4000 steps", "shorten the list")),
        (MAR, "train.snapshots=[5,9] sampling.snapshot=90", ("sampling.snapshot 90", "kept are 5, 9", "the end, null")),
        (MAR, "train.snapshots=[5] sampling.snapshot=5 sampling.weights=raw", ("sampling.weights raw", "ema")),
        (MAR, "train.snapshots=[5] sampling.snapshot=5 train.annealing=[0.5,0.7]", ("sampling.snapshot 5", "to null")),
        (MAR, "sampling.order=permuted model.order_seed=5", ("model.order_seed 5", "set it to 0")),
        (MAR, "train.label_dropout=0", ("guidance", "label_dropout 0.0", "turns it off")),
        (CAUSAL, "sampling.num_diffusion_steps=1001", ("num_diffusion_steps 1001", "between 1 and 1000")),
        (CAUSAL, "sampling.num_diffusion_steps=null", ("num_diffusion_steps is null", "give a number")),
        (MAR, "train.annealing=[0.8,0.5]", ("train.annealing", "start 0.8", "end 0.5")),
        (MAR, "train.annealing=[0,1.5]", ("train.annealing[1]: 1.5", "between 0 and 1")),
        (MAR, "train.annealing=0.5", ("train.annealing", "a list of 2 values")),
        (MAR, "model.order=permuted train.annealing=[0,1]", ("train.annealing", "model.order random", "permuted")),
        (CAUSAL, "train.annealing=[1,1]", ("train.annealing", "model.order random", "raster")),
        ("random_causal/ce/guided", "train.annealing=[0,1] sampling.order=permuted", ("in random and raster order",)),
        # sizes
        (CAUSAL, "tokenizer.stride=12", ("tokenizer.stride 12", "power of two")),
        (WORD, "tokenizer.vocab_size=1025", ("vocab_size 1025", "1024 tokens", "raise tokenizer.batch_size")),
        (MAR, "model.backbone.dim=66", ("dim 66", "num_heads 4")),
        (MAR, "model.backbone.masking.low=0.9 model.backbone.masking.high=0.5", ("low 0.9", "high 0.5")),
        # data
        (WORD, "data.heldout=4999", ("heldout 4999", "5000 images")),
        (WORD, "data.image_size=48", ("image_size 48", "multiple of 32")),
        (WORD, "data.channels=3", ("data.channels 3", "grey")),
        (WORD, "train.batch_size=4001", ("train.batch_size 4001", "4000 training images")),
        (WORD, "train.images=4001", ("train.images 4001", "4000 training images")),
        (MAR, "train.images=31", ("train.batch_size 32", "31 images of train.images")),
        (MAR, "train.images=1", ("train.images: 1", "between 2 and")),
        # training, sampling, measuring
        (WORD, "metrics.is_splits=1001 sampling.num_images=2000", ("is_splits 1001", "data.heldout")),
        (WORD, "metrics.extractor.name=fd:x", ("extractor.name: 'fd:x'", "letters")),
    ],
)  # fmt: skip
def test_values_out_of_range_or_that_do_not_fit(row, overrides, hints, tmp_path):
    """In a table of one row, as otherwise another row may be rejected first."""
    file = one_row(tmp_path, row)
    load(file, scale="tiny")
    message = mistake(file, *overrides.split(), scale="tiny")
    for hint in hints:
        assert hint in message


def one_row(folder: Path, row: str) -> Path:
    """Table 1 with a single bundle on each axis."""
    tree = yaml.safe_load(TABLE1.read_text())
    tree["axes"] = {a: {b: tree["axes"][a][b]} for a, b in zip(tree["axes"], row.split("/"))}
    del tree["paper"], tree["orderings"]
    file = folder / "one.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


# --- every number has a range ---------------------------------------------------------------------------

MODULES = (spec, experiment_file, profile)
SPACES = {"Discrete", "Continuous"}  # not read from YAML
BLOCKS = {b.__name__: b for m in MODULES for b in vars(m).values() if isinstance(b, type) and is_dataclass(b)}
SEEDS = {"seed", "decode_seed", "order_seed"}  # any whole number below 2^63
BEYOND = (-(10**18), 10**18, 10**6000, 1e308, -1e308, math.inf, math.nan)


def flat(hint: object) -> list[object]:
    """A type and all that it is made of."""
    inner = [*typing.get_args(hint), *getattr(hint, "__metadata__", ())]
    return [hint, *(part for other in inner for part in flat(other))]


@pytest.mark.parametrize("block", [block for name, block in BLOCKS.items() if name not in SPACES])
def test_every_number_has_a_range_with_two_ends(block):
    for name, hint in field_types(block).items():
        for value in BEYOND if {int, float} & {*filter(_is_type, flat(hint))} else ():
            if name in SEEDS and value == 10**18:
                continue
            given = [value] * 2 if typing.get_origin(hint) is tuple else value
            with pytest.raises(KeyPathError) as caught:
                parse(hint, given, name)
            assert name in str(caught.value) and len(str(caught.value)) < 200


def _is_type(hint: object) -> bool:
    return isinstance(hint, type)


def test_defaults_are_the_papers_and_pass():
    assert finish(RunSpec()).sampling == SamplingSpec(order="random")
