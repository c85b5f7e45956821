"""Two sets of runs side by side: paired on common seeds, by the jackknife where each side has a single run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mar_bench.config.experiment import Experiment
from mar_bench.records.record import Record
from mar_bench.report.compare import markdown
from mar_bench.utils.errors import UserError
from tests.made_up import generation, reconstruction, speed

ONE, OTHER = "mar/diff/guided", "mar/ce/guided"
FIRST, SECOND = (5.0, 5.2, 5.1), (5.6, 5.7, 5.9)


def runs(experiment: Experiment, row: str, values, seeds=((0, 0), (1, 0), (2, 0))) -> list[Record]:
    """A run for each value, on (training, sampling) seeds in turn."""
    return [generation(experiment, row, *seed, value) for seed, value in zip(seeds, values)]


def lines(text: str) -> dict[str, list[str]]:
    """Metric -> the other cells of its line, in the first table."""
    block = text[text.index("| metric") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block]
    return {metric: rest for metric, *rest in cells}


def test_several_trainings_are_paired(table1):
    text = markdown("diff", runs(table1, ONE, FIRST), "ce", runs(table1, OTHER, SECOND))
    found = lines(text)
    assert text.startswith("# diff against ce\n\n## Generated images\n\n| metric ")
    assert found["fd_mnist5k"] == [
        "5.10 ± 0.10", "5.73 ± 0.15", "-0.63", "-11.0 %", "-1.01 to -0.25", "3", "lower",
    ]  # fmt: skip
    assert found["is_mnist5k"][2:] == ["+0.063", "+0.8 %", "+0.025 to +0.10", "3", "higher"]
    assert found["recall_mnist5k"][-1] == "undecided" and len(found) == 8
    assert "over 3 training runs" in text and "95 % t-interval" in text
    others = runs(table1, OTHER, [value * 1.01 for value in FIRST])
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", others))
    assert found["fd_mnist5k"][-1] == "undecided (below 1.3 %)"  # the smallest effect is of distances only
    assert found["is_mnist5k"][3] == "+0.1 %" and found["is_mnist5k"][-1] == "higher"


@pytest.mark.parametrize("seed", [(0, 0), (3, 4)])
def test_two_single_runs_are_compared_by_the_jackknife_whatever_their_seeds(table1, seed):
    text = markdown("a", runs(table1, ONE, [5.0]), "b", runs(table1, OTHER, [6.0], [seed]))
    found, half = lines(text), 2 * math.hypot(0.1, 0.12)
    assert found["fd_mnist5k"] == [
        "5.00 ± 0.10", "6.00 ± 0.12", "-1.00", "-16.7 %", f"{-1 - half:.2f} to {-1 + half:.2f}", "1",
        "differs (jackknife)",
    ]  # fmt: skip
    assert found["is_mnist5k"][-1] == "undecided (jackknife)"
    assert found["accuracy_mnist5k"][-1] == f"undecided ({'one seed' if seed == (0, 0) else 'no common runs'})"
    assert "± 2 standard errors" in text


def test_without_two_common_runs_nothing_is_decided(table1):
    others = runs(table1, OTHER, [6.0, 6.0], [(0, 7), (1, 7)])
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", others))["fd_mnist5k"]
    assert found[2:] == ["–", "–", "–", "0", "undecided (no common runs)"]
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", runs(table1, OTHER, [6.0])))["fd_mnist5k"]
    assert found[1:] == ["6.00 ± 0.12", "-1.00", "-16.7 %", "–", "1", "undecided (one seed)"]


def test_metrics_under_different_protocols_are_not_compared(table1):
    others = runs(table1, OTHER, SECOND)
    settings = {**others[0].protocol["settings"], "kid_subsets": 10}
    others = [replace(r, protocol={**r.protocol, "settings": settings}) for r in others]
    found = lines(markdown("a", runs(table1, ONE, FIRST), "b", others))
    assert found["kid_mnist5k"][2:] == [
        "–", "–", "–", "3", "not comparable: KID over 100 against 10 subsets",
    ]  # fmt: skip
    assert found["fd_mnist5k"][-1] == "lower"


def test_the_same_records_or_images_are_not_compared(table1):
    ones, others = runs(table1, ONE, FIRST), runs(table1, OTHER, SECOND)
    assert "The same records on both sides." in markdown("a", ones, "b", ones)
    others = [replace(other, protocol={**one.protocol}) for one, other in zip(ones, others)]
    assert "the same images" in lines(markdown("a", ones, "b", others))["fd_mnist5k"][-1]


def test_reconstructions_have_their_own_table_and_speed_none(table1):
    sides = [[*runs(table1, row, FIRST), reconstruction(table1, row), speed(table1, row)] for row in (ONE, OTHER)]
    text = markdown("a", sides[0], "b", sides[1])
    assert text.count("\n## ") == 2 and "seconds_per_image" not in text
    table = lines(text.split("## Reconstructions")[1])
    assert table["fd_mnist5k"][-1] == "differs (jackknife)"
    assert "kid_mnist5k_real" not in table  # both describe the same real images


def test_failed_runs_are_left_out_and_counted(table1):
    ones = [*runs(table1, ONE, FIRST), generation(table1, ONE, 7, 0, None)]
    assert "Failed runs of a, left out: 1." in markdown("a", ones, "b", runs(table1, OTHER, SECOND))
    nothing = markdown("a", [ones[-1]], "b", ones)
    assert "no metric that both have" in nothing and "| metric" not in nothing


def test_records_of_several_rows_cannot_be_paired(table1):
    mixed = [*runs(table1, ONE, [5.0]), *runs(table1, OTHER, [6.0])]
    with pytest.raises(UserError, match=r"a: records .* have the same .* \(0, 0\)"):
        markdown("a", mixed, "b", mixed)
