"""Ids address content: what determines a stage's output changes its id, and nothing else does."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import (
    IdCheck,
    canonical,
    generation_run,
    likelihood_run,
    plan_runs,
    reconstruction_run,
    speed_run,
    stage_ids,
    with_seeds,
)
from mar_bench.config.spec import RunSpec, TrainSpec, measures_scale
from mar_bench.config.stages import STAGES
from mar_bench.records.record import RecordFolder, read_records, write_record
from mar_bench.utils.errors import UserError
from tests.golden.regenerate_ids import FILE, SCALES, every_id
from tests.made_up import generation, reconstruction, speed

every_scale = pytest.mark.parametrize("scale", SCALES)


def all_ids(spec: RunSpec, device: str = "Example CPU") -> dict[str, str]:
    return {
        **stage_ids(spec),
        "reconstruction_id": reconstruction_run("row", spec).id,
        "speed_id": speed_run("row", spec, device).id,
        "likelihood_id": likelihood_run("row", spec).id,
    }


def changed_ids(before: RunSpec, after: RunSpec) -> set[str]:
    """Names of the ids that differ, without their ending."""
    old, new = all_ids(before), all_ids(after)
    return {name.removesuffix("_id") for name in old if old[name] != new[name]}


# --- Table 1 --------------------------------------------------------------------------------------------


def test_golden_ids():
    """An id that moves makes every record under it unreachable: see regenerate_ids.py for when that is meant."""
    assert every_id() == json.loads(FILE.read_text())


@every_scale
def test_table1_is_16_evaluations_over_6_trainings_and_2_tokenizers(scale):
    """The tokenizers and the extractor are shared by all training seeds."""
    experiment = replace(load_experiment("table1", scale), sweeps={})  # as once every point is chosen
    runs = plan_runs(experiment, [0, 1, 2])
    generation = [run for run in runs if run.task == "generation"]
    assert {name: len({run.ids[name] for run in generation}) for name in generation[0].ids} == {
        "tokenizer_id": 2, "latents_id": 2, "extractor_id": 1, "train_id": 18, "sample_id": 48, "eval_id": 48,
        "cell_id": 16,
    }  # fmt: skip
    tasks = [run.task for run in runs]
    assert (tasks.count("reconstruction"), tasks.count("speed")) == (2, 16)
    assert len({run.id for run in runs}) == len(runs)


# --- which field changes which id -----------------------------------------------------------------------

AFTER_TRAIN = {"train", "sample", "eval", "likelihood"}
DOWNSTREAM = {
    "data": {"latents", "extractor", "reconstruction", "speed", *AFTER_TRAIN},  # and a tokenizer trained on it
    "tokenizer": {"tokenizer", "latents", "reconstruction", "speed", *AFTER_TRAIN},
    "tokenizer.group": {"latents", "speed", *AFTER_TRAIN},  # the same tokenizer seen in another way
    "tokenizer.output": {"latents", "speed", *AFTER_TRAIN},
    "latents": {"latents", *AFTER_TRAIN},
    "model": {"speed", *AFTER_TRAIN},
    "train": AFTER_TRAIN,
    "train.precision": {"speed", *AFTER_TRAIN},
    "sampling": {"sample", "eval", "speed"},
    "metrics": {"eval", "reconstruction"},
    "metrics.extractor": {"extractor", "eval", "reconstruction"},
    "metrics.reference": {"extractor", "eval", "reconstruction"},
    "metrics.reference_images": {"extractor", "eval", "reconstruction"},
    "speed": {"speed"},
    "likelihood": {"likelihood"},
    "sampling.order": {"sample", "eval", "speed", "likelihood"},
}
DO_NOT_SLOW_DOWN = ("num_images", "batch_size", "weights", "temperature", "guidance_schedule", "seed")
DOWNSTREAM |= {f"sampling.{name}": {"sample", "eval"} for name in DO_NOT_SLOW_DOWN}
DOWNSTREAM |= {f"sampling.{name}": {"sample", "eval", "likelihood"} for name in ("weights", "snapshot")}


def hashed_fields(block, path: str = "") -> dict[str, object]:
    """Path -> type of all hashed fields below a block that are no blocks, except ``kind``."""
    found, hints = {}, typing.get_type_hints(type(block))
    for f in fields(block):
        where, value = f"{path}.{f.name}" if path else f.name, getattr(block, f.name)
        if f.metadata.get("unhashed") or f.name == "kind":
            continue
        found |= hashed_fields(value, where) if is_dataclass(value) else {where: hints[f.name]}
    return found


def get(block, path: str):
    for name in path.split("."):
        block = getattr(block, name)
    return block


def put(block, path: str, value):
    first, _, rest = path.partition(".")
    return replace(block, **{first: put(getattr(block, first), rest, value) if rest else value})


def another(value, hint):
    """A value of the same type that differs."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if typing.get_origin(hint) is tuple:
        return (value[0] / 2, *value[1:]) if value else (0.5, 0.75)
    if hint is bool:
        return not value
    return f"{value}x" if hint is str else (value or hint(0)) + hint(1)


SPECS = {  # together they hold every kind of block
    f"{scale}/{row}": load_experiment("table1", scale).rows[row]
    for scale in ("smoke", "tiny", "paper")
    for row in ("raster_causal/ce/guided", "mar/diff/unguided")
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@every_spec
def test_hashed_field_changes_exactly_the_ids_downstream(spec):
    found = hashed_fields(spec)
    assert len(found) > 40
    for path, hint in found.items():
        known = max((p for p in DOWNSTREAM if f"{path}.".startswith(f"{p}.")), key=len)
        expected = DOWNSTREAM[known] | ({"tokenizer"} if known == "data" and spec.tokenizer.trained else set())
        if path == "sampling.guidance_scale" and spec.sampling.guidance_scale != 1:
            expected = {"sample", "eval"}  # guidance costs time, its strength does not
        changed = put(spec, path, another(get(spec, path), hint))
        if path == "tokenizer.output" and measures_scale(changed.tokenizer):
            expected = DOWNSTREAM["tokenizer"]  # whose scale belongs to the data
        assert changed_ids(spec, changed) == expected, path


# --- cells and speed ------------------------------------------------------------------------------------


@every_spec
def test_cell_id_ignores_seeds(spec):
    runs = [generation_run("row", with_seeds(spec, t, s)) for t in (0, 1) for s in (0, 1)]
    assert len({run.id for run in runs}) == 4 and len({run.cell_id for run in runs}) == 1
    assert runs[0].cell_id == runs[0].id
    hotter = put(spec, "sampling.temperature", 0.5)
    assert generation_run("row", hotter).cell_id != runs[0].cell_id


@every_spec
def test_speed_id_depends_on_the_machine_and_not_on_seeds_or_counts(spec):
    run = speed_run("row", spec, "one")
    assert run.id != speed_run("row", spec, "other").id
    assert run.cell_id == speed_run("row", spec, "other").cell_id
    packed = speed_run("row", put(spec, "compute.pack_weights", True), "one")
    assert packed.id != run.id and packed.cell_id == run.cell_id
    threads = speed_run("row", put(spec, "compute.threads", 77), "one")
    assert threads.id != run.id and threads.cell_id == run.cell_id
    same = put(put(with_seeds(spec, 3, 4), "sampling.num_images", 7), "sampling.temperature", 0.5)
    assert speed_run("row", same, "one").id == run.id
    assert speed_run("row", put(spec, "speed.batch_size", 3), "one").cell_id != run.cell_id


def test_rows_that_differ_in_sampling_alone_share_a_likelihood():
    """Table 1 has six trainings; guidance, AR steps, temperature and images do not matter, nor does the seed."""
    experiment = replace(load_experiment("table1", "tiny"), shows_likelihood=True)
    runs = plan_runs(experiment, [0, 1], [0, 3])
    runs = [run for run in runs if run.task == "likelihood"]
    assert len(runs) == len({run.ids["train_id"] for run in runs}) == 12
    assert len({run.cell_id for run in runs}) == 6
    assert not [run for run in plan_runs(load_experiment("table1", "tiny")) if run.task == "likelihood"]
    spec = SPECS["tiny/mar/diff/unguided"]
    confident = put(spec, "sampling.order", "confidence")
    assert likelihood_run("row", confident).id == likelihood_run("row", spec).id
    assert likelihood_run("row", put(spec, "sampling.order", "raster")).id != likelihood_run("row", spec).id


# --- canonical form -------------------------------------------------------------------------------------


def test_canonical_form_omits_defaults_except_kinds():
    assert canonical(TrainSpec()) == {} and canonical(TrainSpec(betas=(0.9, 0.95))) == {}
    assert canonical(TrainSpec(steps=5, betas=(0.5, 0.95))) == {"steps": 5, "betas": [0.5, 0.95]}
    assert canonical(RunSpec().model) == {"kind": "ar"}
    assert canonical(RunSpec().tokenizer) == {"kind": "ldm_kl"}


@pytest.mark.parametrize("name", ["train", "model"])
def test_field_added_later_keeps_ids(name):
    spec = SPECS["tiny/mar/diff/unguided"]
    block = getattr(spec, name)
    later = make_dataclass("Later", [("added", int, field(default=3))], bases=(type(block),), frozen=True)
    values = {f.name: getattr(block, f.name) for f in fields(block)}
    assert not changed_ids(spec, replace(spec, **{name: later(**values)}))
    assert changed_ids(spec, replace(spec, **{name: later(**values, added=4)}))


@pytest.mark.parametrize("stage", STAGES)
def test_revision_changes_the_stage_and_all_downstream(stage, monkeypatch):
    spec = SPECS["tiny/mar/diff/unguided"]
    before = all_ids(spec)
    monkeypatch.setitem(STAGES, stage, replace(STAGES[stage], revision=99))
    after = all_ids(replace(spec))  # a spec keeps its ids
    follows = {
        "tokenizer": {"tokenizer", "latents", "reconstruction", *AFTER_TRAIN},
        "latents": {"latents", *AFTER_TRAIN},
        "train": AFTER_TRAIN,
        "extractor": {"extractor", "eval", "reconstruction"},
        "sample": {"sample", "eval"},
        "generation": {"eval"},
    }
    expected = follows.get(stage, {stage})
    assert {name for name in before if before[name] != after[name]} == {f"{name}_id" for name in expected}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.lr=2e-3", "train.lr=0.002"), ("train.lr=1", "train.lr=1.0"), ("train.steps=4e3", "train.steps=4000"),
        ("train.weight_decay=0", "train.weight_decay=-0.0"), ("train.betas=[0,0.95]", "train.betas=[0.0,.95]"),
    ],
)  # fmt: skip
def test_ids_ignore_how_a_number_is_written(one, other):
    found = [load_experiment("table1", "smoke", (word,)).rows["mar/diff/guided"] for word in (one, other)]
    assert all_ids(found[0]) == all_ids(found[1])


# --- planning -------------------------------------------------------------------------------------------


def test_patterns_and_seeds_choose_runs():
    experiment = load_experiment("table1", "smoke")
    runs = [r for r in plan_runs(experiment, [0, 1], [0, 1, 2], only="mar/*/guided") if r.task == "generation"]
    assert len(runs) == 12 and {run.row for run in runs} == {"mar/ce/guided", "mar/diff/guided"}
    with pytest.raises(UserError, match=r"'mra/\*' matches no row of table1, known: mar/ce/guided"):
        plan_runs(experiment, only="mra/*")


# --- records ----------------------------------------------------------------------------------------------


def test_the_ids_of_the_committed_records_follow_from_their_specs():
    check, folder = IdCheck(), Path(__file__).parents[2] / "results/records"
    for record in read_records(folder).values():
        check(folder, record)


@pytest.mark.parametrize("make", [lambda *of: generation(*of, 1, 2, 5.0), reconstruction, speed])
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"train": {"seed": 7}}, {"generation": "train_id", "speed": "train_id"}),
        ({"sampling": {"seed": 7}}, {"generation": "sample_id"}),
        ({"sampling": {"num_ar_steps": 3}}, {"generation": "sample_id", "speed": "cell_id"}),
        (
            {"data": {"shift": 0}},
            {"generation": "tokenizer_id", "reconstruction": "tokenizer_id", "speed": "tokenizer_id"},
        ),
        ({"compute": {"micro_batch": 1}}, {}),
        ({"train": {"of_a_newer_version": 1}}, {}),
    ],
)
def test_a_record_whose_spec_contradicts_its_ids_is_refused_where_it_is_used(make, change, wrong, tmp_path):
    record = make(load_experiment("table1", "tiny"), "mar/diff/guided")
    spec = {block: {**values, **change.get(block, {})} for block, values in record.spec.items()}
    path = write_record(tmp_path, replace(record, spec=spec))
    for use in (lambda found: found[record.id], lambda found: found.of_cells({record.ids["cell_id"]})):
        if record.task in wrong:
            with pytest.raises(UserError, match=f"{path}: its {wrong[record.task]} .*restore it"):
                use(RecordFolder(tmp_path, IdCheck()))
        else:
            assert use(RecordFolder(tmp_path, IdCheck()))


def test_a_record_of_a_cell_with_an_unknown_task_is_refused(tmp_path):
    record = generation(load_experiment("table1", "tiny"), "mar/diff/guided", 0, 0, 5.0)
    path = write_record(tmp_path, replace(record, task="generatio"))
    with pytest.raises(UserError, match=f"{path}: its task 'generatio' is none of generation"):
        RecordFolder(tmp_path, IdCheck()).of_cells({record.ids["cell_id"]})


def test_one_check_judges_records_of_many_seeds_and_cells(tmp_path):
    experiment, check = load_experiment("table1", "tiny"), IdCheck()
    records = [generation(experiment, row, t, s, 5.0) for s in (0, 3) for row in experiment.rows for t in (0, 2)]
    for record in records:
        check(tmp_path, record)
        with pytest.raises(UserError, match="sample_id"):
            check(tmp_path, replace(record, ids={**record.ids, "sample_id": "0" * 12}))
