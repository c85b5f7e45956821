"""Collecting the records of several machines: what is copied, kept, set aside and refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.pipeline.store import mark_done
from mar_bench.records import collect as module
from mar_bench.records.collect import LOCK, collect
from mar_bench.records.record import CONFLICTS, Record, conflicting_ids, read_records, write_record
from mar_bench.utils.errors import UserError
from tests.made_up import by_id, generation, speed

ROW = "mar/diff/guided"
ROWS = ("mar/diff/guided", "mar/ce/guided", "mar/diff/unguided", "mar/ce/unguided")
DAYS = {"alpha": "2026-01-01", "beta": "2026-01-02", "gamma": "2026-01-03"}  # machine -> when it measured


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


def made_on(machine: str) -> dict:
    return {"host": machine, "finished": f"{DAYS[machine]}T00:00:00+00:00"}


def result(experiment: Experiment, machine: str = "alpha", fd: float | None = 5.0, row: str = ROW, **changes) -> Record:
    """A record; a failed one where ``fd`` is None."""
    return as_read(replace(generation(experiment, row, 0, 0, fd), provenance=made_on(machine), **changes))


def as_read(record: Record) -> Record:
    """With lists for tuples, as JSON has them."""
    return Record(**json.loads(json.dumps(asdict(record))))


def shelf(folder: Path, *records: Record) -> Path:
    """A folder of records."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_record(folder, record)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def summary(records: Path, *folders: Path) -> str:
    return collect(list(folders), records).summary()


def refusal(records: Path, *folders: Path) -> str:
    """The one-line error of a collection that must write nothing, not even a folder."""
    before = contents(records) if records.is_dir() else None
    with pytest.raises(UserError) as caught:
        collect(list(folders), records)
    assert (contents(records) if records.is_dir() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where records lie ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "records", "results/records"])
def test_records_are_found_in_a_folder_and_copied_byte_by_byte(inside, table1, tmp_path):
    path = write_record(shelf(tmp_path / "other" / inside), result(table1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_a_newer_version": 1}))
    assert summary(tmp_path / "records", tmp_path / "other") == "1 new"
    assert contents(tmp_path / "records") == contents(path.parent)


def test_records_are_found_among_runs(table1, tmp_path):
    records = result(table1), as_read(speed(table1, ROW))
    for record in records:
        path = write_record(shelf(tmp_path / record.task / record.id), record)
        path.replace(path.parent / "record.json")
    (tmp_path / "generation/unfinished").mkdir()
    assert summary(shelf(tmp_path / "records"), tmp_path) == "2 new"
    assert read_records(tmp_path / "records") == by_id(*records)


def test_a_record_among_runs_that_is_not_as_its_stage_wrote_it_is_refused(table1, tmp_path):
    record = result(table1)
    folder = shelf(tmp_path / "generation" / record.id, record)
    path = (folder / f"{record.id}.json").replace(folder / "record.json")
    mark_done(folder, 1.0)
    text = path.read_text()
    path.write_text(text.replace('"fd_mnist5k": 5.0', '"fd_mnist5k": 4.0'))
    assert path.read_text() != text
    asked = CliRunner().invoke(app, ["collect", str(tmp_path), "--records", str(tmp_path / "records")])
    assert isinstance(asked.exception, UserError) and f"{folder}: record.json has another SHA" in str(asked.exception)
    assert not list((tmp_path / "records").glob("*.json"))


def test_a_folder_without_records_is_refused(table1, tmp_path):
    records = shelf(tmp_path / "here/records", result(table1))
    file = tmp_path / "file.json"
    file.write_text("{}")
    (tmp_path / "empty/records").mkdir(parents=True)
    assert "nowhere: not a folder" in refusal(records, tmp_path / "nowhere")
    assert "not a folder" in refusal(records, file)
    assert "no records" in refusal(records, tmp_path / "empty")
    for itself in (records, tmp_path / "here", records / ".." / "records"):
        assert "folder of records itself" in refusal(records, itself)
    assert "not a folder" in refusal(file, records)


@pytest.mark.parametrize("text", ["{", "{}", None, "NaN"])
def test_one_broken_file_and_nothing_is_written(text, table1, tmp_path):
    good = shelf(tmp_path / "good", result(table1))
    bad = shelf(tmp_path / "bad", *(result(table1, row=row) for row in ROWS))
    sound = next(bad.glob("*.json"))
    path = bad / (sound.name if text == "NaN" else "zzz.json")
    path.write_text({"NaN": sound.read_text().replace("5.0", "NaN"), None: sound.read_text()}.get(text, text))
    assert str(path) in refusal(tmp_path / "records", good, bad)
    shutil.copy(path, shelf(tmp_path / "records"))
    assert path.name in refusal(tmp_path / "records", good), "a broken file among the records is named too"


# --- equal results and failures -------------------------------------------------------------------------


def test_of_equal_results_the_earliest_stays_in_whatever_order_they_come(table1, tmp_path):
    folders = [shelf(tmp_path / name, result(table1, name, 5 + i * 1e-5)) for i, name in enumerate(DAYS)]
    for i, order in enumerate(permutations(folders)):
        records = tmp_path / f"records-{i}"
        for folder in order:
            summary(records, folder)
        assert contents(records) == contents(folders[0])
        assert summary(records, *folders) == "3 unchanged"


def test_every_selection_of_a_cell_is_kept(table1, tmp_path):
    selections = {metric: {"metric": metric, "points": []} for metric in ("fd", "is")}
    record = result(table1, selection={"fd": selections["fd"]})
    records = shelf(tmp_path / "records", record)
    other = shelf(tmp_path / "other", replace(record, selection={"is": selections["is"]}))
    assert summary(records, other) == "1 updated"
    assert read_records(records) == by_id(replace(record, selection=selections))
    assert summary(records, other) == "1 unchanged"


def test_a_result_replaces_a_failure_and_never_the_other_way(table1, tmp_path):
    done, failed = result(table1, "beta"), result(table1, "alpha", None)
    good, bad = shelf(tmp_path / "good", done), shelf(tmp_path / "bad", failed)
    records = shelf(tmp_path / "records", failed)
    assert summary(records, good) == "1 updated"
    assert summary(records, bad) == "1 failed, left out"
    assert summary(tmp_path / "new", bad, good) == "1 new, 1 updated"
    assert read_records(records) == read_records(tmp_path / "new") == by_id(done)


def test_speeds_differ_in_their_protocol_alone(table1, tmp_path):
    one = replace(as_read(speed(table1, ROW)), provenance=made_on("alpha"))
    faster = replace(as_read(speed(table1, ROW, factor=0.5)), provenance=made_on("beta"))
    records = shelf(tmp_path / "records", one)
    assert summary(records, shelf(tmp_path / "b", faster)) == "1 unchanged"
    other = replace(faster, protocol={**one.protocol, "repeats": 2})
    (line,) = collect([shelf(tmp_path / "c", other)], records).conflicts()
    assert "repeats 5 against 2" in line


# --- results that disagree ------------------------------------------------------------------------------


@pytest.fixture
def disagreed(table1, tmp_path) -> tuple[Path, Path, Record]:
    """A folder of records; another with one record that disagrees and one that is new; the record that disagrees."""
    mine, theirs = result(table1, "alpha", 5.0), result(table1, "beta", 5.01)
    records = shelf(tmp_path / "records", mine, result(table1, row=ROWS[1]))
    return records, shelf(tmp_path / "cluster/records", theirs, result(table1, row=ROWS[2])), mine


def test_results_that_disagree_are_set_aside_and_named(disagreed):
    records, other, mine = disagreed
    originals = {(folder / f"{mine.id}.json").read_bytes() for folder in (records, other)}
    plan = collect([other], records)
    assert plan.summary() == "1 new, 1 set aside"
    assert mine.id not in read_records(records) and len(read_records(records)) == 2
    assert conflicting_ids(records) == [mine.id]
    files = {path.read_bytes(): path for path in (records / CONFLICTS / mine.id).iterdir()}
    assert files.keys() == originals, "nothing is lost"
    (line,) = plan.conflicts()
    for word in (mine.id, "fd_mnist5k 5.0 against 5.01", str(records / f"{mine.id}.json"), *map(str, files.values())):
        assert word in line


def test_no_name_in_a_record_leads_out_of_the_folder(disagreed):
    records, other, mine = disagreed
    path = other / f"{mine.id}.json"
    path.write_text(path.read_text().replace('"beta"', '"../../../beta"'))
    collect([other], records)
    aside = records / CONFLICTS / mine.id
    assert len(list(aside.iterdir())) == 2 and not list(records.parents[1].glob("beta*")) + list(records.glob("beta*"))


def test_an_id_stays_set_aside_until_it_is_settled(disagreed, tmp_path, table1):
    records, other, mine = disagreed
    named = collect([other], records).conflicts()
    before = contents(records)
    for folders in ([other], [other, other], [shelf(tmp_path / "agrees", mine)]):
        assert collect(folders, records).conflicts() == named and contents(records) == before
    third, failed = shelf(tmp_path / "third", result(table1, "gamma")), shelf(tmp_path / "x", result(table1, fd=None))
    collect([third, failed], records)
    kept, *others = sorted((records / CONFLICTS / mine.id).iterdir())
    assert len(others) == 2 and mine.id not in read_records(records)
    for path in others:
        path.unlink()
    kept.rename(records / f"{mine.id}.json")
    (other / f"{mine.id}.json").unlink()
    plan = collect([other], records)
    assert plan.summary() == "1 unchanged" and not plan.conflicts()
    assert read_records(records)[mine.id] == mine


# --- interrupted, concurrent, dry -----------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(5))
def test_a_collection_that_was_killed_is_done_again(writes, disagreed, monkeypatch):
    records, other, _ = disagreed
    whole = shutil.copytree(records, records.parent / "whole")
    collect([other], whole)

    def mortal(work):
        def until(*words):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return work(*words)

        return until

    left = writes
    for place, name in ((module, "atomic_write"), (Path, "unlink")):
        monkeypatch.setattr(place, name, mortal(getattr(place, name)))
    try:
        collect([other], records)
    except KeyboardInterrupt:
        assert writes < 4
    monkeypatch.undo()
    assert len(collect([other], records).conflicts()) == 1
    assert contents(records) == contents(whole)


def test_what_a_run_publishes_meanwhile_is_not_overwritten(table1, tmp_path, monkeypatch):
    record, records = result(table1), tmp_path / "records"
    shelf(tmp_path / "other", record)
    carry_out = module._carry_out

    def and_meanwhile(plan):
        write_record(records, result(table1, "gamma"))
        carry_out(plan)

    monkeypatch.setattr(module, "_carry_out", and_meanwhile)
    with pytest.raises(UserError, match="run the same command again"):
        collect([tmp_path / "other"], records)
    assert read_records(records)[record.id].provenance["host"] == "gamma"


def test_concurrent_collections_lose_nothing(table1, tmp_path):
    folders = [shelf(tmp_path / name, *(result(table1, name, row=row) for row in ROWS)) for name in DAYS]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda folder: collect([folder], tmp_path / "records"), folders))
    assert contents(tmp_path / "records") == contents(folders[0])


def test_the_command_reports_everything_in_a_dry_run_and_exits_with_1_on_a_conflict(disagreed):
    records, other, mine = disagreed
    words = ["collect", str(other), "--records", str(records)]
    before = contents(records)
    dry = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False)
    assert contents(records) == before and not (records / LOCK).exists()
    assert dry.exit_code == 1 and "1 new, 1 set aside" in dry.output and f"set aside: {mine.id}" in dry.output
    real = CliRunner().invoke(app, words, catch_exceptions=False)
    assert real.exit_code == 1 and "1 new, 1 set aside" in real.output and f"set aside: {mine.id}" in real.output
    shutil.rmtree(records / CONFLICTS)
    (other / f"{mine.id}.json").unlink()
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
