"""Overrides: a text is taken as it was typed, anything else is read as YAML; references stay inside the file."""

from __future__ import annotations

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.config.yaml_layers import find_experiment, split_row
from mar_bench.utils.errors import UserError
from tests.experiment_files import BASE, MINE, TABLE1, load, mistake, written

PAPER = "mar/diff/guided"


def root_of(typed: str) -> str | None:
    return load_experiment(str(TABLE1), "paper", [f"data.root={typed}"]).rows[PAPER].data.root


@pytest.mark.parametrize(
    "typed", ["/data/photos #2", "/data/photos ", "&copy b", "'/d'x", "[1]", "{a: 1}", "010", "yes"]
)
def test_a_text_is_what_was_typed(typed):
    assert root_of(typed) == typed


def test_a_path_is_expanded_and_null_unsets_a_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert (root_of("~"), root_of("~/photos #2"), root_of("${HOME}/x")) == (
        "/home/me",
        "/home/me/photos #2",
        "/home/me/x",
    )
    assert root_of("null") is None
    typed = "parts.tokenizer.continuous.weights=$HOME/kl #16"
    row = load_experiment(str(TABLE1), "paper", [typed]).rows[PAPER]
    assert row.tokenizer.weights == "/home/me/kl #16"
    assert "data.root: '$NO_SUCH/x' names the variable NO_SUCH" in mistake(
        TABLE1, "data.root=$NO_SUCH/x", scale="paper"
    )


@pytest.mark.parametrize(
    "override",
    ["train.steps=0100", "train.steps=1:40", "sampling.num_images=0200", "train.seed=010", "train.lr=1:30.5",
     "train.lr=1_0e-4", "parts.few_steps=04", "train={steps: 010}"],
)  # fmt: skip
def test_numbers_that_readers_disagree_on_are_refused(override):
    message = mistake(TABLE1, override, scale="smoke")
    assert override.partition("=")[0].rpartition(".")[2].replace("few", "num_ar") in message
    assert "YAML readers disagree on" in message and "plain decimals" in message


@pytest.mark.parametrize(
    ("override", "row", "hint"),
    [
        ("model.head.depht=3", "mar/diff/guided", "did you mean 'depth'?"),
        ("model.head.depth=-3", "mar/diff/guided", "must lie between"),
        ("model.head.depth=3", "mar/ce/guided", "override the part that has it"),
        ("model.head.depht=3", None, "did you mean 'depth'?"),
    ],
)
def test_the_row_that_was_asked_for_tells_what_is_wrong(override, row, hint):
    with pytest.raises(UserError) as error:
        load_experiment("table1", "smoke", [override], lambda name: name == row if row else True)
    assert hint in str(error.value) and f"row '{row or 'raster_causal/diff/unguided'}'" in str(error.value)


def test_numbers_lists_and_blocks_are_read_as_yaml(tmp_path):
    words = ("train={lr: 1e-4, steps: 7}", "train.steps=8", "train.betas=[0.5, 0.6]", "train.ema_warmup=true")
    train = load(written(tmp_path), *words).rows["small"].train
    assert (train.lr, train.steps, train.betas, train.ema_warmup) == (1e-4, 8, (0.5, 0.6), True)


@pytest.mark.parametrize(
    ("overrides", "hints"),
    [
        (("train.lr=1", "train={steps: 3}"), ("train={steps: 3}", "give the whole block first")),
        (("train=3", "train.steps=4"), ("train.steps=4", "train is set to 3 before")),
        (("train..steps=3",), ("key=value",)),
        (("train.steps=3\n4",), ("override train.steps", "cannot be printed")),
        (("train.steps=1" + "0" * 6000,), ("train.steps: a number of 6,001 characters",)),
        (("train.ema_warmup=yes",), ("train.ema_warmup: expected true or false, found 'yes'",)),
    ],
)
def test_overrides_that_cannot_be_meant(overrides, hints):
    message = mistake(TABLE1, *overrides, scale="smoke")
    assert all(hint in message for hint in hints), message


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x ${oc.env:HOME}", "${.id}", "${oc.create:{}}", "${base.${id}}"])
def test_references_to_anything_but_a_key_of_the_file_are_refused_by_name(text, tmp_path):
    message = mistake(written(tmp_path, f"{MINE}title: '{text}'\n"))
    assert message.startswith(f"{tmp_path / 'mine.yaml'}: title: '{text}': only ${{key.of.this.file}}")


def test_references_stay(tmp_path):
    title = "title: 'width ${parts.width} of ${id}'\nparts: {width: 8}\n"
    assert load(written(tmp_path, MINE + title)).title == "width 8 of mine"


@pytest.mark.parametrize(
    ("label", "hint"), [("0.90", "found"), ("true", "found"), ("010", "disagree"), ("1:30", "disagree")]
)
def test_labels_are_texts_or_whole_numbers(label, hint, tmp_path):
    message = mistake(written(tmp_path, MINE.replace("small: {", f"small: {{label: {{head: {label}}}, ")))
    assert "quotes" in message and (hint == "found") == ("axes.head.small.label.head" in message)


@pytest.mark.parametrize(("label", "shown"), [("yes", "yes"), ("12", 12), ("'0.90'", "0.90")])
def test_labels_print_as_they_are_written(label, shown, tmp_path):
    experiment = load(written(tmp_path, MINE.replace("small: {", f"small: {{label: {{head: {label}}}, ")))
    assert experiment.labels["head"]["small"] == {"head": shown}


def test_yml_works_wherever_yaml_does(tmp_path, monkeypatch):
    file = written(tmp_path)
    for path in tmp_path.rglob("*.yaml"):
        path.rename(path.with_suffix(".yml"))
    assert load(file.with_suffix(".yml")).rows.keys() == {"small", "large"}
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path))
    assert find_experiment("mine") == tmp_path / "mine.yml"
    (tmp_path / "base/mine.yaml").write_text(BASE)
    assert "mine.yml: mine.yaml has the same name" in mistake("mine")
    assert [split_row(f"a.b/my{end}/mar/diff") for end in (".yaml", ".yml")] == [
        ("a.b/my.yaml", "mar/diff"), ("a.b/my.yml", "mar/diff"),
    ]  # fmt: skip
    assert split_row("table1/mar/diff") == ("table1", "mar/diff") and split_row("my.yml") == ("my.yml", "")
