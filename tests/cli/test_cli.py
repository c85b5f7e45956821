"""Commands as a user types them; those that train are in test_smoke.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.utils.errors import UserError

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


def test_list_names_experiments_and_scales():
    text = call("list")
    assert "table1" in text and "smoke, tiny, desk, paper" in text


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
    assert "16 evaluations over 6 trainings" in call("plan", "table1", *places)


def test_plan_reads_a_file(places, tmp_path):
    shipped = Path(__file__).parents[2] / "experiments/table1.yaml"
    file = tmp_path / "mine.yaml"
    file.write_text(shipped.read_text().replace("id: table1", "id: mine"))
    assert json.loads(call("plan", str(file), "--json", *places))["trainings"] == 6


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
        (("plan", "table1", "--seeds", "9223372036854775808"), ("2^63",)),
        (("table", "table1", "--format", "cvs"), ("did you mean 'csv'",)),
        (("run", "train.steps=3"), ("needs an experiment",)),
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
    assert shell("plan", "table1", "--scael", "tiny").returncode == 2


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
    message = mistake("run", "table1", "--scale", "smoke", *places, option, str(tmp_path / "file/below"))
    assert option in message and "cannot be written to" in message


def test_list_survives_a_broken_file(tmp_path, monkeypatch):
    (tmp_path / "good.yaml").write_text("title: Good\naxes: {a: {b: {}, c: {}}}\n")
    (tmp_path / "odd.yaml").write_text("axes: [1]\n")
    (tmp_path / "bad.yaml").write_text("a: [\n")
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path))
    result = CliRunner().invoke(app, ["list"])
    assert "Good" in result.output and "odd" in result.output and "bad.yaml" in str(result.exception)
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(tmp_path / "nowhere"))
    assert "no experiments in" in mistake("list")


def test_the_committed_report_is_that_of_the_committed_records():
    root = Path(__file__).parents[2]
    text = call("table", "table1", "--scale", "tiny", "--records", str(root / "results/records"))
    assert text == (root / "reports/tiny/table1.md").read_text()
