"""The paper's claims: pairs on common seeds, and no verdict where the records do not give one."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.record import Record
from mar_bench.report.claims import orderings
from mar_bench.report.claims.orderings import (
    AT_FLOOR,
    BELOW,
    FAILS,
    HOLDS,
    INCOMPARABLE,
    NO_RUNS,
    ONE_SEED,
    SAMPLING_ONLY,
    UNDECIDED,
    Effect,
    compare,
    judge,
    paired_effect,
)
from mar_bench.utils.errors import UserError
from tests.made_up import as_before, base, by_id, everything, generation, generations, reconstruction

NAN = math.nan
WORSE = {(0, 0): 10.0, (1, 0): 10.4, (2, 0): 9.6}


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


def times(share: float) -> dict[tuple[int, int], float]:
    """The worse row's values times ``share``, with a little noise."""
    return {(t, s): share * value + 0.01 * t for (t, s), value in WORSE.items()}


# --- one pair -------------------------------------------------------------------------------------------


def test_the_effect_is_a_paired_t_interval_on_common_seeds():
    better = {**times(0.9), (7, 0): 1000.0}
    worse = {**WORSE, (8, 0): 0.001}
    effect = paired_effect(better, worse)
    b, w = [better[seed] for seed in WORSE], list(WORSE.values())
    interval = ttest_rel(b, w).confidence_interval(0.95)
    assert (effect.seeds, effect.better, effect.worse) == pytest.approx((3, sum(b) / 3, sum(w) / 3))
    assert effect.percent == pytest.approx(100 * (sum(b) - sum(w)) / sum(w))
    assert (effect.low, effect.high) == pytest.approx((10 * interval.low, 10 * interval.high))
    assert effect.verdict == HOLDS and effect.note == ""


def test_pairing_removes_what_both_rows_share():
    worse = {(0, 0): 5.0, (1, 0): 10.0, (2, 0): 20.0}
    assert paired_effect({k: v - 1 for k, v in worse.items()}, worse).verdict == HOLDS
    shuffled = {(0, 0): 19.0, (1, 0): 4.0, (2, 0): 9.0}
    assert paired_effect(shuffled, worse).verdict == UNDECIDED


def test_one_run_of_each_decides_nothing():
    effect = paired_effect({(0, 0): 5.0, (0, 1): 5.0, (1, 0): 5.0}, {(0, 0): 10.0, (2, 0): 10.0})
    assert (effect.seeds, effect.samplings, effect.verdict, effect.note) == (1, 1, UNDECIDED, ONE_SEED)
    assert effect.percent == pytest.approx(-50) and math.isnan(effect.low) and math.isnan(effect.high)


def test_samplings_of_one_training_are_paired_and_said_to_be_no_trainings():
    worse = {(0, s): 10.0 + 0.1 * s for s in range(9)}
    better = {(0, s): 0.5 * v + 0.01 * (s % 2) for (_, s), v in worse.items()}
    effect = paired_effect(better, worse)
    interval = ttest_rel(list(better.values()), list(worse.values())).confidence_interval(0.95)
    assert (effect.seeds, effect.samplings, effect.verdict, effect.note) == (1, 9, HOLDS, SAMPLING_ONLY)
    assert (effect.low, effect.high) == pytest.approx((100 * interval.low / 10.4, 100 * interval.high / 10.4))


def test_samplings_of_several_trainings_are_not_what_the_interval_is_over():
    worse = {(t, s): 10.0 + s for t in (0, 1) for s in range(5)}
    effect = paired_effect({(t, s): v - 1 - 0.01 * t for (t, s), v in worse.items()}, worse)
    assert (effect.seeds, effect.samplings, effect.note) == (2, 5, "")


@pytest.mark.parametrize("seeds", [[(0, 0), (0, 1), (0, 2)], [(0, 0), (1, 0), (2, 0)]])
def test_a_small_difference_says_why_it_decides_nothing(seeds):
    worse = dict(zip(seeds, WORSE.values()))
    better = {seed: 0.99 * value + 0.001 * i for i, (seed, value) in enumerate(worse.items())}
    effect = paired_effect(better, worse)
    assert effect.verdict == UNDECIDED and effect.high < 0
    assert effect.note == (BELOW if seeds[1] == (1, 0) else f"{SAMPLING_ONLY}, {BELOW}")
    assert BELOW not in paired_effect(better, worse, costs_at_most=0.10).note


def test_samplings_are_averaged_inside_a_training():
    worse = {(t, s): 10.0 + s for t in (0, 1, 2) for s in (0, 1)}
    effect = paired_effect({(t, s): v - 1 - 0.1 * t for (t, s), v in worse.items()}, worse)
    averaged = paired_effect({(t, 0): 9.5 - 0.1 * t for t in (0, 1, 2)}, {(t, 0): 10.5 for t in (0, 1, 2)})
    assert effect.seeds == 3
    assert (effect.percent, effect.low, effect.high) == pytest.approx((averaged.percent, averaged.low, averaged.high))


def test_rows_without_a_common_seed_do_not_compare():
    effect = paired_effect({(0, 0): 1.0}, {(1, 0): 9.0})
    assert (effect.seeds, effect.verdict, effect.note) == (0, UNDECIDED, NO_RUNS)
    assert math.isnan(effect.percent)


@pytest.mark.parametrize(("share", "verdict"), [(0.9, HOLDS), (1.1, FAILS), (0.992, UNDECIDED), (1.008, UNDECIDED)])
def test_verdicts_follow_the_numbers_either_way(share, verdict):
    effect = paired_effect(times(share), WORSE)
    assert effect.verdict == verdict and effect.low * effect.high > 0
    assert effect.note == (BELOW if verdict == UNDECIDED else "")


@pytest.mark.parametrize(
    ("change", "low", "high", "verdict"),
    [
        (-5, -8, -2, HOLDS), (5, 2, 8, FAILS), (-5, -11, 1, UNDECIDED), (5, -1, 11, UNDECIDED),
        (-5, -10, 0, UNDECIDED), (-1.29, -1.4, -1.2, UNDECIDED), (1.29, 1.2, 1.4, UNDECIDED),
        (-1.3, -1.4, -1.2, HOLDS),
    ],
)  # fmt: skip
def test_an_interval_with_0_or_a_difference_below_1_3_percent_decides_nothing(change, low, high, verdict):
    assert judge(change, low, high) == verdict


@pytest.mark.parametrize(
    ("change", "low", "high", "verdict"),
    [
        (4, 2, 6, HOLDS), (4, -3, 11, UNDECIDED), (15, 11, 19, FAILS), (15, 9, 21, UNDECIDED),
        (-5, -8, -2, HOLDS),
    ],
)  # fmt: skip
def test_a_cost_is_allowed_where_the_whole_interval_is_below_it(change, low, high, verdict):
    assert judge(change, low, high, costs_at_most=0.10) == verdict


def test_a_cost_is_not_decided_by_one_seed():
    assert paired_effect({(0, 0): 5.0}, {(0, 0): 10.0}, costs_at_most=0.10).verdict == UNDECIDED


def test_floors_are_subtracted_before_comparing():
    better, worse = times(0.9), WORSE
    effect = paired_effect(better, worse, 2.0, 6.0)
    assert effect.worse == pytest.approx(4) and effect.better == pytest.approx(sum(better.values()) / 3 - 2)
    assert paired_effect(better, worse).verdict == HOLDS and effect.verdict == FAILS


@pytest.mark.parametrize("floors", [(2.0, 10.5), (9.5, 2.0), (2.0, 10.0)])
def test_nothing_is_concluded_at_a_floor_on_either_side(floors):
    effect = paired_effect(times(0.9), WORSE, *floors)
    assert (effect.verdict, effect.note) == (UNDECIDED, AT_FLOOR) and math.isnan(effect.percent)


# --- all pairs of an experiment -------------------------------------------------------------------------


def by_claim(experiment: Experiment, records, axis: str) -> list[orderings.Comparison]:
    return [c for c in compare(experiment, records) if c.axis == axis]


def test_every_pair_differs_along_one_axis_only(table1):
    found = compare(table1, generations(table1))
    assert len(found) == sum(len(table1.rows) // len(table1.labels[o["axis"]]) for o in table1.orderings)
    for c in found:
        better, worse = table1.bundles(c.better_row), table1.bundles(c.worse_row)
        assert [axis for axis in better if better[axis] != worse[axis]] == [c.axis]
        assert set(c.others.split("/")) == set(better.values()) & set(worse.values())


def test_the_paper_s_own_difference_stands_beside(table1):
    first = by_claim(table1, {}, "loss")[0]
    assert (first.better_row, first.worse_row) == ("raster_causal/diff/unguided", "raster_causal/ce/unguided")
    assert first.paper_percent == pytest.approx(100 * (19.23 - 19.58) / 19.58)
    assert all(c.paper_percent is None for c in compare(replace(table1, paper={}), {}))


def test_failed_runs_leave_their_seed_out(table1):
    row = "mar/diff/guided"
    made = generations(table1, lambda r, t, s: None if (r, t) == (row, 1) else base(r) + 0.1 * t)
    effects = {c.better_row: c.effect for c in by_claim(table1, made, "loss")}
    assert effects[row].seeds == 2 and effects["mar/diff/unguided"].seeds == 3


def test_the_verdict_above_the_floors_may_be_another(table1):
    """Made-up floors of 4.2 (VQ) and 2.6 (KL): diff is better by 0.5 and further above its own floor."""
    found = by_claim(table1, everything(table1), "loss")
    assert all(c.floors == (2.6, 4.2) and not c.same_tokenizer for c in found)
    unguided = [c for c in found if c.better_row.endswith("unguided")]
    assert {c.effect.verdict for c in unguided} == {HOLDS}
    assert {c.above_floor.verdict for c in unguided} == {FAILS}


def test_above_the_floor_is_for_different_and_measured_tokenizers(table1):
    assert all(c.above_floor is None for c in compare(table1, generations(table1)))
    found = by_claim(table1, everything(table1), "variant")
    assert found and all(c.above_floor is None and c.same_tokenizer for c in found)


def test_costs_at_most_comes_from_the_experiment(table1):
    made = generations(table1, lambda row, t, s: 10.0 + 0.01 * t + 0.5 * row.startswith("mar/"))
    costs = [c for c in compare(table1, made) if c.costs_at_most is not None]
    assert costs and {c.effect.verdict for c in costs} == {HOLDS}
    strict = [{k: v for k, v in item.items() if k != "costs_at_most"} for item in table1.orderings]
    found = [c for c in compare(replace(table1, orderings=strict), made) if c.better_row.startswith("mar/")]
    assert {c.effect.verdict for c in found if c.axis == "variant"} == {FAILS}


def unlike(experiment: Experiment, row: str, seeds=(0, 1, 2), **changes) -> dict[str, Record]:
    """Runs of a row under another protocol."""
    made = [generation(experiment, row, seed, 0, base(row)) for seed in seeds]
    return by_id(*(replace(record, protocol={**record.protocol, **changes}) for record in made))


def test_rows_that_were_not_measured_alike_are_not_compared(table1):
    row = "mar/diff/guided"
    made = {**everything(table1), **unlike(table1, row, num_generated=500, label_mode="unknown")}
    for c in compare(table1, made):
        touched = row in (c.better_row, c.worse_row)
        assert (c.effect.verdict == INCOMPARABLE) == touched
        if c.better_row == row and c.axis == "loss":
            assert c.effect.note == "500 against 1000 generated images; labels unknown against balanced"
            assert math.isnan(c.effect.percent) and math.isnan(c.effect.low) and c.effect.better == base(row)
            assert (c.above_floor.verdict, c.above_floor.note) == (INCOMPARABLE, "")


def test_only_runs_on_common_seeds_must_be_measured_alike(table1):
    row = "mar/diff/guided"
    alone = {**everything(table1), **unlike(table1, row, seeds=(7,), num_generated=500)}
    assert not any(c.effect.verdict == INCOMPARABLE for c in compare(table1, alone))
    one_of_three = {**everything(table1), **unlike(table1, row, seeds=(1,), num_generated=500)}
    effects = {c.better_row: c.effect for c in by_claim(table1, one_of_three, "loss")}
    assert effects[row].verdict == INCOMPARABLE and effects["mar/diff/unguided"].verdict == HOLDS


def test_what_a_distance_does_not_depend_on_keeps_nothing_from_being_compared(table1):
    row = "mar/diff/guided"
    settings = generation(table1, row, 0, 0, 1.0).protocol["settings"]
    made = {**everything(table1), **unlike(table1, row, settings={**settings, "is_splits": 2, "kid_subsets": 3})}
    assert not any(c.effect.verdict == INCOMPARABLE for c in compare(table1, made))


def test_old_records_compare_with_one_another_but_not_with_new_ones(table1):
    new = generations(table1)
    old = by_id(*map(as_before, new.values()))
    assert not any(c.effect.verdict == INCOMPARABLE for c in compare(table1, old))
    mixed = {**new, **{i: r for i, r in old.items() if r.spec["model"]["head"]["kind"] == "diffusion"}}
    assert all(c.effect.verdict == INCOMPARABLE for c in by_claim(table1, mixed, "loss"))


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({"extractor": {"name": "mnist5k", "sha256": "0" * 64}}, False),
        ({"reference": {"name": "mnist5k", "sha256": "0" * 64}}, False),
        ({"num_generated": 200, "label_mode": "unknown"}, True),
    ],
)
def test_a_floor_is_subtracted_where_extractor_and_reference_are_those_of_the_row(table1, changes, alike):
    row = "mar/diff/guided"
    floor = reconstruction(table1, row)
    made = {**everything(table1), **by_id(replace(floor, protocol={**floor.protocol, **changes}))}
    found = by_claim(table1, made, "loss")
    assert all((c.above_floor.verdict != INCOMPARABLE) == alike for c in found)
    assert all(c.effect.verdict != INCOMPARABLE for c in found)
    assert alike or all(c.above_floor.note.startswith("another ") for c in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"axis": "los"}, "no axis 'los', did you mean 'loss'?"),
        ({"better": "dif"}, "no bundle 'dif' on axis 'loss', did you mean 'diff'?"),
        ({"worse": None}, "no bundle 'None' on axis 'loss'"),
    ],
)
def test_a_wrong_ordering_is_the_user_s_error(table1, change, words):
    item = {"claim": "c", "axis": "loss", "better": "diff", "worse": "ce", **change}
    with pytest.raises(UserError, match=re.escape(words)):
        compare(replace(table1, orderings=[item]), {})


@pytest.mark.parametrize("key", ["claim", "axis", "better", "worse"])
def test_an_incomplete_ordering_is_the_user_s_error(table1, key):
    item = {"claim": "c", "axis": "loss", "better": "diff", "worse": "ce"}
    del item[key]
    with pytest.raises(UserError, match=f"no key '{key}'"):
        compare(replace(table1, orderings=[item]), {})


# --- what is written ------------------------------------------------------------------------------------


def written(experiment: Experiment, records) -> str:
    return orderings.markdown(experiment, compare(experiment, records))


def section(text: str, claim: str) -> str:
    return text.split(f"### Claim: {claim}")[1].split("### ")[0]


def test_a_pair_s_line_shows_both_rows_interval_seeds_and_verdict(table1):
    made = generations(table1, lambda row, t, s: 10.0 - (1 + 0.01 * t) * ("diff" in row))
    text = section(written(table1, made), "DiffLoss beats cross-entropy")
    line = next(line for line in text.splitlines() if line.startswith("| raster_causal/unguided"))
    assert [word.strip() for word in line.strip("|").split("|")] == [
        "raster_causal/unguided", "8.99", "10.00", "-10.1 %", "-10.3 to -9.9 %", "3", "holds", "-1.8 %",
    ]  # fmt: skip


def test_the_text_counts_and_does_not_wish(table1):
    contrary = generations(table1, lambda row, t, s: 20 / base(row) + 0.001 * t)
    text = written(table1, contrary)
    loss = section(text, "DiffLoss beats cross-entropy")
    assert "**0 of 8 hold, 8 do not, 0 undecided.**" in loss
    assert "In the paper's numbers 8 of 8 are in this direction." in loss
    assert loss.count("| does not hold") == 8
    wishes = "confirm|reproduc|support|agree|expect|consistent|trend|suggest|nearly|almost|significan|clear"
    assert not re.search(wishes, text, re.IGNORECASE)
    assert all(line.startswith("### Claim: ") for line in text.splitlines() if line.startswith("###"))


def test_one_seed_is_written_as_undecided_whatever_the_numbers(table1):
    text = written(table1, generations(table1, lambda row, *_: 1.0 if "diff" in row else 99.0, seeds=(0,)))
    loss = section(text, "DiffLoss beats cross-entropy")
    assert loss.count("| undecided (one seed)") == 8
    assert "**0 of 8 hold, 0 do not, 8 undecided (one seed: 8).**" in loss
    assert "| holds" not in text and "| does not hold" not in text


def test_a_line_without_comparison_says_why_and_is_counted_apart(table1):
    made = {**everything(table1), **unlike(table1, "mar/diff/guided", num_generated=500)}
    loss = section(written(table1, made), "DiffLoss beats cross-entropy")
    line = next(line for line in loss.splitlines() if line.startswith("| mar/guided"))
    assert [word.strip() for word in line.strip("|").split("|")] == [
        "mar/guided", "6.50", "6.85", "–", "–", "3", "not comparable: 500 against 1000 generated images",
        "not comparable", "-46.3 %",
    ]  # fmt: skip
    assert "**7 of 8 hold, 0 do not, 0 undecided, 1 not comparable.**" in loss
    assert "0 of 8 hold, 6 do not, 1 undecided, 1 not comparable (a row at or below its floor: 1)." in loss


def test_samplings_of_one_training_are_written_as_such(table1):
    made = generations(table1, lambda row, t, s: base(row) + 0.01 * s * ("diff" in row), (0,), (0, 1, 2))
    loss = section(written(table1, made), "DiffLoss beats cross-entropy")
    assert loss.count("| 1 (3 samplings) | holds (sampling seeds only)") == 8
    assert "**8 of 8 hold, 0 do not, 0 undecided (sampling seeds only: 8).**" in loss


def test_a_changed_tokenizer_is_told(table1):
    without = section(written(table1, generations(table1)), "DiffLoss beats cross-entropy")
    assert "changes the tokenizer too" in without and "floors were not measured" in without
    assert "above own floor" not in without
    text = written(table1, everything(table1))
    loss = section(text, "DiffLoss beats cross-entropy")
    assert "a distance of 2.60 (diff) and 4.20 (ce)" in loss
    assert f"0 of 8 hold, 7 do not, 1 undecided ({AT_FLOOR}: 1). A distance is not a sum" in loss
    assert "tokenizer" not in section(text, "random order beats raster")


def test_an_allowed_cost_is_part_of_the_claim(table1):
    cost = section(written(table1, {}), "several tokens a step cost little (at most 10 % worse)")
    assert "In the paper's numbers 4 of 4 are at most 10 % worse." in cost


def test_the_rules_are_written_above(table1):
    rules = written(table1, {}).split("### ")[0]
    for words in (
        "FD-1k mnist5k", "lower is better", "95 %", "not corrected", "at least 1.3 %", "a single run included",
        "'sampling seeds only' says so", "not measured alike are not compared",
    ):  # fmt: skip
        assert words in rules


def test_counts():
    def of(verdict: str, note: str = "") -> Effect:
        return Effect(NAN, NAN, NAN, NAN, NAN, 3, verdict, note)

    one = [of(HOLDS), of(FAILS), of(UNDECIDED), of(UNDECIDED, ONE_SEED), of(UNDECIDED, NO_RUNS)]
    assert orderings.count(one) == "1 of 5 holds, 1 does not, 3 undecided (one seed: 1, no common runs: 1)"
    assert orderings.count([of(HOLDS)] * 2) == "2 of 2 hold, 0 do not, 0 undecided"
    apart = [of(HOLDS, SAMPLING_ONLY), of(UNDECIDED, f"{SAMPLING_ONLY}, {BELOW}"), of(INCOMPARABLE, "a, b; c")]
    assert orderings.count(apart) == (
        "1 of 3 holds, 0 do not, 1 undecided, 1 not comparable (sampling seeds only: 2, below 1.3 %: 1)"
    )


def test_no_claims_no_text(table1):
    assert written(replace(table1, orderings=[]), by_id(generation(table1, "mar/ce/guided", 0, 0, 5.0))) == ""


def test_pairs_of_several_bundles_are_named_line_by_line():
    table2 = load_experiment("table2", "tiny")
    made = generations(table2, lambda row, t, _: 5.0 + len(row) + 0.01 * t)
    made |= by_id(*(reconstruction(table2, row) for row in table2.rows if row.endswith("/guided")))
    text = orderings.markdown(table2, compare(table2, made))
    heading, _, *lines = [[c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if x.startswith("|")]
    assert heading[:3] == ["pair", "first", "second"]
    pairs = [f"{name} against kl16, {g}" for name in ("vq16", "kl8", "kl16_imagenet") for g in ("unguided", "guided")]
    assert [line[0] for line in lines] == pairs
    sentence = text.splitlines()[-1]
    assert all(f"({name})" in sentence for name in ("vq16", "kl8", "kl16_imagenet", "kl16")), sentence
    assert "(at most 100 % worse)" in text
