"""The hyperparameters of FT."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grace_bench.editors.hyperparameters import EarlyStop, TrainedHyperparameters


class FinetuneHyperparameters(TrainedHyperparameters):
    """FT: finetune one weight matrix on the edit alone."""

    RELEASED: ClassVar = {"shift_labels": False}

    learning_rate: float = Field(1e-2, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Limit on gradient steps per edit (released 100).")
    early_stop: EarlyStop = Field(
        "argmax",
        description="Stop when every label token is the argmax by early_stop_margin (released), "
        "when the loss is at most early_stop_loss, or never.",
    )
    shift_labels: bool = Field(
        True,
        description="Compare a causal language model's argmax with the next token; false: with "
        "the token itself (released), so that training hardly ever stops early.",
    )
