"""GRACE's training of one vector is, bit for bit, what training the whole codebook gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grace_bench.editors import create_editor
from grace_bench.editors.base import EditBatch
from grace_bench.models.architecture import find_layer

STEPS = 25


def straightforward_values(case, inputs, values, key):
    """Train a codebook (N, d) as the released code does: Adam over all of it, one row in use."""
    codebook = nn.Parameter(values.clone())
    for parameter in case.model.parameters():
        parameter.requires_grad_(False)

    def answer(module, arguments, output):
        everywhere = torch.ones(output.shape[:2], dtype=torch.bool)[:, :, None]
        return torch.where(everywhere, codebook[[key]][:, None, :], output)

    handle = find_layer(case.model, case.layer).register_forward_hook(answer)
    optimizer = torch.optim.Adam([codebook], lr=1.0)
    losses = []
    for _ in range(STEPS):
        loss = case.model(**inputs).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    handle.remove()
    return codebook.detach(), losses


@pytest.mark.parametrize("engine", ["direct", "replay"])
def test_one_vector_trains_as_the_whole_codebook_would(make_case, case, engine):
    other = make_case(case.kind)
    settings = {"rules": "released", "replacement": "all", "steps": STEPS, "radius": 1e-3}
    editor = create_editor("grace", case.model, case.layer, settings, 0, engine)
    draw = editor.draw_value
    edits = [case.inputs([3 + i, 9, 5], [7 + i, 1]) for i in range(4)]
    for index, inputs in enumerate(edits):
        drawn = []
        editor.draw_value = lambda step, drawn=drawn: drawn.append(draw(step)) or drawn[-1]
        before = editor.codebook.values.clone()
        result = editor.edit(EditBatch(inputs, (f"e{index}",)))
        start = torch.cat([before, drawn[0][None]])
        values, losses = straightforward_values(other, inputs, start, key=index)
        assert result.losses == losses
        assert torch.equal(editor.codebook.values, values)
    assert editor.n_keys == len(edits)
