"""Records are written atomically and read strictly."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mar_bench.records.record import (
    CONFLICTS,
    SCHEMA_VERSION,
    Record,
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


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path, replace(DONE, metrics={"fd_digits": float("nan")}))
    assert not list(tmp_path.iterdir())


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
        (changed(status="perhaps"), "perhaps"),
        (changed(schema_version=SCHEMA_VERSION + 1), "update mar_bench"),
        (changed(ids={"eval_id": "fedcba987654"}), "fedcba987654"),
    ],
)
def test_a_broken_record_is_named(text, hint, tmp_path):
    path = tmp_path / "abc.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_records(tmp_path)
    message = str(caught.value)
    assert str(path) in message and hint in message and "\n" not in message


def test_a_file_where_a_folder_is_expected_and_the_reverse(tmp_path):
    (tmp_path / "abc.json").mkdir()
    with pytest.raises(UserError, match="abc.json"):
        read_records(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        read_records(tmp_path / "file")


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
