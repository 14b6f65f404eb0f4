"""For each experiment, every measure of every metric."""

from __future__ import annotations

from dataclasses import replace

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary.read import Experiment, Summary
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.rows import BOLD, editor_rows
from grace_bench.reporting.tables.table import Cell, Column, Row, Table, cell, measure_column


def make(summary: Summary) -> list[Table]:
    """Return one table per experiment."""
    return [_table(summary, experiment) for experiment in summary.experiments]


def _table(summary: Summary, experiment: Experiment) -> Table:
    # The log-mean of the perplexity shows the same as the loss.
    measures = [
        m for m in summary.measures(experiment) if m != "loss" or not experiment.is_perplexity
    ]
    measures = measures or [experiment.measure]  # every run failed
    rows = [
        (r.label, r.settings[experiment]) for r in editor_rows(summary) if experiment in r.settings
    ]
    any_failed = any(summary.failures(setting) for _, setting in rows)
    footnotes = Footnotes(summary)
    body: list[Row] = []
    for metric in METRICS.values():
        grid = [
            [replace(cell(summary.get(s, metric.name, m), m), interval="") for m in measures]
            for _, s in rows
        ]
        empty = all(item.number is None for cells in grid for item in cells)
        if empty and not (metric.name == "trr" and any_failed):
            continue
        for index, (cells, (label, setting)) in enumerate(zip(grid, rows, strict=True)):
            marked = [footnotes.marked(item, setting, not i) for i, item in enumerate(cells)]
            name = Cell(metric.label if index == 0 else "")
            rule = index == 0 and bool(body)
            body.append(Row((name, Cell(label), *marked), rule=rule))
    definitions = "; ".join(f"{MEASURES[m].label}: {MEASURES[m].definition}" for m in measures)
    return Table(
        name=f"measures-{experiment.model}-{experiment.dataset}",
        caption=(
            f"{experiment.title}: all measures after all edits. {definitions}. "
            f"Intervals are in measures.csv. {BOLD}{footnotes.caption}"
        ),
        columns=(Column("Metric"), Column("Editor"), *map(measure_column, measures)),
        rows=tuple(body),
        left=2,
        footnotes=footnotes.sentences,
    )
