"""Names beside points of a panel, each where it hides the least."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

FONT_SIZE = 7
PLACES = (  # offset in points from the marker's centre, and how the text is aligned to it
    ((5, 4), "left", "bottom"), ((5, -4), "left", "top"), ((-5, -4), "right", "top"), ((-5, 4), "right", "bottom"),
    ((0, 7), "center", "bottom"), ((0, -7), "center", "top"), ((8, 0), "left", "center"), ((-8, 0), "right", "center"),
    ((9, 11), "left", "bottom"), ((-9, -11), "right", "top"),
)  # fmt: skip
STEPS = 24  # at so many places of a stroke it is seen whether a name hides it


def name_points(ax: Axes, points: pd.DataFrame, published: pd.DataFrame, colours: dict[str, str]) -> None:
    """Write the ``point`` of each of ``points`` beside it, in the colour of its line; the figure is laid out already.

    ``published`` points are to be kept free, as are the strokes between points and the bars."""
    obstacles = _strokes(ax, points)
    places = pd.concat([points[["seconds_per_image", "fd"]], published[["seconds_per_image", "fd"]]]).to_numpy(float)
    obstacles += [_around(at, 3) for at in ax.transData.transform(places)]
    for point in points.to_dict("records"):
        if not point["point"]:
            continue
        text = ax.annotate(
            point["point"],
            (point["seconds_per_image"], point["fd"]),
            xytext=PLACES[0][0],
            textcoords="offset points",
            fontsize=FONT_SIZE,
            color=colours[point["line"]],
            zorder=5,
        )
        text.set_in_layout(False)
        costs = []
        for place in PLACES:
            _move(text, place)
            costs.append(_cost(text.get_window_extent(), obstacles, ax.get_window_extent()))
        _move(text, PLACES[int(np.argmin(costs))])
        obstacles += [text.get_window_extent()] * 20  # to write over another name is the worst


def _move(text, place: tuple) -> None:
    offset, horizontal, vertical = place
    text.set_position(offset)
    text.set_horizontalalignment(horizontal)
    text.set_verticalalignment(vertical)


def _cost(box: Bbox, obstacles: list[Bbox], page: Bbox) -> float:
    """How much a name would hide; far more where it leaves the panel."""
    inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    return sum(box.overlaps(obstacle) for obstacle in obstacles) + 100 * (not inside)


def _strokes(ax: Axes, points: pd.DataFrame) -> list[Bbox]:
    """Small boxes along the lines between the points and along their bars."""
    ends = []
    for _, line in points.groupby("line"):
        sorted_line = line.sort_values("seconds_per_image", kind="stable")
        places = sorted_line[["seconds_per_image", "fd"]].to_numpy(float)
        ends += list(zip(places[:-1], places[1:]))
    for point in points.to_dict("records"):
        x, y, sd = point["seconds_per_image"], point["fd"], point["sd"]
        low, high = (point[f"seconds_per_image_{q}"] for q in ("q25", "q75"))
        ends.append((np.array([x, y - sd]), np.array([x, y + sd])))
        if low > 0 and high > 0:
            ends.append((np.array([low, y]), np.array([high, y])))
    shares = np.linspace(0, 1, STEPS)[:, None]
    boxes = []
    for begin, end in ends:
        first, last = ax.transData.transform([begin, end])
        boxes += [_around(at, 0.5) for at in first + shares * (last - first)]
    return boxes


def _around(at: np.ndarray, half: float) -> Bbox:
    return Bbox([[at[0] - half, at[1] - half], [at[0] + half, at[1] + half]])
