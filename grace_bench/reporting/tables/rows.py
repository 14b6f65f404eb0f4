"""What several tables share: their rows, the cells of scores and costs, sentences of captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from grace_bench.reporting.summary.read import Experiment, Setting, Summary, editor_rank
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.table import Cell, cell

INTERVAL = (
    "Brackets: 95% percentile intervals from 2000 bootstrap resamples of facts (all examples of a "
    "fact together)"
)
BOLD = (
    "Bold: the best editor, and those within its interval that a paired bootstrap over the same "
    "facts and seeds does not distinguish from it (95%); Unedited is the control and is not "
    "compared."
)
COSTS = (
    ("keys", "n_keys", None, "count"),
    ("edits/key", "edits_per_key", None, "ratio"),
    ("s/edit", "seconds_per_edit", "mean", "seconds"),
)
"""What edits cost: name, metric, measure, kind of number."""


@dataclass(frozen=True)
class EditorRow:
    """A row of the main table.

    Args:
        label: of the editor.
        editor_class: its registered name.
        settings: its setting in each experiment that it was run on.
    """

    label: str
    editor_class: str
    settings: Mapping[Experiment, Setting]


def editor_rows(summary: Summary) -> list[EditorRow]:
    """Return one row per editor, even if its hyperparameters differ between data sets.

    An editor has several rows only if several configured settings compete on one experiment.
    """
    by_editor: dict[str, dict[Experiment, list[Setting]]] = {}
    first = {s.editor: s for s in reversed(summary.settings)}
    for setting in summary.settings:
        cells = by_editor.setdefault(setting.editor, {})
        if not setting.in_sweep:
            cells.setdefault(setting.experiment, []).append(setting)
    rows = []
    for editor in sorted(by_editor, key=lambda name: editor_rank(first[name].editor_class, name)):
        cells, label, kind = (
            by_editor[editor],
            first[editor].editor_label,
            first[editor].editor_class,
        )
        if all(len(settings) == 1 for settings in cells.values()):
            rows.append(EditorRow(label, kind, {e: ss[0] for e, ss in cells.items()}))
            continue
        for variant in sorted({s.variant for settings in cells.values() for s in settings}):
            chosen = {e: s for e, ss in cells.items() for s in ss if s.variant == variant}
            rows.append(EditorRow(f"{label} ({variant})", kind, chosen))
    return rows


def known_metrics(
    summary: Summary, settings: Iterable[Setting], metrics: Sequence[str]
) -> list[str]:
    """Return the metrics with a value of any setting's main measure; TRR if there are none."""
    settings = list(settings)
    return [
        metric
        for metric in metrics
        if any(summary.main(s, metric).value is not None for s in settings)
    ] or ["trr"]


def score_cells(
    summary: Summary, footnotes: Footnotes, setting: Setting, metrics: Sequence[str]
) -> list[Cell]:
    """Return a setting's cells of its main measure, marked where seeds failed."""
    scores = [cell(summary.main(setting, metric), setting.experiment.measure) for metric in metrics]
    return [footnotes.marked(item, setting, not i) for i, item in enumerate(scores)]


def cost_cells(
    summary: Summary, setting: Setting | None, costs: Sequence[tuple[str, str, str | None, str]]
) -> list[Cell]:
    """Return a setting's cells of `COSTS`, without intervals."""
    return [
        cell(summary.get(setting, metric, measure), kind, with_interval=False)
        for _, metric, measure, kind in costs
    ]


def interval_sentence(summary: Summary, settings: Sequence[Setting]) -> str:
    """Return what a caption says about seeds and intervals."""
    seeds = spread(summary.main(setting, "trr").n_seeds for setting in settings)
    if not seeds:
        return "No run was completed."
    if seeds == "1":
        return f"One seed. {INTERVAL}; they do not cover other streams or base models."
    several = {summary.n_base_models(setting.experiment) > 1 for setting in settings}
    if several == {True}:
        each = "each with a stream and a base model of its own"
    elif several == {False}:
        each = "each with a stream of its own; all edit one base model"
    else:
        each = "each with a stream and, where it is trained here, a base model of its own"
    return f"Means over {seeds} seeds, {each}. {INTERVAL} and of seeds."


def spread(values: Iterable[int | None]) -> str:
    """Return the range of the values that are known and not 0: "3", "3 to 5" or nothing."""
    known = sorted({value for value in values if value})
    if not known:
        return ""
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
