"""The common look of all figures: colours, axes, labels that keep out of each other's way."""

from __future__ import annotations

import contextlib
import csv
import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from grace_bench import __version__
from grace_bench.registry import editor_spec
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.store import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from grace_bench.reporting.summary.read import Setting

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: text stays text, as journals ask
    "svg.hashsalt": "grace-bench",
}
FAILED_STYLE = {"linestyle": ":", "linewidth": 1.0, "marker": "x", "markersize": 4.5}
"""Of the curve of a seed whose run failed."""

INDEX = "figures.json"
"""Beside the paper's figures: what each shows, or why it is not there."""

GREY = "#7f7f7f"
PAGE = 7.0

# Of editors whose spec names none. Specs have Okabe and Ito's, distinct to the colour-blind.
_MORE = ("#000000", "#5D3A9B", "#8B8000", "#994F00", "#1A85FF", "#4B0092")


def colours(settings: Sequence[Setting]) -> dict[str, str]:
    """Return the colour of every editor: that of its spec, or one by the order of names."""
    names = sorted({s.editor for s in settings})
    chosen = {name: colour for name in names if (colour := editor_spec(name).colour)}
    others = [name for name in names if name not in chosen]
    return chosen | {name: _MORE[i % len(_MORE)] for i, name in enumerate(others)}


def marker(setting: Setting) -> str:
    """Return the marker of an editor, a second cue beside its colour."""
    return editor_spec(setting.editor_class).marker


def line_style(setting: Setting) -> str:
    """Return dashes for the unedited model, a line for all editors."""
    return "--" if setting.editor_class == UNEDITED else "-"


def layer(setting: Setting) -> float:
    """Return the drawing order: the unedited model behind, GRACE in front."""
    return 2 + min(editor_spec(setting.editor_class).order, 8.5) / 10


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in the common style; no pyplot, so nothing stays open or global."""
    with mpl.rc_context(STYLE):
        # Laid out by constrained layout: titles, labels and legends get their own room.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, folder: Path, name: str, provenance: Mapping[str, str]) -> list[Path]:
    """Write a figure as PDF and PNG; no dates, so that the same data give the same bytes."""
    said = "; ".join(f"{key}: {value}" for key, value in provenance.items())
    software = f"grace-bench {__version__}"
    metadata = {
        "pdf": {"Title": name, "Creator": software, "Subject": said, "CreationDate": None},
        "png": {"Title": name, "Software": software, "Description": said},
    }
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")  # once is enough for both files
    paths = []
    for kind in ("pdf", "png"):
        path = folder / f"{name}.{kind}"
        with files.atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=200, metadata=metadata[kind])
        paths.append(path)
    return paths


def save_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the data of a figure; numbers are shortest decimals that read back as they were."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with files.atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path


def ordered_tints(n: int) -> list[str]:
    """Return colours for values in an order (radii, blocks), dark to light, apart in grey too."""
    shades = mpl.colormaps["viridis"]
    return [mpl.colors.to_hex(shades(0.85 * i / max(1, n - 1))) for i in range(n)]


def scale_axis(axes: Axes, which: str, logarithmic: bool, low: float, high: float) -> None:
    """Scale one axis around its data: whole range for scores, logarithmic for perplexities."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    if logarithmic:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        set_limits(low / 1.25, high * 1.25)
        if high / low < 4:  # too few powers of ten to label
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_short))
    else:
        margin = max(0.04, 0.08 * (high - low))
        set_limits(max(-0.03, low - margin), min(1.03, high + margin))
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def make_headroom(axes: Axes, logarithmic: bool) -> None:
    """Leave room for a name above the best editors, whose scores lie at the axis's end."""
    low, high = axes.get_ylim()
    if logarithmic:  # to be turned round: the best are at the low end
        axes.set_ylim(low * (low / high) ** 0.06, high)
    else:
        axes.set_ylim(low, high + 0.06 * (high - low))


def _short(value: float, _: object) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


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
    """
    figure = axes.figure
    figure.canvas.draw()  # fixes the layout, and with it what lies where
    renderer = figure.canvas.get_renderer()
    dots = axes.transData.transform(points)
    frame = axes.get_window_extent(renderer)
    per_point = figure.dpi / 72
    apart = 4 * per_point  # names side by side must not read as one
    taken: list[tuple[float, float, float, float]] = [
        (x - 5 * per_point, y - 5 * per_point, x + 5 * per_point, y + 5 * per_point)
        for x, y in dots
    ]
    for ends in lines:
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        edges = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        taken.append(tuple(e + d * per_point for e, d in zip(edges, (-1, -1, 1, 1), strict=True)))
    for index in sorted(range(len(texts)), key=lambda i: (-dots[i][1], dots[i][0])):
        text = axes.annotate(
            texts[index],
            points[index],
            xytext=(0, 0),
            textcoords="offset points",
            color=tints[index],
            fontsize=7.5,
            ha="center",
            va="center",
            zorder=6,
        )
        text.set_in_layout(False)  # a name must not move the axes it was placed in
        extent = text.get_window_extent(renderer)
        width, height = extent.width, extent.height
        best: tuple[float, float, float, tuple[float, float, float, float]] | None = None
        for distance in (4, 8, 13, 19, 26, 36):
            for right, up in (
                (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1),
            ):  # fmt: skip
                away = distance * per_point
                x = dots[index][0] + right * (away + width / 2)
                y = dots[index][1] + up * (away + height / 2)
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                # A crossed line covers little of a name's box but spoils it all the same.
                cost = sum(_overlap(box, other) > 0 for other in taken)
                cost += sum(_overlap(box, other) for other in taken) / (width * height)
                cost += 9 * _outside(box, frame) / (width * height) + distance / 40
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, x, y, box)
        assert best is not None
        _, x, y, box = best
        offset = ((x - dots[index][0]) / per_point, (y - dots[index][1]) / per_point)
        text.set_position(offset)
        taken.append((box[0] - apart, box[1], box[2] + apart, box[3]))
        gap = max(abs(offset[0]) - width / per_point / 2, abs(offset[1]) - height / per_point / 2)
        if gap > 8:
            edge = (
                min(max(dots[index][0], box[0]), box[2]),
                min(max(dots[index][1], box[1]), box[3]),
            )
            start, end = axes.transData.inverted().transform([dots[index], edge])
            line = ((start[0], end[0]), (start[1], end[1]))
            axes.plot(*line, color=tints[index], linewidth=0.6, zorder=5)


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Sequence[float], frame: object) -> float:
    inside = _overlap(box, (frame.x0, frame.y0, frame.x1, frame.y1))  # type: ignore[attr-defined]
    return (box[2] - box[0]) * (box[3] - box[1]) - inside
