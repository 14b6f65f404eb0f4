"""One file for each editor that was run with several hyperparameters: all of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary.read import Setting, Summary, varying
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.rows import (
    COSTS,
    cost_cells,
    interval_sentence,
    known_metrics,
    score_cells,
)
from grace_bench.reporting.tables.table import Cell, Column, Row, Table, measure_column

METRICS_SHOWN = ("trr", "err", "es", "holdout", "arr")
COSTS_SHOWN = (("#keys", *COSTS[0][1:]), *COSTS[1:])


def make(summary: Summary) -> list[Table]:
    """Return one table for each editor and experiment with several settings."""
    return [
        _table(summary, cells[experiment])
        for cells in summary.sweeps().values()
        for experiment in summary.experiments
        if experiment in cells
    ]


def _table(summary: Summary, settings: Sequence[Setting]) -> Table:
    experiment, names = settings[0].experiment, varying(settings)
    measure, editor = experiment.measure, settings[0].editor
    metrics = known_metrics(summary, settings, METRICS_SHOWN)
    footnotes = Footnotes(summary)
    rows = []
    for setting in settings:
        values = [_plain(setting.values.get(name)) for name in names] or [setting.variant]
        values[-1] += "" if setting.in_sweep else " *"
        scores = score_cells(summary, footnotes, setting, metrics)
        cells = [*map(Cell, values), *(replace(score, bold=False) for score in scores)]
        rows.append(Row((*cells, *cost_cells(summary, setting, COSTS_SHOWN))))
    return Table(
        name=f"sweep-{editor}-{experiment.model}-{experiment.dataset}",
        file=f"sweep-{editor}",
        caption=(
            f"{settings[0].editor_label} on {experiment.title} under other hyperparameters "
            f"(* as configured); {MEASURES[measure].title} after all edits. "
            f"{interval_sentence(summary, settings)}{footnotes.caption}"
        ),
        columns=(
            *map(Column, names or ["variant"]),
            *(replace(measure_column(measure), name=METRICS[m].label) for m in metrics),
            *(Column(name) for name, *_ in COSTS_SHOWN),
        ),
        rows=tuple(rows),
        left=max(1, len(names)),
        footnotes=footnotes.sentences,
    )


def _plain(value: object) -> str:
    return "--" if value is None else str(value)
