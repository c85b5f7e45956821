"""Which point of a sweep a row stands for, how it was chosen and among which."""

from __future__ import annotations

from typing import Any

from mar_bench.config import Experiment
from mar_bench.report.wording import NOT_CHOSEN, in_units, metric_short, number, with_unit


def footnotes(experiment: Experiment) -> list[str]:
    """One line for each row that has a sweep."""
    return [_footnote(experiment, row) for row in experiment.rows if chosen_words(experiment, row)]


def _footnote(experiment: Experiment, row: str) -> str:
    choice = experiment.choices.get(row)
    if choice is None:
        points, command = (
            len(experiment.sweeps[row].points),
            f"mar-bench run {experiment.id} --scale {experiment.scale}",
        )
        return f"{row}: {NOT_CHOSEN}; `{command}` measures the {points} points of its sweep."
    name = with_unit(experiment, metric_short(experiment, choice["metric"]), choice["metric"])
    chosen = ", ".join(f"{_knob(path)} {_word(value)}" for path, value in choice["chosen"].items())
    knobs = ", ".join(_knob(path) for path in choice["chosen"])
    many = len(choice["chosen"]) > 1
    values = [in_units(experiment, choice["metric"], point["value"]) for point in choice["points"]]
    points = ", ".join(f"{_values(p['values'], many)}: {number(v)}" for p, v in zip(choice["points"], values))
    return (
        f"{row}: {chosen}, chosen by the {'lowest' if choice['minimise'] else 'highest'} {name} on sampling seed "
        f"{choice['sampling_seed']} among {f'({knobs})' if many else knobs} {points}."
    )


def chosen_words(experiment: Experiment, row: str) -> str:
    """``guidance_scale=3;temperature=1``; empty for a row without a sweep."""
    if row in experiment.choices:
        return ";".join(f"{_knob(path)}={_word(v)}" for path, v in experiment.choices[row]["chosen"].items())
    return NOT_CHOSEN if row in experiment.sweeps else ""


def _values(values: dict[str, Any], many: bool) -> str:
    words = ", ".join(_word(value) for value in values.values())
    return f"({words})" if many else words


def _knob(path: str) -> str:
    return path.rpartition(".")[2]


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
