"""MEND: the update, its training, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_models import build

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.editors.hyperparameters import MendHyperparameters
from grace_bench.editors.mend import GradientTransform, token_gradients
from grace_bench.editors.mend_training import (
    MendTraining,
    save_transform,
    split_by_fact,
    training_edits,
)
from grace_bench.errors import DataError, EditorError

KINDS = ("t5-encoder", "bert", "gpt2", "llama")
ROWS = [
    {
        "example_id": f"{fact}-{phrasing}",
        "fact_id": str(fact),
        "text": f"{3 + fact % 20} {30 + phrasing} {5 + fact // 20}",
        "label": str(fact % 3),
        "relation": "r",
    }
    for fact in range(40)
    for phrasing in range(2)
]
QUICK = {
    "rank": 8,
    "rate": 1e-2,
    "learning_rate": 3e-3,
    "rate_learning_rate": 3e-3,
    "training_steps": 60,
    "accumulate": 4,
    "check_every": 20,
    "checks": 12,
    "edit_weight": 1.0,
    "normalise_over": 20,
}


class Tokens:
    """A task whose texts are token ids; what a model of each kind takes."""

    def __init__(self, kind):
        self.kind = kind

    def encode(self, rows):
        prompts = [[int(token) for token in row["text"].split()] for row in rows]
        answers = [[20 + int(row["label"]), 1] for row in rows]
        labels = torch.tensor(answers)
        if self.kind == "bert":
            labels = torch.tensor([int(row["label"]) for row in rows])
        if self.kind in ("gpt2", "llama"):
            ignored = [[-100] * len(prompt) for prompt in prompts]
            labels = torch.tensor([i + a for i, a in zip(ignored, answers, strict=True)])
            prompts = [p + a for p, a in zip(prompts, answers, strict=True)]
        ids = torch.tensor(prompts)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def training(kind, **more):
    model, layer = build(kind)
    settings = MendHyperparameters(**{**QUICK, **more})
    return MendTraining(model, layer, Tokens(kind).encode, settings)


def inputs(kind, number=0):
    return Tokens(kind).encode([ROWS[number]])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_gradients_make_the_gradient_of_the_weight(kind):
    model, layer = build(kind)
    module = model.get_submodule(layer)
    rows, gradients, loss = token_gradients(model, module, inputs(kind))
    output = model(**inputs(kind))
    [whole] = torch.autograd.grad(output.loss, [module.weight])
    product = gradients.T @ rows
    assert torch.allclose(whole if product.shape == whole.shape else whole.T, product, atol=1e-6)
    assert loss == pytest.approx(output.loss.item())


def test_untrained_the_transform_is_a_normalised_gradient_step():
    transform = GradientTransform(3, 2, 4, 0.5, torch.Generator())
    transform.normalise_by(torch.randn(50, 5) * 3 + 1)
    u, delta = torch.randn(4, 3), torch.randn(4, 2)
    pairs = (torch.cat([u, delta], 1) - transform.mean) / transform.deviation
    expected = 0.5 * torch.einsum("no,ni->oi", pairs[:, 3:], pairs[:, :3])
    assert torch.allclose(transform(u, delta), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_takes_the_update_off_the_weight_and_remove_puts_it_back(kind):
    model, layer = build(kind)
    editor = create_editor("mend", model, layer, {"rank": 4})
    module = model.get_submodule(layer)
    rows, gradients, _ = token_gradients(model, module, inputs(kind))
    update = editor.transform(rows, gradients)
    before = module.weight.detach().clone()
    editor.edit(EditBatch(inputs(kind), step=1))
    update = update if update.shape == before.shape else update.T
    assert torch.equal(module.weight, before - update)
    assert module.weight.grad_fn is None
    assert not torch.equal(module.weight, before)
    editor.remove()
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_betters_edits_on_facts_it_has_not_seen(kind):
    told = training(kind).fit(ROWS)
    assert told["trained"]["edit"] < told["untrained"]["edit"]
    assert told["trained"]["total"] < told["untrained"]["total"] - 0.01


def test_training_leaves_the_model_alone_and_is_the_same_twice():
    made = [training("gpt2", training_steps=4) for _ in range(2)]
    before = [p.detach().clone() for p in made[0].model.parameters()]
    for each in made:
        each.fit(ROWS)
    assert all(torch.equal(p, q) for p, q in zip(made[0].model.parameters(), before, strict=True))
    states = [each.transform.state_dict() for each in made]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_no_fact_that_is_checked_is_trained_on():
    train, held_out = split_by_fact(ROWS, 0.1)
    assert {row["fact_id"] for row in train}.isdisjoint(row["fact_id"] for row in held_out)
    assert len(train) + len(held_out) == len(ROWS)
    with pytest.raises(DataError, match="needs 8 facts"):
        split_by_fact(ROWS[:6], 0.1)


def test_training_edits_ask_for_another_label_and_keep_another_fact():
    for item in itertools.islice(training_edits(ROWS, seed=0), 200):
        known = next(row for row in ROWS if row["example_id"] == item.edit["example_id"])
        assert item.edit["label"] != known["label"]
        assert item.outer["label"] == item.edit["label"]
        assert item.outer["fact_id"] == item.edit["fact_id"]
        assert item.local["fact_id"] != item.edit["fact_id"]
        assert item.local in ROWS


def test_one_label_a_relation_is_refused():
    rows = [{**row, "relation": row["fact_id"]} for row in ROWS]
    with pytest.raises(DataError, match="two labels of one relation"):
        next(training_edits(rows, seed=0))


def test_a_trained_transform_is_used_after_loading(tmp_path):
    trained = training("gpt2", training_steps=4)
    trained.fit(ROWS)
    model, layer = build("gpt2")
    save_transform(trained.transform, tmp_path, layer)
    editor = create_editor("mend", model, layer, QUICK)
    editor.use_assets(tmp_path)
    for name, tensor in trained.transform.state_dict().items():
        assert torch.equal(editor.transform.state_dict()[name], tensor)


@pytest.mark.parametrize("damage", ["missing", "damaged", "layer", "rank"])
def test_a_transform_that_does_not_fit_is_refused(tmp_path, damage):
    model, layer = build("gpt2")
    editor = create_editor("mend", model, layer, QUICK)
    if damage != "missing":
        other = "transformer.h.1.mlp.c_fc" if damage == "layer" else layer
        save_transform(editor.transform, tmp_path, other)
    if damage == "damaged":
        path = tmp_path / "mend.safetensors"
        path.write_bytes(path.read_bytes()[:50])
    if damage == "rank":
        editor = create_editor("mend", model, layer, {**QUICK, "rank": 5})
    with pytest.raises(EditorError, match=r"mend\.safetensors"):
        editor.use_assets(tmp_path)
