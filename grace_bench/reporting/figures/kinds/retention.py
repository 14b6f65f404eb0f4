"""Each metric against the number of edits, one figure per experiment and one line per editor."""

from __future__ import annotations

import math
import textwrap
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grace_bench.metrics import METRICS
from grace_bench.reporting.figures.curves import (
    draw_curve,
    draw_failed,
    editor_legend,
    measure_label,
    scale,
)
from grace_bench.reporting.figures.style import PAGE, Drawing, colours
from grace_bench.reporting.summary.read import Curves, Experiment, Summary

CAPTION = (
    "Over the life of the edits, one line per editor: dots and bands are probes with 95% "
    "intervals; between them a line is drawn where the average is known after every edit."
)


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure per experiment."""
    return [
        Drawing(
            name=f"retention-{experiment.model}-{experiment.dataset}",
            size=(PAGE, 4.4),
            draw=partial(_draw, summary=summary, curves=curves, experiment=experiment),
        )
        for experiment in summary.experiments
    ]


def _draw(figure: Figure, summary: Summary, curves: Curves, experiment: Experiment) -> None:
    settings = summary.configured(experiment)
    tints = colours(summary.settings)
    lines = {(s, m): curves.lines(s, m) for s in settings for m in METRICS}
    metrics = [name for name in METRICS if any(any(lines[s, name]) for s in settings)]
    drawn = [point.n_edits for found in lines.values() for line in found for point in line]
    longest = max(1, *drawn, 1)
    grid = figure.subplots(max(1, math.ceil(len(metrics) / 2)), 2, squeeze=False)
    for axes, name in zip(grid.flat, metrics, strict=False):
        for setting in settings:
            draw_curve(axes, setting, curves.of(setting, name), tints[setting.editor])
            draw_failed(axes, curves.failed_of(setting, name), tints[setting.editor])
        shown = [p.estimate for s in settings for line in lines[s, name] for p in line]
        scale(axes, "y", experiment, shown)
        title = f"{METRICS[name].label}: {METRICS[name].definition.split(':')[0]}"
        axes.set_title(textwrap.fill(title, 48))
        axes.set_ylabel(measure_label(experiment.measure))
        axes.set_xlabel("edits")
        axes.set_xlim(-0.02 * longest, 1.02 * longest)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in list(grid.flat)[len(metrics) :]:
        axes.set_axis_off()
    figure.suptitle(experiment.title, fontsize=9.5)
    editor_legend(figure, settings, tints, any(summary.failures(s) for s in settings))
