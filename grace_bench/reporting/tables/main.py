"""The tables of a suite: the main comparison in the paper's layout, all measures, and sweeps.

    write_tables(Path("results/smoke/summary.parquet"), Path("results/smoke/tables"))

writes main, measures, sweep-<editor> and, for data sets of the paper, paper, each as .tex, .md and
.csv, and document.tex, which `pdflatex document.tex` turns into a PDF with all of them. No dates:
the same summary gives the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from grace_bench import __version__
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.summary.read import Experiment, Setting, Summary, editor_rank, varying
from grace_bench.reporting.summary.write import UNEDITED
from grace_bench.reporting.tables.footnotes import Footnotes
from grace_bench.reporting.tables.paper_table2 import paper_tables
from grace_bench.reporting.tables.table import (
    Cell,
    Column,
    Row,
    Table,
    cell,
    to_csv,
    to_latex,
    to_markdown,
)
from grace_bench.store import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUPS_A_TABLE = 3  # experiments side by side; more go into a further table

INTERVAL = (
    "Brackets: 95% percentile intervals from 2000 bootstrap resamples of facts (all examples of a "
    "fact together)"
)
BOLD = (
    "Bold: the best editor, and those within its interval that a paired bootstrap over the same "
    "facts and seeds does not tell from it (95%); Unedited is the control and not compared."
)

DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{lscape}
\begin{document}
"""


def write_tables(summary: Path, folder: Path) -> list[Path]:
    """Write all tables of a summary into `folder` and return their paths.

    Tables of an earlier call that are no longer made (the sweep of an editor that left the
    suite) are removed.

    Raises:
        DataError: the summary is missing or damaged.
    """
    data, folder = Summary(summary), Path(folder)
    header = provenance_comment(data.provenance)
    tables = tables_of(data)
    texts = {}
    for name, parts in tables.items():
        texts[f"{name}.tex"] = header + "\n" + "\n".join(to_latex(part) for part in parts)
        texts[f"{name}.md"] = "\n".join(to_markdown(part) for part in parts)
        texts[f"{name}.csv"] = to_csv(parts)
    inputs = "".join(rf"\input{{{name}}}" + "\n\\clearpage\n" for name in tables)
    texts["document.tex"] = header + DOCUMENT + inputs + "\\end{document}\n"
    for old in [*folder.glob("sweep-*"), *folder.glob("paper.*")]:
        if old.name not in texts and old.suffix in (".tex", ".md", ".csv"):
            old.unlink(missing_ok=True)
    for name, text in texts.items():
        with files.atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def tables_of(data: Summary) -> dict[str, list[Table]]:
    """Return all tables of a summary, by the names of their files."""
    tables = {"main": main_tables(data), "measures": measure_tables(data)}
    if compared := paper_tables(data, table_rows(data)):
        tables["paper"] = compared
    for editor, cells in data.sweeps().items():
        tables[f"sweep-{editor}"] = [sweep_table(data, cells[e]) for e in sorted_by(data, cells)]
    return tables


def provenance_comment(provenance: Mapping[str, str]) -> str:
    """Return LaTeX comment lines that say where the numbers come from."""
    names = {
        "suite": "suite",
        "n_runs": "runs",
        "n_failed": "runs of these that failed",
        "runs_hash": "hash of the runs' ids",
        "code_version": "runs made by grace-bench",
        "git_commit": "git commit of the runs",
        "data_hashes": "data",
        "model_hashes": "models",
    }
    if "plugins" in provenance:
        names["plugins"] = "plug-ins, version and code"
    lines = [f"written by grace-bench {__version__}; do not edit, regenerate"]
    lines += [f"{text}: {provenance.get(key, 'unknown')}" for key, text in names.items()]
    return "".join(f"% {' '.join(line.split())}\n" for line in lines)


def sorted_by(data: Summary, cells: Mapping[Experiment, object]) -> list[Experiment]:
    """Return the experiments of `cells` in the order of the summary."""
    return [experiment for experiment in data.experiments if experiment in cells]


def table_rows(data: Summary) -> list[tuple[str, str, dict[Experiment, Setting]]]:
    """Return the rows of the main table: label, editor class, and its setting by experiment.

    An editor is one row even where its hyperparameters differ between data sets; it is several
    only where several configured settings compete on one experiment.
    """
    by_editor: dict[str, dict[Experiment, list[Setting]]] = {}
    first = {s.editor: s for s in reversed(data.settings)}
    for setting in data.settings:
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
            rows.append((label, kind, {e: settings[0] for e, settings in cells.items()}))
            continue
        for variant in sorted({s.variant for settings in cells.values() for s in settings}):
            chosen = {e: s for e, ss in cells.items() for s in ss if s.variant == variant}
            rows.append((f"{label} ({variant})", kind, chosen))
    return rows


def main_tables(data: Summary) -> list[Table]:
    """Return the comparison of all editors, up to three experiments a table."""
    experiments = data.experiments
    parts = [
        experiments[i : i + GROUPS_A_TABLE] for i in range(0, len(experiments), GROUPS_A_TABLE)
    ]
    return [_main_table(data, part, i, len(parts)) for i, part in enumerate(parts)]


SCORED = ("es", "err", "trr", "holdout", "arr")
"""The metrics of the main table, in its order."""

SPENT = (
    ("edits", "n_edits", None, "count"),
    ("keys", "n_keys", None, "count"),
    ("edits/key", "edits_per_key", None, "ratio"),
    ("s/edit", "seconds_per_edit", "mean", "seconds"),
)
"""The counts behind them: name, metric, measure, kind of number."""


def _main_table(data: Summary, experiments: Sequence[Experiment], part: int, parts: int) -> Table:
    rows = table_rows(data)
    shown = [(e, s[e]) for e in experiments for *_, s in rows if e in s]
    scored = [
        metric
        for metric in SCORED
        if any(data.get(setting, metric, e.measure).value is not None for e, setting in shown)
    ] or ["trr"]
    footnotes = Footnotes(data)
    body: list[Row] = []
    for experiment in experiments:
        better = "higher is better" if _direction(experiment.measure) > 0 else "lower is better"
        label = MEASURES[experiment.measure].label
        title = f"{experiment.title}: {label}, {better}"
        body.append(Row((Cell(title),), rule=bool(body), heading=True))
        for name, kind, settings in rows:
            if experiment not in settings:
                continue
            setting = settings[experiment]
            spender = setting if kind != UNEDITED else None  # the control makes no edit
            scores = [
                cell(data.get(setting, metric, experiment.measure), experiment.measure)
                for metric in scored
            ]
            cells = [footnotes.marked(item, setting, not i) for i, item in enumerate(scores)]
            cells += [
                cell(data.get(spender, metric, measure), unit, with_interval=False)
                for _, metric, measure, unit in SPENT
            ]
            body.append(Row((Cell(name), *cells)))
    return Table(
        name="main" if part == 0 else f"main-{part + 1}",
        caption=_main_caption(data, experiments, shown, scored, part, parts) + footnotes.caption,
        groups=(),
        columns=(
            Column("Editor"),
            *(Column(METRICS[metric].label) for metric in scored),
            *(Column(name) for name, *_ in SPENT),
        ),
        rows=tuple(body),
        footnotes=footnotes.sentences,
    )


def _direction(measure: str) -> int:
    return 1 if MEASURES[measure].higher_is_better else -1


def _main_caption(
    data: Summary,
    experiments: Sequence[Experiment],
    shown: Sequence[tuple[Experiment, Setting]],
    scored: Sequence[str],
    part: int,
    parts: int,
) -> str:
    which = f" (part {part + 1} of {parts})" if parts > 1 else ""
    sizes = []
    for experiment in experiments:
        counts = ", ".join(
            f"{spread} for {METRICS[metric].label}"
            for metric in scored
            if (
                spread := _spread(
                    [data.get(s, metric, e.measure).n for e, s in shown if e == experiment]
                )
            )
        )
        if counts:
            sizes.append(f"{experiment.dataset_label} {counts}")
    settings = [setting for _, setting in shown]
    idle = [
        experiment.dataset_label
        for experiment in experiments
        if not any(data.get(s, "n_edits").value for e, s in shown if e == experiment)
    ]
    nothing = f"{', '.join(idle)}: no edit was made. " if idle else ""
    return (
        f"Editors after all edits{which}. "
        + "; ".join(f"{METRICS[m].label} ({METRICS[m].definition})" for m in scored)
        + ". Edits: made in the stream; keys: of the codebook at the end; s/edit: seconds of an "
        "edit (values of coming edits that GRACE trains in one batch share its time). "
        + interval_sentence(data, settings)
        + f" Examples a seed: {'; '.join(sizes) or 'none'}. {nothing}"
        + BOLD
    )


def interval_sentence(data: Summary, settings: Sequence[Setting]) -> str:
    """Return what a caption says about seeds and intervals."""
    seeds = _spread([data.get(s, "trr", s.experiment.measure).n_seeds for s in settings])
    if not seeds:
        return "No run was completed."
    if seeds == "1":
        return f"One seed. {INTERVAL}; neither other streams nor other base models are in them."
    several = {data.n_base_models(setting.experiment) > 1 for setting in settings}
    if several == {True}:
        each = "each with a stream and a base model of its own"
    elif several == {False}:
        each = "each with a stream of its own; all edit one base model"
    else:
        each = "each with a stream and, where it is trained here, a base model of its own"
    return f"Means over {seeds} seeds, {each}. {INTERVAL} and of seeds."


def _spread(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value})
    if not known:
        return ""
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def measure_tables(data: Summary) -> list[Table]:
    """Return, for each experiment, every measure of every metric."""
    return [_measure_table(data, experiment) for experiment in data.experiments]


def _measure_table(data: Summary, experiment: Experiment) -> Table:
    # The perplexity's log-mean says what the loss says.
    measures = [m for m in data.measures(experiment) if m != "loss" or not experiment.is_perplexity]
    measures = measures or [experiment.measure]  # where every run failed
    rows = [(label, kind, s[experiment]) for label, kind, s in table_rows(data) if experiment in s]
    footnotes = Footnotes(data)
    body: list[Row] = []
    for metric in METRICS.values():
        columns = [
            [replace(cell(data.get(s, metric.name, m), m), interval="") for _, _, s in rows]
            for m in measures
        ]
        nothing = all(item.number is None for column in columns for item in column)
        if nothing and not (metric.name == "trr" and any(data.failures(s) for _, _, s in rows)):
            continue
        for index, column in enumerate(columns):
            pairs = zip(column, rows, strict=True)
            columns[index] = [
                footnotes.marked(item, setting, not index) for item, (*_, setting) in pairs
            ]
        for index, (label, _, _) in enumerate(rows):
            name = Cell(metric.label if index == 0 else "")
            cells = (name, Cell(label), *(column[index] for column in columns))
            body.append(Row(cells, rule=index == 0 and bool(body)))
    definitions = "; ".join(f"{MEASURES[m].label}: {MEASURES[m].definition}" for m in measures)
    return Table(
        name=f"measures-{experiment.model}-{experiment.dataset}",
        caption=(
            f"{experiment.title}: all measures after all edits. {definitions}. "
            f"Intervals are in measures.csv. {BOLD}{footnotes.caption}"
        ),
        groups=(),
        columns=(
            Column("Metric"),
            Column("Editor"),
            *(Column(MEASURES[m].label, _direction(m)) for m in measures),
        ),
        rows=tuple(body),
        left=2,
        footnotes=footnotes.sentences,
    )


def sweep_table(data: Summary, settings: Sequence[Setting]) -> Table:
    """Return the settings of one editor on one experiment; * marks what was configured."""
    experiment, names = settings[0].experiment, varying(settings)
    main = experiment.measure
    scored = [
        metric
        for metric in ("trr", "err", "es", "holdout", "arr")
        if any(data.get(setting, metric, main).value is not None for setting in settings)
    ] or ["trr"]
    footnotes = Footnotes(data)
    spent = [
        ("#keys", "n_keys", None, "count"),
        ("edits/key", "edits_per_key", None, "ratio"),
        ("s/edit", "seconds_per_edit", "mean", "seconds"),
    ]
    rows = []
    for setting in settings:
        mark = "" if setting.in_sweep else " *"
        values = [_plain(setting.values.get(name)) for name in names] or [setting.variant]
        values[-1] += mark
        cells = [Cell(value) for value in values]
        scores = [
            replace(cell(data.get(setting, metric, main), main), bold=False) for metric in scored
        ]
        cells += [footnotes.marked(item, setting, not i) for i, item in enumerate(scores)]
        cells += [cell(data.get(setting, m, s), kind, False) for _, m, s, kind in spent]
        rows.append(Row(tuple(cells)))
    return Table(
        name=f"sweep-{settings[0].editor}-{experiment.model}-{experiment.dataset}",
        caption=(
            f"{settings[0].editor_label} on {experiment.title} under other hyperparameters "
            f"(* as configured); {MEASURES[main].label} after all edits. "
            f"{interval_sentence(data, settings)}{footnotes.caption}"
        ),
        groups=(),
        columns=(
            *(Column(name) for name in names or ["variant"]),
            *(Column(METRICS[metric].label, _direction(main)) for metric in scored),
            *(Column(name) for name, *_ in spent),
        ),
        rows=tuple(rows),
        left=max(1, len(names)),
        footnotes=footnotes.sentences,
    )


def _plain(value: object) -> str:
    return "--" if value is None else str(value)
