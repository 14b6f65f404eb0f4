"""The hyperparameters of FT+EWC."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grace_bench.editors.methods.ft.hyperparameters import FinetuneHyperparameters


class EwcHyperparameters(FinetuneHyperparameters):
    """FT with elastic weight consolidation (Kirkpatrick et al. 2017) over recent edits."""

    RELEASED: ClassVar = {
        **FinetuneHyperparameters.RELEASED,
        "anchor": "shrunken",
        "zero_gradients": False,
        "divide_by": "memory",
        "include_current": True,
    }

    ewc_lambda: float = Field(0.1, ge=0, description="Weight of the penalty (released .1).")
    memory: Annotated[int, Field(ge=1)] = Field(
        10, description="Latest edits that give the Fisher information (released 10)."
    )
    anchor: Literal["before_edit", "shrunken"] = Field(
        "before_edit",
        description="Weights are pulled to their values before the edit; shrunken: to those "
        "times (edits in memory) / memory (released).",
    )
    zero_gradients: bool = Field(
        True,
        description="Square each edit's own gradient; false: the sum of all gradients so far "
        "(released).",
    )
    divide_by: Literal["count", "memory"] = Field(
        "count",
        description="Divide the Fisher sum by its number of edits, or by `memory` (released).",
    )
    include_current: bool = Field(
        False,
        description="Count the current edit among the past ones (released).",
    )
