"""From runs to jobs: what is needed, in which order, what counts as done, and the plan shown to the user."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import Run, generation_run, plan_runs, reconstruction_run, speed_run
from mar_bench.pipeline import store
from mar_bench.pipeline.execute import execute
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.plan import make_plan, plan_text
from mar_bench.pipeline.request import Selection, preflight
from mar_bench.pipeline.store import (
    MARKER,
    Places,
    default_places,
    fault_in,
    is_sound,
    mark_done,
    previews,
    publish,
    read_marker,
    record_failure,
    status,
)
from mar_bench.records.record import PREVIEW, read_record, read_records, write_record
from mar_bench.utils.errors import DiskError, UserError
from tests.made_up import generation

ROW = "mar/diff/guided"
EXPERIMENT = load_experiment("table1", "smoke")
RUN = generation_run(ROW, EXPERIMENT.rows[ROW])


@pytest.fixture
def places(tmp_path) -> Places:
    places = Places(tmp_path / "runs", tmp_path / "records")
    places.check_writable()
    return places


def make(places: Places, kind: str, stage_id: str) -> Path:
    """A stage with an output of two files, done."""
    folder = places.folder(kind, stage_id)
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"12345")
    (folder / "deep/log.txt").write_text("a line\n")
    mark_done(folder, 1.5)
    return folder


def finish(run: Run, places: Places) -> Path:
    """A run that is done, its record and preview beside it."""
    folder = places.folder(run.task, run.id)
    folder.mkdir(parents=True)
    np.save(folder / PREVIEW, np.zeros((3, 1, 4, 4), dtype=np.uint8))
    write_record(folder, generation(EXPERIMENT, run.row, 0, 0, 5.0, ids=run.ids)).replace(folder / "record.json")
    mark_done(folder, 1.0)
    return folder


def kinds(jobs: list[Job]) -> dict[str, int]:
    return dict(Counter(job.kind for job in jobs))


# --- jobs and their order -------------------------------------------------------------------------------


def test_generation_needs_all_its_stages_in_order(places):
    jobs = jobs_for([RUN], places)
    ids = {job.kind: job.id for job in jobs}
    assert {kind: [k for k, i in ids.items() if i in job.needs] for kind, job in zip(ids, jobs)} == {
        "tokenizer": [], "extractor": [], "latents": ["tokenizer"], "train": ["latents"], "sample": ["train"],
        "generation": ["tokenizer", "extractor", "train", "sample"],
    }  # fmt: skip
    assert list(ids) == ["tokenizer", "extractor", "latents", "train", "sample", "generation"]
    assert all(job.cost > 0 for job in jobs)


def test_reconstruction_trains_no_generator_and_speed_no_extractor(places):
    spec = EXPERIMENT.rows[ROW]
    reconstruction, speed = reconstruction_run(ROW, spec), speed_run(ROW, spec, "cpu")
    assert [j.kind for j in jobs_for([reconstruction], places)] == ["tokenizer", "extractor", "reconstruction"]
    assert [j.kind for j in jobs_for([speed], places)] == ["tokenizer", "latents", "train", "speed"]


def test_a_table_shares_its_stages(places):
    jobs = jobs_for(plan_runs(EXPERIMENT), places)
    assert kinds(jobs) == {
        "tokenizer": 2, "extractor": 1, "latents": 2, "train": 6, "sample": 16, "generation": 16, "reconstruction": 2,
        "speed": 16,
    }  # fmt: skip
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen and job.id not in seen, "jobs are unique and follow what they need"
        seen.add(job.id)
    assert all(job.kind == "speed" for job in jobs[-16:]), "speed comes last"


def test_finished_stages_are_neither_repeated_nor_waited_for(places):
    make(places, "tokenizer", RUN.ids["tokenizer_id"])
    latents = make(places, "latents", RUN.ids["latents_id"])
    jobs = {job.kind: job for job in jobs_for([RUN], places)}
    assert list(jobs) == ["extractor", "train", "sample", "generation"]
    assert jobs["train"].needs == ()
    assert jobs["generation"].needs == tuple(RUN.ids[f"{k}_id"] for k in ("extractor", "train", "sample"))
    (latents / "weights.bin").unlink()
    jobs = {job.kind: job for job in jobs_for([RUN], places)}
    assert "latents" in jobs and jobs["train"].needs == (RUN.ids["latents_id"],)
    finish(RUN, places)
    assert jobs_for([RUN], places) == []


def test_latents_are_not_made_for_a_finished_training(places):
    make(places, "tokenizer", RUN.ids["tokenizer_id"])
    make(places, "sample", RUN.ids["sample_id"])
    assert "train" in {job.kind for job in jobs_for([RUN], places)}, "its losses go into the record"
    make(places, "train", RUN.ids["train_id"])
    assert [job.kind for job in jobs_for([RUN], places)] == ["extractor", "generation"]
    assert [job.kind for job in jobs_for([speed_run(ROW, RUN.spec, "cpu")], places)] == ["speed"]


def test_titles_tell_jobs_apart(places):
    titles = [job.title for job in jobs_for(plan_runs(EXPERIMENT, [0, 1]), places)]
    assert {"tokenizer vq", "latents kl", "extractor digits", "train random_bidirectional/diff seed 1",
            "sample mar/diff/guided seed 1", "speed mar/ce/unguided"} <= set(titles)  # fmt: skip
    assert len(set(titles)) == len(titles)


# --- what is sound --------------------------------------------------------------------------------------


def test_stage_is_sound_once_it_is_marked(places):
    folder = make(places, "train", "abc")
    assert is_sound(folder)
    marker = json.loads((folder / MARKER).read_text())
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("deep/log.txt", "weights.bin")
    }
    sizes = {"deep/log.txt": 7, "weights.bin": 5}
    assert marker["files"] == {name: {"size": sizes[name], "sha256": digest} for name, digest in digests.items()}
    assert marker["seconds"] == 1.5 and marker["stage"] == "train/abc"
    (folder / "added-later").write_text("x")
    assert is_sound(folder)
    (folder / MARKER).unlink()
    assert not is_sound(folder) and not is_sound(places.folder("train", "nowhere"))


def test_stage_with_a_truncated_longer_or_deleted_file_is_not_sound(places):
    folder = make(places, "train", "abc")
    for content in ("a lin", "", "a line\n!"):
        (folder / "deep/log.txt").write_text(content)
        assert not is_sound(folder)
    (folder / "deep/log.txt").unlink()
    assert not is_sound(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"files": 3}', '{"files": ["weights.bin"]}', '{"files": {}}', "[" * 100_000]
)
def test_broken_marker_is_not_sound(text, places):
    folder = make(places, "train", "abc")
    (folder / MARKER).write_text(text)
    assert not is_sound(folder)


@pytest.mark.parametrize("damage", ["flip", "swap", "exchange", "marker"])
def test_a_stage_whose_content_has_changed_is_set_aside_and_made_again(damage, places, capsys):
    """Sizes stay the same: a flipped bit, two files or two stages in each other's place, an edited marker."""
    tokenizer, other = make(places, "tokenizer", RUN.ids["tokenizer_id"]), make(places, "train", "other")
    folder = make(places, "train", RUN.ids["train_id"])
    (folder / "weights2.bin").write_bytes(b"54321")
    mark_done(folder, 1.0)
    assert places.intact("train", RUN) and fault_in(folder) is None
    if damage == "flip":
        (folder / "weights.bin").write_bytes(b"12344")
    elif damage == "swap":
        (folder / "weights.bin").rename(folder / "swap")
        (folder / "weights2.bin").rename(folder / "weights.bin")
        (folder / "swap").rename(folder / "weights2.bin")
    elif damage == "exchange":
        shutil.rmtree(folder)
        other.rename(folder)
    else:
        (folder / MARKER).write_text((folder / MARKER).read_text().replace('"seconds": 1.0', '"seconds": 2.0'))
    store._checked.clear()  # another process
    edited = damage in ("exchange", "marker")  # the stage counts as unfinished
    assert is_sound(folder) is not edited and not places.intact("train", RUN) and not is_sound(folder)
    if not edited:
        aside = next((places.runs / "damaged").glob(f"train-{folder.name}-*"))
        assert (aside / "deep/log.txt").is_file() and not folder.exists()
        told = capsys.readouterr().err
        assert "weights.bin has another SHA-256" in told and str(aside) in told
    assert "train" in kinds(jobs_for([RUN], places)) and places.intact("tokenizer", RUN) and is_sound(tokenizer)


def test_a_stage_made_from_another_result_is_made_again(places, capsys):
    """A tokenizer that was trained again may differ in its last bits: what was made with the old one goes with it."""
    tokenizer = make(places, "tokenizer", RUN.ids["tokenizer_id"])
    for kind in ("latents", "train"):
        make(places, kind, RUN.ids[f"{kind}_id"])
        mark_done(places.stage(kind, RUN), 1.0, places.inputs(kind, RUN))
    assert places.inputs("sample", RUN).keys() == {"tokenizer", "latents", "train"}
    shutil.rmtree(places.stage("latents", RUN))  # a finished training no longer needs them
    assert places.intact("train", RUN)
    (tokenizer / "metrics.jsonl").write_text("other seconds")  # logs are no result
    mark_done(tokenizer, 2.0)
    assert places.intact("train", RUN)
    (tokenizer / "weights.bin").write_bytes(b"other")
    mark_done(tokenizer, 1.5)
    assert not places.intact("train", RUN) and "its tokenizer has been made again" in capsys.readouterr().err


def test_a_checkpoint_that_a_kill_has_left_is_deleted_once_its_stage_is_loaded(places):
    folder = make(places, "train", RUN.ids["train_id"])
    (left := folder / "checkpoint-000000012-abc.pt").write_text("x")
    assert is_sound(folder) and places.intact("train", RUN) and not left.exists()


def test_stages_of_earlier_versions_count_and_get_digests_when_they_are_loaded(places):
    folder = make(places, "train", RUN.ids["train_id"])
    (folder / MARKER).write_text('{"files": {"deep/log.txt": 7, "weights.bin": 5}, "seconds": 3.0}')
    assert is_sound(folder) and places.intact("train", RUN)
    assert read_marker(folder)["files"]["weights.bin"]["sha256"] == hashlib.sha256(b"12345").hexdigest()
    assert read_marker(folder)["seconds"] == 3.0


# --- records and places ---------------------------------------------------------------------------------


def test_status_is_that_of_the_output_or_the_record(places):
    done, failed = (generation(EXPERIMENT, ROW, 0, 0, fd) for fd in (5.0, None))
    assert status(RUN, places, {}) == "missing"
    assert status(RUN, places, {RUN.id: done}) == "done"
    assert status(RUN, places, {RUN.id: failed}) == "failed"
    finish(RUN, places)
    assert status(RUN, places, {RUN.id: failed}) == "done"


def test_no_stage_makes_a_run_root_that_is_gone_again(tmp_path):
    places = Places(tmp_path / "runs", tmp_path / "records")
    for empty in (False, True):  # a disk that is not mounted leaves a folder, or none
        if empty:
            places.runs.mkdir()
        with pytest.raises(DiskError, match="runs: cannot be found any more; .*mount the disk"):
            execute(jobs_for([RUN], places)[0], places, lambda *step: False)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]
    with pytest.raises(DiskError, match="gone/train/1"):
        Places(tmp_path / "gone", tmp_path).make_folder("train", "1")
    with pytest.raises(DiskError, match="records/"):
        record_failure(RUN, places, "no", 1.0)


@pytest.mark.parametrize("mounted", [True, False])
def test_an_error_after_the_run_root_has_gone_is_not_the_stages(mounted, places):
    with pytest.raises(KeyError if mounted else DiskError), places.mounted():
        if not mounted:
            shutil.rmtree(places.runs / "locks")
        raise KeyError("what a missing file leads to")


def test_publish_replaces_failures_and_no_results(places):
    other = generation_run("mar/ce/guided", EXPERIMENT.rows["mar/ce/guided"])
    finish(RUN, places)
    publish([RUN, other], places)
    assert list(read_records(places.records)) == [RUN.id]
    target = places.records / f"{RUN.id}.json"
    write_record(places.records, generation(EXPERIMENT, ROW, 0, 0, 7.0))
    publish([RUN], places)
    assert read_record(target).metrics["fd_digits"] == 7.0, "a result is left as it is"
    target.unlink()
    write_record(places.records, generation(EXPERIMENT, ROW, 0, 0, None))
    publish([RUN], places)
    assert read_record(target).metrics["fd_digits"] == 5.0, "a failure is replaced"


def test_failure_is_recorded_and_replaces_no_result(places):
    record_failure(RUN, places, "ValueError: no\ntraceback", 3.0)
    record = read_records(places.records)[RUN.id]
    assert (record.status, record.task, record.error) == ("failed", "generation", "ValueError: no\ntraceback")
    assert record.ids == RUN.ids and record.spec["model"]["head"]["kind"] == "diffusion" and not record.metrics
    assert record.provenance["seconds"] == 3.0
    write_record(places.records, generation(EXPERIMENT, ROW, 0, 0, 7.0))
    record_failure(RUN, places, "again", 3.0)
    assert read_records(places.records)[RUN.id].status == "done"


def test_previews_of_finished_runs(places):
    other = generation_run("mar/ce/guided", EXPERIMENT.rows["mar/ce/guided"])
    finish(RUN, places)
    found = previews({ROW: RUN, other.row: other}, places)
    assert list(found) == [ROW] and found[ROW].shape == (3, 1, 4, 4)


def test_places_by_option_environment_and_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MAR_BENCH_RUNS", "MAR_BENCH_RECORDS"):
        monkeypatch.delenv(name, raising=False)
    assert default_places(None, None) == Places(Path("runs"), Path("records"))
    (tmp_path / "results/records").mkdir(parents=True)
    assert default_places(None, None).records == Path("results/records")
    monkeypatch.setenv("MAR_BENCH_RUNS", "r")
    monkeypatch.setenv("MAR_BENCH_RECORDS", "s")
    assert default_places(None, None) == Places(Path("r"), Path("s"))
    assert default_places("a", "b") == Places(Path("a"), Path("b"))


# --- what the user must provide -------------------------------------------------------------------------


def test_preflight_names_the_key_to_set(tmp_path, monkeypatch):
    """One after the other, until all is there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    preflight([RUN])
    weights = tmp_path / "weights.safetensors"
    given: list[str] = []

    def check(*overrides: str) -> None:
        spec = load_experiment("table1", "paper", overrides).rows[ROW]
        preflight([generation_run(ROW, spec)])

    for key, value in (
        ("data.root", tmp_path), ("tokenizer.weights", weights), ("metrics.extractor.weights", weights),
        ("metrics.reference.file", weights),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"set {key} ") as caught:
            check(*given)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="/nowhere"):
            check(*given, f"{key}=/nowhere")
        given.append(f"{key}={value}")
        weights.touch()
    check(*given)


# --- plans ----------------------------------------------------------------------------------------------


def test_plan_counts_what_is_shared_and_done(places):
    runs = plan_runs(EXPERIMENT, [0, 1], only="*/diff/*")
    selection = Selection([EXPERIMENT], {"table1": runs}, {})
    plan = make_plan(selection, "smoke", places, {})
    assert (plan["evaluations"], plan["trainings"], plan["jobs"]) == (16, 6, 50)
    assert (plan["done"], plan["missing"], plan["failed"]) == (0, 16, 0)
    assert plan["stages"]["train"] == {"needed": 6, "without_reuse": 16, "done_here": 0}
    assert Counter(c["task"] for c in plan["companions"]) == {"reconstruction": 1, "speed": 8}

    finish(RUN, places)
    make(places, "train", RUN.ids["train_id"])
    failed = generation(EXPERIMENT, "raster_causal/diff/guided", 1, 0, None)
    after = make_plan(selection, "smoke", places, {failed.id: failed})
    assert (after["done"], after["missing"], after["failed"]) == (1, 14, 1)
    assert after["stages"]["train"]["done_here"] == 1 and after["jobs"] == 47
    assert [e["row"] for e in after["runs"] if e["status"] == "done"] == [ROW]
    json.dumps(after)
    text = plan_text(after)
    assert "16 evaluations over 6 trainings" in text and "1 done, 14 missing, 1 failed" in text
    assert all(run.row in text for run in runs)
    assert plan_text(after, rows=False) == text[text.index("16 evaluations") :]
