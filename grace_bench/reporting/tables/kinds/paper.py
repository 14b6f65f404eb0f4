"""The paper's Table 2 beside what was run: paper, ours with its interval, difference.

A cell of the paper that was not run stays blank, and so does one of ours that the paper lacks.
What is not the paper's, data or model, the caption says.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from grace_bench.reporting.summary.read import Experiment, Setting, Summary, editor_rank
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.rows import editor_rows
from grace_bench.reporting.tables.table import Cell, Column, Row, Table, cell, number


@dataclass(frozen=True)
class StandIn:
    """A data set of `config/datasets/` that is the paper's, or comes near it.

    Attributes:
        dataset: of the paper: "zsre", "scotus" or "hallucination".
        differs: what is not as in the paper, or not known to be, as the rest of a sentence.
    """

    dataset: str
    differs: str


STANDS_FOR = {
    "zsre": StandIn(
        "zsre",
        "the stream is several phrasings of each of some facts, as the paper's number of keys "
        "suggests; which it was is not known",
    ),
    "zsre-released": StandIn(
        "zsre",
        "the stream is the released code's, which has more facts than the paper's number of keys "
        "allows",
    ),
    "zsre-3k": StandIn(
        "zsre", "other questions of zsRE, one phrasing of each edited, and other questions of NQ"
    ),
    "scotus": StandIn("scotus", ""),
    "scotus-summaries": StandIn(
        "scotus", "summaries of the cases, not opinions, with other classes and other terms"
    ),
    "hallucination": StandIn(
        "hallucination", "an input of web text is conditioned on its first words"
    ),
    "hallucination-119": StandIn(
        "hallucination", "half of the passages, or fewer, and other, shorter web texts"
    ),
    "hallucination-wise": StandIn(
        "hallucination", "the passages in the editing form of WISE, and other, shorter web texts"
    ),
}
"""By the data set's name; others are compared with nothing."""

PAPER_MODELS = {
    "zsre": ("T5 of 60 million parameters that knows NQ", {"t5-small-ssm-nq": ""}),
    "scotus": ("BERT fitted on older cases", {"scotus-bert": "fitted anew, by a recipe of ours"}),
    "hallucination": (
        "GPT-2 XL fine-tuned on the passages",
        {"gpt2-xl-grace": "", "gpt2-xl-wikibio": "fine-tuned anew"},
    ),
}
"""By the paper's data set: its model, and those of `config/models/` that are it, with what is not
as in the paper."""


MEASURED = {
    "zsre": "F1 is of words; the released code's, which gives some wrong answers up to .5, counts "
    "token ids and the end of the text too"
}
"""By the paper's data set: how our measure differs from what the released code computes."""


@dataclass(frozen=True)
class PaperRow:
    """One editor of the paper on one data set; None where the paper has no figure."""

    label: str
    figures: Mapping[str, float | None]


def read_paper() -> dict[str, dict[str, PaperRow]]:
    """Return the paper's rows by data set and editor."""
    file = resources.files("grace_bench.reporting.tables").joinpath("paper_table2.csv")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    paper: dict[str, dict[str, PaperRow]] = {}
    for row in csv.DictReader(lines):
        dataset, editor, label = (row.pop(name) for name in ("dataset", "editor", "label"))
        figures = {key: float(text) if text else None for key, text in row.items()}
        paper.setdefault(dataset, {})[editor] = PaperRow(label, figures)
    return paper


def make(summary: Summary) -> list[Table]:
    """Return one table for each experiment on a data set of the paper, or near one.

    Several rows of one editor class, such as both sets of rules of GRACE, stand beside the same
    row of the paper.
    """
    paper = read_paper()
    return [
        _table(summary, experiment, paper[STANDS_FOR[experiment.dataset].dataset])
        for experiment in summary.experiments
        if experiment.dataset in STANDS_FOR
    ]


def _table(summary: Summary, experiment: Experiment, paper: Mapping[str, PaperRow]) -> Table:
    main, third = experiment.measure, "arr" if experiment.is_perplexity else "avg"
    metrics = [
        ("TRR", "trr", "trr", main),
        ("ERR", "err", "err", main),
        (third.upper() if third == "arr" else "Avg", third, "third", main),
        ("#E", "n_edits", "n_edits", None),
        ("Keys", "n_keys", "n_keys", None),
    ]
    ours = [
        (row.editor_class, row.label, row.settings.get(experiment))
        for row in editor_rows(summary)
        if row.editor_class != UNEDITED
        and (experiment in row.settings or row.editor_class in paper)
    ]
    run = {kind for kind, _, _ in ours}
    ours += [(kind, row.label, None) for kind, row in paper.items() if kind not in run]
    body = []
    footnotes = Footnotes(summary)
    for kind, label, setting in sorted(ours, key=lambda row: editor_rank(row[0], "")):
        cells = [Cell(label)]
        for _, metric, column, measure in metrics:
            theirs = paper[kind].figures[column] if kind in paper else None
            printed, mine, difference = _compared(summary, setting, metric, measure, theirs)
            if column not in ("n_edits", "n_keys"):
                mine = footnotes.marked(mine, setting, metric == "trr")
            cells += [printed, mine, difference]
        body.append(Row(tuple(cells)))
    columns = [Column("Editor"), *map(Column, ("paper", "ours", "difference") * len(metrics))]
    return Table(
        name=f"paper-{experiment.model}-{experiment.dataset}",
        caption=_caption(experiment) + footnotes.caption,
        groups=(("", 1), *((name, 3) for name, *_ in metrics)),
        columns=tuple(columns),
        rows=tuple(body),
        footnotes=footnotes.sentences,
    )


def _caption(experiment: Experiment) -> str:
    """Return the caption, which says what is not the paper's."""
    stand_in = STANDS_FOR[experiment.dataset]
    model, same = PAPER_MODELS[stand_in.dataset]
    if experiment.model in same:
        differs = f"the model is {same[experiment.model]}" if same[experiment.model] else ""
    else:
        differs = f"another model (the paper: {model})"
    measured = MEASURED.get(stand_in.dataset)
    differences = "; ".join(filter(None, (differs, stand_in.differs, measured)))
    return (
        f"{experiment.title} beside Table 2 of Hartvigsen et al. (2023): the paper's figure, "
        "ours with its interval, and ours less the paper's. "
        + (f"Not as in the paper: {differences}. " if differences else "")
        + "The paper's hyperparameters are not known. Blank: not in the paper, or not run."
    )


def _compared(
    summary: Summary,
    setting: Setting | None,
    metric: str,
    measure: str | None,
    theirs: float | None,
) -> list[Cell]:
    kind = measure or "count"
    paper = Cell("" if theirs is None else number(theirs, kind), number=theirs)
    estimate = summary.get(setting, metric, measure)
    if estimate.value is None:
        return [paper, Cell(""), Cell("")]
    mine = cell(estimate, kind, with_interval=measure is not None)
    if theirs is None:
        return [paper, mine, Cell("")]
    difference = estimate.value - theirs
    sign = "+" if difference >= 0 else "-"
    return [paper, mine, Cell(sign + number(abs(difference), kind), number=difference)]
