"""Very small random models with tokenizers of their own, one of each architecture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from grace_bench.models.scratch import build_model, train_tokenizer
from grace_bench.registry import TASKS
from grace_bench.suite.schema import ScratchSource

TEXTS = [
    "What is the capital of France? Paris",
    "Who wrote the play? Nobody knows",
    "The river runs from the hills down to the sea.",
]
CLASSES = ["economy", "law", "war"]
SHAPES = {
    "t5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
}


@pytest.fixture(scope="session")
def tiny():
    """tiny("gpt2", "question_answering", max_length=48) -> model, tokenizer, task."""
    made = {}

    def make(architecture: str, task: str, max_length: int = 48) -> SimpleNamespace:
        if (architecture, task) not in made:
            tokenizer = train_tokenizer(architecture, TEXTS, 330)
            source = ScratchSource(
                kind="scratch", architecture=architecture, shape=SHAPES[architecture]
            )
            labels = CLASSES if task == "classification" else None
            made[architecture, task] = (
                build_model(source, task, tokenizer, labels, seed=1).eval(),
                tokenizer,
            )
        model, tokenizer = made[architecture, task]
        return SimpleNamespace(
            model=model,
            tokenizer=tokenizer,
            task=TASKS.get(task)(tokenizer, model.config, max_length),
        )

    return make


@pytest.fixture(scope="session")
def example():
    """example("text", "label") -> a row as tasks take it."""

    def make(text: str, label: str, name: str = "e1") -> dict[str, str]:
        return {"example_id": name, "fact_id": "f", "text": text, "label": label}

    return make
