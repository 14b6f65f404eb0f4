"""MEND: the update, its training, and what is refused."""

from __future__ import annotations

import itertools
import os
import random
import signal

import pytest
import torch
from tiny_models import build

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.editors.methods.mend.editor import (
    GradientTransform,
    save_transform,
    token_gradients,
)
from grace_bench.editors.methods.mend.examples import cut, split_by_fact, take, training_edits
from grace_bench.editors.methods.mend.hyperparameters import MendHyperparameters
from grace_bench.editors.methods.mend.training import MendTraining, divergence
from grace_bench.editors.training import own_loss
from grace_bench.errors import DataError, EditorError, Interrupted, ResultError
from grace_bench.jobs.checkpoints import Checkpoints

KINDS = ("t5-encoder", "bert", "gpt2", "llama", "qwen", "mistral", "neox")
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
    "edit_lr": 1e-2,
    "learning_rate": 3e-3,
    "lr_lr": 3e-3,
    "training_steps": 60,
    "accumulate": 4,
    "check_every": 20,
    "checks": 12,
    "c_edit": 1.0,
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
        if self.kind not in ("t5-encoder", "bert"):
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
    found = token_gradients(model, module, inputs(kind), own_loss)
    output = model(**inputs(kind))
    [whole] = torch.autograd.grad(output.loss, [module.weight])
    product = found.gradients.T @ found.inputs
    assert torch.allclose(whole if product.shape == whole.shape else whole.T, product, atol=1e-6)
    assert found.loss == pytest.approx(output.loss.item())


def test_untrained_the_transform_is_a_normalised_gradient_step():
    transform = GradientTransform(3, 2, 4, 0.5, torch.Generator())
    transform.normalise_by(torch.randn(50, 5) * 3 + 1)
    u, delta = torch.randn(4, 3), torch.randn(4, 2)
    pairs = (torch.cat([u, delta], 1) - transform.mean) / transform.deviation
    expected = 0.5 * torch.einsum("no,ni->oi", pairs[:, 3:], pairs[:, :3])
    new_u, new_delta = transform(u, delta)
    assert torch.allclose(new_delta.T @ new_u, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_takes_the_update_off_the_weight_and_remove_puts_it_back(kind):
    model, layer = build(kind)
    editor = create_editor("mend", model, layer, {"rank": 4})
    module = model.get_submodule(layer)
    found = token_gradients(model, module, inputs(kind), own_loss)
    u, delta = editor.transform(found.inputs, found.gradients)
    update = delta.T @ u
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


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch, number):
    settings = {"training_steps": 7, "check_every": 2}
    whole = training("gpt2", **settings)
    told = whole.fit(ROWS)
    checkpoints = Checkpoints(tmp_path / "training", "the same work")
    first, make_step = training("gpt2", **settings), MendTraining.make_step

    def stopped_at_three(self, items):
        make_step(self, items)
        if self.step == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(MendTraining, "make_step", stopped_at_three)
        with pytest.raises(Interrupted, match="after step 3 of 7"):
            first.fit(ROWS, checkpoints)
    second = training("gpt2", **settings)
    steps = []
    monkeypatch.setattr(
        MendTraining, "make_step", lambda self, items: (steps.append(1), make_step(self, items))
    )
    assert second.fit(ROWS, checkpoints) == told
    assert len(steps) == 4
    for name, tensor in whole.transform.state_dict().items():
        assert torch.equal(second.transform.state_dict()[name], tensor)


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise ResultError("the disk is full")

    monkeypatch.setattr(Checkpoints, "write", full)
    checkpoints = Checkpoints(tmp_path / "training", "work")
    told = training("gpt2", training_steps=3, check_every=2).fit(ROWS, checkpoints, 1e-9)
    assert told["steps"] == 3
    assert "no checkpoint at step 1; continuing: the disk is full" in caplog.text


def test_no_fact_that_is_checked_is_trained_on():
    train, held_out = split_by_fact(ROWS, 0.1, seed=0)
    assert {row["fact_id"] for row in train}.isdisjoint(row["fact_id"] for row in held_out)
    assert len(train) + len(held_out) == len(ROWS)
    with pytest.raises(DataError, match="needs 8 facts"):
        split_by_fact(ROWS[:6], 0.1, seed=0)


def test_training_edits_ask_for_another_label_and_keep_another_fact():
    for item in itertools.islice(training_edits(ROWS, seed=0), 200):
        known = next(row for row in ROWS if row["example_id"] == item.edit["example_id"])
        assert item.edit["label"] != known["label"]
        assert item.outer["label"] == item.edit["label"]
        assert item.outer["fact_id"] == item.edit["fact_id"]
        assert item.local["fact_id"] != item.edit["fact_id"]
        assert item.local in ROWS


def test_a_whole_text_is_asked_for_what_follows_another_ones_beginning():
    texts = [f"Passage {n} begins. It has {n} cats. It has {n} dogs." for n in range(6)]
    rows = [{"fact_id": text, "text": "", "label": text} for text in [*texts, "One two", "One"]]
    for item in take(training_edits(rows, seed=0), 50):
        assert item.edit["fact_id"].startswith(item.edit["text"])
        assert item.edit["label"] not in item.edit["fact_id"]
        assert item.edit["label"].startswith("It has")
        assert item.outer == item.edit
    assert cut({"text": "", "label": "One two three"}, random.Random(0)) == {
        "text": "One",
        "label": "two three",
    }


def test_a_prompt_that_has_its_answer_is_not_edited():
    said = {"fact_id": "say", "text": "Say 1.", "label": "1", "relation": "r"}
    assert all(item.edit["fact_id"] != "say" for item in take(training_edits([*ROWS, said], 0), 99))


@pytest.mark.parametrize("kind", KINDS)
def test_edits_in_a_batch_are_as_if_each_were_made_alone(kind):
    several = training(kind, edit_lr=0.1)
    several.transform.normalise_by(several._pairs(ROWS))
    items = take(training_edits(ROWS, 0), 4)
    together = several.losses(items)
    for row, item in enumerate(items):
        editor = create_editor("mend", several.model, build(kind)[1], {**QUICK, "edit_lr": 0.1})
        editor.transform.load_state_dict(several.transform.state_dict())
        local = several.encode([item.local])
        with torch.no_grad():
            before = several.model(**local).logits
            editor.edit(EditBatch(several.encode([item.edit]), step=1))
            loss = several.model(**several.encode([item.outer])).loss
            after = several.model(**local).logits
        assert together["edit"][row].item() == pytest.approx(loss.item(), abs=1e-4)
        kl = divergence(before, after, local, several.causal)
        assert together["local"][row].item() == pytest.approx(kl.item(), abs=1e-5)
        assert kl > 0
        editor.remove()


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
