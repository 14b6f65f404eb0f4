"""The paper's figures beside ours: what is compared, and what stays blank."""

from __future__ import annotations

import csv

import pytest

from grace_bench.reporting import paper_table
from grace_bench.reporting.estimates import Summary
from grace_bench.reporting.paper_table import read_paper
from grace_bench.reporting.summary import summarise
from grace_bench.reporting.tables import write_tables


@pytest.fixture
def compared(tmp_path, make_run, monkeypatch):
    monkeypatch.setattr(paper_table, "STANDS_FOR", {"facts-qa": "zsre"})
    folders = [make_run(tmp_path, editor=editor) for editor in ("unedited", "ft", "grace")]
    folders.append(make_run(tmp_path, "classification", "ft"))
    summary = tmp_path / "summary.parquet"
    summarise(folders, summary)
    write_tables(summary, tmp_path / "tables")
    with open(tmp_path / "tables" / "paper.csv", encoding="utf-8") as stream:
        cells = {(row["row"], row["column"]): row for row in csv.DictReader(stream)}
    return Summary(summary), cells


def test_averages_of_the_paper_are_those_of_its_columns():
    for dataset in ("zsre", "scotus"):
        for editor, row in read_paper()[dataset].items():
            assert row["third"] == pytest.approx((row["trr"] + row["err"]) / 2, abs=0.0101), editor


def test_ours_and_the_difference_stand_beside_the_paper(compared):
    data, cells = compared
    [setting] = [s for s in data.settings if s.editor == "grace"]
    ours = data.get(setting, "trr", "f1")
    found = {
        column.rsplit(None, 1)[-1]: row
        for (label, column), row in cells.items()
        if label == "GRACE" and "TRR" in column
    }
    assert float(found["paper"]["value"]) == 0.69
    assert float(found["ours"]["value"]) == pytest.approx(ours.value)
    assert float(found["ours"]["low"]) == pytest.approx(ours.low)
    assert float(found["difference"]["value"]) == pytest.approx(ours.value - 0.69)


def test_what_was_not_run_is_blank_and_other_data_sets_are_left_out(compared):
    _, cells = compared
    mend = {column: row for (label, column), row in cells.items() if label == "mend"}
    assert [float(row["value"]) for row in mend.values()] == [0.25, 0.27, 0.26, 1000]
    assert all(column.endswith("paper") for column in mend)
    assert {row["table"] for row in cells.values()} == {"paper-facts-t5-facts-qa"}


def test_no_paper_table_is_written_where_nothing_stands_for_the_paper(tmp_path, make_run):
    summary = tmp_path / "summary.parquet"
    summarise([make_run(tmp_path)], summary)
    paths = write_tables(summary, tmp_path / "tables")
    assert not any(path.name.startswith("paper") for path in paths)
