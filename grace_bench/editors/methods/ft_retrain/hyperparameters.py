"""The hyperparameters of FT+Retrain."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grace_bench.editors.methods.ft.hyperparameters import FinetuneHyperparameters


class RetrainHyperparameters(FinetuneHyperparameters):
    """FT with periodic rounds of finetuning on past edits."""

    RELEASED: ClassVar = {
        **FinetuneHyperparameters.RELEASED,
        "include_current": True,
    }

    retrain_every: int = Field(50, ge=1, description="Edits between rounds (released 50).")
    epochs: int = Field(5, ge=1, description="Passes over the memory per round (released 5).")
    memory: int | None = Field(
        None,
        ge=1,
        description="Latest edits to train on; null: all (released, which ignores its "
        "retrain_memory).",
    )
    retrain_from: Literal["current", "original"] = Field(
        "current",
        description="Start a round from the current weights (released) or the original ones.",
    )
    include_current: bool = Field(
        False,
        description="Train a round on the edit that follows it as well (released).",
    )
