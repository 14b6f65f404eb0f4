"""Draws the figures of the GRACE paper (Figs. 3 to 6) that a suite's runs can show.

    write_paper_figures(Path("results/figures/plan.json"), Path("results/figures/summary.parquet"),
                        Path("results/figures/curves.parquet"), Path("results/figures/paper"))

Each is a PDF, a PNG and its data as CSV. figures.json lists all of them: what each shows, or why it
is missing. Fig. 2 needs no runs: `grace-bench toy`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import RootModel

from grace_bench.reporting.figures.paper.blocks import figure_3, figure_4
from grace_bench.reporting.figures.paper.keys import figure_5
from grace_bench.reporting.figures.paper.latency import figure_6
from grace_bench.reporting.figures.paper.runs import Missing, SuiteRuns
from grace_bench.reporting.figures.style import INDEX, draw, save_csv
from grace_bench.reporting.outputs import remove_stale
from grace_bench.store.json_records import write_record
from grace_bench.store.records import Record

logger = logging.getLogger(__name__)


class PaperFigure(Record):
    """One of the paper's figures: name and caption of what was drawn, or why nothing was."""

    figure: int
    name: str | None = None
    caption: str | None = None
    why_not: str | None = None


class PaperFigures(RootModel[list[PaperFigure]]):
    """`figures.json`."""


def write_paper_figures(
    runs: Path | Sequence[Path], summary: Path, curves: Path, folder: Path
) -> list[PaperFigure]:
    """Draw the figures that the runs can show; return the content of figures.json.

    Figures of an earlier call that are no longer made are removed.

    Args:
        runs: folders of one suite's runs, complete or failed, or the path of its plan.json.
        summary: summary.parquet of these runs.
        curves: curves.parquet of these runs.
        folder: to write to.

    Raises:
        DataError: a file is missing or damaged, or they do not belong together.
    """
    suite, folder = SuiteRuns(runs, summary, curves), Path(folder)
    index: list[PaperFigure] = []
    made: set[Path] = set()
    for figures in (figure_3, figure_4, figure_5, figure_6):
        for found in figures(suite):
            if isinstance(found, Missing):
                logger.info("Fig. %d is not drawn: %s", found.number, found.reason)
                index.append(PaperFigure(figure=found.number, why_not=found.reason))
                continue
            paths = draw(found, folder, suite.data.provenance)
            paths.append(save_csv(folder / f"{found.name}.csv", found.rows))
            made.update(paths)
            logger.info("Fig. %d: %s", found.number, paths[0])
            index.append(PaperFigure(figure=found.number, name=found.name, caption=found.caption))
    kinds = [f"fig{number}" for number in (3, 4, 5, 6)]
    remove_stale(folder, kinds, {path.name for path in made}, (".pdf", ".png", ".csv"))
    # Written last: a reader finds the figures that it names.
    write_record(folder / INDEX, PaperFigures(index))
    return index
