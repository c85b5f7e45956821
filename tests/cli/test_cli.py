"""Commands as a user types them; those that train are in test_smoke.py."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from mar_bench.cli import app, experiments, main
from mar_bench.config.experiment import load_experiment
from mar_bench.data.datasets import silent
from mar_bench.pipeline import eval_images, request, run_local
from mar_bench.pipeline.progress import Outcome
from mar_bench.records.record import Record, read_record, read_records
from mar_bench.utils.errors import UserError
from mar_bench.utils.files import sha256_of
from tests.measuring import Averages, noise

COMMANDS = ("list", "show", "plan", "run", "table", "plot", "sample", "claims")


@pytest.fixture
def places(tmp_path) -> list[str]:
    return ["--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]


def call(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def mistake(*words: str) -> str:
    """The message of a user's mistake."""
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    message = str(caught.value)
    assert "\n" not in message
    return message


def shell(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mar_bench", *words], capture_output=True, text=True)


@pytest.mark.parametrize("more", [[], ["--no-speed"]])
def test_speed_is_left_out_on_request(more, places, monkeypatch):
    asked = []
    monkeypatch.setattr(experiments, "_run_planned", lambda planned, *rest: asked.extend(planned))
    assert "nothing to do" in call("run", "table1", "--scale", "smoke", "--only", "mar/ce/*", *more, *places)
    assert {run.task for run in asked} == {"generation", "reconstruction", *([] if more else ["speed"])}


def test_list_names_experiments_and_scales():
    text = call("list")
    assert "table1" in text and "smoke, tiny, desk, fashion, gpu64, gpu, paper" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command):
    text = call(command, "--help")
    for line in text.splitlines():
        assert not (line.strip().startswith("--") and len(line.split()) < 3), f"no help: {line}"
    if command != "list":
        assert "--scale" in text and ("KEY=VALUE" in text or command == "claims")


def test_plan_counts_seeds_and_patterns(places):
    plan = json.loads(call("plan", "table1", "--scale", "tiny", "--json", *places))
    assert (plan["evaluations"], plan["trainings"], plan["sweep"]) == (16, 6, 0)
    assert len({run["ids"]["eval_id"] for run in plan["runs"]}) == 16
    plan = json.loads(call("plan", "table1", "--seeds", "0,1,2", "--json", *places))
    assert (plan["evaluations"], plan["trainings"], plan["stages"]["tokenizer"]["needed"]) == (48, 18, 2)
    plan = json.loads(call("plan", "table1", "--sampling-seeds", "0,1", "--only", "mar/*", "--json", *places))
    assert (plan["evaluations"], plan["trainings"]) == (8, 2)
    text = call("plan", "table1", *places)
    assert "16 evaluations over 6 trainings" in text and "estimated hours of one CPU core: 0.3 of training" in text


def test_plan_reads_a_file(places, tmp_path):
    shipped = Path(__file__).parents[2] / "experiments/table1.yaml"
    file = tmp_path / "mine.yaml"
    file.write_text(shipped.read_text().replace("id: table1", "id: mine"))
    assert json.loads(call("plan", str(file), "--json", *places))["trainings"] == 6
    file.rename(file.with_suffix(".yml"))
    assert "steps: 7" in call("show", f"{tmp_path}/mine.yml/mar/diff/guided", "train.steps=7", *places)


def test_show_prints_rows_then_a_row(places):
    assert call("show", "table1", *places).count("missing") == 16
    text = call("show", "table1/mar/diff/guided", "--scale", "paper", "train.steps=7", *places)
    assert "FID 1.98, IS 290.3" in text and "steps: 7" in text and "num_ar_steps: 64" in text
    assert "not chosen yet, one of 6 points" in text and "sampling.guidance_scale: 4.0" in text
    text = call("show", "table1/mar/diff/guided", *places)
    assert "train_id" in text and "speed_id" in text


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (("plan", "tabel1"), ("did you mean 'table1'",)),
        (("plan", "table1", "--scale", "tyni"), ("tyni", "did you mean 'tiny'")),
        (("plan", "table1", "train.stepz=3"), ("command line", "stepz", "did you mean 'steps'")),
        (("plan", "table1", "train.steps"), ("key=value",)),
        (("plan", "table1", "--seeds", "0;1"), ("--seeds", "0,1,2")),
        (("plan", "table1", "--only", "mra/*"), ("mra/*", "mar/ce/unguided")),
        (("plan", "table1", "sampling.num_ar_steps=4"), ("causal", "num_ar_steps 4", "masked backbone")),
        (("show", "table1/mar/dif/guided"), ("did you mean 'mar/diff/guided'",)),
        (("plan", "table1", "model.head.width=64"), ("'cross_entropy'", "override the part that has it")),
        (("table", "table1", "train.seed=1"), ("--seeds",)),
        (("table", "table1", "train={seed: 1}"), ("--seeds",)),
        (("plan", "table1", "--only", "mar/ce/*", "--only", "mar/diff/*"), ("--only is given twice",)),
        (("plan", "table1/mar/diff/guided"), ("give table1", "--only 'mar/diff/guided'")),
        (("plan", "table1", "--seeds", "9223372036854775808"), ("2^63",)),
        (("plan", "table1", "--seeds", "010"), ("--seeds 010", "0,1,2")),
        (("plan", "table1", "--seeds", "1_0"), ("--seeds 1_0", "0,1,2")),
        (("plan", "table1", "--seeds", "9" * 6000), ("--seeds 999", "below 2^63")),
        (("show", "mine.yml/mar/diff/guided"), ("mine.yml: no such file",)),
        (("table", "table1", "--format", "cvs"), ("did you mean 'csv'",)),
        (("run", "train.steps=3"), ("needs an experiment",)),
        (("fetch", "fashion-mnst"), ("did you mean 'fashion-mnist'",)),
        (("claims", "--save", "--records", "typo"), ("no records in typo",)),
        (("table", "table1", "sampling.num_ar_step=8"), ("did you mean 'num_ar_steps'",)),
        (("table", "table1", "sampling.guidance_scale=1"), ("'raster_causal/ce/guided'", "same under two labels")),
        (("plot", "learning_curves", "sampling.snapshot=1000"), ("same under two labels",)),
        (("report", "--scale", "smoke", "--records", "typo"), ("no records at scale smoke in typo",)),
        (("run", "table1", "--scale", "paper"), ("data.root",)),
    ],
)
def test_mistakes_say_the_way_out(words, hints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = mistake(*words)
    for hint in hints:
        assert hint in message
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_a_mistake_is_one_line_and_exit_code_2():
    result = shell("plan", "tabel1")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for words in (
        ("plan", "table1", "--scael", "tiny"),
        ("run", "--jobs", "0"),
        ("claims", "foo"),
        ("speed",),
        ("runn",),
    ):
        result = shell(*words)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "--help)" in result.stderr
    result = shell()
    assert result.returncode == 2 and "Commands:" in result.stderr


def test_overrides_need_to_fit_only_the_rows_asked_for(places):
    text = call("plan", "table1", "--scale", "smoke", "--only", "mar/diff/*", "sampling.num_ar_steps=8", *places)
    assert "2 evaluations" in text
    assert "num_ar_steps: 8" in call("show", "table1/mar/diff/guided", "--scale", "smoke", "sampling.num_ar_steps=8")


def test_cite_names_paper_version_and_records(places):
    text = call("cite", "table5", "--scale", "tiny")
    assert text.count("{") == text.count("}") and "li2024autoregressive" in text and "version = {0.1.0}" in text
    ids = re.findall(r"\b[0-9a-f]{12}\b", text.partition("records ")[2])
    assert ids and {*ids} <= {path.stem for path in Path("results/records").glob("*.json")}
    assert "records" not in call("cite", "table5", "--scale", "tiny", *places[2:])


def test_doctor_says_what_works_here(places, monkeypatch, tmp_path):
    text = call("doctor", *places)
    assert "ok    FID of two Gaussians  14, as known" in text and "KID of two sets" in text
    monkeypatch.setattr("mar_bench.pipeline.doctor.frechet_distance", lambda *sets: 14.1)
    result = CliRunner().invoke(app, ["doctor", *places])
    assert result.exit_code == 1 and "14.1 instead of 14" in result.output
    assert not list(tmp_path.iterdir()), "it makes no folders"


def test_reports_of_overrides_have_names_of_their_own(places, tmp_path):
    plain, changed = load_experiment("table1", "tiny"), load_experiment("table1", "tiny", ["train.steps=2000"])
    assert (plain.stem, changed.stem) == ("table1", "table1+train.steps=2000")
    assert "tiny scale, with train.steps=2000, not comparable" in call(
        "table", "table1", "train.steps=2000", *places[2:]
    )
    odd = replace(changed, overrides=("data.root=/a b/$c", "train.steps=1"))
    assert odd.stem == "table1+data.root=_a_b_c_train.steps=1"


def test_folders_are_expanded_wherever_they_are_given(tmp_path, monkeypatch):
    """bash leaves --runs=~/mine as it is, and so do files of environment variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    monkeypatch.setenv("MAR_BENCH_RECORDS", "~/records")
    for name in ("records", "old"):
        (home / name).mkdir(parents=True)
    assert f"{home}/records/0123456789ab.json" in mistake("show", "0123456789ab")
    assert f"{home}/old/x" in mistake("collect", "$HOME/old/x", "--records=~/new")
    assert f"{home}/mine.yml: no such file" in mistake("plan", "~/mine.yml", "--records=~/new")
    assert f"{home}/mine.yml: no such file" in mistake("submit", "table1", "--cluster=~/mine.yml")
    assert f"{home}/a.json" in mistake("show", "~/a.json")
    assert f"{home}/nothing" in mistake("convert", "kl16", "~/nothing", "~/x.safetensors")
    for option in ("--runs", "--records"):
        assert f"{option} (or MAR_BENCH_" in mistake("plan", "table1", f"{option}=$NO_SUCH/x")
    assert "NO_SUCH" in mistake("eval", "$NO_SUCH/x") and "NO_SUCH" in mistake("fetch", "--weights=$NO_SUCH/x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize("command", ("run", "plan", "table"))
def test_broken_record_stops_before_any_work(command, tmp_path):
    records, asked = tmp_path / "records", ("table1", "--scale", "smoke")
    records.mkdir()
    name = json.loads(call("plan", *asked, "--json", "--records", str(records)))["runs"][0]["ids"]["eval_id"]
    (records / f"{name}.json").write_text('{"task": "gen')
    more = ("--reuse-records",) if command == "run" else ()
    message = mistake(command, *asked, *more, "--records", str(records))
    assert f"{name}.json" in message and "valid record" in message


def test_views_without_records_name_the_command_to_run(places, tmp_path):
    reports = ("--reports", str(tmp_path / "reports"))
    assert "mar-bench run table1 --scale tiny" in mistake("plot", "table1", *places[2:], *reports)
    assert "mar-bench run table1 --scale tiny" in mistake("sample", "table1", *places[:2], *reports)
    assert "–" in call("table", "table1", *places[2:])
    assert "no records of table1" in mistake("table", "table1", "--save", *places[2:], *reports)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("option", ("--runs", "--records"))
def test_folder_without_write_access_is_found_first(option, places, tmp_path):
    (tmp_path / "file").write_text("")
    places[places.index(option) + 1] = str(tmp_path / "file/below")
    message = mistake("run", "table1", "--scale", "smoke", *places)
    assert option in message and "cannot be written to" in message


def test_list_survives_a_broken_file(tmp_path, monkeypatch):
    (tmp_path / "good.yaml").write_text("title: Good\naxes: {a: {b: {}, c: {}}}\n")
    (tmp_path / "odd.yaml").write_text("axes: [1]\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path))
    result = CliRunner().invoke(app, ["list"])
    assert "Good" in result.output and "odd" in result.output and "bad.yaml" in str(result.exception)
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path / "nowhere"))
    for words in (["list"], ["plan", "table1"], ["plan", "--all"]):
        assert "no experiments in" in mistake(*words)


def main_on(stdout, monkeypatch, *words: str) -> int:
    """The exit code of a command whose output goes to ``stdout``."""
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["mar-bench", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_a_terminal_without_utf8_shows_escapes(places, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    assert main_on(stdout, monkeypatch, "table", "table1", *places[2:]) == 0
    assert b"\\u2013" in stdout.buffer.getvalue()


@pytest.fixture
def measured(monkeypatch) -> Record:
    """What eval measures, without the hours."""
    found = read_records(Path(__file__).parents[2] / "results/records").values()
    record = next(r for r in found if r.task == "generation" and "samples" in r.protocol)
    for name in ("open_source", "open_extractor"):
        monkeypatch.setattr(eval_images, name, lambda *given, **named: SimpleNamespace(run=None))
    monkeypatch.setattr(eval_images, "evaluate", lambda *given: record)
    return record


@pytest.mark.parametrize("option", ("--scale", "--seeds", "--sampling-seeds"))
def test_eval_refuses_options_of_rows_for_other_images(option, measured, places):
    assert f"{option} 5: it chooses" in mistake("eval", "samples", "--reference", "real", option, "5", *places)


@pytest.mark.parametrize("form", ([], ["--json"]))
def test_scores_that_cannot_be_printed_are_not_lost(form, measured, places, monkeypatch, capsys, tmp_path):
    words = ("eval", "samples", "--reference", "real", *form, *places)
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    assert main_on(stdout, monkeypatch, *words) == 0 and b"0." in stdout.buffer.getvalue()
    with open("/dev/full", "w") as full:
        assert main_on(full, monkeypatch, *words) == 2
    told, kept, error = capsys.readouterr().err.splitlines()
    assert "not printed" in told and "No space left" in error
    (tmp_path / "kept.json").write_text(kept)
    assert read_record(tmp_path / "kept.json") == measured


def test_a_closed_output_goes_to_stderr(places):
    words = f"exec {sys.executable} -m mar_bench list >&-"
    result = subprocess.run(words, shell=True, capture_output=True, text=True)
    assert result.returncode == 0 and "table1" in result.stderr


def test_plan_and_run_count_the_images_of_a_folder_once(places, monkeypatch, tmp_path):
    for name in ("train/ape/0.png", "train/ape/1.PGM", "train/ape/notes.txt", "val/ape/0.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    data = (f"data.root={tmp_path / 'root'}", "data.num_classes=1")
    lines = [
        f"{tmp_path}/root/train: 2 images of 3 files, left out: ape/notes.txt",
        f"{tmp_path}/root/val: 1 image of 1 file",
    ]
    words = ("table1", "--scale", "paper", *data, *places)
    text = call("plan", *words)
    assert all(text.count(line) == 1 for line in lines)
    assert json.loads(call("plan", *words, "--json"))["images"] == lines
    monkeypatch.setattr(request, "preflight", lambda runs: None)
    monkeypatch.setattr(run_local, "run_jobs", lambda *given: Outcome(done=1))
    text = CliRunner().invoke(app, ["run", *words]).output
    assert all(text.count(line) == 1 for line in lines)


@pytest.mark.parametrize(("word", "told"), [("--verbose", True), ("--quiet", False)])
def test_a_verbose_run_tells_the_whole_error(word, told, places, monkeypatch):
    monkeypatch.setattr(run_local, "run_jobs", lambda todo, *_: Outcome(failed={todo[0].id: "KeyError: x\nTraceback"}))
    result = CliRunner().invoke(app, ["run", "table1", "--scale", "smoke", word, *places])
    assert result.exit_code == 1 and "KeyError: x" in result.stderr
    assert ("Traceback" in result.stderr) == told and bool(result.stdout) == told


@pytest.mark.parametrize("keys", (("arr_0", "mu", "sigma"), ("mu", "sigma")))
def test_adms_file_and_a_reference_built_of_it_have_its_statistics_under_any_name(keys, monkeypatch, tmp_path):
    arrays = {"arr_0": noise(9, channels=3).permute(0, 2, 3, 1).numpy(), "mu": np.full(4, 3.0), "sigma": np.eye(4) * 4}
    np.savez(tmp_path / "adm.npz", **{key: arrays[key] for key in keys})
    space = Averages("inception", "inception")
    monkeypatch.setattr(eval_images, "open_extractor", lambda *given: space)
    source, target = tmp_path / "adm.npz", tmp_path / "built.npz"
    assert "the file's own mu and sigma" in call("reference", "build", str(source), str(target))
    for path, name in ((source, "ADM.NPZ"), (source, "adm"), (target, "BUILT.NPZ"), (target, "built")):
        found = eval_images.open_reference(str(shutil.copy(path, tmp_path / name)), space, 100, silent)
        assert all(np.array_equal(found.statistics[key], arrays[key]) for key in ("mu", "sigma"))
        assert found.about["sha256"] == sha256_of(source)
        assert found.about["num_features"] == (9 if "arr_0" in keys else 0)
    assert "already a reference" in mistake("reference", "build", str(target), str(tmp_path / "again.npz"))
