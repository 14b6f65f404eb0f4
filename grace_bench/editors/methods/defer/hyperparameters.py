"""The hyperparameters of Defer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from grace_bench.editors.hyperparameters import ParametricHyperparameters


class DeferHyperparameters(ParametricHyperparameters):
    """Defer: a gate decides per input between the layer and a trained linear map (SERAC-like)."""

    RELEASED: ClassVar = {
        "query_position": "released",
        "honour_threshold": False,
    }

    threshold: float = Field(
        0.5, ge=0, le=1, description="The gate opens at this value (released .5)."
    )
    honour_threshold: bool = Field(
        True, description="Use `threshold`; false: always .5, as in the released code."
    )
