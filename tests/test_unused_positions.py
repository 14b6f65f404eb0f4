"""Leaving out positions that no logit reads: what is left out, and that it is safe."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch, build
from torch import nn

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.replay.steps import StepReplay
from grace_bench.replay.unused_positions import only_columns, read_columns, same_logits, watched


def positions_in_third_step(kind, names, engine="lean"):
    """Return how many positions modules compute in an edit's third gradient step."""
    model, layer = build(kind)
    seen = {name: [] for name in names}
    for name in names:
        module = model.get_submodule(name)
        whole = module.forward

        def counting(hidden, name=name, whole=whole):
            seen[name].append(hidden.shape[1])
            return whole(hidden)

        module.forward = counting
    editor = create_editor("grace", model, layer, {"steps": 3}, 0, engine)
    editor.edit(EditBatch(batch(kind), ("e",), step=1))
    return {name: lengths[-1] for name, lengths in seen.items()}


LAST_BLOCK = {
    "bert": {
        "bert.encoder.layer.3.attention.self.key": 5,
        "bert.encoder.layer.3.attention.self.value": 5,
        "bert.encoder.layer.3.attention.self.query": 1,
        "bert.encoder.layer.3.attention.output.dense": 1,
        "bert.encoder.layer.3.intermediate.dense": 1,
        "bert.encoder.layer.3.output.dense": 1,
    },
    "gpt2": {
        "transformer.h.3.attn.c_attn": 8,
        "transformer.h.3.attn.c_proj": 3,
        "transformer.h.3.mlp.c_fc": 3,
        "transformer.h.3.mlp.c_proj": 3,
    },
    "llama": {
        "model.layers.3.self_attn.k_proj": 8,
        "model.layers.3.self_attn.q_proj": 3,
        "model.layers.3.mlp.up_proj": 3,
        "model.layers.3.mlp.down_proj": 3,
    },
}
"""Positions read: of a classifier one, of a language model those of three labels."""


@pytest.mark.parametrize("kind", LAST_BLOCK)
def test_the_last_block_is_computed_only_where_it_is_read(kind):
    names = LAST_BLOCK[kind]
    assert positions_in_third_step(kind, names) == names
    whole = dict.fromkeys(names, max(names.values()))
    assert positions_in_third_step(kind, names, "replay") == whole


@pytest.mark.parametrize("kind", LAST_BLOCK)
def test_leaving_out_changes_losses_by_no_more_than_rounding(kind):
    losses = {}
    for engine in ("direct", "lean"):
        model, layer = build(kind)
        settings = {"steps": 20, "learning_rate": 0.1}
        editor = create_editor("grace", model, layer, settings, 0, engine)
        losses[engine] = editor.edit(EditBatch(batch(kind), ("e",), step=1)).losses
        assert editor.replay.skips_unused == (engine == "lean")
    assert losses["lean"] == pytest.approx(losses["direct"], rel=1e-4)


def test_editors_that_accumulate_rounding_compute_all_positions():
    model, layer = build("bert")
    editor = create_editor("memory", model, layer, {"steps": 4}, 0)
    expected = create_editor("memory", *build("bert"), {"steps": 4}, 0, "direct")
    for made in (editor, expected):
        made.edit(EditBatch(batch("bert"), ("e",), step=1))
    assert editor.replay.reason is None
    states = editor.state_dict(), expected.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_where_all_positions_are_read_nothing_is_looked_for_again():
    model, layer = build("t5-encoder")
    editor = create_editor("grace", model, layer, {"steps": 3}, 0)
    editor.edit(EditBatch(batch("t5-encoder"), ("e",), step=1))
    assert not editor.replay.skips_unused


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
    model, _ = build("bert")
    columns, _ = columns_of(model, batch("bert"))
    assert columns
    with pytest.raises(ZeroDivisionError), only_columns(columns):
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in columns)


def test_a_prefix_that_cannot_leave_anything_out_says_so(monkeypatch):
    monkeypatch.setattr(
        "grace_bench.replay.steps.same_logits", lambda *args: not same_logits(*args)
    )
    model, layer = build("bert")
    model.requires_grad_(False)
    model.get_submodule(layer).weight.requires_grad_(True)
    replay = StepReplay(model)
    forward = replay.session(batch("bert"))
    logits = [forward().logits for _ in range(4)]
    assert not replay.skips_unused
    assert all(torch.equal(logits[0], other) for other in logits[1:])
