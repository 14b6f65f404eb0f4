"""`prepare`: checks catch planted faults, files and manifest are complete, bad files are named."""

from __future__ import annotations

import copy
from importlib import metadata

import pyarrow.parquet as pq
import pytest
from dataset_records import GOOD, Planted, prepared, row
from small_runs import Capitals

from grace_bench.datasets import base
from grace_bench.datasets.base import load_role, prepare, read_manifest
from grace_bench.datasets.options import DatasetOptions
from grace_bench.errors import ConfigError, DataError
from grace_bench.registry import DATASETS
from grace_bench.store.schemas import EXAMPLES, ROLES


def prepare_planted(folder, roles, task="classification"):
    return prepare(Planted(roles), folder, task=task, config={"name": "p"})


FAULTS = {
    "empty split": ("upstream", [], "planted: empty split: no rows are left for 'upstream'"),
    "id twice in a role": ("edits", row("e1", "x", "Why?"), "example id 'e1' is used twice"),
    "id twice across roles": (
        "upstream",
        row("t1", "taught", "Is fire hot?"),
        "'t1' is used twice, in train and in upstream",
    ),
    "edited text is taught": (
        "train",
        row("t3", "z", "Is ice cold?"),
        r"the text of edits row 'e1' is also in train \(row 't3'\)",
    ),
    "holdout of an unedited fact": ("holdout", row("h3", "z", "Eh?"), "'z', which is not in edits"),
    "two labels for a text": (
        "edits",
        row("e3", "new", "Is ice cold?", "no"),
        "edits row 'e1' and edits row 'e3' have the same text but different labels, 'yes' and 'no'",
    ),
    "empty label": ("edits", row("e3", "z", "Eh?", " "), "edits row 'e3' has an empty label"),
    "empty text": ("upstream", row("u3", "z", ""), "upstream row 'u3' has an empty text"),
    "label not a string": ("train", row("t3", "z", "Eh?", 3), "train row 't3' has 3 for 'label'"),
    "answers without the label": (
        "train",
        row("t3", "z", "Eh?") | {"answers": ["no", "yes"]},
        r"train row 't3' has the answers \['no', 'yes'\]; they must begin with its label 'yes'",
    ),
    "answers that are no list": (
        "train",
        row("t3", "z", "Eh?") | {"answers": "yes"},
        "train row 't3' has 'yes' for 'answers'",
    ),
    "an undecodable answer": (
        "train",
        row("t3", "z", "Eh?") | {"answers": ["yes", "\ud800"]},
        "train row 't3' has undecodable characters in 'answers'",
    ),
    "unknown column": ("train", {**row("t3", "z", "Eh?"), "hue": "red"}, "unknown columns"),
    "unknown class": ("train", row("t3", "z", "Eh?", "maybe"), "has the label 'maybe'"),
}


@pytest.mark.parametrize(("role", "fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_each_planted_fault_is_caught_and_nothing_is_written(tmp_path, role, fault, sentence):
    roles = copy.deepcopy(GOOD)
    roles[role] = fault if isinstance(fault, list) else [*roles[role], fault]
    with pytest.raises(DataError, match=sentence) as caught:
        prepare_planted(tmp_path / "data", roles)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_upstream_may_repeat_a_taught_text_and_a_prompt_may_be_empty_in_train(tmp_path):
    roles = copy.deepcopy(GOOD)
    roles["train"].append(row("t3", "z", ""))
    assert prepare_planted(tmp_path, roles).roles["train"].rows == 3


def test_an_unknown_role_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"unknown roles \['validation'\]"):
        prepare_planted(tmp_path, {**GOOD, "validation": []})


def test_a_builder_refuses_a_task_it_is_not_for(tmp_path):
    builder = DATASETS.get("facts_qa")
    with pytest.raises(ConfigError, match="'facts_qa' makes data for question_answering, not for"):
        prepare(builder(builder.options_class()), tmp_path, task="classification", config={})


def test_a_builder_whose_code_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Planted, "build", lambda self: {}["rows"])
    with pytest.raises(DataError, match=r"builder 'planted' fails \(KeyError: 'rows'\)"):
        prepare_planted(tmp_path / "data", GOOD)
    assert not (tmp_path / "data").exists()


def test_manifest_tells_counts_hashes_sources_and_what_was_dropped(tmp_path):
    manifest = prepare_planted(tmp_path, GOOD)
    assert manifest == read_manifest(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 + len(ROLES)  # nothing half-written is left
    assert {role: manifest.roles[role].rows for role in ROLES} == {
        "train": 2,
        "upstream": 1,
        "edits": 2,
        "holdout": 2,
        "accurate": 1,
    }
    assert manifest.roles["train"].facts == 1
    assert manifest.labels == ["no", "yes"]
    assert manifest.dropped == {"odd": 2}
    assert manifest.config == {"name": "p"}
    assert len(manifest.data_hash) == 64
    other = copy.deepcopy(GOOD)
    other["accurate"] = []
    assert prepare_planted(tmp_path, other).data_hash != manifest.data_hash


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("facts_qa", ["countryinfo", "periodictable"]),
        ("facts_topics", ["countryinfo", "periodictable"]),
        ("facts_passages", ["countryinfo", "periodictable", "randfacts"]),
    ],
)
def test_manifest_carries_versions_and_licences_of_the_packages(tmp_path, name, packages):
    manifest, _ = prepared(tmp_path, name, partition="development")
    assert [source["name"] for source in manifest.sources] == packages
    for source in manifest.sources:
        assert source["version"] == metadata.version(source["name"])
        assert "MIT" in source["licence"] or "public domain" in source["licence"]
        assert source["origin"].startswith("installed Python package")
    assert all(manifest.dropped.values())
    assert manifest.options["partition"] == "development"


def test_roles_come_back_as_they_were_built(tmp_path):
    prepare_planted(tmp_path, {**GOOD, "holdout": []})
    assert load_role(tmp_path, "edits") == GOOD["edits"]
    assert load_role(tmp_path, "holdout") == []


def test_files_open_as_hugging_face_data_sets_and_have_the_schema(tmp_path):
    import datasets

    prepare_planted(tmp_path, GOOD)
    table = datasets.Dataset.from_parquet(
        str(tmp_path / "edits.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert table.to_list() == GOOD["edits"]
    assert pq.read_schema(tmp_path / "edits.parquet").names == EXAMPLES.names


def test_a_failed_second_call_leaves_the_first_ones_files(tmp_path):
    manifest = prepare_planted(tmp_path, GOOD)
    with pytest.raises(DataError):
        prepare_planted(tmp_path, {**GOOD, "edits": []})
    assert read_manifest(tmp_path) == manifest


def test_missing_truncated_and_strange_files_are_named(tmp_path):
    prepare_planted(tmp_path, GOOD)
    path = tmp_path / "edits.parquet"
    with pytest.raises(DataError, match="unknown role 'edit'; the roles are train"):
        load_role(tmp_path, "edit")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"edits\.parquet: not an intact Parquet file"):
        load_role(tmp_path, "edits")
    pq.write_table(pq.read_table(tmp_path / "train.parquet").drop_columns(["label"]), path)
    with pytest.raises(DataError, match=r"lacks the columns \['label'\]"):
        load_role(tmp_path, "edits")
    path.unlink()
    with pytest.raises(DataError, match=r"edits\.parquet: no such file"):
        load_role(tmp_path, "edits")


def test_the_hash_of_the_data_is_of_its_rows_not_of_the_bytes_some_version_writes(
    tmp_path, monkeypatch
):
    def make(name):
        options = DatasetOptions()
        return prepare(Capitals(options), tmp_path / name, task="question_answering", config={})

    first, write = make("a"), base._write_role

    def write_otherwise(path, rows):
        write(path, rows)
        pq.write_table(pq.read_table(path), path, data_page_version="2.0")

    monkeypatch.setattr(base, "_write_role", write_otherwise)
    second = make("b")
    assert second.roles["edits"].sha256 != first.roles["edits"].sha256
    assert second.data_hash == first.data_hash
