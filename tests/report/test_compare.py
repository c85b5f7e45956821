"""Two sets of runs side by side: paired where seeds are common, by the jackknife where there is one run of each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.records.record import Record
from mar_bench.report.compare import markdown
from mar_bench.report.frame import Spread
from mar_bench.report.stats import paired_difference, unpaired_difference
from mar_bench.utils.errors import UserError
from tests.made_up import as_before, generation, reconstruction, speed

ONE, OTHER = "mar/diff/guided", "mar/ce/guided"
FIRST, SECOND = (5.0, 5.2, 5.1), (5.6, 5.7, 5.9)


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


def runs(experiment: Experiment, row: str, values, sampling: bool = False) -> list[Record]:
    """A run for each value, on training seeds 0, 1, ... or on sampling seeds of training 0."""
    seeds = [(0, i) if sampling else (i, 0) for i in range(len(values))]
    return [generation(experiment, row, *seed, value) for seed, value in zip(seeds, values)]


def lines(text: str) -> dict[str, list[str]]:
    """Metric -> the other cells of its line, of the first table."""
    block = text[text.index("| metric") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block]
    return {metric: rest for metric, *rest in cells}


# --- differences ----------------------------------------------------------------------------------------


def test_a_paired_difference_is_in_the_metric_s_own_unit():
    first, second = (dict(zip([(0, 0), (1, 0), (2, 0)], side)) for side in (FIRST, SECOND))
    found = paired_difference({**first, (9, 0): 1e6}, {**second, (8, 0): -1e6})
    interval = ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.value == pytest.approx(found.first - found.second) == pytest.approx(-1.9 / 3)
    assert (found.over, found.trainings, found.samplings) == ("training", 3, 1)


def test_one_common_run_has_no_interval_and_none_no_difference():
    one = paired_difference({(0, 0): 1.0}, {(0, 0): 3.0})
    assert (one.value, one.over, one.trainings) == (-2.0, None, 1) and math.isnan(one.low)
    none = paired_difference({(0, 0): 1.0}, {(1, 0): 3.0})
    assert math.isnan(none.value) and (none.over, none.trainings, none.samplings) == (None, 0, 0)


def test_standard_errors_of_two_runs_add_in_squares():
    sides = (Spread(mean, sd, 1, "images", (0,), (0,)) for mean, sd in ((5.0, 0.3), (6.0, 0.4)))
    found = unpaired_difference(*sides)
    assert (found.value, found.low, found.high, found.over) == pytest.approx((-1.0, -2.0, 0.0, "images"))


# --- what is written ------------------------------------------------------------------------------------


def test_several_trainings_are_compared_pair_by_pair(table1):
    text = markdown("diff", runs(table1, ONE, FIRST), "ce", runs(table1, OTHER, SECOND))
    found = lines(text)
    assert text.startswith("# diff against ce\n\n## Generated images\n\n| metric ")
    assert found["fd_mnist5k"] == [
        "5.10 ± 0.10", "5.73 ± 0.15", "-0.63", "-11.0 %", "-1.01 to -0.25", "3", "lower",
    ]  # fmt: skip
    assert found["is_mnist5k"][2:] == ["+0.063", "+0.8 %", "+0.025 to +0.10", "3", "higher"]
    assert found["recall_mnist5k"][-1] == "undecided (the interval contains 0)"
    assert "- diff, fd_mnist5k: ± is the standard deviation over 3 training runs (training seeds 0, 1, 2;" in text
    assert "95 % t-interval" in text and "jackknife" not in text


def test_every_common_metric_has_a_line_and_no_other(table1):
    ones, others = runs(table1, ONE, FIRST), runs(table1, OTHER, SECOND)
    assert list(lines(markdown("a", ones, "b", others))) == [
        "fd_mnist5k", "fd_mnist5k_heldout", "is_mnist5k", "kid_mnist5k", "precision_mnist5k", "recall_mnist5k",
        "copied_mnist5k", "accuracy_mnist5k",
    ]  # fmt: skip
    assert list(lines(markdown("a", ones, "b", [as_before(r) for r in others]))) == [
        "fd_mnist5k", "fd_mnist5k_heldout", "is_mnist5k", "accuracy_mnist5k",
    ]  # fmt: skip


def test_records_are_not_compared_with_themselves(table1):
    ones = runs(table1, ONE, FIRST)
    assert "The same records on both sides." in markdown("a", ones, "b", ones)


def test_samplings_of_one_training_are_said_to_be_no_trainings(table1):
    sides = runs(table1, ONE, FIRST, sampling=True), runs(table1, OTHER, SECOND, sampling=True)
    found = lines(markdown("a", sides[0], "b", sides[1]))["fd_mnist5k"]
    assert found[-2:] == ["1 (3 samplings)", "lower (sampling seeds only)"]


def test_two_single_runs_are_compared_by_the_chance_of_their_images(table1):
    text = markdown("a", runs(table1, ONE, [5.0]), "b", runs(table1, OTHER, [6.0]))
    found = lines(text)
    half = 2 * math.hypot(0.1, 0.12)
    assert found["fd_mnist5k"] == [
        "5.00 ± 0.10", "6.00 ± 0.12", "-1.00", "-16.7 %", f"{-1 - half:.2f} to {-1 + half:.2f}", "1",
        "differs (jackknife)",
    ]  # fmt: skip
    assert found["is_mnist5k"][-1] == "undecided (jackknife, the interval contains 0)"
    assert found["accuracy_mnist5k"][-3:] == ["–", "1", "undecided (one seed)"]
    assert "± 2 standard errors" in text and "t-interval" not in text
    assert "- a, fd_mnist5k: ± is the jackknife's standard error (10 groups of the images) of one run" in text


def test_two_single_runs_need_no_common_seed(table1):
    other = [generation(table1, OTHER, 3, 4, 6.0)]
    assert lines(markdown("a", runs(table1, ONE, [5.0]), "b", other))["fd_mnist5k"][-1] == "differs (jackknife)"


def test_several_runs_without_a_common_seed_are_not_paired(table1):
    others = [generation(table1, OTHER, seed, 7, 6.0) for seed in (0, 1)]
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", others))["fd_mnist5k"]
    assert found[2:] == ["–", "–", "–", "0", "undecided (no common runs)"]


def test_a_single_run_against_several_decides_nothing(table1):
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", runs(table1, OTHER, [6.0])))["fd_mnist5k"]
    assert found[1:] == ["6.00 ± 0.12", "-1.00", "-16.7 %", "–", "1", "undecided (one seed)"]


def test_a_small_difference_of_distances_alone_is_undecided(table1):
    second = [value * 1.01 for value in FIRST]
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", runs(table1, OTHER, second)))
    assert found["fd_mnist5k"][-1] == "undecided (below 1.3 %)"
    assert found["is_mnist5k"][3] == "+0.1 %" and found["is_mnist5k"][-1] == "higher"


def test_there_is_no_share_of_nothing(table1):
    def without_copies(row, value):
        metrics = generation(table1, row, 0, 0, 5.0).metrics
        return [replace(r, metrics={**metrics, "copied_mnist5k": value}) for r in runs(table1, row, FIRST)]

    found = lines(markdown("a", without_copies(ONE, 0.1), "b", without_copies(OTHER, 0.0)))["copied_mnist5k"]
    assert found[2:] == ["+0.10", "–", "+0.10 to +0.10", "3", "higher"]


def test_what_was_not_measured_alike_is_not_compared(table1):
    others = runs(table1, OTHER, SECOND)
    settings = {**others[0].protocol["settings"], "kid_subsets": 10}
    others = [replace(r, protocol={**r.protocol, "settings": settings}) for r in others]
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", others))
    assert found["kid_mnist5k"][2:] == [
        "–", "–", "–", "–", "not comparable: KID over 100 subsets of 500 against 10 subsets of 500",
    ]  # fmt: skip
    assert found["fd_mnist5k"][-1] == "lower"


def test_metrics_of_different_extractors_are_named_and_not_compared(table1):
    paper = load_experiment("table1", "paper")
    ones, others = runs(table1, ONE, [5.0]), runs(paper, ONE, [2.0])
    for record in others:
        record.protocol["extractor"] |= {"name": "inception", "sha256": "0" * 64}
    found = lines(markdown("a", ones, "b", others))
    assert "another feature extractor (mnist5k against inception)" in found["fd_mnist5k / fid"][-1]


def test_reconstructions_have_a_table_of_their_own(table1):
    def of(row):
        return [*runs(table1, row, FIRST), reconstruction(table1, row), speed(table1, row)]

    text = markdown("a", of(ONE), "b", of(OTHER))
    assert text.count("\n## ") == 2
    table = lines(text.split("## Reconstructions")[1])
    assert table["fd_mnist5k"][-1] == "differs (jackknife)"
    assert "kid_mnist5k_real" not in table, "of the same real images"
    assert "seconds_per_image" not in text


def test_failed_runs_are_left_out_and_counted(table1):
    ones = [*runs(table1, ONE, FIRST), generation(table1, ONE, 7, 0, None)]
    text = markdown("a", ones, "b", runs(table1, OTHER, SECOND))
    assert text.endswith("\n\nLeft out: 1 failed run of a.\n")
    nothing = markdown("a", [ones[-1]], "b", ones)
    assert "There is no metric that both have." in nothing and "| metric" not in nothing


def test_records_of_several_rows_cannot_be_paired(table1):
    mixed = [*runs(table1, ONE, [5.0]), *runs(table1, OTHER, [6.0])]
    with pytest.raises(UserError, match="a: records .* both have training seed 0 and sampling seed 0; compare one row"):
        markdown("a", mixed, "b", mixed)
