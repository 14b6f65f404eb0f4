"""Curves over edits, and the axes and legends that several figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.metrics import MEASURES
from grace_bench.reporting.figures.style import FAILED_STYLE, GREY, layer, line_style, scale_axis
from grace_bench.reporting.summary.read import Estimate, Experiment, Point, Setting
from grace_bench.reporting.summary.write import UNEDITED

LEGEND_ENTRY_INCHES = 1.3
"""Width of an editor's name in a legend: "FT+Retrain" and its handle."""


def draw_curve(axes: Axes, setting: Setting, points: Sequence[Point], tint: str) -> None:
    """Draw one setting's metric: a line through all points, dots and a band at probes."""
    points = [p for p in points if p.estimate.is_finite]
    if not points:
        return
    style = {"color": tint, "linestyle": line_style(setting), "zorder": layer(setting)}
    if len(points) == 1 and setting.editor_class == UNEDITED:
        # The unedited model makes no edits: one value for all numbers of edits.
        axes.axhline(points[0].estimate.value, **style)
        return
    x = [point.n_edits for point in points]
    axes.plot(x, [p.estimate.value for p in points], **style)
    # Averages between probes have no interval.
    probes = [p for p in points if p.estimate.low is not None]
    x = [point.n_edits for point in probes]
    axes.plot(x, [p.estimate.value for p in probes], color=tint, linestyle="", marker=".", ms=3)
    _fill(axes, probes, color=tint, alpha=0.13, zorder=1)


def draw_failed(axes: Axes, curves: Mapping[int, Sequence[Point]], tint: str) -> None:
    """Draw how far each failed seed came, with a cross where its curve ends."""
    for curve in curves.values():
        points = [p for p in curve if p.estimate.is_finite]
        if points:
            x = [point.n_edits for point in points]
            y = [point.estimate.value for point in points]
            axes.plot(x, y, color=tint, markevery=[-1], zorder=1.5, **FAILED_STYLE)


def draw_keys(axes: Axes, points: Sequence[Point], tint: str, zorder: float) -> None:
    """Draw the number of keys, which is known after every edit: a line and a band, no dots."""
    x = [point.n_edits for point in points]
    axes.plot(x, [p.estimate.value for p in points], color=tint, zorder=zorder)
    _fill(axes, points, color=tint, alpha=0.15)


def _fill(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    low, high = ([p.estimate.bounds[end] for p in points] for end in (0, 1))
    axes.fill_between([point.n_edits for point in points], low, high, linewidth=0, **style)


def scale(axes: Axes, which: str, experiment: Experiment, shown: Sequence[Estimate]) -> None:
    """Scale one axis to what is shown on it, intervals included."""
    shown = [estimate for estimate in shown if estimate.is_finite]
    if shown:
        low = min(e.bounds[0] for e in shown)
        high = max(e.bounds[1] for e in shown)
        scale_axis(axes, which, MEASURES[experiment.measure].scale, low, high)


def measure_label(measure: str) -> str:
    """Return a measure's axis label, with an arrow to better values."""
    return f"{MEASURES[measure].title} {MEASURES[measure].arrow}"


def count_edits(axes: Axes, n_ticks: int = 4) -> None:
    """Make the horizontal axis one of edits, from 0."""
    axes.set_xlabel("edits")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(n_ticks, integer=True, steps=[1, 2, 5, 10]))


def editor_legend(
    figure: Figure, settings: Sequence[Setting], tints: dict[str, str], with_failed: bool = False
) -> None:
    """Name the editors' colours below all axes; and how failed seeds are drawn, if any failed."""
    unique = {s.editor: s for s in settings}
    handles = [
        Line2D([], [], color=tints[name], linestyle=line_style(s), label=s.editor_label)
        for name, s in unique.items()
    ]
    if with_failed:
        handles.append(Line2D([], [], color=GREY, label="a seed that failed", **FAILED_STYLE))
    legend_below(figure, handles, max(1, int(figure.get_figwidth() / LEGEND_ENTRY_INCHES)))


def legend_below(figure: Figure, handles: Sequence[Any], columns: int | None = None) -> None:
    """Put a legend below all axes, where it hides no data; on one line if `columns` is None."""
    columns = len(handles) if columns is None else min(len(handles), columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
