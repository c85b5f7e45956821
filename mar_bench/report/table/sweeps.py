"""Which point of a sweep or tokenizer of a search a row stands for, how it was chosen and among which."""

from __future__ import annotations

from typing import Any

from mar_bench.config.experiment import Experiment
from mar_bench.config.sweeps import Search
from mar_bench.report.format import NOT_CHOSEN, metric_number, metric_of, metric_short, number, with_unit


def footnotes(experiment: Experiment) -> list[str]:
    """One line for each row that has a sweep, and one for all rows of a search that have the same tokenizer."""
    swept = [_of_sweep(experiment, row) for row in experiment.rows if row in experiment.sweeps]
    return [*(_of_search(experiment, search) for search in experiment.searches), *swept]


def _of_search(experiment: Experiment, search: Search) -> str:
    rows, choice = ", ".join(search.rows), experiment.choices.get(search.judge)
    if choice is None:
        return f"{rows}: {_to_be_chosen(experiment, len(search.points), 'tokenizers of their search')}."
    distance = f"reconstruction {metric_of(experiment, 'fd', images=None)}"
    points = "; ".join(
        f"{_setting(point['values'])}: {number(point['reconstruction'])} and {number(point['loss'])}, "
        f"score {number(point['value'])}"
        for point in choice["points"]
    )
    steps = search.points[0][1].train.steps
    return (
        f"{rows}: tokenizer with {_setting(choice['chosen'])}, chosen among ({distance} and held-out loss of a "
        f"training of {steps} steps of {search.judge}) {points}. The score, lower is better, is the "
        "sum of both, each as a multiple of the best."
    )


def _of_sweep(experiment: Experiment, row: str) -> str:
    choice = experiment.choices.get(row)
    if choice is None:
        return f"{row}: {_to_be_chosen(experiment, len(experiment.sweeps[row].points), 'points of its sweep')}."
    metric = choice["metric"]
    name = with_unit(experiment, metric_short(experiment, metric), metric)
    knobs, many = ", ".join(map(_knob, choice["chosen"])), len(choice["chosen"]) > 1
    points = ", ".join(
        f"{_values(point['values'], many)}: {metric_number(experiment, metric, point['value'])}"
        for point in choice["points"]
    )
    return (
        f"{row}: {_setting(choice['chosen'])}, chosen by the {'lowest' if choice['minimise'] else 'highest'} {name} on "
        f"sampling seed {choice['sampling_seed']} among {f'({knobs})' if many else knobs} {points}."
    )


def _to_be_chosen(experiment: Experiment, points: int, what: str) -> str:
    return f"{NOT_CHOSEN}; `mar-bench run {experiment.id} --scale {experiment.scale}` measures the {points} {what}"


def chosen_words(experiment: Experiment, row: str) -> str:
    """``guidance_scale=3;temperature=1``; empty for a row of which nothing is to be chosen."""
    if row in experiment.choices:
        return ";".join(f"{_knob(path)}={_word(v)}" for path, v in experiment.choices[row]["chosen"].items())
    return NOT_CHOSEN if experiment.is_open(row) else ""


def _setting(values: dict[str, Any]) -> str:
    """``guidance_scale 3, temperature 1``."""
    return ", ".join(f"{_knob(path)} {_word(value)}" for path, value in values.items())


def _values(values: dict[str, Any], many: bool) -> str:
    words = ", ".join(_word(value) for value in values.values())
    return f"({words})" if many else words


def _knob(path: str) -> str:
    return path.rpartition(".")[2]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
