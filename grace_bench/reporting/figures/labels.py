"""Names beside points that keep out of each other's way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Box = tuple[float, float, float, float]
    """Left, bottom, right, top in pixels."""

DISTANCES = (4, 8, 13, 19, 26, 36)  # of a name from its point, in points of 1/72 inch
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
APART = 4  # names side by side must not read as one
FAR = 8  # a name further from its point than this gets a line to it


@dataclass(frozen=True)
class _Place:
    """Where a name could stand: its centre, its box, and how far it covers what is drawn."""

    x: float
    y: float
    box: Box
    cost: float


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    tints: Sequence[str],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> None:
    """Write each point's name beside it, where it covers no point, no line and no other name.

    Candidates lie around the point at growing distances; the one that overlaps least is taken,
    points in the middle of the crowd last. A thin line leads to names that had to move away.

    Args:
        axes: in which the points are drawn.
        points: in data coordinates.
        texts: the points' names.
        tints: the points' colours.
        lines: ends of lines that names should not cover, in data coordinates.
    """
    axes.figure.canvas.draw()  # fixes the layout, and with it what lies where
    renderer = axes.figure.canvas.get_renderer()
    dots = axes.transData.transform(points)
    per_point = axes.figure.dpi / 72
    frame = axes.get_window_extent(renderer).extents
    taken = [_grown((x, y, x, y), 5 * per_point) for x, y in dots]
    for ends in lines:
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        edges = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        taken.append(_grown(edges, per_point))
    style = {"textcoords": "offset points", "fontsize": 7.5, "ha": "center", "va": "center"}
    for index in sorted(range(len(texts)), key=lambda i: (-dots[i][1], dots[i][0])):
        dot, tint = dots[index], tints[index]
        text = axes.annotate(
            texts[index], points[index], xytext=(0, 0), color=tint, zorder=6, **style
        )
        text.set_in_layout(False)  # a name must not move the axes it was placed in
        extent = text.get_window_extent(renderer)
        size = (extent.width, extent.height)
        place = _best_place(dot, size, frame, taken, per_point)
        offset = ((place.x - dot[0]) / per_point, (place.y - dot[1]) / per_point)
        text.set_position(offset)
        left, bottom, right, top = place.box
        taken.append((left - APART * per_point, bottom, right + APART * per_point, top))
        gaps = (abs(o) - s / per_point / 2 for o, s in zip(offset, size, strict=True))
        if max(gaps) > FAR:
            edge = (min(max(dot[0], left), right), min(max(dot[1], bottom), top))
            start, end = axes.transData.inverted().transform([dot, edge])
            line = ((start[0], end[0]), (start[1], end[1]))
            axes.plot(*line, color=tint, linewidth=0.6, zorder=5)


def _best_place(
    dot: Sequence[float],
    size: tuple[float, float],
    frame: Sequence[float],
    taken: Iterable[Box],
    per_point: float,
) -> _Place:
    """Return the candidate that covers least; of equal ones, the first."""
    (width, height), best = size, None
    for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
        away = distance * per_point
        x = dot[0] + right * (away + width / 2)
        y = dot[1] + up * (away + height / 2)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        area = width * height
        # A crossed line covers little of a name's box but spoils it all the same.
        cost = sum(_overlap(box, other) > 0 for other in taken)
        cost += sum(_overlap(box, other) for other in taken) / area
        outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
        cost += 9 * outside / area + distance / 40
        if best is None or cost < best.cost - 1e-9:
            best = _Place(x, y, box, cost)
    return best


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)
