"""ERR and holdout against TRR after all edits: better is up and to the right everywhere."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grace_bench.metrics import MEASURES
from grace_bench.reporting.figures.curves import scale
from grace_bench.reporting.figures.labels import place_labels
from grace_bench.reporting.figures.style import Drawing, colours, layer, make_headroom, marker
from grace_bench.reporting.summary.read import Curves, Estimate, Experiment, Setting, Summary
from grace_bench.reporting.summary.write import UNEDITED

CAPTION = (
    "After all edits: what edits keep (ERR) and what other phrasings of them give (Holdout), "
    "against what the model keeps (TRR). Better is up and to the right; crosses are 95% "
    "intervals. A point in the upper right corner: fixed, general, nothing forgotten."
)
AXES = {"err": "ERR (edits retained) \u2192", "holdout": "Holdout (other phrasings) \u2192"}
Shown = list[tuple["Setting", "Estimate", "Estimate"]]
"""A panel's settings, each with its TRR and the metric on the vertical axis."""


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure with a panel for each experiment and metric."""
    settings = [s for e in summary.experiments for s in summary.configured(e)]
    known = [m for m in AXES if any(summary.main(s, m).is_finite for s in settings)] or ["err"]
    panels = len(summary.experiments)
    across = max(1.5, min(3, panels)) / 3  # one panel alone gets half the width
    size = (10.0 * across, 3.3 * len(known) * math.ceil(panels / 3))
    return [
        Drawing(name="overview", size=size, draw=partial(_draw, summary=summary, metrics=known))
    ]


def _draw(figure: Figure, summary: Summary, metrics: Sequence[str]) -> None:
    tints = colours(summary.settings)
    columns = min(3, len(summary.experiments))
    blocks = math.ceil(len(summary.experiments) / columns)
    grid = figure.subplots(blocks * len(metrics), columns, squeeze=False)
    unused = set(grid.flat)
    drawn: list[tuple[Axes, Shown]] = []
    for index, experiment in enumerate(summary.experiments):
        for row, metric in enumerate(metrics):
            axes = grid[index // columns * len(metrics) + row, index % columns]
            unused.discard(axes)
            drawn.append((axes, _draw_panel(axes, summary, experiment, metric, tints)))
            if row == 0:
                measure = MEASURES[experiment.measure]
                turned = "" if measure.higher_is_better else ", axes reversed"
                axes.set_title(f"{experiment.title}\n({measure.title}{turned})")
    for axes in unused:
        axes.set_axis_off()
    for axes, shown in (panel for panel in drawn if panel[1]):  # empty: every run failed
        places = [(trr.value, kept.value) for _, trr, kept in shown]
        names = [setting.editor_label for setting, _, _ in shown]
        crosses = [line for _, trr, kept in shown for line in _cross(trr, kept)]
        shades = [tints[setting.editor] for setting, _, _ in shown]
        place_labels(axes, places, names, shades, crosses)


def _draw_panel(
    axes: Axes, summary: Summary, experiment: Experiment, metric: str, tints: Mapping[str, str]
) -> Shown:
    """Draw a metric against TRR and return what is shown."""
    pairs = [
        (s, summary.main(s, "trr"), summary.main(s, metric)) for s in summary.configured(experiment)
    ]
    shown = [item for item in pairs if item[1].is_finite and item[2].is_finite]
    scale(axes, "x", experiment, [trr for _, trr, _ in shown])
    scale(axes, "y", experiment, [kept for _, _, kept in shown])
    measure = MEASURES[experiment.measure]
    make_headroom(axes, measure)
    if not measure.higher_is_better:
        axes.invert_xaxis()
        axes.invert_yaxis()
    for setting, trr, kept in shown:
        axes.errorbar(
            trr.value,
            kept.value,
            xerr=[[reach] for reach in trr.reach],
            yerr=[[reach] for reach in kept.reach],
            color=tints[setting.editor],
            marker=marker(setting),
            markersize=5.5 if setting.editor_class != UNEDITED else 6,
            elinewidth=0.9,
            zorder=layer(setting),
        )
    # No point has failed seeds in it: they are named below the panel.
    failed = summary.failed_settings(experiment)
    below = "\n" + textwrap.fill(f"failed: {', '.join(failed)}", 44) if failed else ""
    axes.set_xlabel(f"TRR (upstream retained) \u2192{below}")
    axes.set_ylabel(AXES[metric])
    return shown


def _cross(trr: Estimate, err: Estimate) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the ends of the two interval lines of a point."""
    left, right = trr.bounds
    bottom, top = err.bounds
    return [((left, err.value), (right, err.value)), ((trr.value, bottom), (trr.value, top))]
