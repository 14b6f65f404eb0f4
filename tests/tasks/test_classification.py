"""Classification on a tiny random BERT."""

from __future__ import annotations

import pytest
import torch

from grace_bench.errors import ConfigError, DataError

ROWS = [
    ("The river runs from the hills.", "law"),
    ("War.", "war"),
    ("What is the capital of France? Nobody knows who wrote the play", "economy"),
]


@pytest.fixture
def setting(tiny):
    return tiny("bert", "classification", max_length=24)


@pytest.fixture
def examples(example):
    return [example(text, label, f"e{i}") for i, (text, label) in enumerate(ROWS)]


def test_a_batch_has_one_class_a_row_in_the_order_of_the_classes(setting, examples):
    batch = setting.task.encode(examples)
    assert batch["labels"].tolist() == [1, 2, 0]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [
        min(24, len(setting.tokenizer(text)["input_ids"])) for text, _ in ROWS
    ]


def test_a_long_text_keeps_its_beginning_and_its_closing_token(setting, example):
    batch = setting.task.encode([example("The river runs. " * 30, "law")])
    ids = batch["input_ids"][0].tolist()
    assert len(ids) == 24
    assert (ids[0], ids[-1]) == (setting.tokenizer.cls_token_id, setting.tokenizer.sep_token_id)


def test_predictions_are_the_models_argmax_and_loss(setting, examples):
    for example in examples:
        [prediction] = setting.task.predict(setting.model, [example])
        with torch.no_grad():
            output = setting.model(**setting.task.encode([example]))
        assert prediction.text == ["economy", "law", "war"][output.logits.argmax().item()]
        assert prediction.scores["loss"] == pytest.approx(output.loss.item(), abs=1e-6)
        right = prediction.text == example["label"]
        assert prediction.scores["accuracy"] == float(right)
        assert setting.task.is_error(prediction) is not right


def test_padding_changes_no_score(setting, examples):
    together = setting.task.predict(setting.model, examples)
    for example, found in zip(examples, together, strict=True):
        [alone] = setting.task.predict(setting.model, [example])
        assert found.text == alone.text
        assert found.scores == pytest.approx(alone.scores, abs=1e-5)


def test_a_class_that_the_model_lacks_is_named(setting, example):
    with pytest.raises(DataError) as caught:
        setting.task.encode([example("War.", "peace", "row-7")])
    assert str(caught.value) == (
        "example 'row-7': the model has no class 'peace'; "
        "its classes are ['economy', 'law', 'war']."
    )


def test_more_positions_than_the_model_has_are_refused(tiny):
    with pytest.raises(ConfigError, match="max_length 128 is more than the model's 64 positions"):
        tiny("bert", "classification", max_length=128)
