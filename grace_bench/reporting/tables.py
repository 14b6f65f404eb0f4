"""The tables of a suite: the main comparison in the paper's layout, all measures, and sweeps.

    write_tables(Path("results/smoke/summary.parquet"), Path("results/smoke/tables"))

writes main, measures, sweep-<editor> and, for data sets of the paper, paper, each as .tex, .md and
.csv, and document.tex, which `pdflatex document.tex` turns into a PDF with all of them. No dates:
the same summary gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grace_bench import __version__, records
from grace_bench.metrics import MEASURES, METRICS
from grace_bench.reporting.estimates import (
    UNEDITED,
    Experiment,
    Setting,
    Summary,
    editor_rank,
    varying,
)
from grace_bench.reporting.footnotes import Footnotes
from grace_bench.reporting.paper_table import paper_tables
from grace_bench.reporting.table import (
    Cell,
    Column,
    Row,
    Table,
    best_in_bold,
    cell,
    number,
    to_csv,
    to_latex,
    to_markdown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUPS_A_TABLE = 3  # experiments side by side; more go into a further table

INTERVAL = (
    "Brackets: 95% percentile intervals from 2000 bootstrap resamples of facts (all examples of a "
    "fact together)"
)

DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
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
    tables = {"main": main_tables(data), "measures": measure_tables(data)}
    if compared := paper_tables(data, table_rows(data)):
        tables["paper"] = compared
    for editor, cells in data.sweeps().items():
        tables[f"sweep-{editor}"] = [sweep_table(data, cells[e]) for e in sorted_by(data, cells)]
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
        with records.atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


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


def _main_columns(experiment: Experiment) -> list[tuple[str, str, str | None, str]]:
    """Return (name, metric, measure, kind) of each column of an experiment's group."""
    main = experiment.measure
    third = ("ARR", "arr") if experiment.is_perplexity else ("Avg", "avg")
    columns = [(name, metric, main, main) for name, metric in (("TRR", "trr"), ("ERR", "err"))]
    columns.append((*third, main, main))
    columns.append(("#E", "n_edits", None, "count"))
    if experiment.is_perplexity:
        columns.append(("time s (sd)", "seconds_per_edit", "mean", "seconds"))
    return columns


def _main_table(data: Summary, experiments: Sequence[Experiment], part: int, parts: int) -> Table:
    rows = table_rows(data)
    eligible = [kind != UNEDITED for _, kind, _ in rows]
    columns: list[list[Cell]] = []
    header = [Column("Editor")]
    footnotes = Footnotes(data)
    for experiment in experiments:
        for name, metric, measure, kind in _main_columns(experiment):
            scored = measure is not None and measure in MEASURES
            cells = []
            for _, _, settings in rows:
                setting = settings.get(experiment)
                item = _main_cell(data, setting, metric, measure, kind)
                cells.append(footnotes.marked(item, setting, metric == "trr") if scored else item)
            columns.append(best_in_bold(cells, measure, eligible) if scored else cells)
            header.append(Column(name, _direction(measure) if scored else 0))
    body: list[Row] = []
    for index, (label, kind, settings) in enumerate(rows):
        after_unedited = index > 0 and rows[index - 1][1] == UNEDITED and kind != UNEDITED
        body.append(Row((Cell(label), *(column[index] for column in columns)), after_unedited))
        keys = [_keys_cell(data, settings.get(e), len(_main_columns(e))) for e in experiments]
        if any(item.text for item in keys):
            body.append(Row((Cell(""), *keys), note=True))
    groups = [("", 1), *((e.title, len(_main_columns(e))) for e in experiments)]
    return Table(
        name="main" if part == 0 else f"main-{part + 1}",
        caption=_main_caption(data, experiments, rows, part, parts) + footnotes.caption,
        groups=tuple(groups),
        columns=tuple(header),
        rows=tuple(body),
        footnotes=footnotes.sentences,
    )


def _main_cell(
    data: Summary, setting: Setting | None, metric: str, measure: str | None, kind: str
) -> Cell:
    estimate = data.get(setting, metric, measure)
    if metric != "seconds_per_edit":
        return cell(estimate, kind, with_interval=metric != "n_edits")
    text = number(estimate.value, kind)
    spread = data.get(setting, metric, "sd").value
    if spread is not None:
        text += f" ({number(spread, kind)})"
    return Cell(text, number=estimate.value)


def _keys_cell(data: Summary, setting: Setting | None, span: int) -> Cell:
    keys, share = data.get(setting, "n_keys").value, data.get(setting, "edits_per_key").value
    if keys is None:
        return Cell("", span=span)
    each = "" if share is None else f" ({number(share, 'ratio')} edits/key)"
    return Cell(f"{number(keys, 'count')} keys{each}", span=span)


def _direction(measure: str) -> int:
    return 1 if MEASURES[measure].higher_is_better else -1


def _main_caption(
    data: Summary,
    experiments: Sequence[Experiment],
    rows: Sequence[tuple[str, str, dict[Experiment, Setting]]],
    part: int,
    parts: int,
) -> str:
    shown = [setting for _, _, settings in rows for setting in settings.values()]
    which = f" (part {part + 1} of {parts})" if parts > 1 else ""
    described = []
    for experiment in experiments:
        here = [setting for setting in shown if setting.experiment == experiment]
        sizes = ", ".join(
            f"n = {spread} for {METRICS[metric].label}"
            for metric in ("trr", "err", *(["arr"] if experiment.is_perplexity else []))
            if (spread := _spread([data.get(s, metric, experiment.measure).n for s in here]))
        )
        label = MEASURES[experiment.measure].label
        described.append(f"{experiment.title}: {label}{', ' + sizes if sizes else ''}")
    perplexities = [experiment.is_perplexity for experiment in experiments]
    explained = ["TRR: retention of upstream examples", "ERR: of all past edits"]
    explained += [] if all(perplexities) else ["Avg: their mean"]
    explained += ["ARR: of outputs that were right before"] if any(perplexities) else []
    return (
        f"Suite {data.provenance.get('suite', '')}: editors after all edits{which}. "
        + "; ".join(described)
        + f". {', '.join(explained)}, #E: edits made. "
        + interval_sentence(data, shown)
        + " Best editor in bold, to the digits shown; hyperparameters as configured."
    )


def interval_sentence(data: Summary, settings: Sequence[Setting]) -> str:
    """Return what a caption says about seeds and intervals."""
    seeds = _spread([data.get(s, "trr", s.experiment.measure).n_seeds for s in settings])
    if not seeds:
        return "No run was completed."
    if seeds == "1":
        return f"One seed. {INTERVAL}."
    return f"Means over {seeds} seeds. {INTERVAL} and of seeds."


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
    eligible = [kind != UNEDITED for _, kind, _ in rows]
    footnotes = Footnotes(data)
    body: list[Row] = []
    for metric in METRICS.values():
        columns = [[cell(data.get(s, metric.name, m), m) for _, _, s in rows] for m in measures]
        nothing = all(item.number is None for column in columns for item in column)
        if nothing and not (metric.name == "trr" and any(data.failures(s) for _, _, s in rows)):
            continue
        for index, (measure, column) in enumerate(zip(measures, columns, strict=True)):
            pairs = zip(column, rows, strict=True)
            marked = [footnotes.marked(item, setting, not index) for item, (*_, setting) in pairs]
            columns[index] = best_in_bold(marked, measure, eligible)
        for index, (label, _, _) in enumerate(rows):
            name = Cell(metric.label if index == 0 else "")
            cells = (name, Cell(label), *(column[index] for column in columns))
            body.append(Row(cells, rule=index == 0 and bool(body)))
    definitions = "; ".join(f"{MEASURES[m].label}: {MEASURES[m].definition}" for m in measures)
    return Table(
        name=f"measures-{experiment.model}-{experiment.dataset}",
        caption=(
            f"{experiment.title}: all measures after all edits. {definitions}. "
            f"{interval_sentence(data, [setting for _, _, setting in rows])} "
            f"Best editor in bold.{footnotes.caption}"
        ),
        groups=(),
        columns=(
            Column("Metric"),
            Column("Editor"),
            *(Column(MEASURES[m].label, _direction(m)) for m in measures),
        ),
        rows=tuple(body),
        left=2,
        beside=True,
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
        scores = [cell(data.get(setting, metric, main), main) for metric in scored]
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
