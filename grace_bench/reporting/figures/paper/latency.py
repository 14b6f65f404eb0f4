"""The paper's Fig. 6: the time of one forward pass while the codebook grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.reporting.figures.curves import legend_below
from grace_bench.reporting.figures.paper.runs import Missing, PaperFigure, SuiteRuns, describe_seeds
from grace_bench.reporting.figures.style import PAGE
from grace_bench.reporting.summary.read import Setting

FILE = "latency.parquet"
MIDDLE = [0.25, 0.5, 0.75]  # quartiles
TINTS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")


COLUMNS = ("seed", "n_edits", "n_keys", "example_id", "seconds", "seconds_unedited")


def figure_6(suite: SuiteRuns) -> Iterator[PaperFigure | Missing]:
    """Yield one figure of all timed experiments, one line each."""
    timed = timings(suite)
    if not timed:
        yield Missing(6, "no run of an editor with keys was timed; set probes.latency.")
        return
    rows = [
        {
            "model": setting.experiment.model,
            "dataset": setting.experiment.dataset,
            "editor": setting.editor,
            "radius": setting.values.get("radius"),
            **row,
        }
        for setting, found in timed.items()
        for row in found[list(COLUMNS)].to_dict("records")
    ]
    yield PaperFigure(
        number=6,
        name="fig6-inference-time",
        caption="Time of one forward pass of one input against edits, and its ratio to the model "
        "without the editor against keys, both timed by turns. Lines: medians over inputs and "
        f"seeds ({describe_seeds(timed, suite)}), bands: their middle half. Of each editor on each "
        "model and data set, the setting with the most keys.",
        size=(PAGE, 2.6 + 0.16 * len(timed)),
        draw=partial(draw_latency, timed=timed),
        rows=rows,
    )


def timings(suite: SuiteRuns) -> dict[Setting, pd.DataFrame]:
    """Return the timings of each editor on each experiment, of its setting with the most keys.

    They have COLUMNS and `ratio`: time with the editor over time without. Both were measured
    together, so that most noise cancels.
    """
    best: dict[tuple[Any, str], tuple[float, Setting]] = {}
    for setting, runs in suite.runs.items():
        if not any(FILE in run.record.files for run in runs):
            continue
        if keys := [p.estimate.value for p in suite.points(setting, "n_keys")]:
            place = (setting.experiment, setting.editor)
            if place not in best or keys[-1] > best[place][0]:
                best[place] = (keys[-1], setting)
    return {setting: _read(suite, setting) for _, setting in best.values()}


def _read(suite: SuiteRuns, setting: Setting) -> pd.DataFrame:
    tables = [
        run.table(FILE).to_pandas().assign(seed=run.spec.seed)
        for run in suite.runs[setting]
        if FILE in run.record.files
    ]
    found = pd.concat(tables).dropna(subset="n_keys").astype({"n_keys": int})
    return found.assign(ratio=found["seconds"] / found["seconds_unedited"])


def draw_latency(figure: Figure, timed: dict[Setting, pd.DataFrame]) -> None:
    """Draw milliseconds against edits on the left, the ratio against keys on the right."""
    left, right = figure.subplots(1, 2)
    handles = []
    for index, (setting, found) in enumerate(timed.items()):
        tint = TINTS[index % len(TINTS)]
        by_edits = found.groupby("n_edits")
        n_keys = by_edits["n_keys"].mean()
        _draw(left, n_keys.index, 1000 * by_edits["seconds"].quantile(MIDDLE).unstack(), tint)
        unedited = 1000 * by_edits["seconds_unedited"].median()
        left.plot(unedited.index, unedited, color=tint, linestyle="--", marker=".", ms=3)
        _draw(right, n_keys, by_edits["ratio"].quantile(MIDDLE).unstack(), tint)
        size = f", radius {setting.values['radius']:g}" if "radius" in setting.values else ""
        label = (
            f"{setting.editor_label} on {setting.experiment.title}{size}: up to "
            f"{found['n_keys'].max()} keys, {found['ratio'].median():.2f} times the unedited model"
        )
        handles.append(Line2D([], [], color=tint, label=label))
    left.set_title("one forward pass, one input")
    left.set_ylabel("milliseconds \u2193")
    left.set_xlabel("edits")
    everything = pd.concat(timed.values())[["seconds", "seconds_unedited"]]
    if everything.max(axis=None) > 10 * everything.min(axis=None):
        left.set_yscale("log")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        left.set_ylim(bottom=0)
    right.axhline(1, color="black", linestyle=":", linewidth=1)
    right.set_title("with the editor / without")
    right.set_ylabel("ratio \u2193")
    right.set_xlabel("keys")
    right.set_ylim(bottom=min(0.9, right.get_ylim()[0]))
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    handles.append(Line2D([], [], color="black", linestyle="--", label="left: without the editor"))
    legend_below(figure, handles, columns=1)


def _draw(axes: Axes, x: Sequence[float], quartiles: pd.DataFrame, tint: str) -> None:
    """Draw the medians over inputs and seeds, and a band around their middle half."""
    low, middle, high = (quartiles[q] for q in MIDDLE)
    axes.plot(x, middle, color=tint, marker=".", ms=3)
    axes.fill_between(x, low, high, color=tint, alpha=0.15, linewidth=0)
