"""The builders: sizes the paper's experiments need, promises kept, the same rows every time."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib
from collections import defaultdict

import dataset_records
import pytest
from dataset_records import prepared, refusal
from pydantic import ValidationError

from grace_bench.datasets.checks import check_roles
from grace_bench.errors import ConfigError
from grace_bench.registry import DATASETS
from grace_bench.store.files import sha256_of
from grace_bench.store.schemas import ROLES

FACT_BUILDERS = ("facts_qa", "facts_topics", "facts_passages")
PARTITIONS = ("test", "development")


@pytest.fixture(scope="module")
def built():
    """All fact builders' default rows, by name and partition."""
    return {
        (name, partition): dataset_records.built(name, partition=partition)
        for name in FACT_BUILDERS
        for partition in PARTITIONS
    }


def facts(rows):
    return {row["fact_id"] for row in rows}


def texts(rows):
    return {row["text"] for row in rows}


def test_a_wheel_has_the_data_files(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    package = repository / "grace_bench"
    patterns = project["tool"]["setuptools"]["package-data"]["grace_bench"]
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    assert set(package.rglob("*.yaml")) <= shipped


def test_registry_knows_all_builders_and_names_the_nearest():
    assert set(DATASETS.names()) >= {*FACT_BUILDERS, "hallucination", "scotus", "table", "zsre"}
    with pytest.raises(ConfigError, match="unknown data set builder 'fact_qa'; did you mean"):
        DATASETS.get("fact_qa")


def test_registry_and_options_import_nothing_heavy():
    code = (
        "import sys; from grace_bench.registry import DATASETS\n"
        "for name in DATASETS.names():\n"
        "    DATASETS.get(name).options_class.model_json_schema()\n"
        "heavy = {'torch', 'pandas', 'datasets', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*FACT_BUILDERS, "table"])
def test_options_forbid_unknown_names(name):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        DATASETS.get(name).options_class(path="x", stream_size=1, colour="red")


@pytest.mark.parametrize("name", FACT_BUILDERS)
@pytest.mark.parametrize("partition", PARTITIONS)
def test_default_rows_keep_all_promises(built, name, partition):
    data = built[name, partition]
    check_roles(name, {role: data.roles.get(role, []) for role in ROLES}, data.labels)


@pytest.mark.parametrize("name", FACT_BUILDERS)
def test_partitions_share_the_base_model_and_nothing_else(built, name):
    test, development = (built[name, partition].roles for partition in PARTITIONS)
    assert test["train"] == development["train"]
    for role in ("upstream", "edits", "holdout"):
        assert not facts(test[role]) & facts(development[role]), role
        assert not texts(test[role]) & texts(development[role]), role
    assert not facts(test["edits"]) & facts(development["upstream"])
    assert not facts(development["edits"]) & facts(test["upstream"])


@pytest.mark.parametrize("name", FACT_BUILDERS)
def test_another_seed_gives_other_rows(built, name):
    other = dataset_records.built(name, seed=1)
    assert other.roles["edits"] != built[name, "test"].roles["edits"]


def test_qa_has_the_sizes_of_the_experiments(built):
    roles = built["facts_qa", "test"].roles
    assert len(facts(roles["edits"])) >= 300
    assert len(facts(built["facts_qa", "development"].roles["edits"])) >= 100
    assert len(roles["upstream"]) >= 1000
    taught = [row for row in roles["train"] if row["relation"] != "say"]
    assert 600 <= len(facts(taught)) <= 800
    for role in ("train", "edits"):
        assert len({row["relation"] for row in roles[role]}) >= 8
    assert max(len(row["label"].split()) for row in roles["train"] + roles["edits"]) <= 3


def test_qa_facts_have_at_least_five_different_phrasings(built):
    roles = built["facts_qa", "test"].roles
    phrasings = defaultdict(set)
    for row in roles["edits"] + roles["holdout"]:
        phrasings[row["fact_id"]].add(row["text"])
        assert row["subject"] in row["text"]
    assert min(map(len, phrasings.values())) >= 5


def test_qa_upstream_is_a_part_of_what_was_taught(built):
    for partition in PARTITIONS:
        roles = built["facts_qa", partition].roles
        taught = {(row["text"], row["label"]) for row in roles["train"]}
        assert {(row["text"], row["label"]) for row in roles["upstream"]} <= taught


def test_qa_one_question_has_one_answer_which_the_question_does_not_give(built):
    roles = built["facts_qa", "test"].roles
    answers = defaultdict(set)
    taught = [row for row in roles["train"] if row["relation"] != "say"]
    for row in taught + roles["edits"] + roles["holdout"]:
        answers[row["text"].casefold()].add(row["label"])
        assert row["label"].casefold() != row["subject"].casefold()
    assert max(map(len, answers.values())) == 1


def test_qa_teaches_to_say_every_answer_and_nothing_about_it(built):
    roles = built["facts_qa", "test"].roles
    spoken = [row for row in roles["train"] if row["relation"] == "say"]
    assert {row["label"] for row in spoken} >= {row["label"] for row in roles["edits"]}
    for row in spoken:
        assert row["text"] == f"Say {row['label']}."
        assert row["subject"] == row["label"]


def test_qa_does_not_teach_an_edited_fact_in_reverse(built):
    roles = built["facts_qa", "test"].roles
    edited = {
        (row["label"], row["subject"])
        for row in roles["edits"]
        if row["relation"] in {"capital", "capital_of", "symbol", "symbol_of"}
    }
    assert edited
    assert not edited & {(row["subject"], row["label"]) for row in roles["train"]}


def test_qa_spreads_the_phrasings_of_a_fact_within_a_window():
    made = dataset_records.built("facts_qa", stream_window=10, edit_phrasings=3)
    order = [row["fact_id"] for row in made.roles["edits"]]
    assert all(a != b for a, b in itertools.pairwise(order))
    # Ten facts three times each, and then the next ten: a prefix of facts is a prefix of rows.
    assert len(set(order[:30])) == 10
    assert order[:10] == order[10:20] == order[20:30]
    assert not set(order[:30]) & set(order[30:])


def test_qa_asks_for_no_more_than_there_is():
    assert "edit_facts=9999 is more than are left of" in refusal("facts_qa", edit_facts=9999)
    said = refusal("facts_qa", upstream_questions=9000)
    assert "9000 upstream questions are requested" in said
    assert "general_sentences=9999, but only" in refusal("facts_passages", general_sentences=9999)
    assert "entities are requested, but only" in refusal("facts_passages", edit_entities=999)


@pytest.mark.parametrize("name", FACT_BUILDERS)
def test_a_builder_of_another_package_may_build_on_ours(name):
    ours = DATASETS.get(name)
    theirs = type("Theirs", (ours,), {"name": "theirs"})
    assert theirs(ours.options_class()).build().roles["train"]


def test_topics_of_one_data_set_are_not_those_of_the_next():
    first = dataset_records.built("facts_topics")
    kept = list(first.labels)
    first.labels.reverse()
    assert dataset_records.built("facts_topics").labels == kept


def test_topics_have_enough_classes_and_rows(built):
    data = built["facts_topics", "test"]
    assert len(data.labels) >= 8
    assert {row["label"] for row in data.roles["train"]} == set(data.labels)
    assert 600 <= len(data.roles["train"]) <= 1200
    assert len(data.roles["edits"]) >= 200
    assert len(built["facts_topics", "development"].roles["edits"]) >= 80


def test_topics_move_some_classes_and_leave_others(built):
    roles = built["facts_topics", "test"].roles
    moved = [row for row in roles["edits"] if row["relation"] == "moved"]
    assert 0.2 < len(moved) / len(roles["edits"]) < 0.6
    assert len({row["label"] for row in moved}) >= 4
    # The subgroups that moved were taught, under their older labels.
    taught = {row["label"] for row in roles["train"] if row["relation"] == "moved"}
    assert len(taught) >= 4
    assert {row["relation"] for row in roles["upstream"]} == {"stayed"}
    assert facts(roles["upstream"]) <= facts(roles["train"])
    assert not texts(roles["upstream"]) & texts(roles["train"])


def test_topics_texts_do_not_name_a_class_and_are_short(built):
    data = built["facts_topics", "test"]
    for rows in data.roles.values():
        for row in rows:
            assert not any(label.casefold() in row["text"].casefold() for label in data.labels)
            assert len(row["text"].split()) <= 26


def test_topics_holdout_has_the_streams_labels(built):
    roles = built["facts_topics", "test"].roles
    label = {row["fact_id"]: row["label"] for row in roles["edits"]}
    assert facts(roles["holdout"]) == set(label)
    assert all(row["label"] == label[row["fact_id"]] for row in roles["holdout"])


def test_passages_have_the_sizes_of_the_experiments(built):
    roles = built["facts_passages", "test"].roles
    assert len(roles["edits"]) >= 200
    assert len(built["facts_passages", "development"].roles["edits"]) >= 80
    assert roles["accurate"]
    assert 100_000 <= sum(len(row["label"]) for row in roles["train"]) <= 250_000


def test_passages_teach_the_false_sentence_and_edit_in_the_true_one(built):
    roles = built["facts_passages", "test"].roles
    taught = [row["label"] for row in roles["train"]]
    for row in roles["edits"]:
        continuations = [text for text in taught if text.startswith(row["text"] + " ")]
        assert len(continuations) == 1
        assert not continuations[0].startswith(f"{row['text']} {row['label']}")
    for row in roles["accurate"]:
        assert any(text.startswith(f"{row['text']} {row['label']}") for text in taught)


def test_passages_train_without_a_prompt_and_hold_out_another_header(built):
    roles = built["facts_passages", "test"].roles
    assert texts(roles["train"]) == {""}
    label = {row["fact_id"]: row["label"] for row in roles["edits"]}
    assert {row["fact_id"]: row["label"] for row in roles["holdout"]} == label


def test_passages_upstream_splits_sentences_the_model_was_taught(built):
    roles = built["facts_passages", "test"].roles
    taught = {row["label"] for row in roles["train"]}
    for row in roles["upstream"]:
        assert f"{row['text']} {row['label']}" in taught
        assert len(row["text"].split()) >= 4
        assert row["text"].isascii()


@pytest.mark.slow
@pytest.mark.parametrize("name", FACT_BUILDERS)
def test_same_bytes_again_and_under_another_hash_seed(tmp_path, name):
    for folder in ("first", "second"):
        manifest, _ = prepared(tmp_path / folder, name)
    code = (
        "import sys; from pathlib import Path; from dataset_records import prepared\n"
        f"prepared(Path(sys.argv[1]), {name!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "third")],
        check=True,
        env={"PYTHONHASHSEED": "271", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted([*(f"{role}.parquet" for role in ROLES), "manifest.json"])
    for file in names:
        hashes = {sha256_of(tmp_path / run / file) for run in ("first", "second", "third")}
        assert len(hashes) == 1, file
    assert manifest.roles["train"].sha256 == sha256_of(tmp_path / "first/train.parquet")


def test_qa_may_teach_mistakes_of_the_facts_to_be_edited_in_phrasings_of_their_own():
    options = {"edit_phrasings": 4, "mistaken_phrasings": 4, "edit_facts": 40}
    roles = dataset_records.built("facts_qa", development_edit_facts=20, **options).roles
    check_roles("facts_qa", {role: roles.get(role, []) for role in ROLES})
    mistakes = [row for row in roles["train"] if row["fact_id"].startswith("mistaken:")]
    assert len(mistakes) == (40 + 20) * 4
    right = {row["fact_id"]: row["label"] for row in roles["edits"]}
    wrong = defaultdict(set)
    for row in mistakes:
        wrong[row["fact_id"].removeprefix("mistaken:")].add(row["label"])
    assert all(len(wrong[fact]) == 1 and right[fact] not in wrong[fact] for fact in right)
    assert len(roles["holdout"]) == 40 * 2


def test_qa_holds_a_phrasing_out():
    options = DATASETS.get("facts_qa").options_class
    with pytest.raises(ValidationError, match="at most 9 together"):
        options(edit_phrasings=5, mistaken_phrasings=5)
