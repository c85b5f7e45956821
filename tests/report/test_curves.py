"""The figures by kind: curves over a knob and speed against accuracy of systems; places, colours, nothing hidden."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.report.figures import curve, tradeoff
from mar_bench.report.figures import draw as figures
from mar_bench.utils.errors import UserError
from tests.made_up import by_id, everything, generations, speed
from tests.made_up_files import FILES, made_up

STEPS = {"s2": 9.0, "s5": 5.0, "s25": 3.1, "s100": 3.0}
SYSTEMS = {"mar4": 4.0, "mar8": 2.2, "mar16": 2.0, "ce4": 5.0, "ce16": 3.9, "ar": 4.5}
SECONDS = {"mar4": 0.1, "mar8": 0.2, "mar16": 0.5, "ce4": 0.06, "ce16": 0.23, "ar": 0.9}
GPU = "NVIDIA H100 80GB HBM3"


def figure_of(monkeypatch, experiment: Experiment, records) -> Figure:
    """The figure that would have been saved, laid out."""
    kept: list[Figure] = []
    for module in (curve, tradeoff):
        monkeypatch.setattr(module, "save", lambda figure, stem: kept.append(figure) or [])
    figures.draw(experiment, records, Path("unused"))
    kept[0].draw_without_rendering()
    return kept[0]


def of_steps(experiment: Experiment, **kwargs):
    def value(row: str, train: int, _: int) -> float:
        return STEPS[row.split("/")[0]] * (1 if "unguided" in row else 0.6) + 0.1 * train

    return generations(experiment, value, **kwargs)


def timed(experiment: Experiment, row: str, device: str = "Example CPU", factor: float = 1.0):
    made, seconds = speed(experiment, row, device), factor * SECONDS[row]
    quartiles = {"seconds_per_image_q25": 0.95 * seconds, "seconds_per_image_q75": 1.1 * seconds}
    return replace(made, metrics={**made.metrics, "seconds_per_image": seconds, **quartiles})


def of_systems(experiment: Experiment, devices=(("Example CPU", 1.0),)):
    distances = generations(experiment, lambda row, t, s: SYSTEMS[row] + 0.1 * t)
    return {**distances, **by_id(*(timed(experiment, row, *d) for row in experiment.rows for d in devices))}


def drawn(ax) -> dict[str, list[tuple[float, float]]]:
    """Colour -> the points of the line with it."""
    lines = {str(bar[0].get_color()): bar[0] for bar in ax.containers}
    return {colour: list(zip(*map(np.ndarray.tolist, line.get_data()))) for colour, line in lines.items()}


def hollow(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for ax in figure.axes for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
    return [tuple(point) for line in lines for point in line.get_xydata().tolist()]


def entries(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- curves ---------------------------------------------------------------------------------------------


def test_a_curve_has_a_panel_a_metric_and_a_line_a_label(tmp_path, monkeypatch):
    steps = made_up(tmp_path, "steps")
    figure = figure_of(monkeypatch, steps, of_steps(steps))
    assert [ax.get_ylabel() for ax in figure.axes] == ["FD-1k mnist5k", "IS-1k mnist5k"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"denoising steps"}
    first, second = drawn(figure.axes[0]).values()
    expected = [(x, STEPS[f"s{x}"] + 0.1) for x in (2, 5, 25, 100)]
    assert np.allclose(first, expected)
    assert np.allclose(second, [(x, 0.6 * (y - 0.1) + 0.1) for x, y in expected])
    assert entries(figure) == ["without CFG", "with CFG", "± sd over seeds"]
    assert figure.get_suptitle().splitlines()[0] == "Denoising steps"
    assert "tiny scale, not comparable with the paper's FID" in figure.get_suptitle()


def test_a_logarithmic_axis_has_ticks_at_the_values(tmp_path, monkeypatch):
    steps = made_up(tmp_path, "steps")
    ax = figure_of(monkeypatch, steps, of_steps(steps)).axes[0]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["2", "5", "25", "100"]
    assert list(ax.get_xticks(minor=True)) == []


def test_error_bars_are_the_deviation_over_seeds(tmp_path, monkeypatch):
    steps = made_up(tmp_path, "steps")
    ax = figure_of(monkeypatch, steps, of_steps(steps)).axes[0]
    ends = ax.containers[0][2][0].get_segments()
    assert np.allclose([high[1] - low[1] for low, high in ends], 0.2)


def test_one_run_has_the_error_of_its_images(tmp_path, monkeypatch):
    steps = made_up(tmp_path, "steps")
    figure = figure_of(monkeypatch, steps, of_steps(steps, seeds=(0,)))
    assert entries(figure)[-1] == "± standard error of one run"


def test_published_points_are_hollow_and_at_paper_scale_alone(tmp_path, monkeypatch):
    tiny, paper = (made_up(tmp_path, "steps", scale) for scale in ("tiny", "paper"))
    assert hollow(figure_of(monkeypatch, tiny, of_steps(tiny))) == []
    figure = figure_of(monkeypatch, paper, of_steps(paper))
    assert hollow(figure) == [(100.0, 2.85), (100.0, 1.97), (100.0, 214.0), (100.0, 291.2)]
    assert "paper" in entries(figure)
    fewer = replace(paper, rows={row: replace(s, sampling=replace(s.sampling, num_images=5000))
                                 for row, s in paper.rows.items()})  # fmt: skip
    assert hollow(figure_of(monkeypatch, fewer, of_steps(fewer))) == []


def test_rows_without_records_leave_a_gap(tmp_path, monkeypatch):
    steps = made_up(tmp_path, "steps")
    figure = figure_of(monkeypatch, steps, of_steps(steps, rows=["s2/guided", "s100/guided"]))
    assert [[x for x, _ in line] for line in drawn(figure.axes[0]).values()] == [[], [2, 100]]


def test_two_rows_at_one_place_of_a_line_are_a_mistake(tmp_path):
    steps = made_up(tmp_path, "steps")
    one_line = replace(steps, figure={**steps.figure, "line": "steps", "x": "sampling.num_ar_steps"})
    with pytest.raises(UserError, match="rows s2/unguided and s2/guided are both at sampling.num_ar_steps 6 of line"):
        figures.draw(one_line, of_steps(steps), tmp_path / "x")


# --- speed against accuracy -----------------------------------------------------------------------------


def test_points_of_a_system_are_joined_in_the_order_of_their_seconds(tmp_path, monkeypatch):
    systems = made_up(tmp_path, "speed")
    backwards = replace(systems, rows=dict(reversed(systems.rows.items())))
    (ax,) = figure_of(monkeypatch, backwards, of_systems(systems)).axes
    lines = list(drawn(ax).values())
    assert [(0.1, 4.1), (0.2, 2.3), (0.5, 2.1)] in [[tuple(np.round(p, 6)) for p in line] for line in lines]
    assert ax.get_xscale() == "log" and len(lines) == 3
    assert [text.get_text() for text in ax.texts] == ["16", "4", "16", "8", "4"]  # the last system has no steps
    assert not [line for line in ax.get_lines() if line.get_linestyle() == "--"]


def test_bars_in_both_directions(tmp_path, monkeypatch):
    systems = made_up(tmp_path, "speed")
    figure = figure_of(monkeypatch, systems, of_systems(systems))
    assert all(bar.has_xerr and bar.has_yerr for bar in figure.axes[0].containers)
    assert entries(figure)[-1] == "± sd over seeds, quartiles of the time"


def test_each_setting_has_a_panel(tmp_path, monkeypatch):
    systems = made_up(tmp_path, "speed")
    figure = figure_of(monkeypatch, systems, of_systems(systems, (("Example CPU", 1.0), (GPU, 0.1))))
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["Example CPU", GPU]


def test_the_paper_s_points_of_speed_are_hollow_at_paper_scale_alone(tmp_path, monkeypatch):
    tiny, paper = (made_up(tmp_path, "speed", scale) for scale in ("tiny", "paper"))
    assert hollow(figure_of(monkeypatch, tiny, of_systems(tiny))) == []
    figure = figure_of(monkeypatch, paper, of_systems(paper))
    assert hollow(figure) == [(0.288, 1.97)] and "paper (one A100)" in entries(figure)


# --- all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["steps", "speed"])
@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_nothing_is_clipped_or_drawn_over_another(tmp_path, monkeypatch, name, scale):
    experiment = made_up(tmp_path, name, scale)
    long = replace(
        experiment, title="A title that is a good deal longer than usual, and longer than its figure is wide"
    )
    records = of_steps(long) if name == "steps" else of_systems(long, (("Example CPU", 1.0), (GPU, 0.1)))
    figure = figure_of(monkeypatch, long, records)
    page, boxes = figure.bbox, [ax.get_tightbbox() for ax in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts] + [figure.legends[0].get_window_extent()]
    for box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    names = [text.get_window_extent() for ax in figure.axes for text in ax.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(names, 2))


@pytest.mark.parametrize("name", ["steps", "speed"])
def test_three_files_with_equal_bytes_whatever_the_order_of_the_records(tmp_path, name):
    experiment = made_up(tmp_path, name)
    made = list((of_steps if name == "steps" else of_systems)(experiment).values())
    first = figures.draw(experiment, by_id(*made), tmp_path / "a/x")
    random.Random(0).shuffle(made)
    second = figures.draw(experiment, by_id(*made), tmp_path / "b/x")
    assert [path.name for path in first] == ["x.png", "x.pdf", "x.svg"]
    assert all(path.read_bytes() == again.read_bytes() for path, again in zip(first, second))


@pytest.mark.parametrize("name", ["steps", "speed"])
def test_nothing_to_draw_is_said(tmp_path, name):
    experiment = made_up(tmp_path, name)
    with pytest.raises(UserError, match=f"`mar-bench run {name} --scale tiny`"):
        figures.draw(experiment, {}, tmp_path / "x")


def test_without_a_figure_speed_against_distance_as_before(tmp_path, monkeypatch):
    table1 = load_experiment("table1", "tiny")
    called = []
    monkeypatch.setattr(figures, "speed_accuracy", lambda *given: called.append(given) or [])
    figures.draw(table1, everything(table1), tmp_path / "x")
    assert len(called) == 1


def test_a_gallery_is_drawn_by_sample(tmp_path):
    assert "gallery" not in "".join(FILES.values())
    gallery = replace(made_up(tmp_path, "swept"), figure={"kind": "gallery"})
    with pytest.raises(UserError, match="`mar-bench sample swept --scale tiny`"):
        figures.draw(gallery, {}, tmp_path / "x")
