"""Timing one input with an editor and without leaves everything as it was."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.run import latency

EXAMPLES = [{"example_id": "e0"}, {"example_id": "e1"}]


class Encoding:
    """A task that has its inputs already."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def encode(self, examples):
        [example] = examples
        return tiny_models.batch(self.kind, int(example["example_id"][1:]))


def edited(kind: str, name: str = "grace"):
    model, layer = tiny_models.build(kind)
    before = logits(model, kind)
    editor = create_editor(name, model, layer, {"steps": 3}, seed=0)
    editor.edit(EditBatch(tiny_models.batch(kind), ("e0",), "x", 1))
    return model, editor, before


@torch.no_grad()
def logits(model, kind: str) -> torch.Tensor:
    return model(**tiny_models.batch(kind)).logits


@pytest.mark.parametrize("kind", ["t5-encoder", "t5-decoder", "bert", "gpt2", "llama"])
def test_set_aside_the_model_answers_as_it_did_and_afterwards_as_edited(kind):
    model, editor, before = edited(kind)
    after = logits(model, kind)
    assert not torch.equal(after, before)
    for _ in range(2):
        with editor.disabled():
            assert torch.equal(logits(model, kind), before)
        assert torch.equal(logits(model, kind), after)
    with editor.recorded_keys() as keys:
        logits(model, kind)
    assert keys == [[0]]
    editor.remove()
    assert torch.equal(logits(model, kind), before)


def test_a_failure_while_set_aside_brings_the_editor_back():
    model, editor, _ = edited("gpt2")
    after = logits(model, "gpt2")
    with pytest.raises(RuntimeError, match="out of memory"), editor.disabled():
        raise RuntimeError("out of memory")
    assert torch.equal(logits(model, "gpt2"), after)


@pytest.mark.parametrize("name", ["grace", "ft"])
def test_each_input_is_timed_alone_both_ways_by_turns(monkeypatch, name):
    _, editor, before = edited("gpt2", name)
    calls = []

    def timed(model, inputs):
        with torch.no_grad():
            output = model(**inputs).logits
        calls.append(bool(torch.equal(output, before)))
        return len(calls) / 100

    monkeypatch.setattr(latency, "_seconds", timed)
    rows = latency.time_forward_passes(editor, Encoding("gpt2"), EXAMPLES[:1], repeats=3)
    # One turn before the timed ones; a weight editor's weights stay edited.
    assert calls == [False, name == "grace"] * 4
    assert rows == [
        {
            "example_id": "e0",
            "n_tokens": 8,
            "repeats": 3,
            "seconds": 0.05,
            "seconds_unedited": 0.06,
        }
    ]


def test_real_seconds():
    _, editor, _ = edited("t5-encoder")
    rows = latency.time_forward_passes(editor, Encoding("t5-encoder"), EXAMPLES, repeats=2)
    assert [row["example_id"] for row in rows] == ["e0", "e1"]
    assert all(0 < row["seconds"] < 60 and 0 < row["seconds_unedited"] < 60 for row in rows)
