"""The paper's figures beside ours: what is compared, and what stays blank."""

from __future__ import annotations

import csv

import pytest

from grace_bench.reporting.summary.read import Summary
from grace_bench.reporting.summary.write import summarise
from grace_bench.reporting.tables.kinds import paper
from grace_bench.reporting.tables.kinds.paper import PAPER_MODELS, STANDS_FOR, StandIn, read_paper
from grace_bench.reporting.tables.write import write_tables


@pytest.fixture
def compare(tmp_path, make_run, monkeypatch):
    """Write the tables of runs on a data set that stands for zsRE; return summary and cells."""

    def write(*editors: str, differs: str = "other questions", **released):
        monkeypatch.setattr(paper, "STANDS_FOR", {"facts-qa": StandIn("zsre", differs)})
        folders = [make_run(tmp_path, editor=editor) for editor in editors]
        folders.append(make_run(tmp_path, "classification", "ft"))
        if released:
            folders.append(make_run(tmp_path, editor="grace", **released))
        summary = tmp_path / "summary.parquet"
        summarise(folders, summary)
        write_tables(summary, tmp_path / "tables")
        with open(tmp_path / "tables" / "paper.csv", encoding="utf-8") as stream:
            cells = {(row["row"], row["column"]): row for row in csv.DictReader(stream)}
        return Summary(summary), cells

    return write


@pytest.fixture
def compared(compare):
    return compare("unedited", "ft", "grace")


def caption(tmp_path) -> str:
    return (tmp_path / "tables" / "paper.md").read_text().splitlines()[0]


def test_averages_of_the_paper_are_those_of_its_columns():
    for dataset in ("zsre", "scotus"):
        for editor, row in read_paper()[dataset].items():
            figures = row.figures
            mean = (figures["trr"] + figures["err"]) / 2
            assert figures["third"] == pytest.approx(mean, abs=0.0101), editor


def test_every_data_set_and_model_that_stands_for_the_papers_is_in_config(repository):
    assert {stand_in.dataset for stand_in in STANDS_FOR.values()} == set(read_paper())
    for name in STANDS_FOR:
        assert (repository / "config" / "datasets" / f"{name}.yaml").is_file()
    assert set(PAPER_MODELS) == set(read_paper())
    for _, models in PAPER_MODELS.values():
        for name in models:
            assert (repository / "config" / "models" / f"{name}.yaml").is_file()


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
    mend = {column: row for (label, column), row in cells.items() if label == "MEND"}
    assert [float(row["value"]) for row in mend.values()] == [0.25, 0.27, 0.26, 1000]
    assert all(column.endswith("paper") for column in mend)
    assert {row["table"] for row in cells.values()} == {"paper-facts-t5-facts-qa"}


def test_both_sets_of_rules_of_grace_stand_beside_the_same_row(compare):
    released = {"rules": "released"}
    _, cells = compare("ft", "grace", name="grace-released", hyperparameters=released, shift=-0.2)
    found = {
        label: float(row["value"])
        for (label, column), row in cells.items()
        if column.startswith("Keys") and column.endswith("paper")
    }
    assert len(found) == 2
    assert set(found.values()) == {137}
    ours = [r["value"] for (_, column), r in cells.items() if column == "ERR: ours"]
    assert len(set(ours)) == 3


def test_rows_come_in_the_papers_order(compared, tmp_path):
    lines = (tmp_path / "tables" / "paper.md").read_text().splitlines()
    names = [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")]
    assert names == [*("Editor", "FT", "FT+EWC", "FT+Retrain", "MEND", "Defer", "Memory", "GRACE")]


def test_the_caption_says_what_is_not_the_papers(compared, tmp_path, compare):
    assert "another model (the paper: T5" in caption(tmp_path)
    assert "other questions" in caption(tmp_path)
    assert "F1 is of words" in caption(tmp_path)


def test_the_caption_of_the_papers_own_model_and_data_has_no_reservations(
    compare, tmp_path, monkeypatch
):
    models = {"facts-t5": ""}
    monkeypatch.setattr(paper, "PAPER_MODELS", {"zsre": ("T5", models)})
    monkeypatch.setattr(paper, "MEASURED", {})
    compare("ft", differs="")
    assert "Not as in the paper" not in caption(tmp_path)


def test_no_paper_table_is_written_where_nothing_stands_for_the_paper(tmp_path, make_run):
    summary = tmp_path / "summary.parquet"
    summarise([make_run(tmp_path)], summary)
    paths = write_tables(summary, tmp_path / "tables")
    assert not any(path.name.startswith("paper") for path in paths)
