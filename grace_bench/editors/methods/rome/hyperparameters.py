"""The hyperparameters of ROME."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import TrainedHyperparameters

if TYPE_CHECKING:
    from collections.abc import Mapping


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
