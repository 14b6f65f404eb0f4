"""Figures: which ones there are, valid files, the same bytes twice, names apart."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grace_bench.errors import DataError
from grace_bench.reporting.figures.curves import editor_legend
from grace_bench.reporting.figures.kinds import sweep
from grace_bench.reporting.figures.labels import place_labels
from grace_bench.reporting.figures.style import STYLE
from grace_bench.reporting.figures.write import write_figures
from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.summary.write import summarise

pytestmark = pytest.mark.slow

NAMES = (
    "codebook-size",
    "comparison-facts-t5-facts-qa",
    "comparison-terms-bert-terms_cls",
    "overview",
    "retention-facts-t5-facts-qa",
    "retention-terms-bert-terms_cls",
    "sweep-grace",
)


def test_every_figure_is_there_as_pdf_and_png(reported):
    found = sorted(path.name for path in (reported / "figures").iterdir())
    assert found == sorted(f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png"))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_whole_and_say_where_they_come_from(reported, name):
    picture = (reported / "figures" / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", picture[16:24])
    assert 700 <= width <= 2400
    assert 350 <= height <= 2000
    assert len(picture) > 20_000  # not an empty canvas
    assert b"suite: synthetic" in picture
    assert b"data_hashes: facts-qa:" in picture
    document = (reported / "figures" / f"{name}.pdf").read_bytes()
    assert document[:5] == b"%PDF-"
    assert b"/Type3" not in document.replace(b" ", b"")  # text is text
    assert b"CreationDate" not in document


def test_same_bytes_twice_and_old_figures_go(reported, tmp_path):
    gone = [tmp_path / name for name in ("sweep-gone.png", "trade-off.pdf", "codebook-m-d.png")]
    for path in gone:
        path.write_bytes(b"old")
    paths = write_figures(reported / "summary.parquet", reported / "curves.parquet", tmp_path)
    assert not any(path.exists() for path in gone)
    for path in paths:
        assert path.read_bytes() == (reported / "figures" / path.name).read_bytes()


def test_missing_curves(reported, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        write_figures(reported / "summary.parquet", tmp_path / "curves.parquet", tmp_path)


@pytest.mark.parametrize("inches", [3.5, 7.0, 10.0])
def test_a_legend_of_many_editors_stays_on_the_page(inches):
    names = ["FT+Retrain", "FT+EWC", "Unedited", "GRACE (released)", "Memory"]
    settings = [
        SimpleNamespace(editor=f"{i}", editor_label=names[i % 5], editor_class="ft")
        for i in range(10)
    ]
    figure = Figure(figsize=(inches, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        editor_legend(figure, settings, {s.editor: "black" for s in settings})
        canvas.draw()
        box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        ([(0.5, 0.5), (0.51, 0.5), (0.5, 0.52), (0.9, 0.9), (0.88, 0.9)], []),
        ([(0.7, 1.0), (0.9, 1.0)], [((0.6, 1.0), (0.8, 1.0))]),  # read "FT+RetrainGRACE"
    ],
)
def test_names_of_crowded_points_keep_apart(points, lines):
    figure = Figure(figsize=(3, 3))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.1))
    names = ["FT+Retrain", "GRACE", "Unedited", "Defer", "FT+EWC"][: len(points)]
    place_labels(axes, points, names, ["black"] * len(points), lines)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert not any(box.padded(2).overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize(("editor", "panels"), [("grace", 4), ("ft", 3)])
def test_a_sweep_has_a_panel_of_keys_only_if_there_are_keys(make_run, tmp_path, editor, panels):
    name = "radius" if editor == "grace" else "learning_rate"
    runs = [
        make_run(tmp_path, editor=editor, hyperparameters={name: value}, in_sweep=value > 1)
        for value in (1.0, 2.0)
    ]
    summarise(runs, tmp_path / "summary.parquet")
    [drawing] = sweep.make(Summary(tmp_path / "summary.parquet"), None)
    figure = Figure()
    drawing.draw(figure)
    assert len(figure.axes) == panels
