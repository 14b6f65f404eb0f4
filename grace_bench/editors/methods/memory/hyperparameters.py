"""The hyperparameters of Memory."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import AdapterHyperparameters


class MemoryHyperparameters(AdapterHyperparameters):
    """Memory: soft attention over a fixed number of trained values."""

    RELEASED: ClassVar = {
        "query_position": "released",
        "original_layer": "never",
    }

    replacement: Literal["prompt", "last", "all"] = Field(
        "all", description="As for GRACE; the released code replaces every position."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps per edit (released 100).")
    size: int = Field(100, ge=1, description="Number of values in the memory (released 100).")
    original_layer: Literal["until_edited", "never"] = Field(
        "until_edited",
        description="When the layer itself answers: until the first edit, or never, which "
        "changes the model before any edit (released).",
    )
