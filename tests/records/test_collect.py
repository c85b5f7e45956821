"""Records of several machines in one folder: what is copied, joined, set aside and refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.config.ids import generation_run, with_seeds
from mar_bench.pipeline.store import Places, mark_done, publish
from mar_bench.records import collect as module
from mar_bench.records.collect import LOCK, about, collect
from mar_bench.records.record import CONFLICTS, Record, read_record, read_records, set_aside, write_record
from mar_bench.utils import locks
from mar_bench.utils.errors import UserError
from tests.made_up import by_id, generation, speed

ROW = "mar/diff/guided"
ROWS = ("mar/diff/guided", "mar/ce/guided", "mar/diff/unguided", "mar/ce/unguided")
DAYS = {"alpha": "2026-01-01", "beta": "2026-01-02", "gamma": "2026-01-03"}  # of three machines, the earliest first


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.005)


def made_on(machine: str, hour: int = 0) -> dict:
    return {
        "host": machine, "device": f"CPU of {machine}", "git": {"commit": "0123456789abcdef" * 2, "dirty": False},
        "finished": f"{DAYS[machine]}T{hour:02}:00:00+00:00",
    }  # fmt: skip


def result(experiment: Experiment, machine: str = "alpha", fd: float | None = 5.0, row: str = ROW, **changes) -> Record:
    """A record of the same images on whatever machine; a failed one where ``fd`` is None."""
    return as_read(replace(generation(experiment, row, 0, 0, fd), provenance=made_on(machine), **changes))


def seconds(experiment: Experiment, machine: str = "alpha", factor: float = 1.0) -> Record:
    return as_read(replace(speed(experiment, ROW, factor=factor), provenance=made_on(machine)))


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
    """Every file that a user sees."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def summary(records: Path, *folders: Path) -> str:
    return collect(list(folders), records).summary()


def refusal(records: Path, *folders: Path) -> str:
    """A line, and nothing is written, not even a folder."""
    before = contents(records) if records.is_dir() else None
    with pytest.raises(UserError) as caught:
        collect(list(folders), records)
    assert (contents(records) if records.is_dir() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where records lie ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "records", "results/records"])
def test_records_are_found_in_a_folder_and_in_what_holds_one(inside, table1, tmp_path):
    record = result(table1)
    shelf(tmp_path / "other" / inside, record)
    assert summary(tmp_path / "records", tmp_path / "other") == "1 new"
    assert read_records(tmp_path / "records") == by_id(record)


def test_records_are_found_among_runs(table1, tmp_path):
    records = result(table1), seconds(table1)
    for record in records:
        path = write_record(tmp_path / "runs" / record.task / record.id, record)
        path.replace(path.parent / "record.json")
    (tmp_path / "runs/generation/half-way").mkdir()
    assert summary(tmp_path / "records", tmp_path / "runs") == "2 new"
    assert read_records(tmp_path / "records") == by_id(*records)


def test_runs_may_be_collected_into_records_inside_them(table1, tmp_path):
    record = result(table1)
    path = write_record(tmp_path / "generation" / record.id, record)
    path.replace(path.parent / "record.json")
    assert summary(shelf(tmp_path / "records"), tmp_path) == "1 new"


def test_a_new_record_is_copied_byte_by_byte(table1, tmp_path):
    path = write_record(tmp_path / "other", result(table1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_a_newer_version": 1}))
    summary(tmp_path / "records", tmp_path / "other")
    assert contents(tmp_path / "records") == contents(tmp_path / "other")


def test_what_is_no_folder_of_records_is_refused(table1, tmp_path):
    records = shelf(tmp_path / "here/records", result(table1))
    file = tmp_path / "file.json"
    file.write_text("{}")
    (tmp_path / "empty/records").mkdir(parents=True)
    assert "no such folder" in refusal(records, tmp_path / "nowhere")
    assert "a file, not a folder" in refusal(records, file)
    assert "no records in it" in refusal(records, tmp_path / "empty")
    for itself in (records, tmp_path / "here", records / ".." / "records"):
        assert "is the folder of records itself" in refusal(records, itself)
    assert "a file, not a folder" in refusal(file, records)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "hint"), [("{", "broken record"), ("{}", "not a record"), (None, "holds record"), (b"\xff", "broken")]
)
def test_one_broken_file_and_nothing_is_written(text, hint, table1, tmp_path):
    good = shelf(tmp_path / "good", result(table1))
    bad = shelf(tmp_path / "bad", *(result(table1, row=row) for row in ROWS))
    path = bad / "zzz.json"
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text or next(bad.glob("*.json")).read_text())
    message = refusal(tmp_path / "records", good, bad)
    assert hint in message and str(path) in message
    assert "zzz.json" in refusal(shelf(tmp_path / "records", result(table1)), good, bad)
    shutil.copy(path, tmp_path / "records")
    assert "zzz.json" in refusal(tmp_path / "records", good), "one among the records is named too"


def test_a_number_that_is_not_finite_is_refused(table1, tmp_path):
    path = write_record(tmp_path / "other", result(table1))
    path.write_text(path.read_text().replace("5.0", "NaN"))
    assert "not finite" in refusal(tmp_path / "records", tmp_path / "other")


# --- results that agree ---------------------------------------------------------------------------------


def test_the_earlier_of_two_stays_and_lists_the_other_once(table1, tmp_path):
    first, second = result(table1, "alpha"), result(table1, "beta", 5.0001)
    early, late = shelf(tmp_path / "early", first), shelf(tmp_path / "late", second)
    for name, mine, theirs in (("one", early, late), ("two", late, early)):
        records = tmp_path / name
        assert summary(records, mine) == "1 new"
        assert summary(records, theirs) == "1 replication"
        stays = read_records(records)[first.id]
        assert replace(stays, replications=[]) == first
        assert [item["provenance"] for item in stays.replications] == [made_on("beta")]
        assert stays.replications[0]["metrics"] == second.metrics
        assert stays.replications[0]["largest_difference"] == pytest.approx(0.0001 / 5.0001)
        before = contents(records)
        assert summary(records, early, late) == "2 the same" and contents(records) == before
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_whatever_the_order_three_machines_end_as_the_same_bytes(table1, tmp_path):
    folders = [shelf(tmp_path / name, result(table1, name, 5 + i * 1e-4)) for i, name in enumerate(DAYS)]
    found = []
    for i, order in enumerate(permutations(folders)):
        records = tmp_path / f"records-{i}"
        for folder in order:
            summary(records, folder)
        found.append(contents(records))
        assert summary(records, *folders) == "3 the same"
        together = tmp_path / f"together-{i}"
        assert summary(together, *order) == "1 new, 2 replications" and contents(together) == found[0]
        chain = shelf(tmp_path / f"chain-{i}", *read_records(order[0]).values())
        summary(chain, order[1])
        assert summary(shelf(tmp_path / f"end-{i}"), chain, order[2]) == "1 new, 1 replication"
        assert contents(tmp_path / f"end-{i}") == found[0], "a replication's own list comes with it"
    assert all(one == found[0] for one in found)
    stays = json.loads(next(iter(found[0].values())))
    assert [item["provenance"]["host"] for item in stays["replications"]] == ["beta", "gamma"]


def test_the_same_record_is_no_replication_however_it_is_written(table1, tmp_path):
    record = result(table1)
    records = shelf(tmp_path / "records", record)
    other = write_record(tmp_path / "other", record)
    content = {key: value for key, value in asdict(record).items() if key != "replications"}  # as older versions do
    other.write_text(json.dumps(content))
    before = contents(records)
    assert summary(records, tmp_path / "other", tmp_path / "other") == "2 the same"
    assert contents(records) == before


def test_a_measurement_without_a_date_is_the_later_one(table1, tmp_path):
    dated = result(table1, "gamma")
    undated = replace(dated, provenance={"device": "unknown"})
    records = shelf(tmp_path / "records", undated)
    assert summary(records, shelf(tmp_path / "other", dated)) == "1 replication"
    stays = read_records(records)[dated.id]
    assert stays.provenance == dated.provenance
    assert [item["provenance"] for item in stays.replications] == [undated.provenance]


def test_every_choice_of_a_cell_is_kept(table1, tmp_path):
    choices = {metric: {"metric": metric, "points": []} for metric in ("fd", "is")}
    record = result(table1, selection={"fd": choices["fd"]})
    records = shelf(tmp_path / "records", record)
    other = shelf(tmp_path / "other", replace(record, selection={"is": choices["is"]}))
    assert summary(records, other) == "1 told how its cell was chosen"
    assert read_records(records)[record.id] == replace(record, selection=choices)
    assert summary(records, other) == "1 the same"
    late = shelf(tmp_path / "late", result(table1, "beta", selection={"kid": {"metric": "kid"}}))
    assert summary(records, late) == "1 replication"
    assert read_records(records)[record.id].selection.keys() == {"fd", "is", "kid"}


def test_seconds_are_never_the_same_and_never_disagree(table1, tmp_path):
    one, other = seconds(table1, "alpha"), seconds(table1, "beta", 1.7)
    records = shelf(tmp_path / "records", other)
    assert summary(records, shelf(tmp_path / "other", one)) == "1 replication"
    stays = read_records(records)[one.id]
    assert stays.metrics == one.metrics and stays.replications[0]["metrics"] == other.metrics
    assert stays.replications[0]["largest_difference"] == pytest.approx(0.7 / 1.7)


# --- failures -------------------------------------------------------------------------------------------


def test_a_result_replaces_a_failure_and_never_the_other_way(table1, tmp_path):
    done, failed = result(table1, "beta"), result(table1, "alpha", None)
    good, bad = shelf(tmp_path / "good", done), shelf(tmp_path / "bad", failed)
    records = shelf(tmp_path / "records", failed)
    assert summary(records, good) == "1 result instead of a failure"
    assert summary(records, bad) == "1 failure left out"
    assert read_records(records) == by_id(done)
    assert summary(tmp_path / "new", bad, good) == "1 new, 1 result instead of a failure"
    assert read_records(tmp_path / "new") == by_id(done)


def test_of_two_failures_the_earlier_stays(table1, tmp_path):
    first, second = result(table1, "alpha", None), result(table1, "beta", None)
    early, late = shelf(tmp_path / "early", first), shelf(tmp_path / "late", second)
    for order in ((early, late), (late, early)):
        records = tmp_path / f"after-{order[0].name}"
        assert summary(records, *order) == "1 new, 1 failure left out"
        assert read_records(records) == by_id(first)
        assert summary(records, early) == "1 the same"


# --- results that disagree ------------------------------------------------------------------------------


@pytest.fixture
def disagreed(table1, tmp_path) -> tuple[Path, Path, Record, Record]:
    """A folder of records, another one with one record that disagrees and one that is new, and both records."""
    mine, theirs = result(table1, "alpha", 5.0), result(table1, "beta", 6.5)
    records = shelf(tmp_path / "records", mine, result(table1, row=ROWS[1]))
    return records, shelf(tmp_path / "cluster b/records", theirs, result(table1, row=ROWS[2])), mine, theirs


def test_two_that_disagree_are_set_aside_and_named(disagreed):
    records, other, mine, theirs = disagreed
    originals = {(records / f"{mine.id}.json").read_bytes(), (other / f"{mine.id}.json").read_bytes()}
    plan = collect([other], records)
    assert plan.summary() == "1 new, 1 set aside"
    assert mine.id not in read_records(records) and len(read_records(records)) == 2
    files = {path.read_bytes(): path for path in (records / CONFLICTS / mine.id).iterdir()}
    assert files.keys() == originals, "nothing is lost"
    assert sorted(path.name.rpartition("-")[0] for path in files.values()) == ["cluster-b", "here"]
    assert set_aside(records) == [mine.id]
    (line,) = plan.conflicts()
    assert "\n" not in line
    for word in (mine.id, "mnist5k", "diffusion", "seeds 0.0", "fd_mnist5k 5 in", "6.5 in", "1.5 apart", "keep one"):
        assert word in line, line
    assert all(str(path) in line for path in files.values()) and str(records / f"{mine.id}.json") in line


def test_an_id_stays_set_aside_until_it_is_settled(disagreed, tmp_path, table1):
    records, other, mine, theirs = disagreed
    named = collect([other], records).conflicts()
    before = contents(records)
    for folders in ([other], [other, other], [shelf(tmp_path / "agrees", mine)]):
        plan = collect(folders, records)
        assert plan.conflicts() == named and contents(records) == before
    plan = collect([shelf(tmp_path / "about something else", result(table1, row=ROWS[1]))], records)
    assert plan.summary() == "1 the same, 1 set aside" and plan.conflicts() == named
    shutil.copy(other / f"{mine.id}.json", records)
    assert collect([other], records).conflicts() == named and contents(records) == before


def test_a_third_one_and_a_failure_join_what_is_set_aside(disagreed, tmp_path, table1):
    records, other, mine, theirs = disagreed
    collect([other], records)
    third, failed = shelf(tmp_path / "third", result(table1, "gamma")), shelf(tmp_path / "x", result(table1, fd=None))
    assert summary(records, third, failed) == "1 failure left out, 1 set aside"
    assert len(list((records / CONFLICTS / mine.id).iterdir())) == 3
    assert mine.id not in read_records(records)


def test_the_way_out(disagreed):
    records, other, mine, theirs = disagreed
    collect([other], records)
    here, there = sorted((records / CONFLICTS / mine.id).iterdir(), key=lambda path: not path.name.startswith("here"))
    there.unlink()
    (line,) = collect([shelf(records.parent / "agrees", mine)], records).conflicts()
    assert "nothing disagrees any more" in line and str(here) in line
    here.rename(records / f"{mine.id}.json")
    (other / f"{mine.id}.json").unlink()
    plan = collect([other], records)
    assert plan.summary() == "1 the same" and not plan.conflicts()
    assert read_records(records)[mine.id] == mine


def test_records_of_two_folders_disagree_with_none_here(table1, tmp_path):
    a, b = (shelf(tmp_path / name / "records", result(table1, m, fd))
            for name, m, fd in (("a/x", "alpha", 5.0), ("b/x", "beta", 7.0)))  # fmt: skip
    failed = result(table1, "gamma", None)
    records = shelf(tmp_path / "records", failed)
    assert summary(records, a, b) == "1 set aside"
    assert read_records(records) == {}, "no table shows the failure in their place"
    files = [read_record(path) for path in (records / CONFLICTS / failed.id).iterdir()]
    assert sorted(file.provenance["host"] for file in files) == ["alpha", "beta", "gamma"]


def test_what_was_measured_otherwise_disagrees(table1, tmp_path):
    one, other = result(table1, "alpha"), result(table1, "beta")
    for name, changes in (
        ("extractor", {"extractor": {**one.protocol["extractor"], "sha256": "1234abcd" * 8}}),
        ("count", {"num_generated": 17}),
    ):
        records = shelf(tmp_path / name, one)
        unlike = replace(other, protocol={**other.protocol, **changes})
        plan = collect([shelf(tmp_path / f"other-{name}", unlike)], records)
        (line,) = plan.conflicts()
        assert ("another feature extractor" in line) == (name == "extractor")
        assert ("1000 against 17 generated images" in line) == (name == "count")


def test_speeds_measured_otherwise_disagree(table1, tmp_path):
    one = seconds(table1)
    other = replace(one, protocol={**one.protocol, "repeats": 2}, provenance=made_on("beta"))
    (line,) = collect([shelf(tmp_path / "b", other)], shelf(tmp_path / "records", one)).conflicts()
    assert "repeats 5 against 2" in line and "seconds_per_image" in line


def test_a_broken_file_among_the_conflicts_is_named(disagreed):
    records, other, mine, _ = disagreed
    collect([other], records)
    path = next((records / CONFLICTS / mine.id).iterdir())
    path.write_text("{")
    assert str(path) in refusal(records, other)


def test_what_is_set_aside_elsewhere_is_not_taken_and_said(disagreed, tmp_path):
    records, other, mine, _ = disagreed
    collect([other], records)
    plan = collect([records], tmp_path / "further")
    assert mine.id not in read_records(tmp_path / "further")
    assert plan.notes == [f"{records}: not taken, as their files disagree there: {mine.id}"]


def test_a_run_does_not_bring_back_what_is_set_aside(disagreed, tmp_path, table1):
    records, other, mine, theirs = disagreed
    collect([other], records)
    run = generation_run(ROW, with_seeds(table1.rows[ROW], 0, 0))
    places = Places(tmp_path / "runs", records)
    folder = places.folder("generation", run.id)
    write_record(folder, mine).rename(folder / "record.json")
    mark_done(folder, 1.0)
    for target in (places, Places(places.runs, tmp_path / "other records")):
        publish([run], target)
        assert (run.id in read_records(target.records)) == (target is not places)
    text = CliRunner().invoke(app, ["table", "table1", "--records", str(records)], catch_exceptions=False).output
    assert f"records that disagree are left out, in {records / CONFLICTS}: {mine.id}" in text
    with pytest.raises(UserError, match="is set aside, its files disagree"):
        CliRunner().invoke(app, ["show", mine.id, "--records", str(records)], catch_exceptions=False)


# --- interrupted, together, and only asked --------------------------------------------------------------


@pytest.mark.parametrize("writes", range(5))
def test_a_collection_that_was_killed_is_done_again(writes, disagreed, monkeypatch):
    records, other, mine, theirs = disagreed
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
    plan = collect([other], records)
    assert len(plan.conflicts()) == 1
    assert contents(records) == contents(whole)


def test_what_a_run_publishes_meanwhile_is_not_overwritten(table1, tmp_path, monkeypatch):
    record, records = result(table1), tmp_path / "records"
    shelf(tmp_path / "other", record)
    decide = module.planned

    def and_meanwhile(*words):
        plan = decide(*words)
        write_record(records, result(table1, "gamma"))
        return plan

    monkeypatch.setattr(module, "planned", and_meanwhile)
    with pytest.raises(UserError, match="run the same command again"):
        collect([tmp_path / "other"], records)
    assert read_records(records)[record.id].provenance["host"] == "gamma"


def test_one_collection_waits_for_another(table1, tmp_path):
    shelf(tmp_path / "other", result(table1))
    thread = threading.Thread(target=summary, args=(tmp_path / "records", tmp_path / "other"))
    with locks.held(tmp_path / "records" / LOCK):
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and not read_records(tmp_path / "records")
    thread.join(5)
    assert len(read_records(tmp_path / "records")) == 1


def test_collections_side_by_side_lose_nothing(table1, tmp_path):
    """Each brings a replication of the same records, so that every file is read, changed and written by all."""
    folders = [
        shelf(tmp_path / name, *(result(table1, name, 5 + i * 1e-4, row) for row in ROWS))
        for i, name in enumerate(DAYS)
    ]
    words = [sys.executable, "-m", "mar_bench", "collect", "--records", str(tmp_path / "records")]
    processes = [subprocess.Popen([*words, str(folder)], stdout=subprocess.DEVNULL) for folder in folders]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    alone = tmp_path / "alone"
    summary(alone, *folders)
    assert contents(tmp_path / "records") == contents(alone) and len(read_records(alone)) == 4


def test_a_dry_run_says_all_and_writes_nothing(disagreed, tmp_path):
    records, other, mine, theirs = disagreed
    before = contents(records)
    plan = collect([other], records, dry_run=True)
    assert plan.summary() == "1 new, 1 set aside" and contents(records) == before
    assert not (records / LOCK).exists() and not (records / CONFLICTS).exists()
    lines = plan.changes()
    assert len(lines) == 2 and lines[0].startswith(("new: ", "set aside: "))
    named = plan.conflicts()
    assert collect([other], records).conflicts() == named, "it names the files as they will be"
    collect([other], tmp_path / "nowhere", dry_run=True)
    assert not (tmp_path / "nowhere").exists()


# --- the verb -------------------------------------------------------------------------------------------


def test_the_verb_prints_a_summary_and_ends_with_1_where_records_disagree(disagreed):
    records, other, mine, _ = disagreed
    for option, said in (("--dry-run", "1 new, 1 set aside; nothing is written"), (None, "1 new, 1 set aside; rec")):
        words = ["collect", str(other), "--records", str(records), *([option] if option else [])]
        found = CliRunner().invoke(app, words, catch_exceptions=False)
        assert found.exit_code == 1 and said in found.output
        assert found.output.count(f"set aside: {mine.id}") == (2 if option else 1)
    (records / CONFLICTS).rename(records.parent / "gone")
    (other / f"{mine.id}.json").unlink()
    found = CliRunner().invoke(app, ["collect", str(other), "--records", str(records)], catch_exceptions=False)
    assert found.exit_code == 0 and found.output == f"1 the same; records are in {records}\n"


def test_the_verb_shows_replications(table1, tmp_path):
    records = shelf(tmp_path / "records", result(table1))
    summary(records, shelf(tmp_path / "b", result(table1, "beta", 5.0001)))
    words = ["show", result(table1).id, "--records", str(records)]
    text = CliRunner().invoke(app, words, catch_exceptions=False).output
    (line,) = [line for line in text.splitlines() if line.startswith("beta ")]
    for word in ("CPU of beta", "0123456789 ", "2026-01-02T00:00:00+00:00", "2e-05"):
        assert word in line, line
    assert (
        "measured again" not in CliRunner().invoke(app, [*words[:1], str(tmp_path / "b" / f"{words[1]}.json")]).output
    )


def test_a_run_is_told_by_its_spec(table1):
    assert about(generation(table1, "mar/ce/guided", 2, 1, 5.0)) == (
        "generation, mnist5k, vq, masked, cross_entropy, seeds 2.1"
    )
    assert about(Record("evaluation", "done", {"eval_id": "x"}, {"metrics": {}})) == "evaluation"


def test_what_is_committed_can_be_collected(tmp_path):
    """Records of every age: they load, are copied as they are, and are the same the second time."""
    committed = Path(__file__).parents[2] / "results"
    records = read_records(committed / "records")
    assert records and all(record.replications == [] for record in records.values())
    assert summary(tmp_path / "records", committed) == f"{len(records)} new"
    assert summary(tmp_path / "records", committed) == f"{len(records)} the same"
    assert contents(tmp_path / "records") == contents(committed / "records")
