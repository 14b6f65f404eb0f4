"""Mean ranks over data sets, where there are enough of them."""

from __future__ import annotations

from grace_bench.metrics import METRICS
from grace_bench.reporting.comparison.ranks import Ranks, rank_editors
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.rows import spread
from grace_bench.reporting.tables.table import NONE, Cell, Column, Row, Table


def make(summary: Summary) -> list[Table]:
    """Return one table, with a column for each metric; none if there are too few data sets."""
    ranks = rank_editors(summary)
    if not ranks:
        return []
    editors = dict.fromkeys(editor for found in ranks for editor in found.editors)
    tests = "; ".join(
        f"{METRICS[r.metric].label} {r.p:.2g} and {r.critical_difference:.2f}" for r in ranks
    )
    return [
        Table(
            name="ranks",
            caption=(
                f"Mean ranks over {spread(r.n_datasets for r in ranks)} data sets, by the main "
                "measure after all edits; 1 is the best. p of Friedman's test and Nemenyi's "
                f"critical difference (5%): {tests}. Editors without a value on each data set, "
                "and the control, are left out."
            ),
            columns=(Column("Editor"), *(Column(METRICS[r.metric].label, -1) for r in ranks)),
            rows=tuple(Row((Cell(e), *(_cell(e, found) for found in ranks))) for e in editors),
        )
    ]


def _cell(editor: str, found: Ranks) -> Cell:
    if editor not in found.editors:
        return Cell(NONE)
    mean = found.means[found.editors.index(editor)]
    return Cell(f"{mean:.2f}", number=mean)
