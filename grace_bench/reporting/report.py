"""One HTML file with a suite's tables, figures and provenance, to be sent or kept as it is.

    write_report(suite / "summary.parquet", suite / "figures", suite / "report.html")

It loads nothing from anywhere: pictures are inside, there are no scripts.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grace_bench import __version__
from grace_bench.reporting.comparison.differences import by_experiment
from grace_bench.reporting.comparison.ranks import too_few
from grace_bench.reporting.figures.paper.write import PaperFigures
from grace_bench.reporting.figures.style import INDEX
from grace_bench.reporting.figures.write import caption_of
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.tables.table import plain_header
from grace_bench.reporting.tables.write import tables_of
from grace_bench.store import schemas
from grace_bench.store.files import atomic_path
from grace_bench.store.json_records import read_record
from grace_bench.store.records import BASELINE, MANIFEST, BaselineRecord, Manifest

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class _Figure:
    name: str
    data: Markup  # base64 of a PNG
    caption: str


def write_report(
    summary: Path, figures: Path, output: Path, paper_figures: Path | None = None
) -> None:
    """Write the report of a suite.

    Args:
        summary: summary.parquet.
        figures: folder of the PNG figures.
        output: path of the HTML file.
        paper_figures: folder of the paper's figures and their figures.json, if there is one.

    Raises:
        DataError: the summary is missing or damaged.
    """
    suite, folder = Summary(summary), Path(summary).parent
    pictures = sorted(Path(figures).glob("*.png"), key=lambda p: (p.stem != "overview", p.name))
    paper, not_drawn = _paper_figures(paper_figures)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("grace_bench", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["header"] = plain_header
    text = environment.get_template(TEMPLATE).render(
        suite=suite.provenance.get("suite", ""),
        tables=list(itertools.chain(*tables_of(suite).values())),
        figures=[_figure(path, caption_of(path.stem)) for path in pictures],
        comparisons=by_experiment(suite.comparisons),
        n_comparisons=len(suite.comparisons),
        no_ranks=too_few(suite),
        data=[*_row_counts(folder), *_truncations(folder)],
        failed=_failures(suite),
        paper=paper,
        not_drawn=not_drawn,
        provenance=suite.provenance,
        version=__version__,
    )
    with atomic_path(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _failures(suite: Summary) -> list[str]:
    """Describe each failed run: at which step it failed, and why."""
    return [
        f"{s.experiment.model}/{s.experiment.dataset}/{s.editor}/{s.variant}/seed-{f.seed}: "
        f"{f.place}{f' (example {f.example_id})' if f.example_id else ''}, {f.reason}."
        for s in suite.settings
        for f in suite.failures(s)
    ]


def _figure(path: Path, caption: str) -> _Figure:
    return _Figure(path.stem, Markup(base64.b64encode(path.read_bytes()).decode()), caption)


def _paper_figures(folder: Path | None) -> tuple[list[_Figure], list[str]]:
    """Return the paper's figures that were drawn, and a line for each that was not."""
    if folder is None or not (folder / INDEX).is_file():
        return [], []
    entries = read_record(folder / INDEX, PaperFigures).root
    drawn = [_figure(folder / f"{e.name}.png", e.caption or "") for e in entries if e.name]
    toy = folder / "toy.png"
    if toy.is_file():
        drawn.insert(0, _figure(toy, "The paper's toy (Fig. 2): one key repairs a disc."))
    return drawn, [f"Fig. {e.figure}: {e.why_not}" for e in entries if not e.name]


def _row_counts(folder: Path) -> list[str]:
    """Describe each data set of a suite: its rows by role, and what was left out of it."""
    lines = []
    for path in sorted((folder / "data").glob(f"*/{MANIFEST}")):
        manifest = read_record(path, Manifest)
        rows = {role: entry.rows for role, entry in manifest.roles.items()}
        line = f"{path.parent.name}: {_counts(rows)}"
        if taught := _counts(manifest.also_in_train):
            line += f"; also read in train: {taught}"
        dropped = manifest.dropped.items()
        line += "; left out: " + (", ".join(f"{why} {n}" for why, n in dropped) or "nothing")
        lines.append(f"{line}.")
    return lines


def _counts(by_role: Mapping[str, int]) -> str:
    """List the roles that have any rows, in their order: "train 7, edits 3"."""
    return ", ".join(f"{role} {n}" for role, n in _by_role(by_role) if n)


def _by_role(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(values.items(), key=lambda item: schemas.ROLES.index(item[0]))


def _truncations(folder: Path) -> list[str]:
    """Describe what `max_length` cuts, and the labels that a tokenizer writes in another form."""
    lines = []
    for path in sorted((folder / "baselines").glob(f"*/*/{BASELINE}")):
        baseline = read_record(path, BaselineRecord)
        name = path.parent.relative_to(folder / "baselines").as_posix()
        roles = _by_role(baseline.truncated)
        cut = ", ".join(
            f"{role} {n.texts} texts and {n.labels} labels of {n.rows} rows"
            for role, n in roles
            if n.texts or n.labels
        )
        if cut:
            lines.append(f"{name}: cut short at max_length {baseline.max_length}: {cut}.")
        changed = ", ".join(
            f"{role} {n.unsayable} of {n.rows} labels" for role, n in roles if n.unsayable
        )
        if changed:
            lines.append(f"{name}: labels compared in the form that the tokenizer has: {changed}.")
    return lines
