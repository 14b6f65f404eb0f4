"""The paper's Fig. 3 (all editors, edit by edit) and Fig. 4 (edited blocks and radii)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grace_bench.metrics import METRICS
from grace_bench.reporting.figures.curves import (
    count_edits,
    draw_curve,
    draw_failed,
    draw_keys,
    editor_legend,
    legend_below,
    measure_label,
    scale,
)
from grace_bench.reporting.figures.paper.runs import (
    Missing,
    PaperFigure,
    SuiteRuns,
    block_names,
    common_name,
    describe_seeds,
    natural,
    radius,
)
from grace_bench.reporting.figures.style import GREY, PAGE, colours, ordered_tints
from grace_bench.reporting.summary.read import Estimate, Experiment, Setting
from grace_bench.reporting.summary.write import UNEDITED

LONG = {"es": "ES: edits right after being made, mean so far", "trr": "TRR: upstream retained"}
SHORT = {
    "trr": "TRR (upstream)",
    "err": "ERR (past edits)",
    "holdout": "held-out phrasings",
    "arr": "ARR (accurate)",
    "n_keys": "number of keys",
}


def figure_3(suite: SuiteRuns) -> Iterator[PaperFigure | Missing]:
    """Yield, for each experiment, ES and TRR of all editors against edits."""
    for experiment in suite.data.experiments:
        settings = suite.data.configured(experiment)
        shown = [m for m in ("es", "trr") if any(len(suite.points(s, m)) > 1 for s in settings)]
        if settings and not any(suite.runs[s] for s in settings):
            yield Missing(3, f"{experiment.title}: every run failed.")
            continue
        if len(shown) < 2:
            yield Missing(3, f"{experiment.title}: no editor was probed twice; lower probes.every.")
            continue
        yield PaperFigure(
            number=3,
            name=f"fig3-{experiment.model}-{experiment.dataset}",
            caption=f"ES and TRR of every editor against edits: {experiment.title}. Bands: 95% "
            f"intervals at probes, {describe_seeds(settings, suite)}.",
            size=(PAGE, 3.0),
            draw=partial(draw_editors, suite=suite, experiment=experiment),
            rows=list(_rows(suite, settings, ("es", "trr"))),
        )


def draw_editors(figure: Figure, suite: SuiteRuns, experiment: Experiment) -> None:
    """Draw ES on the left and TRR on the right, one line per editor."""
    settings = suite.data.configured(experiment)
    tints = colours(suite.data.settings)
    for axes, metric in zip(figure.subplots(1, 2), ("es", "trr"), strict=True):
        shown: list[Estimate] = []
        for setting in settings:
            points = suite.points(setting, metric)
            shown += [point.estimate for point in points]
            draw_curve(axes, setting, points, tints[setting.editor])
            failed = suite.curves.failed_of(setting, metric)
            shown += [point.estimate for line in failed.values() for point in line]
            draw_failed(axes, failed, tints[setting.editor])
        scale(axes, "y", experiment, shown)
        axes.set_title(LONG[metric])
        axes.set_ylabel(f"{METRICS[metric].label}: {measure_label(experiment.measure)}")
        count_edits(axes)
    figure.suptitle(experiment.title, fontsize=9.5)
    editor_legend(figure, settings, tints, any(suite.failed[s] for s in settings))


def figure_4(suite: SuiteRuns) -> Iterator[PaperFigure | Missing]:
    """Yield, for each model on each data set, a grid of radii by metrics, one curve per block."""
    families: dict[tuple[str, str], list[list[Setting]]] = {}
    for experiment in suite.data.experiments:
        for editor, settings in suite.of_radius(experiment).items():
            families.setdefault((suite.family(experiment), editor), []).append(settings)
    several = False
    for (_, editor), per_layer in families.items():
        settings = [setting for of_layer in per_layer for setting in of_layer]
        if len(settings) < 2:
            continue
        several = True
        experiments = [of_layer[0].experiment for of_layer in per_layer]
        model = common_name([e.model for e in experiments])
        label = common_name([e.model_label for e in experiments])
        name = f"fig4-{model}-{experiments[0].dataset}"
        title = f"{settings[0].editor_label} on {experiments[0].dataset_label}, {label}"
        radii = sorted({radius(setting) for setting in settings})
        yield PaperFigure(
            number=4,
            name=name + ("" if editor == "grace" else f"-{editor}"),
            caption=f"{title}: a curve for each edited block, a row for each initial radius. "
            f"Bands: 95% intervals at probes, {describe_seeds(settings, suite)}; dashed: the "
            "unedited model.",
            size=(PAGE, 1.65 * len(radii) + 0.75),
            draw=partial(draw_blocks, suite=suite, settings=settings, title=title),
            rows=list(_rows(suite, settings, ("trr", "err", "holdout", "arr", "n_keys"))),
        )
    if not several:
        yield Missing(
            4, "no editor with keys was run with two radii, or on two layers of one model."
        )


def draw_blocks(figure: Figure, suite: SuiteRuns, settings: Sequence[Setting], title: str) -> None:
    """Draw TRR, ERR, holdout (or ARR) and keys against edits."""
    experiment = settings[0].experiment
    third = next((m for m in ("holdout", "arr") if _any(suite, settings, m)), None)
    metrics = [m for m in ("trr", "err", third, "n_keys") if m and _any(suite, settings, m)]
    layers = {s: suite.layer(s.experiment) for s in settings}
    ordered = sorted(set(layers.values()), key=natural)
    names = block_names(ordered)
    tints = dict(zip(ordered, ordered_tints(len(ordered)), strict=True))
    radii = sorted({radius(setting) for setting in settings})
    grid = figure.subplots(len(radii), len(metrics), squeeze=False, sharex=True, sharey="col")
    unedited = [s for s in suite.data.configured(experiment) if s.editor_class == UNEDITED]
    longest = max(p.n_edits for s in settings for p in suite.points(s, "n_keys"))
    for row, size in zip(grid, radii, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            for setting in (s for s in settings if radius(s) == size):
                points, tint = suite.points(setting, metric), tints[layers[setting]]
                if metric == "n_keys":
                    draw_keys(axes, points, tint, zorder=3)
                else:
                    draw_curve(axes, setting, points, tint)
            if metric == "n_keys":
                axes.plot([0, longest], [0, longest], color="black", linestyle=":", linewidth=1)
            elif unedited:
                draw_curve(axes, unedited[0], suite.points(unedited[0], metric), GREY)
        row[0].set_ylabel(f"radius {size:g}\n{measure_label(experiment.measure)}")
    for axes, metric in zip(grid[0], metrics, strict=True):
        axes.set_title(SHORT[metric])
        if metric == "n_keys":
            most = max(p.estimate.bounds[1] for s in settings for p in suite.points(s, metric))
            axes.set_ylim(0, 1.05 * most)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        else:
            drawn = [*settings, *unedited]
            found = [p.estimate for s in drawn for p in suite.points(s, metric)]
            scale(axes, "y", experiment, found)
    for axes in grid[-1]:
        count_edits(axes)
    figure.suptitle(title, fontsize=9.5)
    handles = [Line2D([], [], color=tints[layer], label=names[layer]) for layer in ordered]
    if unedited:
        handles.append(Line2D([], [], color=GREY, linestyle="--", label="unedited"))
    handles.append(Line2D([], [], color="black", linestyle=":", label="one key per edit"))
    legend_below(figure, handles, columns=7)


def _any(suite: SuiteRuns, settings: Sequence[Setting], metric: str) -> bool:
    return any(suite.points(setting, metric) for setting in settings)


def _rows(
    suite: SuiteRuns, settings: Sequence[Setting], metrics: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the points of the curves as rows of CSV."""
    for setting in settings:
        experiment = setting.experiment
        for metric in metrics:
            lines = {None: suite.points(setting, metric)}
            lines |= suite.curves.failed_of(setting, metric)
            for seed, point in ((seed, point) for seed, line in lines.items() for point in line):
                estimate = point.estimate
                yield {
                    "model": experiment.model,
                    "layer": suite.layer(experiment),
                    "dataset": experiment.dataset,
                    "editor": setting.editor,
                    "radius": setting.values.get("radius"),
                    "failed_seed": seed,  # none: over the seeds that were completed
                    "metric": metric,
                    "measure": None if metric == "n_keys" else experiment.measure,
                    "n_edits": point.n_edits,
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "n": estimate.n,
                    "n_seeds": estimate.n_seeds,
                }
