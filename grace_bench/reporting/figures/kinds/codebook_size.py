"""The number of keys against the number of edits, where a codebook has fewer keys than edits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.reporting.figures.curves import draw_keys, legend_below
from grace_bench.reporting.figures.style import PAGE, Drawing, colours, layer
from grace_bench.reporting.summary.read import Curves, Experiment, Setting, Summary

logger = logging.getLogger(__name__)

CAPTION = "Keys against edits: below the dotted line, edits share keys."


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure with a panel per experiment, or none if no edits share keys."""
    reusing = [e for e in summary.experiments if _reuses_keys(summary, curves, e)]
    if not reusing:
        logger.info("codebook-size is not drawn: no codebook has fewer keys than edits.")
        return []
    size = (PAGE * max(1.5, min(3, len(reusing))) / 3, 2.7)
    draw = partial(_draw, summary=summary, curves=curves, experiments=reusing)
    return [Drawing(name="codebook-size", size=size, draw=draw)]


def _reuses_keys(summary: Summary, curves: Curves, experiment: Experiment) -> bool:
    """Whether any codebook of an experiment has fewer keys than edits were made."""
    found = [curves.of(setting, "n_keys") for setting in summary.configured(experiment)]
    ends = [points[-1] for points in found if points]
    return any(end.estimate.is_finite and end.estimate.value < end.n_edits for end in ends)


def _draw(
    figure: Figure, summary: Summary, curves: Curves, experiments: Sequence[Experiment]
) -> None:
    tints = colours(summary.settings)
    grid = figure.subplots(1, len(experiments), squeeze=False)
    drawn: dict[str, Setting] = {}
    for axes, experiment in zip(grid.flat, experiments, strict=False):
        longest = 1
        for setting in summary.configured(experiment):
            if points := curves.of(setting, "n_keys"):
                drawn[setting.editor] = setting
                longest = max(longest, points[-1].n_edits)
                draw_keys(axes, points, tints[setting.editor], layer(setting))
        axes.plot([0, longest], [0, longest], color="black", linestyle=":", linewidth=1, zorder=3.5)
        axes.set_title(experiment.title)
        axes.set_xlabel("edits")
        axes.set_ylabel("keys")
        axes.set_xlim(0, longest * 1.02)
        axes.set_ylim(0, longest * 1.05)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
    handles = [Line2D([], [], color=tints[n], label=s.editor_label) for n, s in drawn.items()]
    handles.append(Line2D([], [], color="black", linestyle=":", label="one key per edit"))
    legend_below(figure, handles)
