"""The figure of an experiment: metrics over a sampling knob, or distance against seconds per image.

Both are made into one tidy frame of points, which ``panels.render`` draws."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.records.metrics import GENERATION_METRICS, thousands
from mar_bench.records.record import Records
from mar_bench.report import format as fmt
from mar_bench.report.figures.panels import METADATA, STYLE, Plot, fingerprint, render, save
from mar_bench.report.frames import frame, spreads, values
from mar_bench.report.paper_agreement import is_comparable
from mar_bench.report.stats import Spread, design
from mar_bench.utils.errors import UserError

BARS = {"training": "std over seeds", "sampling": "sd over seeds", "images": "standard error of one run"}
SECONDS = ["seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75"]
NOTHING = {"setting": "", "x_low": math.nan, "x_high": math.nan, "sd": math.nan, "line": "", "published": False}
Looks = dict[str, dict[str, str]]  # row -> panel, colour, marker and name of its point


def draw(experiment: Experiment, records: Records, stem: Path) -> list[Path]:
    """Write ``stem`` with .png, .pdf and .svg; return their paths. Equal records give equal bytes.

    Raises UserError as ``plot_of`` does."""
    plot = plot_of(experiment, frame(experiment, records))
    about = f"{experiment.id}, {experiment.scale} scale, points {fingerprint(plot)}"
    with rc_context(STYLE):
        figure = render(plot)
        figure.set_layout_engine("none")  # it has done its work, which each format would repeat
        paths = [stem.with_name(f"{stem.name}{ending}") for ending in METADATA]
        return [save(figure, path, about, bbox_inches="tight", pad_inches=0.05) for path in paths]


def plot_of(experiment: Experiment, found: pd.DataFrame) -> Plot:
    """The experiment's figure as points, from its tidy frame.

    Without a ``figure`` block, distance against seconds per image. If the block has a ``line``, the points of a line
    are joined, and named if it has a ``point``; otherwise colours and markers stand for the row axes, in a way that
    holds without colours: of points, markers for the axis with more values; of lines, both for the last axis, and
    dashes for the others. Raises UserError if there is nothing to draw, and for a gallery, which shows images."""
    kind, scale = experiment.figure.get("kind", "speed"), experiment.scale
    if kind == "gallery":
        raise UserError(f"{experiment.id} is a gallery: `mar-bench sample {experiment.id} --scale {scale}` draws it")
    looks, titles = _looks(experiment)
    kinds = {"curve": _curve, "training": _training, "speed": _speed}
    points, axes = kinds[kind](experiment, found, looks)
    if not any("over" in point for point in points):
        needed = "rows with a speed and a generation record" if kind == "speed" else "generation records"
        run = f"`mar-bench run {experiment.id} --scale {scale}` makes them"
        raise UserError(f"nothing to draw for {experiment.id} at scale {scale}: there are no {needed}; {run}")
    bars = " or ".join(dict.fromkeys(BARS[point["over"]] for point in points if point.get("over")))
    counts = "/".join(dict.fromkeys(thousands(spec.sampling.num_images) for spec in experiment.rows.values()))
    shown = [metric for metric in experiment.figure.get("y", ["fd"]) if metric in GENERATION_METRICS]
    main = "fd" if "fd" in shown or not shown else shown[0]
    images = f"{fmt.metric_title(experiment, main, images=None)} of {counts} images"
    return Plot(
        points=pd.DataFrame([{**NOTHING, **looks[point["row"]], **point} for point in points]),
        title=f"{experiment.title}\n{images}, {fmt.scale_title(experiment)}",
        legend={title: list(dict.fromkeys(look[key] for look in looks.values())) for title, key in titles.items()},
        joined=_is_joined(experiment),
        bars=", ".join([f"± {bars}"] * bool(bars) + ["quartiles of the time"] * (kind == "speed")),
        **axes,
    )


def _has_lines(experiment: Experiment) -> bool:
    """Whether the figure names its lines; otherwise row axes give colours and markers."""
    return bool(experiment.figure.keys() & {"line", "point", "x"})


def _is_joined(experiment: Experiment) -> bool:
    return _has_lines(experiment) or experiment.figure.get("kind") == "training"


def _looks(experiment: Experiment) -> tuple[Looks, dict[str, str]]:
    """The texts of every row's point, and the titles of the legend with the texts listed under each."""
    looks: Looks = {}
    axes = fmt.row_axes(experiment) or list(experiment.labels)
    *others, last = [axis for axis in axes if axis != experiment.figure.get("panels")] or axes
    for row in experiment.rows:
        looks[row] = {"panel": fmt.row_words(experiment, row, fmt.column_axes(experiment)), "name": ""}
        if _has_lines(experiment):
            line, name = (fmt.label_of(experiment, row, experiment.figure.get(key)) for key in ("line", "point"))
            looks[row] |= {"colour": line, "marker": line, "name": name}
        else:
            colour = fmt.row_words(experiment, row, [last])
            looks[row] |= {"colour": colour, "marker": fmt.row_words(experiment, row, others) if others else colour}
    if _has_lines(experiment):
        return looks, {experiment.figure.get("line", ""): "colour"}
    titles = {last: "colour", **({", ".join(others): "marker"} if others else {})}
    if others and _is_joined(experiment):
        looks = {row: {**look, "marker": look["colour"], "line": look["marker"]} for row, look in looks.items()}
        return looks, dict(zip(titles, ("colour", "line")))
    if others and len({look["colour"] for look in looks.values()}) > len({look["marker"] for look in looks.values()}):
        looks = {row: {**look, "marker": look["colour"], "colour": look["marker"]} for row, look in looks.items()}
        titles = dict(zip(reversed(titles), ("colour", "marker")))
    return looks, titles


def _curve(experiment: Experiment, found: pd.DataFrame, looks: Looks) -> tuple[list[dict], dict[str, Any]]:
    """Metrics against a sampling setting, as in the paper's figures 4 and 5, or against a measured number: one panel
    per metric."""
    knob, means = experiment.figure["x"], spreads(found)
    metrics = experiment.figure.get("y", ["fd", "is"])
    places, measured = {}, values(found, knob)
    for row, spec in experiment.rows.items():
        x: Any = measured.get(row, reduce(lambda block, key: getattr(block, key, None), knob.split("."), spec))
        if x is not None:
            places[row] = float(x)
    points: list[dict] = []
    for row, x in places.items():
        for metric in metrics:
            common = {"row": row, "panel": metric, "x": x}
            points += _points(experiment, metric, means.get((row, metric), Spread()), common, x)
    titles = {metric: fmt.metric_title(experiment, metric) for metric in metrics}
    return points, {
        "panels": {metric: fmt.with_unit(experiment, title, metric) for metric, title in titles.items()},
        "x_label": experiment.figure.get("x_title") or knob.rpartition(".")[2].replace("_", " "),
        "x_values": sorted(set(places.values())),
        "log_x": experiment.figure.get("log_x", False),
    }


def _training(experiment: Experiment, found: pd.DataFrame, looks: Looks) -> tuple[list[dict], dict[str, Any]]:
    """Metrics against images seen and seconds of training, a line of panels for each metric; if the block names an
    axis in ``panels``, against images seen alone, with a panel for each of its bundles."""
    done, means, points = found[found["status"] == "done"], spreads(found), []
    places = {"images_seen": "images seen in training", "training_seconds": "seconds of training"}
    axis = experiment.figure.get("panels")
    for x, metric in itertools.product(["images_seen"] if axis else places, experiment.figure.get("y", ["fd"])):
        title = fmt.with_unit(experiment, fmt.metric_title(experiment, metric), metric)
        for row, place in done[done["metric"] == x].groupby("row", sort=False)["value"].mean().items():
            panel = experiment.bundles(str(row))[axis] if axis else x
            common = {"row": row, "panel": panel, "setting": title, "x": place}
            points += _points(experiment, metric, means.get((str(row), metric), Spread()), common, None)
    if axis:
        drawn, seen = {point["panel"] for point in points}, places["images_seen"]
        bundles = [bundle for bundle in experiment.labels[axis] if bundle in drawn]
        places = {bundle: f"{seen}\n{fmt.words(experiment, {axis: bundle})}" for bundle in bundles}
    return points, {"panels": places, "x_label": "", "over_training": True}


def _speed(experiment: Experiment, found: pd.DataFrame, looks: Looks) -> tuple[list[dict], dict[str, Any]]:
    """Distance against seconds per image, as in the paper's figure 6: one panel per column of the table and setting,
    since seconds on different devices do not compare."""
    timed, means = found[(found["task"] == "speed") & (found["status"] == "done")], spreads(found)
    points: list[dict] = []
    for (row, setting), group in timed.groupby(["row", "setting"], sort=False):
        numbers = group.drop_duplicates("metric").set_index("metric")["value"].reindex(SECONDS)
        if (str(row), "fd") in means and not math.isnan(numbers.iloc[0]):
            common = {"row": row, "setting": setting} | dict(zip(("x", "x_low", "x_high"), numbers))
            seconds = fmt.published_value(experiment, str(row), "seconds_per_image")
            points += _points(experiment, "fd", means[str(row), "fd"], common, seconds)
    drawn = {looks[point["row"]]["panel"] for point in points}
    panels = dict.fromkeys(look["panel"] for look in looks.values() if look["panel"] in drawn)
    return points, {
        "panels": dict.fromkeys(panels, fmt.metric_title(experiment, "fd")),
        "x_label": "seconds per image",
        "against": fmt.against(experiment, "rfd"),
        "floors": None if _is_joined(experiment) else _floors(experiment, values(found, "rfd"), looks),
    }


def _points(experiment: Experiment, metric: str, mean: Spread, common: dict, paper_x: float | None) -> list[dict]:
    """Our point, if it was measured, and the paper's at ``paper_x``, if it is comparable; in the units of tables."""
    row, found = common["row"], []
    if mean.n:
        y, sd = (fmt.in_units(experiment, metric, value) for value in (mean.mean, mean.sd))
        found.append({**common, "y": y, "sd": math.nan if sd is None else sd, "over": mean.over, "runs": design(mean)})
    published = fmt.in_units(experiment, metric, fmt.published_value(experiment, row, metric))
    if is_comparable(experiment, row) and published is not None and paper_x is not None:
        theirs = {"x": paper_x, "y": published, "x_low": math.nan, "x_high": math.nan, "published": True}
        found.append({**common, **theirs})
    return found


def _floors(experiment: Experiment, floors: dict[str, float], looks: Looks) -> pd.DataFrame:
    """Panel, value, colour (as text) and name of the reconstruction floor of every tokenizer.

    A floor has the colour of its rows if they share one; otherwise it is named after the kind of its tokenizer."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in floors:
        tokenizer = reconstruction_run(row, experiment.rows[row]).cell_id
        rows.setdefault((looks[row]["panel"], tokenizer), []).append(row)
    lines = []
    for (panel, _), of_tokenizer in rows.items():
        first, colours = of_tokenizer[0], {looks[row]["colour"] for row in of_tokenizer}
        kind = experiment.rows[first].tokenizer.kind.removeprefix("ldm_").upper()
        colour, name = (colours.pop(), "") if len(colours) == 1 else ("", kind)
        lines.append((panel, floors[first], colour, name))
    return pd.DataFrame(lines, columns=["panel", "value", "colour", "name"])
