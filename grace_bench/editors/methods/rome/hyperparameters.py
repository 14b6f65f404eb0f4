"""The hyperparameters of ROME."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grace_bench.editors.hyperparameters import TrainedHyperparameters


class RomeHyperparameters(TrainedHyperparameters):
    """ROME (Meng et al. 2022): a rank-one change of one weight for each edit.

    GRACE's code has no ROME, so `released` means ROME's own code.
    """

    ASSET_FIELDS: ClassVar = ("layer", "covariance", "covariance_texts")
    RELEASED: ClassVar = {
        "steps": 19,
        "decay_by": "squared_norm",
        "exact_for": "prompt",
        "early_stop": "loss",
    }

    learning_rate: float = Field(0.5, gt=0, description="Of Adam on v* (paper .5).")
    steps: int = Field(
        20,
        ge=0,
        description="Gradient steps on v* (paper 20; the released code skips the last one).",
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
        description="Weight of the divergence from the unedited model's prediction after the "
        "essence prompt (released .0625).",
    )
    clamp_norm_factor: float = Field(
        4.0,
        gt=0,
        description="Limit on v*'s change, as a multiple of the layer's output norm (released 4).",
    )
    query: Literal["subject_last", "prompt_last"] = Field(
        "subject_last",
        description="The token that gives the key: the subject's last one (paper), or the prompt's "
        "last one, which also serves edits without a subject.",
    )
    essence_suffix: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="Token ids after the subject in the essence prompt. The paper uses those of "
        "' is a'; without any, the divergence is taken at the subject's last token, as in the "
        "released code.",
    )
    context_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (5, 10),
        description="Lengths, in tokens, of the prefixes that the model writes as contexts "
        "(released 5 and 10); empty: only the prompt.",
    )
    contexts_per_length: int = Field(
        10, ge=1, description="Prefixes of each length (released 10), besides the bare prompt."
    )
    context_top_k: int = Field(
        5,
        ge=1,
        description="A prefix's tokens are drawn from this many likeliest (released 5).",
    )
    exact_for: Literal["mean", "prompt"] = Field(
        "mean",
        description="The key that maps to v* exactly: the mean over contexts (paper, Eq. 2) or "
        "that of the bare prompt (released).",
    )
    layer: str | None = Field(
        None,
        description="Edit this layer instead of the model's; ROME is meant for a down-projection "
        "(mlp.c_proj, mlp.down_proj).",
    )
    covariance: str | None = Field(
        None,
        description="File with the second moment C of the layer's inputs; null: the workflow "
        "computes it from the role `train` (paper: from Wikipedia). In Python, C is then the "
        "identity, which is not the paper's ROME.",
    )
    covariance_texts: int = Field(
        100_000, ge=1, description="Limit on the texts that C is computed from (paper 100,000)."
    )
    ridge: float = Field(
        0.0,
        ge=0,
        description="Added to C's diagonal, as a share of its mean (our choice; paper 0). Needed "
        "if C comes from fewer tokens than it has columns; ignored without a covariance.",
    )
