"""`scotus`: two splits of text and label, from the hub's form or from files."""

from __future__ import annotations

import json

import pytest

from grace_bench.datasets.base import load_role, prepare
from grace_bench.datasets.builders.scotus import Scotus, ScotusOptions
from grace_bench.errors import DataError

OLDER = [{"text": f"The older opinion {n}.", "label": n % 3} for n in range(12)]
LATER = [{"text": f"The later opinion {n}.", "label": n % 3} for n in range(6)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def files(tmp_path, older=OLDER, later=LATER):
    return {
        "upstream": write(tmp_path / "older.jsonl", older),
        "edits": write(tmp_path / "later.jsonl", later),
    }


def build(tmp_path, older=OLDER, later=LATER, **options):
    return Scotus(ScotusOptions(**{**files(tmp_path, older, later), **options})).build()


def prepared(tmp_path, **options):
    folder = tmp_path / "out"
    manifest = prepare(Scotus(ScotusOptions(**options)), folder, task="classification", config={})
    return manifest, {role: load_role(folder, role) for role in manifest["roles"]}


def test_both_splits_keep_their_order_and_train_repeats_upstream(tmp_path):
    manifest, roles = prepared(tmp_path, **files(tmp_path))
    assert [row["text"] for row in roles["edits"]] == [row["text"] for row in LATER]
    assert roles["edits"][1] == {
        "example_id": "edits/stream-1",
        "fact_id": "stream-1",
        "text": "The later opinion 1.",
        "label": "1",
        "subject": None,
        "relation": None,
        "answers": None,
    }
    assert [row["text"] for row in roles["train"]] == [row["text"] for row in roles["upstream"]]
    assert manifest["labels"] == ["0", "1", "2"]
    assert manifest["dropped"] == {}


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
    built = Scotus(
        ScotusOptions(
            upstream={"path": str(copy), "split": "train"},
            edits={"path": str(copy), "split": "test"},
        )
    ).build()
    assert built.roles == build(tmp_path).roles
    assert built.sources[0]["origin"] == "local folder, split train"


def test_the_hub_is_asked_for_both_splits(tmp_path, monkeypatch):
    import datasets

    asked = []

    def hub(path, revision, split):
        asked.append((path, revision, split))
        return datasets.Dataset.from_list(OLDER if split == "train" else LATER)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    source = {"path": "tomh/grace-scotus", "revision": "main"}
    built = Scotus(ScotusOptions(upstream=source, edits={**source, "split": "test"})).build()
    assert built.roles == build(tmp_path).roles
    assert sorted(asked) == [(*source.values(), "test"), (*source.values(), "train")]


def test_train_of_its_own_and_a_sample_to_retain(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": f"taught {n}", "label": n} for n in (0, 1)])
    built = build(tmp_path, train=train, upstream_size=3)
    assert [row["text"] for row in built.roles["train"]] == ["taught 0", "taught 1"]
    assert len(built.roles["upstream"]) == 3
    assert built.dropped == {
        "upstream row whose label is not a class": 4,
        "edits row whose label is not a class": 2,
        "older case not requested for upstream": 5,
    }


def test_classes_of_a_pretrained_head_keep_their_order(tmp_path):
    built = build(tmp_path, classes=[0, 2, 1, 7])
    assert built.labels == ["0", "2", "1", "7"]
    labels = [{"text": f"case {n}", "label": label} for n, label in enumerate(("9", "10", "x"))]
    assert build(tmp_path, older=labels[:2]).labels == ["9", "10"]
    assert build(tmp_path, older=labels).labels == ["10", "9", "x"]
    with pytest.raises(DataError, match="names a class twice"):
        build(tmp_path, classes=[0, "0"])


def test_unfit_cases_are_counted(tmp_path):
    later = [
        *LATER,
        {"text": "", "label": 0},
        {"text": "A case.", "label": None},
        {"text": "A case.", "label": " "},
        {"text": "Lost \ufffd.", "label": 0},
        {"text": "The later opinion 1.", "label": 1},
        {"text": "The later opinion 2.", "label": 1},
        {"text": "A new topic.", "label": 9},
        {"text": "The older opinion 4.", "label": 1},
    ]
    built = build(tmp_path, later=later)
    assert built.dropped == {
        "empty text": 1,
        "record without 'label'": 1,
        "empty label": 1,
        "undecodable text": 1,
        "stream text repeated": 1,
        "stream text repeated with another label": 1,
        "edits row whose label is not a class": 1,
        "older text that is also in the stream": 1,
    }
    assert len(built.roles["edits"]) == 7
    assert len(built.roles["upstream"]) == 11


def test_refusals_are_one_sentence(tmp_path):
    good = files(tmp_path)
    for changes, sentence in (
        ({"edits": "none.csv"}, "none.csv: no such file; put the stream cases (a table of text"),
        ({"text_column": "texts"}, "records need the fields texts, label (it has 'text' for 'te"),
        ({"upstream": {"path": good["upstream"], "sha256": "0" * 64}}, "expected 0000"),
        (
            {"upstream": write(tmp_path / "one.jsonl", OLDER[:1])},
            "has 1 labels, but at least two are needed",
        ),
        ({"upstream": write(tmp_path / "empty.jsonl", [])}, "has no records"),
    ):
        with pytest.raises(DataError) as caught:
            Scotus(ScotusOptions(**{**good, **changes})).build()
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_real_records_split_by_term(shared, tmp_path):
    path = shared / "data/scotus/oyez_scdb_cases.jsonl"
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [
        ({"text": case["facts"], "label": case["issueArea"]}, int(case["term"])) for case in cases
    ]
    manifest, roles = prepared(
        tmp_path,
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
        count for reason, count in manifest["dropped"].items() if "not requested" not in reason
    ) == len(cases)
    assert manifest["labels"][:3] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["hallucination", "scotus", "table", "zsre"])
def test_configured_data_sets_have_valid_options(repository, name):
    import yaml

    from grace_bench.registry import DATASETS

    found = 0
    for path in sorted((repository / "config/datasets").glob("*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if config["builder"] == name:
            found += 1
            assert config["name"] == path.stem
            DATASETS.get(name).options_class(**config["options"])
    assert found
