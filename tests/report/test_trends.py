"""Claims over training: the step from which they hold, crossings, and the trend of the gap."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.record import Record
from mar_bench.report.claims.evidence import Trend as EvidenceOfTrend
from mar_bench.report.claims.trends import Trend, table, trends
from mar_bench.report.figures import draw as figures
from mar_bench.report.frames import select
from mar_bench.report.stats import FAILS, HOLDS, UNDECIDED
from mar_bench.report.table.build import table as table_of
from tests.made_up import by_id, generations, likelihood

CLAIM = "DiffLoss beats cross-entropy"
EXPERIMENT = load_experiment("learning_curves", "tiny")
STEPS = [125, 250, 500, 1000, 2000, 4000]
NOISE = (0.0, 0.01, -0.01)  # of the three training seeds


def steps_of(row: str) -> int:
    spec = EXPERIMENT.rows[row]
    return spec.sampling.snapshot or spec.train.steps


def records(ratio, seeds=3) -> dict[str, Record]:
    """Cross-entropy at 100 throughout; the diffusion loss at ``ratio(steps)`` of it, up to noise."""

    def value(row: str, train: int, _: int) -> float:
        return 100 * (ratio(steps_of(row)) + NOISE[train] if "/diff/" in row else 1)

    return trained(generations(EXPERIMENT, value, seeds=range(seeds)))


def trained(made: dict[str, Record]) -> dict[str, Record]:
    """The records with the steps of their snapshots, at 40 steps a second."""
    steps = {i: r.spec["sampling"].get("snapshot") or r.spec["train"]["steps"] for i, r in made.items()}
    about = {i: {"steps": steps[i], "seconds": steps[i] / 40} for i in made}
    return {i: replace(r, training={**r.training, **about[i]}) for i, r in made.items()}


def trend_of(ratio, **kwargs) -> Trend:
    """That of the default MAR."""
    found = trends(EXPERIMENT, select(EXPERIMENT, records(ratio, **kwargs)))[CLAIM, "fd"]
    assert [pair.name for pair in found] == ["raster_causal", "random_causal", "random_bidirectional", "mar"]
    assert all(pair.steps == STEPS for pair in found)
    return found[-1]


def test_a_claim_holds_from_a_step_on():
    ratios = dict(zip(STEPS, (1.2, 0.8, 1.1, 0.9, 0.8, 0.7)))
    found = trend_of(ratios.get)
    assert (found.verdict, found.since, found.words) == (HOLDS, 1000, "holds from 1,000 steps on")
    assert found.crossings == "ahead between 125 and 250; behind between 250 and 500; ahead between 500 and 1,000"


def test_the_gap_of_a_claim_that_does_not_hold_has_a_trend():
    shrinking = trend_of(lambda steps: 1 + 0.5 * (125 / steps) ** 0.3)
    assert shrinking.verdict == FAILS and shrinking.crossings == "behind throughout"
    assert "does not hold within 4,000 steps; the gap shrinks" in shrinking.words
    growing = trend_of(lambda steps: 1.1 * 1.05 ** math.log2(steps / 125))
    assert growing.slope.value == pytest.approx(math.log(1.05), abs=2e-4)
    assert "the gap grows (+5.0 % a doubling" in growing.words
    crossed = trend_of(dict(zip(STEPS, (1.5, 1.4, 1.3, 1.2, 1.1, 0.995))).get)
    assert "undecided" in crossed.words and "the first gains (-8." in crossed.words
    flat = trend_of(lambda steps: 1.3 + 0.002 * (STEPS.index(steps) % 2))
    assert "the gap has no clear trend" in flat.words


def test_a_single_seed_decides_nothing():
    found = trend_of(lambda steps: 1.3, seeds=1)
    assert found.verdict == UNDECIDED and "too few seeds for a trend" in found.words
    nothing = trends(EXPERIMENT, select(EXPERIMENT, {}))[CLAIM, "fd"][0]
    assert nothing.verdict == UNDECIDED and nothing.crossings == "–"


@pytest.mark.parametrize(
    ("ratio", "expected"), [({500: 1.1}, f"{HOLDS} from 1,000 steps on"), ({4000: 1.1}, FAILS), ({4000: 1}, UNDECIDED)]
)
def test_as_evidence_the_last_step_decides(ratio, expected):
    evidence = EvidenceOfTrend(title="t", experiment="learning_curves", claim=CLAIM)
    made = records(lambda steps: ratio.get(steps, 0.8))
    assert evidence.judge(EXPERIMENT, select(EXPERIMENT, made)) == (expected, ANY)


def figure_of(experiment: Experiment, made: dict[str, Record], folder: Path) -> Figure:
    drawn: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, path, about, **layout: drawn.append(figure))
        figures.draw(experiment, made, folder / "unused")
    return drawn[0]


def test_the_table_has_a_column_for_every_step_and_the_figure_a_panel_for_every_x(tmp_path):
    ratios = dict(zip(STEPS, (1.2, 1.001, 1.1, 0.9, 0.8, 0.7)))
    made = records(ratios.get)
    lines = str(table(trends(EXPERIMENT, select(EXPERIMENT, made))[CLAIM, "fd"])).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[:7] == ["mar", "+20.0 %", "(+0.1 %)", "+10.0 %", "-10.0 %", "-20.0 %", "-30.0 %"]
    assert "holds from 1,000 steps on" in table_of(EXPERIMENT, made).markdown()
    figure = figure_of(EXPERIMENT, made, tmp_path)
    upper = figure.axes[0]
    assert [ax.get_xlabel() for ax in figure.axes[2:]] == ["images seen in training", "seconds of training"]
    assert upper.get_ylabel() == "FD-1k mnist5k" and len(upper.containers) == 8
    assert upper.containers[0][0].get_xdata().tolist() == [32 * steps for steps in STEPS]


def test_an_ordering_is_judged_by_its_own_metric(tmp_path):
    """Random order has the better likelihoods and the worse images; a figure of ``panels`` shows both."""
    budget = load_experiment("data_budget", "tiny")
    images = trained(generations(budget, lambda row, train, _: (130 if "/random/" in row else 100) + train))
    tokens = by_id(*(
        likelihood(budget, row, train, (7 if "/random/" in row else 8) + NOISE[train])
        for row in budget.rows for train in range(3)
    ))  # fmt: skip
    selection = select(budget, images | tokens)
    for metric, expected, pairs_have in (
        ("nll", "holds from 250 steps on (by held-out NLL)", "-12.5 %"),
        ("fd:heldout", FAILS, "the gap"),
    ):  # on the smallest of three sets
        evidence = EvidenceOfTrend(
            title="t", experiment="data_budget", claim="random order beats raster", metric=metric, bundles=("few",)
        )
        assert not evidence.unknown(budget)
        verdict, pairs = evidence.judge(budget, selection)
        assert verdict.startswith(expected) and pairs_have in str(pairs) and "many/" not in str(pairs)
        assert len({row for rows in evidence.comparisons(budget) for row in rows}) == 2 * 2 * 3
    text = table_of(budget, images | tokens).markdown()
    assert "### Claim: random order beats raster (by held-out FD-1k)" in text
    missing = EvidenceOfTrend(title="t", experiment="data_budget", claim="random order beats raster")
    assert missing.unknown(budget) == ["no ordering 'random order beats raster' by fd"]
    tokens = by_id(*(
        likelihood(budget, row, train, (-1.5 if "/random/" in row else -1.0) + NOISE[train])
        for row in budget.rows for train in range(3)
    ))  # fmt: skip
    found = trends(budget, select(budget, images | tokens))["random order beats raster", "nll"]
    assert found[0].words == "holds from 250 steps on" and "| -0.50" in str(table(found)), "of densities"
    figure = figure_of(budget, images | tokens, tmp_path)
    labels = [f"images seen in training\ntraining images {count}" for count in (250, 1000, 4000)]
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == labels
    assert {ax.get_ylabel() for ax in figure.axes} == {"held-out NLL bits/token", "held-out FD-1k mnist5k", ""}
    assert all(len(ax.containers) == 8 for ax in figure.axes)
