"""Replaying what no trained parameter reaches: the same results, with less computed."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_models import MODELS, batch, build
from torch import nn

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.replay.evaluations import EvaluationReplay
from grace_bench.replay.steps import StepReplay, labelled_columns

EDITORS = {
    "grace": {},
    "ft": {"early_stop": "none"},
    "ft_ewc": {"early_stop": "none"},
    "ft_retrain": {"early_stop": "none", "retrain_every": 2},
    "defer": {},
    "memory": {},
}


def after_three_edits(kind: str, editor: str, engine: str):
    model, layer = build(kind)
    settings = {"steps": 6, **EDITORS[editor]}
    made = create_editor(editor, model, layer, settings, 0, engine)
    losses = [made.edit(EditBatch(batch(kind, i), (f"e{i}",), step=i)).losses for i in range(3)]
    return made, losses


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("kind", MODELS)
def test_replaying_changes_no_bit(kind, editor):
    direct, expected = after_three_edits(kind, editor, "direct")
    replayed, losses = after_three_edits(kind, editor, "replay")
    assert replayed.replay.reason is None
    assert losses == expected
    state = replayed.state_dict()
    for name, tensor in direct.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("kind", MODELS)
def test_logits_that_no_loss_reads_change_no_more_than_rounding(kind):
    _, expected = after_three_edits(kind, "ft", "direct")
    lean, losses = after_three_edits(kind, "ft", "lean")
    assert lean.replay.reason is None
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_what_comes_before_the_layer_is_computed_once(kind):
    model, layer = build(kind)
    editor = create_editor("ft", model, layer, {"early_stop": "none", "steps": 10}, 0, "replay")
    layers = {
        "t5-encoder": ("encoder.block.0", "encoder.block.1.layer.0", "encoder.block.2"),
        "t5-decoder": ("encoder", "decoder.block.1.layer.1", "lm_head"),
        "bert": ("bert.encoder.layer.1", "bert.encoder.layer.2.intermediate", "classifier"),
        "gpt2": ("transformer.h.1", "transformer.h.2.attn", "transformer.h.3"),
        "llama": ("model.layers.1", "model.layers.2.mlp.up_proj", "model.layers.3"),
        "qwen": ("model.layers.1", "model.layers.2.mlp.up_proj", "model.layers.3"),
        "mistral": ("model.layers.1", "model.layers.2.mlp.up_proj", "model.layers.3"),
        "neox": ("gpt_neox.layers.1", "gpt_neox.layers.2.attention", "gpt_neox.layers.3"),
    }[kind]
    calls = dict.fromkeys(layers, 0)

    def counting(name, forward):
        def run(*args, **kwargs):
            calls[name] += 1
            return forward(*args, **kwargs)

        return run

    for name in layers:
        module = model.get_submodule(name)
        module.forward = counting(name, module.forward)
    editor.edit(EditBatch(batch(kind)))
    before, own, behind = (calls[name] for name in layers)
    assert (before, own) == (2, 2)  # to record, and to check the first replayed step of a model
    assert behind == 11
    assert all("forward" in model.get_submodule(name).__dict__ for name in layers)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_causal_model_computes_only_logits_that_predict_a_label(kind):
    model, layer = build(kind)
    model.requires_grad_(False)
    model.get_submodule(layer).weight.requires_grad_(True)
    inputs = batch(kind)
    forward = StepReplay(model).session(inputs)
    full = model(**inputs)
    for output in (forward(), forward()):
        assert output.logits.shape[1] == 3
        assert torch.allclose(output.logits, full.logits[:, 4:7], atol=1e-6)
        assert torch.allclose(output.loss, full.loss)
    assert labelled_columns(inputs["labels"]).tolist() == [4, 5, 6]


class Sneaky(nn.Module):
    """A model part of which autograd does not see: the hint depends on the weight, detached."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Linear(4, 4)
        self.change = change
        self.calls = 0
        self.requires_grad_(False)
        self.layer.weight.requires_grad_(True)

    def forward(self, hidden, labels=None):
        self.calls += 1
        output = self.layer(hidden)
        if self.change == "detached":
            output = output * self.scale(output.detach())
        elif self.change == "in place":
            output = output + self.scale(hidden).mul_(2.0)
        elif self.change == "fewer calls" and self.calls < 2:
            output = output + self.scale(hidden)
        elif self.change == "more calls":
            for _ in range(self.calls):
                output = output + self.scale(hidden)
        return type("Output", (), {"loss": output.square().mean(), "logits": output})()


@pytest.mark.parametrize("change", ["detached", "in place", "fewer calls", "more calls"])
def test_a_model_that_cannot_be_replayed_is_run_in_full_and_says_why(change, caplog):
    torch.manual_seed(0)
    model = Sneaky(change).eval()
    hidden = torch.randn(2, 4)
    replay = StepReplay(model)
    forward = replay.session({"hidden": hidden})
    optimizer = torch.optim.Adam([model.layer.weight], lr=0.1)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            loss = forward().loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert replay.reason is not None
    assert caplog.text.count("runs the whole model") == 1
    losses = []
    for run in (forward, lambda: model(hidden)):
        model.calls = 9  # the number of the call decides what it computes
        losses.append(run().loss)
    assert losses[0] == losses[1]


def test_a_model_with_dropout_at_work_is_run_in_full(caplog):
    model, layer = build("gpt2")
    model.train()
    editor = create_editor("ft", model, layer, {"early_stop": "none", "steps": 2})
    with caplog.at_level(logging.WARNING):
        editor.edit(EditBatch(batch("gpt2")))
    assert "training mode" in caplog.text


def test_another_edit_is_recorded_anew():
    model, layer = build("bert")
    editor = create_editor("ft", model, layer, {"early_stop": "none", "steps": 3})
    other, _ = build("bert")
    straight = create_editor("ft", other, layer, {"early_stop": "none", "steps": 3}, 0, "direct")
    for number in range(4):
        inputs = batch("bert", number)
        assert editor.edit(EditBatch(inputs)).losses == straight.edit(EditBatch(inputs)).losses


def evaluations(kind: str, editor: str, cached: bool):
    """Edit three times; after each edit, ask the model about two padded batches."""
    model, layer = build(kind)
    settings = {"steps": 4, **EDITORS[editor]}
    made = create_editor(editor, model, layer, settings)
    asked = EvaluationReplay(model, made.trained) if cached else model
    found = []
    for number in range(4):
        for inputs in (batch(kind, 7), batch(kind, 8)):
            mask = torch.ones_like(inputs["input_ids"])
            with torch.no_grad():
                found.append(asked(**inputs, attention_mask=mask).logits)
        made.edit(EditBatch(batch(kind, number), step=number + 1))
    return asked, found


@pytest.mark.parametrize("editor", ["ft", "defer", "memory"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_kept_evaluation_changes_no_bit(kind, editor, caplog):
    _, expected = evaluations(kind, editor, cached=False)
    _, found = evaluations(kind, editor, cached=True)
    gate_stays_shut = editor == "defer" and kind in ("llama", "qwen", "mistral")
    assert gate_stays_shut or not torch.equal(expected[0], expected[-2])
    assert "whole model" not in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", MODELS)
def test_an_evaluation_keeps_only_what_is_read(kind):
    asked, _ = evaluations(kind, "ft", cached=True)
    everything = sum(p.numel() for p in asked.model.parameters()) * 4
    assert 0 < asked.nbytes < everything
    block = next(m for m in asked.model.modules() if isinstance(m, nn.ModuleList))[0]
    calls, forward = [], block.forward
    block.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    inputs = batch(kind, 7)
    asked(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    assert not calls


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["bert", "t5-decoder"])
def test_what_memory_has_no_room_for_is_kept_on_disk_until_that_is_full(
    kind, full, tmp_path, monkeypatch
):
    model, layer = build(kind)
    editor = create_editor("ft", model, layer, {"steps": 2})
    asked = EvaluationReplay(model, editor.trained, most_bytes=1, folder=tmp_path)
    free = 0 if full else 10
    monkeypatch.setattr(
        "grace_bench.replay.evaluations.shutil.disk_usage",
        lambda _: SimpleNamespace(free=free, total=10),
    )
    inputs = [batch(kind, number) for number in range(3)]
    asked(**inputs[0])
    in_memory = asked.nbytes
    asked(**inputs[1])
    asked(**inputs[2])
    assert asked.nbytes == in_memory > 0
    assert list(tmp_path.iterdir()) == []  # files without names, none left behind
    editor.edit(EditBatch(batch(kind, 5), step=1))
    early = model.get_submodule("encoder.block.0" if kind == "t5-decoder" else "bert.embeddings")
    calls = []
    forward = early.forward
    early.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    asked(**inputs[0])  # compared with a full forward, as the first after an edit
    calls.clear()
    logits = asked(**inputs[2]).logits
    assert len(calls) == (1 if full else 0)
    with torch.no_grad():
        assert torch.equal(logits, model(**inputs[2], use_cache=False).logits)


def test_an_evaluation_that_autograd_does_not_see_through_is_run_in_full(caplog):
    torch.manual_seed(0)
    model = Sneaky("detached").eval()
    asked = EvaluationReplay(model, [model.layer.weight])
    hidden = torch.randn(2, 4)
    for _ in range(3):
        assert torch.equal(asked(hidden=hidden).logits, model(hidden).logits)
        with torch.no_grad():
            model.layer.weight += 1.0
