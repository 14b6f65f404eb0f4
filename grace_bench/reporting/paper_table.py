"""The paper's Table 2 beside what was run: paper, ours with its interval, difference.

A cell of the paper that was not run stays blank, and so does one of ours that the paper lacks.
"""

from __future__ import annotations

import csv
from importlib import resources
from typing import TYPE_CHECKING

from grace_bench.reporting.estimates import UNEDITED
from grace_bench.reporting.table import Cell, Column, Row, Table, cell, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grace_bench.reporting.estimates import Experiment, Setting, Summary

STANDS_FOR = {
    "zsre": "zsre",
    "zsre-phrasings": "zsre",
    "scotus": "scotus",
    "wikibio-hallucination": "hallucination",
}
"""Our data sets, and the paper's that each is; others are compared with nothing."""

Figures = dict[str, dict[str, float | None]]


def read_paper() -> dict[str, Figures]:
    """Return the paper's figures: data set, editor, column."""
    file = resources.files("grace_bench.reporting").joinpath("paper_table2.csv")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    paper: dict[str, Figures] = {}
    for row in csv.DictReader(lines):
        names = (row.pop("dataset"), row.pop("editor"))
        values = {key: float(text) if text else None for key, text in row.items()}
        paper.setdefault(names[0], {})[names[1]] = values
    return paper


def paper_tables(data: Summary, rows: Sequence[tuple[str, str, Mapping]]) -> list[Table]:
    """Return one table for each experiment on a data set of the paper.

    Args:
        data: the summary.
        rows: label, editor class and setting by experiment, as in the main table.
    """
    paper = read_paper()
    return [
        _table(data, experiment, paper[STANDS_FOR[experiment.dataset]], rows)
        for experiment in data.experiments
        if experiment.dataset in STANDS_FOR
    ]


def _table(
    data: Summary,
    experiment: Experiment,
    figures: Figures,
    rows: Sequence[tuple[str, str, Mapping[Experiment, Setting]]],
) -> Table:
    main, third = experiment.measure, "arr" if experiment.is_perplexity else "avg"
    metrics = [
        ("TRR", "trr", "trr", main),
        ("ERR", "err", "err", main),
        (third.upper() if third == "arr" else "Avg", third, "third", main),
        ("#E", "n_edits", "n_edits", None),
    ]
    ours = {kind: (label, settings.get(experiment)) for label, kind, settings in rows}
    kinds = [kind for kind in ours if kind != UNEDITED]
    kinds += [kind for kind in figures if kind not in ours]
    body = []
    for kind in kinds:
        label, setting = ours.get(kind, (kind, None))
        cells = [Cell(label)]
        for _, metric, column, measure in metrics:
            theirs = figures.get(kind, {}).get(column)
            cells += _compared(data, setting, metric, measure, theirs)
        body.append(Row(tuple(cells)))
    columns = [Column("Editor"), *map(Column, ("paper", "ours", "difference") * len(metrics))]
    return Table(
        name=f"paper-{experiment.model}-{experiment.dataset}",
        caption=(
            f"{experiment.title} beside Table 2 of Hartvigsen et al. (2023): the paper's figure, "
            "ours, and ours less the paper's. Blank: not in the paper, or not run."
        ),
        groups=(("", 1), *((name, 3) for name, *_ in metrics)),
        columns=tuple(columns),
        rows=tuple(body),
    )


def _compared(
    data: Summary, setting: Setting | None, metric: str, measure: str | None, theirs: float | None
) -> list[Cell]:
    kind = measure or "count"
    paper = Cell("" if theirs is None else number(theirs, kind), number=theirs)
    estimate = data.get(setting, metric, measure)
    if estimate.value is None:
        return [paper, Cell(""), Cell("")]
    mine = cell(estimate, kind, with_interval=measure is not None)
    if theirs is None:
        return [paper, mine, Cell("")]
    difference = estimate.value - theirs
    sign = "+" if difference >= 0 else "-"
    return [paper, mine, Cell(sign + number(abs(difference), kind), number=difference)]
