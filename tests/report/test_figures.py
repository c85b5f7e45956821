"""The figure of speed against distance and the sheet of samples: files, places, colours, nothing clipped."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from PIL import Image

from mar_bench.config.experiment import Experiment, load_experiment
from mar_bench.report import samples
from mar_bench.report.figures import floor_lines
from mar_bench.report.figures import speed as plots
from mar_bench.utils.errors import UserError
from tests.made_up import base, by_id, everything, generations, reconstruction, speed

ROW = "mar/diff/guided"
GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def table1() -> Experiment:
    return load_experiment("table1", "tiny")


# --- speed against distance -----------------------------------------------------------------------------


def figure_of(monkeypatch, experiment: Experiment, records) -> Figure:
    """The figure that would have been saved, laid out."""
    kept: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, stem: kept.append(figure) or [])
    plots.speed_accuracy(experiment, records, Path("unused"))
    kept[0].draw_without_rendering()
    return kept[0]


def points(figure: Figure) -> list[list[tuple[float, float]]]:
    """The (seconds, distance) of every marker, panel by panel."""
    return [
        [tuple(p) for c in ax.collections if isinstance(c, PathCollection) for p in c.get_offsets().tolist()]
        for ax in figure.axes
    ]


def test_three_files_with_equal_bytes_whatever_the_order_of_the_records(table1, tmp_path):
    made = list(everything(table1).values())
    first = plots.speed_accuracy(table1, by_id(*made), tmp_path / "a/table1")
    random.Random(0).shuffle(made)
    second = plots.speed_accuracy(table1, by_id(*made), tmp_path / "b/table1")
    assert [path.name for path in first] == ["table1.png", "table1.pdf", "table1.svg"]
    for path, again, begin in zip(first, second, (b"\x89PNG", b"%PDF", b"<?xml")):
        assert path.read_bytes().startswith(begin) and path.read_bytes() == again.read_bytes()


def test_every_row_is_a_point_at_its_seconds_and_mean(table1, monkeypatch):
    figure = figure_of(monkeypatch, table1, everything(table1))
    for panel, guidance in zip(points(figure), ("unguided", "guided"), strict=True):
        rows = [row for row in table1.rows if row.endswith(f"/{guidance}")]
        expected = [(speed(table1, r).metrics["seconds_per_image"], base(r) + 0.1) for r in rows]
        assert np.allclose(sorted(panel), sorted(expected))
    assert [ax.get_title() for ax in figure.axes] == ["without CFG", "with CFG"]
    assert all(ax.get_xscale() == "log" and ax.get_ylim()[0] == 0 for ax in figure.axes)


def test_rows_with_one_of_both_numbers_are_left_out(table1, monkeypatch):
    made = {**generations(table1, rows=[ROW, "mar/ce/guided"]), **by_id(speed(table1, ROW))}
    assert [len(panel) for panel in points(figure_of(monkeypatch, table1, made))] == [1]


def test_floors_are_drawn_as_dashed_lines(table1, monkeypatch):
    def dashed(records):
        lines = [line for ax in figure_of(monkeypatch, table1, records).axes for line in ax.get_lines()]
        return sorted({line.get_ydata()[0] for line in lines if line.get_linestyle() == "--"})

    made = {**generations(table1), **by_id(*(speed(table1, row) for row in table1.rows))}
    assert dashed(everything(table1)) == [2.6, 4.2]
    assert dashed({**made, **by_id(reconstruction(table1, ROW))}) == [2.6]
    assert dashed(made) == []


def test_floors_without_a_colour_are_named_at_their_ends(monkeypatch):
    both = replace(load_experiment("same_tokenizer", "tiny"), searches=[])
    figure = figure_of(monkeypatch, both, everything(both, lambda row, t, s: 5.0 + len(row) + 0.1 * t))
    for ax in figure.axes:
        assert {text.get_text(): text.xy[1] for text in ax.texts} == {"KL": 2.6, "VQ": 4.2}
        assert all(text.get_window_extent().x0 >= ax.bbox.x1 for text in ax.texts)
    assert all(box.x1 <= figure.bbox.x1 for box in (t.get_window_extent() for ax in figure.axes for t in ax.texts))


def test_floors_of_one_colour_each_have_no_names(table1, monkeypatch):
    assert not any(ax.texts for ax in figure_of(monkeypatch, table1, everything(table1)).axes)
    assert floor_lines.names_of(table1, [["mar/ce/guided"], ["mar/ce/unguided"]]) == ["with CFG", "without CFG"]
    mixed = [["mar/ce/guided", "random_causal/diff/unguided"], ["mar/ce/unguided", "mar/diff/guided"]]
    assert floor_lines.names_of(table1, mixed) == [] == floor_lines.names_of(table1, mixed[:1])


def heights(figure: Figure) -> list[float]:
    """Of the vertical error bars, each once."""
    bars = [segment for ax in figure.axes for c in ax.collections if isinstance(c, LineCollection)
            for segment in c.get_segments()]  # fmt: skip
    return sorted({round(float(np.ptp(segment[:, 1])), 6) for segment in bars} - {0.0})


@pytest.mark.parametrize(
    ("seeds", "height", "words"),
    [((0,), None, "± standard error of one run"), ((0, 1, 2), 0.2, "± sd over seeds")],
)
def test_bars_are_what_the_tables_say(table1, monkeypatch, seeds, height, words):
    made = everything(table1, seeds=seeds)
    figure = figure_of(monkeypatch, table1, made)
    errors = sorted({round(2 * plots.points(table1, made)["sd"][i], 6) for i in range(len(table1.rows))})
    assert heights(figure) == pytest.approx(errors) and all(errors) and (height is None or errors == [height])
    handles = {handle.get_label(): handle for handle in figure.legends[0].legend_handles}
    assert handles[f"bars: {words}, quartiles of the time"].get_marker() == "+"


def test_each_device_has_panels_of_its_own(table1, monkeypatch):
    both = {**everything(table1), **by_id(*(speed(table1, row, GPU, 0.05) for row in table1.rows))}
    figure = figure_of(monkeypatch, table1, both)
    assert [ax.get_title() for ax in figure.axes] == 2 * ["without CFG", "with CFG"]
    assert [part.get_suptitle().split(",")[0] for part in figure.subfigs] == ["Example CPU", GPU]
    cpu, gpu = points(figure)[::2]
    assert len(cpu) == len(gpu) == len(table1.rows) / 2
    assert np.allclose(0.05 * np.array(sorted(cpu))[:, 0], np.array(sorted(gpu))[:, 0])


@pytest.mark.filterwarnings("error")
def test_a_device_with_a_single_row_still_has_a_readable_axis(table1, monkeypatch):
    figure = figure_of(monkeypatch, table1, {**everything(table1), **by_id(speed(table1, ROW, GPU, 0.013))})
    empty, single = figure.axes[2:]
    assert not empty.axison and [text.get_text() for text in empty.texts] == ["no points"]
    assert single.get_ylabel() == "FD-1k mnist5k"
    low, high = single.get_xlim()
    ticks = [t for t in single.get_xticks() if low <= t <= high]
    assert 2 <= len(ticks) <= 3 and low < points(figure)[3][0][0] < high
    assert all(f"{tick:e}"[0] in "125" for tick in ticks)


def test_the_title_names_distance_images_and_scale(table1, monkeypatch):
    title = figure_of(monkeypatch, table1, everything(table1)).get_suptitle().splitlines()
    scale = "tiny scale, not comparable with the paper's FID"
    assert title == [table1.title, f"FD mnist5k of 1k images, {scale}"]


@pytest.mark.parametrize("device", ["CPU", f"{GPU} in a machine whose name is a good deal longer than usual"])
def test_nothing_is_clipped_or_drawn_over_another(table1, monkeypatch, device):
    made = {**everything(table1), **by_id(*(speed(table1, row, device) for row in table1.rows))}
    figure = figure_of(monkeypatch, table1, made)
    page, boxes = figure.bbox, [ax.get_tightbbox() for ax in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    boxes += [text.get_window_extent() for part in figure.subfigs for text in part.texts]
    boxes += [figure.legends[0].get_window_extent()]
    for box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_figure_needs_rows_with_both_numbers(table1, tmp_path):
    distances, seconds = generations(table1, rows=[ROW]), by_id(speed(table1, "mar/ce/guided"))
    failed = generations(table1, lambda *_: None)
    for records, words in (
        (distances, "no speed records"),
        (seconds, "no generation records"),
        ({**seconds, **failed}, "no generation records"),
        ({**distances, **seconds}, "no row has both"),
    ):
        with pytest.raises(UserError, match=words) as error:
            plots.speed_accuracy(table1, records, tmp_path / "x")
        assert "`mar-bench run table1 --scale tiny`" in str(error.value)
    assert list(tmp_path.iterdir()) == []


# --- sheets of samples ----------------------------------------------------------------------------------


def grey(count: int, size: int = 4) -> np.ndarray:
    """Image i is of value i throughout."""
    values = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (count, 1, size, size)).copy()


@pytest.mark.parametrize(
    ("count", "classes", "rows", "columns"),
    [
        (6, 3, 2, 3), (7, 3, 3, 3), (100, 3, 3, 3), (100, 10, 3, 10), (100, 1000, 3, 10), (2, 10, 1, 2),
        (1, 1, 1, 1),
    ],
)  # fmt: skip
def test_a_panel_has_a_column_a_class_up_to_ten(count, classes, rows, columns):
    sheet = samples.panel(grey(count), classes)
    assert sheet.shape == (5 * rows - 1, 5 * columns - 1, 3)


def test_image_i_stands_in_column_i_mod_classes_with_white_between():
    sheet = samples.panel(grey(7), 3)
    for i in range(7):
        top, left = 5 * (i // 3), 5 * (i % 3)
        assert np.allclose(sheet[top : top + 4, left : left + 4], i / 255)
    assert (sheet[4] == 1).all() and (sheet[:, 4] == 1).all()
    assert (sheet[10:, 5:] == 1).all()


def test_inversion_turns_images_and_keeps_the_gaps_white():
    plain, inverted = (samples.panel(grey(6), 3, inverted=i) for i in (False, True))
    assert np.allclose(inverted[:4, :4], 1 - plain[:4, :4])
    assert (inverted[4] == 1).all() and (inverted[:, 4] == 1).all()


def test_colours_keep_their_channels():
    image = np.zeros((1, 3, 2, 2), np.uint8)
    image[0, 0], image[0, 2, 0, 1] = 255, 51
    sheet = samples.panel(image, 10)
    assert sheet[1, 0].tolist() == [1, 0, 0] and np.allclose(sheet[0, 1], [1, 0, 0.2])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def dark_share(path: Path) -> float:
    return float((pixels(path) < 100).mean())


def test_a_sheet_is_a_png_with_equal_bytes(table1, tmp_path):
    images = {row: grey(30, 16) for row in table1.rows if row.startswith("mar/")}
    first = samples.sample_grid(table1, images, tmp_path / "a.png")
    second = samples.sample_grid(table1, dict(reversed(images.items())), tmp_path / "sub/b.png")
    assert first == tmp_path / "a.png" and first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()


def test_only_dark_grey_images_are_inverted_and_all_alike(table1, tmp_path):
    dark, light = np.zeros((10, 1, 16, 16), np.uint8), np.full((10, 1, 16, 16), 200, np.uint8)
    night = np.zeros((10, 3, 16, 16), np.uint8)

    def share(**images: np.ndarray) -> float:
        named = {f"mar/diff/{guidance}": batch for guidance, batch in images.items()}
        return dark_share(samples.sample_grid(table1, named, tmp_path / "x.png"))

    assert share(guided=dark) < 0.05 and share(guided=dark, unguided=dark) < 0.05
    assert share(guided=night) > 0.15 and share(guided=dark, unguided=light) > 0.1


def test_a_sheet_has_the_lines_and_columns_that_have_images(table1, tmp_path):
    def size(*rows: str) -> tuple[int, ...]:
        return pixels(samples.sample_grid(table1, {r: grey(30, 16) for r in rows}, tmp_path / "x.png")).shape

    one, wide, tall = size(ROW), size(ROW, "mar/diff/unguided"), size(ROW, "mar/ce/guided")
    assert (wide[0], wide[1]) == (one[0], 2 * one[1]) and tall[1] == one[1] and tall[0] > 1.5 * one[0]
    assert size(ROW, "mar/ce/unguided") == (tall[0], wide[1])


def test_rows_without_images_are_left_out(table1, tmp_path):
    full = samples.sample_grid(table1, {ROW: grey(30, 16)}, tmp_path / "a.png")
    empty = {ROW: grey(30, 16), "mar/ce/guided": grey(0, 16)}
    assert samples.sample_grid(table1, empty, tmp_path / "b.png").read_bytes() == full.read_bytes()


def test_what_cannot_be_drawn_is_said(table1, tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(UserError, match="no row 'mar/dif/guided' in table1, did you mean 'mar/diff/guided'"):
        samples.sample_grid(table1, {"mar/dif/guided": grey(10)}, path)
    for nothing in ({}, {ROW: grey(0)}):
        with pytest.raises(UserError, match="`mar-bench run table1 --scale tiny`"):
            samples.sample_grid(table1, nothing, path)
    for wrong in (grey(10).astype(np.float32), grey(10)[:, 0], np.zeros((10, 2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="images are uint8"):
            samples.sample_grid(table1, {ROW: wrong}, path)
    assert not path.exists()
