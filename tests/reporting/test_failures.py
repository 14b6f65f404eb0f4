"""Failed runs: shown in tables, figures, report and MLflow, and part of no number."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from grace_bench.errors import DataError
from grace_bench.reporting.figures.paper.write import write_paper_figures
from grace_bench.reporting.figures.write import write_figures
from grace_bench.reporting.mlflow.records import run_metrics, run_tags
from grace_bench.reporting.report import write_report
from grace_bench.reporting.summary.failures import Failure, footnote, short
from grace_bench.reporting.summary.read import Summary, read_curves
from grace_bench.reporting.summary.run_folder import read_run_folder
from grace_bench.reporting.summary.write import summarise
from grace_bench.reporting.tables.footnotes import letter
from grace_bench.reporting.tables.write import tables_of, write_tables
from grace_bench.store import files, schemas

RADII = (0.5, 1.0, 3.0)
SENTENCE = (
    "1 of 3 seeds failed: seed 2 at step 17 (diverged: the loss is not a number (nan)). "
    "Numbers: the other 2."
)


def report_all(folders: list[Path], paper: bool = True) -> Path:
    """Make everything of a suite from its files alone; the run folders are read once."""
    suite = folders[0].parents[4]
    summary = suite / "summary.parquet"
    curves = summarise(folders, summary)
    write_tables(summary, suite / "tables")
    write_figures(summary, curves, suite / "figures")
    if paper:
        write_paper_figures(folders, summary, curves, suite / "paper-figures")
    arguments = (summary, suite / "figures", suite / "report.html")
    write_report(*arguments, suite / "paper-figures")
    return suite


@pytest.fixture(scope="module")
def mixed(make_run, tmp_path_factory) -> tuple[list[Path], Path]:
    """FT failed in one seed of three, Defer in all, GRACE in one of a sweep's three radii."""
    results = tmp_path_factory.mktemp("mixed")
    folders = []
    for seed in (0, 1, 2):
        folders.append(make_run(results, editor="unedited", seed=seed))
        failed_at = 17 if seed == 2 else None
        folders.append(make_run(results, editor="ft", seed=seed, failed_at=failed_at))
        oom = "CUDA out of memory in /srv/very_long_folder/of_a_cluster/that_nobody_can_break."
        more = {"failed_at": 5 + seed, "kind": "out_of_memory", "message": oom}
        folders.append(make_run(results, editor="defer", seed=seed, **more))
        for radius in RADII:
            settings = {"rules": "corrected", "radius": radius}
            failed_at = 0 if radius == 3.0 else None
            folders.append(
                make_run(
                    results,
                    seed=seed,
                    hyperparameters=settings,
                    in_sweep=radius != 1.0,
                    failed_at=failed_at,
                    kind="error",
                    message="the value has\nno <b>gradient</b>",
                )
            )
    return folders, report_all(folders)


def _setting(data: Summary, editor: str, variant: str = "default"):
    return next(s for s in data.settings if (s.editor, s.variant) == (editor, variant))


def _rows(path: Path, **wanted: object) -> list[dict]:
    rows = files.read_parquet(path).to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_failed_seed_is_in_no_mean(mixed, make_run, tmp_path):
    _, suite = mixed
    others = [make_run(tmp_path, editor="ft", seed=seed) for seed in (0, 1)]
    summarise(others, tmp_path / "summary.parquet")
    for metric in ("trr", "err", "es", "n_edits", "seconds_per_edit"):
        wanted = _rows(tmp_path / "summary.parquet", metric=metric)
        found = _rows(suite / "summary.parquet", metric=metric, editor="ft")
        assert len(found) == len(wanted) > 0
        for one, two in zip(found, wanted, strict=True):
            assert one["value"] == two["value"]
            assert (one["low"], one["high"]) == (two["low"], two["high"])
            assert (one["seed"], one["n_seeds"]) == (two["seed"], two["n_seeds"])
            assert one["n_failed"] == (1 if one["seed"] is None else 0)
            assert two["n_failed"] == 0


def test_the_summary_tells_of_each_failed_run(mixed):
    _, suite = mixed
    rows = _rows(suite / "summary.parquet", metric="failure", editor="ft")
    whole, failed = sorted(rows, key=lambda row: row["seed"] is not None)
    assert (whole["n_failed"], whole["n_seeds"], whole["value"]) == (1, 2, 1.0)
    found = {key: value for key, value in failed.items() if key.startswith("failure_")}
    assert found == {
        "failure_kind": "diverged",
        "failure_type": "Diverged",
        "failure_step": 17,
        "failure_example_id": "edits-e8#0",
        "failure_message": "the loss is not a number (nan).",
    }
    data = Summary(suite / "summary.parquet")
    assert data.provenance["n_failed"] == "7"
    assert data.footnote(_setting(data, "ft")) == SENTENCE
    assert data.footnote(_setting(data, "unedited")) == ""
    assert [f.step for f in data.failures(_setting(data, "defer"))] == [5, 6, 7]
    assert not data.get(_setting(data, "defer"), "trr", "f1").is_finite


def test_steps_before_the_failure_stay_in_the_curves(mixed):
    folders, suite = mixed
    data = Summary(suite / "summary.parquet")
    ft = _setting(data, "ft")
    failed = read_curves(suite / "curves.parquet", data).failed
    curve = failed[ft, "trr"][2]
    assert [point.n_edits for point in curve] == [0, 8, 16]
    folder = next(f for f in folders if "ft" in f.parts and f.name == "seed-2")
    probes = files.read_parquet(folder / "probes.parquet").to_pylist()
    wanted = {
        row["n_edits"]: row["value"]
        for row in probes
        if (row["metric"], row["measure"]) == ("trr", "f1")
    }
    assert {p.n_edits: p.estimate.value for p in curve} == pytest.approx(wanted)
    # Those of all seeds are of the seeds that came to the end.
    whole = read_curves(suite / "curves.parquet", data).of(ft, "trr")
    assert whole[-1].n_edits == 24
    assert {point.estimate.n_seeds for point in whole} == {2}
    # A run that failed before anything was done has no curve.
    assert (_setting(data, "grace", "radius=3.0"), "trr") not in failed


def test_tables_show_failures_with_footnotes(mixed):
    _, suite = mixed
    data = Summary(suite / "summary.parquet")
    (table,) = tables_of(data)["main"]
    rows = {row.cells[0].text: row.cells for row in table.rows}
    notes = dict(table.footnotes)
    assert [cell.text for cell in rows["Defer"][1:]] == ["failed", *["--"] * 7]
    ft = rows["FT"][1]
    assert notes[ft.mark] == SENTENCE
    assert ft.text.startswith(".")
    assert not ft.bold
    assert notes[rows["Defer"][1].mark].startswith(
        "All 3 seeds failed: seed 0 at step 5, seed 1 at step 6, seed 2 at step 7 (out of memory: "
    )
    assert not any(cell.mark for cell in rows["GRACE"])
    assert "Letters: failed seeds, described below" in table.caption
    latex = (suite / "tables" / "main.tex").read_text()
    assert r"failed\textsuperscript{" in latex
    assert "1 of 3 seeds failed: seed 2 at step 17" in latex
    assert "% runs of these that failed: 7" in latex
    with open(suite / "tables" / "main.csv", newline="") as stream:
        lines = {(r["row"], r["column"]): r for r in csv.DictReader(stream)}
    defer = next(r for (row, c), r in lines.items() if row == "Defer" and c.endswith(": ES"))
    assert (defer["value"], defer["printed"]) == ("", "failed")
    assert defer["footnote"].startswith("All 3 seeds failed")
    ok = next(r for (row, c), r in lines.items() if row == "FT" and c.endswith("ERR"))
    assert ok["footnote"] == SENTENCE
    assert float(ok["value"]) > 0
    sweep = (suite / "tables" / "sweep-grace.md").read_text()
    (table,) = tables_of(data)["sweep-grace"]
    assert [row.cells[1].text == "failed" for row in table.rows] == [False, False, True]
    # Markdown would take a tag for its own.
    assert r"before the first step (error: the value has no \<b\>gradient\</b\>)" in sweep


def test_bold_never_goes_to_a_cell_with_failed_seeds(make_run, tmp_path):
    folders = [make_run(tmp_path, seed=seed, failed_at=3 if seed else None) for seed in (0, 1)]
    folders += [make_run(tmp_path, editor="ft", seed=seed, shift=-0.2) for seed in (0, 1)]
    summarise(folders, tmp_path / "summary.parquet")
    (table,) = tables_of(Summary(tmp_path / "summary.parquet"))["main"]
    bold = {row.cells[0].text: [cell.bold for cell in row.cells[1:4]] for row in table.rows[1:]}
    assert bold == {"FT": [True] * 3, "GRACE": [False] * 3}


def test_tables_can_be_made_again_without_the_runs(mixed, tmp_path):
    _, suite = mixed
    for name in ("summary.parquet", "comparisons.parquet"):
        shutil.copy(suite / name, tmp_path)
    for path in write_tables(tmp_path / "summary.parquet", tmp_path / "tables"):
        assert path.read_bytes() == (suite / "tables" / path.name).read_bytes()


def test_the_report_lists_failed_runs_and_escapes_their_messages(mixed):
    _, suite = mixed
    text = (suite / "report.html").read_text()
    assert '<h2 id="failed">Failed runs</h2>' in text
    assert (
        "<li>facts-t5/facts-qa/ft/default/seed-2: at step 17 (example edits-e8#0), diverged: the "
        "loss is not a number (nan).</li>"
    ) in text
    assert text.count("<li>facts-t5/facts-qa/") == 7
    assert f"</sup> {SENTENCE}" in text
    assert "<b>gradient" not in text
    assert "&lt;b&gt;gradient" in text
    assert "failed<sup>" in text


def test_the_papers_figures_go_by_whole_seeds_and_draw_how_far_failed_ones_came(mixed):
    _, suite = mixed
    found = json.loads((suite / "paper-figures" / "figures.json").read_text())
    caption = next(e["caption"] for e in found if e["figure"] == 3)
    assert "3 seeds; failed and not among them: FT (1 of 3 seeds), Defer (all 3 seeds)" in caption
    path = next((suite / "paper-figures").glob("fig3-*.csv"))
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    ft = {row["n_edits"] for row in rows if (row["editor"], row["failed_seed"]) == ("ft", "2")}
    assert {"0", "8", "16"} <= ft
    assert "24" not in ft
    assert {r["n_seeds"] for r in rows if (r["editor"], r["failed_seed"]) == ("ft", "")} == {"2"}
    assert not [r for r in rows if r["editor"] == "defer" and not r["failed_seed"]]


@pytest.mark.slow
@pytest.mark.parametrize("failed_at", [0, 1, 12])
def test_a_suite_in_which_every_run_failed_still_gives_everything(make_run, tmp_path, failed_at):
    editors = ("unedited", "ft", "grace")
    folders = [
        make_run(tmp_path, task, editor, seed, failed_at=failed_at)
        for task in ("question_answering", "language_modelling")
        for editor in editors
        for seed in (0, 1)
    ]
    suite = report_all(folders)
    tables = tables_of(Summary(suite / "summary.parquet"))
    (table,) = tables["main"]
    rows = [row.cells for row in table.rows if not row.heading]
    assert [cells[1].text for cells in rows] == ["failed"] * 6
    assert "No run was completed." in table.caption
    cells = [row.cells[2] for table in tables["measures"] for row in table.rows]
    assert {cell.text for cell in cells} == {"failed"}
    assert (suite / "figures" / "overview.png").is_file()
    found = json.loads((suite / "paper-figures" / "figures.json").read_text())
    assert any("every run failed" in e.get("why_not", "") for e in found)
    assert "Failed runs" in (suite / "report.html").read_text()


def test_a_run_that_failed_during_a_probe_keeps_what_the_probe_has(
    make_run, replace_rows, tmp_path
):
    folder = make_run(tmp_path, editor="ft", failed_at=18)
    rows = files.read_parquet(folder / "predictions.parquet").to_pylist()
    last = max(row["step"] for row in rows if row["role"] == "upstream")
    kept = [row for row in rows if not (row["role"] == "upstream" and row["step"] == last)]
    replace_rows(folder, "predictions.parquet", kept, schemas.predictions_schema())
    curves = summarise([folder], tmp_path / "summary.parquet")
    data = Summary(tmp_path / "summary.parquet")
    failed = read_curves(curves, data).failed
    (setting,) = data.settings
    assert [p.n_edits for p in failed[setting, "err"][0]][-1] == 16
    assert [p.n_edits for p in failed[setting, "trr"][0]][-1] == 8


def test_scores_that_are_not_numbers_do_not_spread(make_run, replace_rows, tmp_path):
    """As after a divergence that was noticed only when the weights were spoilt."""
    folders = [make_run(tmp_path, "language_modelling", "ft", seed) for seed in (0, 1)]
    folder = make_run(tmp_path, "language_modelling", "ft", 2, failed_at=17)
    for name, schema in (
        ("predictions.parquet", schemas.predictions_schema()),
        ("probes.parquet", schemas.PROBES),
    ):
        rows = files.read_parquet(folder / name).to_pylist()
        for row in rows:
            if row["n_edits"] >= 16:
                row |= {k: np.nan for k in ("loss", "perplexity", "value") if row.get(k)}
        replace_rows(folder, name, rows, schema)
    suite = report_all([*folders, folder], paper=False)
    data = Summary(suite / "summary.parquet")
    (setting,) = data.settings
    assert data.get(setting, "trr", "perplexity").is_finite
    curve = read_curves(suite / "curves.parquet", data).failed_of(setting, "trr")[2]
    assert [p.n_edits for p in curve if p.estimate.is_finite] == [0, 8]


def test_mlflow_shows_how_a_run_failed(make_run, tmp_path):
    run = read_run_folder(make_run(tmp_path, editor="ft", failed_at=17))
    tags = run_tags(run)
    assert tags["grace_bench.status"] == "failed"
    assert tags["grace_bench.failure.kind"] == "diverged"
    assert tags["grace_bench.failure.step"] == "17"
    assert tags["grace_bench.failure.message"] == "the loss is not a number (nan)."
    points, _ = run_metrics(run)
    names = {name for name, *_ in points}
    assert {"probe/trr", "edit/es", "final/n_edits"} <= names
    assert "final/trr" not in names
    empty = read_run_folder(make_run(tmp_path, editor="grace", failed_at=0))
    run_metrics(empty)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"failure": None}, "does not say how the run failed"),
        ({"failure": "out of memory"}, "'failure' must be an object"),
        ({"failure": {"kind": "error", "step": "3", "message": ""}}, "'failure.step' must be a"),
        ({"failure": {"kind": "error", "step": 3}}, "lacks 'failure.message'"),
    ],
)
def test_a_failure_without_a_reason_is_refused(make_run, tmp_path, change, said):
    folder = make_run(tmp_path, failed_at=3)
    record = json.loads((folder / "run.json").read_text())
    files.write_json(folder / "run.json", record | change)
    with pytest.raises(DataError, match=said):
        read_run_folder(folder)


def test_a_failure_whose_step_is_not_recorded_is_one_before_the_first(make_run, tmp_path):
    folder = make_run(tmp_path, failed_at=3)
    record = json.loads((folder / "run.json").read_text())
    del record["failure"]["step"]
    files.write_json(folder / "run.json", record)
    assert read_run_folder(folder).failure.step is None


def test_sentences_of_footnotes():
    same = [Failure(seed=seed, kind="error", step=3, message="no luck.") for seed in range(9)]
    assert footnote(same, 1) == (
        "9 of 10 seeds failed: seed 0 at step 3, seed 1 at step 3, seed 2 at step 3, seed 3 at "
        "step 3, seed 4 at step 3, seed 5 at step 3, 3 more (error: no luck). "
        "Numbers: the other 1."
    )
    alone = [Failure(seed=4, kind="out_of_memory", message="x" * 500)]
    assert footnote(alone, 0).startswith("The only seed failed: seed 4 before the first step (out")
    assert len(footnote(alone, 0)) < 400
    assert short("FT", alone, 0) == "FT (all 1 seed)"
    assert short("FT", same, 1) == "FT (9 of 10 seeds)"
    assert [letter(n) for n in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]


@pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="pdflatex or pdftotext is not installed",
)
def test_footnotes_compile(mixed, tmp_path):
    _, suite = mixed
    write_tables(suite / "summary.parquet", tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    subprocess.run(["pdftotext", "-layout", "document.pdf"], cwd=tmp_path, check=True)
    text = " ".join((tmp_path / "document.txt").read_text().split())
    assert "1 of 3 seeds failed: seed 2 at step 17" in text
