"""The paper's Fig. 6: the time of one forward pass while the codebook grows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.reporting.figures.curves import legend_below
from grace_bench.reporting.figures.paper.runs import Missing, PaperFigure, SuiteRuns, describe_seeds
from grace_bench.reporting.figures.style import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from grace_bench.reporting.summary.read import Setting

FILE = "latency.parquet"
TINTS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")


@dataclass(frozen=True)
class Timing:
    """One input at one probe of one run; seconds of one forward pass."""

    seed: int
    n_edits: int
    n_keys: int
    example_id: str
    edited: float
    unedited: float

    @property
    def ratio(self) -> float:
        """Time with the editor over time without: timed together, so that most noise cancels."""
        return self.edited / self.unedited


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
            "seed": t.seed,
            "n_edits": t.n_edits,
            "n_keys": t.n_keys,
            "example_id": t.example_id,
            "seconds": t.edited,
            "seconds_unedited": t.unedited,
        }
        for setting, found in timed.items()
        for t in found
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


def timings(suite: SuiteRuns) -> dict[Setting, list[Timing]]:
    """Return the timings of each editor on each experiment, of its setting with the most keys."""
    best: dict[tuple[Any, str], tuple[float, Setting]] = {}
    for setting, runs in suite.runs.items():
        if not any(FILE in run.record["files"] for run in runs):
            continue
        if keys := [p.estimate.value for p in suite.points(setting, "n_keys")]:
            place = (setting.experiment, setting.editor)
            if place not in best or keys[-1] > best[place][0]:
                best[place] = (keys[-1], setting)
    return {setting: _read(suite, setting) for _, setting in best.values()}


def _read(suite: SuiteRuns, setting: Setting) -> list[Timing]:
    found = []
    for run in suite.runs[setting]:
        if FILE in run.record["files"]:
            found += [
                Timing(
                    run.spec["seed"],
                    row["n_edits"],
                    row["n_keys"],
                    row["example_id"],
                    row["seconds"],
                    row["seconds_unedited"],
                )
                for row in run.table(FILE).to_pylist()
                if row["n_keys"] is not None
            ]
    return found


def draw_latency(figure: Figure, timed: dict[Setting, list[Timing]]) -> None:
    """Draw milliseconds against edits on the left, the ratio against keys on the right."""
    left, right = figure.subplots(1, 2)
    handles = []
    for index, (setting, found) in enumerate(timed.items()):
        tint = TINTS[index % len(TINTS)]
        _draw(left, found, lambda t: 1000 * t.edited, tint)
        _draw(left, found, lambda t: 1000 * t.unedited, tint, "--", band=False)
        _draw(right, found, lambda t: t.ratio, tint, over_keys=True)
        keys = max(t.n_keys for t in found)
        overall = median(t.ratio for t in found)
        size = f", radius {setting.values['radius']:g}" if "radius" in setting.values else ""
        label = (
            f"{setting.editor_label} on {setting.experiment.title}{size}: up to {keys} keys, "
            f"{overall:.2f} times the unedited model"
        )
        handles.append(Line2D([], [], color=tint, label=label))
    left.set_title("one forward pass, one input")
    left.set_ylabel("milliseconds \u2193")
    left.set_xlabel("edits")
    slowest = max(1000 * max(t.edited, t.unedited) for found in timed.values() for t in found)
    fastest = min(1000 * min(t.edited, t.unedited) for found in timed.values() for t in found)
    if slowest > 10 * fastest:
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


def _draw(
    axes: Axes,
    found: Sequence[Timing],
    value: Callable[[Timing], float],
    tint: str,
    linestyle: str = "-",
    band: bool = True,
    over_keys: bool = False,
) -> None:
    """Draw the median over seeds at each number of edits, or at their mean number of keys."""
    by_edits: dict[int, list[Timing]] = {}
    for timing in found:
        by_edits.setdefault(timing.n_edits, []).append(timing)
    places, middles, lows, highs = [], [], [], []
    for n_edits in sorted(by_edits):
        at = by_edits[n_edits]
        values = [value(t) for t in at]
        places.append(sum(t.n_keys for t in at) / len(at) if over_keys else n_edits)
        low, middle, high = (
            quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        )
        middles.append(middle)
        lows.append(low)
        highs.append(high)
    axes.plot(places, middles, color=tint, linestyle=linestyle, marker=".", ms=3)
    if band:
        axes.fill_between(places, lows, highs, color=tint, alpha=0.15, linewidth=0)
