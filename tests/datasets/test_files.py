"""`files`: the same records from every form of a source; bad files are one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from dataset_records import write
from pydantic import ValidationError

from grace_bench.datasets.options import Source
from grace_bench.datasets.reading.files import read_records
from grace_bench.errors import DataError
from grace_bench.store.files import sha256_of

ROWS = [
    {"text": "a first one", "label": "1"},
    {"text": "line one\nline two, \u2028é", "label": "2"},
]


def read(path, **options):
    return read_records(Source(path=str(path), **options), "the records")


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_any_format_gives_the_same_records(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    write(path, ROWS)
    records = read(path, licence="MIT")
    assert records.rows == ROWS
    assert records.entry == {
        "name": path.name,
        "version": f"sha256:{sha256_of(path)}",
        "licence": "MIT",
        "origin": "local file",
    }


def test_a_long_text_in_a_csv_is_whole(tmp_path):
    rows = [{"text": "word " * 60_000, "label": "1"}]
    assert read(write(tmp_path / "long.csv", rows)).rows == rows


def test_columns_become_rows_and_lines_keep_their_places(tmp_path):
    path = tmp_path / "nq.json"
    path.write_text('{"questions": ["a", "b"], "answers": ["1", "2"]}')
    assert read(path).rows[1] == {"questions": "b", "answers": "2"}
    path.write_text('{"questions": ["a", "b"], "answers": ["1"]}')
    assert "columns of equal length (has questions: 2, answers: 1)" in refusal(path)
    path = tmp_path / "names.txt"
    path.write_text("one\n\nthree\n")
    assert [row["line"] for row in read(path).rows] == ["one", "", "three"]


@pytest.mark.parametrize("name", ["test.csv", "test.jsonl", "data/test-00000-of-00001.parquet"])
def test_a_folder_with_a_file_a_split(tmp_path, name):
    write(tmp_path / "copy" / name, ROWS)
    write(tmp_path / "copy" / name.replace("test", "train"), ROWS[:1])
    assert read(tmp_path / "copy", split="test").rows == ROWS
    assert read(tmp_path / "copy").rows == ROWS[:1]
    assert "has no split 'dev'" in refusal(tmp_path / "copy", split="dev")


def test_a_folder_made_by_save_to_disk(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    table.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "both", split="test").rows == ROWS
    records = read(tmp_path / "one")
    assert records.rows == ROWS
    digest = records.entry["version"].removeprefix("sha256:")
    assert read(tmp_path / "one", sha256=digest).rows == ROWS
    assert "expected 0000" in refusal(tmp_path / "one", sha256="0" * 64)
    (tmp_path / "one" / "state.json").write_text("{")
    assert "not readable" in refusal(tmp_path / "one")
    for path in (tmp_path / "both" / "test").glob("*.arrow"):
        path.unlink()
    assert "has lost its .arrow files; save it again" in refusal(tmp_path / "both", split="test")


def test_a_hub_id_is_asked_for_by_its_revision_and_never_without(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def hub(path, revision, split):
        asked.update(path=path, revision=revision, split=split)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.chdir(tmp_path)
    assert "give 'revision' if owner/rows is the id of a hub data set" in refusal("owner/rows")
    assert not asked
    records = read("owner/rows", revision="abc", split="test")
    assert asked == {"path": "owner/rows", "revision": "abc", "split": "test"}
    assert records.rows == ROWS
    assert records.entry["version"].startswith("abc, rows sha256:")
    assert "pinned by its revision" in refusal("owner/rows", revision="abc", sha256="0" * 64)
    write(tmp_path / "owner" / "rows" / "train.jsonl", ROWS)
    asked.clear()
    assert read("owner/rows", revision="abc").rows == ROWS
    assert not asked


COMMITS = "a" * 40, "b" * 40


@pytest.fixture
def in_the_cache(tmp_path, monkeypatch):
    """The library's cache, holding one revision of the hub data set acme/cases."""
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.to_parquet(tmp_path / "cases.parquet")
    converted = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "cases.parquet"), cache_dir=tmp_path / "converted"
    )
    folder = Path(converted["train"].cache_files[0]["filename"]).parent
    cache = tmp_path / "cache"
    place = cache / "acme___cases" / "default" / "0.0.0" / COMMITS[0]
    shutil.copytree(folder, place)
    for file in place.glob("parquet-*.arrow"):
        file.rename(place / file.name.replace("parquet-", "cases-"))
    told = place / "dataset_info.json"
    known = {"builder_name": "parquet", "dataset_name": "cases", "config_name": "default"}
    told.write_text(json.dumps({**json.loads(told.read_text()), **known}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_the_cache")
def test_offline_a_hub_data_set_comes_from_the_librarys_cache():
    assert read("acme/cases", revision="main").rows == ROWS
    assert read("acme/cases", revision=COMMITS[0]).rows == ROWS
    said = refusal("acme/cases", revision=COMMITS[1])
    assert f"holds revision {COMMITS[0]}, but 'revision' is {COMMITS[1]}" in said


def test_a_table_whose_rows_have_more_cells_than_its_header_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,b,c\nd,e,f\n")
    assert "not readable as a table" in refusal(path)


def test_a_hub_data_set_out_of_reach_is_one_sentence(monkeypatch):
    import datasets

    def refuse(path, **_):
        raise ConnectionError(f"Couldn't reach '{path}'\non the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    said = refusal("owner/rows", revision="abc")
    assert said.startswith("owner/rows: neither a local file nor a hub data set")
    assert "put the records on disk" in said


def test_a_hub_data_set_with_a_script_is_never_run(monkeypatch):
    import datasets

    def refuse(path, **_):
        raise RuntimeError("Dataset scripts are no longer supported, but found rows.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert "set 'revision' to refs/convert/parquet" in refusal("owner/rows", revision="main")


def test_missing_file_says_what_to_put_where(tmp_path):
    said = refusal(tmp_path / "none.jsonl")
    assert said == (
        f"{tmp_path}/none.jsonl: no such file; put the records there, or set the option 'path' to "
        "its location."
    )


def test_wrong_hash_is_refused_and_the_right_one_taken(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert f"its sha256 is {sha256_of(path)}, expected 0000" in refusal(path, sha256="0" * 64)
    assert read(path, sha256=sha256_of(path).upper()).rows == ROWS


BAD = {
    "undecodable.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', "not UTF-8 (byte 24, line 2)"),
    "undecodable.json": (b'[{"text": "\xe9"}]', "not UTF-8 (byte 11, line 1)"),
    "undecodable.csv": (b"text,label\ncaf\xe9,1\n", "not readable as a table"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
    "list.jsonl": (b'["a"]\n', "line 1: not a JSON object"),
    "strings.json": (b'["a"]', "record 1 is not a JSON object"),
    "number.json": (b"3", "not a JSON object"),
    "deep.json": (b"[" * 100_000, "not valid JSON"),
    "damaged.parquet": (b"PAR1....", "not readable as a table"),
    "weights.pkl": (
        b"\x80\x04",
        "must be in a file that ends in .jsonl, .json, .csv, .parquet, .txt",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(tmp_path, name):
    content, sentence = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_a_source_may_be_its_path_alone_and_knows_its_keys():
    assert Source.model_validate("a.json") == Source(path="a.json")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Source(path="a.json", sha="x")
    with pytest.raises(ValidationError, match="pattern"):
        Source(path="a.json", sha256="abc")
