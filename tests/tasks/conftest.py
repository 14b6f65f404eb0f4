"""Very small random models with tokenizers of their own, one of each architecture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import scratch_models

from grace_bench.registry import TASKS

TEXTS = [
    "What is the capital of France? Paris",
    "Who wrote the play? Nobody knows",
    "The river runs from the hills down to the sea.",
]
CLASSES = ["economy", "law", "war"]


@pytest.fixture(scope="session")
def tiny():
    """tiny("gpt2", "question_answering", max_length=48) -> model, tokenizer, task."""
    made = {}

    def make(architecture: str, task: str, max_length: int = 48) -> SimpleNamespace:
        if (architecture, task) not in made:
            classes = CLASSES if task == "classification" else None
            made[architecture, task] = scratch_models.make(architecture, task, TEXTS, classes)
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
