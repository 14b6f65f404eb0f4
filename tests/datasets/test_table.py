"""`table`: any format gives the same rows; bad tables are refused in one sentence."""

from __future__ import annotations

import pytest
from dataset_records import built, prepared, refusal, write
from pydantic import ValidationError

from grace_bench.datasets.builders.table import TableOptions
from grace_bench.errors import DataError


def rows():
    """Twelve older and six later rows, among them every kind that is dropped."""
    made = [
        {"case": f"c{n}", "facts": f"the case of number {n}", "area": "ab"[n % 2], "term": 1990 + n}
        for n in range(12)
    ]
    made += [
        {"case": f"d{n}", "facts": f"a later case {n}", "area": "ab"[n % 2], "term": 2010 - n}
        for n in range(4)
    ]
    made += [
        {"case": "new", "facts": "a new sort of case", "area": "z", "term": 2004},
        {"case": "rare", "facts": "a rare sort of case", "area": "r", "term": 1991},
        {"case": "twice", "facts": "the case of number 3", "area": "a", "term": 2005},
        {"case": "short", "facts": "brief", "area": "a", "term": 1992},
        {"case": "blank", "facts": "", "area": "a", "term": 1992},
        {"case": "unnamed", "facts": "a case without area", "area": "", "term": 1992},
    ]
    return made


def options(path, **changes):
    return {
        "path": str(path),
        "text_column": "facts",
        "label_column": "area",
        "id_column": "case",
        "term_column": "term",
        "train_before": 2002,
        "upstream_size": 4,
        "min_words": 3,
        "min_label_count": 2,
        **changes,
    }


def build(tmp_path, records, **changes):
    return built("table", **options(write(tmp_path / "cases.jsonl", records), **changes))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_any_format_gives_the_same_stream(tmp_path, suffix):
    path = write(tmp_path / f"cases{suffix}", rows())
    manifest, roles = prepared(tmp_path / "out", "table", **options(path))
    edits = roles["edits"]
    assert [row["fact_id"] for row in edits] == ["d3", "d2", "d1", "d0"]
    assert edits[0] == {
        "example_id": "edits/d3",
        "fact_id": "d3",
        "text": "a later case 3",
        "label": "b",
        "subject": None,
        "relation": "2007",
        "answers": None,
    }
    assert manifest.roles["train"].rows == 8
    assert manifest.roles["upstream"].rows == 4
    assert manifest.roles["holdout"].rows == manifest.roles["accurate"].rows == 0
    assert manifest.labels == ["a", "b"]
    assert manifest.dropped == {
        "empty label": 1,
        "empty text": 1,
        "label of the stream that is never taught": 1,
        "label rarer than min_label_count": 1,
        "text repeated with another label": 1,
        "text shorter than min_words": 1,
    }


def test_upstream_was_not_trained_on_and_every_label_is_taught(tmp_path):
    roles = build(tmp_path, rows(), upstream_size=9).roles
    train, upstream = ({row["fact_id"] for row in roles[r]} for r in ("train", "upstream"))
    assert not train & upstream
    assert {row["label"] for row in roles["train"]} == {"a", "b"}


def test_rows_without_terms_are_split_at_random_but_the_same_way(tmp_path):
    changes = {"term_column": None, "train_before": None, "stream_size": 3, "id_column": None}
    first = build(tmp_path, rows()[:12], **changes).roles
    assert len(first["edits"]) == 3
    assert first == build(tmp_path, rows()[:12], **changes).roles
    assert first != build(tmp_path, rows()[:12], seed=1, **changes).roles


def test_dates_work_as_terms(tmp_path):
    dated = [{**row, "term": f"{row['term']}-05-01"} for row in rows()]
    roles = build(tmp_path, dated, train_before="2002-01-01").roles
    assert [row["fact_id"] for row in roles["edits"]] == ["d3", "d2", "d1", "d0"]


def test_stream_size_takes_the_first_later_rows(tmp_path):
    made = build(tmp_path, rows(), stream_size=2)
    assert [row["fact_id"] for row in made.roles["edits"]] == ["d3", "d2"]
    assert made.dropped["later row not requested"] == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_texts_and_labels_are_as_they_are_written(tmp_path, suffix):
    labels = ["01", "1", "1e5", "100000", "+1", "true", "NA", "None", "null", "nan", "9" * 23]
    records = [{"text": f"{label} of {n}", "label": label} for label in labels for n in range(3)]
    path = write(tmp_path / f"t{suffix}", [{"id": f"00{n}", **r} for n, r in enumerate(records)])
    made = built("table", path=path, id_column="id", stream_size=2, upstream_size=1)
    assert made.labels == sorted(labels)
    assert sum(map(len, made.roles.values())) == len(records)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_one_empty_cell_leaves_the_other_numbers_whole(tmp_path, suffix):
    records = [{"text": f"text {n}", "label": None if n == 3 else n % 2} for n in range(8)]
    path = write(tmp_path / f"t{suffix}", records)
    made = built("table", path=path, stream_size=2, upstream_size=1)
    assert (made.labels, made.dropped) == (["0", "1"], {"empty label": 1})


def test_lists_by_column_are_rows(tmp_path):
    records = [{"text": f"text {n}", "label": n % 2 == 0} for n in range(8)]
    path = write(tmp_path / "t.json", records, columns=True)
    made = built("table", path=path, stream_size=2, upstream_size=1)
    assert made.labels == ["false", "true"]
    assert sum(map(len, made.roles.values())) == 8


def test_refusals_are_one_sentence(tmp_path):
    path = write(tmp_path / "cases.csv", rows())
    odd = [{**row, "term": "last year" if n == 2 else row["term"]} for n, row in enumerate(rows())]
    other = tmp_path / "cases.xlsx"
    other.write_bytes(b"PK")
    for changes, sentence in (
        ({"path": "none.csv"}, "none.csv: no such file; put the table (with the columns facts, a"),
        ({"path": str(other)}, "must be in a file that ends in .jsonl, .json, .csv"),
        ({"path": write(tmp_path / "odd.jsonl", odd)}, "row 'c2' has the term 'last year', which"),
        ({"text_column": "fact"}, "need the fields fact, area, term, case (it has 'facts' for"),
        ({"train_before": "soon"}, "train_before='soon' is not a number, but the terms"),
        ({"upstream_size": 40}, "upstream_size=40 leaves no rows to train on, of 12"),
    ):
        assert sentence in refusal("table", **{**options(path), **changes})


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path, separator):
    path = tmp_path / "cases.csv"
    path.write_text(f"text{separator}label\na case{separator}law\n")
    said = refusal("table", **options(path))
    assert f"its columns are separated by {separator!r}; separate them with commas" in said


def test_nothing_after_the_boundary_is_an_empty_split(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    with pytest.raises(DataError, match="table: empty split: no rows are left for 'edits'"):
        prepared(tmp_path, "table", **options(path, train_before=2050))


def test_options_must_say_what_the_stream_is():
    with pytest.raises(ValidationError, match="define the stream"):
        TableOptions(path="x.csv")
    with pytest.raises(ValidationError, match="belong together"):
        TableOptions(path="x.csv", term_column="term")


@pytest.mark.parametrize("revision", ["abc", None])
def test_hub_data_set_takes_the_same_path(monkeypatch, revision):
    import datasets

    asked = {}

    def hub(path, revision, split):
        asked.update(path=path, revision=revision, split=split)
        return datasets.Dataset.from_list(rows())

    monkeypatch.setattr(datasets, "load_dataset", hub)
    made = built("table", **options("owner/cases", revision=revision, split="all"))
    assert asked == {"path": "owner/cases", "revision": revision or "main", "split": "all"}
    assert [row["fact_id"] for row in made.roles["edits"]] == ["d3", "d2", "d1", "d0"]
    assert made.sources[0]["version"].startswith(f"{revision or 'main'}, rows sha256:")


def test_supreme_court_records(shared, tmp_path):
    manifest, roles = prepared(
        tmp_path,
        "table",
        path=str(shared / "data/scotus/oyez_scdb_cases.jsonl"),
        text_column="facts",
        label_column="issueAreaName",
        id_column="caseId",
        term_column="term",
        train_before=1990,
        min_label_count=20,
        upstream_size=300,
    )
    assert len(manifest.labels) >= 8
    assert len(roles["edits"]) > 1500
    assert len(roles["upstream"]) == 300
    assert manifest.dropped["text repeated"] == 1
    terms = [int(row["relation"]) for row in roles["edits"]]
    assert terms == sorted(terms)
    assert terms[0] == 1990
