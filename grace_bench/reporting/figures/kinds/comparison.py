"""A forest plot: a reference editor minus each other one, one figure per experiment."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grace_bench.metrics import MEASURES
from grace_bench.reporting.comparison.differences import Difference
from grace_bench.reporting.figures.curves import legend_below
from grace_bench.reporting.figures.style import GREY, PAGE, Drawing
from grace_bench.reporting.summary.read import Curves, Summary

CAPTION = (
    "Differences over the same facts and seeds with 95% intervals; right of 0, the first editor "
    "is better. Filled: a difference is shown, after Holm's correction over all experiments, for "
    "other seeds, too (blue) or with these seeds (light)."
)
COLUMNS = 3
LINE = "#0072B2"
FILLS = {"seeds": LINE, "facts": "#9ecae1", None: "white"}
"""By for whom a difference is shown."""

NAMES = {
    "seeds": "shown for other seeds, too",
    "facts": "shown with these seeds",
    None: "not shown",
}
DOT = {"marker": "o", "markersize": 4.5, "color": LINE, "linestyle": ""}

Panels = Mapping[str, Sequence[tuple[str, Difference]]]
"""By title, each row's name and its difference."""


def make(summary: Summary, curves: Curves) -> list[Drawing]:
    """Return one figure per experiment, with a panel for each metric."""
    drawings = []
    for _, found in itertools.groupby(summary.comparisons, key=lambda d: (d.model, d.dataset)):
        members = list(found)
        panels: dict[str, list[tuple[str, Difference]]] = {}
        for one in members:
            panels.setdefault(one.label, []).append((one.second_label, one))
        first = members[0]
        title = f"{first.title}: {first.first_label} minus the others"
        drawings.append(forest(f"comparison-{first.model}-{first.dataset}", title, panels))
    return drawings


def forest(name: str, title: str, panels: Panels) -> Drawing:
    """Return a forest plot."""
    lines = -(-len(panels) // COLUMNS)
    height = 0.9 + lines * (0.75 + 0.2 * max(map(len, panels.values())))
    return Drawing(name, (PAGE, height), partial(_draw, title=title, panels=panels))


def _draw(figure: Figure, title: str, panels: Panels) -> None:
    columns = min(COLUMNS, len(panels))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for axes, (name, rows) in itertools.zip_longest(grid.flat, panels.items(), fillvalue=("", ())):
        axes.set_title(name)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for height, (_, one) in enumerate(reversed(rows)):
            sign = 1 if MEASURES[one.measure].higher_is_better else -1
            if one.low is not None and one.high is not None:
                ends = (sign * one.low, sign * one.high)
                axes.plot(ends, (height, height), color=LINE, linewidth=1.1)
            axes.plot(sign * one.difference, height, markerfacecolor=FILLS[one.shown], **DOT)
        axes.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(f"{rows[0][1].first_label} better \u2192" if rows else "")
        axes.set_visible(bool(rows))
    figure.suptitle(title, fontsize=9.5)
    handles = [
        Line2D([], [], label=NAMES[shown], markerfacecolor=fill, **DOT)
        for shown, fill in FILLS.items()
    ]
    legend_below(figure, handles)
