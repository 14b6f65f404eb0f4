"""The hyperparameters of Defer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import AdapterHyperparameters


class DeferHyperparameters(AdapterHyperparameters):
    """Defer: a gate decides per input between the layer and a trained linear map (SERAC-like)."""

    RELEASED: ClassVar = {
        "query_position": "released",
        "honour_threshold": False,
    }

    replacement: Literal["prompt", "last", "all"] = Field(
        "all", description="As for GRACE; the released code replaces every position."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps per edit (released 100).")
    threshold: float = Field(
        0.5, ge=0, le=1, description="The gate opens at this value (released .5)."
    )
    honour_threshold: bool = Field(
        True, description="Use `threshold`; false: always .5, as in the released code."
    )
