"""Records are written whole or not at all, and read strictly."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from mar_bench.records.record import (
    CONFLICTS,
    SCHEMA_VERSION,
    Record,
    disagreeing,
    metric_name,
    read_record,
    read_records,
    set_aside,
    write_record,
)
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import atomic_write

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


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep/down/file.json"
    atomic_write(path, "old")
    atomic_write(path, "ü".encode())
    assert path.read_text() == "ü"
    atomic_write(path, "ü")
    assert path.read_bytes() == b"\xc3\xbc"
    assert list(path.parent.iterdir()) == [path]


def test_a_crash_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(TypeError):
        atomic_write(path, 3)  # fails as it is written

    def full(source, target):
        assert os.path.getsize(source) == 3
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_is_written(tmp_path):
    atomic_write(tmp_path / "file.json", "x")
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o644


def test_a_record_comes_back_as_it_was(tmp_path):
    path = write_record(tmp_path, DONE)
    assert path == tmp_path / "0123456789ab.json"
    assert read_record(path) == DONE
    assert read_records(tmp_path) == {DONE.id: DONE}
    assert read_records(tmp_path / "nowhere") == {}


def test_the_same_record_is_the_same_bytes(tmp_path):
    """So that version control shows a difference only where there is one."""
    other = replace(DONE, ids=dict(reversed(DONE.ids.items())))
    one, two = (write_record(tmp_path / name, record).read_bytes() for name, record in (("a", DONE), ("b", other)))
    assert one == two and one.endswith(b"}\n")


def test_a_failure_never_replaces_a_result(tmp_path):
    write_record(tmp_path, FAILED)
    assert read_records(tmp_path)[DONE.id].status == "failed"
    write_record(tmp_path, replace(FAILED, error="another"))
    assert read_records(tmp_path)[DONE.id].error == "another"
    write_record(tmp_path, DONE)
    write_record(tmp_path, FAILED)
    assert read_records(tmp_path)[DONE.id] == DONE
    write_record(tmp_path, replace(DONE, metrics={"fd_digits": 3.0}))
    assert read_records(tmp_path)[DONE.id].metrics == {"fd_digits": 3.0}


def test_a_number_that_is_not_finite_is_no_result(tmp_path):
    with pytest.raises(ValueError):
        write_record(tmp_path, replace(DONE, metrics={"fd_digits": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_an_id_that_is_set_aside_gets_no_record(tmp_path):
    aside = tmp_path / CONFLICTS / DONE.id
    write_record(tmp_path, DONE)
    aside.mkdir(parents=True)
    assert set_aside(tmp_path) == [] and disagreeing(tmp_path, DONE.id) == [], "an empty folder is none"
    for name in ("b", "a"):
        (tmp_path / f"{DONE.id}.json").replace(aside / f"{name}.json")
        write_record(tmp_path, replace(DONE, metrics={}))
        if name == "b":
            assert read_records(tmp_path) == {}
            (tmp_path / f"{DONE.id}.json").write_text("put there by hand")
    assert set_aside(tmp_path) == [DONE.id]
    assert disagreeing(tmp_path, DONE.id) == [aside / "a.json", aside / "b.json"]
    write_record(tmp_path, replace(DONE, ids={"eval_id": "another"}))
    assert list(read_records(tmp_path)) == ["another"]


# --- reading --------------------------------------------------------------------------------------------


def changed(**changes) -> str:
    return json.dumps({**asdict(DONE), **changes})


def without(key: str) -> str:
    return json.dumps({k: v for k, v in asdict(DONE).items() if k != key})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "broken record"),
        (changed()[:-20], "broken record"),
        ("{]", "broken record"),
        ("[]", "not a record"),
        ("3", "not a record"),
        ("null", "not a record"),
        ('{"name": "package", "version": 1}', "not a record"),
        (without("ids"), "not a record"),
        (without("task"), "not a record"),
        (without("status"), "not a record"),
        (without("spec"), "not a record"),
        (changed(ids={"cell_id": "x"}), "not a record"),
        (changed(ids=["eval_id"]), "not a record"),
        (changed(metrics=None), "not a record"),
        (changed(status="perhaps"), "not a record"),
        (changed(replications=None), "not a record"),
        (changed(replications=[{"provenance": {}}]), "not a record"),
        (changed(replications=[{"provenance": {}, "metrics": {"fd": "low"}}]), "not a record"),
        (changed(schema_version=SCHEMA_VERSION + 1), "update mar_bench"),
        (changed(schema_version="one"), "update mar_bench"),
    ],
)
def test_what_is_not_a_record_is_named(text, hint, tmp_path):
    path = tmp_path / "abc.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_records(tmp_path)
    message = str(caught.value)
    assert str(path) in message and hint in message and "\n" not in message


def test_bytes_that_are_no_text_and_a_folder_are_broken(tmp_path):
    (tmp_path / "abc.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="broken record"):
        read_records(tmp_path)
    (tmp_path / "abc.json").unlink()
    (tmp_path / "abc.json").mkdir()
    with pytest.raises(UserError, match="broken record"):
        read_records(tmp_path)


def test_old_records_still_load(tmp_path):
    """A field that a record does not have takes its default; one that has gone is left out."""
    needed = {k: v for k, v in asdict(DONE).items() if k in ("task", "status", "ids", "spec")}
    (tmp_path / "a.json").write_text(json.dumps({**needed, "once_upon_a_time": 1}))
    record = read_record(tmp_path / "a.json")
    assert record == Record(**needed)
    assert {f.name for f in fields(Record)} >= set(needed)


def test_what_is_committed_still_loads():
    folder = Path(__file__).parents[2] / "results/records"
    assert len(read_records(folder)) == len(list(folder.glob("*.json"))) > 0


def test_replications_come_back_as_they_were(tmp_path):
    again = {"provenance": {"host": "a"}, "metrics": {"fd_digits": 3.5}, "largest_difference": 1 / 14}
    record = replace(DONE, replications=[again])
    assert read_record(write_record(tmp_path, record)) == record


# --- names of metrics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "kind", "name", "expected"),
    [
        ("fd", "inception", "inception", "fid"),
        ("fd:heldout", "inception", "inception", "fid_heldout"),
        ("is", "inception", "inception", "is"),
        ("fd", "classifier", "mnist5k", "fd_mnist5k"),
        ("fd:heldout", "classifier", "mnist5k", "fd_mnist5k_heldout"),
        ("is", "classifier", "mnist5k", "is_mnist5k"),
        ("fd", "classifier", "inception", "fd_inception"),
    ],
)
def test_only_the_inception_network_gives_an_fid(metric, kind, name, expected):
    assert metric_name(metric, {"kind": kind, "name": name}) == expected


def test_a_copy_under_another_name_does_not_count(tmp_path):
    path = write_record(tmp_path, DONE)
    (tmp_path / "old.json").write_text(path.read_text())
    with pytest.raises(UserError, match=f"old.json: holds record {DONE.id}; rename it"):
        read_records(tmp_path)


def test_a_file_is_no_folder_of_records(tmp_path):
    file = tmp_path / "records"
    file.write_text("")
    with pytest.raises(UserError, match="a file, not a folder"):
        read_records(file)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("metrics", "fd"), "abc"), (("ids", "eval_id"), 5), (("spec",), {}), (("spec", "train", "seed"), "a")],
)
def test_a_record_with_values_of_another_type_is_none(path, value, tmp_path):
    written = write_record(tmp_path, DONE)
    content = json.loads(written.read_text())
    block = content
    for name in path[:-1]:
        block = block[name]
    block[path[-1]] = value
    written.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not a record"):
        read_records(tmp_path)
