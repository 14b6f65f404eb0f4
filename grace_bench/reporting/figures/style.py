"""The common look of all figures: colours, markers, axes, files."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from grace_bench import __version__
from grace_bench.metrics import Measure
from grace_bench.registry import editor_spec
from grace_bench.reporting.summary.read import Setting
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.store import files

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
"""Lists the paper's figures: what each shows, or why it is missing."""

GREY = "#7f7f7f"
PAGE = 7.0


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn.

    Args:
        name: of its files.
        size: width and height in inches.
        draw: draws it on an empty figure.
    """

    name: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


# For editors whose spec names none. Specs use Okabe and Ito's, distinct to the colour-blind.
_MORE = ("#000000", "#5D3A9B", "#8B8000", "#994F00", "#1A85FF", "#4B0092")


def colours(settings: Sequence[Setting]) -> dict[str, str]:
    """Return the colour of every editor: its spec's, else one by the order of names."""
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
    """Return the drawing order: the unedited model at the back, GRACE in front."""
    return 2 + min(editor_spec(setting.editor_class).order, 8.5) / 10


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in the common style, without pyplot and its global state."""
    with mpl.rc_context(STYLE):
        # The constrained layout gives titles, labels and legends room of their own.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def draw(drawing: Drawing, folder: Path, provenance: Mapping[str, str]) -> list[Path]:
    """Draw a figure and write it as PDF and PNG."""
    with new_figure(*drawing.size) as figure:
        drawing.draw(figure)
        return save(figure, folder, drawing.name, provenance)


def save(figure: Figure, folder: Path, name: str, provenance: Mapping[str, str]) -> list[Path]:
    """Write a figure as PDF and PNG, without dates: the same data give the same bytes."""
    origin = "; ".join(f"{key}: {value}" for key, value in provenance.items())
    software = f"grace-bench {__version__}"
    metadata = {
        "pdf": {"Title": name, "Creator": software, "Subject": origin, "CreationDate": None},
        "png": {"Title": name, "Software": software, "Description": origin},
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
    """Write the data of a figure; numbers are the shortest decimals that read back equal."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with files.atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path


def ordered_tints(n: int) -> list[str]:
    """Return colours for ordered values (radii, blocks), dark to light, distinct in grey, too."""
    shades = mpl.colormaps["viridis"]
    return [mpl.colors.to_hex(shades(0.85 * i / max(1, n - 1))) for i in range(n)]


def scale_axis(axes: Axes, which: str, scale: str, low: float, high: float) -> None:
    """Scale one axis around its data, by the scale of its measure."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    if scale == "log":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        set_limits(low / 1.25, high * 1.25)
        if high / low < 4:  # too few powers of ten to label
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_short))
    elif scale == "share":
        margin = max(0.04, 0.08 * (high - low))
        set_limits(max(-0.03, low - margin), min(1.03, high + margin))
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        margin = 0.08 * (high - low) or 0.5
        set_limits(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def make_headroom(axes: Axes, measure: Measure) -> None:
    """Leave room for a name beyond the best editors, whose scores lie at the axis's better end."""
    low, high = axes.get_ylim()
    is_log, room = measure.scale == "log", 0.06 * (high - low)
    if measure.higher_is_better:
        axes.set_ylim(low, high * (high / low) ** 0.06 if is_log else high + room)
    else:
        axes.set_ylim(low * (low / high) ** 0.06 if is_log else low - room, high)


def _short(value: float, _: object) -> str:
    return f"{value:g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
