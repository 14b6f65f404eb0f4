"""Critical-difference diagrams: mean ranks over data sets, where there are enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grace_bench.metrics import METRICS
from grace_bench.reporting.comparison.ranks import Ranks, rank_editors
from grace_bench.reporting.figures.style import PAGE, Drawing
from grace_bench.reporting.summary.read import Curves, Summary

CAPTION = (
    "Mean ranks over data sets, the best on the left. Bars join editors that Nemenyi's test does "
    "not tell apart (5%); all are joined if Friedman's test finds no difference."
)
STEP = 0.22
"""Inches between two names."""


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure with a diagram for each metric; none if there are too few data sets."""
    ranks = rank_editors(summary)
    if not ranks:
        return []
    height = sum(0.9 + STEP * (len(found.editors) + 1) / 2 for found in ranks)
    return [Drawing("ranks", (PAGE * 0.8, height), partial(_draw, ranks=ranks))]


def _draw(figure: Figure, ranks: Sequence[Ranks]) -> None:
    panels = figure.subplots(len(ranks), 1, squeeze=False)[:, 0]
    for axes, found in zip(panels, ranks, strict=True):
        _diagram(axes, found)


def _diagram(axes: Axes, found: Ranks) -> None:
    n = len(found.editors)
    half = (n + 1) // 2
    bars = found.alike
    first_name = -0.6 - 0.3 * len(bars)
    for place, (editor, mean) in enumerate(zip(found.editors, found.means, strict=True)):
        on_left = place < half
        height = first_name - (place if on_left else n - 1 - place)
        end = 1 - 0.1 if on_left else n + 0.1
        axes.plot((mean, mean, end), (0, height, height), color="black", linewidth=0.8)
        text = f"{editor} {mean:.2f} " if on_left else f" {mean:.2f} {editor}"
        align = "right" if on_left else "left"
        axes.text(end, height, text, ha=align, va="center", fontsize=7.5)
    for number, (start, stop) in enumerate(bars):
        ends = (found.means[start] - 0.04, found.means[stop] + 0.04)
        height = -0.4 - 0.3 * number
        axes.plot(ends, (height, height), color="black", linewidth=2.5, solid_capstyle="butt")
    reach = found.critical_difference
    axes.plot((1, 1 + reach), (1.3, 1.3), color="black", marker="|", linewidth=1)
    style = {"ha": "center", "va": "bottom", "fontsize": 7}
    axes.text(1 + reach / 2, 1.4, "critical difference", **style)
    room = 0.4 * (n - 1)
    axes.set_xlim(1 - room, n + room)
    axes.set_ylim(first_name - half + 0.4, 2.2)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set(visible=True, position=("data", 0), bounds=(1, n))
    axes.xaxis.set_ticks_position("top")
    axes.set_xticks(range(1, n + 1))
    axes.set_yticks([])
    axes.grid(False)
    axes.set_title(f"{METRICS[found.metric].label}, {found.n_datasets} data sets")
