"""A reference editor minus each other one, with Holm's correction over the whole table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.comparison.differences import Difference, by_experiment
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.kinds.main import EXPERIMENTS_PER_TABLE
from grace_bench.reporting.tables.rows import spread
from grace_bench.reporting.tables.table import NONE, Cell, Column, Row, Table, number

MARKS = {"facts": "*", "seeds": "**"}
SENTENCES = {
    "facts": "a difference on other facts, too, with these base models and streams (sign-flip "
    "permutation test by fact):",
    "seeds": "a difference on other facts, base models and streams, too (the same test, a t-test "
    "over facts and seeds, and an interval that excludes 0):",
}


def make(summary: Summary) -> list[Table]:
    """Return tables of at most three experiments each; all are one family of tests."""
    experiments = [members for _, members in by_experiment(summary.comparisons)]
    tables = []
    for start in range(0, len(experiments), EXPERIMENTS_PER_TABLE):
        part = itertools.chain(*experiments[start : start + EXPERIMENTS_PER_TABLE])
        name = f"comparison-{len(tables) + 1}" if tables else "comparison"
        tables.append(comparison_table(list(part), name, len(summary.comparisons)))
    return tables


def comparison_table(differences: Sequence[Difference], name: str, family: int) -> Table:
    """Return the table of some differences.

    Args:
        differences: an experiment's after one another, and an editor's among them.
        name: of its LaTeX label.
        family: number of differences that Holm's correction is over.
    """
    metrics = [m for m in METRICS if any(d.metric == m for d in differences)]
    body: list[Row] = []
    for title, members in by_experiment(differences):
        measure = MEASURES[members[0].measure]
        better = "higher is better" if measure.higher_is_better else "lower is better"
        heading = f"{title}: {measure.title}, {better}"
        body.append(Row((Cell(heading),), rule=bool(body), heading=True))
        for editors, row in itertools.groupby(
            members, key=lambda d: (d.first_label, d.second_label)
        ):
            cells = {d.metric: _cell(d) for d in row}
            label = " \u2013 ".join(editors)
            body.append(Row((Cell(label), *(cells.get(m, Cell(NONE)) for m in metrics))))
    test = f" p < .05 after Holm's correction over {family} differences."
    seeds, facts = (spread(getattr(d, key) for d in differences) for key in ("n_seeds", "n_facts"))
    return Table(
        name=name,
        caption=(
            "Differences after all edits, over the examples that both editors have under the same "
            f"seeds ({seeds} seed{'' if seeds == '1' else 's'}, {facts} facts). Brackets: 95% "
            + (
                "intervals over facts; they do not cover other streams or base models."
                if seeds == "1"
                else "intervals over facts and seeds, wide where seeds are few."
            )
        ),
        columns=tuple(map(Column, ("Editors", *(METRICS[m].label for m in metrics)))),
        rows=tuple(body),
        footnotes=tuple((mark, f"{SENTENCES[shown]}{test}") for shown, mark in MARKS.items()),
    )


def signed(value: float, measure: str) -> str:
    """Return a difference as tables print it.

    >>> signed(-0.12, "f1"), signed(0.0, "f1")
    ('-.12', '.00')
    """
    text = number(abs(value), measure)
    return text if not text.strip("0.") else f"{'+' if value > 0 else '-'}{text}"


def _cell(found: Difference) -> Cell:
    interval = ""
    if found.low is not None and found.high is not None:
        low, high = (signed(end, found.measure) for end in (found.low, found.high))
        interval = f"[{low}, {high}]"
    return Cell(
        signed(found.difference, found.measure),
        interval,
        number=found.difference,
        low=found.low,
        high=found.high,
        mark=MARKS.get(found.shown or "", ""),
    )
