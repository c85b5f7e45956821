"""Records are written atomically and read strictly."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mar_bench.records.record import (
    CONFLICTS,
    SCHEMA_VERSION,
    Record,
    RecordFolder,
    conflicting_files,
    conflicting_ids,
    read_record,
    read_records,
    write_record,
)
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write, reading

DONE = Record(
    task="generation",
    status="done",
    ids={"eval_id": "0123456789ab", "cell_id": "ba9876543210"},
    spec={"train": {"betas": [0.9, 0.95]}, "metrics": {"extractor": {"kind": "classifier", "name": "digits"}}},
    metrics={"fd_digits": 3.25},
    protocol={"num_generated": 200},
    parameters={"total": 7},
    training={"steps": 80},
    provenance={"device": "Example CPU"},
)
FAILED = replace(DONE, status="failed", metrics={}, error="ValueError: no\nTraceback")


# --- writing --------------------------------------------------------------------------------------------


def test_a_crash_during_a_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(TypeError):
        atomic_write(path, 3)

    def full(source, target):
        assert os.path.getsize(source) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = write_record(tmp_path, DONE)
    assert path == tmp_path / "0123456789ab.json"
    assert read_records(tmp_path) == {DONE.id: DONE}
    assert read_records(tmp_path / "nowhere") == {}
    reordered = replace(DONE, ids=dict(reversed(DONE.ids.items())))
    (tmp_path / "b").mkdir()
    assert write_record(tmp_path / "b", reordered).read_bytes() == path.read_bytes()


def test_a_failure_never_replaces_a_result(tmp_path):
    write_record(tmp_path, FAILED)
    write_record(tmp_path, replace(FAILED, error="another"))
    assert read_records(tmp_path)[DONE.id].error == "another"
    write_record(tmp_path, DONE)
    write_record(tmp_path, FAILED)
    assert read_records(tmp_path)[DONE.id] == DONE


def test_an_id_that_is_set_aside_gets_no_record(tmp_path):
    aside = tmp_path / CONFLICTS / DONE.id
    path = write_record(tmp_path, DONE)
    aside.mkdir(parents=True)
    assert conflicting_ids(tmp_path) == [] and conflicting_files(tmp_path, DONE.id) == []
    path.replace(aside / "b.json")
    write_record(tmp_path, DONE)
    assert read_records(tmp_path) == {}
    assert conflicting_ids(tmp_path) == [DONE.id] and conflicting_files(tmp_path, DONE.id) == [aside / "b.json"]
    write_record(tmp_path, replace(DONE, ids={"eval_id": "another"}))
    assert list(read_records(tmp_path)) == ["another"]


# --- reading --------------------------------------------------------------------------------------------


def changed(**changes) -> str:
    return json.dumps({**asdict(DONE), **changes})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (changed()[:-20], "valid record"),
        ("[]", "needed"),
        (changed(ids={"cell_id": "x"}), "eval_id"),
        (changed(ids=["eval_id"]), "ids"),
        (changed(metrics={"fd": "abc"}), "metrics"),
        (changed(spec={}), "extractor"),
        *((changed(metrics={"fd_digits": float(text)}), "metrics.fd_digits") for text in ("nan", "inf", "-5", "1e300")),
        (changed(metrics={"precision_digits": 1.5}), "metrics.precision_digits 1.5 must be a number between 0 and 1"),
        (changed(metrics={"seconds_per_image": 0}), "metrics.seconds_per_image"),
        (changed(metrics={"of_a_plugin": 1e16}), "metrics.of_a_plugin"),
        (changed(parameters={"total": 0}), "parameters.total"),
        (changed(training={"loss_heldout": "low"}), "training.loss_heldout"),
        *((changed(training={"steps": value}), "training.steps") for value in (True, "x", [1])),
        *((changed(training={"seconds": value}), "training.seconds") for value in (-3, [1], "x")),
        (changed(spec={**DONE.spec, "train": {"batch_size": "x"}}), "spec.train.batch_size"),
        (changed(spec={**DONE.spec, "train": {"steps": 80}}, training={"steps": 5}), "training.steps 5 must be 80"),
        (changed(spec={**DONE.spec, "sampling": {"snapshot": 9}}), "training.steps 80 must be 9"),
        (changed(uncertainty={"fd": 5}), "uncertainty.fd"),
        (changed(uncertainty={"fd": {"standard_error": -1}}), "uncertainty.fd.standard_error"),
        (changed(spec={**DONE.spec, "train": {"seed": "0"}}), "spec.train.seed"),
        (changed(spec={**DONE.spec, "sampling": 5}), "spec.sampling"),
        (changed(protocol={"reference": ["name"]}), "protocol.reference"),
        (changed(protocol={"num_generated": "many"}), "protocol.num_generated"),
        (changed(provenance={"git": {"commit": 7}}), "provenance.git.commit"),
        (changed(provenance=None), "provenance"),
        (changed(error=["a"]), "error"),
        (changed(task=5), "task"),
        (changed(schema_version=True), "schema_version"),
        (changed(ids={"eval_id": "../../escaped"}), "ids"),
        (changed(selection={"fd": 2**64}), "selection.fd"),
        (changed().replace("7}", "7" * 6000 + "}"), "digits"),
        (changed().replace('"total": 7', '"total": 7, "total": 8'), "'total' is there twice"),
        (changed(selection=json.loads('{"a":' * 30 + "1" + "}" * 30)), "levels"),
        (changed(selection="@").replace('"@"', "[" * 10_000 + "]" * 10_000), "abc.json"),
        ("\ufeff" + changed(), "BOM"),
        (changed().replace("Example", "\udcff"), "utf-8"),
        (changed() + " " * 2**23, "4 MB"),
        (changed(status="perhaps"), "perhaps"),
        (changed(schema_version=SCHEMA_VERSION + 1), "update mar_bench"),
        (changed(ids={"eval_id": "fedcba987654"}), "fedcba987654"),
    ],
)
def test_a_broken_record_is_named(text, hint, tmp_path):
    path = tmp_path / "abc.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_records(tmp_path)
    message = str(caught.value)
    assert str(path) in message and hint in message and "\n" not in message and len(message) < 400


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    for changes, field in (({"metrics": {"fd_digits": math.nan}}, "fd_digits"), ({"uncertainty": {"a": 5}}, "a")):
        with pytest.raises(UserError, match=field):
            write_record(tmp_path, replace(DONE, **changes))
    assert not list(tmp_path.iterdir())


def test_numbers_at_the_ends_of_their_ranges_are_read(tmp_path):
    metrics = {"fd_digits": -1e-6, "kid_digits": -0.5, "precision_digits": 1.0, "recall_digits": 0, "share_head": 0.0}
    write_record(tmp_path, replace(DONE, metrics=metrics))
    assert read_records(tmp_path)[DONE.id].metrics == metrics


def test_the_advice_for_a_damaged_record_fits_its_place(tmp_path):
    for path, way in ((tmp_path / "abc.json", "version control"), (tmp_path / "abc/record.json", "the same run")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
        with pytest.raises(UserError, match=way):
            read_record(path)
    (tmp_path / "abc/record.json").write_text(changed())
    with pytest.raises(UserError, match="holds record 0123456789ab; delete its folder"):
        read_record(tmp_path / "abc/record.json", "abc")


def test_a_file_where_a_folder_is_expected_and_the_reverse(tmp_path):
    (tmp_path / "abc.json").mkdir()
    with pytest.raises(UserError, match="abc.json"):
        read_records(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        read_records(tmp_path / "file")


def test_a_folder_reads_only_the_files_that_it_is_asked_for(tmp_path):
    for name, cell_id in (("a", "one"), ("b", "two"), ("c", "two")):
        write_record(tmp_path, replace(DONE, ids={"eval_id": name, "cell_id": cell_id}))
    (tmp_path / "broken.json").write_text('{"cell_id": "three", ')
    found = RecordFolder(tmp_path)
    assert list(found) == ["a", "b", "broken", "c"] and "a" in found and found.get("d") is None
    assert found["a"].id == "a" and [r.id for r in found.of_cells({"two", "four"})] == ["b", "c"]
    for ask in (lambda: found["broken"], lambda: found.of_cells({"three"}), lambda: read_records(tmp_path)):
        with pytest.raises(UserError, match="broken.json"):
            ask()


@pytest.mark.parametrize(
    "text", ["", '{"task": "gen', '{"cell_id": "one", "ids": {"cell_id": "one"}', '{"cell_id": 1}']
)
def test_a_file_whose_cell_is_not_plain_to_see_is_read_for_every_table(text, tmp_path):
    (tmp_path / "abc.json").write_text(text)
    with pytest.raises(UserError, match="abc.json"):
        RecordFolder(tmp_path).of_cells({"another"})


def test_old_records_still_load(tmp_path):
    """Missing fields take their defaults, fields that no longer exist are ignored."""
    needed = {k: v for k, v in asdict(DONE).items() if k in ("task", "status", "ids", "spec")}
    (tmp_path / "a.json").write_text(json.dumps({**needed, "replications": [{"metrics": {}}]}))
    assert read_record(tmp_path / "a.json") == Record(**needed)


def test_the_committed_records_load():
    folder = Path(__file__).parents[2] / "results/records"
    assert len(read_records(folder)) == len(list(folder.glob("*.json"))) > 0


def test_errors_of_a_damaged_file_become_one_line(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(UserError, match="no such file; build it"), reading(path, "npz file", "build it"):
        path.read_text()
    for error in (KeyError("mu"), RuntimeError("two\nlines"), AssertionError(), OSError(5, "Input/output error")):
        with pytest.raises(UserError) as caught, reading(path, "npz file", "build it again"):
            raise error
        message = str(caught.value)
        assert str(path) in message and "build it again" in message and "\n" not in message
    for error in (UserError("as it is"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading(path):
            raise error
        assert caught.value is error
