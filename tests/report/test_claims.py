"""The paper's claims judged from made-up records: kinds of evidence, verdicts, and mistakes in the file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.records.record import write_record
from mar_bench.report.claims import report
from mar_bench.report.claims.evidence import NOT_MEASURED, OUTSIDE, Evidence
from mar_bench.report.claims.report import claims_file, read_claims
from mar_bench.report.frames import select
from mar_bench.report.stats import FAILS, HOLDS, UNDECIDED
from mar_bench.utils.errors import UserError
from tests.made_up import EXPERIMENTS, by_id, generations, speed

SHIPPED = Path(__file__).parents[2] / "experiments"
ORDERING = "{title: t, experiment: steps, kind: ordering, claim: a quarter of the steps is enough}"
OPTIMUM = "{title: t, experiment: temperature, kind: optimum, axis: temperature}"
BELOW = (
    "{title: t, experiment: speed, kind: below, label: system, better: 'MAR, DiffLoss',"
    " worse: ['MAR, CrossEnt', 'AR, CrossEnt']}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Experiments of our own, with the shipped overlays."""
    home = tmp_path / "experiments"
    (home / "claims").mkdir(parents=True)
    for name in ("base", "scale"):
        (home / name).symlink_to(SHIPPED / name)
    for path in EXPERIMENTS.glob("*.yaml"):
        shutil.copy(path, home)
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(home))
    return home


def written(folder: Path, *items: str) -> Path:
    path = folder / "claims/paper.yaml"
    listed = "".join(f"  - {{number: {i}, text: claim {i}, evidence: [{item}]}}\n" for i, item in enumerate(items, 1))
    path.write_text(f"claims:\n{listed}")
    return path


def parsed(folder: Path, item: str) -> Evidence:
    return read_claims(written(folder, item)).claims[0].evidence[0]


def judged(folder: Path, item: str, records, scale: str = "tiny") -> tuple[str, str]:
    """The verdict and its text, with runs of spaces made one."""
    found = parsed(folder, item)
    experiment = load_experiment(found.experiment, scale)
    verdict, text = found.judge(experiment, select(experiment, records))
    return verdict, compact(text)


def compact(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


# --- the file -------------------------------------------------------------------------------------------


def test_the_shipped_file_has_the_ten_claims():
    found = read_claims(claims_file()).claims
    assert [claim.number for claim in found] == list(range(1, 11))
    table1 = [item["claim"] for item in load_experiment("table1", "tiny").orderings]
    used = [e.claim for claim in found for e in claim.evidence if e.experiment == "table1"]
    assert sorted(used) == sorted(table1)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("claims: {}", "claims: expected a list"),
        ("claims: [{number: 1, text: a, evidence: []}]", "claims[0].evidence: expected at least one"),
        ("claims: [{number: 1, text: a, evidence: [{kind: orderin}]}]", "'orderin', did you mean 'ordering'"),
        (f"claims: [{{number: 1, text: a, evidence: [{OPTIMUM}]}}, {{number: 1, text: b, evidence: [{OPTIMUM}]}}]",
         "claims[1].number: 1 is used twice"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_reported_with_their_place(tmp_path, text, where):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_claims(path)
    assert where in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (ORDERING.replace("steps,", "step,"), "no experiment 'step', did you mean 'steps'"),
        (ORDERING.replace("a quarter", "a quarrter"), "steps has no ordering 'a quarrter of the steps is enough'"),
        (ORDERING.replace("}", ", bundles: [guidded]}"), "steps has no bundle 'guidded'"),
        (OPTIMUM.replace("axis: t", "axis: tt"), "temperature has no axis 'ttemperature'"),
        (BELOW.replace("'AR, ", "'ARR, "), "speed has no system 'ARR, CrossEnt'"),
    ],
)
def test_evidence_that_does_not_exist_is_an_error(folder, item, words):
    path = written(folder, item)
    with pytest.raises(UserError) as caught:
        report.markdown(report.judge(path, {}, "tiny"))
    assert words in str(caught.value) and str(path) in str(caught.value)


# --- orderings ------------------------------------------------------------------------------------------


def of_steps(experiment, ratios: dict[str, float], noise: float = 0.01, **kwargs):
    """25 steps cost ``ratios`` by guidance."""

    def value(row: str, train: int, _: int) -> float:
        steps, guidance = row.split("/")
        return 5 * (ratios[guidance] if steps == "s25" else 1) + noise * (-1) ** train * (steps == "s25")

    return generations(experiment, value, **kwargs)


@pytest.mark.parametrize(
    ("unguided", "guided", "noise", "expected"),
    [
        (1.01, 1.02, 0.01, f"{HOLDS} (at most 5 % worse)"),
        (1.01, 1.2, 0.01, f"{FAILS} (holds: 1, does not hold: 1; at most 5 % worse)"),
        (1.01, 1.05, 2.0, f"{UNDECIDED} (at most 5 % worse)"),
    ],
)
def test_an_ordering_holds_on_all_pairs_or_fails_on_any(folder, unguided, guided, noise, expected):
    steps = load_experiment("steps", "tiny")
    verdict, text = judged(folder, ORDERING, of_steps(steps, {"unguided": unguided, "guided": guided}, noise))
    assert verdict == expected and "| unguided" in text and "| guided" in text


def test_verdicts_from_one_training_say_so(folder):
    steps, one = load_experiment("steps", "tiny"), {"seeds": (0,), "sampling_seeds": (0, 1)}
    costs = of_steps(steps, {"unguided": 1.01, "guided": 1.02}, **one)
    assert judged(folder, ORDERING, costs)[0] == f"{HOLDS} (at most 5 % worse; one training seed)"
    curve = of_temperature((4.0, 3.2, 3.0, 3.5), **one)
    assert judged(folder, OPTIMUM, curve)[0] == f"{HOLDS} (one training seed)"


def test_pairs_that_cannot_be_compared_are_counted(folder):
    steps, ratios = load_experiment("steps", "tiny"), {"unguided": 1.01, "guided": 1.01}
    half = of_steps(steps, ratios, rows=["s25/unguided", "s25/guided"])
    half = {i: replace(r, protocol={**r.protocol, "label_mode": "random"}) for i, r in half.items()}
    assert (
        judged(folder, ORDERING, of_steps(steps, ratios) | half)[0]
        == "undecided (not comparable: 2; at most 5 % worse)"
    )


# --- an optimum -----------------------------------------------------------------------------------------


def of_temperature(curve: tuple[float, ...], noise: float = 0.02, **kwargs):
    experiment = load_experiment("temperature", "tiny")
    values = dict(zip(experiment.labels["temperature"], curve))

    def value(row: str, train: int, _: int) -> float:
        name = row.split("/")[1]
        return values[name] + noise * (-1) ** (train + list(values).index(name))

    return generations(experiment, value, **kwargs)


@pytest.mark.parametrize(
    ("curve", "noise", "expected", "words"),
    [
        ((4.0, 3.2, 3.0, 3.5), 0.02, HOLDS, "the best is t100"),
        ((4.0, 3.2, 3.0, 3.1), 0.1, UNDECIDED, "the best is t100"),
        ((4.0, 3.5, 3.2, 2.9), 0.02, FAILS, "the best is t105, an end"),
        ((4.0, 3.5, 3.0, 2.999), 0.0, UNDECIDED, "the best is t105, an end"),
    ],
)
def test_an_optimum_lies_inside_and_beats_both_ends(folder, curve, noise, expected, words):
    verdict, text = judged(folder, OPTIMUM, of_temperature(curve, noise))
    assert verdict == expected and words in text and "| w1 " in text and "| w3 " in text


def test_each_curve_counts_once_for_an_optimum(folder):
    rows = [row for row in load_experiment("temperature", "tiny").rows if row.startswith("w1/")]
    made = of_temperature((2.0, 3.2, 3.0, 3.5)) | of_temperature((4.0, 3.2, 3.0, 3.5), rows=rows)
    assert judged(folder, OPTIMUM, made)[0] == "does not hold (holds: 1, does not hold: 1)"


def test_an_optimum_needs_all_points(folder):
    rows = [f"{w}/{t}" for w in ("w1", "w3") for t in ("t090", "t095", "t100")]
    verdict, text = judged(folder, OPTIMUM, of_temperature((4.0, 3.2, 3.0, 3.5), rows=rows))
    assert verdict == UNDECIDED and NOT_MEASURED in text


# --- one system below others ----------------------------------------------------------------------------

DISTANCES = {"mar4": 3.0, "mar8": 2.2, "mar16": 2.0, "ce4": 5.0, "ce16": 3.9, "ar": 4.5}
SECONDS = {"mar4": 0.05, "mar8": 0.2, "mar16": 0.5, "ce4": 0.06, "ce16": 0.23, "ar": 0.9}
MAR4, CE4 = "MAR, DiffLoss, steps 4", "MAR, CrossEnt, steps 4"


def timed(experiment, row: str, seconds: float, device: str = "CPU"):
    made = speed(experiment, row, device)
    return replace(made, metrics={**made.metrics, "seconds_per_image": seconds})


def of_speed(distances=(), seconds=(), noise: float = 0.02, no_seconds=(), no_distance=()):
    experiment = load_experiment("speed", "tiny")
    fd, times = {**DISTANCES, **dict(distances)}, {**SECONDS, **dict(seconds)}

    def value(row: str, train: int, _: int) -> float:
        return fd[row] + noise * (-1) ** (train + list(fd).index(row))

    made = generations(experiment, value, rows=[row for row in experiment.rows if row not in no_distance])
    return made | by_id(*(timed(experiment, row, times[row]) for row in experiment.rows if row not in no_seconds))


@pytest.mark.parametrize(
    ("records", "expected", "words"),
    [
        ({}, HOLDS, "MAR, DiffLoss, steps 8 against MAR, CrossEnt, steps 16"),
        ({"distances": {"ce4": 2.0}}, FAILS, f"{MAR4} against {CE4}"),  # better and as fast
        ({"seconds": {"ce4": 0.01}}, HOLDS, f"{OUTSIDE}: 0.050 s against 0.010 s | {MAR4} against {CE4}"),
        ({"seconds": {"ce4": 0.01}, "distances": {"ce4": 2.5}}, FAILS, f"{CE4} | {FAILS}: 0.050 s against 0.010 s"),
        ({"seconds": {"ce4": 0.01}, "distances": {"ce4": 2.99}, "noise": 0.1}, HOLDS, f"{CE4} | {OUTSIDE}"),
        ({"seconds": {"ce4": 0.01, "ce16": 0.02, "ar": 0.03}}, UNDECIDED, OUTSIDE),  # all of them
        ({"seconds": {"ce4": 0.01}, "no_distance": ["mar4"]}, UNDECIDED, f"{CE4} | {UNDECIDED}: {NOT_MEASURED}"),
        ({"distances": {"ce4": 3.01}}, UNDECIDED, f"{MAR4} against {CE4}"),
        ({"no_seconds": ["ar"]}, UNDECIDED, "it was not timed"),
        ({"no_distance": ["ar"]}, UNDECIDED, "it has no distance"),
        ({"no_distance": ["mar4", "mar8"]}, UNDECIDED, NOT_MEASURED),
    ],
)  # fmt: skip
def test_every_point_of_the_others_is_judged_by_points_at_most_as_slow(folder, records, expected, words):
    verdict, text = judged(folder, BELOW, of_speed(**records))
    assert verdict.partition(" (")[0] == expected and words in text


def test_a_point_outside_with_another_protocol_is_undecided(folder):
    made = of_speed(seconds={"ce4": 0.01})
    for key, record in made.items():
        if record.task == "generation" and record.spec["model"]["head"]["kind"] == "cross_entropy":
            made[key] = replace(record, protocol={**record.protocol, "label_mode": "random"})
    verdict, text = judged(folder, BELOW, made)
    assert verdict == UNDECIDED and f"{CE4} | undecided: 0.050" in text


# --- the report -----------------------------------------------------------------------------------------


def test_evidence_is_judged_at_every_scale_and_shown_at_the_largest_that_has_it(folder):
    path = written(folder, ORDERING)
    ratios = {"unguided": 1.01, "guided": 1.01}
    smoke, tiny, desk = (of_steps(load_experiment("steps", scale), ratios) for scale in ("smoke", "tiny", "desk"))
    paper = load_experiment("steps", "paper")
    lone, few = (
        of_steps(paper, ratios, rows=[f"{steps}/guided" for steps in names]) for names in (["s25"], ["s25", "s100"])
    )

    def judged(records, scale: str | None = None) -> tuple[str, str]:
        """The columns of the summary after the evidence, and the scale of the details."""
        text = compact(report.markdown(report.judge(path, records, scale)))
        heading = text.split("| claim | | evidence |")[1].splitlines()[0]
        return heading.rstrip(" |").strip(), text.partition("Experiment steps, ")[2].partition(" scale")[0]

    assert judged(tiny | desk) == ("desk | tiny", "desk") and judged(tiny | few) == ("paper | tiny", "tiny")
    assert judged(tiny | lone) == ("tiny", "tiny") and "(no records)" in report.markdown(report.judge(path, lone))
    assert judged(smoke) == ("", "") and judged(smoke, "smoke") == ("smoke", "smoke")
    assert judged(tiny | desk, "tiny") == ("tiny", "tiny") and judged(desk, "tiny") == ("", "")
    text = report.markdown(report.judge(path, few))
    assert "Experiment steps, paper scale; 2 of its 4 rows are measured" in text
    assert "at most 5 % worse); 2 of its 4 rows are measured" in text


def test_a_scale_that_does_not_exist_is_an_error_and_one_of_the_user_is_judged(folder):
    path = written(folder, ORDERING)
    with pytest.raises(UserError, match="no scale overlay 'tinny', did you mean 'tiny'"):
        report.markdown(report.judge(path, {}, "tinny"))
    (folder / "scale").unlink()
    shutil.copytree(SHIPPED / "scale", folder / "scale")
    (folder / "scale/mine.yaml").write_text("extends: tiny\nrun: {train: {lr: 1.0e-3}}\n")
    made = of_steps(load_experiment("steps", "mine"), {"unguided": 1.01, "guided": 1.01})
    text = compact(report.markdown(report.judge(path, made, "mine")))
    assert "| claim | | evidence | mine |" in text and "| 1 | claim 1 | t | holds (" in text


def test_rows_that_a_scale_leaves_out_are_named(folder):
    made = of_speed()
    (folder / "speed.yaml").write_text(
        (EXPERIMENTS / "speed.yaml").read_text() + "scales: {tiny: {axes: {system: {ar: null}}}}\n"
    )
    text = report.markdown(report.judge(written(folder, BELOW), made))
    assert "Experiment speed, tiny scale; this scale has no system 'AR, CrossEnt'." in text and "t: holds" in text
    with (folder / "steps.yaml").open("a") as file:
        file.write("scales: {paper: {orderings: []}}\n")
    assert "undecided (no records)" in report.markdown(report.judge(written(folder, ORDERING), {})), (
        "smaller scales have it"
    )
    assert "undecided (not at this scale)" in report.markdown(report.judge(written(folder, ORDERING), {}, "paper"))


def test_claims_beyond_the_paper_have_a_table_of_their_own(folder):
    path = written(folder, OPTIMUM)
    limited = path.read_text().replace("text: claim 1,", "text: claim 1, limits: no colour,")
    path.write_text(limited + f"beyond:\n  - {{number: 2, text: b, evidence: [{ORDERING}]}}\n")
    text = compact(report.markdown(report.judge(path, of_temperature((4.0, 3.2, 3.0, 3.5)))))
    paper, beyond = text.split("Not claims of the paper")
    assert "| 1 | claim 1 (no colour) | t | holds |" in paper and "| 2 | b | t |" in beyond and "## 2. b" in beyond


def test_the_command_prints_and_saves(folder, tmp_path):
    written(folder, OPTIMUM)
    (tmp_path / "records").mkdir()
    for record in of_temperature((4.0, 3.2, 3.0, 3.5)).values():
        write_record(tmp_path / "records", record)

    def call(*words: str) -> str:
        places = ["--records", str(tmp_path / "records"), "--reports", str(tmp_path / "reports")]
        result = CliRunner().invoke(app, ["claims", *words, *places], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    text = call()
    assert "t: holds" in text and not (tmp_path / "reports").exists()
    call("--save")
    assert (tmp_path / "reports/claims.md").read_text() == text
    assert ", at tiny scale\n" in call("--save", "--scale", "tiny")
    assert (tmp_path / "reports/tiny/claims.md").is_file()
