"""What other packages add runs through the whole workflow without a line of grace-bench."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from capitals import model_config
from plugins import install
from workflows import snakemake

from grace_bench.steps.skeleton import write_skeleton
from grace_bench.store.files import read_json

GROUPS = {
    "editor": ("editors", "SPEC"),
    "dataset": ("datasets", "BUILDER"),
    "task": ("tasks", "TASK"),
}
MEASURE = """
from grace_bench.metrics import Measure

MEASURE = Measure(
    "words", "Words", False, "words of the answer",
    score=lambda answer: len(answer.text.split()), scale="linear", digits=2, unit="words",
)
"""
TABLE = """
from grace_bench.reporting.tables.table import Cell, Column, Row, Table, cell, measure_column

def make(summary):
    cells = lambda s: (Cell(s.editor_label), cell(summary.get(s, "err", "words"), "words"))
    rows = tuple(Row(cells(setting)) for setting in summary.settings)
    columns = (Column("Editor"), measure_column("words"))
    return [Table("lengths", "How long answers are.", columns, rows)]
"""
FIGURE = """
from grace_bench.reporting.figures.style import Drawing

CAPTION = "How long answers are, as bars."

def make(summary, curves):
    lengths = [summary.get(s, "err", "words").value for s in summary.settings]
    names = [s.editor_label for s in summary.settings]
    return [Drawing("lengths", (4, 3), lambda figure: figure.subplots().bar(names, lengths))]
"""


def write_reporting_package(folder: Path) -> None:
    """Write a package that adds a measure, a table and a figure."""
    package = folder / "my_reports"
    package.mkdir(parents=True)
    for name, text in {"": "", "words": MEASURE, "table": TABLE, "figure": FIGURE}.items():
        (package / f"{name or '__init__'}.py").write_text(text)
    for group, name, target in (
        ("measures", "words", "my_reports.words:MEASURE"),
        ("tables", "lengths", "my_reports.table"),
        ("figures", "lengths", "my_reports.figure"),
    ):
        install(folder, "my_reports", group, {name: target}, version="3.4")


@pytest.mark.timeout(300)
def test_what_other_packages_add(tmp_path, repository, monkeypatch):
    """A slow test (40 s): an editor, a data set and a task as `grace-bench new` writes them.

    And a measure, a table and a figure, from the rows to the report and to MLflow.
    """
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    for kind, (group, target) in GROUPS.items():
        name, package = f"my_{kind}", tmp_path / kind
        write_skeleton(kind, name, package)
        install(package, name, group, {name: f"{name}:{target}"}, version="1.2")
        paths.insert(0, str(package))
    write_reporting_package(tmp_path / "reports")
    paths.insert(0, str(tmp_path / "reports"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    builder = tmp_path / "dataset/my_dataset/__init__.py"
    builder.write_text(builder.read_text().replace('("question_answering",)', '("my_task",)'))
    dataset = yaml.safe_load((tmp_path / "dataset/config/datasets/my_dataset.yaml").read_text())
    suite = {
        "name": "added",
        "experiments": [
            {
                "model": model_config().model_dump(mode="json"),
                "dataset": {**dataset, "task": "my_task"},
            }
        ],
        "editors": ["unedited", "my_editor"],
        "seeds": [0],
        "probes": {"every": 2},
        "compute": {"device": "cpu"},
    }
    folder = tmp_path / "editor"  # its config/editors has the editor, the clone's has the other one
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))

    done = snakemake(repository, folder, "--cores", "2", "--configfile", str(folder / "suite.yaml"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = folder / "results/added"
    record = read_json(results / "runs/tiny/my_dataset/my_editor/default/seed-0/run.json")
    origins = record["provenance"]["origins"]
    assert {kind: origin.split()[:2] for kind, origin in origins.items()} == {
        "editor": ["my_editor", "1.2"],
        "data set builder": ["my_dataset", "1.2"],
        "task": ["my_task", "1.2"],
        "measures": ["my_reports", "3.4"],
    }
    table = (results / "tables/main.md").read_text()
    assert "MyEditor" in table
    assert "MyDataset" in table
    assert "my_task 1.2" in (results / "tables/main.tex").read_text()
    assert (results / "figures/overview.png").is_file()

    run = results / "runs/tiny/my_dataset/my_editor/default/seed-0"
    predicted = pq.read_table(run / "predictions.parquet").to_pylist()
    assert predicted[0]["words"] == len(predicted[0]["prediction"].split())
    assert all(row["words"] is not None for row in predicted)
    for table, metrics in (
        (run / "probes.parquet", {"err", "trr"}),
        (results / "summary.parquet", {"err", "trr"}),
    ):
        rows = pq.read_table(table).to_pylist()
        assert metrics <= {row["metric"] for row in rows if row["measure"] == "words"}
    assert "Words (words) \u2193" in (results / "tables/measures.md").read_text()
    assert "| MyEditor | " in (results / "tables/lengths.md").read_text()
    assert r"\input{lengths}" in (results / "tables/document.tex").read_text()
    assert (results / "figures/lengths.pdf").is_file()
    report = (results / "report.html").read_text()
    for said in ("MyEditor", "How long answers are.", "How long answers are, as bars."):
        assert said in report
    with closing(sqlite3.connect(results / "mlflow.db")) as database:
        tracked = database.execute("SELECT DISTINCT key FROM metrics").fetchall()
    assert ("final/err.words",) in tracked
