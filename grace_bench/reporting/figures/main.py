"""The figures of a suite, each as PDF (text as text) and PNG.

    write_figures(Path("results/smoke/summary.parquet"), Path("results/smoke/curves.parquet"),
                  Path("results/smoke/figures"))

overview (ERR and holdout against TRR), retention-<model>-<dataset> (metrics against edits),
codebook-size (keys against edits, where keys are fewer), sweep-<editor> (metrics against a swept
number).
Bands and crosses are the 95 % intervals of the summary. Seeds whose run failed are in no line and
no point: a dotted line of its own shows how far each came.
"""

from __future__ import annotations

import logging
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.figures.style import (
    FAILED_STYLE,
    GREY,
    PAGE,
    colours,
    layer,
    line_style,
    make_headroom,
    marker,
    new_figure,
    place_labels,
    save,
    scale_axis,
)
from grace_bench.reporting.summary.read import (
    Estimate,
    Experiment,
    Point,
    Setting,
    Summary,
    read_curves,
    read_failed_curves,
    varying,
)
from grace_bench.reporting.summary.write import UNEDITED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

KINDS = ("sweep-", "retention-", "codebook-", "trade-off")
"""How the names of figures begin, also of earlier versions: what is not made now is removed."""

Curves = dict[tuple[Setting, str], list[Point]]
FailedCurves = dict[tuple[Setting, str], dict[int, list[Point]]]  # by seed


def write_figures(summary: Path, curves: Path, folder: Path) -> list[Path]:
    """Write all figures of a summary into `folder` and return their paths.

    Figures of an earlier call that are no longer made are removed.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    data, folder = Summary(summary), Path(folder)
    points, failed = read_curves(curves, data), read_failed_curves(curves, data)
    provenance = data.provenance
    paths = []
    for experiment in data.experiments:
        name = f"retention-{experiment.model}-{experiment.dataset}"
        with new_figure(PAGE, 4.4) as figure:
            draw_retention(figure, data, points, experiment, failed)
            paths += save(figure, folder, name, provenance)
    if reusing := [e for e in data.experiments if _reuses_keys(data, points, e)]:
        with new_figure(PAGE * max(1.5, min(3, len(reusing))) / 3, 2.7) as figure:
            draw_codebook_sizes(figure, data, points, reusing)
            paths += save(figure, folder, "codebook-size", provenance)
    else:
        logger.info("codebook-size is not drawn: no codebook has fewer keys than edits.")
    panels, rows = len(data.experiments), len(_kept_metrics(data))
    across = max(1.5, min(3, panels)) / 3  # one panel alone gets half the width
    with new_figure(10.0 * across, 3.3 * rows * math.ceil(panels / 3)) as figure:
        draw_overview(figure, data)
        paths += save(figure, folder, "overview", provenance)
    for editor, cells in data.sweeps().items():
        shown = {e: cells[e] for e in data.experiments if e in cells and _swept_number(cells[e])}
        if shown:
            with new_figure(PAGE, 2.1 * len(shown) + 0.3) as figure:
                draw_sweep(figure, data, shown)
                paths += save(figure, folder, f"sweep-{editor}", provenance)
    made = set(paths)
    for old in [path for kind in KINDS for path in folder.glob(f"{kind}*")]:
        if old not in made and old.suffix in (".pdf", ".png"):
            old.unlink(missing_ok=True)
    return paths


def draw_retention(
    figure: Figure,
    data: Summary,
    curves: Curves,
    experiment: Experiment,
    failed: FailedCurves | None = None,
) -> None:
    """Draw each metric against the number of edits, one line an editor."""
    settings = data.configured(experiment)
    tints = colours(data.settings)
    failed = failed or {}
    lines = {
        (s, m): [curves.get((s, m), []), *failed.get((s, m), {}).values()]
        for s in settings
        for m in METRICS
    }
    metrics = [name for name in METRICS if any(any(lines[s, name]) for s in settings)]
    drawn = [point.n_edits for found in lines.values() for line in found for point in line]
    longest = max(1, *drawn, 1)
    grid = figure.subplots(max(1, math.ceil(len(metrics) / 2)), 2, squeeze=False)
    measure = MEASURES[experiment.measure]
    for axes, name in zip(grid.flat, metrics, strict=False):
        shown: list[Estimate] = []
        for setting in settings:
            points = curves.get((setting, name), [])
            shown += [point.estimate for line in lines[setting, name] for point in line]
            draw_curve(axes, setting, points, tints[setting.editor])
            draw_failed(axes, failed.get((setting, name), {}), tints[setting.editor])
        scale(axes, "y", experiment, shown)
        arrow = "\u2191" if measure.higher_is_better else "\u2193"
        axes.set_title(f"{METRICS[name].label}: {METRICS[name].definition.split(':')[0]}")
        axes.set_ylabel(f"{measure.label} {arrow}")
        axes.set_xlabel("edits")
        axes.set_xlim(-0.02 * longest, 1.02 * longest)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in list(grid.flat)[len(metrics) :]:
        axes.set_axis_off()
    figure.suptitle(experiment.title, fontsize=9.5)
    editor_legend(figure, settings, tints, any(data.failures(s) for s in settings))


def draw_failed(axes: Axes, curves: Mapping[int, Sequence[Point]], tint: str) -> None:
    """Draw how far each failed seed came, with a cross where its curve ends."""
    for curve in curves.values():
        points = [p for p in curve if p.estimate.is_finite]
        if points:
            x = [point.n_edits for point in points]
            y = [point.estimate.value for point in points]
            axes.plot(x, y, color=tint, markevery=[-1], zorder=1.5, **FAILED_STYLE)


def draw_curve(axes: Axes, setting: Setting, points: Sequence[Point], tint: str) -> None:
    """Draw one setting's metric: a line through all points, dots and a band at probes."""
    points = [p for p in points if p.estimate.is_finite]
    if not points:
        return
    style = {"color": tint, "linestyle": line_style(setting), "zorder": layer(setting)}
    if len(points) == 1 and setting.editor_class == UNEDITED:
        # The unedited model makes no edits: one value for all numbers of edits.
        axes.axhline(points[0].estimate.value, **style)
        return
    x = [point.n_edits for point in points]
    axes.plot(x, [p.estimate.value for p in points], **style)
    # Averages between probes have no interval.
    probes = [p for p in points if p.estimate.low is not None]
    x = [point.n_edits for point in probes]
    axes.plot(x, [p.estimate.value for p in probes], color=tint, linestyle="", marker=".", ms=3)
    low = [p.estimate.bounds[0] for p in probes]
    high = [p.estimate.bounds[1] for p in probes]
    axes.fill_between(x, low, high, color=tint, alpha=0.13, linewidth=0, zorder=1)


def scale(axes: Axes, which: str, experiment: Experiment, shown: Sequence[Estimate]) -> None:
    """Scale one axis to what is shown on it, intervals included."""
    shown = [estimate for estimate in shown if estimate.is_finite]
    if shown:
        low = min(e.bounds[0] for e in shown)
        high = max(e.bounds[1] for e in shown)
        scale_axis(axes, which, experiment.is_perplexity, low, high)


LEGEND_ENTRY_INCHES = 1.3
"""Width of a line's name in a legend: "FT+Retrain" and its handle."""


def editor_legend(
    figure: Figure,
    settings: Sequence[Setting],
    tints: dict[str, str],
    with_failed: bool = False,
) -> None:
    """Name the editors' colours below all axes; and how failed seeds are drawn, if there are."""
    unique = {s.editor: s for s in settings}
    handles = [
        Line2D([], [], color=tints[name], linestyle=line_style(s), label=s.editor_label)
        for name, s in unique.items()
    ]
    if with_failed:
        handles.append(Line2D([], [], color=GREY, label="a seed that failed", **FAILED_STYLE))
    # Outside the axes, so that it can hide no data.
    columns = max(1, int(figure.get_figwidth() / LEGEND_ENTRY_INCHES))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        frameon=False,
    )


def _reuses_keys(data: Summary, curves: Curves, experiment: Experiment) -> bool:
    """Whether any codebook of an experiment has fewer keys than edits were made."""
    ends = [curves[s, "n_keys"][-1] for s in data.configured(experiment) if (s, "n_keys") in curves]
    return any(end.estimate.is_finite and end.estimate.value < end.n_edits for end in ends)


def draw_codebook_sizes(
    figure: Figure, data: Summary, curves: Curves, experiments: Sequence[Experiment]
) -> None:
    """Draw the number of keys against the number of edits, one panel an experiment."""
    tints = colours(data.settings)
    grid = figure.subplots(1, len(experiments), squeeze=False)
    drawn: dict[str, Setting] = {}
    for axes, experiment in zip(grid.flat, experiments, strict=False):
        longest = 1
        for setting in data.configured(experiment):
            points = curves.get((setting, "n_keys"), [])
            if points:
                drawn[setting.editor] = setting
                longest = max(longest, points[-1].n_edits)
                x = [point.n_edits for point in points]
                tint = tints[setting.editor]
                axes.plot(x, [p.estimate.value for p in points], color=tint, zorder=layer(setting))
                low = [p.estimate.bounds[0] for p in points]
                high = [p.estimate.bounds[1] for p in points]
                axes.fill_between(x, low, high, color=tint, alpha=0.15, linewidth=0)
        axes.plot([0, longest], [0, longest], color="black", linestyle=":", linewidth=1, zorder=3.5)
        axes.set_title(experiment.title)
        axes.set_xlabel("edits")
        axes.set_ylabel("keys")
        axes.set_xlim(0, longest * 1.02)
        axes.set_ylim(0, longest * 1.05)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
    handles = [
        Line2D([], [], color=tints[name], label=setting.editor_label)
        for name, setting in drawn.items()
    ]
    handles.append(Line2D([], [], color="black", linestyle=":", label="one key per edit"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


AXES = {
    "err": "ERR (edits retained) \u2192",
    "holdout": "Holdout (other phrasings) \u2192",
}


def _kept_metrics(data: Summary) -> list[str]:
    """Return the metrics that the overview sets against TRR: ERR, and holdout if it is known."""
    shown = [(s, s.experiment.measure) for e in data.experiments for s in data.configured(e)]
    known = [name for name in AXES if any(data.get(s, name, m).is_finite for s, m in shown)]
    return known or ["err"]


def draw_overview(figure: Figure, data: Summary) -> None:
    """Draw ERR and holdout against TRR after all edits, better to the upper right everywhere."""
    tints = colours(data.settings)
    experiments, metrics = data.experiments, _kept_metrics(data)
    columns = min(3, len(experiments))
    blocks = math.ceil(len(experiments) / columns)
    grid = figure.subplots(blocks * len(metrics), columns, squeeze=False)
    unused = set(grid.flat)
    labels = []
    for index, experiment in enumerate(experiments):
        for row, metric in enumerate(metrics):
            axes = grid[index // columns * len(metrics) + row, index % columns]
            unused.discard(axes)
            measure = experiment.measure
            pairs = [
                (s, data.get(s, "trr", measure), data.get(s, metric, measure))
                for s in data.configured(experiment)
            ]
            shown = [item for item in pairs if item[1].is_finite and item[2].is_finite]
            _draw_against_retention(axes, experiment, shown, tints)
            if row == 0:
                turned = ", axes reversed" if experiment.is_perplexity else ""
                label = MEASURES[measure].label
                axes.set_title(f"{experiment.title}\n({label}{turned})")
            axes.set_xlabel("TRR (upstream retained) \u2192" + _failed_line(data, experiment))
            axes.set_ylabel(AXES[metric])
            labels.append((axes, shown))
    for axes in unused:
        axes.set_axis_off()
    for axes, shown in labels:
        if not shown:
            continue  # every run failed
        places = [(trr.value, kept.value) for _, trr, kept in shown]
        names = [setting.editor_label for setting, _, _ in shown]
        crosses = [line for _, trr, kept in shown for line in _cross(trr, kept)]
        shades = [tints[setting.editor] for setting, _, _ in shown]
        place_labels(axes, places, names, shades, crosses)


def _draw_against_retention(
    axes: Axes,
    experiment: Experiment,
    shown: Sequence[tuple[Setting, Estimate, Estimate]],
    tints: Mapping[str, str],
) -> None:
    scale(axes, "x", experiment, [trr for _, trr, _ in shown])
    scale(axes, "y", experiment, [kept for _, _, kept in shown])
    make_headroom(axes, experiment.is_perplexity)
    if experiment.is_perplexity:
        # Turned round: better is up and to the right here too.
        axes.invert_xaxis()
        axes.invert_yaxis()
    for setting, trr, kept in shown:
        _draw_cross(axes, setting, trr, kept, tints[setting.editor])


def _failed_line(data: Summary, experiment: Experiment) -> str:
    """Return the line below a panel that names editors with failed seeds: no point has them."""
    failed = data.failed_settings(experiment)
    return "\n" + textwrap.fill(f"failed: {', '.join(failed)}", 44) if failed else ""


def _cross(trr: Estimate, err: Estimate) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the ends of the two interval lines of a point."""
    left, right = trr.bounds
    bottom, top = err.bounds
    return [((left, err.value), (right, err.value)), ((trr.value, bottom), (trr.value, top))]


def _draw_cross(axes: Axes, setting: Setting, trr: Estimate, err: Estimate, tint: str) -> None:
    def around(estimate: Estimate) -> list[list[float]]:
        low, high = estimate.bounds
        # A percentile interval need not hold its estimate.
        return [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]

    axes.errorbar(
        trr.value,
        err.value,
        xerr=around(trr),
        yerr=around(err),
        color=tint,
        marker=marker(setting),
        markersize=5.5 if setting.editor_class != UNEDITED else 6,
        elinewidth=0.9,
        zorder=layer(setting),
    )


def _swept_number(settings: Sequence[Setting]) -> str | None:
    """Return the one hyperparameter with several numbers that a sweep can be drawn against."""
    for name in varying(settings):
        values = [setting.values.get(name) for setting in settings]
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if numeric and len(set(values)) > 1:
            return name
    return None


def draw_sweep(figure: Figure, data: Summary, cells: dict[Experiment, list[Setting]]) -> None:
    """Draw TRR, ERR, holdout (or ARR) and keys against a swept number, a row an experiment."""
    tints = colours(data.settings)
    grid = figure.subplots(len(cells), 4, squeeze=False)
    for row, (experiment, settings) in zip(grid, cells.items(), strict=True):
        swept = _swept_number(settings)
        third = "arr" if experiment.is_perplexity else "holdout"
        for axes, metric in zip(row, ("trr", "err", third, "n_keys"), strict=True):
            measure = None if metric == "n_keys" else experiment.measure
            shown = [(s, data.get(s, metric, measure)) for s in settings]
            shown = [item for item in shown if item[1].is_finite]
            if not shown:
                axes.set_axis_off()
                continue
            for line in _lines(shown, swept):
                _draw_sweep_line(axes, line, swept, tints[settings[0].editor])
            if measure is not None:
                scale(axes, "y", experiment, [estimate for _, estimate in shown])
            else:
                axes.set_ylim(0, 1.1 * max(e.high or e.value for _, e in shown))
            for setting in (s for s in settings if data.failures(s)):
                x, style = setting.values[swept], {"marker": "x", "ms": 5, "clip_on": False}
                axes.plot(x, 0, color=GREY, transform=axes.get_xaxis_transform(), **style)
            _scale_swept(axes, sorted({s.values[swept] for s in settings}))
            axes.set_title("keys" if measure is None else METRICS[metric].label)
            axes.set_xlabel(swept.replace("_", " "))
        row[0].set_ylabel(f"{experiment.title}\n{MEASURES[experiment.measure].label}")
    style = {"color": GREY, "linestyle": ""}
    handles = [
        Line2D([], [], marker="o", label="as configured", **style),
        Line2D([], [], marker="o", fillstyle="none", label="swept", **style),
    ]
    if any(data.failures(s) for settings in cells.values() for s in settings):
        handles.append(Line2D([], [], marker="x", label="seeds failed here", **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _lines(
    shown: Sequence[tuple[Setting, Estimate]], swept: str
) -> list[list[tuple[Setting, Estimate]]]:
    """Return one line for each combination of the other hyperparameters."""
    lines: dict[str, list[tuple[Setting, Estimate]]] = {}
    for setting, estimate in shown:
        others = {key: value for key, value in setting.values.items() if key != swept}
        lines.setdefault(repr(sorted(others.items())), []).append((setting, estimate))
    return [sorted(line, key=lambda item: item[0].values[swept]) for line in lines.values()]


def _draw_sweep_line(
    axes: Axes, line: Sequence[tuple[Setting, Estimate]], swept: str, tint: str
) -> None:
    x = [setting.values[swept] for setting, _ in line]
    y = [estimate.value for _, estimate in line]
    # A percentile interval need not hold its estimate.
    spread = [
        [max(0.0, e.value - e.bounds[0]) for _, e in line],
        [max(0.0, e.bounds[1] - e.value) for _, e in line],
    ]
    axes.errorbar(x, y, yerr=spread, color=tint, elinewidth=0.9, zorder=2)
    for setting, estimate in line:
        face = "white" if setting.in_sweep else tint
        axes.plot(
            setting.values[swept],
            estimate.value,
            marker="o",
            markersize=4.5,
            color=tint,
            markerfacecolor=face,
            zorder=3,
        )


def _scale_swept(axes: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= 10:
        axes.set_xscale("log")
        axes.set_xlim(values[0] / 1.4, values[-1] * 1.4)
    axes.set_xticks(values if len(values) <= 6 else values[:: math.ceil(len(values) / 6)])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
