"""Leaving out positions that no logit reads: what is left out, and that it is safe."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.prefix import Prefix
from grace_bench.unread import only_columns, read_columns, same_logits, watched


def bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        num_labels=3,
    )
    inputs = {"input_ids": torch.tensor([[3, 9, 5, 11, 6, 8]]), "labels": torch.tensor([1])}
    return BertForSequenceClassification(config).eval(), inputs


def gpt2() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=4)).eval()
    ids = torch.tensor([[3, 9, 5, 11, 6, 8, 7, 1]])
    return model, {"input_ids": ids, "labels": ids.masked_fill(torch.arange(8) < 6, -100)}


def t5() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    inputs = {"input_ids": torch.tensor([[3, 9, 5]]), "labels": torch.tensor([[7, 1]])}
    return T5ForConditionalGeneration(config).eval(), inputs


MIDDLE = {bert: "bert.encoder.layer.1.output.dense", gpt2: "transformer.h.1.mlp.c_fc"}


def rows_in_third_step(model, layer, inputs, names, engine="lean"):
    """Return how many positions modules compute in an edit's third gradient step."""
    seen = {name: [] for name in names}
    for name in names:
        module = model.get_submodule(name)
        whole = module.forward

        def counting(hidden, name=name, whole=whole):
            seen[name].append(hidden.shape[1])
            return whole(hidden)

        module.forward = counting
    settings = {"steps": 3, "early_stop": "none"}
    editor = create_editor("grace", model, layer, settings, 0, engine)
    editor.edit(EditBatch(inputs, ("e",), step=1))
    return {name: lengths[-1] for name, lengths in seen.items()}


def test_a_classifier_computes_the_last_block_only_where_it_is_read():
    model, inputs = bert()
    last = "bert.encoder.layer.2."
    names = {
        "attention.self.key": 6,
        "attention.self.value": 6,
        "attention.self.query": 1,
        "attention.output.dense": 1,
        "intermediate.dense": 1,
        "output.dense": 1,
    }
    found = rows_in_third_step(model, MIDDLE[bert], inputs, [last + name for name in names])
    assert found == {last + name: rows for name, rows in names.items()}


def test_a_language_model_computes_the_last_block_only_where_logits_are_asked_for():
    model, inputs = gpt2()
    names = {"transformer.h.2.mlp.c_fc": 2, "transformer.h.2.attn.c_attn": 8}
    assert rows_in_third_step(model, MIDDLE[gpt2], inputs, list(names)) == names
    model, inputs = gpt2()
    whole = dict.fromkeys(names, 8)
    assert rows_in_third_step(model, MIDDLE[gpt2], inputs, list(names), "replay") == whole


@pytest.mark.parametrize("make", [bert, gpt2])
def test_leaving_out_changes_losses_by_no_more_than_rounding(make):
    losses = {}
    for engine in ("direct", "lean"):
        model, inputs = make()
        settings = {"steps": 20, "learning_rate": 0.1}
        editor = create_editor("grace", model, MIDDLE[make], settings, 0, engine)
        losses[engine] = editor.edit(EditBatch(inputs, ("e",), step=1)).losses
        assert editor.prefix.leaves_out == (engine == "lean")
    assert losses["lean"] == pytest.approx(losses["direct"], rel=1e-4)


def test_where_all_positions_are_read_nothing_is_looked_for_again():
    model, inputs = t5()
    layer = "encoder.block.0.layer.1.DenseReluDense.wo"
    editor = create_editor("grace", model, layer, {"steps": 3}, 0)
    editor.edit(EditBatch(inputs, ("e",), step=1))
    assert not editor.prefix.leaves_out


def columns_of(model, inputs):
    with watched(model) as seen:
        logits = model(**inputs).logits
    return read_columns(seen, logits), logits


def test_a_position_that_a_shut_gate_hides_is_noticed():
    """A gradient that happens to be 0 says that nothing is read; NaN in that place says it is."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.gate = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]))

        def forward(self, hidden):
            logits = (self.linear(hidden) * self.gate[:, None]).sum(1)
            return type("Output", (), {"logits": logits})

    model = Gated()
    columns, logits = columns_of(model, {"hidden": torch.randn(1, 4, 4)})
    assert columns[model.linear].tolist() == [0]
    assert not same_logits(model, {"hidden": torch.randn(1, 4, 4)}, columns, logits, 1e-4)


def test_a_module_that_mixes_positions_is_noticed():
    class Mixer(nn.Module):
        def forward(self, hidden):
            return hidden.cumsum(1).flip(1)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.mixer = nn.Linear(4, 4), Mixer()

        def forward(self, hidden):
            return type("Output", (), {"logits": self.mixer(self.linear(hidden))[:, 0]})

    model, inputs = Mixed(), {"hidden": torch.randn(1, 4, 4)}
    columns, logits = columns_of(model, inputs)
    assert columns[model.mixer].tolist() == [0]
    assert not same_logits(model, inputs, columns, logits, 1e-4)


def test_modules_are_whole_again_afterwards():
    model, inputs = bert()
    columns, _ = columns_of(model, inputs)
    assert columns
    with pytest.raises(ZeroDivisionError), only_columns(columns):
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in columns)


def test_a_prefix_that_cannot_leave_anything_out_says_so(monkeypatch):
    monkeypatch.setattr("grace_bench.prefix.same_logits", lambda *args: not same_logits(*args))
    model, inputs = bert()
    model.requires_grad_(False)
    model.get_submodule(MIDDLE[bert]).weight.requires_grad_(True)
    prefix = Prefix(model)
    forward = prefix.on(inputs)
    logits = [forward().logits for _ in range(4)]
    assert not prefix.leaves_out
    assert all(torch.equal(logits[0], other) for other in logits[1:])
