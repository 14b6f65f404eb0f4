"""Writes the figures of a suite, each as PDF (text as text) and PNG.

    write_figures(Path("results/smoke/summary.parquet"), Path("results/smoke/curves.parquet"),
                  Path("results/smoke/figures"))

Each module of `kinds/` draws one kind: overview, retention-<model>-<dataset>, codebook-size,
comparison-<model>-<dataset>, ranks, sweep-<editor>. Bands and crosses are the 95% intervals of the
summary. Seeds whose runs failed are part of no line and no point: a dotted line of its own shows
how far each came.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grace_bench.registry import FIGURES
from grace_bench.reporting.figures.style import draw
from grace_bench.reporting.outputs import remove_stale
from grace_bench.reporting.summary.read import Summary, read_curves

EARLIER_KINDS = ("codebook", "trade-off")
"""How the names of figures of earlier versions begin."""


def write_figures(summary: Path, curves: Path, folder: Path) -> list[Path]:
    """Write all figures of a summary into `folder` and return their paths.

    Figures of an earlier call that are no longer made are removed.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    data, folder = Summary(summary), Path(folder)
    points = read_curves(curves, data)
    drawings = [d for name in FIGURES.names() for d in FIGURES.get(name).make(data, points)]
    paths = [path for d in drawings for path in draw(d, folder, data.provenance)]
    kinds = [*(name for name, _ in kinds_by_file()), *EARLIER_KINDS]
    remove_stale(folder, kinds, {path.name for path in paths}, (".pdf", ".png"))
    return paths


def kinds_by_file() -> Iterator[tuple[str, str]]:
    """Yield how the names of a kind's files begin ("codebook-size"), and its registered name."""
    for name in FIGURES.names():
        yield name.replace("_", "-"), name


def caption_of(file_name: str) -> str:
    """Return what a figure shows, by its file's name; empty for one of no known kind."""
    for prefix, name in kinds_by_file():
        if file_name == prefix or file_name.startswith(f"{prefix}-"):
            return getattr(FIGURES.get(name), "CAPTION", "")
    return ""
