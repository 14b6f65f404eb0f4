"""What does not fit the model's length is counted, said and written with the baseline."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from grace_bench.datasets.base import BuiltDataset, DatasetBuilder, prepare
from grace_bench.datasets.options import DatasetOptions
from grace_bench.steps import baseline
from grace_bench.store.files import read_json
from grace_bench.store.records import TruncationCounts
from grace_bench.tasks.base import Truncation

LONG = "The river runs from the hills down to the sea. " * 20


class Rivers(DatasetBuilder[DatasetOptions]):
    """Two rows a role, one of them with a text that is too long."""

    name = "rivers"
    options_class = DatasetOptions

    def build(self):
        def rows(role, n):
            texts = [f"{LONG} {role} {i}" if i == 0 else f"{role} {i}" for i in range(n)]
            return [
                {
                    "example_id": f"{role}/{i}",
                    "fact_id": f"{role}/{i}",
                    "text": text,
                    "label": "law",
                    "subject": None,
                    "relation": None,
                }
                for i, text in enumerate(texts)
            ]

        roles = {role: rows(role, 2) for role in ("train", "upstream", "edits")}
        return BuiltDataset(roles=roles, sources=[], labels=["economy", "law", "war"])


def test_a_classifier_counts_the_tokens_it_does_not_read(tiny, example):
    task = tiny("bert", "classification", max_length=24).task
    assert task.truncation(example("War.", "war")) == Truncation()
    cut = task.truncation(example(LONG, "war"))
    assert cut.text == len(task.texts.ids(LONG)) - 24
    assert cut.label == 0


def test_texts_and_labels_cut_short_are_counted_and_said(tiny, example, caplog):
    task = tiny("gpt2", "language_modelling", max_length=40).task
    rows = [example("Who?", "He."), example(LONG, LONG), example(LONG, "He."), example("", LONG)]
    with caplog.at_level(logging.INFO):
        nothing = TruncationCounts(rows=1, texts=0, labels=0)
        assert baseline.count_truncated(task, "edits", rows[:1]) == nothing
    assert not caplog.records
    found = baseline.count_truncated(task, "edits", rows)
    assert found == TruncationCounts(rows=4, texts=2, labels=2)
    assert "edits: of 4 rows, 2 texts and 2 labels are longer than max_length 40" in caplog.text


@pytest.mark.parametrize("training", [None, object()])
def test_the_baseline_says_of_every_role_what_is_cut(tiny, tmp_path, monkeypatch, training):
    prepare(Rivers(DatasetOptions()), tmp_path / "data", task="classification", config={})
    setting = tiny("bert", "classification")
    loaded = SimpleNamespace(model=setting.model, tokenizer=setting.tokenizer, sha256="0" * 64)
    monkeypatch.setattr(baseline, "load_model", lambda *_: loaded)
    spec = SimpleNamespace(
        compute=SimpleNamespace(device="cpu", precision="float32", threads=1, deterministic=True),
        dataset=SimpleNamespace(task="classification", generate=True),
        model=SimpleNamespace(max_length=24, training=training, start_token=None, end_token=None),
        probes=SimpleNamespace(batch_size=2),
    )
    monkeypatch.setattr(baseline, "set_up", lambda _: "cpu")
    baseline.run_baseline(spec, tmp_path / "data", tmp_path, tmp_path / "out")
    record = read_json(tmp_path / "out/baseline.json")
    assert record["max_length"] == 24
    one = {"rows": 2, "texts": 1, "labels": 0, "unsayable": 0}
    none = dict.fromkeys(one, 0)
    taught = {} if training is None else {"train": one}
    assert record["truncated"] == taught | {
        "upstream": one,
        "edits": one,
        "holdout": none,
        "accurate": none,
    }
