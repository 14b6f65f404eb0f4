"""The hyperparameters of every editor: pydantic, torch-free, so that reading a suite is quick.

Defaults are the paper's or, where it is silent, the released code's; each description says which.
`rules` chooses a preset of an editor's switches, and every switch can be set on its own:

    GraceHyperparameters(rules="released", distance="exact").model_dump()

shows the effective value of every switch. Ids like G6 are those of facts/grace-paper.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from grace_bench.errors import ConfigError, unknown_name

Rules = Literal["corrected", "released"]
EarlyStop = Literal["none", "loss", "argmax"]


class EditorHyperparameters(BaseModel):
    """Base class: unknown names and values out of range are errors."""

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = ()
    """The fields that what the editor needs before any run depends on (`assets.py`)."""

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


class UneditedHyperparameters(EditorHyperparameters):
    """The unedited model has nothing to set."""


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


class GraceHyperparameters(AdapterHyperparameters):
    """GRACE (Hartvigsen et al. 2023), Algorithm 1."""

    RELEASED: ClassVar[Mapping[str, Any]] = {
        "label_match": "mean",
        "query_position": "released",
        "replace_query": False,
        "expand": "to_distance",
        "split": "half",
        "split_margin": 1e-5,
        "zero_distance": "ignore",
        "boundary": "closed",
        "distance": "matrix_product",
        "train_on_expand": True,
    }

    radius: float = Field(
        1.0, gt=0, description="eps_init, the deferral radius of a new key (paper 3; released 1.0)."
    )
    learning_rate: float = Field(1.0, gt=0, description="Of Adam on the value (released 1.0).")
    steps: int = Field(100, ge=0, description="Gradient steps an edit (paper and released 100).")
    label_match: Literal["exact", "mean"] = Field(
        "exact",
        description="When two labels count as the same: equal token ids, masked ones left out, "
        "or equal means of the whole label row, mask included (released; G1).",
    )
    expand: Literal["add_radius", "to_distance", "moving_average", "none"] = Field(
        "add_radius",
        description="An edit outside the nearest key, with its label: add eps_init to the "
        "radius (paper), set the radius to the distance (released; P1), also move the key "
        "half way to the query, or leave it, so that the edit fails.",
    )
    split: Literal["shrink", "half"] = Field(
        "shrink",
        description="An edit near a key of another label: no radius grows, min(radius, d/2), "
        "or both become d/2 even if that is larger (paper and released; G7).",
    )
    split_margin: float = Field(
        0.0,
        ge=0,
        description="Taken off the old key's radius in a split (released 1e-5; P3).",
    )
    zero_distance: Literal["overwrite", "ignore"] = Field(
        "overwrite",
        description="The same input with another label: overwrite the key's value and label, or "
        "split as usual, after which neither value is ever used (released; G6).",
    )
    boundary: Literal["open", "closed"] = Field(
        "open", description="A key answers if d < radius (paper, Eq. 1) or d <= radius (P4)."
    )
    distance: Literal["exact", "matrix_product"] = Field(
        "exact",
        description="Euclidean distance by differences, or, above 25 keys, by a matrix product "
        "that gives an input a distance above 0 from its own key (released; G8).",
    )
    train_on_expand: bool = Field(
        False,
        description="Train the key's value on further edits with its label too (released; P5); "
        "the paper leaves it alone.",
    )
    value_init: Literal["cold", "warm"] = Field(
        "cold",
        description="A new value starts from U[0, 1) or from the layer's own output at the query.",
    )

    @classmethod
    def from_released(cls, settings: Mapping[str, Any]) -> GraceHyperparameters:
        """Translate the `editor` section of the released code's config.

        Its options that nothing reads (G11) are accepted and dropped, and so are unknown
        expansion rules, which do nothing there.

        Raises:
            ConfigError: an option has a value the released code has no name for.
        """
        expand = {"coverage": "to_distance", "moving_average": "moving_average"}
        names: dict[str, tuple[str, Mapping[str, str] | None]] = {
            "edit_lr": ("learning_rate", None),
            "n_iter": ("steps", None),
            "eps": ("radius", None),
            "val_init": ("value_init", {"cold": "cold", "warm": "warm"}),
            "replacement": ("replacement", {f"replace_{k}": k for k in ("prompt", "last", "all")}),
        }
        given: dict[str, Any] = {"rules": "released"}
        for theirs, (ours, values) in names.items():
            if theirs in settings:
                value = settings[theirs]
                if values is not None and value not in values:
                    raise ConfigError(unknown_name(theirs, str(value), values, "released config"))
                given[ours] = value if values is None else values[value]
        if "eps_expand" in settings:
            given["expand"] = expand.get(settings["eps_expand"], "none")
        return cls(**given)


class FinetuneHyperparameters(TrainedHyperparameters):
    """FT: finetune one weight matrix on the edit alone."""

    RELEASED: ClassVar[Mapping[str, Any]] = {"shift_labels": False}

    learning_rate: float = Field(1e-2, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps an edit at most (released).")
    early_stop: EarlyStop = Field(
        "argmax",
        description="Stop when every label token is the argmax by early_stop_margin (released), "
        "when the loss is at most early_stop_loss, or never.",
    )
    shift_labels: bool = Field(
        True,
        description="Compare the argmax of a causal language model with the next token, or, as "
        "released, with the token itself, so that the stop test hardly ever holds.",
    )


class EwcHyperparameters(FinetuneHyperparameters):
    """FT with elastic weight consolidation (Kirkpatrick et al. 2017) over recent edits."""

    RELEASED: ClassVar[Mapping[str, Any]] = {
        **FinetuneHyperparameters.RELEASED,
        "anchor": "shrunken",
        "zero_gradients": False,
        "divide_by": "memory",
        "include_current": True,
    }

    ewc_lambda: float = Field(0.1, ge=0, description="Weight of the penalty (released .1).")
    memory: Annotated[int, Field(ge=1)] = Field(
        10, description="Edits the Fisher information is taken over (released 10)."
    )
    anchor: Literal["before_edit", "shrunken"] = Field(
        "before_edit",
        description="Weights are pulled to what they were before the edit, or, as released, to "
        "a copy of it scaled by (edits in memory) / memory.",
    )
    zero_gradients: bool = Field(
        True,
        description="Square each edit's own gradient, or, as released, the sum of all gradients "
        "so far.",
    )
    divide_by: Literal["count", "memory"] = Field(
        "count",
        description="The Fisher sum is divided by the edits in it or, as released, by `memory`.",
    )
    include_current: bool = Field(
        False,
        description="Count the edit being made among the past ones (released).",
    )


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


class DeferHyperparameters(AdapterHyperparameters):
    """Defer: a gate decides per input between the layer and a trained linear map (SERAC-like)."""

    RELEASED: ClassVar[Mapping[str, Any]] = {
        "query_position": "released",
        "honour_threshold": False,
    }

    replacement: Literal["prompt", "last", "all"] = Field(
        "all", description="As for GRACE; the released code replaces every position."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps an edit (released 100).")
    threshold: float = Field(
        0.5, ge=0, le=1, description="The gate is open at or above it (released .5)."
    )
    honour_threshold: bool = Field(
        True, description="Use `threshold`, or .5 whatever it says, as the released code does."
    )


class MemoryHyperparameters(AdapterHyperparameters):
    """Memory: soft attention over a fixed number of trained values."""

    RELEASED: ClassVar[Mapping[str, Any]] = {
        "query_position": "released",
        "original_layer": "never",
    }

    replacement: Literal["prompt", "last", "all"] = Field(
        "all", description="As for GRACE; the released code replaces every position."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of Adam, new for each edit (released).")
    steps: int = Field(100, ge=0, description="Gradient steps an edit (released 100).")
    size: int = Field(100, ge=1, description="Number of values in the memory (released 100).")
    original_layer: Literal["until_edited", "never"] = Field(
        "until_edited",
        description="The layer answers until the first edit, or never, so that the model is "
        "another one before any edit (released).",
    )


class MendHyperparameters(EditorHyperparameters):
    """MEND (Mitchell et al. 2022): a trained map of gradients to updates, on the run's layer."""

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = (
        *("rank", "rate", "learning_rate", "rate_learning_rate", "edit_weight"),
        *("training_steps", "accumulate", "check_every", "checks", "patience"),
        *("held_out", "normalise_over", "training_seed"),
    )

    rank: int = Field(
        1920, ge=1, description="Of the map's layers (released 1920); at most their width is used."
    )
    rate: float = Field(
        1e-4, gt=0, description="Of the update, where its training starts (released 1e-4)."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Of Adam on the map (released 1e-6).")
    rate_learning_rate: float = Field(
        1e-4, gt=0, description="Of Adam on the rate (released 1e-4)."
    )
    edit_weight: float = Field(
        0.1, gt=0, description="Of the edit's loss beside the divergence elsewhere (paper .1)."
    )
    training_steps: int = Field(
        100_000, ge=1, description="Steps of Adam at most (released 1,000,000 edits)."
    )
    accumulate: int = Field(10, ge=1, description="Edits a step (released 10).")
    check_every: int = Field(500, ge=1, description="Steps between two looks at held-out edits.")
    checks: int = Field(100, ge=1, description="Held-out edits looked at.")
    patience: int = Field(
        2000, ge=1, description="Stop after so many steps without a better loss (released 20,000)."
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the training facts that is held out."
    )
    normalise_over: int = Field(
        200, ge=1, description="Edits that mean and deviation of the map's inputs come from."
    )
    training_seed: int = Field(0, ge=0, description="Of the map's training, whatever the run's.")


class RomeHyperparameters(TrainedHyperparameters):
    """ROME (Meng et al. 2022): a rank-one change of one weight for each edit.

    GRACE's code has no ROME: here `released` is what ROME's own code does.
    """

    ASSET_FIELDS: ClassVar[tuple[str, ...]] = ("layer", "covariance", "covariance_texts")
    RELEASED: ClassVar[Mapping[str, Any]] = {
        "steps": 19,
        "decay_by": "squared_norm",
        "exact_for": "prompt",
        "early_stop": "loss",
    }

    learning_rate: float = Field(0.5, gt=0, description="Of Adam on v* (paper .5).")
    steps: int = Field(
        20,
        ge=0,
        description="Gradient steps on v* (paper 20; the released code leaves out the last one).",
    )
    weight_decay: float = Field(
        0.5, ge=0, description="Weight of the size of v*'s change (released .5); see decay_by."
    )
    decay_by: Literal["norm", "squared_norm"] = Field(
        "norm",
        description="The change's norm is divided by the norm of the layer's own output, or by "
        "its square (released).",
    )
    kl_factor: float = Field(
        0.0625,
        ge=0,
        description="Weight of the divergence from what the unchanged model says after the "
        "essence prompt (released .0625).",
    )
    clamp_norm_factor: float = Field(
        4.0,
        gt=0,
        description="v* changes by at most so many norms of the layer's own output (released 4).",
    )
    query: Literal["subject_last", "prompt_last"] = Field(
        "subject_last",
        description="The token whose key is edited: the subject's last one (paper), or the "
        "prompt's last one, which is also taken where an edit names no subject.",
    )
    essence_suffix: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="Token ids behind the subject in the essence prompt. The paper's are those "
        "of ' is a'; with none, the divergence is taken at the subject's last token, as the "
        "released code does.",
    )
    context_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (5, 10),
        description="Tokens of the prefixes, written by the model itself, that the edit is seen "
        "behind (released 5 and 10); empty: the prompt alone.",
    )
    contexts_per_length: int = Field(
        10, ge=1, description="Prefixes of each length (released 10); the bare prompt comes on top."
    )
    context_top_k: int = Field(
        5, ge=1, description="A prefix's tokens are drawn from so many likeliest (released 5)."
    )
    exact_for: Literal["mean", "prompt"] = Field(
        "mean",
        description="The key that becomes v* exactly: the mean over contexts (paper, Eq. 2), or "
        "that of the bare prompt (released).",
    )
    layer: str | None = Field(
        None,
        description="Edit this layer, not the model's: ROME is meant for a down-projection "
        "(mlp.c_proj, mlp.down_proj).",
    )
    covariance: str | None = Field(
        None,
        description="File with the second moment C of the layer's inputs; null: the workflow "
        "computes it from the role `train` (the paper: from Wikipedia). In Python, where nothing "
        "is computed, C is then the identity, which is not the paper's ROME.",
    )
    covariance_texts: int = Field(
        100_000, ge=1, description="Texts that C is computed from at most (paper 100,000)."
    )
    ridge: float = Field(
        0.0,
        ge=0,
        description="Added to C's diagonal, as a share of its mean (our choice; paper 0): needed "
        "where C comes from fewer tokens than it has columns. Without a covariance it changes "
        "nothing.",
    )
