"""Claims over training: the step from which they hold, crossings, and the trend of the gap."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import ANY

import pytest

from mar_bench.config.experiment import load_experiment
from mar_bench.records.record import Record
from mar_bench.report.claims.evidence import Trend as EvidenceOfTrend
from mar_bench.report.claims.trends import Trend, table, trends
from mar_bench.report.figures import draw as figures
from mar_bench.report.frames import select
from mar_bench.report.stats import FAILS, HOLDS, UNDECIDED
from mar_bench.report.table.build import table as table_of
from tests.made_up import generations

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

    made = generations(EXPERIMENT, value, seeds=range(seeds))
    return {
        i: replace(r, training={**r.training, "steps": _steps(r), "seconds": _steps(r) / 40}) for i, r in made.items()
    }


def _steps(record: Record) -> int:
    return record.spec["sampling"].get("snapshot") or record.spec["train"]["steps"]


def trend_of(ratio, **kwargs) -> Trend:
    """That of the default MAR."""
    found = trends(EXPERIMENT, select(EXPERIMENT, records(ratio, **kwargs)))[CLAIM]
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
    flat = trend_of(lambda steps: 1.3 + 0.002 * (STEPS.index(steps) % 2))
    assert "the gap has no clear trend" in flat.words


def test_a_single_seed_decides_nothing():
    found = trend_of(lambda steps: 1.3, seeds=1)
    assert found.verdict == UNDECIDED and "too few seeds for a trend" in found.words
    nothing = trends(EXPERIMENT, select(EXPERIMENT, {}))[CLAIM][0]
    assert nothing.verdict == UNDECIDED and nothing.crossings == "–"


@pytest.mark.parametrize(
    ("ratio", "expected"), [({500: 1.1}, f"{HOLDS} from 1,000 steps on"), ({4000: 1.1}, FAILS), ({4000: 1}, UNDECIDED)]
)
def test_as_evidence_the_last_step_decides(ratio, expected):
    evidence = EvidenceOfTrend(title="t", experiment="learning_curves", claim=CLAIM)
    made = records(lambda steps: ratio.get(steps, 0.8))
    assert evidence.judge(EXPERIMENT, select(EXPERIMENT, made)) == (expected, ANY)


def test_the_table_has_a_column_for_every_step_and_the_figure_a_panel_for_every_x(tmp_path):
    ratios = dict(zip(STEPS, (1.2, 1.001, 1.1, 0.9, 0.8, 0.7)))
    made = records(ratios.get)
    lines = str(table(trends(EXPERIMENT, select(EXPERIMENT, made))[CLAIM])).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells[:7] == ["mar", "+20.0 %", "(+0.1 %)", "+10.0 %", "-10.0 %", "-20.0 %", "-30.0 %"]
    assert "holds from 1,000 steps on" in table_of(EXPERIMENT, made).markdown()
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, path, **layout: drawn.append(figure))
        figures.draw(EXPERIMENT, made, tmp_path / "unused")
    upper = drawn[0].axes[0]
    assert [ax.get_xlabel() for ax in drawn[0].axes[2:]] == ["images seen in training", "seconds of training"]
    assert upper.get_ylabel() == "FD-1k mnist5k" and len(upper.containers) == 8
    assert upper.containers[0][0].get_xdata().tolist() == [32 * steps for steps in STEPS]
