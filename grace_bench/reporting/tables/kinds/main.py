"""The main table: all editors after all edits, as the paper compares them."""

from __future__ import annotations

from collections.abc import Sequence

from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary.read import Experiment, Setting, Summary
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.rows import (
    BOLD,
    COSTS,
    cost_cells,
    editor_rows,
    interval_sentence,
    known_metrics,
    score_cells,
    spread,
)
from grace_bench.reporting.tables.table import Cell, Column, Row, Table

EXPERIMENTS_PER_TABLE = 3
METRICS_SHOWN = ("es", "err", "trr", "holdout", "arr")
COSTS_SHOWN = (("edits", "n_edits", None, "count"), *COSTS)


def make(summary: Summary) -> list[Table]:
    """Return the comparison of all editors, at most three experiments per table."""
    experiments = summary.experiments
    starts = range(0, len(experiments), EXPERIMENTS_PER_TABLE)
    parts = [experiments[start : start + EXPERIMENTS_PER_TABLE] for start in starts]
    return [_table(summary, part, index, len(parts)) for index, part in enumerate(parts)]


def _table(summary: Summary, experiments: Sequence[Experiment], part: int, parts: int) -> Table:
    rows = editor_rows(summary)
    shown = [row.settings[e] for e in experiments for row in rows if e in row.settings]
    metrics = known_metrics(summary, shown, METRICS_SHOWN)
    footnotes = Footnotes(summary)
    body: list[Row] = []
    for experiment in experiments:
        measure = MEASURES[experiment.measure]
        better = "higher is better" if measure.higher_is_better else "lower is better"
        title = f"{experiment.title}: {measure.title}, {better}"
        body.append(Row((Cell(title),), rule=bool(body), heading=True))
        for row in (row for row in rows if experiment in row.settings):
            setting = row.settings[experiment]
            editing = setting if row.editor_class != UNEDITED else None
            cells = score_cells(summary, footnotes, setting, metrics)
            cells += cost_cells(summary, editing, COSTS_SHOWN)
            body.append(Row((Cell(row.label), *cells)))
    names = [*(METRICS[metric].label for metric in metrics), *(name for name, *_ in COSTS_SHOWN)]
    return Table(
        name="main" if part == 0 else f"main-{part + 1}",
        caption=_caption(summary, experiments, shown, metrics, part, parts) + footnotes.caption,
        columns=tuple(map(Column, ("Editor", *names))),
        rows=tuple(body),
        footnotes=footnotes.sentences,
    )


def _caption(
    summary: Summary,
    experiments: Sequence[Experiment],
    shown: Sequence[Setting],
    metrics: Sequence[str],
    part: int,
    parts: int,
) -> str:
    sizes, idle = [], []
    for experiment in experiments:
        settings = [setting for setting in shown if setting.experiment == experiment]
        counts = {m: spread(summary.main(s, m).n for s in settings) for m in metrics}
        if sized := [f"{n} for {METRICS[metric].label}" for metric, n in counts.items() if n]:
            sizes.append(f"{experiment.dataset_label} {', '.join(sized)}")
        if not any(summary.get(s, "n_edits").value for s in settings):
            idle.append(experiment.dataset_label)
    which = f" (part {part + 1} of {parts})" if parts > 1 else ""
    nothing = f"{', '.join(idle)}: no edit was made. " if idle else ""
    return (
        f"Editors after all edits{which}. "
        + "; ".join(f"{METRICS[m].label} ({METRICS[m].definition})" for m in metrics)
        + ". Edits: made in the stream; keys: of the codebook at the end; s/edit: seconds of an "
        "edit (values of coming edits that GRACE trains in one batch share its time). "
        + interval_sentence(summary, shown)
        + f" Examples per seed: {'; '.join(sizes) or 'none'}. {nothing}"
        + BOLD
    )
