"""`table`: the same rows from jsonl, json, csv and parquet; bad tables speak in one sentence."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from grace_bench.datasets.base import load_role, prepare
from grace_bench.datasets.builders.table import Table, TableOptions
from grace_bench.errors import DataError
from grace_bench.store.files import sha256_of

SCOTUS = "data/scotus/oyez_scdb_cases.jsonl"


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


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


def options(path, **changes):
    return TableOptions(
        **{
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
    )


def prepared(tmp_path, path, **changes):
    folder = tmp_path / "out" / path.suffix[1:]
    manifest = prepare(
        Table(options(path, **changes)),
        folder,
        task="classification",
        config={},
    )
    return folder, manifest


def build(tmp_path, path, **changes):
    return Table(options(path, **changes)).build()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_any_format_gives_the_same_stream(tmp_path, suffix):
    folder, manifest = prepared(tmp_path, write(tmp_path / f"cases{suffix}", rows()))
    edits = load_role(folder, "edits")
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
    assert manifest["roles"]["train"]["rows"] == 8
    assert manifest["roles"]["upstream"]["rows"] == 4
    assert manifest["roles"]["holdout"]["rows"] == manifest["roles"]["accurate"]["rows"] == 0
    assert manifest["labels"] == ["a", "b"]
    assert manifest["dropped"] == {
        "empty label": 1,
        "empty text": 1,
        "label of the stream that is never taught": 1,
        "label rarer than min_label_count": 1,
        "text repeated with another label": 1,
        "text shorter than min_words": 1,
    }


def test_upstream_was_not_trained_on_and_every_label_is_taught(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    roles = build(tmp_path, path, upstream_size=9).roles
    train, upstream = ({row["fact_id"] for row in roles[r]} for r in ("train", "upstream"))
    assert not train & upstream
    assert {row["label"] for row in roles["train"]} == {"a", "b"}


def test_rows_without_terms_are_split_at_random_but_the_same_way(tmp_path):
    path = write(tmp_path / "cases.csv", rows()[:12])
    changes = {"term_column": None, "train_before": None, "stream_size": 3, "id_column": None}
    first = build(tmp_path, path, **changes).roles
    assert len(first["edits"]) == 3
    assert first == build(tmp_path, path, **changes).roles
    assert first != build(tmp_path, path, seed=1, **changes).roles


def test_dates_work_as_terms(tmp_path):
    dated = [{**row, "term": f"{row['term']}-05-01"} for row in rows()]
    path = write(tmp_path / "cases.jsonl", dated)
    roles = build(tmp_path, path, train_before="2002-01-01").roles
    assert [row["fact_id"] for row in roles["edits"]] == ["d3", "d2", "d1", "d0"]


def test_stream_size_takes_the_first_later_rows(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    built = build(tmp_path, path, stream_size=2)
    assert [row["fact_id"] for row in built.roles["edits"]] == ["d3", "d2"]
    assert built.dropped["later row not requested"] == 2


def test_same_bytes_twice(tmp_path):
    path = write(tmp_path / "cases.parquet", rows())
    assert prepared(tmp_path, path)[1] == prepared(tmp_path, path)[1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_texts_and_labels_are_as_they_are_written(tmp_path, suffix):
    labels = ["01", "1", "1e5", "100000", "+1", "true", "NA", "None", "null", "nan", "9" * 23]
    records = [{"text": f"{label} of {n}", "label": label} for label in labels for n in range(3)]
    path = write(tmp_path / f"t{suffix}", [{"id": f"00{n}", **r} for n, r in enumerate(records)])
    given = TableOptions(path=str(path), id_column="id", stream_size=2, upstream_size=1)
    made = Table(given).build()
    assert made.labels == sorted(labels)
    assert sum(map(len, made.roles.values())) == len(records)


def test_one_empty_cell_leaves_the_other_numbers_whole(tmp_path):
    records = [{"text": f"text {n}", "label": None if n == 3 else n % 2} for n in range(8)]
    for suffix in (".jsonl", ".parquet", ".csv"):
        path = write(tmp_path / f"t{suffix}", records)
        made = Table(TableOptions(path=str(path), stream_size=2, upstream_size=1)).build()
        assert (made.labels, made.dropped) == (["0", "1"], {"empty label": 1})


def test_lists_by_column_are_rows(tmp_path):
    path = tmp_path / "t.json"
    columns = {"text": [f"text {n}" for n in range(8)], "label": [n % 2 == 0 for n in range(8)]}
    path.write_text(json.dumps(columns))
    made = Table(TableOptions(path=str(path), stream_size=2, upstream_size=1)).build()
    assert made.labels == ["false", "true"]
    assert sum(map(len, made.roles.values())) == 8


def test_missing_file_says_what_to_put_where(tmp_path):
    with pytest.raises(
        DataError, match=r"none\.csv: no such file; put the table \(with the columns facts, a"
    ):
        build(tmp_path, tmp_path / "none.csv")


def test_missing_column_names_the_nearest(tmp_path):
    path = write(tmp_path / "cases.csv", rows())
    with pytest.raises(DataError, match="no column 'fact'; did you mean 'facts'"):
        build(tmp_path, path, text_column="fact")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path, separator):
    path = tmp_path / "cases.csv"
    path.write_text(f"text{separator}label\na case{separator}law\n")
    with pytest.raises(
        DataError, match=r"its columns are separated by .*; separate them with commas"
    ):
        build(tmp_path, path)


def test_a_boundary_that_is_no_number_among_terms_that_are_is_refused(tmp_path):
    path = write(tmp_path / "cases.csv", rows())
    with pytest.raises(DataError, match="train_before='soon' is not a number, but the terms"):
        build(tmp_path, path, train_before="soon")


def test_wrong_hash_is_refused_and_the_right_one_taken(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    with pytest.raises(DataError, match=f"its sha256 is {sha256_of(path)}, expected 0000"):
        build(tmp_path, path, sha256="0" * 64)
    assert build(tmp_path, path, sha256=sha256_of(path).upper()).roles["edits"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_damaged_file_is_one_sentence(tmp_path, suffix):
    path = write(tmp_path / f"cases{suffix}", rows())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"not readable as a table|line 22: not valid JSON"
    ) as caught:
        build(tmp_path, path)
    assert "\n" not in str(caught.value)


def test_unknown_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "cases.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"the table .* must be in a file that ends in \.jsonl, \.json, \.csv"
    ):
        build(tmp_path, path)


def test_nothing_after_the_boundary_is_an_empty_split(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    with pytest.raises(DataError, match="table: empty split: no rows are left for 'edits'"):
        prepared(tmp_path, path, train_before=2050)


def test_too_large_an_upstream_is_refused(tmp_path):
    path = write(tmp_path / "cases.jsonl", rows())
    with pytest.raises(DataError, match="upstream_size=40 leaves no rows to train on, of 12"):
        build(tmp_path, path, upstream_size=40)


def test_repeated_id_names_the_row(tmp_path):
    records = rows()
    records[5]["case"] = "c1"
    with pytest.raises(DataError, match=r"row 6 has the id 'c1' of an earlier row"):
        build(tmp_path, write(tmp_path / "cases.jsonl", records))


def test_a_term_that_is_no_number_names_the_row(tmp_path):
    records = [{**row, "term": str(row["term"])} for row in rows()]
    records[2]["term"] = "last year"
    with pytest.raises(DataError, match="row 'c2' has the term 'last year', which is not a number"):
        build(tmp_path, write(tmp_path / "cases.jsonl", records))


def test_options_must_say_what_the_stream_is():
    with pytest.raises(ValidationError, match="define the stream"):
        TableOptions(path="x.csv")
    with pytest.raises(ValidationError, match="belong together"):
        TableOptions(path="x.csv", term_column="term")


def test_hub_name_that_cannot_be_loaded_is_one_sentence(tmp_path, monkeypatch):
    import datasets

    def refuse(path, **_):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="owner/cases: neither a local file nor a hub data set"):
        build(tmp_path, "owner/cases")


def test_hub_data_set_takes_the_same_path(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def hub(path, revision, split):
        asked.update(path=path, revision=revision, split=split)
        return datasets.Dataset.from_list(rows())

    monkeypatch.setattr(datasets, "load_dataset", hub)
    built = build(tmp_path, "owner/cases", revision="abc", split="all")
    assert asked == {"path": "owner/cases", "revision": "abc", "split": "all"}
    assert [row["fact_id"] for row in built.roles["edits"]] == ["d3", "d2", "d1", "d0"]
    assert built.sources[0]["version"].startswith("abc, rows sha256:")


@pytest.mark.skipif(
    "GRACE_BENCH_SHARED" not in os.environ,
    reason="GRACE_BENCH_SHARED does not say where the Supreme Court records are",
)
def test_supreme_court_records(tmp_path):
    builder = Table(
        TableOptions(
            path=str(Path(os.environ["GRACE_BENCH_SHARED"]) / SCOTUS),
            text_column="facts",
            label_column="issueAreaName",
            id_column="caseId",
            term_column="term",
            train_before=1990,
            min_label_count=20,
            upstream_size=300,
        )
    )
    manifest = prepare(builder, tmp_path / "scotus", task="classification", config={})
    assert len(manifest["labels"]) >= 8
    assert manifest["roles"]["edits"]["rows"] > 1500
    assert manifest["roles"]["upstream"]["rows"] == 300
    assert manifest["dropped"]["text repeated"] == 1
    terms = [int(row["relation"]) for row in load_role(tmp_path / "scotus", "edits")]
    assert terms == sorted(terms)
    assert terms[0] == 1990
