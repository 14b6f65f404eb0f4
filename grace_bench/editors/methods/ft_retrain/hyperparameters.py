"""The hyperparameters of FT+Retrain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from grace_bench.editors.methods.ft.hyperparameters import FinetuneHyperparameters

if TYPE_CHECKING:
    from collections.abc import Mapping


class RetrainHyperparameters(FinetuneHyperparameters):
    """FT, and from time to time a round of finetuning on the past edits."""

    RELEASED: ClassVar[Mapping[str, Any]] = {
        **FinetuneHyperparameters.RELEASED,
        "include_current": True,
    }

    retrain_every: int = Field(50, ge=1, description="Edits between two rounds (released 50).")
    epochs: int = Field(5, ge=1, description="Passes over the memory in a round (released 5).")
    memory: int | None = Field(
        None,
        ge=1,
        description="Latest edits to train on; null: all (released, which ignores its "
        "retrain_memory).",
    )
    retrain_from: Literal["current", "original"] = Field(
        "current",
        description="A round goes on from the current weights (released) or begins from the "
        "original ones.",
    )
    include_current: bool = Field(
        False,
        description="A round, made before its edit, trains on that edit as well (released).",
    )
