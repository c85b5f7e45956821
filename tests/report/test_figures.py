"""Curves, speed against distance and sheets of samples: places, colours, published points, nothing overlaps."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.report.figures import draw as figures
from mar_bench.report.figures import sheets
from mar_bench.report.figures.sheets import neighbour_page
from mar_bench.utils.errors import UserError
from tests.made_up import base, by_id, everything, generations, made_up, speed

ROW = "mar/diff/guided"
GPU = "NVIDIA H100 80GB HBM3"
STEPS = {"s2": 9.0, "s5": 5.0, "s25": 3.1, "s100": 3.0}
SYSTEMS = {"mar4": 4.0, "mar8": 2.2, "mar16": 2.0, "ce4": 5.0, "ce16": 3.9, "ar": 4.5}
SECONDS = {"mar4": 0.1, "mar8": 0.2, "mar16": 0.5, "ce4": 0.06, "ce16": 0.23, "ar": 0.9}


@pytest.fixture
def figure_of(monkeypatch):
    """Draws the figure that would be saved."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path, about, **layout: kept.append(figure))

    def drawn(experiment: Experiment, records) -> Figure:
        figures.draw(experiment, records, Path("unused"))
        kept[-1].draw_without_rendering()
        return kept[-1]

    return drawn


def of_steps(experiment: Experiment, **kwargs):
    def value(row: str, train: int, _: int) -> float:
        return STEPS[row.split("/")[0]] * (1 if "unguided" in row else 0.6) + 0.1 * train

    return generations(experiment, value, **kwargs)


def of_systems(experiment: Experiment, devices=(("Example CPU", 1.0),)):
    made = generations(experiment, lambda row, t, s: SYSTEMS[row] + 0.1 * t)
    for row, (device, factor) in itertools.product(experiment.rows, devices):
        record, seconds = speed(experiment, row, device), factor * SECONDS[row]
        quartiles = {"seconds_per_image_q25": 0.95 * seconds, "seconds_per_image_q75": 1.1 * seconds}
        made |= by_id(replace(record, metrics={**record.metrics, "seconds_per_image": seconds, **quartiles}))
    return made


def lines(ax) -> list[list[tuple[float, float]]]:
    """The points of each line with error bars, rounded."""
    bars = [bar for bar in ax.containers if isinstance(bar, ErrorbarContainer)]
    return [[tuple(np.round(point, 9).tolist()) for point in bar[0].get_xydata()] for bar in bars]


def heights(ax) -> set[float]:
    """Of the vertical error bars."""
    bars = [bar[2][-1].get_segments() for bar in ax.containers]
    return {round(float(np.ptp(segment[:, 1])), 6) for of_line in bars for segment in of_line}


def hollow(figure: Figure) -> list[tuple[float, float]]:
    found = [line for ax in figure.axes for line in ax.get_lines() if line.get_fillstyle() == "none"]
    return [tuple(point) for line in found for point in line.get_xydata().tolist()]


def entries(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- curves ---------------------------------------------------------------------------------------------


def test_a_curve_has_a_panel_a_metric_and_a_line_a_label(tmp_path, figure_of):
    steps = made_up("steps")
    figure = figure_of(steps, of_steps(steps))
    assert [ax.get_ylabel() for ax in figure.axes] == ["FD-1k mnist5k", "IS-1k mnist5k"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"denoising steps"}
    first, second = lines(figure.axes[0])
    expected = [(x, STEPS[f"s{x}"] + 0.1) for x in (2, 5, 25, 100)]
    assert np.allclose(first, expected)
    assert np.allclose(second, [(x, 0.6 * (y - 0.1) + 0.1) for x, y in expected])
    assert heights(figure.axes[0]) == {0.2}
    assert entries(figure) == ["without CFG", "with CFG", "bars: ± std over seeds"]
    ax = figure.axes[0]
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["2", "5", "25", "100"]
    assert figure.get_suptitle().splitlines()[0] == "Denoising steps" and "tiny scale" in figure.get_suptitle()
    assert entries(figure_of(steps, of_steps(steps, seeds=(0,))))[-1] == "bars: ± standard error of one run"


@pytest.mark.parametrize(
    ("name", "records", "points"),
    [
        ("steps", of_steps, [(100.0, 2.85), (100.0, 1.97), (100.0, 214.0), (100.0, 291.2)]),
        ("speed", of_systems, [(0.288, 1.97)]),
    ],
)
def test_published_points_are_hollow_and_only_where_they_compare(tmp_path, figure_of, name, records, points):
    tiny, paper = (made_up(name, scale) for scale in ("tiny", "paper"))
    assert hollow(figure_of(tiny, records(tiny))) == []
    figure = figure_of(paper, records(paper))
    assert hollow(figure) == points and any(text.startswith("paper") for text in entries(figure))
    rows = {row: replace(s, sampling=replace(s.sampling, num_images=5000)) for row, s in paper.rows.items()}
    fewer = replace(paper, rows=rows)
    assert hollow(figure_of(fewer, records(fewer))) == []


# --- speed against distance -----------------------------------------------------------------------------


def test_points_of_a_system_are_joined_by_seconds_and_named(tmp_path, figure_of):
    systems = made_up("speed")
    backwards = replace(systems, rows=dict(reversed(systems.rows.items())))
    (ax,) = figure_of(backwards, of_systems(systems)).axes
    assert [(0.1, 4.1), (0.2, 2.3), (0.5, 2.1)] in lines(ax) and len(lines(ax)) == 3
    assert sorted(text.get_text() for text in ax.texts) == ["16", "16", "4", "4", "8"]  # one system has no steps
    assert all(bar.has_xerr and bar.has_yerr for bar in ax.containers) and ax.get_xscale() == "log"


def test_every_row_with_both_numbers_is_a_point(table1, figure_of):
    figure = figure_of(table1, everything(table1))
    assert [ax.get_title() for ax in figure.axes] == ["without CFG", "with CFG"]
    for ax, guidance in zip(figure.axes, ("unguided", "guided"), strict=True):
        rows = [row for row in table1.rows if row.endswith(f"/{guidance}")]
        expected = [(speed(table1, r).metrics["seconds_per_image"], base(r) + 0.1) for r in rows]
        assert np.allclose(sorted(itertools.chain(*lines(ax))), sorted(expected))
        assert ax.get_ylim()[0] == 0 and heights(ax) == {0.2}
    assert "bars: ± std over seeds, quartiles of the time" in entries(figure)
    made = {**generations(table1, rows=[ROW, "mar/ce/guided"]), **by_id(speed(table1, ROW))}
    assert [len(lines(ax)) for ax in figure_of(table1, made).axes] == [1]


def test_reconstruction_floors_are_dashed_lines(table1, figure_of):
    def dashed(records):
        found = [line for ax in figure_of(table1, records).axes for line in ax.get_lines()]
        return sorted({line.get_ydata()[0] for line in found if line.get_linestyle() == "--"})

    assert dashed(everything(table1)) == [2.6, 4.2]
    assert dashed({**generations(table1), **by_id(*(speed(table1, row) for row in table1.rows))}) == []


@pytest.mark.parametrize("name", ["table1", "heads", "fig5", "data_budget"])
def test_points_can_be_told_apart_without_colour(name, figure_of):
    experiment = load_experiment(name, "tiny")
    made = everything(experiment, lambda row, *_: 9.0 + list(experiment.rows).index(row))
    made = {i: replace(r, training={**r.training, "steps": 100}) for i, r in made.items()}
    for ax in figure_of(experiment, made).axes:
        looks = set()
        for bar in ax.containers:
            line = bar[0]
            red, green, blue = to_rgb(line.get_color())
            shape = line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "white"
            looks.add((*shape, round((0.299 * red + 0.587 * green + 0.114 * blue) / 0.15)))
        assert len(looks) == len(ax.containers) > 1


@pytest.mark.filterwarnings("error")
def test_each_device_has_panels_of_its_own(table1, figure_of):
    figure = figure_of(table1, {**everything(table1), **by_id(speed(table1, ROW, GPU, 0.013))})
    cpu, _, empty, single = figure.axes
    assert "Example CPU" in cpu.get_xlabel() and GPU in single.get_xlabel()
    assert not empty.axison and single.get_ylabel() == "FD-1k mnist5k"
    low, high = single.get_xlim()
    assert sum(low <= tick <= high for tick in single.get_xticks()) in (2, 3)


# --- all figures ----------------------------------------------------------------------------------------


def test_nothing_is_drawn_over_anything_else(tmp_path, figure_of):
    title = "A title that is a good deal longer than usual, and than its figure is wide"
    systems = replace(made_up("speed", "paper"), title=title)
    devices = (("Example CPU", 1.0), (f"{GPU} in a machine whose name is a good deal longer than usual", 0.1))
    figure = figure_of(systems, of_systems(systems, devices))
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts] + [figure.legends[0].get_window_extent()]
    names = [t.get_window_extent() for ax in figure.axes for t in ax.texts if t.get_text()]
    for of in (boxes, names):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(of, 2))


def test_three_files_with_equal_bytes_whatever_the_order_of_the_records(tmp_path):
    experiment = made_up("speed")
    made = list(of_systems(experiment).values())
    first = figures.draw(experiment, by_id(*made), tmp_path / "a/x")
    random.Random(0).shuffle(made)
    second = figures.draw(experiment, by_id(*made), tmp_path / "b/x")
    assert [path.name for path in first] == ["x.png", "x.pdf", "x.svg"]
    for path, again, begin in zip(first, second, (b"\x89PNG", b"%PDF", b"<?xml")):
        assert path.read_bytes().startswith(begin) and path.read_bytes() == again.read_bytes()


def test_nothing_to_draw_is_an_error(table1, tmp_path):
    distances, seconds = generations(table1, rows=[ROW]), by_id(speed(table1, "mar/ce/guided"))
    failed = generations(table1, lambda *_: None)
    for records in ({}, distances, {**seconds, **failed}, {**distances, **seconds}):
        with pytest.raises(UserError, match="no rows with a speed and a generation record; `mar-bench run"):
            figures.draw(table1, records, tmp_path / "x")
    with pytest.raises(UserError, match="no generation records"):
        figures.draw(made_up("steps"), {}, tmp_path / "x")
    with pytest.raises(UserError, match="`mar-bench sample table1 --scale tiny`"):
        figures.draw(replace(table1, figure={"kind": "gallery"}), {}, tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


# --- sheets of samples ----------------------------------------------------------------------------------


def grey(count: int, size: int = 4) -> np.ndarray:
    """Image i is of value i throughout."""
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (count, 1, size, size)).copy()


@pytest.mark.parametrize(
    ("count", "classes", "rows", "columns"), [(7, 3, 3, 3), (100, 3, 3, 3), (100, 1000, 3, 10), (2, 10, 1, 2)]
)
def test_image_i_stands_in_column_i_mod_classes_with_white_between(count, classes, rows, columns):
    sheet = sheets.panel(grey(count), classes)
    assert sheet.shape == (5 * rows - 1, 5 * columns - 1, 3)
    for i in range(min(count, rows * columns)):
        top, left = 5 * (i // columns), 5 * (i % columns)
        assert np.allclose(sheet[top : top + 4, left : left + 4], i / 255)
    assert (sheet[4::5] == 1).all() and (sheet[:, 4::5] == 1).all()
    inverted = sheets.panel(grey(count), classes, inverted=True)
    assert np.allclose(inverted[:4, :4], 1 - sheet[:4, :4]) and (inverted[4:5] == 1).all()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def test_only_dark_grey_images_are_inverted_and_all_alike():
    dark, light, night = (np.full((10, c, 16, 16), v, np.uint8) for c, v in ((1, 0), (1, 200), (3, 0)))
    assert sheets.is_dark([dark, dark]) and not sheets.is_dark([night]) and not sheets.is_dark([dark, light])


def test_a_sheet_has_the_lines_and_columns_that_have_images(table1, tmp_path):
    def size(*rows: str) -> tuple[int, ...]:
        return pixels(sheets.sample_grid(table1, {r: grey(30, 16) for r in rows}, tmp_path / "x.png")).shape

    one, wide, tall = size(ROW), size(ROW, "mar/diff/unguided"), size(ROW, "mar/ce/guided")
    assert (wide[0], wide[1]) == (one[0], 2 * one[1]) and tall[1] == one[1] and tall[0] > 1.5 * one[0]
    assert size(ROW, "mar/ce/unguided") == (tall[0], wide[1])
    with pytest.raises(UserError, match="`mar-bench run table1 --scale tiny`"):
        sheets.sample_grid(table1, {ROW: grey(0)}, tmp_path / "x.png")


def test_the_page_of_neighbours_is_a_png(table1, tmp_path):
    rng = np.random.default_rng(0)
    found = SimpleNamespace(
        closeness=rng.random(20), real=rng.random(10), samples=rng.integers(0, 255, (4, 1, 8, 8), np.uint8),
        found=rng.integers(0, 255, (4, 3, 1, 8, 8), np.uint8),
    )  # fmt: skip
    assert pixels(neighbour_page(table1, ROW, found, tmp_path / "x.png")).min() < 100
