"""Base classes of hyperparameters: pydantic and torch-free, so that reading a suite is fast.

Defaults are the paper's or, where it is silent, the released code's; each description says which.
`rules` is a preset of an editor's switches, each of which can also be set by itself. This shows
the effective value of every switch:

    GraceHyperparameters(rules="released", distance="exact").model_dump()

Ids like G6 are those of docs/reference/quirks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

Rules = Literal["corrected", "released"]
EarlyStop = Literal["none", "loss", "argmax"]


class EditorHyperparameters(BaseModel):
    """Base class: unknown names and values out of range are errors."""

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = ()
    """The fields that the editor's assets depend on (`steps/precompute.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PresetHyperparameters(EditorHyperparameters):
    """Base class for editors with two presets; field defaults are the corrected one."""

    RELEASED: ClassVar[Mapping[str, Any]] = {}
    """The switches that `rules: released` changes."""

    rules: Rules = Field(
        "corrected",
        description="Preset of all switches: as the paper says, or as the released code does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("rules") == "released":
            return {**cls.RELEASED, **given}
        return given


class TrainedHyperparameters(PresetHyperparameters):
    """Base class for editors that take gradient steps: when to stop an edit's training early."""

    if TYPE_CHECKING:  # each editor has its own defaults
        learning_rate: float
        steps: int

    early_stop: EarlyStop = Field(
        "none",
        description="Stop before `steps`: never (paper and released), when the loss is at most "
        "early_stop_loss, or when every label token is the argmax by early_stop_margin.",
    )
    early_stop_loss: float = Field(
        0.05, ge=0, description="With early_stop 'loss': the loss to reach (our choice)."
    )
    early_stop_margin: float = Field(
        0.0,
        ge=0,
        description="With early_stop 'argmax': how far a label token's logit must exceed others "
        "(released 0).",
    )
    early_stop_steps: int = Field(
        1, ge=1, description="Stop when this held before this many consecutive steps (released 1)."
    )


class AdapterHyperparameters(TrainedHyperparameters):
    """Base class for editors that replace a layer's output: the query, and what to replace."""

    query_position: Literal["prompt_end", "released"] | StrictInt = Field(
        "prompt_end",
        description="Token whose layer input is the query: the prompt's last token; released: the "
        "last position, padding or not, and for a causal language model one token into the label "
        "(G2); a number: that token, counted from the end if negative, clamped.",
    )
    replacement: Literal["prompt", "last", "all"] = Field(
        "prompt",
        description="Positions that take the value: the prompt's tokens up to the query, only "
        "the query token, or every position, including generated ones.",
    )
    replace_query: bool = Field(
        True,
        description="With replacement 'prompt': also replace the query token; false: only the "
        "tokens before it (released).",
    )


class ParametricHyperparameters(AdapterHyperparameters):
    """Base class for editors whose adapter is trained on every edit (Defer, Memory)."""

    replacement: Literal["prompt", "last", "all"] = Field(
        "all", description="As for GRACE; the released code replaces every position."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps per edit (released 100).")
