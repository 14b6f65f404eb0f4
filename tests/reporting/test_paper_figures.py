"""The paper's figures: drawn from what the runs have, and a line where they have it not."""

from __future__ import annotations

import csv
import struct

import matplotlib.image
import pytest

from grace_bench.errors import DataError
from grace_bench.reporting.figures.paper.keys import answers_of
from grace_bench.reporting.figures.paper.runs import SuiteRuns, block_names, common_name
from grace_bench.reporting.figures.paper.write import PaperFigures, write_paper_figures
from grace_bench.reporting.report import write_report
from grace_bench.reporting.summary.run_folder import read_run_folder
from grace_bench.reporting.summary.write import summarise
from grace_bench.store import files, schemas
from grace_bench.store.json_records import read_record

pytestmark = pytest.mark.slow

RADII = (0.1, 1.0, 3.0)


@pytest.fixture(scope="module")
def folders(make_run, tmp_path_factory):
    """Two blocks of one model with three radii, and three editors on another task."""
    results = tmp_path_factory.mktemp("results")
    made = []
    for seed in (0, 1):
        for block in (2, 10):
            made.append(make_run(results, editor="unedited", seed=seed, block=block))
            for radius in RADII:
                settings = {"rules": "corrected", "radius": radius}
                made.append(
                    make_run(
                        results,
                        seed=seed,
                        hyperparameters=settings,
                        in_sweep=radius != 1.0,
                        block=block,
                        latency=3 if block == 10 else 0,
                    )
                )
        for editor in ("unedited", "ft", "grace"):
            settings = {"rules": "corrected"} | ({"radius": 1.0} if editor == "grace" else {})
            made.append(
                make_run(results, "language_modelling", editor, seed, hyperparameters=settings)
            )
    return made


@pytest.fixture(scope="module")
def drawn(folders):
    """The folder of figures, and its figures.json."""
    suite = folders[0].parents[4]
    curves = summarise(folders, suite / "summary.parquet")
    folder = suite / "paper-figures"
    return folder, write_paper_figures(folders, suite / "summary.parquet", curves, folder)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_all_that_the_runs_can_show_is_drawn_with_its_data(drawn):
    folder, entries = drawn
    names = [entry.name for entry in entries if entry.name]
    assert names == [
        "fig3-facts-t5-block-10-facts-qa",
        "fig3-facts-t5-block-2-facts-qa",
        "fig3-bios-gpt2-bios-lm",
        "fig4-facts-t5-facts-qa",
        "fig5-facts-t5-block-10-facts-qa",
        "fig5-facts-t5-block-2-facts-qa",
        "fig6-inference-time",
    ]
    expected = {f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    assert {path.name for path in folder.iterdir()} == {*expected, "figures.json"}
    assert read_record(folder / "figures.json", PaperFigures).root == entries
    for name in names:
        picture = (folder / f"{name}.png").read_bytes()
        assert struct.unpack(">II", picture[16:24]) > (1000, 400)
        assert b"suite: synthetic" in picture
        assert matplotlib.image.imread(folder / f"{name}.png").std() > 0.02  # not an empty canvas


def test_what_is_missing_is_said(drawn):
    entries = [entry for entry in drawn[1] if not entry.name]
    assert [(entry.figure, entry.why_not) for entry in entries] == [
        (5, "GRACE on Biographies, GPT-2, radius 1: the data set has no holdout of edited facts.")
    ]


def test_blocks_and_radii_stand_in_the_data_of_figure_4(drawn):
    rows = rows_of(drawn[0] / "fig4-facts-t5-facts-qa.csv")
    assert {row["layer"] for row in rows} == {"encoder.block.2.wo", "encoder.block.10.wo"}
    assert {float(row["radius"]) for row in rows} == set(RADII)
    assert {row["metric"] for row in rows} == {"trr", "err", "holdout", "n_keys"}
    assert {row["n_seeds"] for row in rows} == {"2"}
    ends = {
        float(row["radius"]): float(row["value"])
        for row in rows
        if row["metric"] == "n_keys" and row["n_edits"] == "24" and "10" in row["layer"]
    }
    assert ends[0.1] > ends[1.0] > ends[3.0]


def test_the_data_of_figure_3_are_the_curves(drawn, folders):
    folder, _ = drawn
    suite = SuiteRuns(folders, folder.parent / "summary.parquet", folder.parent / "curves.parquet")
    rows = rows_of(folder / "fig3-bios-gpt2-bios-lm.csv")
    assert {row["editor"] for row in rows} == {"unedited", "ft", "grace"}
    for setting in suite.data.settings:
        points = suite.points(setting, "trr")
        found = [
            float(row["value"])
            for row in rows
            if (row["model"], row["editor"]) == (setting.experiment.model, setting.editor)
            and row["metric"] == "trr"
        ]
        if found:
            assert found == [point.estimate.value for point in points]


def test_every_holdout_is_counted_once_in_figure_5(drawn):
    rows = rows_of(drawn[0] / "fig5-facts-t5-block-2-facts-qa.csv")
    probes = {}
    for row in rows:
        place = (row["radius"], row["seed"], row["n_edits"])
        probes.setdefault(place, []).append(row)
    assert len(probes) == 3 * 2 * 3  # radii, seeds, probes after the first edit
    for found in probes.values():
        assert sum(int(row["answers"]) for row in found) == int(found[0]["n_holdouts"])


def test_who_answers_a_holdout(make_run, replace_rows, tmp_path):
    run = make_run(tmp_path, edits=4, every=4, upstream=2)
    steps = [
        {"step": n, "n_edits": n, "fact_id": fact, "key": key, "n_keys": keys}
        for n, fact, key, keys in ((1, "a", 0, 1), (2, "b", 1, 2), (3, "a", 1, 2))
    ]
    common = {"example_id": "e", "is_error": True, "edited": True}
    replace_rows(run, "steps.parquet", [row | common for row in steps], schemas.STEPS)
    asked = [(2, "a", 0), (2, "a", 1), (2, "b", 1), (2, "b", None), (3, "a", 1), (3, "b", 1)]
    predictions = [
        {"step": n, "n_edits": n, "role": "holdout", "example_id": "h", "fact_id": fact, "key": key}
        for n, fact, key in asked
    ]
    replace_rows(run, "predictions.parquet", predictions, schemas.predictions_schema())
    second, third = answers_of(read_run_folder(run))
    # Key 1 is of fact a only from the third edit on.
    assert (second.holdouts, second.answered, second.own, second.n_keys) == (4, 3, 2, 2)
    assert dict(second.by_key) == {0: 1, 1: 2}
    assert [second.share(who) for who in ("own", "other", "none")] == [0.5, 0.25, 0.25]
    assert (second.per_key, second.most) == (1.5, 2)
    assert (third.own, third.answered, third.share("none")) == (2, 2, 0.0)


def test_runs_of_an_earlier_version_say_that_they_lack_the_keys(make_run, replace_rows, tmp_path):
    run = make_run(tmp_path, hyperparameters={"rules": "corrected", "radius": 1.0})
    rows = files.read_parquet(run / "predictions.parquet").to_pylist()
    rows = [{**row, "key": None} for row in rows]
    replace_rows(run, "predictions.parquet", rows, schemas.predictions_schema())
    curves = summarise([run], tmp_path / "summary.parquet")
    entries = write_paper_figures([run], tmp_path / "summary.parquet", curves, tmp_path / "figures")
    [reason] = [entry.why_not for entry in entries if entry.figure == 5]
    assert "were made before predictions named the key that answered" in reason


def test_a_suite_that_can_show_little_says_why(make_run, tmp_path):
    run = make_run(tmp_path, editor="ft")
    (tmp_path / "figures").mkdir()
    for name in ("fig4-old.png", "fig4-old.csv", "toy.png"):
        (tmp_path / "figures" / name).write_bytes(b"old")
    curves = summarise([run], tmp_path / "summary.parquet")
    entries = write_paper_figures([run], tmp_path / "summary.parquet", curves, tmp_path / "figures")
    assert {e.figure: e.why_not for e in entries if not e.name} == {
        4: "no editor with keys was run with two radii, or on two layers of one model.",
        5: "no editor with keys and a radius was run.",
        6: "no run of an editor with keys was timed; set probes.latency.",
    }
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "fig3-facts-t5-facts-qa",
        "figures",
        "toy",
    }


def test_the_same_runs_give_the_same_bytes(make_run, tmp_path):
    run = make_run(tmp_path, latency=2, hyperparameters={"rules": "corrected", "radius": 1.0})
    summary = tmp_path / "summary.parquet"
    curves = summarise([run], summary)
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        write_paper_figures([run], summary, curves, folder)
    assert {path.name[:4] for path in first.iterdir()} == {"fig3", "fig5", "fig6", "figu"}
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_run_that_the_summary_lacks_is_refused(make_run, folders, drawn, tmp_path):
    suite = drawn[0].parent
    other = make_run(tmp_path, editor="defer")
    with pytest.raises(DataError, match=r"lacks the run .*defer.*; run the summarise step again"):
        write_paper_figures(
            [*folders, other], suite / "summary.parquet", suite / "curves.parquet", tmp_path / "f"
        )
    with pytest.raises(DataError, match=r"has runs of .* not given; run the summarise step again"):
        write_paper_figures(
            folders[:1], suite / "summary.parquet", suite / "curves.parquet", tmp_path / "f"
        )
    assert not (tmp_path / "f").exists()


def test_the_report_shows_them_and_what_is_not_drawn(drawn, tmp_path):
    folder, entries = drawn
    summary = folder.parent / "summary.parquet"
    output = tmp_path / "report.html"
    write_report(summary, tmp_path / "figures", output, folder)
    page = output.read_text()
    for entry in entries:
        if entry.name:
            assert f'alt="{entry.name}"' in page
        else:
            assert f"Fig. {entry.figure}: {entry.why_not}" in page


def test_names_of_blocks_and_of_what_models_share():
    layers = ["encoder.block.10.layer.1.wo", "encoder.block.2.layer.1.wo"]
    assert list(block_names(layers).values()) == ["block 2", "block 10"]
    apart = ["encoder.block.2.wo", "decoder.block.2.wo"]
    assert block_names(apart) == {layer: layer for layer in apart}
    assert block_names(["classifier"]) == {"classifier": "classifier"}
    assert common_name(["t5-block-10", "t5-block-12"]) == "t5"
    assert common_name(["T5 (60m), block 0", "T5 (60m), block 4"]) == "T5 (60m)"
    assert common_name(["one", "other"]) == "one"
    assert common_name(["t5 small", "t5 large"]) == "t5"
