"""The paper's claims judged from made-up records: every kind of evidence, every verdict, every mistake in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mar_bench.cli import app
from mar_bench.config.experiment import load_experiment
from mar_bench.records.paper import PublishedRow
from mar_bench.records.record import write_record
from mar_bench.report.claims import evidence
from mar_bench.report.claims import report as claims
from mar_bench.report.claims.file import Evidence, claims_file, read_claims
from mar_bench.report.claims.orderings import FAILS, HOLDS, UNDECIDED
from mar_bench.utils.errors import UserError
from tests.made_up import by_id, generation, generations, speed
from tests.made_up_files import FILES

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
    for name, text in FILES.items():
        (home / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("MAR_BENCH_EXPERIMENTS", str(home))
    return home


def written(folder: Path, *items: str) -> Path:
    path = folder / "claims/paper.yaml"
    listed = "".join(f"  - {{number: {i}, text: claim {i}, evidence: [{item}]}}\n" for i, item in enumerate(items, 1))
    path.write_text(f"claims:\n{listed}")
    return path


def parsed(folder: Path, item: str) -> Evidence:
    return read_claims(written(folder, item))[0].evidence[0]


def judged(folder: Path, item: str, records, scale: str = "tiny"):
    found = parsed(folder, item)
    return evidence.judge(load_experiment(found.experiment, scale), found, records)


# --- the file -------------------------------------------------------------------------------------------


def test_the_shipped_file_has_the_ten_claims():
    found = read_claims(claims_file())
    assert [claim.number for claim in found] == list(range(1, 11))
    assert [len(claim.evidence) for claim in found] == [2] + 9 * [1]
    table1 = [item["claim"] for item in load_experiment("table1", "tiny").orderings]
    used = [e.claim for claim in found for e in claim.evidence if e.experiment == "table1"]
    assert sorted(used) == sorted(table1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("claims: {}", "claims: expected a list of claims"),
        ("claim: []", "claim: unknown key 'claim', did you mean 'claims'"),
        ("claims: [3]", "claims[0]: expected a block of keys"),
        ("claims: [{number: 1, text: a}]", "claims[0]: key 'evidence' is missing"),
        ("claims: [{number: x, text: a, evidence: []}]", "claims[0].number: 'x' is no whole number"),
        ("claims: [{number: 1, text: 5, evidence: []}]", "claims[0].text: expected a text, found 5"),
        ("claims: [{number: 1, text: a, evidence: []}]", "claims[0].evidence: expected a list"),
        ("claims: [{number: 1, text: a, evidence: [3]}]", "claims[0].evidence[0]: expected a block"),
        ("claims: [{number: 1, text: a, evidence: [{kind: orderin}]}]",
         "no kind of evidence 'orderin', did you mean 'ordering'"),
        ("claims: [{number: 1, text: a, evidence: [{title: t, experiment: e, kind: ordering}]}]",
         "key 'claim' is missing"),
        ("claims: [{number: 1, text: a, evidence: [{title: t, experiment: e, kind: optimum, axis: x, clam: y}]}]",
         "evidence[0].clam: unknown key 'clam'"),
        ("claims: [{number: 1, text: a, evidence: [{title: t, experiment: e, kind: below, label: l, better: b,"
         " worse: c}]}]", "worse: expected a list of texts"),
        ("claims: [{number: 1, text: a, evidence: [{title: t, experiment: e, kind: below, label: l, better: b,"
         " worse: []}]}]", "worse: names no system"),
        (f"claims: [{{number: 1, text: a, evidence: [{OPTIMUM}]}}, {{number: 1, text: b, evidence: [{OPTIMUM}]}}]",
         "number 1 is there twice"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_told_with_their_place(tmp_path, text, words):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_claims(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (ORDERING.replace("steps,", "step,"), "no experiment 'step', did you mean 'steps'"),
        (ORDERING.replace("a quarter", "a quarrter"), "no ordering 'a quarrter of the steps is enough', did you mean"),
        (OPTIMUM.replace("axis: t", "axis: tt"), "no axis 'ttemperature', did you mean 'temperature'"),
        (BELOW.replace("'AR, ", "'ARR, "), "no system 'ARR, CrossEnt', did you mean"),
    ],
)
def test_what_is_not_there_is_told(folder, item, words):
    path = written(folder, item)
    for scale in (None, "tiny"):
        with pytest.raises(UserError) as caught:
            claims.markdown(path, {}, scale)
        assert words in str(caught.value)


# --- orderings ------------------------------------------------------------------------------------------


def of_steps(experiment, ratios: dict[str, float], noise: float = 0.01, **kwargs):
    """25 steps cost ``ratios`` by guidance."""

    def value(row: str, train: int, _: int) -> float:
        steps, guidance = row.split("/")
        return 5 * (ratios[guidance] if steps == "s25" else 1) + noise * (-1) ** train * (steps == "s25")

    return generations(experiment, value, **kwargs)


@pytest.mark.parametrize(
    ("unguided", "guided", "noise", "expected"),
    [(1.01, 1.02, 0.01, HOLDS), (1.01, 1.2, 0.01, FAILS), (1.01, 1.05, 2.0, UNDECIDED)],
)
def test_an_ordering_holds_on_all_pairs_or_fails_on_any(folder, unguided, guided, noise, expected):
    steps = load_experiment("steps", "tiny")
    found = judged(folder, ORDERING, of_steps(steps, {"unguided": unguided, "guided": guided}, noise))
    assert found.verdict == expected
    for words in ("difference", "95 % interval", "seeds", "| unguided", "| guided"):
        assert words in found.text


def test_nothing_measured_is_undecided(folder):
    assert judged(folder, ORDERING, {}).verdict == judged(folder, OPTIMUM, {}).verdict == UNDECIDED
    assert evidence.all_of([]) == UNDECIDED and evidence.all_of([HOLDS, UNDECIDED]) == UNDECIDED


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
        ((2.9, 3.2, 3.5, 4.0), 0.02, FAILS, "the best is t090, an end"),
        ((4.0, 3.5, 3.0, 2.999), 0.0, UNDECIDED, "the best is t105, an end"),
    ],
)
def test_an_optimum_lies_inside_and_beats_both_ends(folder, curve, noise, expected, words):
    found = judged(folder, OPTIMUM, of_temperature(curve, noise))
    assert found.verdict == expected and words in found.text
    assert "| w1 " in found.text and "| w3 " in found.text


def test_an_optimum_needs_all_points(folder):
    some = of_temperature(
        (4.0, 3.2, 3.0, 3.5), rows=[f"{w}/{t}" for w in ("w1", "w3") for t in ("t090", "t095", "t100")]
    )
    found = judged(folder, OPTIMUM, some)
    assert found.verdict == UNDECIDED and evidence.NOT_MEASURED in found.text


def test_the_axis_runs_in_the_order_of_the_figure_s_x(folder):
    temperature = load_experiment("temperature", "tiny")
    shuffled = {**temperature.labels, "temperature": dict(reversed(temperature.labels["temperature"].items()))}
    rows = dict(sorted(temperature.rows.items(), key=lambda item: item[0][::-1]))
    found = evidence.judge(replace(temperature, labels=shuffled, rows=rows), parsed(folder, OPTIMUM),
                           of_temperature((4.0, 3.2, 3.0, 3.5)))  # fmt: skip
    assert found.verdict == HOLDS and "t100 against t090" in found.text and "t100 against t105" in found.text


# --- one system below others ----------------------------------------------------------------------------

DISTANCES = {"mar4": 3.0, "mar8": 2.2, "mar16": 2.0, "ce4": 5.0, "ce16": 3.9, "ar": 4.5}
MAR4, CE4 = "MAR, DiffLoss, 4 steps", "MAR, CrossEnt, 4 steps"
SECONDS = {"mar4": 0.05, "mar8": 0.2, "mar16": 0.5, "ce4": 0.06, "ce16": 0.23, "ar": 0.9}


def of_speed(distances=(), seconds=(), noise: float = 0.02, timed=None, measured=None):
    experiment = load_experiment("speed", "tiny")
    fd, times = {**DISTANCES, **dict(distances)}, {**SECONDS, **dict(seconds)}

    def value(row: str, train: int, _: int) -> float:
        return fd[row] + noise * (-1) ** (train + list(fd).index(row))

    def record(row: str):
        made = speed(experiment, row)
        return replace(made, metrics={**made.metrics, "seconds_per_image": times[row]})

    rows = [row for row in experiment.rows if timed is None or row in timed]
    return {**generations(experiment, value, rows=measured), **by_id(*map(record, rows))}


@pytest.mark.parametrize(
    ("records", "expected", "words"),
    [
        ({}, HOLDS, "MAR, DiffLoss, 8 steps against MAR, CrossEnt, 16 steps"),
        ({"distances": {"ce4": 2.0}}, FAILS, f"{MAR4} against {CE4}"),  # better and as fast
        ({"seconds": {"ce4": 0.01}}, HOLDS, f"{evidence.OUTSIDE}: 0.05 s against 0.01 s | {MAR4} against {CE4}"),
        ({"seconds": {"ce4": 0.01}, "distances": {"ce4": 2.5}}, FAILS, f"{CE4} | {FAILS}: 0.05 s against 0.01 s"),
        ({"seconds": {"ce4": 0.01}, "distances": {"ce4": 2.99}, "noise": 0.1}, HOLDS, f"{CE4} | {evidence.OUTSIDE}"),
        ({"seconds": {"ce4": 0.01, "ce16": 0.02, "ar": 0.03}}, UNDECIDED, evidence.OUTSIDE),  # all of them
        ({"seconds": {"ce4": 0.01}, "measured": ["mar8", "mar16", "ce4", "ce16", "ar"]}, UNDECIDED,
         f"{CE4} | {UNDECIDED}: {evidence.NOT_MEASURED}"),  # the fastest is
        ({"distances": {"ce4": 3.01}}, UNDECIDED, f"{MAR4} against {CE4}"),
        ({"distances": {"ar": 2.05}, "noise": 0.05}, UNDECIDED, "MAR, DiffLoss, 16 steps against AR, CrossEnt"),
        ({"timed": ["mar4", "mar8", "mar16", "ce4", "ce16"]}, UNDECIDED, "it was not timed"),
        ({"measured": ["mar4", "mar8", "mar16", "ce4", "ce16"]}, UNDECIDED, "it has no distance"),
        ({"timed": ["mar16", "ce4", "ce16", "ar"]}, UNDECIDED, evidence.NOT_MEASURED),
        ({"measured": ["mar16", "ce4", "ce16", "ar"]}, UNDECIDED, evidence.NOT_MEASURED),
    ],
)  # fmt: skip
def test_below_every_rival_by_points_at_most_as_slow(folder, records, expected, words):
    found = judged(folder, BELOW, of_speed(**records))
    text = compact(found.text).replace("0.050", "0.05").replace("0.010", "0.01")
    assert found.verdict == expected and words in text


def test_a_point_outside_that_was_not_measured_alike_is_undecided(folder):
    made = of_speed(seconds={"ce4": 0.01})
    other = {
        key: replace(r, protocol={**r.protocol, "label_mode": "random"}) if r.task == "generation" else r
        for key, r in made.items()
        if r.spec["model"].get("head", {}).get("kind") == "cross_entropy"
    }
    found = judged(folder, BELOW, {**made, **other})
    assert found.verdict == UNDECIDED and f"{CE4} | undecided: 0.05" in compact(found.text)


def test_one_step_is_no_steps(folder):
    (folder / "speed.yaml").write_text(FILES["speed"].replace("steps: '4'", "steps: '1'"))
    assert "MAR, DiffLoss, 1 step against MAR, CrossEnt, 1 step |" in compact(judged(folder, BELOW, of_speed()).text)


def test_the_setting_is_said_once(folder):
    text = judged(folder, BELOW, of_speed()).text
    assert text.count("1 thread") == 1 and text.startswith("Seconds per image: ")


def test_seconds_compare_within_a_setting_only(folder):
    experiment = load_experiment("speed", "tiny")
    other = speed(experiment, "ce4", "GPU")
    other = replace(other, metrics={**other.metrics, "seconds_per_image": 0.001})
    found = judged(folder, BELOW, {**of_speed(), **by_id(other)})
    assert found.verdict == UNDECIDED
    of_gpu = compact(found.text).split("Seconds per image: GPU, 1 thread")[1]
    assert f"{CE4} | undecided: {evidence.NOT_MEASURED}" in of_gpu


# --- the report -----------------------------------------------------------------------------------------


def scale_of(text: str) -> str:
    return text.split("| claim 1 | t")[1].split("|")[1].strip()


def compact(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def test_each_evidence_is_judged_at_the_largest_scale_that_has_it(folder):
    path = written(folder, ORDERING)
    ratios = {"unguided": 1.01, "guided": 1.01}
    at = {scale: of_steps(load_experiment("steps", scale), ratios) for scale in ("smoke", "tiny", "desk")}
    few = of_steps(load_experiment("steps", "paper"), ratios, rows=["s25/guided"])

    def chosen(*made, **kwargs) -> str:
        return scale_of(compact(claims.markdown(path, {k: v for one in made for k, v in one.items()}, **kwargs)))

    assert chosen(at["smoke"], at["tiny"]) == "tiny" and chosen(at["tiny"], at["desk"]) == "desk"
    assert chosen(at["tiny"], few) == "tiny" and chosen(few) == "paper" and chosen(at["smoke"]) == "–"
    assert chosen(at["tiny"], at["desk"], scale="tiny") == "tiny" and chosen(at["desk"], scale="tiny") == "–"
    smoke = claims.markdown(path, at["smoke"], "smoke")
    assert "its numbers mean nothing" in smoke and scale_of(compact(smoke)) == "smoke"
    assert "1 of its 4 rows are measured" in claims.markdown(path, few)


def test_the_report_says_claim_evidence_scale_and_verdict(folder):
    path = written(folder, ORDERING, BELOW)
    text = claims.markdown(path, of_speed())
    for words in (
        "| 1 | claim 1 | t | – | undecided (no records) |",
        "| 2 | claim 2 | t | tiny | holds |",
        "## 1. claim 1\n\n### t: undecided (no records)\n\nThere are no records of it at any scale.",
        "## 2. claim 2\n\n### t: holds\n\nExperiment speed, tiny scale.",
        "smoke scale is no evidence",
        "A curve below others: each of the others' points",
    ):
        assert words in compact(text)


def test_what_a_scale_leaves_out_is_told_and_is_no_mistake(folder):
    (folder / "speed.yaml").write_text(FILES["speed"] + "scales: {tiny: {axes: {system: {ar: null}}}}\n")
    text = claims.markdown(written(folder, BELOW), of_speed_without_ar())
    assert "Experiment speed, tiny scale; this scale has no system 'AR, CrossEnt'." in text and "t: holds" in text


def test_what_a_scale_has_not_is_no_lack_of_records(folder):
    (folder / "steps.yaml").write_text(FILES["steps"] + "scales: {tiny: {orderings: []}}\n")
    path, what = written(folder, ORDERING), "no ordering 'a quarter of the steps is enough'"
    text = claims.markdown(path, {}, "tiny")
    assert f"### t: undecided (not at this scale)\n\nTiny scale has {what}." in text
    text = claims.markdown(path, {})
    assert f"### t: undecided (no records)\n\nThere are no records of it at any scale. Tiny scale has {what}." in text
    assert "A curve below others" not in text


def test_the_cost_that_a_claim_allows_stands_beside_its_verdict(folder):
    path = written(folder, ORDERING)
    text = claims.markdown(path, of_steps(load_experiment("steps", "tiny"), {"unguided": 1.01, "guided": 1.01}))
    assert "| t | tiny | holds (at most 5 % worse) |" in compact(text) and "### t: holds (at most 5 % worse)" in text


def test_what_the_paper_says_of_rows_that_are_none_of_ours_stands_below_the_pairs(folder):
    row = PublishedRow("a", "l2", "L2 loss", {"": {"fd_above": 100.0}}, "Appendix")
    steps = replace(load_experiment("steps", "tiny"), quoted=[row])
    text = compact(evidence.judge(steps, parsed(folder, ORDERING), {}).text)
    assert "Quoted from the paper (Appendix), not measured here:" in text and "| L2 loss | > 100 |" in text


def of_speed_without_ar():
    experiment = load_experiment("speed", "tiny")
    assert "ar" not in experiment.rows
    made = [generation(experiment, row, t, 0, DISTANCES[row] + 0.001 * t) for row in experiment.rows for t in (0, 1, 2)]
    for row in experiment.rows:
        record = speed(experiment, row)
        made.append(replace(record, metrics={**record.metrics, "seconds_per_image": SECONDS[row]}))
    return by_id(*made)


def test_the_verb_prints_and_saves(folder, tmp_path):
    written(folder, OPTIMUM)
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
    assert "All at tiny scale." in call("--save", "--scale", "tiny")
    assert (tmp_path / "reports/tiny/claims.md").is_file()
