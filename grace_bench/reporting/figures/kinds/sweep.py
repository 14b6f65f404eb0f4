"""Metrics against a swept hyperparameter, one figure per editor and one row per experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.figures.curves import legend_below, scale
from grace_bench.reporting.figures.style import GREY, PAGE, Drawing, colours
from grace_bench.reporting.summary.read import (
    Curves,
    Estimate,
    Experiment,
    Setting,
    Summary,
    varying,
)

CAPTION = "One hyperparameter, all else as configured: what it gives and what it costs."
Line = list[tuple["Setting", "Estimate"]]


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure for each editor that was run with several values of a number."""
    drawings = []
    for editor, cells in summary.sweeps().items():
        shown = {e: cells[e] for e in summary.experiments if e in cells and swept_name(cells[e])}
        if shown:
            size = (PAGE, 2.1 * len(shown) + 0.3)
            draw = partial(_draw, summary=summary, cells=shown)
            drawings.append(Drawing(name=f"sweep-{editor}", size=size, draw=draw))
    return drawings


def swept_name(settings: Sequence[Setting]) -> str | None:
    """Return the first hyperparameter with several values, all numbers, to draw a sweep against."""
    for name in varying(settings):
        values = [setting.values.get(name) for setting in settings]
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if numeric and len(set(values)) > 1:
            return name
    return None


def _draw(figure: Figure, summary: Summary, cells: dict[Experiment, list[Setting]]) -> None:
    tints = colours(summary.settings)
    settings = [setting for found in cells.values() for setting in found]
    keys = ["n_keys"] if any(summary.get(s, "n_keys", None).is_finite for s in settings) else []
    grid = figure.subplots(len(cells), 3 + len(keys), squeeze=False)
    for row, (experiment, settings) in zip(grid, cells.items(), strict=True):
        third = "arr" if experiment.is_perplexity else "holdout"
        for axes, metric in zip(row, ("trr", "err", third, *keys), strict=True):
            _draw_panel(axes, summary, settings, metric, tints[settings[0].editor])
        row[0].set_ylabel(f"{experiment.title}\n{MEASURES[experiment.measure].title}")
    style = {"color": GREY, "linestyle": ""}
    handles = [
        Line2D([], [], marker="o", label="as configured", **style),
        Line2D([], [], marker="o", fillstyle="none", label="swept", **style),
    ]
    if any(summary.failures(s) for settings in cells.values() for s in settings):
        handles.append(Line2D([], [], marker="x", label="seeds failed here", **style))
    legend_below(figure, handles)


def _draw_panel(
    axes: Axes, summary: Summary, settings: Sequence[Setting], metric: str, tint: str
) -> None:
    experiment, swept = settings[0].experiment, swept_name(settings)
    measure = None if metric == "n_keys" else experiment.measure
    shown = [(s, summary.get(s, metric, measure)) for s in settings]
    shown = [item for item in shown if item[1].is_finite]
    if not shown:
        axes.set_axis_off()
        return
    for line in _lines(shown, swept):
        _draw_line(axes, line, swept, tint)
    if measure is not None:
        scale(axes, "y", experiment, [estimate for _, estimate in shown])
    else:
        axes.set_ylim(0, 1.1 * max(e.high or e.value for _, e in shown))
    for setting in (s for s in settings if summary.failures(s)):
        style = {"marker": "x", "ms": 5, "clip_on": False, "color": GREY}
        axes.plot(setting.values[swept], 0, transform=axes.get_xaxis_transform(), **style)
    values = sorted({s.values[swept] for s in settings})
    if values[0] > 0 and values[-1] / values[0] >= 10:
        axes.set_xscale("log")
        axes.set_xlim(values[0] / 1.4, values[-1] * 1.4)
    axes.set_xticks(values if len(values) <= 6 else values[:: math.ceil(len(values) / 6)])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("keys" if measure is None else METRICS[metric].label)
    axes.set_xlabel(swept.replace("_", " "))


def _lines(shown: Line, swept: str) -> list[Line]:
    """Return one line for each combination of the other hyperparameters."""
    lines: dict[str, Line] = {}
    for setting, estimate in shown:
        others = {key: value for key, value in setting.values.items() if key != swept}
        lines.setdefault(repr(sorted(others.items())), []).append((setting, estimate))
    return [sorted(line, key=lambda item: item[0].values[swept]) for line in lines.values()]


def _draw_line(axes: Axes, line: Line, swept: str, tint: str) -> None:
    x = [setting.values[swept] for setting, _ in line]
    y = [estimate.value for _, estimate in line]
    spread = [list(ends) for ends in zip(*(e.reach for _, e in line), strict=True)]
    axes.errorbar(x, y, yerr=spread, color=tint, elinewidth=0.9, zorder=2)
    for setting, estimate in line:
        axes.plot(
            setting.values[swept],
            estimate.value,
            marker="o",
            markersize=4.5,
            color=tint,
            markerfacecolor="white" if setting.in_sweep else tint,
            zorder=3,
        )
