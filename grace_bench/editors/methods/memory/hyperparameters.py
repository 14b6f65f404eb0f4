"""The hyperparameters of Memory."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import ParametricHyperparameters


class MemoryHyperparameters(ParametricHyperparameters):
    """Memory: soft attention over a fixed number of trained values."""

    RELEASED: ClassVar = {
        "query_position": "released",
        "original_layer": "never",
    }

    size: int = Field(100, ge=1, description="Number of values in the memory (released 100).")
    original_layer: Literal["until_edited", "never"] = Field(
        "until_edited",
        description="When the layer itself answers: until the first edit, or never, which "
        "changes the model before any edit (released).",
    )
