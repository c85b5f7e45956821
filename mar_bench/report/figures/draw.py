"""The figure of an experiment: metrics over a sampling knob, or distance against seconds per image.

Both are made into one tidy frame of points, which ``panels.render`` draws."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from mar_bench.config.experiment import Experiment
from mar_bench.config.ids import reconstruction_run
from mar_bench.records.metrics import thousands
from mar_bench.records.record import Record
from mar_bench.report import format as fmt
from mar_bench.report.figures.panels import Plot, render
from mar_bench.report.figures.style import STYLE, save
from mar_bench.report.frames import frame, spreads, values
from mar_bench.report.spread import Spread
from mar_bench.report.verdict import is_comparable
from mar_bench.utils.errors import UserError

BARS = {"training": "std over seeds", "sampling": "sd over seeds", "images": "standard error of one run"}
SECONDS = ["seconds_per_image", "seconds_per_image_q25", "seconds_per_image_q75"]


def draw(experiment: Experiment, records: dict[str, Record], stem: Path) -> list[Path]:
    """Write ``stem`` with .png, .pdf and .svg; return their paths. Equal records give equal bytes.

    Without a ``figure`` block, distance against seconds per image. Raises UserError where there is nothing to draw,
    where two rows of a curve coincide, and for a gallery, which is made of images and not of records."""
    kind = experiment.figure.get("kind", "speed")
    if kind == "gallery":
        scale = experiment.scale
        raise UserError(f"{experiment.id} is a gallery: `mar-bench sample {experiment.id} --scale {scale}` draws it")
    found = frame(experiment, records)
    if not any(metric == "fd" for _, metric in spreads(found)):
        raise _nothing(experiment, "no generation records of it")
    plot = curve(experiment, found) if kind == "curve" else speed(experiment, found)
    with rc_context(STYLE):
        return save(render(plot), stem)


def curve(experiment: Experiment, found: pd.DataFrame) -> Plot:
    """Metrics against a knob of the sampling, as in the paper's figures 4 and 5: one panel a metric."""
    knob, means = experiment.figure["x"], spreads(found)
    metrics = experiment.figure.get("y", ["fd", "is"])
    places: dict[tuple[str, float], str] = {}
    points = []
    for row in experiment.rows:
        line = fmt.label_of(experiment, row, experiment.figure.get("line"))
        if (x := fmt.value_at(experiment, row, knob)) is None:
            continue
        if (other := places.setdefault((line, x), row)) != row:
            where = f"{knob} {x:g} of line '{line}'"
            raise UserError(f"{experiment.file}: figure: rows {other} and {row} are both at {where}; name another line")
        for metric in metrics:
            common = {"panel": metric, "x": x, "colour": line, "marker": line}
            points += _points(experiment, row, metric, means.get((row, metric), Spread()), common)
    titles = {metric: fmt.metric_title(experiment, metric) for metric in metrics}
    return Plot(
        points=_frame(points),
        title=_title(experiment),
        legend=_legend(experiment),
        panels={metric: fmt.with_unit(experiment, title, metric) for metric, title in titles.items()},
        x_label=experiment.figure.get("x_title") or knob.rpartition(".")[2].replace("_", " "),
        x_values=sorted({x for _, x in places}),
        log_x=experiment.figure.get("log_x", False),
        joined=True,
        bars=_bars(points),
    )


def speed(experiment: Experiment, found: pd.DataFrame) -> Plot:
    """Distance against seconds per image, as in the paper's figure 6: a panel for each column of the table and setting,
    since the seconds of two devices do not compare.

    With a ``line`` in the figure block its points are joined, and named if it has a ``point``; without, colours are
    values of the table's last row axis and markers those of the others."""
    timed = found[(found["task"] == "speed") & (found["status"] == "done") & found["metric"].isin(SECONDS)]
    if timed.empty:
        raise _nothing(experiment, "no speed records of it")
    means, joined = spreads(found), _is_joined(experiment)
    table = timed.pivot_table(index=["row", "setting"], columns="metric", values="value", aggfunc="first", sort=False)
    points = []
    for row, setting, x, low, high in table.reindex(columns=SECONDS).reset_index().itertuples(index=False):
        if (row, "fd") in means and not math.isnan(x):
            common = _texts(experiment, row) | {"x": x, "x_low": low, "x_high": high, "setting": setting}
            points += _points(experiment, row, "fd", means[row, "fd"], common)
    if not points:
        raise _nothing(experiment, "no row has both a speed and a generation record")
    panels = dict.fromkeys(_texts(experiment, row)["panel"] for row in experiment.rows)
    drawn = {point["panel"] for point in points}
    return Plot(
        points=_frame(points),
        title=_title(experiment),
        legend=_legend(experiment),
        panels={panel: fmt.metric_title(experiment, "fd") for panel in panels if panel in drawn},
        x_label="seconds per image",
        joined=joined,
        floors=None if joined else _floors(experiment, found),
        bars=", ".join(filter(None, [_bars(points), "quartiles of the time"])),
    )


def _nothing(experiment: Experiment, what: str) -> UserError:
    run = f"`mar-bench run {experiment.id} --scale {experiment.scale}`"
    return UserError(f"nothing to draw for {experiment.id} at scale {experiment.scale}: {what}; {run} makes them")


def _points(experiment: Experiment, row: str, metric: str, mean: Spread, common: dict) -> list[dict]:
    """Our point, if it was measured, and the paper's, if it is comparable; in the units of tables."""
    found = []
    if mean.n:
        y, sd = (fmt.in_units(experiment, metric, value) for value in (mean.mean, mean.sd))
        found.append({**common, "row": row, "y": y, "sd": math.nan if sd is None else sd, "over": mean.over})
    published = fmt.published_value(experiment, row, metric) if is_comparable(experiment, row) else None
    if published is not None:
        x = fmt.published_value(experiment, row, "seconds_per_image") if "setting" in common else common["x"]
        theirs = {"x": x, "y": fmt.in_units(experiment, metric, published), "x_low": math.nan, "x_high": math.nan}
        found += [{**common, **theirs, "row": row, "sd": math.nan, "published": True}] * (x is not None)
    return found


def _frame(points: list[dict]) -> pd.DataFrame:
    nothing = {"setting": "", "x_low": math.nan, "x_high": math.nan, "name": "", "published": False}
    columns = ["row", "panel", "x", "y", "sd", "colour", "marker", *nothing]
    return pd.DataFrame([nothing | point for point in points], columns=columns)


def _bars(points: list[dict]) -> str:
    """What the vertical bars are: ``± std over seeds``; empty where there are none."""
    words = dict.fromkeys(BARS[p["over"]] for p in points if p.get("over") and not math.isnan(p["sd"]))
    return f"± {' or '.join(words)}" if words else ""


def _title(experiment: Experiment) -> str:
    """What the figure shows, the distance, the number of images and the scale."""
    counts = dict.fromkeys(thousands(spec.sampling.num_images) for spec in experiment.rows.values())
    images = f"{fmt.metric_title(experiment, 'fd', images=None)} of {'/'.join(counts)} images"
    return f"{experiment.title}\n{images}, {fmt.scale_title(experiment)}"


def _legend(experiment: Experiment) -> dict[str, list[str]]:
    """Titles and texts of colours and markers of all rows, so that both are the same whichever records exist."""
    texts = [_texts(experiment, row) for row in experiment.rows]
    *others, last = fmt.row_axes(experiment) or list(experiment.labels)
    if _is_joined(experiment):
        return {experiment.figure.get("line", ""): list(dict.fromkeys(text["colour"] for text in texts))}
    titles = {last: "colour", ", ".join(others): "marker"} if others else {last: "colour"}
    return {title: list(dict.fromkeys(text[key] for text in texts)) for title, key in titles.items()}


def _is_joined(experiment: Experiment) -> bool:
    return bool(experiment.figure.keys() & {"line", "point", "x"})


def _texts(experiment: Experiment, row: str) -> dict[str, str]:
    """Panel, colour, marker and name of a row's point."""
    texts = {"panel": fmt.row_words(experiment, row, fmt.column_axes(experiment))}
    if _is_joined(experiment):
        line, name = (fmt.label_of(experiment, row, experiment.figure.get(key)) for key in ("line", "point"))
        return texts | {"colour": line, "marker": line, "name": name}
    *others, last = fmt.row_axes(experiment) or list(experiment.labels)
    colour = fmt.row_words(experiment, row, [last])
    return texts | {"colour": colour, "marker": fmt.row_words(experiment, row, others) if others else colour}


def _floors(experiment: Experiment, found: pd.DataFrame) -> pd.DataFrame:
    """Panel, value, colour (as text) and name of the reconstruction floor of every tokenizer.

    A floor has the colour of its rows if they share one, else the kind of its tokenizer as a name."""
    rows: dict[tuple[str, str], list[str]] = {}
    floors = values(found, "rfd")
    for row in floors:
        tokenizer = reconstruction_run(row, experiment.rows[row]).cell_id
        rows.setdefault((_texts(experiment, row)["panel"], tokenizer), []).append(row)
    lines = []
    for (panel, _), of_tokenizer in rows.items():
        first, colours = of_tokenizer[0], {_texts(experiment, row)["colour"] for row in of_tokenizer}
        kind = experiment.rows[first].tokenizer.kind.removeprefix("ldm_").upper()
        colour, name = (colours.pop(), "") if len(colours) == 1 else ("", kind)
        lines.append({"panel": panel, "value": floors[first], "colour": colour, "name": name})
    return pd.DataFrame(lines, columns=["panel", "value", "colour", "name"])
