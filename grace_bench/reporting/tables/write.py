"""Writes the tables of a suite as LaTeX, Markdown and CSV.

    write_tables(Path("results/smoke/summary.parquet"), Path("results/smoke/tables"))

Each module of `kinds/` makes the tables of one file or, if a table names its `file`, of several:
main, comparison, measures, sweep-<editor>, ranks over many data sets and, for data sets of the
paper, paper. `pdflatex document.tex` turns all of them into one PDF. There are no dates in them:
the same summary gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grace_bench import __version__
from grace_bench.registry import TABLES
from grace_bench.reporting.outputs import remove_stale
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.table import Table, to_csv, to_latex, to_markdown
from grace_bench.store import files

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
    for name, text in texts.items():
        with files.atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    remove_stale(folder, TABLES.names(), texts, (".tex", ".md", ".csv"))
    return [folder / name for name in texts]


def tables_of(data: Summary) -> dict[str, list[Table]]:
    """Return all tables of a summary, by the names of their files."""
    tables: dict[str, list[Table]] = {}
    for name in TABLES.names():
        for table in TABLES.get(name).make(data):
            tables.setdefault(table.file or name, []).append(table)
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
