"""The figure of an experiment for plotly.js, from the points that the printed figure draws too."""

from __future__ import annotations

import html
import itertools
import math
from typing import Any

import pandas as pd
import seaborn as sns

from mar_bench.report import format as fmt
from mar_bench.report.figures.panels import Plot, is_wide, wrapped
from mar_bench.report.page.pictures import Curve

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left", "star")
LINES = ("solid", "dash")
PANEL_HEIGHT = 330  # pixels
Figure = dict[str, Any]  # data, layout, columns and rows of panels, as page.js expects them


def figure(plot: Plot, about: dict[str, str], records: dict[str, list[str]]) -> Figure:
    """``about``: row -> its words; ``records``: row -> ids of its records, which a click opens."""
    points, (first, *_, last) = plot.points, [*plot.legend.values()] * 2
    colours = _colours(first)
    by_line = points["line"].any()  # then symbols stand for what colours do
    symbols = dict(zip(first if by_line else last, itertools.cycle(SYMBOLS)))
    dashes = {"": LINES[0], **(dict(zip(last, itertools.cycle(LINES))) if by_line else {})}
    settings, panels = sorted(points["setting"].unique()), list(plot.panels)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    in_legend: set[str] = set()
    for i, (setting, panel) in enumerate(itertools.product(settings, panels), 1):
        here = points[(points["setting"] == setting) & (points["panel"] == panel)]
        axes = {"xaxis": f"x{_number(i)}", "yaxis": f"y{_number(i)}"}
        looks = ["colour", "marker", "line", "published"]
        for (colour, marker, line, published), group in here.sort_values("x", kind="stable").groupby(looks, sort=False):
            words = [str(text) for text in dict.fromkeys((colour, marker, line)) if text]
            name = ", ".join(words + ["paper"] * published) or "all rows"
            mode = "lines+markers" if plot.joined and not published else "markers"
            hollow = published or dashes[line] != LINES[0]
            marks = {"symbol": f"{symbols[marker]}{'-open' * hollow}", "size": 11 if published else 8}
            traces.append(
                axes
                | {
                    "type": "scatter",
                    "mode": mode,
                    "name": html.escape(name),
                    "legendgroup": name,
                    "showlegend": name not in in_legend,
                    "x": _floats(group["x"]),
                    "y": _floats(group["y"]),
                    "marker": {"color": colours[colour], **marks},
                    "line": {"color": colours[colour], "width": 1.6, "dash": dashes[line]},
                    "customdata": [records.get(row, []) for row in group["row"]],
                    "hovertext": [_hover(point, about) for point in group.to_dict("records")],
                    "hoverinfo": "text",
                    **({} if published else _bars(group)),
                }
            )
            in_legend.add(name)
        layout |= _axes(plot, points, i, setting, panel, len(panels))
        if panel and not plot.over_training and not plot.x_values:
            place = {"xref": f"x{_number(i)} domain", "yref": f"y{_number(i)} domain", "x": 0.5, "y": 1.02}
            title = {"text": html.escape(panel), "showarrow": False, "yanchor": "bottom"}
            layout.setdefault("annotations", []).append(title | place)
    if plot.floors is not None:
        layout["shapes"] = _floors(plot, settings, panels, colours)
        if layout["shapes"]:
            line = {"color": "#777", "width": 1, "dash": "dash"}
            name = f"reconstruction alone, {plot.against}"
            traces.append({"type": "scatter", "mode": "lines", "x": [None], "y": [None], "name": name, "line": line})
    return {"data": traces, "layout": layout, "rows": len(settings), "columns": len(panels)}


def losses(curves: dict[str, Curve], about: dict[str, str]) -> Figure:
    """Training losses of rows against steps."""
    colours = _colours(list(curves))
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(about[row]),
            "x": [step for step, _ in curve],
            "y": [loss for _, loss in curve],
            "line": {"color": colours[row], "width": 1.2},
        }
        for row, curve in curves.items()
    ]
    steps = pd.Series([step for curve in curves.values() for step, _ in curve])
    layout = {
        "xaxis": {"title": _title("training step"), "type": "log", "tickvals": _ticks(steps)},
        "yaxis": {"title": _title("loss")},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout, "rows": 1, "columns": 1}


def _colours(texts: list[str]) -> dict[str, str]:
    return dict(zip(texts, sns.color_palette("colorblind", len(texts)).as_hex()))


def _axes(plot: Plot, points: pd.DataFrame, i: int, setting: str, panel: str, columns: int) -> dict[str, Any]:
    """Both axes of panel number ``i``; they match those of its column and line where these are shared."""
    y_title, x_title = plot.panels[panel], "\n".join([plot.x_label, *wrapped(setting)])
    shown = points[points["setting"] == setting]
    if plot.over_training:
        y_title, x_title = setting, plot.panels[panel]
    else:
        shown = shown[shown["panel"] == panel]
    logarithmic = (plot.over_training or (plot.joined and not plot.x_values)) and is_wide(shown["y"])
    x: dict[str, Any] = {"title": _title(x_title), "type": "log" if plot.log_x else "linear"}
    y: dict[str, Any] = {"title": _title(y_title), "type": "log" if logarithmic else "linear"}
    if plot.floors is not None and len(plot.floors):
        y["rangemode"] = "tozero"
    line, column = divmod(i - 1, columns)
    if plot.over_training:
        x |= {"matches": f"x{_number(column + 1)}"} if line else {}
        y |= {"matches": f"y{_number(line * columns + 1)}"} if column else {}
    if plot.log_x:
        x |= {"tickvals": plot.x_values or _ticks(points["x"])}
    if logarithmic:
        y |= {"tickvals": _ticks(shown["y"])}
    return {f"xaxis{_number(i)}": x, f"yaxis{_number(i)}": y}


def _title(text: str) -> dict[str, Any]:
    return {"text": html.escape(text).replace("\n", "<br>"), "standoff": 8}


def _number(i: int) -> str:
    """The number of an axis in its name; the first has none."""
    return str(i) if i > 1 else ""


def _ticks(values: pd.Series) -> list[float]:
    """1, 2 and 5 times the powers of ten around some positive values; 1 and 3 times over more than three decades."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    return [float(f"{m}e{power}") for power in range(low, high + 1) for m in ((1, 2, 5) if high - low < 4 else (1, 3))]


def _bars(group: pd.DataFrame) -> dict[str, Any]:
    bars: dict[str, Any] = {}
    if group["sd"].notna().any():
        bars["error_y"] = {"type": "data", "array": _floats(group["sd"]), "thickness": 1, "width": 3}
    if group["x_low"].notna().any():
        upper, lower = group["x_high"] - group["x"], group["x"] - group["x_low"]
        both = {"array": _floats(upper.clip(lower=0)), "arrayminus": _floats(lower.clip(lower=0))}
        bars["error_x"] = {"type": "data", "symmetric": False, "thickness": 1, "width": 3, **both}
    return bars


def _floors(plot: Plot, settings: list[str], panels: list[str], colours: dict[str, str]) -> list[dict[str, Any]]:
    """A dashed line in each panel for every tokenizer alone."""
    shapes = []
    for i, (_, panel) in enumerate(itertools.product(settings, panels), 1):
        of_panel = plot.floors[plot.floors["panel"] == panel]
        for value, colour in zip(of_panel["value"], of_panel["colour"]):
            line = {"color": colours.get(colour, "#777"), "width": 1, "dash": "dash"}
            place = {
                "xref": f"x{_number(i)} domain",
                "yref": f"y{_number(i)}",
                "x0": 0,
                "x1": 1,
                "y0": value,
                "y1": value,
            }
            shapes.append({"type": "line", "line": line, **place})
    return shapes


def _floats(values: pd.Series) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in values]


def _hover(point: dict[str, Any], about: dict[str, str]) -> str:
    """The row, the number with its ±, what this is taken over, and the setting."""
    value = fmt.plus_minus(point["y"], None if math.isnan(point["sd"]) else point["sd"])
    where = "the paper's" if point["published"] else point["runs"]
    lines = [about[point["row"]], f"{value} at {fmt.number(point['x'])}", where, point["setting"]]
    return "<br>".join(html.escape(line) for line in lines if line)
