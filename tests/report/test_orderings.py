"""The one rule of differences and verdicts, and the paper's orderings judged by it pair by pair."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.record import Record
from mar_bench.report.claims.orderings import Comparison, compare
from mar_bench.report.frames import select
from mar_bench.report.stats import (
    BELOW,
    FAILS,
    HOLDS,
    INCOMPARABLE,
    NO_RUNS,
    ONE_SEED,
    SAMPLING_ONLY,
    UNDECIDED,
    paired,
)
from mar_bench.report.table.build import table
from tests.made_up import base, by_id, everything, generation, generations

WORSE = {(0, 0): 10.0, (1, 0): 10.4, (2, 0): 9.6}


def times(share: float) -> dict[tuple[int, int], float]:
    """WORSE times ``share``, with a little noise."""
    return {(t, s): share * value + 0.01 * t for (t, s), value in WORSE.items()}


# --- one difference -------------------------------------------------------------------------------------


def test_interval_is_the_paired_t_interval_on_common_seeds():
    better = times(0.9)
    found = paired({**better, (7, 0): 1000.0}, {**WORSE, (8, 0): 0.001})
    b, w = list(better.values()), list(WORSE.values())
    interval = ttest_rel(b, w).confidence_interval(0.95)
    assert (found.first, found.second, found.value) == pytest.approx((sum(b) / 3, 10, sum(b) / 3 - 10))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.percent == pytest.approx((10 * found.value, 10 * interval.low, 10 * interval.high))
    assert (found.over, found.trainings, found.samplings) == ("training", 3, 1)
    assert (found.verdict, found.notes) == (HOLDS, ())


def test_sampling_seeds_of_one_training_give_the_interval_and_a_note():
    worse = {(0, s): 10.0 + 0.1 * s for s in range(9)}
    better = {(0, s): 0.5 * v + 0.01 * (s % 2) for (_, s), v in worse.items()}
    found = paired(better, worse)
    interval = ttest_rel(list(better.values()), list(worse.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.trainings, found.samplings, found.verdict, found.notes) == (1, 9, HOLDS, (SAMPLING_ONLY,))


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ({(0, 0): 5.0, (0, 1): 5.0, (1, 0): 5.0}, {(0, 0): 10.0, (2, 0): 10.0}, (1, 1, ONE_SEED)),
        ({(0, 0): 1.0}, {(1, 0): 9.0}, (0, 0, NO_RUNS)),
    ],
)
@pytest.mark.parametrize("cost", [None, 0.10])
def test_a_single_common_run_or_none_is_undecided(better, worse, expected, cost):
    found = paired(better, worse, costs_at_most=cost)
    assert (found.trainings, found.samplings, *found.notes) == expected
    assert found.verdict == UNDECIDED and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("change", "half", "cost", "verdict"),
    [
        (-5, 3, None, HOLDS), (5, 3, None, FAILS), (-5, 6, None, UNDECIDED), (5, 6, None, UNDECIDED),
        (-1.29, 0.1, None, UNDECIDED), (-1.31, 0.1, None, HOLDS), (4, 2, 0.10, HOLDS), (4, 7, 0.10, UNDECIDED),
        (15, 4, 0.10, FAILS), (15, 6, 0.10, UNDECIDED), (0.5, 0.1, 0.10, HOLDS),
    ],
)  # fmt: skip
def test_verdicts_follow_interval_smallest_effect_and_allowed_cost(change, half, cost, verdict):
    """``change`` ± ``half`` percent of 100: with two pairs the t-interval is 12.7062 times half their distance."""
    noise = half / 12.7062
    found = paired({(i, 0): 100 + change + (-1) ** i * noise for i in (0, 1)}, {(0, 0): 100, (1, 0): 100}, 1.3, cost)
    assert found.percent == pytest.approx((change, change - half, change + half), abs=1e-3)
    assert found.verdict == verdict
    assert (BELOW in found.notes) == (abs(change) < 1.3 and cost is None)


# --- all pairs of an experiment -------------------------------------------------------------------------


def of_axis(experiment: Experiment, records, axis: str) -> list[Comparison]:
    return [c for c in compare(experiment, select(experiment, records)) if c.axis == axis]


def test_every_pair_differs_along_one_axis_only(table1):
    found = compare(table1, select(table1, generations(table1)))
    assert len(found) == sum(len(table1.rows) // len(table1.labels[o["axis"]]) for o in table1.orderings)
    for c in found:
        better, worse = table1.bundles(c.rows[0]), table1.bundles(c.rows[1])
        assert [axis for axis in better if better[axis] != worse[axis]] == [c.axis]
        assert c.bundles == (better[c.axis], worse[c.axis])
        assert set(c.others.split("/")) == set(better.values()) & set(worse.values())
    first = of_axis(table1, {}, "loss")[0]
    assert (first.rows[0], first.rows[1]) == ("raster_causal/diff/unguided", "raster_causal/ce/unguided")
    assert first.paper_percent == pytest.approx(100 * (19.23 - 19.58) / 19.58)


def unlike(experiment: Experiment, row: str, seeds=(0, 1, 2), **changes) -> dict[str, Record]:
    """Runs of a row under another protocol."""
    made = [generation(experiment, row, seed, 0, base(row)) for seed in seeds]
    return by_id(*(replace(record, protocol={**record.protocol, **changes}) for record in made))


def test_rows_with_different_protocols_are_not_compared(table1):
    row = "mar/diff/guided"
    made = {**everything(table1), **unlike(table1, row, num_generated=500, label_mode="unknown")}
    for c in compare(table1, select(table1, made)):
        assert (c.difference.verdict == INCOMPARABLE) == (row in c.rows)
        if c.rows[0] == row and c.axis == "loss":
            assert c.difference.notes == ("500 against 1000 generated images", "labels unknown against balanced")
            assert math.isnan(c.difference.value) and math.isnan(c.difference.low) and c.difference.first == base(row)


# --- Markdown -------------------------------------------------------------------------------------------


def written(experiment: Experiment, records) -> str:
    return table(experiment, records).markdown()


def section(text: str, claim: str) -> str:
    return text.split(f"### Claim: {claim}")[1].split("\n### ")[0]


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [word.strip() for word in line.strip("|").split("|")]


def test_a_line_has_means_difference_interval_seeds_verdict_and_the_paper(table1):
    made = generations(table1, lambda row, t, s: 10.0 - (1 + 0.01 * t) * ("diff" in row))
    loss = section(written(table1, made), "DiffLoss beats cross-entropy")
    assert cells(loss, "all else equal")[1:3] == ["diff", "ce"]
    assert cells(loss, "raster_causal/unguided")[1:] == [
        "8.99", "10.00", "-10.1 %", "-10.3 to -9.9 %", "3", "holds", "-1.8 %",
    ]  # fmt: skip
    assert "whose reconstructions alone have distances (vs training) – (diff) and – (ce)." in loss


def test_verdicts_are_counted(table1):
    contrary = generations(table1, lambda row, t, s: 20 / base(row) + 0.001 * t)
    text = written(table1, contrary)
    loss = section(text, "DiffLoss beats cross-entropy")
    assert "**does not hold: 8.** In the paper's numbers 8 of 8 are in this direction." in loss
    cost = section(text, "several tokens a step cost little (at most 10 % worse)")
    assert "In the paper's numbers 4 of 4 are at most 10 % worse." in cost


def test_a_pair_that_is_not_compared_says_why_and_is_counted_separately(table1):
    made = {**everything(table1), **unlike(table1, "mar/diff/guided", num_generated=500)}
    loss = section(written(table1, made), "DiffLoss beats cross-entropy")
    assert cells(loss, "mar/guided")[3:] == [
        "–", "–", "3", "not comparable: 500 against 1000 generated images", "-46.3 %",
    ]  # fmt: skip
    assert "**holds: 7, not comparable: 1.**" in loss
    assert "The axis 'loss' also changes the tokenizer" in loss
    assert "whose reconstructions alone have distances (vs training) 2.60 (diff)" in loss


def test_pairs_of_several_bundles_are_named_line_by_line():
    table2 = load_experiment("table2", "tiny")
    text = written(table2, generations(table2, lambda row, t, _: 5.0 + len(row) + 0.01 * t))
    assert "(at most 125 % worse)" in text and "| pair " in text
    assert all(f"| {name} against kl16, guided" in text for name in ("vq16", "kl8", "kl16_imagenet"))
