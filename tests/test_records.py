"""Writes are whole or not at all; what is read is checked."""

from __future__ import annotations

import errno
import math
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_bench.errors import DataError, ResultError
from grace_bench.store import files, schemas
from grace_bench.store.files import (
    atomic_path,
    read_json,
    read_parquet,
    sha256_of,
    write_json,
    write_parquet,
)
from grace_bench.store.json_records import read_record, write_record
from grace_bench.store.records import AssetsRecord, BaselineRecord
from grace_bench.store.schemas import EXAMPLES, PROBES, STEPS, predictions_schema

ROW = {"example_id": "e", "fact_id": "f", "text": "t", "label": "l"}
PROBE = {"step": 1, "n_edits": 1, "metric": "es", "measure": "f1", "value": 0.5, "n": 1}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_makes_its_folder_and_leaves_one_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
        written = temporary.stat().st_ino
    assert path.read_text() == "new"
    assert path.stat().st_ino == written  # renamed, not copied: there is no half of it at any time
    assert names_in(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full; free some space and rerun."),
        (errno.EDQUOT, "the disk is full; free some space and rerun."),
        (errno.EACCES, "the folder is not writable; check its permissions or choose another."),
        (errno.EROFS, "the folder is not writable; check its permissions or choose another."),
        (errno.EIO, "cannot write (Input/output error); fix the problem and rerun."),
    ],
)
def test_a_write_that_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, number, sentence):
    path = tmp_path / "record.parquet"
    path.write_text("old")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.pq, "write_table", refuse)
    with pytest.raises(ResultError) as caught:
        write_parquet(path, [PROBE], PROBES)
    assert str(caught.value) == f"{path}: {sentence}"
    assert caught.value.exit_code == 75
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["record.parquet"]


@contextmanager
def no_room(limit: int):
    """Let the system refuse files above `limit` bytes, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", ["json", "parquet"])
def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path, write):
    path = tmp_path / "record"
    path.write_text("old")
    rows = [{**PROBE, "value": math.sin(i)} for i in range(4096)]
    writers = {"json": write_json, "parquet": lambda p, rows: write_parquet(p, rows, PROBES)}
    with no_room(4096), pytest.raises(ResultError, match=r"record: .* rerun"):
        writers[write](path, rows)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["record"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    # A file where a folder should be: refused to root as well.
    (tmp_path / "results").write_text("a file")
    for path in (tmp_path / "results" / "x.json", tmp_path / "results" / "a" / "x.json"):
        with pytest.raises(ResultError, match=r"x\.json: cannot write \("):
            write_json(path, {})
    assert names_in(tmp_path) == ["results"]


def test_json_is_sorted_and_the_same_every_time(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": [1, None]})
    assert sha256_of(tmp_path / "a.json") == sha256_of(tmp_path / "b.json")
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_without_numbers_that_json_lacks(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text("{}\n")
    with pytest.raises(ResultError, match=r"a\.json: NaN or infinity cannot be written as JSON"):
        write_json(path, {"deep": [value]})
    assert path.read_text() == "{}\n"
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file; run the step that makes it first."),
        (b'{"a": ', "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"", "not readable as JSON"),
    ],
)
def test_a_json_file_that_cannot_be_read(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_record_with_numbers_that_json_lacks_is_refused_not_changed(tmp_path, value):
    averages = {"edits": {"perplexity": value}}
    record = BaselineRecord(data_hash="d", model_hash="m", averages=averages)
    with pytest.raises(ResultError, match="NaN or infinity cannot be written as JSON"):
        write_record(tmp_path / "baseline.json", record)
    assert list(tmp_path.iterdir()) == []


def test_a_record_comes_back_as_it_was_written(tmp_path):
    assets = AssetsRecord(model_hash="m", summary={"steps": 3}, files={"a": "b"}, seconds=0.5)
    write_record(tmp_path / "assets.json", assets)
    assert read_record(tmp_path / "assets.json", AssetsRecord) == assets
    earlier = (tmp_path / "assets.json").read_text().replace('"summary"', '"told"')
    (tmp_path / "assets.json").write_text(earlier)
    assert read_record(tmp_path / "assets.json", AssetsRecord) == assets


def test_rows_come_back_with_null_where_nothing_was_said(tmp_path):
    path = tmp_path / "examples.parquet"
    write_parquet(path, [ROW, {**ROW, "subject": "s"}], EXAMPLES)
    assert read_parquet(path, EXAMPLES).to_pylist() == [
        {**ROW, "subject": None, "relation": None, "answers": None},
        {**ROW, "subject": "s", "relation": None, "answers": None},
    ]


def test_a_file_without_rows_keeps_its_columns(tmp_path):
    write_parquet(tmp_path / "x.parquet", [], STEPS)
    table = read_parquet(tmp_path / "x.parquet", STEPS)
    assert (table.num_rows, table.column_names) == (0, STEPS.names)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / name, [PROBE] * 3, PROBES, metadata={"suite": "s"})
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    metadata = pq.read_schema(tmp_path / "a").metadata
    assert metadata[b"suite"] == b"s"
    assert metadata[b"grace_bench.schema_version"] == str(schemas.SCHEMA_VERSION).encode()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**PROBE, "walue": 1.0}, "a record has unknown columns ['walue']."),
        ({**PROBE, "metric": None}, "column 'metric' has records without a value."),
        ({k: v for k, v in PROBE.items() if k != "n"}, "column 'n' has records without a value."),
        ({**PROBE, "step": "first"}, "column 'step' cannot hold its records ("),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, row, sentence):
    with pytest.raises(ResultError) as caught:
        write_parquet(tmp_path / "x.parquet", [PROBE, row], PROBES)
    assert sentence in str(caught.value)
    assert names_in(tmp_path) == []


def probes_table(**changes: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist([PROBE], schema=PROBES)
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def test_a_truncated_file_is_one_sentence(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, [PROBE] * 100, PROBES)
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.parquet: not an intact Parquet file \(") as caught:
            read_parquet(path, PROBES)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (probes_table().drop_columns(["value", "n"]), "lacks the columns ['value', 'n']; it has ["),
        (probes_table(step=pa.array(["1"])), "column 'step' is string, must be int32. Make it ag"),
        (
            probes_table().replace_schema_metadata({"grace_bench.schema_version": "2"}),
            "written in format 2, this version reads 1; make it again or use the version that",
        ),
    ],
)
def test_a_file_of_another_shape_is_one_sentence(tmp_path, table, sentence):
    path = tmp_path / "x.parquet"
    pq.write_table(table, path)
    with pytest.raises(DataError) as caught:
        read_parquet(path, PROBES)
    assert str(caught.value).startswith(f"{path}: {sentence}")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no such file; run the step that makes it first"):
        read_parquet(tmp_path / "x.parquet", PROBES)
    with pytest.raises(DataError, match="not an intact Parquet file"):
        read_parquet(tmp_path, PROBES)


def test_predictions_of_an_earlier_version_answer_without_keys(tmp_path):
    path = tmp_path / "predictions.parquet"
    row = {"step": 1, "n_edits": 1, "role": "edit", "example_id": "e", "fact_id": "f", "key": 3}
    write_parquet(path, [row], predictions_schema())
    assert read_parquet(path, predictions_schema(), ["key"]).to_pylist() == [{"key": 3}]
    pq.write_table(read_parquet(path).drop_columns(["key"]), path)
    assert read_parquet(path, predictions_schema()).to_pylist()[0]["key"] is None
    assert read_parquet(path, predictions_schema(), ["step", "key"]).to_pylist() == [
        {"step": 1, "key": None}
    ]
    assert read_parquet(path, predictions_schema(), ["step"]).to_pylist() == [{"step": 1}]


def test_folder_names_do_not_become_columns(tmp_path):
    path = tmp_path / "radius=3.0" / "seed=1" / "x.parquet"
    write_parquet(path, [PROBE], PROBES)
    assert read_parquet(path, PROBES).column_names == PROBES.names
