"""From runs to jobs: what is needed, in which order, what counts as done, and what a plan says of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.config.ids import Run, generation_run, plan_runs, reconstruction_run, speed_run
from mar_bench.pipeline.graph import Job, jobs_for
from mar_bench.pipeline.plan import make_plan, plan_text
from mar_bench.pipeline.preflight import preflight
from mar_bench.pipeline.store import (
    MARKER,
    Places,
    default_places,
    is_sound,
    mark_done,
    previews,
    publish,
    record_failure,
    status,
)
from mar_bench.records.record import PREVIEW, read_record, read_records, write_record
from mar_bench.utils.errors import UserError
from tests.made_up import generation

ROW = "mar/diff/guided"
EXPERIMENT = load_experiment("table1", "smoke")
RUN = generation_run(ROW, EXPERIMENT.rows[ROW])


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path / "runs", tmp_path / "records")


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


def test_a_generation_needs_all_its_stages_in_order(places):
    jobs = jobs_for([RUN], places)
    assert [job.kind for job in jobs] == ["tokenizer", "extractor", "latents", "train", "sample", "generation"]
    ids = {job.kind: job.id for job in jobs}
    assert {kind: [k for k, i in ids.items() if i in job.needs] for kind, job in zip(ids, jobs)} == {
        "tokenizer": [], "extractor": [], "latents": ["tokenizer"], "train": ["latents"], "sample": ["train"],
        "generation": ["tokenizer", "extractor", "train", "sample"],
    }  # fmt: skip
    assert all(job.cost > 0 and job.title for job in jobs)


def test_reconstruction_trains_no_generator_and_speed_no_extractor(places):
    spec = EXPERIMENT.rows[ROW]
    reconstruction, speed = reconstruction_run(ROW, spec), speed_run(ROW, spec, "cpu")
    assert [j.kind for j in jobs_for([reconstruction], places)] == ["tokenizer", "extractor", "reconstruction"]
    jobs = jobs_for([speed], places)
    assert [j.kind for j in jobs] == ["tokenizer", "latents", "train", "speed"]
    assert jobs[-1].needs == (RUN.ids["tokenizer_id"], RUN.ids["train_id"])


def test_a_table_shares_its_stages(places):
    jobs = jobs_for(plan_runs(EXPERIMENT), places)
    assert kinds(jobs) == {
        "tokenizer": 2, "extractor": 1, "latents": 2, "train": 6, "sample": 16, "generation": 16, "reconstruction": 2,
        "speed": 16,
    }  # fmt: skip
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen, "a job stands behind all that it needs"
        assert job.id not in seen
        seen.add(job.id)
    assert all(job.kind == "speed" for job in jobs[-16:]), "speed comes last"


def test_more_seeds_train_more_generators_and_nothing_else(places):
    jobs = kinds(jobs_for(plan_runs(EXPERIMENT, [0, 1, 2], [0, 1]), places))
    assert (jobs["tokenizer"], jobs["latents"], jobs["extractor"], jobs["reconstruction"]) == (2, 2, 1, 2)
    assert (jobs["train"], jobs["sample"], jobs["generation"], jobs["speed"]) == (18, 96, 96, 16)


def test_what_is_done_is_neither_repeated_nor_waited_for(places):
    make(places, "tokenizer", RUN.ids["tokenizer_id"])
    make(places, "latents", RUN.ids["latents_id"])
    jobs = {job.kind: job for job in jobs_for([RUN], places)}
    assert list(jobs) == ["extractor", "train", "sample", "generation"]
    assert jobs["train"].needs == ()
    assert jobs["generation"].needs == tuple(RUN.ids[f"{k}_id"] for k in ("extractor", "train", "sample"))
    finish(RUN, places)
    assert jobs_for([RUN], places) == []


def test_titles_tell_jobs_apart(places):
    jobs = jobs_for(plan_runs(EXPERIMENT, [0, 1]), places)
    titles = [job.title for job in jobs]
    assert "train mar/diff seed 1" not in titles, "the training that two variants share has the first one's name"
    assert {"tokenizer vq", "latents kl", "extractor digits", "train random_bidirectional/diff seed 1",
            "sample mar/diff/guided seed 1", "speed mar/ce/unguided"} <= set(titles)  # fmt: skip
    assert len(set(titles)) == len(titles)


# --- what is sound --------------------------------------------------------------------------------------


def test_a_stage_is_sound_once_it_is_marked(places):
    folder = make(places, "train", "abc")
    assert is_sound(folder)
    marker = json.loads((folder / MARKER).read_text())
    assert marker == {"files": {"deep/log.txt": 7, "weights.bin": 5}, "seconds": 1.5}
    (folder / "added-later").write_text("x")
    assert is_sound(folder)
    (folder / MARKER).unlink()
    assert not is_sound(folder)
    assert not is_sound(places.folder("train", "nowhere"))


@pytest.mark.parametrize("name", ["weights.bin", "deep/log.txt"])
def test_a_truncated_longer_or_deleted_file_is_noticed(name, places):
    folder = make(places, "train", "abc")
    whole = (folder / name).read_bytes()
    for content in (whole[:-1], b"", whole + b"x"):
        (folder / name).write_bytes(content)
        assert not is_sound(folder)
    (folder / name).write_bytes(whole)
    assert is_sound(folder)
    (folder / name).unlink()
    assert not is_sound(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"files": 3}', '{"files": ["weights.bin"]}'])
def test_a_broken_marker_is_not_sound(text, places):
    folder = make(places, "train", "abc")
    (folder / MARKER).write_text(text)
    assert not is_sound(folder)


def test_a_stage_that_makes_nothing_is_sound(places):
    """The tokenizer stage of published weights."""
    folder = places.folder("tokenizer", "abc")
    folder.mkdir(parents=True)
    mark_done(folder, 0.0)
    assert is_sound(folder)


def test_an_unsound_stage_is_made_again_and_what_hangs_on_it_waits(places):
    make(places, "tokenizer", RUN.ids["tokenizer_id"])
    latents = make(places, "latents", RUN.ids["latents_id"])
    (latents / "weights.bin").unlink()
    jobs = {job.kind: job for job in jobs_for([RUN], places)}
    assert "latents" in jobs and jobs["train"].needs == (RUN.ids["latents_id"],)


def test_a_measurement_waits_for_a_lost_training_although_its_samples_are_there(places):
    """It takes the losses from it."""
    make(places, "sample", RUN.ids["sample_id"])
    jobs = {job.kind: job for job in jobs_for([RUN], places)}
    assert "train" in jobs and RUN.ids["train_id"] in jobs["generation"].needs


def test_latents_are_not_made_again_for_what_is_trained(places):
    make(places, "tokenizer", RUN.ids["tokenizer_id"])
    make(places, "train", RUN.ids["train_id"])
    assert [job.kind for job in jobs_for([RUN], places)] == ["extractor", "sample", "generation"]
    assert [job.kind for job in jobs_for([speed_run(ROW, RUN.spec, "cpu")], places)] == ["speed"]


# --- records and places ---------------------------------------------------------------------------------


def test_status_is_of_the_run_or_of_its_record(places):
    done, failed = (generation(EXPERIMENT, ROW, 0, 0, fd) for fd in (5.0, None))
    assert status(RUN, places, {}) == "missing"
    assert status(RUN, places, {RUN.id: done}) == "done"
    assert status(RUN, places, {RUN.id: failed}) == "failed"
    finish(RUN, places)
    assert status(RUN, places, {}) == status(RUN, places, {RUN.id: failed}) == "done"


def test_publish_copies_what_is_done_and_not_there_yet(places):
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


def test_a_failure_is_a_record_that_replaces_no_result(places):
    record_failure(RUN, places, "ValueError: no\ntraceback", 3.0)
    record = read_records(places.records)[RUN.id]
    assert (record.status, record.task, record.error) == ("failed", "generation", "ValueError: no\ntraceback")
    assert record.ids == RUN.ids and record.spec["model"]["head"]["kind"] == "diffusion" and not record.metrics
    assert record.provenance["seconds"] == 3.0
    write_record(places.records, generation(EXPERIMENT, ROW, 0, 0, 7.0))
    record_failure(RUN, places, "again", 3.0)
    assert read_records(places.records)[RUN.id].status == "done"


def test_previews_of_what_is_here(places):
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


def paper_jobs(*overrides: str, row: str = ROW) -> list[Run]:
    return [generation_run(row, load_experiment("table1", "paper", overrides).rows[row])]


def test_data_sets_that_come_along_need_nothing():
    preflight([RUN])


def test_preflight_names_the_key_to_set(tmp_path, monkeypatch):
    """One after the other, until all is there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "weights.safetensors"
    given: list[str] = []
    for key, value in (
        ("data.root", tmp_path), ("tokenizer.weights", weights), ("metrics.extractor.weights", weights),
        ("metrics.reference.file", weights),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            preflight(paper_jobs(*given))
        message = str(caught.value)
        assert f"set {key} " in message and "\n" not in message
        with pytest.raises(UserError, match="/nowhere"):
            preflight(paper_jobs(*given, f"{key}=/nowhere"))
        given.append(f"{key}={value}")
        weights.touch()
    preflight(paper_jobs(*given))


# --- plans ----------------------------------------------------------------------------------------------


def test_a_plan_counts_what_is_shared_and_done(places):
    runs = plan_runs(EXPERIMENT, [0, 1], only="*/diff/*")
    plan = make_plan([EXPERIMENT], {"table1": runs}, runs, 0, "smoke", places, {})
    assert (plan["evaluations"], plan["trainings"], plan["jobs"]) == (16, 6, 50)
    assert (plan["done"], plan["missing"], plan["failed"]) == (0, 16, 0)
    assert plan["stages"]["train"] == {"needed": 6, "without_reuse": 16, "done_here": 0}
    for kind in ("tokenizer", "latents", "extractor"):
        assert plan["stages"][kind] == {"needed": 1, "without_reuse": 16, "done_here": 0}
    assert Counter(c["task"] for c in plan["companions"]) == {"reconstruction": 1, "speed": 8}

    finish(RUN, places)
    make(places, "train", RUN.ids["train_id"])
    failed = generation(EXPERIMENT, "raster_causal/diff/guided", 1, 0, None)
    after = make_plan([EXPERIMENT], {"table1": runs}, runs, 0, "smoke", places, {failed.id: failed})
    assert (after["done"], after["missing"], after["failed"]) == (1, 14, 1)
    assert after["stages"]["train"]["done_here"] == 1 and after["jobs"] == 47
    assert [e["row"] for e in after["runs"] if e["status"] == "done"] == [ROW]
    json.dumps(after)


def test_a_plan_in_words(places):
    runs = plan_runs(EXPERIMENT)
    text = plan_text(make_plan([EXPERIMENT], {"table1": runs}, runs, 0, "smoke", places, {}))
    assert "16 evaluations over 6 trainings" in text
    assert "2 tokenizer" in text and "0 done, 16 missing, 0 failed" in text and "jobs to do: 61" in text
    assert all(row in text for row in EXPERIMENT.rows)
