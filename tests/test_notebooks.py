"""The notebooks run from top to bottom, with smaller parameters than their kept outputs have."""

from __future__ import annotations

import pytest
import scratch_models
from run_notebook import executed

pytestmark = pytest.mark.slow  # 15 s each: a kernel imports torch

PROMPTS = ["Who wrote the novel Emma?", "Jane Austen", "What is the capital of France?"]


@pytest.fixture
def tiny_model(tmp_path):
    for part in scratch_models.make("gpt2", "question_answering", PROMPTS):
        part.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_edit_one_fact(repository, tiny_model, tmp_path):
    layer = "transformer.h.0.mlp.c_fc"
    parameters = f"PATH, OPTIONS, LAYER, RADIUS = {str(tiny_model)!r}, {{}}, {layer!r}, 0.5"
    found = executed(repository, "edit_one_fact", tmp_path, parameters)
    assert "first: key 0" in found[3]
    assert "True" in found[5]  # an undone edit leaves no bit behind
    assert "codebook.safetensors" in found[6]
    assert "Who wrote the novel Emma?" in found[7]


def test_life_of_a_codebook(repository, tmp_path):
    layer = "bert.encoder.layer.5.attention.output.dense"
    found = executed(
        repository, "life_of_a_codebook", tmp_path, f"EDITS, RADIUS, LAYER = 30, 2.0, {layer!r}"
    )
    assert found[3].startswith("30 edits, ")
    assert found[-1].splitlines()[1].startswith("29 edits, ")
