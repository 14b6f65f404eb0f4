"""The hyperparameters of every editor: pydantic, torch-free, so that reading a suite is quick.

Defaults are the paper's or, where it is silent, the released code's; each description says which.
`rules` chooses a preset of an editor's switches, and every switch can be set on its own:

    GraceHyperparameters(rules="released", distance="exact").model_dump()

shows the effective value of every switch. Ids like G6 are those of docs/reference/quirks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

Rules = Literal["corrected", "released"]
EarlyStop = Literal["none", "loss", "argmax"]


class EditorHyperparameters(BaseModel):
    """Base class: unknown names and values out of range are errors."""

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = ()
    """The fields that what the editor needs before any run depends on (`steps/precompute.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PresetHyperparameters(EditorHyperparameters):
    """Base class of editors with two behaviours: field defaults are the corrected ones."""

    RELEASED: ClassVar[Mapping[str, Any]] = {}
    """The switches that `rules: released` sets to something else."""

    rules: Rules = Field(
        "corrected",
        description="Preset of all switches: what the paper means, or what the released code does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("rules") == "released":
            return {**cls.RELEASED, **given}
        return given


class TrainedHyperparameters(PresetHyperparameters):
    """Base class of editors that take gradient steps: when an edit is done before `steps`."""

    early_stop: EarlyStop = Field(
        "none",
        description="Stop training before `steps`: never (paper and released), when the loss is "
        "at most early_stop_loss, or when every label token is the argmax by early_stop_margin.",
    )
    early_stop_loss: float = Field(
        0.05, ge=0, description="With early_stop 'loss': good enough (our choice)."
    )
    early_stop_margin: float = Field(
        0.0,
        ge=0,
        description="With early_stop 'argmax': by so much a label token's logit is above every "
        "other (released 0).",
    )
    early_stop_steps: int = Field(
        1, ge=1, description="Stop when that held before so many steps in a row (released 1)."
    )


class AdapterHyperparameters(TrainedHyperparameters):
    """Switches of all editors that replace a layer's output: where to look, what to replace."""

    query_position: Literal["prompt_end", "released"] | StrictInt = Field(
        "prompt_end",
        description="Token whose layer input is the query: the prompt's last token; released: "
        "the last position, padding or not, and for a causal language model one token into the "
        "label (G2); a number: that token, counted from the end if negative, clamped.",
    )
    replacement: Literal["prompt", "last", "all"] = Field(
        "prompt",
        description="Which positions take the value: the prompt's tokens up to the query, "
        "the query token alone, or every position, generated ones included.",
    )
    replace_query: bool = Field(
        True,
        description="With replacement 'prompt': replace the query token too, or, as released, "
        "only the tokens before it.",
    )
