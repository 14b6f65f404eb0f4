"""Training edits ahead, and repeating only what changed, give the same as one by one."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.metrics import MEASURES
from grace_bench.run.evaluation import Evaluator, predict_all
from grace_bench.tasks.base import Prediction, Task, pad

LABELS = 4


class Tokens(Task):
    """Classification of texts that are token ids already; near neighbours differ in one token."""

    name = "tokens"
    main_measure = "accuracy"

    def __init__(self):
        self.predicted = 0

    def encode(self, examples):
        rows = [[int(token) for token in e["text"].split()] for e in examples]
        return {
            "input_ids": pad(rows, 0),
            "attention_mask": pad([[1] * len(row) for row in rows], 0),
            "labels": torch.tensor([int(e["label"]) for e in examples]),
        }

    @torch.no_grad()
    def predict(self, model, examples):
        self.predicted += len(examples)
        batch = self.encode(examples)
        chosen = model(**batch).logits.argmax(-1)
        return [
            Prediction(str(int(c)), {"accuracy": float(c == label)})
            for c, label in zip(chosen, batch["labels"], strict=True)
        ]

    def is_error(self, prediction):
        return prediction.scores["accuracy"] < 1.0


def make(radius: float, **more):
    blocks = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    model = tiny_models.make(
        "bert", vocab_size=20, hidden_size=8, num_labels=LABELS, initializer_range=0.5, **blocks
    )
    hyperparameters = {
        "radius": radius,
        "steps": 20,
        "early_stop": "loss",
        "early_stop_loss": 0.05,
        **more,
    }
    return create_editor("grace", model, "bert.encoder.layer.0.output.dense", hyperparameters)


def stream_of(numbers: list[tuple[int, int, int]]) -> list[dict[str, str]]:
    """Texts from few tokens, so that many are equal, near, or equal with another label."""
    return [
        {
            "example_id": f"e{i}",
            "fact_id": f"f{i}",
            "text": f"3 {4 + a} {4 + b} 9",
            "label": str(label),
        }
        for i, (a, b, label) in enumerate(numbers)
    ]


def run(editor, stream, at_once: int):
    """Meet the stream as a run does; edit what is wrong, in the order of the stream."""
    task = Tokens()
    evaluator = Evaluator(editor, task, batch_size=8)
    told, until = [], 0
    for step, example in enumerate(stream, start=1):
        if at_once > 1 and step > until:
            coming = stream[step - 1 : step - 1 + at_once]
            found = evaluator.predict(coming)
            steps = [step + i for i, p in enumerate(found) if task.is_error(p)]
            if steps:
                editor.train_ahead(task.encode([stream[s - 1] for s in steps]), steps)
            until = step + len(coming) - 1
        if not task.is_error(evaluator.predict([example])[0]):
            told.append(None)
            continue
        batch = EditBatch(task.encode([example]), (example["example_id"],), example["label"], step)
        result = editor.edit(batch)
        after = evaluator.predict([example])[0].text
        told.append((result.branch, result.key, result.nearest_key, after, result.losses))
    return told


STREAMS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, LABELS - 1)),
    min_size=1,
    max_size=16,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    STREAMS,
    st.sampled_from([0.05, 2.0, 6.0]),
    st.integers(2, 7),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_edits_trained_ahead_are_those_made_one_by_one(
    numbers, radius, at_once, train_on_expand, in_a_row
):
    stream = stream_of(numbers)
    more = {"train_on_expand": train_on_expand, "early_stop_steps": in_a_row}
    alone, ahead = (make(radius, **more) for _ in range(2))
    expected, told = run(alone, stream, 1), run(ahead, stream, at_once)
    for mine, theirs in zip(told, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine[:4] == theirs[:4]
            assert len(mine[4]) == len(theirs[4])
            assert mine[4] == pytest.approx(theirs[4], rel=1e-3, abs=1e-5)
    assert [i.label for i in ahead.codebook.info] == [i.label for i in alone.codebook.info]
    assert torch.equal(ahead.codebook.keys, alone.codebook.keys)
    assert torch.equal(ahead.codebook.radii, alone.codebook.radii)
    assert torch.allclose(ahead.codebook.values, alone.codebook.values, atol=1e-2)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(STREAMS, st.sampled_from([0.05, 2.0, 6.0]), st.randoms(use_true_random=False))
def test_an_incremental_evaluation_is_a_full_one_at_any_step(numbers, radius, chance):
    editor, task = make(radius), Tokens()
    evaluator = Evaluator(editor, task, batch_size=5)
    examples = stream_of([(a, b, 0) for a in range(4) for b in range(4)])
    stream = stream_of(numbers)
    for step, example in enumerate(stream, start=1):
        editor.edit(EditBatch(task.encode([example]), (), example["label"], step))
        if chance.random() < 0.2:
            editor.codebook.remove(chance.randrange(editor.n_keys))
        if chance.random() < 0.5:
            some = chance.sample(examples, 7) + stream[:step]
            full = predict_all(editor.model, task, some, 3, editor)
            assert evaluator.predict(some) == full


def test_only_what_an_edit_changed_is_predicted_again():
    editor, task = make(radius=1e-3), Tokens()
    evaluator = Evaluator(editor, task, batch_size=8)
    examples = stream_of([(a, b, 0) for a in range(4) for b in range(4)])
    evaluator.predict(examples)
    assert task.predicted == 16
    editor.edit(EditBatch(task.encode([{**examples[5], "label": "3"}]), (), "3", 1))
    task.predicted = 0
    evaluator.predict(examples)
    assert task.predicted == 1


def test_what_is_known_of_the_unedited_model_is_not_computed_again():
    editor, task = make(radius=1e-3), Tokens()
    examples = stream_of([(a, 0, 0) for a in range(4)])
    row = {**dict.fromkeys(MEASURES), "prediction": "known", "accuracy": 0.5, "loss": 0.5}
    evaluator = Evaluator(editor, task, batch_size=8)
    evaluator.learn(examples, [row] * len(examples))
    assert [p.text for p in evaluator.predict(examples)] == ["known"] * 4
    assert task.predicted == 0


def test_editors_that_change_weights_are_asked_anew():
    other = make(1.0).model
    editor = create_editor("ft", other, "bert.encoder.layer.1.output.dense", {"steps": 5})
    task = Tokens()
    evaluator = Evaluator(editor, task, batch_size=8)
    examples = stream_of([(a, 0, 0) for a in range(4)])
    evaluator.predict(examples)
    evaluator.predict(examples)
    assert task.predicted == 8
    assert not evaluator.incremental
