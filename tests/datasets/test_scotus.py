"""`scotus`: two splits of text and label, from the hub's form or from files."""

from __future__ import annotations

import json

import pytest
import yaml
from dataset_records import built, prepared, refusal, texts, write

from grace_bench.registry import DATASETS

OLDER = [{"text": f"The older opinion {n}.", "label": n % 3} for n in range(12)]
LATER = [{"text": f"The later opinion {n}.", "label": n % 3} for n in range(6)]


def files(tmp_path, older=OLDER, later=LATER):
    return {
        "upstream": write(tmp_path / "older.jsonl", older),
        "edits": write(tmp_path / "later.jsonl", later),
    }


def build(tmp_path, older=OLDER, later=LATER, **options):
    return built("scotus", **{**files(tmp_path, older, later), **options})


def test_both_splits_keep_their_order_and_train_repeats_upstream(tmp_path):
    manifest, roles = prepared(tmp_path, "scotus", **files(tmp_path))
    assert texts(roles["edits"]) == texts(LATER)
    assert roles["edits"][1] == {
        "example_id": "edits/stream-1",
        "fact_id": "stream-1",
        "text": "The later opinion 1.",
        "label": "1",
        "subject": None,
        "relation": None,
        "answers": None,
    }
    assert texts(roles["train"]) == texts(roles["upstream"])
    assert manifest.labels == ["0", "1", "2"]
    assert manifest.dropped == {}


@pytest.mark.parametrize("form", ["save_to_disk", "csv", "parquet"])
def test_a_local_copy_of_the_hubs_data_set(tmp_path, form):
    import datasets

    copy = tmp_path / "grace-scotus"
    copy.mkdir()
    splits = {"train": datasets.Dataset.from_list(OLDER), "test": datasets.Dataset.from_list(LATER)}
    if form == "save_to_disk":
        datasets.DatasetDict(splits).save_to_disk(copy)
    for name, split in splits.items():
        if form == "csv":
            split.to_csv(copy / f"{name}.csv")
        elif form == "parquet":
            split.to_parquet(copy / f"{name}-00000-of-00001.parquet")
    path = str(copy)
    made = built("scotus", upstream=path, edits={"path": path, "split": "test"})
    assert made.roles == build(tmp_path).roles
    assert made.sources[0]["origin"] == "local folder, split train"


def test_the_hub_is_asked_for_both_splits(tmp_path, monkeypatch):
    import datasets

    asked = []

    def hub(path, revision, split):
        asked.append((path, revision, split))
        return datasets.Dataset.from_list(OLDER if split == "train" else LATER)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    source = {"path": "tomh/grace-scotus", "revision": "main"}
    made = built("scotus", upstream=source, edits={**source, "split": "test"})
    assert made.roles == build(tmp_path).roles
    assert sorted(asked) == [(*source.values(), "test"), (*source.values(), "train")]


def test_train_of_its_own_and_a_sample_to_retain(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": f"taught {n}", "label": n} for n in (0, 1)])
    made = build(tmp_path, train=train, upstream_size=3)
    assert texts(made.roles["train"]) == ["taught 0", "taught 1"]
    assert len(made.roles["upstream"]) == 3
    assert made.dropped == {
        "upstream row whose label is not a class": 4,
        "edits row whose label is not a class": 2,
        "older case not requested for upstream": 5,
    }


def test_classes_of_a_pretrained_head_keep_their_order(tmp_path):
    made = build(tmp_path, classes=[0, 2, 1, 7])
    assert made.labels == ["0", "2", "1", "7"]
    labels = [{"text": f"case {n}", "label": label} for n, label in enumerate(("9", "10", "x"))]
    assert build(tmp_path, older=labels[:2]).labels == ["9", "10"]
    assert build(tmp_path, older=labels).labels == ["10", "9", "x"]
    said = refusal("scotus", **files(tmp_path), classes=[0, "0"])
    assert "names a class twice" in said


def test_an_older_text_that_is_also_later_stays_in_the_stream_only(tmp_path):
    made = build(tmp_path, later=[*LATER, {**OLDER[4], "text": OLDER[4]["text"].upper()}])
    assert made.dropped == {"older text that is also in the stream": 1}
    assert len(made.roles["edits"]) == 7
    assert OLDER[4]["text"] not in texts(made.roles["upstream"] + made.roles["train"])


def test_refusals_are_one_sentence(tmp_path):
    good = files(tmp_path)
    for changes, sentence in (
        ({"edits": "none.csv"}, "none.csv: no such file; put the stream cases (a table of text"),
        ({"text_column": "texts"}, "records need the fields texts, label (it has 'text' for 'te"),
        ({"upstream": write(tmp_path / "one.jsonl", OLDER[:1])}, "has 1 labels, but at least two"),
        ({"upstream": write(tmp_path / "empty.jsonl", [])}, "has no records"),
    ):
        assert sentence in refusal("scotus", **{**good, **changes})


def test_real_records_split_by_term(shared, tmp_path):
    path = shared / "data/scotus/oyez_scdb_cases.jsonl"
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [
        ({"text": case["facts"], "label": case["issueArea"]}, int(case["term"])) for case in cases
    ]
    manifest, roles = prepared(
        tmp_path,
        "scotus",
        **files(
            tmp_path,
            [row for row, term in rows if term < 1990],
            [row for row, term in rows if term >= 1990],
        ),
        upstream_size=500,
    )
    assert len(roles["upstream"]) == 500
    assert len(roles["edits"]) > 1500
    assert len(roles["edits"]) + len(roles["train"]) + sum(
        count for reason, count in manifest.dropped.items() if "not requested" not in reason
    ) == len(cases)
    assert manifest.labels[:3] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["hallucination", "scotus", "table", "zsre"])
def test_configured_data_sets_have_valid_options(repository, name):
    found = 0
    for path in sorted((repository / "config/datasets").glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if config["builder"] == name:
            found += 1
            assert config["name"] == path.stem
            DATASETS.get(name).options_class(**config["options"])
    assert found
